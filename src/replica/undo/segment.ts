/**
 * A segment of a log, the batches from one index run to the next, looked up by block: through its index run where that is good, else by
 * scanning the heads of its batches for a window of blocks. Memory is bounded by the caches of {@link SegmentReader}.
 */
import { blocksPerPage, MIB } from "../../base/units.ts";
import {
  damagedAt,
  type KnownUndoFile,
  readHeads,
  readLog,
  surveyBatches,
  type UndoStretch,
  walkBatches,
} from "./batches.ts";
import { type EntryList, EntryLists, packHeads, sortedList } from "./entry-list.ts";
import { type BatchHeader, batchKinds, UNDO_PAGE_BYTES } from "./format.ts";
import { decodeFences, decodeIndexPage } from "./index-run.ts";
import { ByteLru } from "./lru.ts";

export interface Segment {
  /** Batches of these offsets. */
  readonly from: number;
  readonly to: number;
  /** Of the index run; undefined: there is none, or it is damaged. */
  run: BatchHeader | undefined;
  /** First block of the last entry, once it is known. */
  lastBlock: number | undefined;
}

/** Gets entry `index` of `list`; true to stop. */
export type Visit = (list: EntryList, index: number) => boolean;

/** Entries of a segment for the blocks from `from` to `to - 1`. */
interface Window {
  readonly from: number;
  readonly to: number;
  readonly list: EntryList;
}

const pageCacheBytesDefault = 2 * MIB;
const fenceCacheBytes = 2 * MIB;
const windowCacheBytes = 12 * MIB;
/** Entries scanned at a time; a run of 65,536 entries takes less. */
const windowBytesDefault = 6 * MIB;
/** Of one table page: every part of every block on its own would take less. */
const tablePageBytesMax = 64 * MIB;

export interface SegmentBounds {
  /** Entries scanned at a time; for tests. */
  readonly windowBytes?: number | undefined;
  /** Index pages kept; default 2 MiB. */
  readonly cacheBytes?: number | undefined;
}

export class SegmentReader {
  readonly #file: KnownUndoFile;
  readonly #pages: ByteLru<number, EntryList>;
  readonly #fences = new ByteLru<Segment, Float64Array>(fenceCacheBytes);
  readonly #windows = new ByteLru<Segment, Window>(windowCacheBytes);
  readonly #windowBytes: number;
  readonly #damage: UndoStretch[];
  readonly #indexDamage: UndoStretch[];

  /** What cannot be read is added to the two lists. */
  constructor(
    file: KnownUndoFile,
    found: { readonly damage: UndoStretch[]; readonly indexDamage: UndoStretch[] },
    { windowBytes = windowBytesDefault, cacheBytes = pageCacheBytesDefault }: SegmentBounds = {},
  ) {
    this.#pages = new ByteLru(cacheBytes);
    this.#file = file;
    this.#damage = found.damage;
    this.#indexDamage = found.indexDamage;
    this.#windowBytes = windowBytes;
  }

  /** Whether the heads of an index run are good; keeps them for a while. */
  hasGoodFences(segment: Segment): boolean {
    return this.#fencesOf(segment) !== undefined;
  }

  /**
   * Visits entries whose first block is from `low` to `high - 1`, in order. `low` begins a table page. `restart` is called when what
   * was visited is void, because the index turned out to be damaged, and visiting begins anew.
   */
  visit(segment: Segment, low: number, high: number, visit: Visit, restart: () => void): void {
    if (segment.run !== undefined) {
      if (this.#visitIndex(segment, low, high, visit)) return;
      segment.run = undefined;
      segment.lastBlock = undefined;
      restart();
    }
    for (let at = low; at < high; ) {
      const window = this.#window(segment, at);
      if (visitList(window.list, at, high, visit)) return;
      at = window.to;
    }
  }

  /** False: the index is damaged, which is then on record. */
  #visitIndex(segment: Segment, low: number, high: number, visit: Visit): boolean {
    const { run } = segment;
    if (run === undefined) return false;
    if (segment.lastBlock !== undefined && low > segment.lastBlock) return true;
    const fences = this.#fencesOf(segment);
    if (fences === undefined) return false;
    for (let page = pageBefore(fences, low); page < fences.length && (fences[page] ?? 0) < high; page++) {
      const list = this.#page(run, fences, page);
      if (list === undefined) return false;
      if (page === fences.length - 1) segment.lastBlock = list.block(list.count - 1);
      if (visitList(list, low, high, visit)) return true;
    }
    return true;
  }

