/**
 * Undo logs as bytes: header, batches, entries. docs/formats.md, "Undo log". Pure; little endian. Index runs: index-run.ts.
 *
 *     log     0 magic "rplundo\n" · 8 version u16 · 10 digest kind u8 · 11 reserved · 12 checksum u32 · 16 id 8 bytes · 24 sequence u64
 *             32 block bytes u32 · 36 reserved · 40 size bytes u64 · 48 reserved
 *     batch   0 magic "rplubtch" · 8 log id · 16 offset u64 · 24 durable u64 · 32 kind u8 · 33 reserved · 40 count u32
 *             44 heads bytes u32 · 48 content bytes u64 · 56 body checksum u32 · 60 checksum u32
 *     entry   0 block u64 · 8 run u32 · 12 flags u8 · 13 reserved · 16 content bytes u32 · 20 content checksum u32 · 24 digest · mask
 */
import { countParts } from "../../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { invariant, ReplicationError } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import {
  blocksPerPage,
  digestBytes,
  type DigestKind,
  isBlockSize,
  maskBytes,
  MIB,
  PART_BYTES,
  partsPerBlock,
} from "../../base/units.ts";
import { damaged } from "../state-file.ts";
import type { UndoHeader } from "./entry.ts";

/** Batches and index pages start at multiples of this; the header has the first of them to itself. */
export const UNDO_PAGE_BYTES = 4096;
export const UNDO_HEADER_BYTES = 64;
export const UNDO_BATCH_HEADER_BYTES = 64;
export const UNDO_VERSION = 1;
export const UNDO_ID_BYTES = 8;
/** Heads of one batch. */
export const UNDO_HEADS_BYTES_MAX: number = 4 * MIB;
/** A batch from its header to the end of its content. */
export const UNDO_BATCH_BYTES_MAX: number = 64 * MIB;
/** Pages of one index run: 16 MiB, several times what a run of 65,536 entries takes. */
export const UNDO_INDEX_PAGES_MAX = 4096;
/** Entries after which the writer appends an index run. */
export const UNDO_INDEX_RUN_ENTRIES = 65_536;
export const undoMagic: Buffer = Buffer.from("rplundo\n", "latin1");
export const undoBatchMagic: Buffer = Buffer.from("rplubtch", "latin1");

export const entryFlags = { digest: 1, zero: 2, damaged: 4, lz4: 8 } as const;
const allFlags = 15;

export const batchKinds = { entries: 1, checkpoint: 2, index: 3, footer: 4 } as const;
export type BatchKind = (typeof batchKinds)[keyof typeof batchKinds];

/** What the lengths of an entry depend on. */
export interface UndoShape {
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
}

/** An entry as it is written; see {@link UndoEntry}. */
export interface EntryHead {
  readonly block: number;
  readonly run: number;
  /** Sum of {@link entryFlags}; `digest` exactly when there is one. */
  readonly flags: number;
  readonly contentBytes: number;
  /** {@link contentChecksum}; 0 without content. */
  readonly contentChecksum: number;
  readonly digest: Uint8Array | undefined;
  readonly mask: Uint8Array;
}

export interface BatchFields {
  /** Of the log. */
  readonly id: Uint8Array;
  /** Where the batch lies. */
  readonly offset: number;
  /** Offset up to which the log was durable when this was written. */
  readonly durable: number;
  readonly kind: BatchKind;
  readonly count: number;
  readonly headsBytes: number;
  readonly contentBytes: number;
  /** {@link bodyChecksum} of the heads. */
  readonly bodyChecksum: number;
}

/** A header that was found good; the heads are not checked by that. */
export interface BatchHeader extends BatchFields {
  /** Where contents (of an index run: pages) begin. */
  readonly contentStart: number;
  /** Behind the last byte of contents. */
  readonly contentEnd: number;
  /** Where the next batch begins. */
  readonly end: number;
}

export interface FooterTotals {
  readonly entries: number;
  /** Parts of all masks, times the run. */
  readonly parts: number;
  readonly damagedEntries: number;
  /** Where the last batch before the footer ends: its own offset. */
  readonly batchesEnd: number;
}

