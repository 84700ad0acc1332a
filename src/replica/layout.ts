/** Where everything lies in a store. */
import { join } from "node:path";
import { checkDiskName } from "../base/disk-name.ts";

export interface StorePaths {
  readonly directory: string;
  readonly record: string;
  readonly disks: string;
}

export function storePaths(store: string): StorePaths {
  return { directory: store, record: join(store, "store.json"), disks: join(store, "disks") };
}

export interface DiskPaths {
  readonly directory: string;
  readonly record: string;
  /** `replica.raw`. Of a disk whose record is known, `pathsOf` says what its replica is. */
  readonly replica: string;
  /** `replica.vhdx`, the replica in its place. */
  readonly vhdx: string;
  /** There while an image is being adopted: until `disk.json` is there too, what lies beside it counts for nothing. */
  readonly adoption: string;
  readonly digests: string;
  readonly pages: string;
  readonly points: string;
  readonly applyLock: string;
  readonly chainLock: string;
  readonly session: string;
  /** `suspect.json`: the replica is being compared with its table. */
  readonly suspicion: string;
  /** `keep.json`: a retention policy of its own. */
  readonly policy: string;
  /** `points/<sequence>.json`. */
  point(sequence: number): string;
  /** `points/<sequence>.undo`. */
  undo(sequence: number): string;
  /** `points/<sequence>.lock`: what readers of the point lock. */
  pointLock(sequence: number): string;
}

/** Paths of a disk whose name was checked. */
export function diskPaths(store: string, name: string): DiskPaths {
  checkDiskName(name);
  const directory = join(storePaths(store).disks, name);
  const points = join(directory, "points");
  return {
    directory,
    record: join(directory, "disk.json"),
    replica: join(directory, "replica.raw"),
    vhdx: join(directory, "replica.vhdx"),
    adoption: join(directory, "adopt.new"),
    digests: join(directory, "digests"),
    pages: join(directory, "pages"),
    points,
    applyLock: join(directory, "apply.lock"),
    chainLock: join(directory, "chain.lock"),
    session: join(directory, "session.json"),
    suspicion: join(directory, "suspect.json"),
    policy: join(directory, "keep.json"),
    point: (sequence) => join(points, `${sequenceText(sequence)}.json`),
    undo: (sequence) => join(points, undoName(sequence)),
    pointLock: (sequence) => join(points, `${sequenceText(sequence)}.lock`),
  };
}

/** Digits of a sequence number in file names; names sort as numbers do. */
const sequenceDigits = 10;

/** Name of the log a point begins with; of one that a compaction made for it: with a number. */
export function undoName(sequence: number, compacted?: number): string {
  return `${sequenceText(sequence)}${compacted === undefined ? "" : `.${compacted}`}.undo`;
}

function sequenceText(sequence: number): string {
  return sequence.toString().padStart(sequenceDigits, "0");
}

/** What a name in `points/` says. */
export interface PointFileName {
  readonly sequence: number;
  readonly kind: "json" | "undo" | "lock";
  /** Of an undo log: the number a compaction gave it. */
  readonly compacted: number | undefined;
}

/** Undefined for other names. */
export function parsePointFile(name: string): PointFileName | undefined {
  const match = /^([0-9]{10})(?:\.([0-9]{1,9}))?\.(json|undo|lock)$/.exec(name);
  if (match === null) return undefined;
  const kind = match[3] === "json" ? "json" : match[3] === "undo" ? "undo" : "lock";
  const compacted = match[2] === undefined ? undefined : Number(match[2]);
  if (compacted !== undefined && (kind !== "undo" || match[2] !== String(compacted))) return undefined;
  return { sequence: Number(match[1]), kind, compacted };
}
