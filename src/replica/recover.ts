/** What a crash left in a disk's directory is finished or cleaned here, by the holder of `apply.lock`. Everything may be done twice. */
import { join } from "node:path";
import type { Storage } from "../storage/seam.ts";
import type { DiskLocks } from "./disk-lock.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { listPoints, orphanLog, type Point, type PointFiles, readPoint } from "./point.ts";
import { damaged, syncDirectory } from "./state-file.ts";

export interface RecoveredPoints {
  readonly newest: Point | undefined;
  /** True when a delta over the newest point was begun. */
  readonly openLog: boolean;
}

/**
 * Finds the newest point, removes older ones and leftovers. The directory of points was synced before: a crash may have come between a
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
    // The caller has synced the directory, so the newest record is there to stay, and what came before it may go.
    await removeOlderPoints(storage, paths, files);
    return { newest, openLog: files.openLog };
  });
}

/**
 * Removes every point older than the newest, and its undo log. The newest point's record is durable. Order: records → directory synced →
 * logs: a crash in between leaves logs without points, which the next call removes, and never a point without its log.
 */
export async function removeOlderPoints(storage: Storage, paths: DiskPaths, files: PointFiles): Promise<void> {
  await inFile("write-failed", `removing points in ${paths.points}`, async () => {
    const records = files.records.filter((sequence) => sequence < files.newest);
    for (const sequence of records) await storage.unlink(paths.point(sequence));
    if (records.length > 0) await syncDirectory(storage, paths.points);
    for (const sequence of files.undoLogs) if (sequence < files.newest) await storage.unlink(paths.undo(sequence));
  });
}

async function removeNewFiles(storage: Storage, paths: DiskPaths, files: PointFiles): Promise<void> {
  await inFile("write-failed", `removing leftovers in ${paths.directory}`, async () => {
    for (const name of files.unfinished) await storage.unlink(join(paths.points, name));
    for (const name of (await storage.list(paths.directory)) ?? []) {
      if (name.endsWith(".new")) await storage.unlink(join(paths.directory, name));
    }
  });
}
