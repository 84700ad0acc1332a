/**
 * The sender's scan: page by page through the disk, from a start and round to it again. A block goes one of four ways:
 * hole or equal → nothing · zero now → `zero` · new over zero → shipped at once · new over content → part digests asked, then patched.
 *
 * Everything is bounded: pages under way by a gate, block memory by the pool, frames by credit, requests by a gate.
 */
import { fullMask } from "../base/part-mask.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { Gate, settleAll } from "../base/gate.ts";
import { PagedBits } from "../base/paged-bits.ts";
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  EXTENT_BYTES_MAX,
  type Geometry,
  pageBlocks,
  pageCount,
  partsPerBlock,
} from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { CodecName } from "../codec/compression.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import { blockState, type CompareResult, type ScanPiece, type ScanRequest, type ScanResult } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import { pageDigest } from "../table/digest-table.ts";
import { BaseTable } from "./base-table.ts";
import type { CodecChoice } from "./codec-choice.ts";
import { type BlockRange, blocksOutside, cutRanges, DataCursor } from "./data-cursor.ts";
import { differences, type PageWork, RecentPages } from "./page-work.ts";
import { runsOfRanges } from "./part-ranges.ts";
import { Patches } from "./patches.ts";
import { FrameShipper } from "./frame-shipper.ts";
import { FunnelCount } from "./funnel-count.ts";
import type { RateLimit } from "./rate.ts";
import type { Funnel } from "./report.ts";
import type { ScanMemory } from "./scan-memory.ts";
import type { SenderSession } from "./sender-session.ts";

/** Pages under way: enough to keep lanes busy across the round trips of their questions. */
const pagesUnderWay = 4;
/** Pieces under way for each lane: one in work, one ready. */
const piecesPerLane = 2;
/** Pieces compared in one job: 8 MiB, so that jobs are few, and a slow disk does not hold a lane for long. */
const piecesTogether = 8;
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
  /** Size of the receiver's disk before this delta. */
  readonly baseBytes: number;
  readonly signal: AbortSignal;
}

/** Blocks whose bytes lie in files. */
interface PlacedPiece {
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
  readonly length: number;
  readonly runs: readonly FileRun[];
}

export class Scan {
  readonly #o: ScanOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  readonly #base: BaseTable;
  readonly #count: FunnelCount;
  readonly #shipper: FrameShipper;
  readonly #pageGate = new Gate(pagesUnderWay);
  /** Pieces read at a time: few, so that the slots they use stay in the processor's cache. */
  readonly #readGate: Gate;
  readonly #tasks = new Set<Promise<void>>();
  readonly #recent = new RecentPages(recentPages);
  /** Blocks sent whole at the receiver's request: each once. */
  readonly #repeated: PagedBits;
  readonly #patches: Patches;
  /** Share of the last pages that differed, as a moving average: while most do, block digests are asked ahead of reading. */
  #differing = 0;
  /** First failure of a task. */
  #failed: { readonly error: unknown } | undefined;

