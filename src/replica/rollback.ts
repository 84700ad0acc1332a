/**
 * Puts a replica back to its newest point: what an interrupted delta overwrote or cut off is written again from the undo log. The log's entries
 * stay: they are true before and after.
 */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { blockLength, digestBytes, pageBlocks, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { DiskRecord } from "./disk-record.ts";
import { fileError } from "./file-error.ts";
import type { PointReader } from "./points/reader.ts";
import { shrinkDisk, growDisk, type ResizeParts } from "./resize.ts";
import { hexOf } from "./table-files.ts";
import type { LoggedParts } from "./undo/logged.ts";

export interface RollbackFacts {
  readonly clock: Clock;
  readonly logged: LoggedParts;
  /** The newest point. */
  readonly reader: PointReader;
  readonly signal?: AbortSignal | undefined;
}

type RollbackParts = ResizeParts & RollbackFacts;

/** Table pages between two pauses in which timers and signals get their turn. */
const pagesBetweenPauses = 1_024;

/**
 * Order: replica and table as long as the point, where they are shorter → written → as long as the point, where they are longer. What is written is
 * not synced: the caller says before that every block the log names is in doubt, and syncs afterwards. Returns the disk's record and the blocks
 * that were put back. Throws `store-damaged` where the old content cannot be told, `write-failed`, `no-space`, `root-mismatch`.
 */
export async function restoreNewest(
  files: ResizeParts,
  before: DiskRecord,
  facts: RollbackFacts,
): Promise<{ readonly record: DiskRecord; readonly blocks: number }> {
  const { sizeBytes } = facts.reader;
  let record = before;
  if (record.sizeBytes < sizeBytes) record = await growDisk(files, record, sizeBytes);
  const blocks = await putBack({ ...files, ...facts }, record.name);
  // What lies behind the point's end is zero now, as it was when the delta made the disk longer.
  if (record.sizeBytes > sizeBytes) record = await shrinkDisk(files, record, sizeBytes);
  checkRoot(files.table.root(), facts.reader);
  return { record, blocks };
}

async function putBack(parts: RollbackParts, disk: string): Promise<number> {
  const { table, logged, clock, signal } = parts;
  let done = 0;
  for (let page = 0; page < pageCount(table.geometry); page++) {
    const { first, count } = pageBlocks(table.geometry, page);
    const named: number[] = [];
    for (let block = first; block < first + count; block++) if (logged.has(block)) named.push(block);
    if (named.length > 0) done += await putBackPage(parts, disk, page, named);
    if (page % pagesBetweenPauses === pagesBetweenPauses - 1) await clock.sleep(0);
    signal?.throwIfAborted();
  }
  return done;
}

/** Blocks of one page that the log names. */
async function putBackPage(
  parts: RollbackParts,
  disk: string,
  page: number,
  named: readonly number[],
): Promise<number> {
  const { table, reader, replica, storage } = parts;
  const { geometry } = table;
  const { first } = pageBlocks(geometry, page);
  const width = digestBytes(geometry.digestKind);
  const digests = first * geometry.blockBytes < reader.sizeBytes ? await digestsOf(reader, page) : new Uint8Array();
  // Most of a long tail that was cut off.
  if (digests !== undefined && isZero(digests) && table.pages.isZero(page)) return 0;
  const content = Buffer.alloc(geometry.blockBytes);
  let done = 0;
  for (const block of named) {
    const offset = block * geometry.blockBytes;
    const at = (block - first) * width;
    // Behind the point's end there was nothing.
    const digest =
      offset >= reader.sizeBytes
        ? undefined
        : (digests?.subarray(at, at + width) ?? Uint8Array.from(await reader.digest(block)));
    if (digest === undefined || isZero(digest)) {
      if (table.isZero(block)) continue;
      clearBlock(parts, disk, block, content);
      table.clear(block, 1);
    } else {
      if (Buffer.compare(digest, table.get(block)) === 0) continue;
      content.fill(0);
      await reader.read(content.subarray(0, Math.min(geometry.blockBytes, reader.sizeBytes - offset)), offset);
      const bytes = content.subarray(0, blockLength(geometry, block));
      const [place = block] = (await replica.claim([block])) ?? [];
      writing(disk, offset, () => {
        storage.lanes.write(replica.fd, bytes, place * geometry.blockBytes);
      });
      table.set(block, 1, digest);
    }
    done++;
  }
  return done;
}

/** Digests of a page at the point; undefined: not of every block, so they are to be asked for one by one. */
async function digestsOf(reader: PointReader, page: number): Promise<Uint8Array | undefined> {
  try {
    return await reader.digests(page);
  } catch (error) {
    if (error instanceof ReplicationError && error.code === "store-damaged") return undefined;
    throw error;
  }
}

function clearBlock({ storage, replica, table }: RollbackParts, disk: string, block: number, zeros: Buffer): void {
  const { lanes } = storage;
  const { blockBytes } = table.geometry;
  const length = blockLength(table.geometry, block);
  const [place = block] = replica.places([block]) ?? [];
  if (place < 0) return;
  const at = place * blockBytes;
  writing(disk, block * blockBytes, () => {
    if (lanes.punch(replica.fd, at, length)) return;
    lanes.write(replica.fd, zeros.fill(0).subarray(0, length), at);
  });
}

function writing(disk: string, offset: number, write: () => void): void {
  try {
    write();
  } catch (error) {
    throw fileError(error, "write-failed", `disk ${disk}: writing the replica at offset ${offset}`);
  }
}

function checkRoot(root: Uint8Array, { point, disk }: PointReader): void {
  if (hexOf(root) === point.root) return;
  throw new ReplicationError(
    "root-mismatch",
    `disk ${disk.name}: put back to point ${point.point}, its table is not that of the point; verify the disk`,
  );
}
