/**
 * What a journal's file says: header, pages, log; put together to the blocks that may have changed. Whether something is wrong with it is told in
 * words, never by an exception. Whether the image can have changed past it: belief.ts.
 *
 * A batch of the log that cannot be read is its torn end, when nothing was written behind it: batches are written one at a time, each when the one
 * before is durable. A good one behind it, a heartbeat that counted it, or one of a log that no header names, shows that something durable is gone: that
 * is damage.
 */
import { errnoOf } from "../../base/errors.ts";
import { MIB } from "../../base/units.ts";
import type { StorageFile } from "../../storage/seam.ts";
import { DirtyBitmap } from "../dirty-bitmap.ts";
import { type Scan, scan } from "../scan-reason.ts";
import { decodeBatch, type LogRecord } from "./batch.ts";
import {
  decodeHeader,
  decodeHeartbeat,
  type Heartbeat,
  decodePage,
  JOURNAL_PAGE_BYTES,
  JOURNAL_VERSION,
  type JournalHeader,
  type JournalPage,
  journalPlaces,
  pagesOf,
  PAGE_BIT_BYTES,
  PAGE_BLOCKS,
  REGION_BYTES,
} from "./format.ts";
import { PageDirectory } from "./page-directory.ts";

export interface LoadedJournal {
  /** The header in force, and where it lies. */
  readonly header: JournalHeader;
  readonly slot: number;
  /** With what the log added: see {@link JournalHeader}. */
  readonly epoch: number;
  readonly pending: number;
  /** Everything that may have changed since the base, in whatever epoch; hot regions are in it as a whole. */
  readonly bits: DirtyBitmap;
  readonly hot: ReadonlySet<number>;
  readonly directory: PageDirectory;
  /** Pages whose bits in the file are not those of `bits`, or beside which a newer one lies that no header names. */
  readonly changedPages: ReadonlySet<number>;
  /** Greater than or equal to that of everything in the file. */
  readonly generationMax: number;
  /** The newest of heartbeats and header; count 0: no heartbeat. */
  readonly heartbeatMillis: number;
  readonly heartbeatCount: number;
  readonly batches: number;
  readonly records: number;
  /** Nothing is lost by these: a torn batch at the log's end, a header that does not count. */
  readonly remarks: readonly string[];
}

/** `header`: of a journal that is not whole, as far as it can be believed. */
export type JournalReading =
  | { readonly loaded: LoadedJournal }
  | { readonly bad: Scan; readonly header?: JournalHeader };

/** Reads only. */
export async function readJournal(file: StorageFile): Promise<JournalReading> {
  try {
    return await new Loading(file).read();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    return { bad: scan("journal-unreadable", `${file.path} cannot be read (${errno})`) };
  }
}

class Loading {
  readonly #file: StorageFile;
  readonly #remarks: string[] = [];
  readonly #changed = new Set<number>();
  readonly #hot = new Set<number>();
  #generationMax = 0;
  #bits = new DirtyBitmap({ sizeBytes: 0, blockBytes: MIB });
  #epoch = 0;
  #pending = 0;

  constructor(file: StorageFile) {
    this.#file = file;
  }

