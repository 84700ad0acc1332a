/** What a crash left in a disk's directory is finished or cleaned here, by the holder of `apply.lock`. Everything may be done twice. */
import { join } from "node:path";
import type { Storage } from "../storage/seam.ts";
import { neededLogs } from "./chain.ts";
import type { DiskLocks } from "./disk-lock.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { undoName } from "./layout.ts";
import { listPoints, loadPoints, orphanLog, type Point, type PointFiles, readPoint } from "./points/point.ts";
import { damaged } from "./state-file.ts";

export interface RecoveredPoints {
  readonly newest: Point | undefined;
  /** True when a delta over the newest point was begun. */
  readonly openLog: boolean;
}

/**
 * Finds the newest point, removes leftovers. The directory of points was synced before: a crash may have come between a
 * commit's rename and its sync.
 * Throws `store-damaged` when the newest point cannot be read or its record was taken away.
 */
export async function recoverPoints(storage: Storage, paths: DiskPaths, locks: DiskLocks): Promise<RecoveredPoints> {
  return locks.withChainLock(paths.chainLock, async () => {
    const files = await listPoints(storage, paths);
    const orphan = orphanLog(files);
    if (orphan !== undefined) throw damaged(paths.point(orphan), "it is missing, but its undo log is there");
    let newest: Point | undefined;
    if (files.newest > 0) {
      newest = await readPoint(storage, paths, files.newest);
      if (newest === undefined) throw damaged(paths.point(files.newest), "it vanished while it was looked at");
    }
    await removeNewFiles(storage, paths, files);
    // The caller has synced the directory, so what no record names now will not be named again.
    await removeRubbish(storage, paths, files, locks);
    return { newest, openLog: files.openLog };
  });
}

/**
 * Removes undo logs no point needs, and locks of points that are gone. To be called with `apply.lock` and `chain.lock` held, and with the directory
 * synced. While a record cannot be read nothing is removed: it may name them.
 */
export async function removeRubbish(
  storage: Storage,
  paths: DiskPaths,
  files: PointFiles,
  locks: DiskLocks,
): Promise<void> {
  if (isTidy(files)) return;
  const { points, unreadable } = await loadPoints(storage, paths, files);
  if (unreadable.length > 0) return;
  const needed = neededLogs(points);
  const alive = new Set(files.records);
  await inFile("write-failed", `removing leftovers in ${paths.points}`, async () => {
    for (const sequence of files.undoLogs) {
      // Without any point the log of point 0 is the open one.
      const open = sequence === files.newest;
      if (!open && !needed.has(undoName(sequence))) await storage.unlink(paths.undo(sequence));
    }
    for (const name of files.compacted) {
      if (!needed.has(name)) await removeUnlessLocked(storage, locks, join(paths.points, name));
    }
    for (const sequence of files.locks) if (!alive.has(sequence)) await storage.unlink(paths.pointLock(sequence));
  });
}

/**
 * Whether names alone tell that there is nothing to remove, so that no record has to be read: each log is that of a point that is there, which needs it
 * unless a compaction made another one for it.
 */
function isTidy({ records, undoLogs, compacted, locks, newest }: PointFiles): boolean {
  const alive = new Set(records);
  const isOfPoint = (sequence: number): boolean => sequence === newest || alive.has(sequence);
  return compacted.length === 0 && undoLogs.every(isOfPoint) && locks.every((sequence) => alive.has(sequence));
}

/** A log that a compaction is writing right now is locked by it. */
async function removeUnlessLocked(storage: Storage, locks: DiskLocks, path: string): Promise<void> {
  const lock = await locks.exclusive(path);
  if (lock === undefined) return;
  await storage.unlink(path);
  await lock.release();
}

async function removeNewFiles(storage: Storage, paths: DiskPaths, files: PointFiles): Promise<void> {
  await inFile("write-failed", `removing leftovers in ${paths.directory}`, async () => {
    for (const name of files.unfinished) await storage.unlink(join(paths.points, name));
    for (const name of (await storage.list(paths.directory)) ?? []) {
      if (name.endsWith(".new")) await storage.unlink(join(paths.directory, name));
    }
  });
}
