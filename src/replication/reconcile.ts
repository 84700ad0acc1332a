/**
 * Compares a replica with its digest table block by block: after somebody wrote to it, or when it may have rotted. Where they differ the undo log
 * keeps that the old content is lost (points that need it say so), and the table gets what is really there, so that the next delta sends it
 * anew.
 */
import type { Slot } from "../base/buffer-pool.ts";
import { blocksPerPage, digestBytes, EXTENT_BYTES_MAX, pageBlocks, pageCount } from "../base/units.ts";
import type { DiskWriter } from "../replica/store.ts";
import { DataCursor } from "./data-cursor.ts";
import type { OldContent } from "./old-content.ts";
import { digestPiece, type RebuildOptions, replicaReader } from "./rebuild.ts";

export interface ReconcileOptions extends Omit<RebuildOptions, "inDoubt"> {
  readonly writer: DiskWriter;
  readonly old: OldContent;
  /** Digests of a page of the table, mended where it is damaged. A view. */
  readonly page: (page: number) => Promise<Uint8Array>;
  /** Told of blocks that differ before anything is entered; throws to leave all as it is. */
  readonly onDiffering?: ((blocks: readonly number[]) => Promise<void>) | undefined;
}

/** Returns the blocks that differed, as ranges. */
export async function reconcile(options: ReconcileOptions): Promise<readonly { first: number; end: number }[]> {
  const { geometry, writer, table, signal, onProgress } = options;
  const per = blocksPerPage(geometry.digestKind);
  const width = digestBytes(geometry.digestKind);
  const cursor = new DataCursor(replicaReader(options), { blockBytes: geometry.blockBytes, fromBlock: 0 });
  const differing: { first: number; end: number }[] = [];
  try {
    for (let page = 0; page < pageCount(geometry); page++) {
      signal.throwIfAborted();
      const { first, count } = pageBlocks(geometry, page);
      const was = Uint8Array.from(await options.page(page));
      const found = new Uint8Array(count * width);
      for (const range of await cursor.ranges(first, first + count)) {
        await digestRange(options, range, (block, digests) => found.set(digests, (block - first) * width));
      }
      const blocks: number[] = [];
      const base: Uint8Array[] = [];
      for (let index = 0; index < count; index++) {
        const before = was.subarray(index * width, (index + 1) * width);
        if (Buffer.compare(before, found.subarray(index * width, (index + 1) * width)) === 0) continue;
        blocks.push(first + index);
        base.push(before);
        const last = differing.at(-1);
        if (last?.end === first + index) last.end++;
        else differing.push({ first: first + index, end: first + index + 1 });
      }
      if (blocks.length > 0) {
        await options.onDiffering?.(blocks);
        await writer.begin();
        await options.old.keepWhole(blocks, Buffer.concat(base));
        for (const block of blocks) {
          const at = (block - first) * width;
          table.set(block, 1, found.subarray(at, at + width));
        }
      }
      onProgress?.(Math.min(geometry.sizeBytes, (page + 1) * per * geometry.blockBytes));
    }
  } finally {
    await cursor.close();
  }
  return differing;
}

/** As many pieces at a time as there are slots. */
async function digestRange(
  options: ReconcileOptions,
  range: { readonly first: number; readonly end: number },
  take: (first: number, digests: Uint8Array) => void,
): Promise<void> {
  const step = EXTENT_BYTES_MAX / options.geometry.blockBytes;
  let next = range.first;
  const work = async (slot: Slot): Promise<void> => {
    while (next < range.end) {
      const first = next;
      next = Math.min(range.end, first + step);
      take(first, await digestPiece(options, slot, first, next - first));
    }
  };
  for (const result of await Promise.allSettled(options.slots.map(work))) {
    if (result.status === "rejected") throw result.reason;
  }
}
