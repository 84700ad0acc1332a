/**
 * Every sync of a journal and every "A before B" of docs/formats.md, "Bitmap journal", each as a change that takes it out of the program.
 * journal-edges.test.ts shows for each that something is lost without it.
 */
import type { Operation } from "../../src/testing/simulated-storage.ts";
import { type FaultOf, imagePath, journalPath, type Step } from "./journal-world.ts";

export interface Edge {
  readonly name: string;
  readonly change: FaultOf;
  /** Without it the journal is found damaged after a crash, so that everything has to be compared; no block is called clean that is not. */
  readonly scans?: true;
  /** Why nothing is lost without it. */
  readonly superfluous?: string;
}

export type Test = (step: Step) => boolean;

/** What a write to the journal writes. */
export function written({
  kind,
  path,
  offset,
  bytes,
}: Operation): "header" | "heartbeat" | "batch" | "page" | "end" | undefined {
  if (kind !== "write" || path !== journalPath || offset === undefined) return undefined;
  if (offset < 8_192) return (bytes ?? new Uint8Array()).some((byte) => byte !== 0) ? "header" : "end";
  if (offset < 16_384) return "heartbeat";
  return offset < 16_384 + 32_768 ? "batch" : "page";
}

function isSync({ kind, path }: Operation): boolean {
  return kind === "sync" && path === journalPath;
}

/** The sync behind a write of this kind. */
export function syncOf(what: ReturnType<typeof written>): Test {
  return (step) => {
    if (!isSync(step)) return false;
    const last = step.past.findLast((each) => written(each) !== undefined && written(each) !== "heartbeat");
    return last !== undefined && written(last) === what;
  };
}

const isImageWrite = ({ kind, path }: Operation): boolean =>
  (kind === "write" || kind === "punch") && path === imagePath;
export const isHeader = (operation: Operation): boolean => written(operation) === "header";

export function skip(test: Test): FaultOf {
  return (step) => (test(step) ? { kind: "skip" } : undefined);
}

/** `test` is done behind the next `until`. */
export function late(test: Test, until: (operation: Operation) => boolean): FaultOf {
  return (step) => (test(step) ? { kind: "late", until } : undefined);
}

/** Not the first header of a journal: before it there is nothing to lose. */
const isLaterHeader: Test = (step) => isHeader(step) && (step.bytes?.[40] ?? 0) > 1;

export const edges: readonly Edge[] = [
  { name: "batch → data", change: late((step) => written(step) === "batch", isImageWrite) },
  { name: "sync of a batch", change: skip(syncOf("batch")) },
  { name: "sync of a batch → data", change: late(syncOf("batch"), isImageWrite) },
  { name: "pages → header", change: late((step) => written(step) === "page", isHeader), scans: true },
  { name: "sync of pages", change: skip(syncOf("page")), scans: true },
  { name: "sync of pages → header", change: late(syncOf("page"), isHeader), scans: true },
  { name: "header → data", change: late(isLaterHeader, isImageWrite) },
  { name: "sync of a header", change: skip(syncOf("header")) },
  { name: "header → log that begins anew", change: late(isLaterHeader, (step) => written(step) === "batch") },
  {
    name: "image as it was cut, synced → retired",
    change: skip((step) => step.kind === "sync" && step.path === imagePath && !/close/.test(step.doing)),
  },
  {
    name: "heartbeat",
    change: skip((step) => written(step) === "heartbeat"),
    superfluous: "without it more has to be compared; belief.test.ts has what it is for",
  },
  {
    name: "sync of a heartbeat",
    change: skip((step) => isSync(step) && written(step.past.at(-1) ?? step) === "heartbeat"),
    superfluous: "without it more has to be compared after a loss of power",
  },
  {
    name: "sync of the directory of a new journal",
    change: skip((step) => step.kind === "sync-directory"),
    superfluous: "a journal that is not there is a reason to compare",
  },
];