  constructor(options: ScanOptions) {
    this.#o = options;
    const { empty, baseBytes } = options;
    this.#geometry = options.memory.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
    this.#repeated = new PagedBits(blockCount(this.#geometry));
    this.#readGate = new Gate(options.lanes.count * piecesPerLane);
    this.#count = new FunnelCount(options.funnel, options.memory);
    this.#shipper = new FrameShipper({ ...options, geometry: this.#geometry, count: this.#count });
    this.#patches = new Patches({
      ...options,
      geometry: this.#geometry,
      shipper: this.#shipper,
      track: (task) => this.#track(task),
      check: () => {
        this.#check();
      },
      settle: (work) => {
        this.#settle(work, 1);
      },
    });
    this.#base = new BaseTable(options.session, this.#geometry, { empty, sizeBytes: baseBytes });
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
      await this.#patches.flush();
      await this.#drain();
    } finally {
      // Nothing may touch slots or the image after this returned, whatever happened. Tasks may start others.
      while (this.#tasks.size > 0) await Promise.all([...this.#tasks]);
      while (memory.done.has(memory.nextPage)) memory.nextPage++;
    }
  }

  #check(): void {
    if (this.#failed !== undefined) throw this.#failed.error;
    this.#o.signal.throwIfAborted();
  }

  /** The promise returned never rejects. */
  #track(task: Promise<void>): Promise<void> {
    const tracked: Promise<void> = task
      .catch((error: unknown) => {
        this.#failed ??= { error };
      })
      .finally(() => {
        this.#tasks.delete(tracked);
      });
    this.#tasks.add(tracked);
    return tracked;
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
    // Batches wait for the receiver: who reads on meanwhile gathers the part digests of the whole disk.
    await this.#patches.room();
    await this.#pageGate.enter();
    void this.#track(
      this.#page(page, ranges, base ?? zeroPageDigest).finally(() => {
        this.#pageGate.leave();
      }),
    );
  }

  async #page(page: number, ranges: readonly BlockRange[], basePage: Uint8Array): Promise<void> {
    const { first, count } = pageBlocks(this.#geometry, page);
    const work: PageWork = { page, first, count, digests: new Uint8Array(count * this.#width), open: 1, cold: [] };
    const ahead = this.#differing > 0.5;
    let base: Uint8Array | "zero" | undefined;
    if (isZero(basePage)) base = "zero";
    else if (ahead) base = await this.#base.blocks(page);
    await this.#readAhead(work, ranges);
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
    this.#differing = this.#differing * 0.7 + (differs ? 0.3 : 0);
  }

  /** Before the first read of a page. */
  async #readAhead(work: PageWork, ranges: readonly BlockRange[]): Promise<void> {
    const runs = runsOfRanges(this.#o.reader, this.#geometry, ranges);
    if (runs.length === 0) return;
    const { cold } = await this.#o.lanes.run("readAhead", { runs });
    work.cold = cold.flatMap((index) => runs[index] ?? []);
  }

  /**
   * Reads ranges of a page: pieces of which something may be shipped at once in slots, as many in one as there is room for (a sparse image has its content
   * in many small ranges), the others 8 MiB together.
   */
  async #read(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const tasks: Promise<void>[] = [];
    const blocksMax = EXTENT_BYTES_MAX / this.#geometry.blockBytes;
    let together: PlacedPiece[] = [];
    const compare = (): void => {
      if (together.length > 0 && base !== "zero") tasks.push(this.#compareAll(work, together, base));
      together = [];
    };
    let group: BlockRange[] = [];
    let grouped = 0;
    const scan = (): void => {
      if (group.length > 0) tasks.push(this.#scanAll(work, group, base));
      group = [];
      grouped = 0;
    };
    for (const range of cutRanges(ranges, blocksMax)) {
      const { first, end } = range;
      const placed = base !== "zero" && !this.#hasZero(work, first, end, base) ? this.#placed(first, end) : undefined;
      if (placed !== undefined) {
        if (together.push(placed) === piecesTogether) compare();
        continue;
      }
      if (grouped + end - first > blocksMax) scan();
      group.push(range);
      grouped += end - first;
    }
    scan();
    compare();
    await settleAll(tasks);
  }

  /** Whether the receiver holds one of these blocks as zeros: then it may be new, and is shipped at once. */
  #hasZero(work: PageWork, first: number, end: number, base: Uint8Array | "unknown"): boolean {
    if (base === "unknown") return false;
    for (let block = first; block < end; block++) {
      const at = (block - work.first) * this.#width;
      if (base[at] === 0 && isZero(base.subarray(at, at + this.#width))) return true;
    }
    return false;
  }

  /** Undefined: only the reader can read it. */
  #placed(first: number, end: number): PlacedPiece | undefined {
    const { blockBytes, sizeBytes } = this.#geometry;
    const offset = first * blockBytes;
    const length = Math.min(end * blockBytes, sizeBytes) - offset;
    const runs = this.#o.reader.runs?.(offset, length);
    return runs === undefined ? undefined : { first, end, length, runs };
  }

  /** Digests pieces of a page in one job, and compares them. */
  async #compareAll(work: PageWork, pieces: readonly PlacedPiece[], base: Uint8Array | "unknown"): Promise<void> {
    const { lanes, name, funnel } = this.#o;
    const { blockBytes, digestKind } = this.#geometry;
    const width = this.#width;
    const placeOf = (block: number): number => (block - work.first) * width;
    await this.#readGate.enter();
    let result: CompareResult;
    try {
      this.#check();
      result = await lanes.run("compare", {
        file: name,
        pieces: pieces.map(({ runs, length }) => ({ runs, length })),
        base:
          base === "unknown"
            ? base
            : Buffer.concat(pieces.map(({ first, end }) => base.subarray(placeOf(first), placeOf(end)))),
        ...{ blockBytes, digestKind },
      });
    } finally {
      this.#readGate.leave();
    }
    const zeros: number[] = [];
    let index = 0;
    let partsEnd = 0;
    for (const { first, end, length } of pieces) {
      funnel.readBytes += length;
      work.digests.set(result.digests.subarray(index * width, (index + end - first) * width), placeOf(first));
      for (let block = first; block < end; block++, index++) {
        const state = result.states[index];
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs) {
          this.#patches.add(work, block, result.parts.subarray(partsEnd, partsEnd + this.#partBytes));
          partsEnd += this.#partBytes;
        }
      }
    }
    await this.#shipper.shipZeros(zeros, false);
  }

  /** Digests ranges of a page that fit a slot together, and ships what is new over zero. */
  async #scanAll(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const blocks = ranges.flatMap(({ first, end }) =>
      Array.from({ length: end - first }, (_unused, nth) => first + nth),
    );
    const placeOf = (block: number): number => (block - work.first) * this.#width;
    await this.#readGate.enter();
    let inGate = true;
    const leave = (): void => {
      if (inGate) this.#readGate.leave();
      inGate = false;
    };
    let slot: Slot | undefined;
    try {
      slot = await this.#o.pool.acquire(this.#o.signal);
      this.#check();
      // As late as can be: a page has 32 MiB of pieces, which would all still get the codec of a trial that is over.
      const pick = base === "unknown" ? undefined : this.#o.codec.next();
      const mine =
        typeof base === "string"
          ? base
          : Buffer.concat(ranges.map(({ first, end }) => base.subarray(placeOf(first), placeOf(end))));
      const result = await this.#scanBlocks(slot, ranges, mine, pick?.codec ?? "stored");
      leave();
      let index = 0;
      for (const { first, end } of ranges) {
        const digests = result.digests.subarray(index * this.#width, (index + end - first) * this.#width);
        work.digests.set(digests, placeOf(first));
        index += end - first;
      }
      const zeros: number[] = [];
      let parts = 0;
      for (const [nth, state] of result.states.entries()) {
        const block = blocks[nth] ?? 0;
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs) {
          this.#patches.add(work, block, result.parts.subarray(parts, parts + this.#partBytes));
          parts += this.#partBytes;
        }
      }
      if (result.shipment !== undefined && pick !== undefined) {
        const { shipment } = result;
        const shipped = shipment.picked.map((nth) => blocks[nth] ?? 0);
        await this.#shipper.ship(slot, { ...shipment, blocks: shipped }, { repeat: false, pick });
      }
      await this.#shipper.shipZeros(zeros, false);
    } finally {
      leave();
      slot?.release();
    }
  }

  /** Bytes of the part digests of one block. */
  get #partBytes(): number {
    return partsPerBlock(this.#geometry.blockBytes) * 4;
  }

  /** One scan job. */
  async #scanBlocks(
    slot: Slot,
    ranges: readonly BlockRange[],
    base: ScanRequest["base"],
    codec: CodecName,
  ): Promise<ScanResult> {
    const { lanes, reader, funnel } = this.#o;
    const { blockBytes, digestKind, sizeBytes } = this.#geometry;
    const pieces: ScanPiece[] = [];
    let at = areaA;
    for (const { first, end } of ranges) {
      const offset = first * blockBytes;
      const length = Math.min(end * blockBytes, sizeBytes) - offset;
      const runs = reader.runs?.(offset, length);
      if (runs === undefined) await reader.read(slot.bytes.subarray(at, at + length), offset);
      funnel.readBytes += length;
      pieces.push({ runs, length });
      at += (end - first) * blockBytes;
    }
    return await lanes.run("scan", {
      slot: slot.index,
      file: this.#o.name,
      pieces,
      base,
      codec,
      blockBytes,
      digestKind,
    });
  }

  /** A page that was digested first turned out to differ: its blocks that differ are looked at again, now with the receiver's digests. */
  async #compare(work: PageWork, base: Uint8Array): Promise<void> {
    const { zeros, ranges } = differences(work, base);
    await this.#shipper.shipZeros(zeros, false);
    await this.#read(work, ranges, base);
  }

  /** Blocks in holes that the receiver does not hold as zero. */
  async #clearHoles(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array): Promise<void> {
    const zeros = blocksOutside(work.first, work.count, ranges).filter((block) => {
      const at = (block - work.first) * this.#width;
      return !isZero(base.subarray(at, at + this.#width));
    });
    await this.#shipper.shipZeros(zeros, false);
  }

  #settle(work: PageWork, blocks: number): void {
    work.open -= blocks;
    if (work.open > 0) return;
    const { memory } = this.#o;
    memory.pages.set(work.page, pageDigest(work.digests));
    memory.done.add(work.page);
    this.#count.settle(work.page);
    this.#recent.set(work.page, work.digests);
    if (work.cold.length > 0) void this.#track(this.#o.lanes.run("letGo", { runs: work.cold }).then(() => undefined));
    this.#scanned(work.page);
  }

  #scanned(page: number): void {
    const { first, count } = pageBlocks(this.#geometry, page);
    const offset = first * this.#geometry.blockBytes;
    this.#o.funnel.scannedBytes += Math.min(count * this.#geometry.blockBytes, this.#geometry.sizeBytes - offset);
  }

  /** Sends blocks whole because the receiver asked for it; the new digest replaces the old one at both ends. */
  async repeat(blocks: readonly number[]): Promise<void> {
    const whole = fullMask(this.#geometry.blockBytes);
    for (const block of blocks) {
      if (block >= this.#repeated.size || !this.#repeated.add(block)) {
        throw new ReplicationError(
          "protocol-violation",
          `the receiver asks for block ${block} of disk ${this.#o.name} whole, which there is not, or a second time`,
        );
      }
      const slot = await this.#o.pool.acquire(this.#o.signal);
      try {
        const { digests } = await this.#scanBlocks(slot, [{ first: block, end: block + 1 }], "unknown", "stored");
        if (isZero(digests)) await this.#shipper.shipZeros([block], true);
        else await this.#shipper.packAndShip(slot, [block], whole, digests, { read: false, repeat: true });
        await this.#replaceDigest(block, digests);
      } finally {
        slot.release();
      }
    }
  }

  async #replaceDigest(block: number, digest: Uint8Array): Promise<void> {
    const page = Math.floor(block / blocksPerPage(this.#geometry.digestKind));
    const { first } = pageBlocks(this.#geometry, page);
    // The page may be under way still, or long forgotten: then its other digests are the receiver's, which the root covers all the same.
    const known = this.#recent.get(page);
    if (known === undefined && this.#o.session.committing) {
      throw new ReplicationError(
        "digest-mismatch",
        `block ${block} of ${this.#o.name} had to be sent again too late to be told in this session; comparing anew`,
      );
    }
    const digests = known ?? (await this.#base.blocks(page));
    digests.set(digest, (block - first) * this.#width);
    this.#o.memory.pages.set(page, pageDigest(digests));
  }
}

const zeroPageDigest = new Uint8Array(32);
