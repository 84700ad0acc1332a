/**
 * What a journal knows, in memory: bits of the epoch that is open and of the one that was cut, hot regions, pages of the file that are not up to
 * date. Synchronous; no file.
 *
 * The rule everything rests on: **a bit that is set here is durable, or its region is hot.** So a write needs nothing when every region it touches is hot or
 * has its bits set, whatever epoch set them: in the file there is only the union of both epochs.
 */
import { invariant } from "../../base/errors.ts";
import { type BlockRange, DirtyBitmap, type DiskBlocks } from "../dirty-bitmap.ts";
import { type LogRecord, regionBitBytes } from "./batch.ts";
import { PAGE_BIT_BYTES, PAGE_BLOCKS, REGION_BYTES } from "./format.ts";

/** Of more regions than this (or half of the hot ones) a range is named as one, and makes none hot. */
export const RANGE_REGIONS = 16;
/** Ranges in one batch. */
const batchRangesMax = 64;

/** A range of bytes that is about to be written to. */
export interface Marked {
  readonly offset: number;
  readonly length: number;
}

export interface StateStart extends DiskBlocks {
  readonly hotMax: number;
  readonly bits: DirtyBitmap;
  readonly changedPages: Iterable<number>;
  readonly epoch: number;
  readonly base: number;
  readonly pending: number;
}

export class JournalState {
  readonly hotMax: number;
  /** Changes. */
  active: DirtyBitmap;
  /** Of the epoch that was cut, until it is retired or merged back. */
  frozen: DirtyBitmap | undefined;
  epoch: number;
  base: number;
  pending: number;
  /** Pages of the file that lack bits, or have too many. */
  readonly changed = new Set<number>();
  /** The longest not written to comes first. */
  readonly #hot = new Set<number>();
  #lastHot = -1;
  readonly #rangeRegions: number;

  constructor(start: StateStart) {
    invariant(start.hotMax >= 2, "there is a region to heat and one to cool");
    this.hotMax = start.hotMax;
    this.#rangeRegions = Math.min(RANGE_REGIONS, Math.floor(start.hotMax / 2));
    this.active = start.bits;
    this.epoch = start.epoch;
    this.base = start.base;
    this.pending = start.pending;
    for (const page of start.changedPages) this.changed.add(page);
  }

  get hot(): ReadonlySet<number> {
    return this.#hot;
  }

