/** Undo logs in memory, built batch by batch. */
import { countParts } from "../../../src/base/part-mask.ts";
import { loadCodecs } from "../../../src/codec/compression.ts";
import type { LaneStorage } from "../../../src/storage/seam.ts";
import { digestBytes, maskBytes, MIB, PART_BYTES, partsPerBlock } from "../../../src/base/units.ts";
import type { ClosedLog, UndoEntry, UndoHeader, UndoLogReader } from "../../../src/replica/undo/entry.ts";
import { flagsOf, packEntries, sortedList } from "../../../src/replica/undo/entry-list.ts";
import {
  batchKinds,
  bodyChecksum,
  contentChecksum,
  encodeCheckpoint,
  encodeFooter,
  encodeUndoHeader,
  entryHeadBytes,
  type FooterRun,
  nextPage,
  UNDO_BATCH_HEADER_BYTES,
  writeBatchHeader,
  writeEntryFields,
} from "../../../src/replica/undo/format.ts";
import { encodeIndexRun, entriesPerIndexPage } from "../../../src/replica/undo/index-run.ts";
import { openUndoLogReader, type UndoLogFile } from "../../../src/replica/undo/reader.ts";

const zeros = Buffer.alloc(MIB);
export const lz4 = (await loadCodecs()).get("lz4");
export const path = "/store/points/0000000001.undo";

export const header: UndoHeader = {
  id: Uint8Array.of(0xc0, 0xff, 0xee, 1, 2, 3, 4, 5),
  sequence: 1,
  blockBytes: 16_384,
  digestKind: "xxh64",
  sizeBytes: 16_384 * 2000 - 512,
};

/** A file of bytes that can be replaced; counts reads. */
export class MemoryFile {
  bytes: Uint8Array;
  reads = 0;
  readonly lanes: LaneStorage;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    const unused = (): never => {
      throw new Error("a reader only reads");
    };
    this.lanes = {
      read: (_fd, target, offset) => {
        this.reads++;
        if (!Number.isSafeInteger(offset) || offset < 0) throw new Error(`read at ${offset}`);
        const found = this.bytes.subarray(offset, offset + target.length);
        target.set(found);
        return found.length;
      },
      write: unused,
      punch: unused,
      datasync: unused,
      startWriteback: unused,
      dropCache: unused,
      readAhead: unused,
    };
  }
}

export interface OpenOptions {
  readonly closed?: ClosedLog;
  readonly tailBytes?: number;
  readonly windowBytes?: number;
}

export function openReader(file: MemoryFile, { closed, ...bounds }: OpenOptions = {}): UndoLogFile {
  const decompressLz4 = (packed: Uint8Array, raw: Uint8Array): void => lz4.decompress(packed, raw);
  return openUndoLogReader({ path, lanes: file.lanes, fd: 3, decompressLz4, closed, ...bounds });
}

/** What a test says of an entry; the rest follows. */
export interface EntrySpec {
  readonly block: number;
  readonly run?: number;
  /** Part numbers; default: all. */
  readonly parts?: readonly number[];
  readonly damaged?: boolean;
  /** Fills the digest; undefined: there is none. */
  readonly digest?: number;
  /** Decoded content; undefined: zeros, or nothing when there are no parts. */
  readonly content?: Uint8Array;
  /** The stored form of `content`. */
  readonly packed?: Uint8Array;
}

export interface Known {
  readonly entry: UndoEntry;
  readonly content: Buffer;
  /** Of its batch. */
  readonly offset: number;
}

export function maskOf(parts: readonly number[] | undefined, blockBytes: number): Uint8Array {
  const mask = new Uint8Array(maskBytes(blockBytes));
  const all = parts ?? Array.from({ length: partsPerBlock(blockBytes) }, (_, part) => part);
  for (const part of all) mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
  return mask;
}

/** Appends batches; knows what every reader must find. */
export class LogBuilder {
  readonly header: UndoHeader;
  /** In the order they were written. */
  readonly known: Known[] = [];
  readonly runs: FooterRun[] = [];
  /** Where each batch begins. */
  readonly batches: number[] = [];
  #bytes: Uint8Array;
  #unindexed = 0;

