/**
 * A delta of which the changes are known: of a page that the receiver has as it was sent only blocks that may have changed are looked at. Such pages are taken many at a
 * time: dirt that is scattered over a large disk has few blocks in each, and a question and a job for every page would cost more than the blocks.
 */
import { ownCopy } from "../base/copy-bytes.ts";
import { ReplicationError } from "../base/errors.ts";
import { blockLength, blocksPerPage, digestBytes, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { BlockReader } from "../image/block-device.ts";
import { pageDigest, type PageDigests } from "../table/digest-table.ts";
import type { DirtyBits } from "../track/dirty-bitmap.ts";
import type { BaseTable } from "./base-table.ts";
import { type BlockRange, blocksIn, blocksOutside, rangesOf } from "./data-cursor.ts";
import type { FrameShipper } from "./frame-shipper.ts";
import type { PageReader, PageRead } from "./page-reader.ts";
import type { PageWork } from "./page-work.ts";
import type { Funnel } from "./report.ts";
import { baseBlocksMax, type ScanMemory } from "./scan-memory.ts";
import { dirtyRanges, joinRanges, type SourceChanges } from "./source-changes.ts";

/** Pages of one question: half a MiB of digests. */
const pagesTogether = 128;
/** Blocks to look at after which a group has enough: a page of which every block is dirty is one. */
const blocksTogether = 512;

export interface KnownDeltaOptions {
  readonly changes: SourceChanges;
  /** What the image looked like at the state the receiver has. */
  readonly known: PageDigests;
  readonly base: BaseTable;
  readonly reader: BlockReader;
  /** Name of the image, for messages. */
  readonly name: string;
  readonly pages: PageReader;
  readonly shipper: FrameShipper;
  readonly memory: ScanMemory;
  readonly funnel: Funnel;
  /** Counts what {@link SourceChanges.audited} shows. */
  readonly audit: { bytes: number; missedBytes: number };
  /** Runs a task that reads pages, as soon as there is room for it. */
  readonly start: (task: () => Promise<void>) => Promise<void>;
  /** The scan of the page is over, but for blocks that were given to others. */
  readonly settle: (work: PageWork) => void;
  /** The page was passed without being read. */
  readonly passed: (page: number) => void;
  /** The page has to be looked at as a whole: throws when only dirty blocks can be read. */
  readonly needComplete: (why: string) => void;
}

/** A page, and which of its blocks to look at. */
interface TouchedPage {
  readonly page: number;
  /** The receiver's page digest. */
  readonly base: Uint8Array;
  readonly dirty: readonly BlockRange[];
  readonly audited: readonly BlockRange[];
}

export class KnownDelta {
  readonly #o: KnownDeltaOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  /** Pages from `from` and before `end` have no block to look at. */
  #untouched = { from: 0, end: 0 };
  #group: TouchedPage[] = [];
  #groupBlocks = 0;

  constructor(options: KnownDeltaOptions) {
    this.#o = options;
    this.#geometry = options.memory.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
  }

  /** True: nothing of the page can differ, which was seen without waiting for anything. */
  passes(page: number): boolean {
    if (page < this.#untouched.from || page >= this.#untouched.end) {
      this.#untouched = { from: page, end: this.#nextTouched(page) };
      if (this.#untouched.end === page) return false;
    }
    const was = this.#was(page);
    const base = this.#o.base.held(page);
    if (base === undefined || Buffer.compare(base, was) !== 0) return false;
    this.#pass(page, was);
    return true;
  }

  /** Takes on a page of which only dirty blocks can differ. False: it must be looked at as a whole. */
  async visit(page: number): Promise<boolean> {
    const { memory, changes, needComplete } = this.#o;
    const base = await this.#o.base.page(page);
    if (memory.done.has(page) && Buffer.compare(memory.pages.get(page), base) === 0) {
      this.#o.passed(page);
      return true;
    }
    const was = this.#was(page);
    const isAsItWas = Buffer.compare(base, was) === 0;
    const dirty = this.#rangesOf(changes.dirty, page);
    const touched = { page, base, dirty, audited: this.#rangesOf(changes.audited, page) };
    if (isAsItWas && dirty.length === 0 && touched.audited.length === 0) this.#pass(page, was);
    else if (isAsItWas) await this.#add(touched);
    else {
      const blocks = await this.#changedBlocks(touched);
      if (blocks === undefined) {
        needComplete(`the receiver has page ${page} of it in another state than the one that was sent`);
        return false;
      }
      await this.#o.start(() => this.#read([touched], [blocks]));
    }
    return true;
  }

  /** Starts what was gathered. */
  async flush(): Promise<void> {
    const group = this.#group;
    if (group.length === 0) return;
    this.#group = [];
    this.#groupBlocks = 0;
    await this.#o.start(async () => {
      await this.#read(group, await this.#blocksOf(group));
    });
  }

  async #add(touched: TouchedPage): Promise<void> {
    this.#group.push(touched);
    for (const { first, end } of [...touched.dirty, ...touched.audited]) this.#groupBlocks += end - first;
    if (this.#group.length === pagesTogether || this.#groupBlocks >= blocksTogether) await this.flush();
  }

  #pass(page: number, digest: Uint8Array): void {
    const { memory } = this.#o;
    memory.pages.set(page, digest);
    memory.done.add(page);
    this.#o.passed(page);
  }

  /** The first page at or behind `page` with a block to look at. */
  #nextTouched(page: number): number {
    const { changes } = this.#o;
    const { blockBytes, digestKind } = this.#geometry;
    const pageBytes = blocksPerPage(digestKind) * blockBytes;
    let found = Infinity;
    for (const bits of [changes.dirty, changes.audited]) {
      const run = bits?.next(Math.floor((page * pageBytes) / bits.blockBytes));
      if (bits === undefined || run === undefined) continue;
      found = Math.min(found, Math.max(page, Math.floor((run.first * bits.blockBytes) / pageBytes)));
    }
    return found;
  }

  #rangesOf(bits: DirtyBits | undefined, page: number): readonly BlockRange[] {
    if (bits === undefined) return [];
    const { first, count } = pageBlocks(this.#geometry, page);
    return dirtyRanges(bits, this.#geometry.blockBytes, first, first + count);
  }

  /** Of a disk that grew there is nothing behind its old end. */
  #was(page: number): Uint8Array {
    const { known } = this.#o;
    return page < pageCount(known.geometry) ? known.get(page) : zeroPageDigest;
  }

  /** The receiver's digests of pages. What one session left half done is known by them in the next. */
  async #blocksOf(pages: readonly TouchedPage[]): Promise<readonly Uint8Array[]> {
    const { memory, name } = this.#o;
    const asked = pages.filter(({ base }) => !isZero(base));
    const answers = await this.#o.base.blocksOf(asked.map(({ page }) => page));
    const byPage = new Map(asked.map(({ page }, nth) => [page, answers[nth]]));
    return pages.map(({ page, base }) => {
      const blocks = byPage.get(page) ?? new Uint8Array(pageBlocks(this.#geometry, page).count * this.#width);
      if (Buffer.compare(pageDigest(blocks), base) !== 0) {
        throw new ReplicationError(
          "digest-mismatch",
          `the receiver's digests of page ${page} of ${name} do not fit each other; comparing anew`,
        );
      }
      if (!memory.baseBlocks.has(page) && memory.baseBlocks.size < baseBlocksMax) memory.baseBlocks.set(page, blocks);
      return blocks;
    });
  }

  /** The receiver's digests of a page of which something was sent before, when only dirty blocks of it can differ from what they were. Undefined: others do. */
  async #changedBlocks(touched: TouchedPage): Promise<Uint8Array | undefined> {
    const { page, dirty } = touched;
    const before = this.#o.memory.baseBlocks.get(page);
    if (before === undefined) return undefined;
    const [now] = await this.#blocksOf([touched]);
    if (now === undefined) return undefined;
    const { first, count } = pageBlocks(this.#geometry, page);
    const same = blocksOutside(first, count, dirty).every((block) => {
      const [from, to] = [(block - first) * this.#width, (block - first + 1) * this.#width];
      return Buffer.compare(now.subarray(from, to), before.subarray(from, to)) === 0;
    });
    return same ? now : undefined;
  }

  /** Reads dirty and audited blocks of pages; the others have the digests of `bases`. */
  async #read(pages: readonly TouchedPage[], bases: readonly Uint8Array[]): Promise<void> {
    const works: PageWork[] = [];
    const reads: PageRead[] = [];
    const zeros: number[] = [];
    for (const [nth, { page, dirty, audited }] of pages.entries()) {
      const base = bases[nth] ?? zeroPageDigest;
      const { first, count } = pageBlocks(this.#geometry, page);
      const work: PageWork = { page, first, count, digests: ownCopy(base), open: 1, cold: [] };
      const looked = joinRanges(dirty, audited);
      const ranges = await this.#dataIn(looked);
      for (const range of looked) {
        for (const block of blocksOutside(range.first, range.end - range.first, ranges)) {
          const digest = work.digests.subarray((block - first) * this.#width, (block - first + 1) * this.#width);
          if (isZero(digest)) continue;
          digest.fill(0);
          zeros.push(block);
        }
      }
      works.push(work);
      if (isZero(base)) reads.push({ work, ranges, base: "zero" });
      else {
        const isDirty = new Set(blocksIn(dirty));
        const replaces = (block: number): boolean =>
          isDirty.has(block) &&
          !isZero(base.subarray((block - first) * this.#width, (block - first + 1) * this.#width));
        const blocks = blocksIn(ranges);
        const changed = rangesOf(blocks.filter(replaces));
        const rest = rangesOf(blocks.filter((block) => !replaces(block)));
        if (changed.length > 0) reads.push({ work, ranges: changed, base, changed: true });
        if (rest.length > 0) reads.push({ work, ranges: rest, base });
      }
    }
    await this.#o.pages.readAhead(reads);
    await this.#o.pages.read(reads);
    await this.#o.shipper.shipZeros(zeros, false);
    for (const [nth, work] of works.entries()) {
      const page = pages[nth];
      if (page !== undefined) this.#countAudit(work, bases[nth] ?? zeroPageDigest, page);
      this.#o.settle(work);
    }
  }

  #countAudit({ digests, first, count }: PageWork, base: Uint8Array, { audited, dirty }: TouchedPage): void {
    if (audited.length === 0) return;
    const { audit } = this.#o;
    const clean = new Set(blocksOutside(first, count, dirty));
    for (const range of audited) {
      for (let block = range.first; block < range.end; block++) {
        if (!clean.has(block)) continue;
        const [from, to] = [(block - first) * this.#width, (block - first + 1) * this.#width];
        const bytes = blockLength(this.#geometry, block);
        audit.bytes += bytes;
        if (Buffer.compare(digests.subarray(from, to), base.subarray(from, to)) !== 0) audit.missedBytes += bytes;
      }
    }
  }

  /** Of these ranges, the blocks with data. */
  async #dataIn(ranges: readonly BlockRange[]): Promise<readonly BlockRange[]> {
    const { reader, funnel } = this.#o;
    const { blockBytes, sizeBytes } = this.#geometry;
    const found: BlockRange[] = [];
    for (const { first, end } of ranges) {
      const offset = first * blockBytes;
      for await (const extent of reader.extents(offset, Math.min(end * blockBytes, sizeBytes) - offset)) {
        if (extent.kind !== "data") continue;
        funnel.allocatedBytes += extent.length;
        const from = Math.floor(extent.offset / blockBytes);
        const to = Math.ceil((extent.offset + extent.length) / blockBytes);
        const last = found.at(-1);
        if (last !== undefined && from <= last.end)
          found.splice(-1, 1, { first: last.first, end: Math.max(last.end, to) });
        else found.push({ first: from, end: to });
      }
    }
    return found;
  }
}

const zeroPageDigest = new Uint8Array(32);
