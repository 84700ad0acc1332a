/** What the points of a disk take beside the replica: the bytes of their undo logs. */
import type { Storage } from "../storage/seam.ts";
import { ownLogs } from "./chain.ts";
import type { CutState } from "./cuts.ts";
import type { DiskPaths } from "./layout.ts";
import type { DiskPoints } from "./points/reader.ts";

/** The points of a disk with what each takes, and with those of other disks each belongs to. */
export interface StoredPoints extends DiskPoints {
  /** By point, of those that are part of a cut. */
  readonly cuts: ReadonlyMap<number, CutState>;
  /**
   * By point: length in bytes of its own undo logs, of the newest point the one that is open. What an older point needs of newer ones does
   * not count.
   */
  readonly storedBytes: ReadonlyMap<number, number>;
}

/** A log that a removal beside us takes away counts 0. */
export async function withStoredBytes(
  storage: Storage,
  paths: DiskPaths,
  found: DiskPoints,
): Promise<Omit<StoredPoints, "cuts">> {
  const storedBytes = new Map<number, number>();
  const lists = ownLogs(found.points);
  for (const [index, { point }] of found.points.entries()) {
    const logs = lists[index];
    const bytes =
      logs === undefined
        ? ((await storage.stat(paths.undo(point)))?.sizeBytes ?? 0)
        : logs.reduce((sum, { closed }) => sum + closed.sizeBytes, 0);
    storedBytes.set(point, bytes);
  }
  return { ...found, storedBytes };
}