export interface FooterRun {
  readonly offset: number;
  readonly pages: number;
  /** Entries. */
  readonly count: number;
}

export interface Footer {
  readonly totals: FooterTotals;
  /** In the order of the file. */
  readonly runs: readonly FooterRun[];
}

const footerTotalsBytes = 32;
const footerRunBytes = 16;
const sequenceBytesMax = Number.MAX_SAFE_INTEGER;

/** {@link UNDO_HEADER_BYTES} bytes; zeros follow them up to {@link UNDO_PAGE_BYTES}. */
export function encodeUndoHeader(header: UndoHeader): Uint8Array {
  invariant(
    header.id.length === UNDO_ID_BYTES && isBlockSize(header.blockBytes),
    "an undo log has an id and a block size",
  );
  const bytes = new Uint8Array(UNDO_HEADER_BYTES);
  bytes.set(undoMagic, 0);
  bytes[8] = UNDO_VERSION;
  bytes[10] = header.digestKind === "xxh64" ? 1 : 2;
  bytes.set(header.id, 16);
  put64(bytes, 24, header.sequence);
  put32(bytes, 32, header.blockBytes);
  put64(bytes, 40, header.sizeBytes);
  put32(bytes, 12, logHeaderChecksum(bytes));
  return bytes;
}

/** `bytes`: at least the header. Throws `store-damaged`, `store-version-unsupported`, naming `path`. */
export function decodeUndoHeader(path: string, bytes: Uint8Array): UndoHeader {
  if (bytes.length < UNDO_HEADER_BYTES) throw damaged(path, `it has ${bytes.length} bytes, less than its header`);
  if (undoMagic.compare(bytes, 0, 8) !== 0) throw damaged(path, "it is not an undo log");
  const version = get16(bytes, 8);
  if (version !== UNDO_VERSION) {
    throw new ReplicationError(
      "store-version-unsupported",
      `${path} has version ${version}; this program reads version ${UNDO_VERSION} only. Use the program that wrote it, or a newer one`,
      { details: { version, versionSupported: UNDO_VERSION } },
    );
  }
  if (get32(bytes, 12) !== logHeaderChecksum(bytes)) throw damaged(path, "the checksum of its header does not match");
  const reserved = [bytes.subarray(11, 12), bytes.subarray(36, 40), bytes.subarray(48, UNDO_HEADER_BYTES)];
  if (!reserved.every(isZero)) throw damaged(path, "reserved bytes of its header are not zero");
  const kind = bytes[10];
  if (kind !== 1 && kind !== 2) throw damaged(path, `its digest kind is ${kind}, neither 1 nor 2`);
  const blockBytes = get32(bytes, 32);
  if (!isBlockSize(blockBytes)) throw damaged(path, `its block size is ${blockBytes}`);
  const sequence = get64(bytes, 24);
  if (sequence > sequenceBytesMax) throw damaged(path, "its sequence number is too large");
  const sizeBytes = get64(bytes, 40);
  if (sizeBytes > limits.diskBytesMax) throw damaged(path, `its disk has ${sizeBytes} bytes, more than 64 TiB`);
  return {
    id: Uint8Array.from(bytes.subarray(16, 16 + UNDO_ID_BYTES)),
    sequence,
    blockBytes,
    digestKind: kind === 1 ? "xxh64" : "sha256",
    sizeBytes,
  };
}

/** crc32 over the header without the checksum itself. */
function logHeaderChecksum(header: Uint8Array): number {
  return crc32(header.subarray(16, UNDO_HEADER_BYTES), crc32(header.subarray(0, 12)));
}

/** Seed of every checksum of a log behind its header: bytes of another log never pass. */
export function seedOf(id: Uint8Array): number {
  return crc32(id);
}

/** Seed bound to a place: a block's number for contents, an offset for index pages. */
export function seedAt(id: Uint8Array, place: number): number {
  const bytes = new Uint8Array(8);
  put64(bytes, 0, place);
  return crc32(bytes, crc32(id));
}