  constructor(undoHeader: UndoHeader = header) {
    this.header = undoHeader;
    this.#bytes = new Uint8Array(4096);
    this.#bytes.set(encodeUndoHeader(undoHeader));
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get end(): number {
    return this.#bytes.length;
  }

  /** `durable`: default: all before it. */
  entries(specs: readonly EntrySpec[], durable: number = this.end): this {
    const { id } = this.header;
    const each = entryHeadBytes(this.header);
    const headsBytes = each * specs.length;
    const contentStart = this.end + UNDO_BATCH_HEADER_BYTES + headsBytes;
    const heads = new Uint8Array(headsBytes);
    const stored: Uint8Array[] = [];
    let contentBytes = 0;
    specs.forEach((spec, index) => {
      const bytes = spec.packed ?? spec.content ?? new Uint8Array();
      const entry = entryOf(spec, this.header, bytes, contentStart + contentBytes);
      writeEntryFields(heads, index * each, index * each + 24, { ...entry, flags: flagsOf(entry) }, this.header);
      const content = viewOf(spec.content ?? zeros.subarray(0, countParts(entry.mask) * PART_BYTES));
      this.known.push({ entry, content, offset: this.end });
      stored.push(bytes);
      contentBytes += bytes.length;
    });
    const batch = new Uint8Array(nextPage(UNDO_BATCH_HEADER_BYTES + headsBytes + contentBytes));
    writeBatchHeader(batch, 0, {
      id,
      offset: this.end,
      durable,
      kind: batchKinds.entries,
      count: specs.length,
      headsBytes,
      contentBytes,
      bodyChecksum: bodyChecksum(id, heads),
    });
    batch.set(heads, UNDO_BATCH_HEADER_BYTES);
    batch.set(Buffer.concat(stored), UNDO_BATCH_HEADER_BYTES + headsBytes);
    return this.#append(batch);
  }

  checkpoint(below: number = this.end, durable: number = this.end): this {
    return this.#append(encodeCheckpoint(this.header.id, this.end, durable, below));
  }

  /** Over all entries no run has yet. */
  index(durable: number = this.end): this {
    const entries = this.known.slice(this.#unindexed).map(({ entry }) => entry);
    if (entries.length === 0) return this;
    this.#unindexed = this.known.length;
    entries.sort((a, b) => a.block - b.block);
    const pages = Math.ceil(entries.length / entriesPerIndexPage(this.header));
    this.runs.push({ offset: this.end, pages, count: entries.length });
    return this.#append(
      encodeIndexRun(
        this.header.id,
        this.end,
        durable,
        sortedList(packEntries(entries, this.header), this.header),
        this.header,
      ),
    );
  }

  footer(): ClosedLog {
    const footerOffset = this.end;
    const totals = {
      entries: this.known.length,
      parts: this.known.reduce((sum, { entry }) => sum + countParts(entry.mask) * entry.run, 0),
      damagedEntries: this.known.filter(({ entry }) => entry.damaged).length,
      batchesEnd: footerOffset,
    };
    const { bytes, checksum } = encodeFooter(this.header.id, footerOffset, footerOffset, totals, this.runs);
    this.#append(bytes);
    return { sizeBytes: this.end, footerOffset, footerChecksum: checksum };
  }

  /** What `entries` of a reader must give. */
  expected(first: number, count: number): readonly Known[] {
    return this.known
      .filter(({ entry }) => entry.block < first + count && entry.block + entry.run > first)
      .sort((a, b) => a.entry.block - b.entry.block);
  }

  /** What `nextBlock` must give. */
  expectedNext(block: number): number | undefined {
    const found = this.known
      .filter(({ entry }) => entry.block + entry.run > block)
      .map(({ entry }) => Math.max(entry.block, block));
    return found.length === 0 ? undefined : Math.min(...found);
  }

  #append(batch: Uint8Array): this {
    this.batches.push(this.end);
    const joined = new Uint8Array(this.end + batch.length);
    joined.set(this.#bytes);
    joined.set(batch, this.end);
    this.#bytes = joined;
    return this;
  }
}

function entryOf(spec: EntrySpec, log: UndoHeader, stored: Uint8Array, contentOffset: number): UndoEntry {
  const mask = maskOf(spec.parts, log.blockBytes);
  return {
    block: spec.block,
    run: spec.run ?? 1,
    zero: spec.content === undefined && countParts(mask) > 0,
    damaged: spec.damaged ?? false,
    digest: spec.digest === undefined ? undefined : new Uint8Array(digestBytes(log.digestKind)).fill(spec.digest),
    mask,
    codec: spec.packed === undefined ? "stored" : "lz4",
    contentOffset: stored.length === 0 ? 0 : contentOffset,
    contentBytes: stored.length,
    contentChecksum: stored.length === 0 ? 0 : contentChecksum(log.id, spec.block, stored),
  };
}

/** The lz4 form, or undefined where it is not smaller. */
export function pack(content: Uint8Array): Uint8Array | undefined {
  const target = new Uint8Array(content.length);
  const length = lz4.compress(content, target);
  return length === 0 ? undefined : target.subarray(0, length);
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** All entries a reader finds. */
export function readEntries(reader: UndoLogReader): readonly { readonly entry: UndoEntry }[] {
  const perPage = 4096 / digestBytes(reader.header.digestKind);
  const found: { entry: UndoEntry }[] = [];
  for (let block = reader.nextBlock(0); block !== undefined; ) {
    const first = block - (block % perPage);
    for (const entry of reader.entries(first, perPage)) found.push({ entry });
    block = reader.nextBlock(first + perPage);
  }
  return found;
}

/** With their contents; an error in place of what cannot be read. */
export function readAll(reader: UndoLogReader): { readonly entry: UndoEntry; readonly content: Uint8Array | Error }[] {
  return readEntries(reader).map(({ entry }) => ({ entry, content: contentOf(reader, entry) }));
}

function contentOf(reader: UndoLogReader, entry: UndoEntry): Uint8Array | Error {
  const target = new Uint8Array(countParts(entry.mask) * PART_BYTES).fill(0xee);
  try {
    reader.readContent(entry, target);
    return target;
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
}

/** An entry as text, to compare many of them fast. */
export function keyOf(entry: UndoEntry): string {
  const { block, run, zero, damaged, codec, contentOffset, contentBytes, contentChecksum: checksum } = entry;
  const digest = entry.digest === undefined ? "-" : Buffer.from(entry.digest).toString("hex");
  const mask = Buffer.from(entry.mask).toString("hex");
  return [block, run, zero, damaged, codec, contentOffset, contentBytes, checksum, digest, mask].join(" ");
}
