/** What a disk looks like from outside, without any lock that lasts. */
import { ReplicationError } from "../base/errors.ts";
import type { Storage } from "../storage/seam.ts";
import { type Holder, readHolder } from "./disk-lock.ts";
import { type DiskRecord, pathsOf, readRecord } from "./disk-record.ts";
import { diskPaths, type DiskPaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, orphanLog, type Point, type PointFiles, readPoint } from "./points/point.ts";
import { findReplica } from "./replica-file.ts";
import { readSuspicion } from "./suspicion.ts";

export interface DiskSummary {
  readonly record: DiskRecord;
  readonly newest: Point | undefined;
  /**
   * `idle` | `receiving` (apply.lock is held; by whom in `holder`) | `changed` (somebody else wrote to the replica, and a person must decide) |
   * `interrupted` (an open delta waits for its sender) | `damaged`.
   */
  readonly state: "idle" | "receiving" | "changed" | "interrupted" | "damaged";
  readonly holder: Holder | undefined;
  /** Bytes the replica takes on disk. */
  readonly allocatedBytes: number;
  /** In words, when damaged. */
  readonly trouble: string | undefined;
}

/** A commit beside us may remove the point we saw last; this many looks outlast any writer. */
const looksMax = 100;

/** Undefined: no such disk. Throws `store-damaged`, `store-version-unsupported` when disk.json cannot be read. */
export async function summarize(store: StoreParts, name: string): Promise<DiskSummary | undefined> {
  const { storage } = store;
  const paths = diskPaths(store.path, name);
  const record = await readRecord(storage, paths);
  if (record === undefined) return undefined;
  const holder = await findHolder(store, paths);
  const points = await lookAtPoints(storage, paths);
  const replica = await lookAtReplica(storage, pathsOf(paths, record));
  const trouble = points.trouble ?? replica.trouble;
  const facts = { record, newest: points.newest, holder, allocatedBytes: replica.allocatedBytes, trouble };
  if (trouble !== undefined) return { ...facts, state: "damaged" };
  if (holder !== undefined) return { ...facts, state: "receiving" };
  if ((await readSuspicion(storage, paths))?.found === true) return { ...facts, state: "changed" };
  return { ...facts, state: points.openLog ? "interrupted" : "idle" };
}

async function lookAtReplica(
  storage: Storage,
  paths: DiskPaths,
): Promise<{ readonly allocatedBytes: number; readonly trouble: string | undefined }> {
  try {
    const { allocatedBytes } = await findReplica(storage, paths);
    return { allocatedBytes, trouble: undefined };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return { allocatedBytes: 0, trouble: error.message };
  }
}

async function findHolder({ storage, locks }: StoreParts, paths: DiskPaths): Promise<Holder | undefined> {
  // Without a text nobody has the lock, or has had it for a moment only: asking the kernel would but get in the way.
  const holder = await readHolder(storage, paths.applyLock);
  if (holder === undefined) return undefined;
  return (await locks.isHeld(paths.applyLock)) === false ? undefined : holder;
}

interface Look {
  readonly newest: Point | undefined;
  readonly openLog: boolean;
  readonly trouble: string | undefined;
}

async function lookAtPoints(storage: Storage, paths: DiskPaths): Promise<Look> {
  for (let looks = 0; looks < looksMax; looks++) {
    const files = await listPoints(storage, paths);
    const look = await lookAt(storage, paths, files);
    if (look !== undefined) return look;
  }
  return { newest: undefined, openLog: false, trouble: `${paths.points} changes without end` };
}

async function lookAt(storage: Storage, paths: DiskPaths, files: PointFiles): Promise<Look | undefined> {
  const { openLog } = files;
  const orphan = orphanLog(files);
  // A point committed and followed by the next delta between two steps of one listing looks alike: only what stays is damage.
  if (orphan !== undefined) {
    if (orphanLog(await listPoints(storage, paths)) !== orphan) return undefined;
    return { newest: undefined, openLog, trouble: `${paths.point(orphan)} is missing, but its undo log is there` };
  }
  if (files.newest === 0) return { newest: undefined, openLog, trouble: undefined };
  try {
    const newest = await readPoint(storage, paths, files.newest);
    return newest === undefined ? undefined : { newest, openLog, trouble: undefined };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return { newest: undefined, openLog, trouble: error.message };
  }
}
