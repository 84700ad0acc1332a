/** Enters what is sent into the funnel: each block once, however many attempts it takes. */
import { countParts } from "../base/part-mask.ts";
import { blockLength, blocksPerPage, type Geometry, maskBytes, PART_BYTES } from "../base/units.ts";
import type { Funnel } from "./report.ts";
import type { ScanMemory } from "./scan-memory.ts";

export class FunnelCount {
  readonly #funnel: Funnel;
  readonly #memory: ScanMemory;
  readonly #geometry: Geometry;

  constructor(funnel: Funnel, memory: ScanMemory) {
    this.#funnel = funnel;
    this.#memory = memory;
    this.#geometry = memory.geometry;
  }

  /** Parts of blocks; `masks` has {@link maskBytes} for each block. */
  parts(blocks: readonly number[], masks: Uint8Array): void {
    const funnel = this.#funnel;
    const width = maskBytes(this.#geometry.blockBytes);
    for (const [index, block] of blocks.entries()) {
      const mask = masks.subarray(index * width, (index + 1) * width);
      this.#memory.sentBytes += countParts(mask) * PART_BYTES;
      if (!this.#isNew(block)) continue;
      const length = blockLength(this.#geometry, block);
      const bytes = countParts(mask) * PART_BYTES - padding(mask, length);
      funnel.changedBlockBytes += length;
      funnel.changedBytes += bytes;
      funnel.shippedBytes += bytes;
    }
  }

  /** Blocks that are zero now. */
  zeros(first: number, count: number): void {
    const funnel = this.#funnel;
    for (let block = first; block < first + count; block++) {
      if (!this.#isNew(block)) continue;
      const length = blockLength(this.#geometry, block);
      funnel.zeroBlocks++;
      funnel.changedBlockBytes += length;
      funnel.changedBytes += length;
    }
  }

  /** The page is compared to its end: what is sent of it in a later attempt was counted. */
  settle(page: number): void {
    this.#memory.counted.delete(page);
  }

  #isNew(block: number): boolean {
    const { counted, done } = this.#memory;
    const page = Math.floor(block / blocksPerPage(this.#geometry.digestKind));
    if (done.has(page)) return false;
    let blocks = counted.get(page);
    if (blocks === undefined) {
      blocks = new Set();
      counted.set(page, blocks);
    }
    if (blocks.has(block)) return false;
    blocks.add(block);
    return true;
  }
}

/** Bytes behind the end of the disk in the last part, when that part is named. */
function padding(mask: Uint8Array, blockBytes: number): number {
  const tail = blockBytes % PART_BYTES;
  const last = Math.floor(blockBytes / PART_BYTES);
  return tail > 0 && ((mask[last >> 3] ?? 0) & (1 << (last & 7))) !== 0 ? PART_BYTES - tail : 0;
}
