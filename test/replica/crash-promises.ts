/**
 * What the files of a disk are to be like after a crash, beyond what is needed to lose nothing: docs/formats.md, "Order of writes, and what a crash leaves".
 * Each is something that readers are spared, or that the next session need not do.
 */
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { TABLE_PAGE_BYTES } from "../../src/base/units.ts";
import { readRecord } from "../../src/replica/disk-record.ts";
import { diskPaths, undoName } from "../../src/replica/layout.ts";
import { listPoints, loadPoints } from "../../src/replica/points/point.ts";
import { decodeSession } from "../../src/replica/session-record.ts";
import { readSmallFile } from "../../src/replica/state-file.ts";
import type { DiskWriter } from "../../src/replica/store.ts";
import type { ClosedLog } from "../../src/replica/undo/entry.ts";
import { UNDO_PAGE_BYTES } from "../../src/replica/undo/format.ts";
import { openUndoLogReader } from "../../src/replica/undo/reader.ts";
import { scanUndoLog } from "../../src/replica/undo/scan.ts";
import type { SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { diskName, storePath } from "./simulated-store.ts";

const paths = diskPaths(storePath, diskName);

/** Before anything is opened. */
export async function expectFiles(process: SimulatedProcess): Promise<void> {
  const record = await readRecord(process, paths);
  if (record === undefined) return;
  // A reader finds a state file whole, or none.
  const session = await readSmallFile(process, paths.session, 4_096);
  if (session !== undefined) decodeSession(paths.session, session);
  // Only somebody else can have cut the replica.
  const replica = await process.stat(paths.replica);
  if (record.format === "raw") expect(replica?.sizeBytes).toBeGreaterThanOrEqual(record.sizeBytes);
  await expectFooters(process);
}

/** A log that a record calls closed is read through its index. */
async function expectFooters(process: SimulatedProcess): Promise<void> {
  const { points } = await loadPoints(process, paths, await listPoints(process, paths));
  for (const { point, closed, logs } of points) {
    if (closed !== undefined) await expectFooter(process, undoName(point - 1), closed);
    for (const log of logs ?? []) await expectFooter(process, log.name, log.closed);
  }
}

async function expectFooter(process: SimulatedProcess, name: string, closed: ClosedLog): Promise<void> {
  const path = `${paths.points}/${name}`;
  // Removed since with the points that needed it.
  if ((await process.stat(path)) === undefined) return;
  const file = await process.open(path);
  try {
    const decompressLz4 = (): never => {
      throw new Error("nothing is packed here");
    };
    const log = openUndoLogReader({ path, lanes: process.lanes, fd: file.fd, decompressLz4, closed });
    expect([name, log.indexDamage]).toEqual([name, []]);
  } finally {
    await file.close();
  }
}

/** A disk that was opened for writing, and to which nothing was done yet. */
export async function expectOpened(process: SimulatedProcess, { doubt, logged }: DiskWriter): Promise<void> {
  // A delta that was laid aside has no block that is to be digested anew.
  if (doubt === undefined) expect(logged?.recentCount ?? 0).toBe(0);
  // A record of another table's disk is none.
  if (doubt?.blocks === "all") expect(await process.stat(paths.session)).toBeUndefined();
  await expectLogEnds(process);
}

/** A table that was built anew takes no room for what it does not hold. */
export async function expectHoles(process: SimulatedProcess, { table }: DiskWriter): Promise<void> {
  const file = await process.open(paths.digests);
  try {
    for (let data = file.nextData(0); data !== undefined; data = file.nextData(data.end)) {
      for (let page = Math.floor(data.start / TABLE_PAGE_BYTES); page * TABLE_PAGE_BYTES < data.end; page++) {
        expect([page, table.page(page).every((byte) => byte === 0)]).toEqual([page, false]);
      }
    }
  } finally {
    await file.close();
  }
}

/** Where an open log ends. */
export interface OpenLog {
  readonly sizeBytes: number;
  readonly goodEnd: number;
}

/** Undefined: there is none that holds anything. */
export async function openLogOf(process: SimulatedProcess): Promise<OpenLog | undefined> {
  const { newest, openLog } = await listPoints(process, paths);
  if (!openLog) return undefined;
  const file = await process.open(paths.undo(newest));
  const { sizeBytes } = await file.stat();
  try {
    const { goodEnd } = scanUndoLog({ path: file.path, lanes: process.lanes, fd: file.fd });
    return { sizeBytes, goodEnd };
  } catch (error) {
    // Without a whole header it holds nothing.
    if (error instanceof ReplicationError && error.code === "store-damaged" && sizeBytes <= UNDO_PAGE_BYTES) {
      return undefined;
    }
    throw error;
  } finally {
    await file.close();
  }
}

/** What is appended comes right behind what is good, with nothing of an older end behind it. */
async function expectLogEnds(process: SimulatedProcess): Promise<void> {
  const log = await openLogOf(process);
  if (log !== undefined) expect(log.sizeBytes).toBeLessThanOrEqual(log.goodEnd);
}
