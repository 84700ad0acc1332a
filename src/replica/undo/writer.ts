/**
 * The open undo log as its writer sees it. Old content goes in, batch by batch; what it protects may be overwritten once the log is
 * durable up to the batch's end. Durable is a prefix: a batch counts when every byte of the log before it is synced as well.
 *
 * Order for each overwrite: {@link UndoWriter.claim} (what is to be kept) → old content read → {@link UndoWriter.batch} (a place) → written
 * there → {@link UndoWriter.wrote} → {@link UndoWriter.durable} → overwritten.
 */
import { countParts } from "../../base/part-mask.ts";
import { invariant } from "../../base/errors.ts";
import type { StorageFile } from "../../storage/seam.ts";
import { inFile } from "../file-error.ts";
import type { ClosedLog, UndoEntry, UndoHeader, UndoStretch } from "./entry.ts";
import {
  batchKinds,
  bodyChecksum,
  encodeCheckpoint,
  encodeFooter,
  type EntryHead,
  entryFlags,
  entryHeadBytes,
  type FooterRun,
  nextPage,
  seedOf,
  UNDO_BATCH_HEADER_BYTES,
  UNDO_INDEX_RUN_ENTRIES,
  writeBatchHeader,
} from "./format.ts";
import { packEntries, sortedList, writeHeads } from "./entry-list.ts";
import { encodeIndexRun, entriesPerIndexPage } from "./index-run.ts";
import type { LoggedParts } from "./logged.ts";

/** A place in the log for entries: `head` is to be written at `offset`, the contents in the entries' order right behind it. */
export interface Batch {
  readonly offset: number;
  readonly head: Uint8Array;
  readonly contentBytes: number;
  /** Where the next batch begins. */
  readonly end: number;
}

/** What is in the log when it is opened; of a new log: nothing. */
export interface UndoContent {
  /** Where the next batch goes. All before it is durable. */
  readonly end: number;
  /** Entries that no index run has, in the order they were written. */
  readonly pending: readonly UndoEntry[];
  readonly runs: readonly FooterRun[];
  readonly entries: number;
  readonly parts: number;
  readonly damagedEntries: number;
  /** Stretches that cannot be read. */
  readonly damage: readonly UndoStretch[];
}