  async read(): Promise<JournalReading> {
    const found = await this.#readHeader();
    if ("bad" in found) return found;
    const { header, slot } = found;
    this.#bits = new DirtyBitmap(header);
    this.#epoch = header.epoch;
    this.#pending = header.pending;
    for (const region of header.hot) this.#hot.add(region);
    const directory = await this.#readPages(header);
    const damaged = (words: string): JournalReading => ({ bad: this.#damage(words), header });
    if (directory.checksum() !== header.pagesChecksum) return damaged("pages of its bitmap are damaged or missing");
    const log = await this.#readLog(header);
    if (typeof log === "string") return damaged(log);
    const heartbeats = await this.#readHeartbeats(header);
    if (heartbeats.some(({ generation }) => generation > header.generation)) return damaged(newerHeader);
    if (heartbeats.some(({ generation, batches }) => generation === header.generation && batches > log.batches)) {
      return damaged(`batch ${log.batches + 1} of its log is damaged, and was durable`);
    }
    for (const region of this.#hot) this.#setRegion(header, region);
    const loaded: LoadedJournal = {
      header,
      slot,
      epoch: this.#epoch,
      pending: this.#pending,
      bits: this.#bits,
      hot: this.#hot,
      directory,
      changedPages: this.#changed,
      generationMax: this.#generationMax,
      heartbeatMillis: Math.max(header.timeMillis, ...heartbeats.map(({ timeMillis }) => timeMillis)),
      heartbeatCount: Math.max(0, ...heartbeats.map(({ count }) => count)),
      ...log,
      remarks: this.#remarks,
    };
    return { loaded };
  }

  #damage(words: string): Scan {
    return scan("journal-damaged", `${this.#file.path} is damaged: ${words}`);
  }

  /** The newer of the two that are good. */
  async #readHeader(): Promise<{ header: JournalHeader; slot: number } | { bad: Scan }> {
    const bytes = new Uint8Array(2 * JOURNAL_PAGE_BYTES);
    const count = await this.#file.read(bytes, journalPlaces.header(0));
    let best: { header: JournalHeader; slot: number } | undefined;
    let version: number | undefined;
    for (const slot of [0, 1]) {
      const place = bytes.subarray(slot * JOURNAL_PAGE_BYTES, Math.min(count, (slot + 1) * JOURNAL_PAGE_BYTES));
      const header = decodeHeader(place);
      if (typeof header === "number") version = header;
      else if (header === undefined) {
        if (place.some((byte) => byte !== 0)) this.#remarks.push(`header ${slot} does not count: torn, or damaged`);
      } else if (best === undefined || header.generation > best.header.generation) best = { header, slot };
    }
    if (version !== undefined) {
      const words = `${this.#file.path} has version ${version}; this program reads version ${JOURNAL_VERSION} only`;
      return { bad: scan("journal-version", words) };
    }
    if (best === undefined) return { bad: this.#damage("it has no header") };
    this.#generationMax = best.header.generation;
    return best;
  }

  async #readPages(header: JournalHeader): Promise<PageDirectory> {
    const pages = pagesOf(header);
    const directory = new PageDirectory(pages);
    const start = journalPlaces.page(0, 0, header.logBytes);
    const pair = 2 * JOURNAL_PAGE_BYTES;
    const buffer = new Uint8Array(Math.min(MIB, pages * pair));
    for (let page = 0; page < pages; ) {
      const data = this.#file.nextData(start + page * pair);
      if (data === undefined) break;
      page = Math.max(page, Math.floor((data.start - start) / pair));
      const count = await this.#file.read(buffer, start + page * pair);
      if (count === 0) break;
      for (let at = 0; at < count && page < pages; at += pair, page++) {
        this.#takePage(header, directory, page, buffer.subarray(at, Math.min(count, at + pair)));
      }
    }
    return directory;
  }

  #takePage({ id, generation }: JournalHeader, directory: PageDirectory, page: number, places: Uint8Array): void {
    let best: JournalPage | undefined;
    for (const slot of [0, 1]) {
      const found = decodePage(places.subarray(slot * JOURNAL_PAGE_BYTES, (slot + 1) * JOURNAL_PAGE_BYTES), id, page);
      if (found === undefined) continue;
      this.#generationMax = Math.max(this.#generationMax, found.generation);
      // Of a checkpoint that came to no end: it must not be taken for good under a later header.
      if (found.generation > generation) this.#changed.add(page);
      else if (best === undefined || found.generation > best.generation) {
        best = found;
        directory.set(page, slot, found);
      }
    }
    if (best !== undefined) this.#bits.orBits(best.bits, page * PAGE_BIT_BYTES);
  }

