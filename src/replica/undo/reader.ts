/**
 * Reads an undo log: an open one by its batches, taking in what is appended, a closed one through its footer. Newer entries are kept
 * packed in memory up to the next index run (at most {@link tailBytesDefault}); older ones are read by page. docs/formats.md, "Undo log".
 */
import { countParts } from "../../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { invariant, ReplicationError } from "../../base/errors.ts";
import { blocksPerPage, MIB, PART_BYTES } from "../../base/units.ts";
import {
  batchAt,
  damagedAt,
  isWritten,
  type KnownUndoFile,
  openUndoFile,
  reaches,
  readHeads,
  readLog,
  type Survey,
  surveyBatches,
  type UndoFile,
  type UndoStretch,
  walkBatches,
} from "./batches.ts";
import type { ClosedLog, UndoEntry, UndoHeader, UndoLogReader } from "./entry.ts";
import { EntryLists } from "./entry-list.ts";
import {
  type BatchHeader,
  batchKinds,
  decodeFooter,
  type Footer,
  type FooterRun,
  nextPage,
  seedAt,
  UNDO_PAGE_BYTES,
} from "./format.ts";
import {
  addStretch,
  readEntries,
  type Segment,
  type SegmentBounds,
  SegmentReader,
  type Visit,
  visitList,
} from "./segment.ts";

/** Entries behind the last index run, in memory; an index run of 65,536 entries ends them long before. */
const tailBytesDefault = 8 * MIB;

export interface UndoReaderOptions extends UndoFile {
  /** Fills exactly all of `raw` from exactly all of `packed`, or throws. */
  readonly decompressLz4: (packed: Uint8Array, raw: Uint8Array) => void;
  /** What the newer point's record says; undefined: the log is open. */
  readonly closed: ClosedLog | undefined;
  /** Index pages kept; default 2 MiB. For who has many logs open. */
  readonly cacheBytes?: number;
  /** For tests: bounds of the memory for entries that no index run holds. */
  readonly tailBytes?: number;
  readonly windowBytes?: number;
}

/** A reader that also tells what was healed. */
export interface UndoLogFile extends UndoLogReader {
  /** Damage of index runs and of the footer, as found so far. What they held was read from the batches: answers are whole. */
  readonly indexDamage: readonly UndoStretch[];
}

/**
 * Reads the header and the headers of batches, heads of the newest only, no contents. The descriptor stays the caller's and must
 * outlive the reader. A batch that is not wholly in the file yet is not there yet. Throws `store-damaged` naming file and offset,
 * `store-version-unsupported`.
 */
export function openUndoLogReader(options: UndoReaderOptions): UndoLogFile {
  return new LogReader(options, openUndoFile(options));
}

class LogReader implements UndoLogFile {
  readonly path: string;
  readonly header: UndoHeader;
  readonly closed: boolean;
  readonly damage: UndoStretch[] = [];
  readonly indexDamage: UndoStretch[] = [];
  readonly #file: KnownUndoFile;
  readonly #decompressLz4: UndoReaderOptions["decompressLz4"];
  #segmentReader: SegmentReader;
  readonly #segments: Segment[] = [];
  readonly #tail = new EntryLists();
  readonly #tailBytes: number;
  readonly #bounds: SegmentBounds;
  readonly #perPage: number;
  /** Where batches begin that no index run covers, and where those begin that are in `#tail`. */
  #indexedTo = UNDO_PAGE_BYTES;
  #tailFrom = UNDO_PAGE_BYTES;
  #end = UNDO_PAGE_BYTES;
  /** Entries of the batches from `#indexedTo` on, as their headers say. */
  #unindexed = 0;
  /** The last batch that was taken in; null: the walk did not come to its end, and what was taken in is void. */
  #last: BatchHeader | undefined | null;
  #sizeBytes: number;
  /** Where an open log was found to end, and how far the file was searched for a later batch. */
  #searched: { readonly end: number; readonly to: number } | undefined;