  #fencesOf(segment: Segment): Float64Array | undefined {
    const { run } = segment;
    const kept = this.#fences.get(segment);
    if (kept !== undefined || run === undefined) return kept;
    const heads = readHeads(this.#file, run);
    const fences = heads === undefined ? undefined : decodeFences(heads);
    if (fences === undefined) addStretch(this.#indexDamage, { offset: run.offset, length: run.end - run.offset });
    else this.#fences.set(segment, fences, fences.byteLength);
    return fences;
  }

  #page(run: BatchHeader, fences: Float64Array, page: number): EntryList | undefined {
    const offset = run.contentStart + page * UNDO_PAGE_BYTES;
    const kept = this.#pages.get(offset);
    if (kept !== undefined) return kept;
    const bytes = new Uint8Array(UNDO_PAGE_BYTES);
    const count = readLog(this.#file, bytes, offset);
    const list = count < bytes.length ? undefined : decodeIndexPage(bytes, run, fences, page, this.#file.header);
    if (list === undefined) addStretch(this.#indexDamage, { offset, length: UNDO_PAGE_BYTES });
    else this.#pages.set(offset, list, UNDO_PAGE_BYTES);
    return list;
  }

  #window(segment: Segment, block: number): Window {
    const kept = this.#windows.get(segment);
    if (kept !== undefined && kept.from <= block && block < kept.to) return kept;
    const window = this.#scan(segment, block);
    this.#windows.set(segment, window, window.list.byteLength);
    return window;
  }

  /** Scans the heads of a segment for entries from `block`, the first of a table page, on: as many table pages as fit a window. */
  #scan(segment: Segment, block: number): Window {
    const { header } = this.#file;
    const perPage = blocksPerPage(header.digestKind);
    const lists = new EntryLists();
    let end = Number.POSITIVE_INFINITY;
    const survey = surveyBatches(this.#file, segment.from, segment.to, () => undefined);
    for (const gap of survey.gaps) addStretch(this.#damage, gap);
    walkBatches(this.#file, { from: segment.from, end: segment.to, gaps: survey.gaps }, (batch) => {
      if (batch.kind !== batchKinds.entries) return true;
      const list = readEntries(this.#file, batch);
      if (list === undefined) addStretch(this.#damage, { offset: batch.offset, length: batch.end - batch.offset });
      else lists.add(list.slice(list.lowerBound(block), list.lowerBound(end)));
      if (lists.byteLength <= this.#windowBytes) return true;
      const all = lists.joined(header);
      const middle = all.block(all.count >>> 1);
      end = Math.min(end, Math.max(block + perPage, middle - (middle % perPage)));
      const kept = all.slice(0, all.lowerBound(end));
      if (kept.byteLength > tablePageBytesMax) {
        throw damagedAt(this.#file.path, batch.offset, `blocks ${block} to ${end - 1} have more entries than can be`);
      }
      lists.clear();
      lists.add(kept);
      return true;
    });
    return { from: block, to: end, list: lists.joined(header) };
  }
}

/** The entries of a batch, sorted; undefined: damaged. */
export function readEntries(file: KnownUndoFile, batch: BatchHeader): EntryList | undefined {
  const heads = readHeads(file, batch);
  const packed = heads === undefined ? undefined : packHeads(batch, heads, file.header);
  return packed === undefined ? undefined : sortedList(packed, file.header);
}

/** True: stopped. */
export function visitList(list: EntryList, low: number, high: number, visit: Visit): boolean {
  for (let index = list.lowerBound(low); index < list.count && list.block(index) < high; index++) {
    if (visit(list, index)) return true;
  }
  return false;
}

/** Adds a stretch once. */
export function addStretch(stretches: UndoStretch[], stretch: UndoStretch): void {
  if (stretches.every((known) => known.offset !== stretch.offset)) stretches.push(stretch);
}

/** The last page whose first block lies before `block`, where entries of `block` may begin; 0: none does. */
function pageBefore(fences: Float64Array, block: number): number {
  let low = 0;
  let high = fences.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((fences[middle] ?? 0) < block) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}