  /** A text: what is wrong. */
  async #readLog(header: JournalHeader): Promise<{ batches: number; records: number } | string> {
    const log = new Uint8Array(header.logBytes);
    const bytes = log.subarray(0, await this.#file.read(log, journalPlaces.log));
    let [batches, records, at] = [0, 0, 0];
    for (; at < bytes.length; batches++) {
      const batch = decodeBatch(bytes.subarray(at), header.blockBytes);
      if (batch === undefined || !sameBytes(batch.logId, header.logId) || batch.number !== batches + 1) break;
      if (batch.records === undefined || batch.generation !== header.generation)
        return `batch ${batch.number} of its log cannot be`;
      for (const record of batch.records) {
        if (!this.#apply(header, record)) return `batch ${batch.number} of its log cannot be`;
        records++;
      }
      at += batch.bytes;
    }
    if (bytes.subarray(at, at + JOURNAL_PAGE_BYTES).some((byte) => byte !== 0)) {
      const own = sameBytes(bytes.subarray(at + 8, at + 16), header.logId);
      if (own) this.#remarks.push(`batch ${batches + 1} of the log is torn: it does not count`);
    }
    for (; at < bytes.length; at += JOURNAL_PAGE_BYTES) {
      const later = decodeBatch(bytes.subarray(at), header.blockBytes);
      if (later === undefined) continue;
      if (later.generation > header.generation) return newerHeader;
      if (sameBytes(later.logId, header.logId))
        return `batch ${batches + 1} of its log is damaged, and a later one is there`;
    }
    return { batches, records };
  }

  /** False: no record of such a journal. */
  #apply(header: JournalHeader, record: LogRecord): boolean {
    switch (record.kind) {
      case "hot":
        this.#hot.add(record.region);
        return record.region * REGION_BYTES < header.sizeBytes;
      case "cool": {
        this.#hot.delete(record.region);
        const first = (record.region * REGION_BYTES) / header.blockBytes;
        if (record.region * REGION_BYTES >= header.sizeBytes) return false;
        this.#orRegion(header, first, record.bits);
        return true;
      }
      case "range": {
        const { first, count } = record.blocks;
        if (first + count > this.#bits.blocks) return false;
        this.#set(first, count);
        return true;
      }
      case "flip":
        if (record.epoch < this.#pending || record.epoch > this.#epoch) return false;
        this.#epoch = Math.max(this.#epoch, record.epoch + 1);
        this.#pending = record.epoch;
        return true;
    }
  }

  #orRegion({ blockBytes }: JournalHeader, first: number, bits: Uint8Array): void {
    const blocks = REGION_BYTES / blockBytes;
    for (let block = 0; block < blocks && first + block < this.#bits.blocks; block++) {
      if (((bits[block >> 3] ?? 0) & (1 << (block & 7))) !== 0) this.#set(first + block, 1);
    }
  }

  #setRegion({ blockBytes }: JournalHeader, region: number): void {
    const first = (region * REGION_BYTES) / blockBytes;
    this.#set(first, Math.min(REGION_BYTES / blockBytes, this.#bits.blocks - first));
  }

  #set(first: number, count: number): void {
    if (count <= 0) return;
    this.#bits.setRange({ first, count });
    for (let page = Math.floor(first / PAGE_BLOCKS); page * PAGE_BLOCKS < first + count; page++)
      this.#changed.add(page);
  }

  async #readHeartbeats(header: JournalHeader): Promise<readonly Heartbeat[]> {
    const found: Heartbeat[] = [];
    for (const slot of [0, 1]) {
      const bytes = new Uint8Array(512);
      await this.#file.read(bytes, journalPlaces.heartbeat(slot));
      const heartbeat = decodeHeartbeat(bytes, header.id);
      if (heartbeat !== undefined) found.push(heartbeat);
    }
    return found;
  }
}

const newerHeader = "its newest header is damaged: what lies behind it is of a later one";

function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}
