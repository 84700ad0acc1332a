/** A point's record, `points/<sequence>.json`. Its appearance is the commit. */
import { isDiskName } from "../../base/disk-name.ts";
import { ReplicationError } from "../../base/errors.ts";
import type { FileStat, Storage } from "../../storage/seam.ts";
import type { DiskLocks } from "../disk-lock.ts";
import type { DiskPaths } from "../layout.ts";
import { parsePointFile } from "../layout.ts";
import {
  damaged,
  decodeState,
  readState,
  type StateContent,
  type StateFormat,
  type StateRecord,
  writeState,
} from "../state-file.ts";
import type { ClosedLog } from "../undo/entry.ts";

/** Keeps a point from being removed. */
export interface Hold {
  /** Who wants it kept, for people. */
  readonly owner: string;
  /** Milliseconds since 1970 UTC; undefined: until it is released. */
  readonly until: number | undefined;
}

/** A moment several disks have points of: a machine's disks are cut together. */
export interface Cut {
  /** The same in all of these points, and in no others. */
  readonly id: string;
  /** Names of the disks, this one among them. */
  readonly members: readonly string[];
}

/** An undo log by its file name in `points/`, closed. */
export interface NamedLog {
  readonly name: string;
  readonly closed: ClosedLog;
}

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
  /**
   * mtime and ctime of the replica at the commit, nanoseconds since 1970 as decimal text: a later one means that somebody else wrote to it. Of an image
   * that was adopted only mtime is known: its name and its mode change behind the commit.
   */
  readonly replicaModified?: string | undefined;
  readonly replicaChanged?: string | undefined;
  readonly hold?: Hold | undefined;
  readonly cut?: Cut | undefined;
  /** The log of the point before, which this commit closed; undefined: that was the empty disk before the first point. */
  readonly closed?: ClosedLog | undefined;
  /**
   * Logs that turn the next point's content into this one's, in lookup order. Written when points behind this one were removed; undefined: only the
   * log with the point's own number.
   */
  readonly logs?: readonly NamedLog[] | undefined;
}

/** What a point says of the replica's file as it is now. */
export function replicaTimes({
  modifiedNanos,
  changedNanos,
}: FileStat): Pick<Point, "replicaModified" | "replicaChanged"> {
  return { replicaModified: modifiedNanos.toString(), replicaChanged: changedNanos.toString() };
}

/** The newest point's record gets the replica's times as they are: they were changed, and the content was not. Durable when it resolves. */
export async function refreshTimes(
  { storage, locks }: { readonly storage: Storage; readonly locks: DiskLocks },
  paths: DiskPaths,
  { point }: Point,
  replica: { readonly stat: () => Promise<FileStat> },
): Promise<Point | undefined> {
  const times = replicaTimes(await replica.stat());
  return locks.withChainLock(paths.chainLock, async () => {
    const now = await readPoint(storage, paths, point);
    if (now === undefined) return undefined;
    const refreshed = { ...now, ...times };
    await writePoint(storage, paths, refreshed);
    return refreshed;
  });
}

export const pointFormat: StateFormat = { format: "replicate point", version: 1 };

function parsePoint(content: StateContent): Point {
  const point = content.integer("point", 1);
  return {
    point,
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
    replicaModified: content.optionalText("replicaModified"),
    replicaChanged: content.optionalText("replicaChanged"),
    hold: parseHold(content.optionalObject("hold")),
    cut: parseCut(content.optionalObject("cut")),
    closed: parseClosed(content.optionalObject("closed")),
    logs: content.optionalList("logs")?.map((log, index) => parseNamedLog(log, point, index)),
  };
}

function parseHold(content: StateContent | undefined): Hold | undefined {
  return content === undefined ? undefined : { owner: content.text("owner"), until: content.optionalInteger("until") };
}

function parseCut(content: StateContent | undefined): Cut | undefined {
  if (content === undefined) return undefined;
  return {
    id: content.text("id"),
    members: (content.optionalList("members") ?? []).map((member) => {
      const disk = member.text("disk");
      // Never a path: a name decides which folder is looked into.
      if (!isDiskName(disk)) throw damaged(content.path, `"cut" names ${JSON.stringify(disk)}`);
      return disk;
    }),
  };
}

function parseClosed(content: StateContent | undefined): ClosedLog | undefined {
  if (content === undefined) return undefined;
  return {
    sizeBytes: content.integer("sizeBytes"),
    footerOffset: content.integer("footerOffset"),
    footerChecksum: content.integer("footerChecksum", 0, 0xffff_ffff),
    damage: content
      .optionalList("damage")
      ?.map((stretch) => ({ offset: stretch.integer("offset"), length: stretch.integer("length") })),
  };
}

