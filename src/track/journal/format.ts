/**
 * A bitmap journal as bytes: headers, heartbeats, bitmap pages. docs/formats.md, "Bitmap journal". Pure; little endian. Batches of the log:
 * batch.ts.
 *
 *     header     0 magic "rpljrnl\n" · 8 version u16 · 10 mode u8 · 11 flags u8 · 12 checksum u32 · 16 id 16 bytes · 32 log id 8 bytes
 *                40 generation u64 · 48 size bytes u64 · 56 block bytes u32 · 60 log bytes u32 · 64 epoch u64 · 72 base u64 · 80 pending u64
 *                88 time u64 · 96 pages checksum u32 · 100 hot count u32 · 104 image bytes u64 · 112 image changed u64
 *                120 device · 184 inode · 248 boot · 312 DataWriteGuid: texts · 376 reserved · 512 hot regions u32 each
 *     heartbeat  0 magic "rbjt" · 4 checksum u32 · 8 time u64 · 16 count u64 · 24 generation u64 · 32 batches u32 · 36 reserved
 *     page       0 magic "rbjp" · 4 checksum u32 · 8 page u32 · 12 reserved · 16 generation u64 · 24 reserved · 32 bits
 */
import { crc32 } from "node:zlib";
import { invariant } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import { isBlockSize, KIB, MIB } from "../../base/units.ts";
import type { JournalMode } from "../belief.ts";
import type { DiskBlocks } from "../dirty-bitmap.ts";
import type { Fingerprint } from "../fingerprint.ts";

export const JOURNAL_VERSION = 1;
/** Of each thing that is written by itself: it never shares a sector, of whatever size, with another. */
export const JOURNAL_PAGE_BYTES: number = 4 * KIB;
/** What is made hot at once. */
export const REGION_BYTES: number = 4 * MIB;
export const LOG_ID_BYTES = 8;
export const LOG_BYTES_DEFAULT: number = MIB;
export const LOG_BYTES_MIN: number = 32 * KIB;
export const LOG_BYTES_MAX: number = 64 * MIB;
const pageHeadBytes = 32;
/** Bits in one page of the file, as bytes and as blocks. */
export const PAGE_BIT_BYTES: number = JOURNAL_PAGE_BYTES - pageHeadBytes;
export const PAGE_BLOCKS: number = PAGE_BIT_BYTES * 8;

export const journalMagic: Buffer = Buffer.from("rpljrnl\n", "latin1");
const heartbeatMagic = Buffer.from("rbjt", "latin1");
const pageMagic = Buffer.from("rbjp", "latin1");
const modes: readonly (JournalMode | undefined)[] = [undefined, "power", "process"];
const closedFlag = 1;
const textBytes = 64;
const hotOffset = 512;

export interface JournalHeader extends DiskBlocks {
  readonly mode: JournalMode;
  readonly closed: boolean;
  /** uuid, as text. */
  readonly id: string;
  /** Of the log this header begins: bytes of another one do not count. */
  readonly logId: Uint8Array;
  /** Greater than that of every header and page written before. */
  readonly generation: number;
  readonly logBytes: number;
  /** From 1. What is marked now belongs to it. */
  readonly epoch: number;
  /** The cycle a receiver is known to have, 0: none; and the newest that was cut since, 0: none. */
  readonly base: number;
  readonly pending: number;
  /** Wall clock, milliseconds since 1970. */
  readonly timeMillis: number;
  /** {@link PageDirectory.checksum}. */
  readonly pagesChecksum: number;
  /** Ascending or not; each once. */
  readonly hot: readonly number[];
  readonly image: Fingerprint;
  readonly bootId: string;
}

export interface Heartbeat {
  readonly timeMillis: number;
  /** Of two the one with the greater count is the newer. */
  readonly count: number;
  /** So many batches of the log of this generation's header were durable. */
  readonly generation: number;
  readonly batches: number;
}

export interface JournalPage {
  readonly page: number;
  readonly generation: number;
  /** As in the page's head. */
  readonly checksum: number;
  readonly bits: Uint8Array;
}

/** Where things lie. */
export const journalPlaces = {
  header: (slot: number): number => slot * JOURNAL_PAGE_BYTES,
  heartbeat: (slot: number): number => (2 + slot) * JOURNAL_PAGE_BYTES,
  log: 4 * JOURNAL_PAGE_BYTES,
  page: (page: number, slot: number, logBytes: number): number =>
    4 * JOURNAL_PAGE_BYTES + logBytes + (2 * page + slot) * JOURNAL_PAGE_BYTES,
} as const;