/** `bytes`: the content as it is stored. */
export function contentChecksum(id: Uint8Array, block: number, bytes: Uint8Array): number {
  return crc32(bytes, seedAt(id, block));
}

export function bodyChecksum(id: Uint8Array, heads: Uint8Array): number {
  return crc32(heads, crc32(id));
}

export function entryHeadBytes(shape: UndoShape): number {
  return 24 + digestBytes(shape.digestKind) + maskBytes(shape.blockBytes);
}

/** The fields entry heads and index entries share; digest and mask at `digestAt`. */
export function writeEntryFields(
  target: Uint8Array,
  at: number,
  digestAt: number,
  head: EntryHead,
  shape: UndoShape,
): void {
  const digestSize = digestBytes(shape.digestKind);
  const hasDigest = (head.flags & entryFlags.digest) !== 0;
  invariant(hasDigest === (head.digest !== undefined), "an entry's flag says whether it has a digest");
  invariant(head.digest === undefined || head.digest.length === digestSize, "an entry's digest has its length");
  invariant(head.mask.length === maskBytes(shape.blockBytes), "an entry's mask has its length");
  put64(target, at, head.block);
  put32(target, at + 8, head.run);
  put32(target, at + 12, head.flags);
  put32(target, at + 16, head.contentBytes);
  put32(target, at + 20, head.contentChecksum);
  if (head.digest === undefined) target.fill(0, digestAt, digestAt + digestSize);
  else target.set(head.digest, digestAt);
  target.set(head.mask, digestAt + digestSize);
}

/** What is wrong with an entry, if anything. `at`: its shared fields; `digestAt`: its digest and mask. */
export function entryFault(bytes: Uint8Array, at: number, digestAt: number, shape: UndoShape): string | undefined {
  const word = get32(bytes, at + 12);
  if (word > allFlags) return "unknown flags";
  const block = get64(bytes, at);
  const run = get32(bytes, at + 8);
  if (run < 1 || block + run > limits.diskBytesMax / shape.blockBytes) return "blocks outside any disk";
  const zero = (word & entryFlags.zero) !== 0;
  const perPage = blocksPerPage(shape.digestKind);
  if (run > 1 && (!zero || (block % perPage) + run > perPage)) return "a run that cannot be";
  const digestSize = digestBytes(shape.digestKind);
  if ((word & entryFlags.digest) === 0 && !isZero(bytes.subarray(digestAt, digestAt + digestSize))) {
    return "a digest that is not announced";
  }
  const maskAt = digestAt + digestSize;
  const parts = countParts(bytes.subarray(maskAt, maskAt + maskBytes(shape.blockBytes)));
  // 16 KiB blocks have 4 parts, and half a mask byte to spare.
  if (partsPerBlock(shape.blockBytes) < 8 && (bytes[maskAt] ?? 0) >= 1 << partsPerBlock(shape.blockBytes)) {
    return "parts outside the block";
  }
  const contentBytes = get32(bytes, at + 16);
  const packed = (word & entryFlags.lz4) !== 0;
  if (zero || parts === 0) {
    return packed || contentBytes !== 0 || get32(bytes, at + 20) !== 0 ? "content of an entry without any" : undefined;
  }
  const wholeBytes = parts * PART_BYTES;
  const fits = packed ? contentBytes > 0 && contentBytes < wholeBytes : contentBytes === wholeBytes;
  return fits ? undefined : "a content length that cannot be";
}

export function encodeBatchHeader(header: BatchFields): Uint8Array {
  const bytes = new Uint8Array(UNDO_BATCH_HEADER_BYTES);
  writeBatchHeader(bytes, 0, header);
  return bytes;
}