  constructor(
    { closed, decompressLz4, tailBytes = tailBytesDefault, windowBytes, cacheBytes }: UndoReaderOptions,
    file: KnownUndoFile,
  ) {
    this.path = file.path;
    this.header = file.header;
    this.closed = closed !== undefined;
    this.#file = file;
    this.#decompressLz4 = decompressLz4;
    this.#bounds = { windowBytes, cacheBytes };
    this.#segmentReader = new SegmentReader(file, this, this.#bounds);
    this.#tailBytes = tailBytes;
    this.#perPage = blocksPerPage(file.header.digestKind);
    this.#sizeBytes = closed?.sizeBytes ?? UNDO_PAGE_BYTES;
    if (closed === undefined) this.#advance(undefined);
    else this.#openClosed(closed);
    for (const stretch of closed?.damage ?? []) addStretch(this.damage, stretch);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  refresh(): boolean {
    if (this.closed) return false;
    if (this.#isVoid()) return this.#startAnew();
    const before = this.#end;
    if (this.#searched?.end === before && batchAt(this.#file, before) === undefined) {
      // Torn as it was, and nothing was written behind it.
      if (!reaches(this.#file, this.#searched.to)) return false;
    }
    return this.#advance(undefined);
  }

  entries(first: number, count: number): readonly UndoEntry[] {
    const low = first - (first % this.#perPage);
    invariant(count >= 1 && first + count <= low + this.#perPage, "entries are asked for within one table page");
    const found: UndoEntry[] = [];
    const visit: Visit = (list, index) => {
      if (list.block(index) + list.run(index) > first) found.push(list.entry(index));
      return false;
    };
    for (const segment of this.#segments) {
      const before = found.length;
      this.#segmentReader.visit(segment, low, first + count, visit, () => {
        found.length = before;
      });
    }
    for (const list of this.#tail.lists) visitList(list, low, first + count, visit);
    // Stable: of one block, the order is that of the log.
    return found.sort((a, b) => a.block - b.block);
  }

  nextBlock(block: number): number | undefined {
    const low = block - (block % this.#perPage);
    let best = Number.POSITIVE_INFINITY;
    let candidate = best;
    const visit: Visit = (list, index) => {
      const start = list.block(index);
      if (start + list.run(index) <= block) return false;
      candidate = Math.max(start, block);
      return true;
    };
    for (const segment of this.#segments) {
      if (best === block) break;
      candidate = best;
      // Nothing to take back: the first entry that counts ends the visit.
      this.#segmentReader.visit(segment, low, best, visit, () => undefined);
      best = Math.min(best, candidate);
    }
    for (const list of this.#tail.lists) {
      if (visitList(list, low, best, visit)) best = Math.min(best, candidate);
    }
    return best === Number.POSITIVE_INFINITY ? undefined : best;
  }

  readContent(entry: UndoEntry, target: Uint8Array): void {
    invariant(
      target.length === countParts(entry.mask) * PART_BYTES,
      "content is read into room for the parts of its mask",
    );
    if (entry.zero || target.length === 0) {
      target.fill(0);
      return;
    }
    const packed = entry.codec === "lz4";
    const room = packed ? target.length - 1 : target.length;
    invariant(entry.contentBytes <= room, "an entry's content is no longer than its parts");
    const stored = packed ? new Uint8Array(entry.contentBytes) : target;
    const count = readLog(this.#file, stored, entry.contentOffset);
    const where = `content of block ${entry.block}`;
    if (count < stored.length) {
      throw damagedAt(this.path, entry.contentOffset, `the file ends within the ${where}`);
    }
    if (crc32(stored, seedAt(this.header.id, entry.block)) !== entry.contentChecksum) {
      throw damagedAt(this.path, entry.contentOffset, `the checksum of the ${where} does not match`);
    }
    if (!packed) return;
    try {
      this.#decompressLz4(stored, target);
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      throw damagedAt(this.path, entry.contentOffset, `the ${where} cannot be decompressed`, error);
    }
  }

  /** Through the footer; where that cannot be read, and everything before it is there, through the batches. */
  #openClosed(closed: ClosedLog): void {
    const { footerOffset } = closed;
    if (!(footerOffset >= UNDO_PAGE_BYTES && closed.sizeBytes > footerOffset)) {
      throw damagedAt(this.path, footerOffset, "the newer point's record gives a footer and a length that cannot be");
    }
    const footer = this.#readFooter(closed);
    if (footer === undefined) {
      const held = footerOffset === UNDO_PAGE_BYTES || reaches(this.#file, footerOffset - 1);
      if (!held) {
        throw damagedAt(this.path, footerOffset, "it is shorter than when it was closed");
      }
      addStretch(this.indexDamage, { offset: footerOffset, length: closed.sizeBytes - footerOffset });
    } else {
      for (const run of footer.runs) this.#takeFooterRun(run);
    }
    this.#advance(footerOffset);
  }

  #readFooter(closed: ClosedLog): Footer | undefined {
    const { footerOffset, footerChecksum, sizeBytes } = closed;
    const batch = batchAt(this.#file, footerOffset);
    if (batch?.kind !== batchKinds.footer || batch.end !== sizeBytes) return undefined;
    if (batch.bodyChecksum !== footerChecksum || !isWritten(this.#file, batch)) return undefined;
    const heads = readHeads(this.#file, batch);
    return heads === undefined ? undefined : decodeFooter(heads, footerOffset);
  }

  /** A run that is not what the footer says is replaced by its batches. */
  #takeFooterRun({ offset, pages, count }: FooterRun): void {
    const batch = batchAt(this.#file, offset);
    const fits =
      batch?.kind === batchKinds.index && batch.count === count && batch.contentBytes === pages * UNDO_PAGE_BYTES;
    const end = nextPage(offset + UNDO_PAGE_BYTES * pages + 64 + 8 * pages);
    if (!fits) addStretch(this.indexDamage, { offset, length: end - offset });
    this.#pushSegment(offset, fits ? batch : undefined);
    this.#startTail(end);
    this.#end = end;
  }

  /** Whether the log was cut since, and perhaps written on: recovery after the writer was killed. */
  #isVoid(): boolean {
    const last = this.#last;
    if (last === undefined || last === null) return last === null;
    const found = batchAt(this.#file, last.offset);
    return found?.bodyChecksum !== last.bodyChecksum || found.durable !== last.durable || found.end !== last.end;
  }

  #startAnew(): boolean {
    this.#segments.length = 0;
    this.#segmentReader = new SegmentReader(this.#file, this, this.#bounds);
    this.damage.length = 0;
    this.#startTail(UNDO_PAGE_BYTES);
    this.#end = UNDO_PAGE_BYTES;
    this.#last = undefined;
    this.#advance(undefined);
    return true;
  }

  /** Takes in the batches from `#end` on. True: there were some, or damage. `closedAt`: see surveyBatches. */
  #advance(closedAt: number | undefined): boolean {
    const from = this.#end;
    let beforeTail = this.#last ?? undefined;
    let last = beforeTail;
    let entries = 0;
    this.#last = null;
    const survey = surveyBatches(this.#file, from, closedAt, (batch) => {
      last = batch;
      if (batch.kind === batchKinds.entries) entries += batch.count;
      if (batch.kind !== batchKinds.index) return;
      this.#takeRun(batch, this.#unindexed + entries);
      entries = 0;
      beforeTail = batch;
    });
    for (const gap of survey.gaps) addStretch(this.damage, gap);
    const torn = this.#loadTail(Math.max(from, this.#tailFrom), survey, closedAt !== undefined);
    this.#end = torn?.offset ?? survey.end;
    this.#last = torn === undefined ? last : (torn.before ?? beforeTail);
    if (closedAt === undefined) this.#sizeBytes = this.#end;
    const { searchedTo } = survey;
    this.#searched = searchedTo === undefined || torn !== undefined ? undefined : { end: this.#end, to: searchedTo };
    return this.#end > from;
  }

  /** An index run closes the segment it covers. One that lists less than the `entries` of its batches is not believed. */
  #takeRun(batch: BatchHeader, entries: number): void {
    // Parts of the segment that did not fit the tail.
    while ((this.#segments.at(-1)?.to ?? 0) > this.#indexedTo) this.#segments.pop();
    const whole = batch.count >= entries;
    if (!whole) addStretch(this.indexDamage, { offset: batch.offset, length: batch.end - batch.offset });
    this.#pushSegment(batch.offset, whole ? batch : undefined);
    this.#startTail(batch.end);
  }

  #pushSegment(to: number, run: BatchHeader | undefined): void {
    const segment: Segment = { from: this.#indexedTo, to, run, lastBlock: undefined };
    if (run !== undefined && !this.#segmentReader.hasGoodFences(segment)) segment.run = undefined;
    this.#segments.push(segment);
  }

  #startTail(from: number): void {
    this.#indexedTo = from;
    this.#tailFrom = from;
    this.#unindexed = 0;
    this.#tail.clear();
  }

  /** Keeps the entries of the batches from `from` on. Returns where the log ends before the survey's end, if it does. */
  #loadTail(from: number, survey: Survey, closed: boolean): Torn | undefined {
    let before: BatchHeader | undefined;
    let torn: Torn | undefined;
    walkBatches(this.#file, { from, end: survey.end, gaps: survey.gaps }, (batch) => {
      const list = batch.kind === batchKinds.entries ? readEntries(this.#file, batch) : undefined;
      if (list !== undefined) {
        this.#tail.add(list);
        if (this.#tail.byteLength > this.#tailBytes) this.#spillTail(batch.end);
      } else if (batch.kind === batchKinds.entries) {
        if (!closed && batch.offset >= survey.durable) {
          torn = { offset: batch.offset, before };
          return false;
        }
        addStretch(this.damage, { offset: batch.offset, length: batch.end - batch.offset });
      }
      if (batch.kind === batchKinds.entries) this.#unindexed += batch.count;
      before = batch;
      return true;
    });
    return torn;
  }

  /** Leaves the entries of the tail to be scanned for. */
  #spillTail(to: number): void {
    this.#segments.push({ from: this.#tailFrom, to, run: undefined, lastBlock: undefined });
    this.#tailFrom = to;
    this.#tail.clear();
  }
}

/** Where a log ends although a header was found there, and the batch before it. */
interface Torn {
  readonly offset: number;
  readonly before: BatchHeader | undefined;
}