export function pagesOf({ sizeBytes, blockBytes }: DiskBlocks): number {
  return Math.ceil(Math.ceil(sizeBytes / blockBytes) / PAGE_BLOCKS);
}

/** The longest a journal of such a disk becomes, whatever happens: head, log, and each page of bits twice. */
export function journalBytesMax(disk: DiskBlocks, logBytes: number = LOG_BYTES_DEFAULT): number {
  return journalPlaces.page(pagesOf(disk), 0, logBytes);
}

export function encodeHeader(header: JournalHeader): Uint8Array {
  invariant(header.hot.length <= limits.journalHotRegionsMax, "regions that are hot are few");
  const bytes = Buffer.alloc(JOURNAL_PAGE_BYTES);
  bytes.set(journalMagic, 0);
  bytes.writeUInt16LE(JOURNAL_VERSION, 8);
  bytes[10] = modes.indexOf(header.mode);
  bytes[11] = header.closed ? closedFlag : 0;
  bytes.set(uuidBytes(header.id), 16);
  bytes.set(header.logId, 32);
  put64(bytes, 40, header.generation);
  put64(bytes, 48, header.sizeBytes);
  bytes.writeUInt32LE(header.blockBytes, 56);
  bytes.writeUInt32LE(header.logBytes, 60);
  put64(bytes, 64, header.epoch);
  put64(bytes, 72, header.base);
  put64(bytes, 80, header.pending);
  put64(bytes, 88, Math.floor(header.timeMillis));
  bytes.writeUInt32LE(header.pagesChecksum, 96);
  bytes.writeUInt32LE(header.hot.length, 100);
  const { image } = header;
  put64(bytes, 104, image.sizeBytes);
  bytes.writeBigUInt64LE(image.changedNanos, 112);
  [image.device, image.inode, header.bootId, image.dataWriteGuid ?? ""].forEach((text, index) => {
    putText(bytes, 120 + index * textBytes, text);
  });
  header.hot.forEach((region, index) => bytes.writeUInt32LE(region, hotOffset + 4 * index));
  bytes.writeUInt32LE(headerChecksum(bytes), 12);
  return bytes;
}

/** Undefined: not a header, or damaged. A number: the version of a journal this program cannot read. */
export function decodeHeader(source: Uint8Array): JournalHeader | number | undefined {
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.length);
  if (bytes.length < JOURNAL_PAGE_BYTES || !bytes.subarray(0, 8).equals(journalMagic)) return undefined;
  if (bytes.readUInt32LE(12) !== headerChecksum(bytes)) return undefined;
  const version = bytes.readUInt16LE(8);
  if (version !== JOURNAL_VERSION) return version;
  const fields = new HeaderFields(bytes);
  const disk = { sizeBytes: fields.number(48, limits.diskBytesMax), blockBytes: bytes.readUInt32LE(56) };
  const regions = Math.ceil(disk.sizeBytes / REGION_BYTES);
  const dataWriteGuid = fields.text(312);
  const header: JournalHeader = {
    ...disk,
    mode: modes[bytes[10] ?? 0] ?? fields.wrong("power"),
    closed: bytes[11] === closedFlag,
    id: uuidText(bytes.subarray(16, 32)),
    logId: new Uint8Array(bytes.subarray(32, 32 + LOG_ID_BYTES)),
    generation: fields.number(40),
    logBytes: bytes.readUInt32LE(60),
    epoch: fields.number(64),
    base: fields.number(72),
    pending: fields.number(80),
    timeMillis: fields.number(88),
    pagesChecksum: bytes.readUInt32LE(96),
    hot: fields.regions(regions),
    image: {
      sizeBytes: fields.number(104),
      changedNanos: bytes.readBigUInt64LE(112),
      device: fields.text(120),
      inode: fields.text(184),
      dataWriteGuid: dataWriteGuid === "" ? undefined : dataWriteGuid,
    },
    bootId: fields.text(248),
  };
  const { logBytes, epoch, base, pending, generation } = header;
  const fits =
    isBlockSize(disk.blockBytes) &&
    logBytes >= LOG_BYTES_MIN &&
    logBytes <= LOG_BYTES_MAX &&
    logBytes % JOURNAL_PAGE_BYTES === 0;
  const inOrder = generation > 0 && base < epoch && pending < epoch;
  return fits && inOrder && fields.right && (bytes[11] ?? 0) <= closedFlag ? header : undefined;
}

/** Reads fields, and knows afterwards whether all were what they can be. */
class HeaderFields {
  readonly #bytes: Buffer;
  right = true;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  wrong<T>(value: T): T {
    this.right = false;
    return value;
  }