/** Writes {@link UNDO_BATCH_HEADER_BYTES} bytes. What a reader would refuse whatever the entries is a wrong call. */
export function writeBatchHeader(target: Uint8Array, at: number, header: BatchFields): void {
  const fault = batchFault(header);
  invariant(fault === undefined, `a batch can be read back: ${fault ?? ""}`);
  const bytes = target.subarray(at, at + UNDO_BATCH_HEADER_BYTES);
  bytes.set(undoBatchMagic, 0);
  bytes.set(header.id, 8);
  put64(bytes, 16, header.offset);
  put64(bytes, 24, header.durable);
  put64(bytes, 32, header.kind);
  put32(bytes, 40, header.count);
  put32(bytes, 44, header.headsBytes);
  put64(bytes, 48, header.contentBytes);
  put32(bytes, 56, header.bodyChecksum);
  put32(bytes, 60, crc32(bytes.subarray(0, 60), seedOf(header.id)));
}

/** The header of the batch at `offset` of the log `id`, from the start of `bytes`; undefined: not one that can be trusted. */
export function decodeBatchHeader(
  bytes: Uint8Array,
  log: { readonly id: Uint8Array } & UndoShape,
  offset: number,
): BatchHeader | undefined {
  if (bytes.length < UNDO_BATCH_HEADER_BYTES) return undefined;
  if (undoBatchMagic.compare(bytes, 0, 8) !== 0 || Buffer.compare(bytes.subarray(8, 16), log.id) !== 0)
    return undefined;
  if (get32(bytes, 60) !== crc32(bytes.subarray(0, 60), seedOf(log.id))) return undefined;
  const kind = bytes[32];
  const known = kind === 1 || kind === 2 || kind === 3 || kind === 4;
  if (!known || !isZero(bytes.subarray(33, 40)) || get64(bytes, 16) !== offset) return undefined;
  const fields: BatchFields = {
    id: log.id,
    offset,
    durable: get64(bytes, 24),
    kind,
    count: get32(bytes, 40),
    headsBytes: get32(bytes, 44),
    contentBytes: get64(bytes, 48),
    bodyChecksum: get32(bytes, 56),
  };
  const entriesFit = kind !== batchKinds.entries || fields.headsBytes === fields.count * entryHeadBytes(log);
  if (!entriesFit || batchFault(fields) !== undefined) return undefined;
  const headsEnd = offset + UNDO_BATCH_HEADER_BYTES + fields.headsBytes;
  const contentStart = kind === batchKinds.index ? nextPage(headsEnd) : headsEnd;
  const contentEnd = contentStart + fields.contentBytes;
  return { ...fields, contentStart, contentEnd, end: nextPage(contentEnd) };
}

/** What is wrong with a batch whatever its entries are. */
function batchFault(header: BatchFields): string | undefined {
  const { offset, kind, count, headsBytes, contentBytes } = header;
  if (offset < UNDO_PAGE_BYTES || offset % UNDO_PAGE_BYTES !== 0) return "it starts at no page";
  if (header.durable > offset || header.durable < 0) return "more is durable than there is";
  if (headsBytes > UNDO_HEADS_BYTES_MAX) return "its heads are too long";
  if (UNDO_BATCH_HEADER_BYTES + headsBytes + contentBytes > UNDO_BATCH_BYTES_MAX) return "it is too long";
  switch (kind) {
    case batchKinds.entries:
      return count > 0 ? undefined : "it has no entries";
    case batchKinds.checkpoint:
      return count === 1 && headsBytes === 8 && contentBytes === 0 ? undefined : "it is no checkpoint";
    case batchKinds.index: {
      const pages = headsBytes / 8;
      const fits =
        pages <= UNDO_INDEX_PAGES_MAX && contentBytes === pages * UNDO_PAGE_BYTES && count >= pages && pages > 0;
      return fits ? undefined : "it is no index run";
    }
    case batchKinds.footer: {
      const fits = headsBytes === footerTotalsBytes + count * footerRunBytes && contentBytes === 0;
      return fits ? undefined : "it is no footer";
    }
  }
}

/** The whole batch. `below`: all replica writes for entries before this offset had finished before the replica was synced. */
export function encodeCheckpoint(id: Uint8Array, offset: number, durable: number, below: number): Uint8Array {
  invariant(below >= 0 && below <= offset, "a checkpoint speaks of what was before it");
  const heads = new Uint8Array(8);
  put64(heads, 0, below);
  return wholeBatch({ id, offset, durable, kind: batchKinds.checkpoint, count: 1 }, heads);
}

