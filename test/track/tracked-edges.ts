/**
 * Every "A before B" between a tracked image, its journal, its known states and the receiver, and those of the journal itself, each as a change that takes it out of the
 * program. tracked-edges.test.ts shows for each that something is lost without it; the seed that shows it is in tracked-edges.json.
 */
import type { Operation } from "../../src/testing/simulated-storage.ts";
import { decodeBatch } from "../../src/track/journal/batch.ts";
import { type Edge, edges as journalEdges, late, skip, syncOf, type Test, written } from "./journal-edges.ts";
import { blockBytes, imagePath, type Step } from "./journal-world.ts";
import { pointMade, statePath } from "./tracked-world.ts";

export interface TrackedEdge extends Edge {
  /** What a loss of power does to names; default `prefix`. */
  readonly entries?: "prefix" | "any";
  /** What is found without it. */
  readonly loss: RegExp;
}

const clean = /is called clean/;
const compared = /all is to be compared|kind: 'exact'|to include/;

const nextPath = `${statePath}.next`;
const isImageSync = ({ kind, path }: Operation): boolean => kind === "sync" && path === imagePath;
const isMade: Test = ({ doing }) => doing.endsWith(pointMade);

/** Nothing but the end of an epoch: no mark is late with it. */
function isFlip(operation: Operation | undefined): boolean {
  if (operation?.bytes === undefined || written(operation) !== "batch") return false;
  const records = decodeBatch(operation.bytes, blockBytes)?.records ?? [];
  return records.length > 0 && records.every(({ kind }) => kind === "flip");
}

function isRename({ kind, path }: Operation, to: string): boolean {
  return kind === "rename" && path === to;
}

/** The sync of the folder behind a new name. */
function syncOfName(name: string): Test {
  return ({ kind, past }) => {
    if (kind !== "sync-directory") return false;
    const last = past.findLast((operation) => operation.kind === "rename");
    return last !== undefined && last.path === name;
  };
}

const isFlipSync: Test = (step) =>
  syncOf("batch")(step) && isFlip(step.past.findLast((each) => written(each) === "batch"));
const isStateSync: Test = ({ kind, path }) => kind === "sync" && path === `${nextPath}.new`;

/** In place of one that means the syncs of a guest as well. */
const ofJournal = journalEdges.filter(({ name }) => !name.startsWith("image as it was cut"));

export const edges: readonly TrackedEdge[] = [
  ...ofJournal.map((edge) => ({ ...edge, loss: edge.scans === true ? compared : /is called clean|to include/ })),
  {
    name: "image as it was cut, synced → retired",
    change: skip((step) => isImageSync(step) && isMade(step)),
    loss: clean,
  },
  {
    name: "image as it was cut, synced → log that begins anew",
    change: late(
      (step: Step) => isImageSync(step) && isMade(step),
      (operation) => written(operation) === "batch",
    ),
    loss: clean,
  },
  {
    name: "sync of a guest's flush",
    change: skip((step) => isImageSync(step) && step.doing === "flush"),
    loss: /flushed content is gone/,
  },
  { name: "flip → point", change: late(isFlip, isImageSync), loss: compared },
  { name: "sync of a flip → point", change: late(isFlipSync, isImageSync), loss: compared },
  { name: "sync of a known state", change: skip(isStateSync), loss: compared },
  {
    name: "sync of a known state → its name",
    change: late(isStateSync, (operation) => isRename(operation, nextPath)),
    loss: compared,
    superfluous: "the folder is synced before the point, and the state with it; between the two no receiver has it",
  },
  { name: "known state → point", change: late((step) => isRename(step, nextPath), isImageSync), loss: compared },
  { name: "sync of a known state's name", change: skip(syncOfName(nextPath)), loss: compared },
  { name: "sync of a known state's name → point", change: late(syncOfName(nextPath), isImageSync), loss: compared },
  {
    name: "known state of the base → the next",
    change: skip((step) => isRename(step, statePath)),
    loss: compared,
  },
  { name: "sync of the base's name → the next", change: skip(syncOfName(statePath)), entries: "any", loss: compared },
  {
    name: "known state of the base → retired",
    change: late(
      (step) => isRename(step, statePath),
      (operation) => written(operation) === "header",
    ),
    loss: compared,
    superfluous: "under either of its two names it is read; it must have the first before another takes the second",
  },
  {
    name: "image synced → closed",
    change: skip((step) => isImageSync(step) && step.doing === "close"),
    loss: clean,
    superfluous: "no bit is dropped by a close; an image that went back has another time of change, and is compared",
  },
];
