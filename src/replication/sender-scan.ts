/**
 * The sender's scan: page by page through the disk, from a start and round to it again. A block goes one of four ways:
 * hole or equal → nothing · zero now → `zero` · new over zero → shipped at once · new over content → part digests asked, then patched.
 *
 * Everything is bounded: pages under way by a gate, block memory by the pool, frames by credit, requests by a gate.
 */
import type { Clock } from "../base/clock.ts";
import { Gate } from "../base/gate.ts";
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import {
  blockLength,
  blocksPerPage,
  digestBytes,
  EXTENT_BYTES_MAX,
  type Geometry,
  pageBlocks,
  pageCount,
  partsPerBlock,
} from "../base/units.ts";
import { isZero } from "../codec/digest.ts";
import type { BlockReader } from "../image/block-device.ts";
import { blockState, type Shipment } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import { pageDigest } from "../table/digest-table.ts";
import { encodeHeadBefore } from "../wire/frame.ts";
import type { Data } from "../wire/messages.ts";
import { BaseTable, restOfParts } from "./base-table.ts";
import type { CodecChoice } from "./codec-choice.ts";
import { type BlockRange, DataCursor } from "./data-cursor.ts";
import type { RateLimit } from "./rate.ts";
import type { Funnel } from "./report.ts";
import type { ScanMemory } from "./scan-memory.ts";
import type { SenderSession } from "./sender-session.ts";

/** Pages under way: enough to keep lanes busy across the round trips of their questions. */
const pagesUnderWay = 8;
/** Blocks whose part digests are asked in one request, and requests under way. */
const blocksPerBatch = 128;
const batchesUnderWay = 6;
/** Blocks of one `zero` frame: 64 MiB at the default, so that long zero stretches count as progress. */
const blocksPerZero = 1_024;
/** Pages whose digests are kept for a repeat. */
const recentPages = 256;
/** Pages scanned between two pauses in which sockets and timers get their turn. */
const pagesBetweenPauses = 4_096;

export interface ScanOptions {
  readonly reader: BlockReader;
  /** Name of the image, for messages. */
  readonly name: string;
  readonly session: SenderSession;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly codec: CodecChoice;
  readonly rate: RateLimit;
  readonly clock: Clock;
  readonly funnel: Funnel;
  readonly memory: ScanMemory;
  /** The receiver's table is all zero. */
  readonly empty: boolean;
  readonly signal: AbortSignal;
}

/** One page on its way. */
interface PageWork {
  readonly page: number;
  readonly first: number;
  readonly count: number;
  /** Digests of the source, filled as blocks are read. */
  readonly digests: Uint8Array;
  /** Blocks not settled, and 1 for the scan itself. */
  open: number;
}

interface Candidate {
  readonly work: PageWork;
  readonly block: number;
  readonly base: Uint8Array;
}

export class Scan {
  readonly #o: ScanOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  readonly #base: BaseTable;
  readonly #pageGate = new Gate(pagesUnderWay);
  readonly #batchGate = new Gate(batchesUnderWay);
  readonly #tasks = new Set<Promise<void>>();
  readonly #recent = new Map<number, Uint8Array>();
  #candidates: Candidate[] = [];
  /** Share of the last pages that differed, as a moving average: while most do, block digests are asked ahead of reading. */
  #differing = 0;
  /** First failure of a task. */
  #failed: { readonly error: unknown } | undefined;

  constructor(options: ScanOptions) {
    this.#o = options;
    this.#geometry = options.memory.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
    this.#base = new BaseTable(options.session, this.#geometry, { empty: options.empty });
  }

