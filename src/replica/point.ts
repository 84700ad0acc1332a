/** A point's record, `points/<sequence>.json`. Its appearance is the commit. */
import type { Storage } from "../storage/seam.ts";
import type { DiskPaths } from "./layout.ts";
import { parsePointFile } from "./layout.ts";
import { damaged, decodeState, readState, type StateContent, type StateFormat, writeState } from "./state-file.ts";

/** A committed state one can fail over to. `points/<seq>.json`. */
export interface Point {
  readonly point: number;
  /** Milliseconds since 1970 UTC: a label; order is by `point`. */
  readonly time: number;
  readonly label: string | undefined;
  readonly consistency: "crash" | "application" | "none";
  /** Hex. */
  readonly root: string;
  readonly sizeBytes: number;
  readonly generation: string;
  readonly term: number;
  readonly cycle: string;
  /** Source identity that made it, and its name for people. */
  readonly source: string;
  readonly sourceName: string;
}

export const pointFormat: StateFormat = { format: "replicate point", version: 1 };

function parsePoint(content: StateContent): Point {
  return {
    point: content.integer("point", 1),
    time: content.integer("time", Number.MIN_SAFE_INTEGER),
    label: content.optionalText("label"),
    consistency: content.oneOf("consistency", ["crash", "application", "none"]),
    root: content.hex("root", 32),
    sizeBytes: content.integer("sizeBytes"),
    generation: content.text("generation"),
    term: content.integer("term"),
    cycle: content.text("cycle"),
    source: content.text("source"),
    sourceName: content.text("sourceName"),
  };
}

export function decodePoint(path: string, bytes: Uint8Array): Point {
  return parsePoint(decodeState(path, pointFormat, bytes));
}

/** Undefined: no such point. Throws `store-damaged`, `store-version-unsupported`. */
export async function readPoint(storage: Storage, paths: DiskPaths, sequence: number): Promise<Point | undefined> {
  const path = paths.point(sequence);
  const content = await readState(storage, path, pointFormat);
  if (content === undefined) return undefined;
  const point = parsePoint(content);
  if (point.point !== sequence) throw damaged(path, `it is the record of point ${point.point}`);
  return point;
}

/** Durable when it resolves. Order and errors: {@link writeState}. */
export async function writePoint(storage: Storage, paths: DiskPaths, point: Point): Promise<void> {
  const { time, label, consistency, root, sizeBytes, generation, term, cycle, source, sourceName } = point;
  await writeState(storage, paths.point(point.point), pointFormat, {
    point: point.point,
    time,
    label,
    consistency,
    root,
    sizeBytes,
    generation,
    term,
    cycle,
    source,
    sourceName,
  });
}

/** What `points/` holds, by sequence number, ascending. */
export interface PointFiles {
  readonly records: readonly number[];
  readonly undoLogs: readonly number[];
  /** Names of `*.new` files: left by a crash, or being written right now. */
  readonly unfinished: readonly string[];
  /** Sequence of the newest committed point; 0: none. */
  readonly newest: number;
  /** True when the undo log of the newest point exists: a delta was begun. */
  readonly openLog: boolean;
}

export async function listPoints(storage: Storage, paths: DiskPaths): Promise<PointFiles> {
  const names = (await storage.list(paths.points)) ?? [];
  const records: number[] = [];
  const undoLogs: number[] = [];
  for (const name of names) {
    const parsed = parsePointFile(name);
    if (parsed === undefined) continue;
    (parsed.kind === "json" ? records : undoLogs).push(parsed.sequence);
  }
  // Names have a fixed width today; the order must not hang on that.
  records.sort((a, b) => a - b);
  undoLogs.sort((a, b) => a - b);
  const newest = records.at(-1) ?? 0;
  return {
    records,
    undoLogs,
    unfinished: names.filter((name) => name.endsWith(".new")),
    newest,
    openLog: undoLogs.includes(newest),
  };
}

/** A log without the point it belongs to: somebody took a point's record away. Undefined: none. */
export function orphanLog(files: PointFiles): number | undefined {
  return files.undoLogs.find((sequence) => sequence > files.newest);
}
