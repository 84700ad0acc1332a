/** Makes a digest table true again by reading the replica: after a crash, after damage, for a seed. */
import type { Slot } from "../base/buffer-pool.ts";
import { ReplicationError } from "../base/errors.ts";
import { Gate } from "../base/gate.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  EXTENT_BYTES_MAX,
  type Geometry,
  pageBlocks,
  pageCount,
} from "../base/units.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { DigestTable } from "../table/digest-table.ts";
import { DataCursor } from "./data-cursor.ts";

export interface RebuildOptions {
  readonly disk: string;
  /** What is read, for messages; default the disk's replica. */
  readonly file?: string | undefined;
  readonly geometry: Geometry;
  /** Where a range of the disk lies. */
  readonly runs: (offset: number, length: number) => readonly FileRun[];
  readonly nextData: (offset: number) => { readonly start: number; readonly end: number } | undefined;
  readonly table: DigestTable;
  readonly lanes: Lanes;
  /** Slots to work in, at least one; back in place when the promise settles. */
  readonly slots: readonly Slot[];
  readonly signal: AbortSignal;
  /** Only these blocks; of their pages, and of the last one, all where the page does not match its checksum. Default: all blocks. */
  readonly inDoubt?: ((block: number) => boolean) | undefined;
  readonly onProgress?: (bytes: number) => void;
  /** Told of each block that the device cannot give: it gets a digest that no content has. Left out: reading fails as a whole. */
  readonly onUnreadable?: ((block: number, error: ReplicationError) => void) | undefined;
}

/** Re-digests pages [firstPage, endPage): blocks in holes are zero, the rest is read. */
export async function rebuildTable(options: RebuildOptions, firstPage: number, endPage: number): Promise<void> {
  const { geometry, table } = options;
  const per = blocksPerPage(geometry.digestKind);
  const cursor = new DataCursor(replicaReader(options), {
    blockBytes: geometry.blockBytes,
    fromBlock: firstPage * per,
  });
  const free = [...options.slots];
  const gate = new Gate(free.length);
  const tasks: Promise<void>[] = [];
  let failed: { readonly error: unknown } | undefined;
  try {
    for (let page = firstPage; page < endPage && failed === undefined; page++) {
      options.signal.throwIfAborted();
      const { first, count } = pageBlocks(geometry, page);
      const doubtful = rangesInDoubt(options, page);
      for (const { first: from, end } of doubtful) table.clear(from, end - from);
      const data = doubtful.length === 0 ? [] : await cursor.ranges(first, first + count);
      for (const range of overlaps(data, doubtful)) {
        for (let block = range.first; block < range.end; ) {
          const end = Math.min(range.end, block + EXTENT_BYTES_MAX / geometry.blockBytes);
          await gate.enter();
          const slot = free.pop();
          if (slot === undefined) break;
          const from = block;
          tasks.push(
            digestPiece(options, slot, from, end - from)
              .then((digests) => table.set(from, digests.length / digestBytes(geometry.digestKind), digests))
              .catch((error: unknown) => {
                failed ??= { error };
              })
              .finally(() => {
                free.push(slot);
                gate.leave();
              }),
          );
          if (tasks.length > 1_024) await Promise.all(tasks.splice(0));
          block = end;
        }
      }
      options.onProgress?.((first + count) * geometry.blockBytes);
    }
  } finally {
    // Slots, replica and table are the caller's again when this has returned, whatever happened.
    await Promise.all(tasks);
    await cursor.close();
  }
  if (failed !== undefined) throw failed.error;
}

interface BlockRange {
  readonly first: number;
  readonly end: number;
}