  /** Looks at every block once. Resolves when all that had to be sent was taken by the sockets. */
  async run(): Promise<void> {
    const { memory, reader, funnel } = this.#o;
    const pages = pageCount(this.#geometry);
    const start = memory.nextPage < pages ? memory.nextPage : 0;
    funnel.allocatedBytes = 0;
    try {
      for (const [from, to] of [
        [start, pages],
        [0, start],
      ] as const) {
        if (from === to) continue;
        const fromBlock = from * blocksPerPage(this.#geometry.digestKind);
        const cursor = new DataCursor(reader, { blockBytes: this.#geometry.blockBytes, fromBlock });
        for (let page = from; page < to; page++) {
          this.#check();
          const { first, count } = pageBlocks(this.#geometry, page);
          const before = cursor.dataBytes;
          const ranges = await cursor.ranges(first, first + count);
          funnel.allocatedBytes += cursor.dataBytes - before;
          await this.#visit(page, ranges);
          if (page % pagesBetweenPauses === pagesBetweenPauses - 1) await this.#o.clock.sleep(0, this.#o.signal);
        }
        await cursor.close();
      }
      await this.#drain();
      while (this.#candidates.length > 0) {
        await this.#flush();
        await this.#drain();
      }
    } finally {
      // Nothing may touch slots or the image after this returned, whatever happened.
      await Promise.allSettled([...this.#tasks]);
      while (memory.done.has(memory.nextPage)) memory.nextPage++;
    }
  }

  #check(): void {
    if (this.#failed !== undefined) throw this.#failed.error;
    this.#o.signal.throwIfAborted();
  }

  #track(task: Promise<void>): void {
    const tracked: Promise<void> = task
      .catch((error: unknown) => {
        this.#failed ??= { error };
      })
      .finally(() => {
        this.#tasks.delete(tracked);
      });
    this.#tasks.add(tracked);
  }

  async #drain(): Promise<void> {
    while (this.#tasks.size > 0) await Promise.all([...this.#tasks]);
    this.#check();
  }

  async #visit(page: number, ranges: readonly BlockRange[]): Promise<void> {
    const { memory } = this.#o;
    const base = this.#base.empty ? undefined : await this.#base.page(page);
    const baseZero = base === undefined || isZero(base);
    if (memory.done.has(page) && Buffer.compare(memory.pages.get(page), base ?? zeroPageDigest) === 0) {
      this.#scanned(page);
      return;
    }
    if (ranges.length === 0 && baseZero) {
      memory.pages.set(page, zeroPageDigest);
      memory.done.add(page);
      this.#scanned(page);
      return;
    }
    await this.#pageGate.enter();
    this.#track(
      this.#page(page, ranges, base ?? zeroPageDigest).finally(() => {
        this.#pageGate.leave();
      }),
    );
  }

  async #page(page: number, ranges: readonly BlockRange[], basePage: Uint8Array): Promise<void> {
    const { first, count } = pageBlocks(this.#geometry, page);
    const work: PageWork = { page, first, count, digests: new Uint8Array(count * this.#width), open: 1 };
    const ahead = this.#differing > 0.5;
    let base: Uint8Array | "zero" | undefined;
    if (isZero(basePage)) base = "zero";
    else if (ahead) base = await this.#base.blocks(page);
    await this.#read(work, ranges, base ?? "unknown");
    if (base === undefined) {
      const equal = Buffer.compare(pageDigest(work.digests), basePage) === 0;
      this.#note(!equal);
      if (!equal) await this.#compare(work, await this.#base.blocks(page));
    } else if (base !== "zero") {
      this.#note(Buffer.compare(pageDigest(work.digests), basePage) !== 0);
      await this.#clearHoles(work, ranges, base);
    }
    this.#settle(work, 1);
  }

  #note(differs: boolean): void {
    this.#differing = this.#differing * 0.9 + (differs ? 0.1 : 0);
  }

  /** Reads ranges of a page in pieces of up to 1 MiB, each in a slot of its own. */
  async #read(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const step = EXTENT_BYTES_MAX / this.#geometry.blockBytes;
    const pieces: Promise<void>[] = [];
    for (const range of ranges) {
      for (let first = range.first; first < range.end; ) {
        const end = Math.min(range.end, Math.floor(first / step) * step + step);
        pieces.push(this.#piece(work, first, end - first, base));
        first = end;
      }
    }
    await settleAll(pieces);
  }

  async #piece(work: PageWork, first: number, count: number, base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const { pool, lanes, reader, signal, funnel, codec } = this.#o;
    const offset = first * this.#geometry.blockBytes;
    const length = Math.min(count * this.#geometry.blockBytes, this.#geometry.sizeBytes - offset);
    const from = (first - work.first) * this.#width;
    const slot = await pool.acquire(signal);
    try {
      this.#check();
      const runs = reader.runs?.(offset, length);
      if (runs === undefined) await reader.read(slot.bytes.subarray(areaA, areaA + length), offset);
      const tried = base === "unknown" ? "stored" : codec.next();
      const result = await lanes.run("scan", {
        slot: slot.index,
        file: this.#o.name,
        diskOffset: offset,
        runs,
        length,
        base: typeof base === "string" ? base : base.slice(from, from + count * this.#width),
        codec: tried,
        dropCache: true,
        blockBytes: this.#geometry.blockBytes,
        digestKind: this.#geometry.digestKind,
      });
      funnel.readBytes += length;
      work.digests.set(result.digests, from);
      const zeros: number[] = [];
      for (const [index, state] of result.states.entries()) {
        const block = first + index;
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs && typeof base !== "string") {
          this.#addCandidate(work, block, base.slice(from + index * this.#width, from + (index + 1) * this.#width));
        }
      }
      if (result.shipment !== undefined) {
        const { shipment } = result;
        const blocks = shipment.picked.map((index) => first + index);
        await this.#ship(slot, blocks, shipment, { repeat: false, tried });
      }
      await this.#shipZeros(zeros, false);
    } finally {
      slot.release();
    }
  }

  /** A page that was digested first turned out to differ: sort its blocks. */
  async #compare(work: PageWork, base: Uint8Array): Promise<void> {
    const zeros: number[] = [];
    const fresh: { first: number; end: number }[] = [];
    for (let index = 0; index < work.count; index++) {
      const at = index * this.#width;
      const mine = work.digests.subarray(at, at + this.#width);
      const theirs = base.subarray(at, at + this.#width);
      if (Buffer.compare(mine, theirs) === 0) continue;
      const block = work.first + index;
      if (isZero(mine)) zeros.push(block);
      else if (isZero(theirs)) {
        const last = fresh.at(-1);
        if (last?.end === block) last.end++;
        else fresh.push({ first: block, end: block + 1 });
      } else this.#addCandidate(work, block, theirs.slice());
    }
    await this.#shipZeros(zeros, false);
    await this.#read(work, fresh, base);
  }

  /** Blocks in holes that the receiver does not hold as zero. */
  async #clearHoles(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array): Promise<void> {
    const zeros: number[] = [];
    let next = 0;
    for (let index = 0; index < work.count; index++) {
      const block = work.first + index;
      while (next < ranges.length && block >= (ranges[next]?.end ?? 0)) next++;
      const range = ranges[next];
      if (range !== undefined && block >= range.first) continue;
      if (!isZero(base.subarray(index * this.#width, (index + 1) * this.#width))) zeros.push(block);
    }
    await this.#shipZeros(zeros, false);
  }

  #addCandidate(work: PageWork, block: number, base: Uint8Array): void {
    work.open++;
    this.#candidates.push({ work, block, base });
    if (this.#candidates.length >= blocksPerBatch) this.#track(this.#flush());
  }

  /** Asks part digests for the candidates gathered so far and patches them. */
  async #flush(): Promise<void> {
    const batch = this.#candidates.splice(0, blocksPerBatch);
    if (batch.length === 0) return;
    await this.#batchGate.enter();
    try {
      this.#check();
      batch.sort((a, b) => a.block - b.block);
      const answer = await this.#o.session.askParts(batch.map((candidate) => candidate.block));
      for (let done = 0; done < batch.length; ) done += await this.#patch(batch, done, answer);
    } finally {
      this.#batchGate.leave();
    }
  }

  async #patch(batch: readonly Candidate[], from: number, answer: Uint8Array): Promise<number> {
    const { pool, signal } = this.#o;
    const slot = await pool.acquire(signal);
    try {
      this.#check();
      const rest = batch.slice(from);
      const parts = restOfParts(answer, batch.length, from, partsPerBlock(this.#geometry.blockBytes) * 4);
      const base = Buffer.concat(rest.map((candidate) => candidate.base));
      const blocks = rest.map((candidate) => candidate.block);
      const result = await this.#patchBlocks(slot, blocks, { base, ...parts }, false);
      for (const [index, digest] of result.entries()) {
        const candidate = rest[index];
        if (candidate === undefined) break;
        candidate.work.digests.set(digest, (candidate.block - candidate.work.first) * this.#width);
        this.#settle(candidate.work, 1);
      }
      return result.length;
    } finally {
      slot.release();
    }
  }

  /** Runs one patch job and ships its result. Returns the digests of the blocks it took, from the front. */
  async #patchBlocks(
    slot: Slot,
    blocks: readonly number[],
    against: { readonly base: Uint8Array; readonly known: Uint8Array; readonly parts: Uint8Array },
    repeat: boolean,
  ): Promise<readonly Uint8Array[]> {
    const { reader, lanes, funnel, codec } = this.#o;
    const { blockBytes } = this.#geometry;
    let taken = blocks;
    const runs = blocks.map((block) => reader.runs?.(block * blockBytes, blockLength(this.#geometry, block)));
    const inFiles = runs.every((run) => run !== undefined);
    if (!inFiles) {
      taken = blocks.slice(0, EXTENT_BYTES_MAX / blockBytes);
      for (const [index, block] of taken.entries()) {
        const length = blockLength(this.#geometry, block);
        const target = slot.bytes.subarray(areaA + index * blockBytes, areaA + (index + 1) * blockBytes);
        await reader.read(target.subarray(0, length), block * blockBytes);
        target.fill(0, length);
      }
    }
    const tried = codec.next();
    const result = await lanes.run("patch", {
      slot: slot.index,
      file: this.#o.name,
      blocks: taken,
      sizeBytes: this.#geometry.sizeBytes,
      runs: inFiles ? runs : undefined,
      ...against,
      codec: tried,
      blockBytes,
      digestKind: this.#geometry.digestKind,
    });
    const zeros: number[] = [];
    for (let index = 0; index < result.consumed; index++) {
      const block = taken[index] ?? 0;
      funnel.readBytes += blockLength(this.#geometry, block);
      if (result.states[index] === blockState.zero) zeros.push(block);
    }
    if (result.shipment !== undefined) {
      const shipped = result.shipment.picked.map((index) => taken[index] ?? 0);
      await this.#ship(slot, shipped, result.shipment, { repeat, tried });
    }
    await this.#shipZeros(zeros, repeat);
    return Array.from({ length: result.consumed }, (_unused, index) =>
      result.digests.slice(index * this.#width, (index + 1) * this.#width),
    );
  }

  async #ship(
    slot: Slot,
    blocks: readonly number[],
    shipment: Shipment,
    how: { readonly repeat: boolean; readonly tried: Data["codec"] },
  ): Promise<void> {
    const { session, rate, funnel, codec, clock, signal } = this.#o;
    const { masks, digests, rawBytes, payloadOffset, payloadBytes } = shipment;
    const { repeat } = how;
    const message: Data = { type: "data", blocks, masks, digests, codec: shipment.codec, rawBytes, repeat };
    await session.takeCredit();
    const start = encodeHeadBefore(message, payloadBytes, slot.bytes, payloadOffset);
    const frame = slot.bytes.subarray(start, payloadOffset + payloadBytes);
    await rate.take(frame.length, signal);
    await session.sendData(message, frame);
    codec.observe({ tried: how.tried, rawBytes, packedBytes: payloadBytes, now: clock.monotonic() });
    funnel.packedBytes += frame.length;
    if (repeat) {
      funnel.repeatedBlocks += blocks.length;
      return;
    }
    funnel.changedBlockBytes += blocks.length * this.#geometry.blockBytes;
    funnel.changedBytes += rawBytes;
    funnel.shippedBytes += rawBytes;
  }

  /** Blocks ascending; neighbours travel together. */
  async #shipZeros(blocks: readonly number[], repeat: boolean): Promise<void> {
    const { session, rate, funnel, signal } = this.#o;
    for (let index = 0; index < blocks.length; ) {
      const first = blocks[index] ?? 0;
      let count = 1;
      while (count < blocksPerZero && blocks[index + count] === first + count) count++;
      index += count;
      await session.takeCredit();
      await rate.take(64, signal);
      session.sendZero({ type: "zero", first, count, repeat });
      if (repeat) continue;
      funnel.zeroBlocks += count;
      funnel.changedBlockBytes += count * this.#geometry.blockBytes;
      funnel.changedBytes += count * this.#geometry.blockBytes;
    }
  }

  #settle(work: PageWork, blocks: number): void {
    work.open -= blocks;
    if (work.open > 0) return;
    const { memory } = this.#o;
    memory.pages.set(work.page, pageDigest(work.digests));
    memory.done.add(work.page);
    this.#recent.set(work.page, work.digests);
    if (this.#recent.size > recentPages) {
      for (const oldest of this.#recent.keys()) {
        this.#recent.delete(oldest);
        break;
      }
    }
    this.#scanned(work.page);
  }

  #scanned(page: number): void {
    const { first, count } = pageBlocks(this.#geometry, page);
    const offset = first * this.#geometry.blockBytes;
    this.#o.funnel.scannedBytes += Math.min(count * this.#geometry.blockBytes, this.#geometry.sizeBytes - offset);
  }

  /** Sends blocks whole because the receiver asked for it; the new digest replaces the old one at both ends. */
  async repeat(blocks: readonly number[]): Promise<void> {
    const known = new Uint8Array(Math.ceil(blocks.length / 8));
    for (let done = 0; done < blocks.length; ) {
      const slot = await this.#o.pool.acquire(this.#o.signal);
      try {
        const rest = blocks.slice(done);
        const against = { base: new Uint8Array(rest.length * this.#width), known, parts: new Uint8Array(0) };
        const digests = await this.#patchBlocks(slot, rest, against, true);
        for (const [index, digest] of digests.entries()) await this.#replaceDigest(rest[index] ?? 0, digest);
        done += digests.length;
      } finally {
        slot.release();
      }
    }
  }

  async #replaceDigest(block: number, digest: Uint8Array): Promise<void> {
    const page = Math.floor(block / blocksPerPage(this.#geometry.digestKind));
    const { first } = pageBlocks(this.#geometry, page);
    // The page may be under way still, or long forgotten: then its other digests are the receiver's, which the root covers all the same.
    const digests = this.#recent.get(page) ?? (await this.#base.blocks(page));
    digests.set(digest, (block - first) * this.#width);
    this.#o.memory.pages.set(page, pageDigest(digests));
  }
}

const zeroPageDigest = new Uint8Array(32);

/** Waits for all, then throws the first failure: nothing may still use a slot when the caller goes on. */
async function settleAll(tasks: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(tasks);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
