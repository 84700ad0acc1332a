/**
 * The open undo log of a disk, `points/<sequence>.undo`, for the holder of `apply.lock`: made, found again after a crash, written to. It exists
 * from before the first block after its point is overwritten. docs/formats.md, "Undo log".
 */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { damaged, syncDirectory } from "./state-file.ts";
import type { UndoEntry, UndoHeader } from "./undo/entry.ts";
import { encodeUndoHeader, UNDO_HEADER_BYTES, UNDO_PAGE_BYTES } from "./undo/format.ts";
import { LoggedParts } from "./undo/logged.ts";
import { readUndoBatches, scanUndoLog, type UndoScan } from "./undo/scan.ts";
import { WARM_BYTES_MIN, warmLog } from "./undo/warm.ts";
import { UndoWriter } from "./undo/writer.ts";

/** A log that was found open. */
export interface RecoveredLog {
  readonly writer: UndoWriter;
  /** In words, when stretches of it that were durable cannot be read: which blocks they named is not known. */
  readonly trouble: string | undefined;
}

/**
 * The open log of point `sequence` after whatever ended the last session. Order: synced → its page cache dropped, so that what is read is what is on
 * disk: after a kill it may have been in the cache only, and after a failed sync it may never get there → its end judged → what lies
 * behind cut off, synced. The directory was synced before.
 * Undefined: a crash left it without a whole header, so it holds nothing. Throws `store-damaged`, `store-version-unsupported`, `sync-failed`.
 */
export async function recoverUndoLog(
  storage: Storage,
  paths: DiskPaths,
  sequence: number,
): Promise<RecoveredLog | undefined> {
  const path = paths.undo(sequence);
  const file = await inFile("write-failed", `opening ${path}`, () => storage.open(path, { write: true, direct: true }));
  try {
    const { sizeBytes } = await inFile("store-damaged", `reading ${path}`, () => file.stat());
    await inFile("sync-failed", `syncing ${path}`, () => file.datasync());
    storage.lanes.dropCache(file.fd, 0, sizeBytes);
    // Batches are written only when the header is durable.
    if (sizeBytes <= UNDO_PAGE_BYTES && !(await hasHeader(file, storage))) {
      await file.close();
      return undefined;
    }
    if (sizeBytes >= WARM_BYTES_MIN) await warmLog(file, sizeBytes);
    const scan = scanUndoLog({ path, lanes: storage.lanes, fd: file.fd });
    if (scan.header.sequence !== sequence) throw damaged(path, `it is the undo log of point ${scan.header.sequence}`);
    await inFile("write-failed", `cutting ${path}`, async () => {
      if (sizeBytes <= scan.goodEnd) return;
      await file.truncate(scan.goodEnd);
      await inFile("sync-failed", `syncing ${path}`, () => file.datasync());
    });
    return { writer: resume(file, scan), trouble: troubleOf(path, scan) };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function hasHeader(file: StorageFile, storage: Storage): Promise<boolean> {
  const bytes = new Uint8Array(UNDO_HEADER_BYTES);
  if ((await file.read(bytes, 0)) < bytes.length) return false;
  try {
    scanUndoLog({ path: file.path, lanes: storage.lanes, fd: file.fd });
    return true;
  } catch (error) {
    // A newer version must stay as it is; a torn header of a log that holds nothing need not.
    if (error instanceof ReplicationError && error.code === "store-damaged") return false;
    throw error;
  }
}

function resume(file: StorageFile, scan: UndoScan): UndoWriter {
  const { header, goodEnd: end, totals, runs, checkpoint, indexedTo } = scan;
  const logged = new LoggedParts(header.blockBytes);
  const pending: UndoEntry[] = [];
  readUndoBatches(scan, 0, (batch) => {
    const recent = batch.end > checkpoint;
    for (const entry of batch.entries) {
      for (let block = entry.block; block < entry.block + entry.run; block++) logged.enter(block, entry.mask, recent);
      if (batch.offset >= indexedTo) pending.push(entry);
    }
  });
  return new UndoWriter(file, header, logged, { end, pending, runs, ...totals, damage: scan.damage });
}

function troubleOf(path: string, scan: UndoScan): string | undefined {
  const [first] = scan.damage;
  return first === undefined
    ? undefined
    : `${path} is damaged at offset ${first.offset} (${first.length} bytes, ${scan.damage.length} places)`;
}

/**
 * Makes the log. Order: created, or emptied when one without a whole header is there → header written and synced → directory synced. A crash in
 * between leaves a log without a whole header: it counts as begun all the same.
 * Throws `sync-failed`, `write-failed`, `no-space`.
 */
export async function createUndoLog(storage: Storage, paths: DiskPaths, header: UndoHeader): Promise<UndoWriter> {
  const path = paths.undo(header.sequence);
  return inFile("write-failed", `creating ${path}`, async () => {
    const file = await createOrOpen(storage, path);
    try {
      await file.truncate(0);
      const bytes = new Uint8Array(UNDO_PAGE_BYTES);
      bytes.set(encodeUndoHeader(header));
      await file.write(bytes, 0);
      await inFile("sync-failed", `syncing ${path}`, () => file.datasync());
      await syncDirectory(storage, paths.points);
      return new UndoWriter(file, header, new LoggedParts(header.blockBytes), {
        end: UNDO_PAGE_BYTES,
        pending: [],
        runs: [],
        entries: 0,
        parts: 0,
        damagedEntries: 0,
        damage: [],
      });
    } catch (error) {
      await file.close();
      throw error;
    }
  });
}

async function createOrOpen(storage: Storage, path: string): Promise<StorageFile> {
  try {
    return await storage.open(path, { write: true, exclusive: true, mode: 0o600, direct: true });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
    return storage.open(path, { write: true, direct: true });
  }
}