function rangesInDoubt({ geometry, table, inDoubt }: RebuildOptions, page: number): readonly BlockRange[] {
  const { first, count } = pageBlocks(geometry, page);
  const all = [{ first, end: first + count }];
  if (inDoubt === undefined) return all;
  const ranges: { first: number; end: number }[] = [];
  for (let block = first; block < first + count; block++) {
    if (!inDoubt(block)) continue;
    const last = ranges.at(-1);
    if (last?.end === block) last.end++;
    else ranges.push({ first: block, end: block + 1 });
  }
  // The last page is looked at whatever is named: where the disk had shrunk, what was named lay behind its new end.
  if (ranges.length === 0 && page !== pageCount(geometry) - 1) return ranges;
  try {
    table.page(page);
    return ranges;
  } catch (error) {
    // Some of the page was written and its checksum not, or the other way round.
    if (error instanceof ReplicationError && error.code === "store-damaged") return all;
    throw error;
  }
}

/** Both ascending. */
function overlaps(a: readonly BlockRange[], b: readonly BlockRange[]): readonly BlockRange[] {
  const found: BlockRange[] = [];
  let at = 0;
  for (const range of a) {
    while ((b[at]?.end ?? Number.POSITIVE_INFINITY) <= range.first) at++;
    for (let next = at; (b[next]?.first ?? range.end) < range.end; next++) {
      const other = b[next];
      if (other === undefined) break;
      found.push({ first: Math.max(range.first, other.first), end: Math.min(range.end, other.end) });
    }
  }
  return found;
}

/** Digests of blocks as the replica has them. */
export async function digestPiece(
  options: Omit<RebuildOptions, "inDoubt">,
  slot: Slot,
  first: number,
  count: number,
): Promise<Uint8Array> {
  const { geometry, onUnreadable } = options;
  try {
    return await digestAll(options, slot, first, count);
  } catch (error) {
    if (onUnreadable === undefined || !isOfDevice(error)) throw error;
    if (count === 1) {
      onUnreadable(first, error);
      return new Uint8Array(digestBytes(geometry.digestKind)).fill(0xff);
    }
    const half = count >>> 1;
    const before = await digestPiece(options, slot, first, half);
    return Buffer.concat([before, await digestPiece(options, slot, first + half, count - half)]);
  }
}

/** What the device says of a sector that it has lost. */
const deviceErrnos: readonly unknown[] = ["EIO", "ENODATA", "EBADMSG", "EILSEQ"];

function isOfDevice(error: unknown): error is ReplicationError {
  if (!(error instanceof ReplicationError) || error.code !== "image-unreadable") return false;
  return deviceErrnos.includes(error.details["errno"]);
}

async function digestAll(
  options: Omit<RebuildOptions, "inDoubt">,
  slot: Slot,
  first: number,
  count: number,
): Promise<Uint8Array> {
  const { geometry, lanes } = options;
  const offset = first * geometry.blockBytes;
  const length = Math.min(count * geometry.blockBytes, geometry.sizeBytes - offset);
  const result = await lanes.run("scan", {
    slot: slot.index,
    file: options.file ?? `replica of ${options.disk}`,
    pieces: [{ runs: options.runs(offset, length), length }],
    base: "unknown",
    codec: "stored",
    blockBytes: geometry.blockBytes,
    digestKind: geometry.digestKind,
  });
  return result.digests;
}

/** The replica's extents as a reader; only `extents` is ever called. */
export function replicaReader(options: Pick<RebuildOptions, "geometry" | "nextData">): BlockReader {
  const { geometry, nextData } = options;
  return {
    sizeBytes: Math.min(geometry.sizeBytes, blockCount(geometry) * geometry.blockBytes),
    sectorBytes: 512,
    read: () => Promise.reject(new Error("lanes read the replica")),
    async *extents(offset, length) {
      await Promise.resolve();
      const end = offset + length;
      for (let at = offset; at < end; ) {
        const data = nextData(at);
        const start = Math.min(data?.start ?? end, end);
        if (start > at) yield { kind: "hole", offset: at, length: start - at };
        if (data === undefined || start >= end) return;
        const stop = Math.min(data.end, end);
        yield { kind: "data", offset: start, length: stop - start };
        at = stop;
      }
    },
    close: () => Promise.resolve(),
  };
}
