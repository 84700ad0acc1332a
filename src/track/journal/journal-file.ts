/** The file of a journal as its writer sees it: one step at a time, each as docs/formats.md, "Bitmap journal", orders it. */
import type { Random } from "../../base/random.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import { dirname } from "node:path";
import type { JournalMode } from "../belief.ts";
import { encodeBatch, type LogRecord } from "./batch.ts";
import {
  encodeHeader,
  encodeHeartbeat,
  encodePage,
  JOURNAL_PAGE_BYTES,
  type JournalHeader,
  journalBytesMax,
  journalPlaces,
  LOG_ID_BYTES,
  pagesOf,
} from "./format.ts";
import type { PageDirectory } from "./page-directory.ts";

/** What of a header is the file's own business. */
type OwnFields = "id" | "logId" | "generation" | "logBytes" | "pagesChecksum" | "mode";
export type HeaderFacts = Omit<JournalHeader, OwnFields>;

export interface JournalFileStart {
  readonly file: StorageFile;
  readonly random: Random;
  readonly id: string;
  readonly mode: JournalMode;
  readonly logBytes: number;
  readonly directory: PageDirectory;
  /** Of the header in force; the first is written beside it. */
  readonly slot: number;
  /** Of everything in the file. */
  readonly generationMax: number;
  readonly heartbeatCount: number;
}

/** Errors of storage pass: then nothing written since the last good sync is believed, and the file is not used any more. */
export class JournalFile {
  readonly id: string;
  readonly #file: StorageFile;
  readonly #random: Random;
  readonly #mode: JournalMode;
  /** A header of this use was synced. */
  #isOpenDurably = false;
  readonly #logBytes: number;
  readonly #directory: PageDirectory;
  #slot: number;
  #generation: number;
  #logId: Uint8Array = new Uint8Array(LOG_ID_BYTES);
  /** Where the next batch goes, within the log; undefined: no header of this writer is there yet. */
  #logEnd: number | undefined;
  #batches = 0;
  #heartbeats: number;
  #longest = 0;

  constructor(start: JournalFileStart) {
    this.id = start.id;
    this.#file = start.file;
    this.#random = start.random;
    this.#mode = start.mode;
    this.#logBytes = start.logBytes;
    this.#directory = start.directory;
    this.#slot = start.slot;
    this.#generation = start.generationMax;
    this.#heartbeats = start.heartbeatCount;
  }

  /** Bytes of the log that are taken. */
  get logUsed(): number {
    return this.#logEnd ?? this.#logBytes;
  }

  /** Whether a batch of this many bytes fits. */
  hasRoom(bytes: number): boolean {
    return this.logUsed + bytes <= this.#logBytes;
  }

  get logBytes(): number {
    return this.#logBytes;
  }

  /** Written and durable when it resolves. There must be room. */
  async append(records: readonly LogRecord[]): Promise<void> {
    const place = { logId: this.#logId, generation: this.#generation, number: this.#batches + 1 };
    const bytes = encodeBatch(place, records);
    await this.#file.write(bytes, journalPlaces.log + this.logUsed);
    await this.sync();
    this.#batches++;
    this.#logEnd = this.logUsed + bytes.length;
  }

  /** A page of the checkpoint that comes next, in the place no header in force names. Encoded before the first await. */
  async writePage(page: number, fill: (bits: Uint8Array) => void): Promise<void> {
    const generation = this.#generation + 1;
    const { bytes, checksum } = encodePage(this.id, { page, generation }, fill);
    const slot = this.#directory.slotToWrite(page, generation);
    this.#directory.set(page, slot, { generation, checksum });
    await this.#file.write(bytes, journalPlaces.page(page, slot, this.#logBytes));
  }

  /** Pages are those of a disk of this size from the next header on. */
  resize(disk: { readonly sizeBytes: number; readonly blockBytes: number }): void {
    this.#directory.resize(pagesOf(disk));
  }

  /**
   * Ends a checkpoint: `pages` are written, then all pages synced, then the header, with which the log begins anew, written and synced. What is in
   * `facts` and in the pages is of one moment: the call's.
   */
  async checkpoint(
    facts: HeaderFacts,
    pages: readonly number[],
    fill: (page: number, bits: Uint8Array) => void,
  ): Promise<void> {
    const generation = this.#generation + 1;
    const logId = this.#random.bytes(LOG_ID_BYTES);
    const writes = pages.map((page) => {
      const { bytes, checksum } = encodePage(this.id, { page, generation }, (bits) => {
        fill(page, bits);
      });
      const slot = this.#directory.slotToWrite(page, generation);
      this.#directory.set(page, slot, { generation, checksum });
      return { bytes, at: journalPlaces.page(page, slot, this.#logBytes) };
    });
    const header = encodeHeader({
      ...facts,
      id: this.id,
      mode: this.#mode,
      logId,
      generation,
      logBytes: this.#logBytes,
      pagesChecksum: this.#directory.checksum(),
    });
    for (const { bytes, at } of writes) await this.#file.write(bytes, at);
    await this.sync();
    await this.#file.write(header, journalPlaces.header(1 - this.#slot));
    await this.#syncHeader();
    this.#slot = 1 - this.#slot;
    this.#generation = generation;
    this.#logId = logId;
    this.#logEnd = 0;
    this.#batches = 0;
    const bytesMax = journalBytesMax(facts, this.#logBytes);
    if (bytesMax < this.#longest) await this.#file.truncate(bytesMax);
    this.#longest = bytesMax;
  }

  /** Not synced. It says how many batches are durable: so that the last one, when it is damaged, is not taken for the log's torn end. */
  async beat(timeMillis: number): Promise<void> {
    const count = ++this.#heartbeats;
    const heartbeat = { timeMillis, count, generation: this.#generation, batches: this.#batches };
    await this.#file.write(encodeHeartbeat(this.id, heartbeat), journalPlaces.heartbeat(count % 2));
  }

  /** Nothing in mode `process`. */
  async sync(): Promise<void> {
    if (this.#mode === "power") await this.#file.datasync();
  }

  /** In mode `process` the first one: a loss of power must not bring back the header before it, which says that the journal was closed. */
  async #syncHeader(): Promise<void> {
    if (this.#mode === "power" || !this.#isOpenDurably) await this.#file.datasync();
    this.#isOpenDurably = true;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/**
 * Makes a journal that can no longer be kept up to date one that nobody believes: by its headers, else by its length, else by its name. True: done, and as
 * durable as the mode has it.
 */
export async function invalidateJournal(storage: Storage, path: string, mode: JournalMode): Promise<boolean> {
  const ways: readonly (() => Promise<void>)[] = [
    () => changing(storage, path, mode, (file) => file.write(new Uint8Array(2 * JOURNAL_PAGE_BYTES), 0)),
    () => changing(storage, path, mode, (file) => file.truncate(0)),
    async () => {
      await storage.unlink(path);
      if (mode === "power") await storage.syncDirectory(dirname(path));
    },
  ];
  for (const way of ways) {
    try {
      await way();
      return true;
    } catch {
      // The next way may be open.
    }
  }
  return false;
}

async function changing(
  storage: Storage,
  path: string,
  mode: JournalMode,
  change: (file: StorageFile) => Promise<void>,
): Promise<void> {
  const file = await storage.open(path, { write: true });
  try {
    await change(file);
    if (mode === "power") await file.datasync();
  } finally {
    await file.close();
  }
}
