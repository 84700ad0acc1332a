import { describe, expect, test } from "vitest";
import { createSimulatedDisk, type Fault, type Operation } from "../../src/testing/simulated-storage.ts";
import { checkAfterCrash, createHistory, live } from "./crash-scenario.ts";
import { createChance } from "./simulated-store.ts";

/** Runs the life of a disk with a kill at operation `at`; then power is lost or not, and the disk is looked at. */
async function crashAt(
  at: number,
  survives: (() => boolean) | undefined,
  also: (operation: Operation) => Fault | undefined = () => undefined,
): Promise<"crashed" | "ended"> {
  const disk = createSimulatedDisk();
  const process = disk.start({
    fault: (operation) => (operation.index === at ? { kind: "kill" } : also(operation)),
  });
  const history = createHistory();
  try {
    await live(process, history);
  } catch (error) {
    if (!process.dead) throw error;
  }
  const ended = process.dead ? "crashed" : "ended";
  process.kill();
  if (survives !== undefined) disk.losePower(survives);
  await checkAfterCrash(disk.start(), history);
  return ended;
}

async function operationsOfLife(): Promise<Operation[]> {
  const operations: Operation[] = [];
  const process = createSimulatedDisk().start({
    fault: (operation) => {
      operations.push(operation);
      return undefined;
    },
  });
  await live(process, createHistory());
  return operations;
}

describe("a crash at every operation", () => {
  const kinds: readonly (readonly [string, ((seed: number) => () => boolean) | undefined])[] = [
    ["process killed", undefined],
    ["power lost, nothing un-synced survives", () => () => false],
    ["power lost, everything survives", () => () => true],
    ["power lost, half survives (a)", half],
    ["power lost, half survives (b)", (seed) => half(seed + 7_777)],
  ];
  for (const [name, survives] of kinds) {
    test(name, async () => {
      let crashes = 0;
      for (let at = 0; ; at++) {
        const ended = await crashAt(at, survives?.(at)).catch((error: unknown) => {
          throw new Error(`crash at operation ${at}`, { cause: error });
        });
        if (ended === "ended") break;
        crashes++;
      }
      expect(crashes).toBe((await operationsOfLife()).length);
    });
  }
});

function half(seed: number): () => boolean {
  const chance = createChance(seed);
  return () => chance() < 0.5;
}