  /** Sets the bits of a range that needs nothing durable; false: it does, and nothing was changed. */
  tryMark({ offset, length }: Marked): boolean {
    const first = Math.floor(offset / REGION_BYTES);
    const last = Math.floor((offset + length - 1) / REGION_BYTES);
    if (first === last && first === this.#lastHot) {
      this.setActive(offset, length);
      return true;
    }
    if (last - first >= this.#rangeRegions) {
      if (!this.active.covers(offset, length)) return false;
      return true;
    }
    for (let region = first; region <= last; region++) {
      if (!this.#hot.has(region) && !this.#hasAll(partIn(region, offset, length))) return false;
    }
    for (let region = first; region <= last; region++) this.#touch(region);
    this.setActive(offset, length);
    return true;
  }

  /**
   * Records for marks, as many from the first on as fit a batch, and `taken` of them. When the batch is durable: {@link JournalState.committed}.
   * Regions that are to cool are cold from now on: the file has them hot, or has their bits.
   */
  compose(marks: readonly Marked[]): { readonly records: LogRecord[]; readonly taken: number } {
    const records: LogRecord[] = [];
    const heat = new Set<number>();
    /** Regions the marks need hot, as they are already or become. */
    const needed = new Set<number>();
    let ranges = 0;
    let taken = 0;
    for (const { offset, length } of marks) {
      const first = Math.floor(offset / REGION_BYTES);
      const last = Math.floor((offset + length - 1) / REGION_BYTES);
      if (last - first >= this.#rangeRegions) {
        if (++ranges > batchRangesMax) break;
        records.push({ kind: "range", blocks: this.active.blocksOf(offset, length) });
      } else {
        // At most half of them: so there are always enough others to cool.
        if (needed.size + last - first + 1 > this.hotMax / 2) break;
        for (let region = first; region <= last; region++) {
          if (this.#hot.has(region)) needed.add(region);
          else if (!this.#hasAll(partIn(region, offset, length))) {
            needed.add(region);
            heat.add(region);
          }
        }
      }
      taken++;
    }
    const tooMany = this.#hot.size + heat.size - this.hotMax;
    const cooling = [...this.#hot].filter((region) => !needed.has(region)).slice(0, Math.max(0, tooMany));
    for (const region of cooling) {
      records.push({ kind: "cool", region, bits: this.#regionBits(region) });
      this.#hot.delete(region);
      if (this.#lastHot === region) this.#lastHot = -1;
    }
    for (const region of heat) records.push({ kind: "hot", region });
    return { records, taken };
  }

  /** The records are durable; the marks they were made for get their bits. */
  committed(records: readonly LogRecord[], marks: readonly Marked[]): void {
    for (const record of records) if (record.kind === "hot") this.#hot.add(record.region);
    for (const { offset, length } of marks) this.setActive(offset, length);
  }

  setActive(offset: number, length: number): void {
    const range = this.active.blocksOf(offset, length);
    if (range.count === 1) {
      if (this.active.set(range.first) && this.frozen?.has(range.first) !== true) this.#changePages(range);
    } else if (!this.active.covers(offset, length)) {
      this.active.setRange(range);
      this.#changePages(range);
    }
  }

  /** The open epoch is closed and the next begun; its bits, which do not change any more. */
  flip(): DirtyBitmap {
    invariant(this.frozen === undefined, "a cycle is retired or merged back before the next is cut");
    const frozen = this.active.freeze();
    this.frozen = frozen;
    this.active = new DirtyBitmap(frozen);
    this.pending = this.epoch++;
    return frozen;
  }

  /** The frozen bits are dropped, or were merged back long since and stay. */
  retire(): void {
    this.base = this.pending;
    this.pending = 0;
    for (const range of this.frozen?.ranges() ?? []) this.#changePages(range);
    this.frozen = undefined;
  }

  /** In the file nothing changes: it has the union. */
  mergeBack(): void {
    if (this.frozen !== undefined) this.active.or(this.frozen);
    this.frozen = undefined;
  }

  /** Everything is dirty, and nothing is known of what a receiver has. */
  loseTrack(): void {
    this.mergeBack();
    this.active.setAll();
    this.base = 0;
    this.pending = 0;
  }

  /** Only for a disk nobody writes to any more: in the file the bits stand for themselves. */
  coolAll(): void {
    this.#hot.clear();
    this.#lastHot = -1;
  }

  /** All of the file lacks what is known. */
  changeAll(): void {
    this.#changePages({ first: 0, count: this.active.blocks });
  }

  resize(sizeBytes: number): void {
    const before = this.active.blocks;
    this.active.resize(sizeBytes);
    const { blocks } = this.active;
    const first = Math.max(0, Math.min(before, blocks) - 1);
    this.#changePages({ first, count: blocks - first });
    const pages = Math.ceil(blocks / PAGE_BLOCKS);
    for (const page of this.changed) if (page >= pages) this.changed.delete(page);
    for (const region of this.#hot) if (region * REGION_BYTES >= sizeBytes) this.#hot.delete(region);
    this.#lastHot = -1;
  }

  /** The bits of a page of the file: of both epochs. */
  fillPage(page: number, bits: Uint8Array): void {
    this.active.readBits(bits, page * PAGE_BIT_BYTES);
    if (this.frozen === undefined) return;
    const more = new Uint8Array(bits.length);
    this.frozen.readBits(more, page * PAGE_BIT_BYTES);
    for (let at = 0; at < bits.length; at++) bits[at] = (bits[at] ?? 0) | (more[at] ?? 0);
  }

  #hasAll({ offset, length }: Marked): boolean {
    if (this.active.covers(offset, length)) return true;
    const { frozen } = this;
    if (frozen === undefined) return false;
    const { first, count } = this.active.blocksOf(offset, length);
    for (let block = first; block < first + count; block++) {
      if (!this.active.has(block) && !frozen.has(block)) return false;
    }
    return true;
  }

  #touch(region: number): void {
    if (region === this.#lastHot || !this.#hot.delete(region)) return;
    this.#hot.add(region);
    this.#lastHot = region;
  }

  #regionBits(region: number): Uint8Array {
    const { blockBytes } = this.active;
    const bits = new Uint8Array(regionBitBytes(blockBytes));
    const first = (region * REGION_BYTES) / blockBytes;
    for (let block = 0; block < REGION_BYTES / blockBytes; block++) {
      if (this.active.has(first + block) || this.frozen?.has(first + block) === true) {
        bits[block >> 3] = (bits[block >> 3] ?? 0) | (1 << (block & 7));
      }
    }
    return bits;
  }

  #changePages({ first, count }: BlockRange): void {
    for (let page = Math.floor(first / PAGE_BLOCKS); page * PAGE_BLOCKS < first + count; page++) this.changed.add(page);
  }
}

/** What of a range lies in a region. */
function partIn(region: number, offset: number, length: number): Marked {
  const start = Math.max(offset, region * REGION_BYTES);
  return { offset: start, length: Math.min(offset + length, (region + 1) * REGION_BYTES) - start };
}