  number(offset: number, max: number = Number.MAX_SAFE_INTEGER): number {
    const value = Number(this.#bytes.readBigUInt64LE(offset));
    return value <= max ? value : this.wrong(0);
  }

  text(offset: number): string {
    const length = this.#bytes[offset] ?? 0;
    if (length >= textBytes) return this.wrong("");
    return this.#bytes.toString("latin1", offset + 1, offset + 1 + length);
  }

  regions(below: number): readonly number[] {
    const count = this.#bytes.readUInt32LE(100);
    if (count > limits.journalHotRegionsMax) return this.wrong([]);
    const regions = Array.from({ length: count }, (_, index) => this.#bytes.readUInt32LE(hotOffset + 4 * index));
    return regions.every((region) => region < below) ? regions : this.wrong([]);
  }
}

/** One sector. */
export function encodeHeartbeat(id: string, { timeMillis, count, generation, batches }: Heartbeat): Uint8Array {
  const bytes = Buffer.alloc(512);
  bytes.set(heartbeatMagic, 0);
  put64(bytes, 8, Math.floor(timeMillis));
  put64(bytes, 16, count);
  put64(bytes, 24, generation);
  bytes.writeUInt32LE(batches, 32);
  bytes.writeUInt32LE(crc32(bytes.subarray(8, 40), seedOf(id)), 4);
  return bytes;
}

/** Undefined: none, damaged, or of another journal. */
export function decodeHeartbeat(source: Uint8Array, id: string): Heartbeat | undefined {
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.length);
  if (bytes.length < 40 || !bytes.subarray(0, 4).equals(heartbeatMagic)) return undefined;
  if (bytes.readUInt32LE(4) !== crc32(bytes.subarray(8, 40), seedOf(id))) return undefined;
  const [timeMillis = 0, count = 0, generation = 0] = [8, 16, 24].map((offset) =>
    Number(bytes.readBigUInt64LE(offset)),
  );
  return { timeMillis, count, generation, batches: bytes.readUInt32LE(32) };
}

/** `fill` gets the page's {@link PAGE_BIT_BYTES} bytes of bits to fill. */
export function encodePage(
  id: string,
  { page, generation }: { readonly page: number; readonly generation: number },
  fill: (bits: Uint8Array) => void,
): { readonly bytes: Uint8Array; readonly checksum: number } {
  const bytes = Buffer.alloc(JOURNAL_PAGE_BYTES);
  bytes.set(pageMagic, 0);
  bytes.writeUInt32LE(page, 8);
  put64(bytes, 16, generation);
  fill(bytes.subarray(pageHeadBytes));
  const checksum = crc32(bytes.subarray(8), seedOf(id));
  bytes.writeUInt32LE(checksum, 4);
  return { bytes, checksum };
}

/** Undefined: none, damaged, or of another journal or place. `bits` is part of `source`. */
export function decodePage(source: Uint8Array, id: string, page: number): JournalPage | undefined {
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.length);
  if (bytes.length < JOURNAL_PAGE_BYTES || !bytes.subarray(0, 4).equals(pageMagic)) return undefined;
  const checksum = bytes.readUInt32LE(4);
  if (bytes.readUInt32LE(8) !== page || checksum !== crc32(bytes.subarray(8, JOURNAL_PAGE_BYTES), seedOf(id))) {
    return undefined;
  }
  const generation = Number(bytes.readBigUInt64LE(16));
  return { page, generation, checksum, bits: bytes.subarray(pageHeadBytes, JOURNAL_PAGE_BYTES) };
}

/** Bytes of another journal in the same place do not pass. */
function seedOf(id: string): number {
  return crc32(uuidBytes(id));
}

function headerChecksum(bytes: Uint8Array): number {
  return crc32(bytes.subarray(16, JOURNAL_PAGE_BYTES), crc32(bytes.subarray(0, 12)));
}

function put64(bytes: Buffer, offset: number, value: number): void {
  bytes.writeBigUInt64LE(BigInt(value), offset);
}

function putText(bytes: Buffer, offset: number, text: string): void {
  invariant(text.length < textBytes, "texts of a header are short");
  bytes[offset] = text.length;
  bytes.write(text, offset + 1, "latin1");
}

function uuidBytes(id: string): Uint8Array {
  const bytes = Buffer.from(id.replaceAll("-", ""), "hex");
  invariant(bytes.length === 16, "a journal's id is a uuid");
  return bytes;
}

function uuidText(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
