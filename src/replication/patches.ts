/** Blocks that differ from content: part digests are asked for many at a time, and the parts that differ are shipped. */
import type { BufferPool } from "../base/buffer-pool.ts";
import { Gate } from "../base/gate.ts";
import { invariant } from "../base/errors.ts";
import { digestBytes, type Geometry, maskBytes, partsPerBlock } from "../base/units.ts";
import type { FrameShipper } from "./frame-shipper.ts";
import type { PageWork } from "./page-work.ts";
import { differingParts, frameEnd, type PartsOfBlocks } from "./part-ranges.ts";
import type { SenderSession } from "./sender-session.ts";

/** Blocks whose part digests are asked in one request, and requests under way. */
const blocksPerBatch = 256;
const batchesUnderWay = 4;

export interface PatchesOptions {
  readonly geometry: Geometry;
  readonly session: SenderSession;
  readonly pool: BufferPool;
  readonly shipper: FrameShipper;
  readonly signal: AbortSignal;
  /** Keeps a task of the scan; what it returns never rejects. */
  readonly track: (task: Promise<void>) => Promise<void>;
  /** Throws when the scan has failed or is to stop. */
  readonly check: () => void;
  /** One block of the page is shipped. */
  readonly settle: (work: PageWork) => void;
}

/** Blocks in the order they were found, with what is needed of each. */
class Batch {
  readonly works: PageWork[] = [];
  readonly blocks: number[] = [];
  /** Part digests of the blocks as they were read. */
  readonly own: Uint8Array;
  readonly #perBlock: number;

  /** `perBlock`: bytes of the part digests of a block. */
  constructor(perBlock: number) {
    this.#perBlock = perBlock;
    this.own = new Uint8Array(blocksPerBatch * perBlock);
  }

  get isFull(): boolean {
    return this.blocks.length === blocksPerBatch;
  }

  add(work: PageWork, block: number, parts: Uint8Array): void {
    this.own.set(parts, this.blocks.length * this.#perBlock);
    this.works.push(work);
    this.blocks.push(block);
  }

  /** In ascending order of blocks. Jobs end in any order, so the batch seldom is. */
  sorted(): Batch {
    const { blocks, works, own } = this;
    if (blocks.every((block, index) => index === 0 || (blocks[index - 1] ?? 0) < block)) return this;
    const sorted = new Batch(this.#perBlock);
    for (const from of [...blocks.keys()].sort((a, b) => (blocks[a] ?? 0) - (blocks[b] ?? 0))) {
      const work = works[from];
      invariant(work !== undefined, "a block of a batch is of a page");
      sorted.add(work, blocks[from] ?? 0, own.subarray(from * this.#perBlock, (from + 1) * this.#perBlock));
    }
    return sorted;
  }
}

export class Patches {
  readonly #o: PatchesOptions;
  readonly #gate = new Gate(batchesUnderWay);
  #batch: Batch;
  /** Batches not shipped yet. */
  readonly #batches = new Set<Promise<void>>();

  constructor(options: PatchesOptions) {
    this.#o = options;
    this.#batch = this.#newBatch();
  }

  /** `parts`: part digests of the block as it was read, copied. The page is not settled before the block is shipped. */
  add(work: PageWork, block: number, parts: Uint8Array): void {
    work.open++;
    this.#batch.add(work, block, parts);
    if (this.#batch.isFull) this.#start();
  }

  /** Resolves when few batches wait for the receiver: who reads on meanwhile gathers the part digests of the whole disk. */
  async room(): Promise<void> {
    while (this.#batches.size > batchesUnderWay) await Promise.race(this.#batches);
  }

  /** Ships what there is; nothing is added any more. */
  async flush(): Promise<void> {
    if (this.#batch.blocks.length > 0) this.#start();
    await Promise.all(this.#batches);
    this.#o.check();
  }

  #newBatch(): Batch {
    return new Batch(partsPerBlock(this.#o.geometry.blockBytes) * 4);
  }

  #start(): void {
    const batch = this.#batch;
    this.#batch = this.#newBatch();
    const tracked = this.#o.track(this.#ship(batch)).finally(() => {
      this.#batches.delete(tracked);
    });
    this.#batches.add(tracked);
  }

  /** Asks part digests for the batch and ships the parts that differ. */
  async #ship(unsorted: Batch): Promise<void> {
    const { session, geometry, check } = this.#o;
    await this.#gate.enter();
    try {
      check();
      const batch = unsorted.sorted();
      const { blocks, own } = batch;
      const answer = await session.askParts(blocks);
      const parts = differingParts(answer, own, blocks.length, geometry.blockBytes);
      for (let done = 0; done < blocks.length; ) {
        const end = frameEnd(parts.counts, done);
        await this.#patch(batch, parts, done, end);
        done = end;
      }
    } finally {
      this.#gate.leave();
    }
  }

  /** Blocks `from` to `to - 1` of the batch, in one frame. */
  async #patch(batch: Batch, parts: PartsOfBlocks, from: number, to: number): Promise<void> {
    const { geometry, pool, signal, shipper, check, settle } = this.#o;
    const width = digestBytes(geometry.digestKind);
    const perMask = maskBytes(geometry.blockBytes);
    const digests = new Uint8Array((to - from) * width);
    const works = batch.works.slice(from, to);
    const blocks = batch.blocks.slice(from, to);
    for (const [index, work] of works.entries()) {
      const at = ((blocks[index] ?? 0) - work.first) * width;
      digests.set(work.digests.subarray(at, at + width), index * width);
    }
    const slot = await pool.acquire(signal);
    try {
      check();
      const masks = parts.masks.slice(from * perMask, to * perMask);
      await shipper.packAndShip(slot, blocks, masks, digests, { read: true, repeat: false });
    } finally {
      slot.release();
    }
    for (const work of works) settle(work);
  }
}
