/** A disk becomes larger or smaller: replica, table and record, in an order that a crash may interrupt anywhere. For the holder of `apply.lock`. */
import { errnoOf, invariant } from "../base/errors.ts";
import { blockCount, blockLength, blocksPerPage, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import { createDigester } from "../codec/digest.ts";
import type { Storage } from "../storage/seam.ts";
import type { DigestTable } from "../table/digest-table.ts";
import { type DiskRecord, geometryOf, writeRecord } from "./disk-record.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { sizeError } from "./replica-file.ts";
import type { Replica } from "./replica.ts";
import { settleAll, type TableFiles } from "./table-files.ts";
import type { LoggedParts } from "./undo/logged.ts";

export interface ResizeParts {
  readonly storage: Storage;
  readonly paths: DiskPaths;
  readonly replica: Replica;
  readonly tableFiles: TableFiles;
  readonly table: DigestTable;
}

/**
 * Order: replica longer ∥ table files longer, synced → disk.json → table. So files are never shorter than disk.json says, whatever a loss of power
 * takes back: they may go back to where an earlier part of the same delta had cut them, which is shorter than the newest point too. A crash before
 * disk.json leaves files longer than it says: with an open log they are cut to what it says; no byte was written there. Returns the record. Throws
 * `no-space`, `target-too-small`, `sync-failed`.
 */
export async function growDisk(parts: ResizeParts, before: DiskRecord, sizeBytes: number): Promise<DiskRecord> {
  const { storage, paths, replica, tableFiles, table } = parts;
  const record = { ...before, sizeBytes };
  await giveLengths(parts, record);
  const syncReplica = inFile("sync-failed", `disk ${record.name}: syncing ${paths.replica}`, () => replica.datasync());
  await settleAll([syncReplica, tableFiles.sync()]);
  await writeRecord(storage, paths, record);
  table.resize(sizeBytes);
  return record;
}

/**
 * What lies behind the new end, with all of the block it lies in, is in the undo log and durable, or no point has it. Order: disk.json → table →
 * replica shorter → table files shorter. Nothing else is synced. A crash before disk.json: nothing is cut. After it files are longer than it
 * says, and the next open cuts them. Returns the record.
 */
export async function shrinkDisk(parts: ResizeParts, before: DiskRecord, sizeBytes: number): Promise<DiskRecord> {
  const { storage, paths, table } = parts;
  const record = { ...before, sizeBytes };
  const last = await shrunkDigest(parts, sizeBytes);
  await writeRecord(storage, paths, record);
  table.resize(sizeBytes);
  if (last !== undefined) table.set(blockCount(table.geometry) - 1, 1, last);
  await giveLengths(parts, record);
  return record;
}

async function giveLengths({ paths, replica, tableFiles }: ResizeParts, record: DiskRecord): Promise<void> {
  try {
    await replica.resize(record.sizeBytes);
    await tableFiles.resize(geometryOf(record));
  } catch (error) {
    throw sizeError(error, paths.directory, record.name, record.sizeBytes);
  }
}

/**
 * Digest of the block the new end would lie in, of what stays of it, padded. Undefined: the end lies between two blocks. Where the block cannot be read
 * it is the one the table has: then the sender most likely sends it anew, as every block that is found damaged.
 */
export async function shrunkDigest(
  { storage, replica, table }: Pick<ResizeParts, "storage" | "replica" | "table">,
  sizeBytes: number,
): Promise<Uint8Array | undefined> {
  const geometry: Geometry = { ...table.geometry, sizeBytes };
  const { blockBytes, digestKind } = geometry;
  invariant(sizeBytes <= table.geometry.sizeBytes, "a disk that shrinks becomes smaller");
  if (sizeBytes % blockBytes === 0) return undefined;
  const block = blockCount(geometry) - 1;
  const before = Uint8Array.from(table.get(block));
  if (table.isZero(block)) return before;
  const content = new Uint8Array(blockBytes);
  const digest = new Uint8Array(before.length);
  try {
    const length = blockLength(geometry, block);
    const place = replica.places([block])?.[0] ?? block;
    const held = place < 0 ? 0 : storage.lanes.read(replica.fd, content.subarray(0, length), place * blockBytes);
    content.fill(0, held);
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return before;
  }
  (await createDigester(digestKind)).digest(content, digest, 0);
  return digest;
}

/** Whether the log has every block from the one the new end lies in on, as a whole where it has content. */
export function isTailKept(table: DigestTable, logged: LoggedParts, sizeBytes: number): boolean {
  const { geometry } = table;
  const cut = Math.floor(sizeBytes / geometry.blockBytes);
  for (let page = Math.floor(cut / blocksPerPage(geometry.digestKind)); page < pageCount(geometry); page++) {
    if (table.pages.isZero(page)) continue;
    const { first, count } = pageBlocks(geometry, page);
    for (let block = Math.max(first, cut); block < first + count; block++) {
      if (!(table.isZero(block) ? logged.has(block) : logged.isWhole(block))) return false;
    }
  }
  return true;
}