function closedContent({ sizeBytes, footerOffset, footerChecksum, damage }: ClosedLog): StateRecord {
  return { sizeBytes, footerOffset, footerChecksum, damage: damage?.map((stretch) => ({ ...stretch })) };
}

function parseNamedLog(content: StateContent, point: number, index: number): NamedLog {
  const name = content.text("name");
  const file = parsePointFile(name);
  // Never a path: a name decides which file is opened and unlinked.
  if (file?.kind !== "undo") throw damaged(content.path, `"logs" names ${JSON.stringify(name)}`);
  // Its own comes first, those of points that were removed behind it follow: with another order an older content would be taken for a newer one.
  if (index === 0 ? file.sequence !== point : file.sequence < point) {
    throw damaged(
      content.path,
      `"logs" names ${JSON.stringify(name)} where a log of point ${point}, or of a newer one, belongs`,
    );
  }
  const closed = parseClosed(content);
  if (closed === undefined) throw damaged(content.path, `"logs" is incomplete`);
  return { name, closed };
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
  await writeState(storage, paths.point(point.point), pointFormat, pointContent(point));
}

function pointContent(point: Point): StateRecord {
  const { time, label, consistency, root, sizeBytes, generation, term, cycle, source, sourceName } = point;
  const { replicaModified, replicaChanged, hold, cut, closed, logs } = point;
  return {
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
    replicaModified,
    replicaChanged,
    hold: hold === undefined ? undefined : { ...hold },
    cut: cut === undefined ? undefined : { id: cut.id, members: cut.members.map((disk) => ({ disk })) },
    closed: closed === undefined ? undefined : closedContent(closed),
    logs: logs?.map(({ name, closed: log }) => ({ name, ...closedContent(log) })),
  };
}

/** What `points/` holds, by sequence number, ascending. */
export interface PointFiles {
  readonly records: readonly number[];
  readonly undoLogs: readonly number[];
  /** Names of logs that compactions made. */
  readonly compacted: readonly string[];
  readonly locks: readonly number[];
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
  const compacted: string[] = [];
  const locks: number[] = [];
  for (const name of names) {
    const parsed = parsePointFile(name);
    if (parsed === undefined) continue;
    if (parsed.compacted !== undefined) compacted.push(name);
    else if (parsed.kind === "json") records.push(parsed.sequence);
    else (parsed.kind === "undo" ? undoLogs : locks).push(parsed.sequence);
  }
  // Names have a fixed width today; the order must not hang on that.
  records.sort((a, b) => a - b);
  undoLogs.sort((a, b) => a - b);
  const newest = records.at(-1) ?? 0;
  return {
    records,
    undoLogs,
    compacted,
    locks,
    unfinished: names.filter((name) => name.endsWith(".new")),
    newest,
    openLog: undoLogs.includes(newest),
  };
}

/** A log without the point it belongs to: somebody took a point's record away. Undefined: none. */
export function orphanLog(files: PointFiles): number | undefined {
  return files.undoLogs.find((sequence) => sequence > files.newest);
}

/** The records of a listing, ascending. */
export interface LoadedPoints {
  readonly points: readonly Point[];
  /** Records that are damaged, or were taken away. Older points cannot be reached past them: which logs lead there is not known. */
  readonly unreadable: readonly { readonly point: number; readonly message: string }[];
  /** False: a record of the listing vanished meanwhile. */
  readonly whole: boolean;
}

/** Records that vanish meanwhile are left out. */
export async function loadPoints(
  storage: Storage,
  paths: DiskPaths,
  files: Pick<PointFiles, "records">,
): Promise<LoadedPoints> {
  const points: Point[] = [];
  const unreadable: { point: number; message: string }[] = [];
  for (const sequence of files.records) {
    try {
      const point = await readPoint(storage, paths, sequence);
      if (point !== undefined) points.push(point);
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      unreadable.push({ point: sequence, message: error.message });
    }
  }
  const whole = points.length + unreadable.length === files.records.length;
  for (const point of takenAway(points, files.records)) {
    unreadable.push({ point, message: damaged(paths.point(point), takenAwayText).message });
  }
  return { points, unreadable: unreadable.sort((a, b) => a.point - b.point), whole };
}

const takenAwayText =
  "it was taken away, and older points cannot be read without it (to give these up, take their records away as well)";

/** Of each gap that no removal made the newest point: a removal leaves a list in the record before the gap, and durably so before the names go. */
function takenAway(points: readonly Point[], records: readonly number[]): number[] {
  const listed = new Map(points.map(({ point, logs }) => [point, logs !== undefined]));
  return records.flatMap((sequence, index) => {
    const next = records[index + 1] ?? sequence + 1;
    return next > sequence + 1 && listed.get(sequence) === false ? [next - 1] : [];
  });
}
