/**
 * Batches of a journal's log, and the records in them. docs/formats.md, "Bitmap journal". Pure; little endian.
 *
 *     batch  0 magic "rbjb" · 4 checksum u32 · 8 log id · 16 generation u64 · 24 number u32 · 28 record bytes u32 · 32 records
 *     hot    0 kind 1 u32 · 4 region u32
 *     cool   0 kind 2 u32 · 4 region u32 · 8 bits of the region, a multiple of 8 bytes
 *     range  0 kind 3 u32 · 4 reserved · 8 first block u64 · 16 blocks u64
 *     flip   0 kind 4 u32 · 4 reserved · 8 epoch u64
 */
import { crc32 } from "node:zlib";
import type { BlockRange } from "../dirty-bitmap.ts";
import { JOURNAL_PAGE_BYTES, LOG_ID_BYTES, REGION_BYTES } from "./format.ts";

/**
 * `hot`: from now on all of the region counts as dirty. `cool`: of the region's blocks those in `bits` are dirty, and it is hot no longer.
 * `range`: these are dirty. `flip`: this epoch is closed, and the next begun.
 */
export type LogRecord =
  | { readonly kind: "hot"; readonly region: number }
  | { readonly kind: "cool"; readonly region: number; readonly bits: Uint8Array }
  | { readonly kind: "range"; readonly blocks: BlockRange }
  | { readonly kind: "flip"; readonly epoch: number };

export interface BatchPlace {
  readonly logId: Uint8Array;
  readonly generation: number;
  /** Of the batch within its log, from 1. */
  readonly number: number;
}

export interface Batch extends BatchPlace {
  /** Of the whole, padded to pages. */
  readonly bytes: number;
  readonly records: readonly LogRecord[];
}

const magic = Buffer.from("rbjb", "latin1");
const headBytes = 32;
const kinds = { hot: 1, cool: 2, range: 3, flip: 4 } as const;

/** Bytes of the bits of one region, as they are in a record. */
export function regionBitBytes(blockBytes: number): number {
  return Math.ceil(REGION_BYTES / blockBytes / 64) * 8;
}

/** Padded with zeros to pages. */
export function encodeBatch({ logId, generation, number }: BatchPlace, records: readonly LogRecord[]): Uint8Array {
  const body = Buffer.concat(records.map(encodeRecord));
  const length = headBytes + body.length;
  const bytes = Buffer.alloc(Math.ceil(length / JOURNAL_PAGE_BYTES) * JOURNAL_PAGE_BYTES);
  bytes.set(magic, 0);
  bytes.set(logId, 8);
  bytes.writeBigUInt64LE(BigInt(generation), 16);
  bytes.writeUInt32LE(number, 24);
  bytes.writeUInt32LE(body.length, 28);
  bytes.set(body, headBytes);
  bytes.writeUInt32LE(batchChecksum(bytes.subarray(0, length)), 4);
  return bytes;
}

function encodeRecord(record: LogRecord): Uint8Array {
  const bytes = Buffer.alloc(record.kind === "range" ? 24 : record.kind === "flip" ? 16 : 8);
  bytes.writeUInt32LE(kinds[record.kind], 0);
  switch (record.kind) {
    case "hot":
      bytes.writeUInt32LE(record.region, 4);
      return bytes;
    case "cool":
      bytes.writeUInt32LE(record.region, 4);
      return Buffer.concat([bytes, record.bits]);
    case "range":
      bytes.writeBigUInt64LE(BigInt(record.blocks.first), 8);
      bytes.writeBigUInt64LE(BigInt(record.blocks.count), 16);
      return bytes;
    case "flip":
      bytes.writeBigUInt64LE(BigInt(record.epoch), 8);
      return bytes;
  }
}

/**
 * The batch at the start of `source`, of whatever log; undefined: none, torn, or damaged. A batch whose records cannot be has none:
 * `records` undefined.
 */
export function decodeBatch(
  source: Uint8Array,
  blockBytes: number,
): (BatchPlace & { readonly bytes: number; readonly records: readonly LogRecord[] | undefined }) | undefined {
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.length);
  if (bytes.length < headBytes || !bytes.subarray(0, 4).equals(magic)) return undefined;
  const bodyBytes = bytes.readUInt32LE(28);
  const length = headBytes + bodyBytes;
  if (length > bytes.length || bytes.readUInt32LE(4) !== batchChecksum(bytes.subarray(0, length))) return undefined;
  return {
    logId: new Uint8Array(bytes.subarray(8, 8 + LOG_ID_BYTES)),
    generation: Number(bytes.readBigUInt64LE(16)),
    number: bytes.readUInt32LE(24),
    bytes: Math.ceil(length / JOURNAL_PAGE_BYTES) * JOURNAL_PAGE_BYTES,
    records: decodeRecords(bytes.subarray(headBytes, length), regionBitBytes(blockBytes)),
  };
}

function decodeRecords(bytes: Buffer, bitBytes: number): readonly LogRecord[] | undefined {
  const records: LogRecord[] = [];
  for (let at = 0; at < bytes.length; ) {
    const left = bytes.length - at;
    const kind = left < 8 ? 0 : bytes.readUInt32LE(at);
    if (kind === kinds.hot) {
      records.push({ kind: "hot", region: bytes.readUInt32LE(at + 4) });
      at += 8;
    } else if (kind === kinds.cool && left >= 8 + bitBytes) {
      const bits = new Uint8Array(bytes.subarray(at + 8, at + 8 + bitBytes));
      records.push({ kind: "cool", region: bytes.readUInt32LE(at + 4), bits });
      at += 8 + bitBytes;
    } else if (kind === kinds.range && left >= 24) {
      const [first, count] = [Number(bytes.readBigUInt64LE(at + 8)), Number(bytes.readBigUInt64LE(at + 16))];
      records.push({ kind: "range", blocks: { first, count } });
      at += 24;
    } else if (kind === kinds.flip && left >= 16) {
      records.push({ kind: "flip", epoch: Number(bytes.readBigUInt64LE(at + 8)) });
      at += 16;
    } else return undefined;
  }
  return records;
}

/** Seeded by the log's id, which lies in the batch as well: so bytes of any log can be told from none. */
function batchChecksum(bytes: Uint8Array): number {
  return crc32(bytes.subarray(8), crc32(bytes.subarray(8, 8 + LOG_ID_BYTES)));
}