interface Waiter {
  readonly upTo: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class UndoWriter {
  readonly header: UndoHeader;
  readonly path: string;
  readonly logged: LoggedParts;
  /** Seed of content checksums: lanes/jobs.ts, `SaveRequest.seed`. */
  readonly seed: number;
  readonly #file: StorageFile;
  #end: number;
  #durable: number;
  /** Batches given out and not yet written, by offset. */
  readonly #unwritten = new Set<number>();
  /** Entries that no index run has, packed, in the order they were written. */
  #pending: Uint8Array[];
  #pendingCount: number;
  readonly #runs: FooterRun[];
  #entries: number;
  #parts: number;
  #damagedEntries: number;
  readonly #damage: readonly UndoStretch[];
  #waiters: Waiter[] = [];
  #syncing = false;
  #failure: unknown;
  #indexing: Promise<void> = Promise.resolve();

  constructor(file: StorageFile, header: UndoHeader, logged: LoggedParts, content: UndoContent) {
    this.#file = file;
    this.path = file.path;
    this.header = header;
    this.logged = logged;
    this.seed = seedOf(header.id);
    this.#end = content.end;
    this.#durable = content.end;
    this.#pending = [packEntries(content.pending, header)];
    this.#pendingCount = content.pending.length;
    this.#runs = [...content.runs];
    this.#entries = content.entries;
    this.#parts = content.parts;
    this.#damagedEntries = content.damagedEntries;
    this.#damage = content.damage;
  }

  get fd(): number {
    return this.#file.fd;
  }

  /** The same file past the page cache; see {@link StorageFile.directFd}. */
  get directFd(): number | undefined {
    return this.#file.directFd;
  }

  /** Bytes a batch of `count` entries has before their contents. */
  headBytes(count: number): number {
    return UNDO_BATCH_HEADER_BYTES + count * entryHeadBytes(this.header);
  }

  /** Bytes of the log, with what is still being written. */
  get sizeBytes(): number {
    return this.#end;
  }

  /** Offset below which every batch has been written. */
  get writtenTo(): number {
    let lowest = this.#end;
    for (const offset of this.#unwritten) lowest = Math.min(lowest, offset);
    return lowest;
  }

  /** Gives entries their place. Their contents, in order, have `contentBytes` in all; what is claimed must come to lie in the log. */
  batch(heads: readonly EntryHead[], contentBytes: number): Batch {
    const shape = this.header;
    const each = entryHeadBytes(shape);
    const headsBytes = heads.length * each;
    const head = new Uint8Array(UNDO_BATCH_HEADER_BYTES + headsBytes);
    const offset = this.#end;
    for (const entry of heads) {
      this.#parts += countParts(entry.mask) * entry.run;
      if ((entry.flags & entryFlags.damaged) !== 0) this.#damagedEntries++;
    }
    const contentStart = offset + head.length;
    const contents = { contentStart, contentEnd: contentStart + contentBytes };
    this.#pending.push(writeHeads(head.subarray(UNDO_BATCH_HEADER_BYTES), heads, contents, shape));
    this.#pendingCount += heads.length;
    this.#entries += heads.length;
    writeBatchHeader(head, 0, {
      id: this.header.id,
      offset,
      durable: this.#durable,
      kind: batchKinds.entries,
      count: heads.length,
      headsBytes,
      contentBytes,
      bodyChecksum: bodyChecksum(this.header.id, head.subarray(UNDO_BATCH_HEADER_BYTES)),
    });
    const end = this.#take(nextPage(offset + head.length + contentBytes));
    if (this.#pendingCount >= UNDO_INDEX_RUN_ENTRIES) this.#index();
    return { offset, head, contentBytes, end };
  }

  /** Gives entries without content their place and writes them. Resolves when they are written; durable is another matter. */
  async put(heads: readonly EntryHead[]): Promise<Batch> {
    const batch = this.batch(heads, 0);
    await this.#write(batch.head, batch.offset);
    return batch;
  }

  /** A batch lies in the file now. */
  wrote(batch: Batch): void {
    this.#written(batch.offset);
  }

  /** Resolves when everything before `upTo` is durable. Batches before it that nobody writes keep it waiting: then {@link fail}. */
  durable(upTo: number): Promise<void> {
    invariant(upTo <= this.#end, "what is waited for has a place in the log");
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (upTo <= this.#durable) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#waiters.push({ upTo, resolve, reject });
      this.#syncSoon();
    });
  }

  /** Nothing more becomes durable: who waits gets the error. */
  fail(error: unknown): void {
    this.#failure ??= error;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { reject } of waiters) reject(this.#failure);
  }

  /** Every batch before `below` protects writes that had finished before replica and table were synced. Durable when it resolves. */
  async checkpoint(below: number): Promise<void> {
    const offset = this.#end;
    const bytes = encodeCheckpoint(this.header.id, offset, this.#durable, below);
    const end = this.#take(offset + bytes.length);
    await this.#write(bytes, offset);
    await this.durable(end);
  }

  /** The footer, durable when it resolves: the log is whole, and counts as closed once a newer point says so. */
  async finish(): Promise<ClosedLog> {
    if (this.#pendingCount > 0) this.#index();
    await this.#indexing;
    const offset = this.#end;
    const totals = {
      entries: this.#entries,
      parts: this.#parts,
      damagedEntries: this.#damagedEntries,
      batchesEnd: offset,
    };
    const { bytes, checksum } = encodeFooter(this.header.id, offset, this.#durable, totals, this.#runs);
    const end = this.#take(offset + bytes.length);
    await this.#write(bytes, offset);
    await this.durable(end);
    const damage = this.#damage.length === 0 ? {} : { damage: this.#damage };
    return { sizeBytes: end, footerOffset: offset, footerChecksum: checksum, ...damage };
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #take(end: number): number {
    this.#unwritten.add(this.#end);
    this.#end = end;
    return end;
  }

  #written(offset: number): void {
    invariant(this.#unwritten.delete(offset), "a batch is written once");
    this.#syncSoon();
  }

  async #write(bytes: Uint8Array, offset: number): Promise<void> {
    try {
      await inFile("write-failed", `writing ${this.path}`, () => this.#file.write(bytes, offset));
    } catch (error) {
      this.fail(error);
      throw error;
    }
    this.#written(offset);
  }

  /** An index run over what no run has yet, in the background; `finish` waits for it. */
  #index(): void {
    const entries = sortedList(Buffer.concat(this.#pending), this.header);
    this.#pending = [];
    this.#pendingCount = 0;
    const offset = this.#end;
    const bytes = encodeIndexRun(this.header.id, offset, this.#durable, entries, this.header);
    const pages = Math.ceil(entries.count / entriesPerIndexPage(this.header));
    this.#runs.push({ offset, pages, count: entries.count });
    this.#take(offset + bytes.length);
    const before = this.#indexing;
    this.#indexing = Promise.all([before, this.#write(bytes, offset)]).then(() => undefined);
    // Whoever waits for durability hears of a failure; so does `finish`.
    this.#indexing.catch(() => undefined);
  }

  #syncSoon(): void {
    if (this.#syncing || this.#failure !== undefined) return;
    const upTo = this.writtenTo;
    if (!this.#waiters.some((waiter) => waiter.upTo <= upTo)) return;
    this.#syncing = true;
    void this.#sync(upTo);
  }

  /** One sync at a time: who comes meanwhile shares the next one. */
  async #sync(upTo: number): Promise<void> {
    try {
      await inFile("sync-failed", `syncing ${this.path}`, () => this.#file.datasync());
      this.#durable = Math.max(this.#durable, upTo);
    } catch (error) {
      this.fail(error);
    }
    this.#syncing = false;
    const ready = this.#waiters.filter((waiter) => waiter.upTo <= this.#durable);
    this.#waiters = this.#waiters.filter((waiter) => waiter.upTo > this.#durable);
    for (const { resolve } of ready) resolve();
    this.#syncSoon();
  }
}