/** `heads` of a checkpoint at `offset`; undefined: nothing a writer writes. */
export function decodeCheckpoint(heads: Uint8Array, offset: number): number | undefined {
  const below = get64(heads, 0);
  return below <= offset ? below : undefined;
}

/** The whole batch, and the body checksum a newer point's record keeps of it. */
export function encodeFooter(
  id: Uint8Array,
  offset: number,
  durable: number,
  totals: FooterTotals,
  runs: readonly FooterRun[],
): { readonly bytes: Uint8Array; readonly checksum: number } {
  const heads = new Uint8Array(footerTotalsBytes + runs.length * footerRunBytes);
  put64(heads, 0, totals.entries);
  put64(heads, 8, totals.parts);
  put64(heads, 16, totals.damagedEntries);
  put64(heads, 24, totals.batchesEnd);
  runs.forEach((run, index) => {
    const at = footerTotalsBytes + index * footerRunBytes;
    put64(heads, at, run.offset);
    put32(heads, at + 8, run.pages);
    put32(heads, at + 12, run.count);
  });
  invariant(decodeFooter(heads, offset) !== undefined, "a footer can be read back");
  const bytes = wholeBatch({ id, offset, durable, kind: batchKinds.footer, count: runs.length }, heads);
  return { bytes, checksum: bodyChecksum(id, heads) };
}

/** `heads` of a footer at `offset`; undefined: nothing a writer writes. */
export function decodeFooter(heads: Uint8Array, offset: number): Footer | undefined {
  const totals: FooterTotals = {
    entries: get64(heads, 0),
    parts: get64(heads, 8),
    damagedEntries: get64(heads, 16),
    batchesEnd: get64(heads, 24),
  };
  const runs: FooterRun[] = [];
  let before = UNDO_PAGE_BYTES;
  for (let at = footerTotalsBytes; at < heads.length; at += footerRunBytes) {
    const run = { offset: get64(heads, at), pages: get32(heads, at + 8), count: get32(heads, at + 12) };
    const end = run.offset + UNDO_PAGE_BYTES * (run.pages + 1);
    if (run.offset < before || end > offset || run.pages > UNDO_INDEX_PAGES_MAX) return undefined;
    runs.push(run);
    before = end;
  }
  const safe = totals.entries <= Number.MAX_SAFE_INTEGER && totals.parts <= Number.MAX_SAFE_INTEGER;
  return safe && totals.damagedEntries <= totals.entries && totals.batchesEnd === offset ? { totals, runs } : undefined;
}

/** A batch without contents, padded to whole pages. */
function wholeBatch(
  fields: Omit<BatchFields, "headsBytes" | "contentBytes" | "bodyChecksum">,
  heads: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(nextPage(UNDO_BATCH_HEADER_BYTES + heads.length));
  bytes.set(heads, UNDO_BATCH_HEADER_BYTES);
  const checksum = bodyChecksum(fields.id, heads);
  writeBatchHeader(bytes, 0, { ...fields, headsBytes: heads.length, contentBytes: 0, bodyChecksum: checksum });
  return bytes;
}

/** The first multiple of {@link UNDO_PAGE_BYTES} at or behind `offset`. */
export function nextPage(offset: number): number {
  return Math.ceil(offset / UNDO_PAGE_BYTES) * UNDO_PAGE_BYTES;
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

export function get16(bytes: Uint8Array, at: number): number {
  return (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8);
}

export function get32(bytes: Uint8Array, at: number): number {
  const high = ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24);
  return ((bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | high) >>> 0;
}

/** Beyond 2^53 not exact, and beyond every bound. */
export function get64(bytes: Uint8Array, at: number): number {
  return get32(bytes, at) + get32(bytes, at + 4) * 0x1_0000_0000;
}

export function put32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

export function put64(bytes: Uint8Array, at: number, value: number): void {
  put32(bytes, at, value);
  put32(bytes, at + 4, Math.floor(value / 0x1_0000_0000));
}
