/**
 * The sender's scan: page by page through the disk, from a start and round to it again. A block goes one of four ways:
 * hole or equal → nothing · zero now → `zero` · new over zero → shipped at once · new over content → part digests asked, then patched.
 *
 * Everything is bounded: pages under way by a gate, block memory by the pool, frames by credit, requests by a gate.
 */
import { fullMask } from "../base/part-mask.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { Gate } from "../base/gate.ts";
import type { BufferPool } from "../base/buffer-pool.ts";
import { blocksPerPage, digestBytes, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { BlockReader } from "../image/block-device.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { pageDigest, type PageDigests } from "../table/digest-table.ts";
import { BaseTable } from "./base-table.ts";
import type { CodecChoice } from "./codec-choice.ts";
import { type BlockRange, blocksOutside, DataCursor } from "./data-cursor.ts";
import { KnownDelta } from "./known-delta.ts";
import { PageReader } from "./page-reader.ts";
import { differences, type PageWork, RecentPages } from "./page-work.ts";
import { Patches } from "./patches.ts";
import { FrameShipper } from "./frame-shipper.ts";
import { FunnelCount } from "./funnel-count.ts";
import type { RateLimit } from "./rate.ts";
import type { Funnel } from "./report.ts";
import type { ScanMemory } from "./scan-memory.ts";
import type { SenderSession } from "./sender-session.ts";
import type { SourceChanges } from "./source-changes.ts";

/** Pages, or groups of pages, under way: enough to keep lanes busy across the round trips of their questions. */
const pagesUnderWay = 4;
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
  readonly changes?: SourceChanges | undefined;
  /** Counts what {@link SourceChanges.audited} shows. */
  readonly audit: { bytes: number; missedBytes: number };
  /** What the image looked like at the state the receiver has. Undefined: not known, every block is looked at. */
  readonly known?: PageDigests | undefined;
  /** The receiver's table is all zero. */
  readonly empty: boolean;
  /** Size of the receiver's disk before this delta. */
  readonly baseBytes: number;
  readonly signal: AbortSignal;
}

export class Scan {
  readonly #o: ScanOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  readonly #base: BaseTable;
  readonly #count: FunnelCount;
  readonly #shipper: FrameShipper;
  readonly #pageGate = new Gate(pagesUnderWay);
  readonly #reader: PageReader;
  readonly #tasks = new Set<Promise<void>>();
  readonly #recent = new RecentPages(recentPages);
  readonly #patches: Patches;
  /** What changed is known. */
  readonly #known: KnownDelta | undefined;
  /** Share of the last pages that differed, as a moving average: while most do, block digests are asked ahead of reading. */
  #differing = 0;
  /** First failure of a task. */
  #failed: { readonly error: unknown } | undefined;

  constructor(options: ScanOptions) {
    this.#o = options;
    const { empty, baseBytes } = options;
    this.#geometry = options.memory.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
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
    this.#reader = new PageReader({
      ...options,
      geometry: this.#geometry,
      shipper: this.#shipper,
      patches: this.#patches,
      check: () => {
        this.#check();
      },
    });
    this.#base = new BaseTable(options.session, this.#geometry, { empty, sizeBytes: baseBytes });
    const { changes, known } = options;
    if (changes === undefined || known === undefined) return;
    this.#known = new KnownDelta({
      ...options,
      ...{ changes, known, base: this.#base, pages: this.#reader, shipper: this.#shipper },
      start: (task) => this.#start(task),
      settle: (work) => {
        this.#settle(work, 1);
      },
      passed: (page) => {
        this.#scanned(page);
      },
      needComplete: (why) => {
        this.#needComplete(why);
      },
    });
  }

  /** Looks at every block once. Resolves when all that had to be sent was taken by the sockets. */
  async run(): Promise<void> {
    const { memory, reader, funnel } = this.#o;
    const pages = pageCount(this.#geometry);
    const start = memory.nextPage < pages ? memory.nextPage : 0;
    funnel.allocatedBytes = 0;
    try {
      if (this.#o.known === undefined)
        this.#needComplete("the receiver does not have the state its changes are known from");
      else if (this.#geometry.blockBytes > (this.#o.changes?.grainBytes ?? 0))
        this.#needComplete("the receiver's blocks are larger than what was kept as it was");
      for (const [from, to] of [
        [start, pages],
        [0, start],
      ] as const) {
        if (from === to) continue;
        const fromBlock = from * blocksPerPage(this.#geometry.digestKind);
        const cursor = new DataCursor(reader, { blockBytes: this.#geometry.blockBytes, fromBlock });
        for (let page = from; page < to; page++) {
          this.#check();
          if (this.#known === undefined || !(this.#known.passes(page) || (await this.#known.visit(page)))) {
            const { first, count } = pageBlocks(this.#geometry, page);
            const before = cursor.dataBytes;
            const ranges = await cursor.ranges(first, first + count);
            funnel.allocatedBytes += cursor.dataBytes - before;
            await this.#visit(page, ranges);
          }
          if (page % pagesBetweenPauses === pagesBetweenPauses - 1) await this.#o.clock.sleep(0, this.#o.signal);
        }
        await cursor.close();
        // What is asked together ascends: pages from before the start do not follow those behind it.
        await this.#known?.flush();
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
    await this.#start(() => this.#page(page, ranges, base ?? zeroPageDigest));
  }

  /** Runs a task that reads pages, as soon as there is room for it. */
  async #start(task: () => Promise<void>): Promise<void> {
    // Batches wait for the receiver: who reads on meanwhile gathers the part digests of the whole disk.
    await this.#patches.room();
    await this.#pageGate.enter();
    void this.#track(
      task().finally(() => {
        this.#pageGate.leave();
      }),
    );
  }

  #needComplete(why: string): void {
    const { changes, name } = this.#o;
    if (changes === undefined || changes.complete) return;
    changes.needsAll?.();
    throw new ReplicationError(
      "base-mismatch",
      `${name}: ${why}. More of it must be read than the blocks that are known to have changed: make another cut, of all of it`,
    );
  }

  async #page(page: number, ranges: readonly BlockRange[], basePage: Uint8Array): Promise<void> {
    const { first, count } = pageBlocks(this.#geometry, page);
    const work: PageWork = { page, first, count, digests: new Uint8Array(count * this.#width), open: 1, cold: [] };
    const ahead = this.#differing > 0.5;
    let base: Uint8Array | "zero" | undefined;
    if (isZero(basePage)) base = "zero";
    else if (ahead) base = await this.#base.blocks(page);
    await this.#reader.readAhead([{ work, ranges }]);
    await this.#reader.read([{ work, ranges, base: base ?? "unknown" }]);
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

  /** A page that was digested first turned out to differ: its blocks that differ are looked at again, now with the receiver's digests. */
  async #compare(work: PageWork, base: Uint8Array): Promise<void> {
    const { zeros, ranges } = differences(work, base);
    await this.#shipper.shipZeros(zeros, false);
    await this.#reader.read([{ work, ranges, base }]);
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

  /** Sends blocks of the disk whole because the receiver asked for it, each once; the new digest replaces the old one at both ends. */
  async repeat(blocks: readonly number[]): Promise<void> {
    const whole = fullMask(this.#geometry.blockBytes);
    for (const block of blocks) {
      const slot = await this.#o.pool.acquire(this.#o.signal);
      try {
        const { digests } = await this.#reader.scanBlocks(
          slot,
          [{ first: block, end: block + 1 }],
          "unknown",
          "stored",
        );
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
