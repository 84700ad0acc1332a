import { describe, expect, test } from "vitest";
import type { Fault, Operation } from "../../src/testing/simulated-storage.ts";
import { crashAt, crashAtEach, operationsOfLife, ways } from "./changed-scenario.ts";

const operations = await operationsOfLife();

// Each way at its share of operations; changed-crash.long.ts goes through all of them.
describe("a crash at every operation", () => {
  for (const [way, [name, survives]] of ways.entries()) {
    test(name, () =>
      crashAtEach(
        operations.filter(({ index }) => index % ways.length === way),
        survives,
      ),
    );
  }
});

type Test = (operation: Operation, before: Operation | undefined) => boolean;

/** Each is done after the one it should come before, or not at all; `before`: the operation just before it. */
function skipped(test: Test): () => (operation: Operation) => Fault | undefined {
  return () => {
    let before: Operation | undefined;
    return (operation) => {
      const isIt = test(operation, before);
      before = operation;
      return isIt ? { kind: "skip" } : undefined;
    };
  };
}

function late(test: Test, until: (operation: Operation) => boolean) {
  return () => {
    let before: Operation | undefined;
    return (operation: Operation): Fault | undefined => {
      const isIt = test(operation, before);
      before = operation;
      return isIt ? { kind: "late", until } : undefined;
    };
  };
}

const written = /\/suspect\.json\.new$/;
const record = /\/suspect\.json$/;
const isRename: Test = ({ kind, path }) => kind === "rename" && record.test(path);
const isRemoval: Test = ({ kind, path }) => kind === "unlink" && record.test(path);
const syncAfter =
  (what: Test): Test =>
  (operation, before) =>
    operation.kind === "sync-directory" && before !== undefined && what(before, undefined);
const isPoint = ({ kind, path }: Operation): boolean => kind === "rename" && /\/points\/\d{10}\.json$/.test(path);

const edges: Readonly<Record<string, () => (operation: Operation) => Fault | undefined>> = {
  "sync of suspect.json.new": skipped(({ kind, path }) => kind === "sync" && written.test(path)),
  "suspect.json": skipped(isRename),
  "sync of the disk's directory after suspect.json": skipped(syncAfter(isRename)),
  "suspect.json → what differs in the log": late(
    isRename,
    ({ kind, path }) => kind === "sync" && path.endsWith(".undo"),
  ),
  "suspect.json removed": skipped(isRemoval),
  "sync of the disk's directory after suspect.json is gone": skipped(syncAfter(isRemoval)),
  "point of the changes → suspect.json removed": late(isPoint, (operation) => isRemoval(operation, undefined)),
};

describe("something is lost, or promised in vain, without", () => {
  for (const [name, change] of Object.entries(edges)) {
    test(name, async () => {
      for (const { index } of [...operations, { index: operations.length }]) {
        for (const [, survives] of ways) {
          const found = await crashAt(index, survives?.(index), change()).then(
            () => false,
            () => true,
          );
          if (found) return;
        }
      }
      expect.fail("nothing is lost");
    });
  }
});
