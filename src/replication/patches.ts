/** Blocks that differ from content: part digests are asked for many at a time, and the parts that differ are shipped. */
import type { BufferPool } from "../base/buffer-pool.ts";
import { Gate } from "../base/gate.ts";
import { digestBytes, type Geometry } from "../base/units.ts";
import type { FrameShipper } from "./frame-shipper.ts";
import type { PageWork } from "./page-work.ts";
import { differingParts, frameEnd } from "./part-ranges.ts";
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

interface Candidate {
  readonly work: PageWork;
  readonly block: number;
  /** Part digests of the block as it was read. */
  readonly parts: Uint8Array;
}

export class Patches {
  readonly #o: PatchesOptions;
  readonly #gate = new Gate(batchesUnderWay);
  #candidates: Candidate[] = [];
  /** Batches not shipped yet. */
  readonly #batches = new Set<Promise<void>>();

  constructor(options: PatchesOptions) {
    this.#o = options;
  }

  /** Keeps `parts`. The page is not settled before the block is shipped. */
  add(work: PageWork, block: number, parts: Uint8Array): void {
    work.open++;
    this.#candidates.push({ work, block, parts });
    if (this.#candidates.length >= blocksPerBatch) this.#start();
  }

  /** Resolves when few batches wait for the receiver: who reads on meanwhile gathers the part digests of the whole disk. */
  async room(): Promise<void> {
    while (this.#batches.size > batchesUnderWay) await Promise.race(this.#batches);
  }

  /** Ships what there is; nothing is added any more. */
  async flush(): Promise<void> {
    if (this.#candidates.length > 0) this.#start();
    await Promise.all(this.#batches);
    this.#o.check();
  }

  #start(): void {
    const batch = this.#candidates;
    this.#candidates = [];
    const tracked = this.#o.track(this.#ship(batch)).finally(() => {
      this.#batches.delete(tracked);
    });
    this.#batches.add(tracked);
  }

  /** Asks part digests for the batch and ships the parts that differ. */
  async #ship(batch: Candidate[]): Promise<void> {
    const { session, geometry, check } = this.#o;
    await this.#gate.enter();
    try {
      check();
      batch.sort((a, b) => a.block - b.block);
      const answer = await session.askParts(batch.map((candidate) => candidate.block));
      const own = batch.map((candidate) => candidate.parts);
      const masks = differingParts(answer, own, geometry.blockBytes);
      for (let done = 0; done < batch.length; ) {
        const end = frameEnd(masks, done);
        await this.#patch(batch.slice(done, end), masks.slice(done, end));
        done = end;
      }
    } finally {
      this.#gate.leave();
    }
  }

  /** One frame. */
  async #patch(batch: readonly Candidate[], masks: readonly Uint8Array[]): Promise<void> {
    const { geometry, pool, signal, shipper, check, settle } = this.#o;
    const width = digestBytes(geometry.digestKind);
    const digests = new Uint8Array(batch.length * width);
    for (const [index, { work, block }] of batch.entries()) {
      const at = (block - work.first) * width;
      digests.set(work.digests.subarray(at, at + width), index * width);
    }
    const blocks = batch.map((candidate) => candidate.block);
    const slot = await pool.acquire(signal);
    try {
      check();
      await shipper.packAndShip(slot, blocks, masks, digests, { read: true, repeat: false });
    } finally {
      slot.release();
    }
    for (const candidate of batch) settle(candidate.work);
  }
}
