/** Entries of the log of a VHDX file, and which of them make up what is to be replayed. Pure. [MS-VHDX] 2.3 */
import { KIB } from "../../base/units.ts";
import { structureChecksum } from "./crc32c.ts";
import { readGuid, writeGuid } from "./guid.ts";

/** The unit of the log, and of what it changes. */
export const LOG_SECTOR_BYTES: number = 4 * KIB;

const headBytes = 64;
export const DESCRIPTOR_BYTES = 32;

/** The head of an entry; its checksum covers all of the entry. */
export interface EntryHead {
  /** Of the entry in the log. */
  readonly at: number;
  readonly length: number;
  /** Where in the log the oldest entry lies that was needed when this one was written. */
  readonly tail: number;
  readonly sequence: bigint;
  readonly descriptors: number;
  /** All of the file up to here was durable when this entry was written. */
  readonly flushedFileBytes: number;
  /** The file is at least this long once the entry is replayed. */
  readonly lastFileBytes: number;
}

/** Of the first bytes of a sector. Undefined: no entry of this log begins here. */
export function parseEntryHead(
  bytes: Uint8Array,
  { at, logBytes, logGuid }: { readonly at: number; readonly logBytes: number; readonly logGuid: string },
): EntryHead | undefined {
  if (Buffer.from(bytes.subarray(0, 4)).toString("latin1") !== "loge") return undefined;
  if (readGuid(bytes, 32) !== logGuid) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, headBytes);
  const head: EntryHead = {
    at,
    length: view.getUint32(8, true),
    tail: view.getUint32(12, true),
    sequence: view.getBigUint64(16, true),
    descriptors: view.getUint32(24, true),
    flushedFileBytes: Number(view.getBigUint64(48, true)),
    lastFileBytes: Number(view.getBigUint64(56, true)),
  };
  const { length, tail } = head;
  if (length === 0 || length % LOG_SECTOR_BYTES !== 0 || length > logBytes) return undefined;
  if (tail % LOG_SECTOR_BYTES !== 0 || tail >= logBytes) return undefined;
  if (head.sequence === 0n || descriptorSectors(head) * LOG_SECTOR_BYTES > length) return undefined;
  return head;
}

/** Sectors of an entry that its head and descriptors take. */
export function descriptorSectors({ descriptors }: Pick<EntryHead, "descriptors">): number {
  return Math.ceil((headBytes + descriptors * DESCRIPTOR_BYTES) / LOG_SECTOR_BYTES);
}

/** A change that an entry makes. */
export type LogChange =
  | { readonly kind: "zero"; readonly offset: number; readonly length: number }
  /** Of one sector; `sector`: which of the entry's has its content, but for the first 8 and the last 4 bytes, which are here. */
  | {
      readonly kind: "data";
      readonly offset: number;
      readonly sector: number;
      readonly first: Uint8Array;
      readonly last: Uint8Array;
    };

/**
 * The changes of an entry whose checksum is right. `bytes`: head and descriptors, which the changes keep. Undefined: they do not hold together, which makes it no entry.
 */
export function parseChanges(bytes: Uint8Array, head: EntryHead): LogChange[] | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const changes: LogChange[] = [];
  let sector = descriptorSectors(head);
  for (let index = 0; index < head.descriptors; index++) {
    const at = headBytes + index * DESCRIPTOR_BYTES;
    const signature = Buffer.from(bytes.subarray(at, at + 4)).toString("latin1");
    const offset = Number(view.getBigUint64(at + 16, true));
    if (view.getBigUint64(at + 24, true) !== head.sequence) return undefined;
    if (offset % LOG_SECTOR_BYTES !== 0 || !Number.isSafeInteger(offset)) return undefined;
    if (signature === "zero") {
      const length = Number(view.getBigUint64(at + 8, true));
      if (length % LOG_SECTOR_BYTES !== 0 || !Number.isSafeInteger(offset + length)) return undefined;
      changes.push({ kind: "zero", offset, length });
    } else if (signature === "desc") {
      changes.push({
        kind: "data",
        offset,
        sector,
        first: bytes.subarray(at + 8, at + 16),
        last: bytes.subarray(at + 4, at + 8),
      });
      sector++;
    } else return undefined;
  }
  return sector * LOG_SECTOR_BYTES === head.length ? changes : undefined;
}

/** Whether a sector of an entry is one of content of that entry, and not of an older one that lay here. */
export function isDataSector(bytes: Uint8Array, sequence: bigint): boolean {
  if (Buffer.from(bytes.subarray(0, 4)).toString("latin1") !== "data") return false;
  const view = new DataView(bytes.buffer, bytes.byteOffset, LOG_SECTOR_BYTES);
  const high = BigInt(view.getUint32(4, true));
  const low = BigInt(view.getUint32(LOG_SECTOR_BYTES - 4, true));
  return ((high << 32n) | low) === sequence;
}

/** Puts in place what of a sector its descriptor has. `bytes`: of the sector from its byte `from` on. */
export function completeSector(
  bytes: Uint8Array,
  from: number,
  { first, last }: { readonly first: Uint8Array; readonly last: Uint8Array },
): void {
  const lastAt = LOG_SECTOR_BYTES - last.length;
  for (const [index, byte] of first.entries())
    if (index >= from && index - from < bytes.length) bytes[index - from] = byte;
  for (const [index, byte] of last.entries()) {
    const at = lastAt + index - from;
    if (at >= 0 && at < bytes.length) bytes[at] = byte;
  }
}

/**
 * Entries follow each other in the log, each with the next sequence number. What is to be replayed is the sequence with the newest last entry, from
 * the one which that entry names as its tail; a sequence that does not reach back so far is none. Empty: there is none. `entries`: whole ones
 * by where they begin.
 */
export function activeSequence(entries: ReadonlyMap<number, EntryHead>, logBytes: number): EntryHead[] {
  const nextOf = (entry: EntryHead): EntryHead | undefined => {
    const next = entries.get((entry.at + entry.length) % logBytes);
    return next?.sequence === entry.sequence + 1n ? next : undefined;
  };
  // Newest first, so that what follows an entry is known before it.
  const sorted = [...entries.values()].sort((a, b) => (a.sequence < b.sequence ? 1 : -1));
  const lastOf = new Map<EntryHead, EntryHead>();
  for (const entry of sorted) {
    const next = nextOf(entry);
    lastOf.set(entry, (next === undefined ? undefined : lastOf.get(next)) ?? entry);
  }
  for (const last of sorted) {
    const tail = entries.get(last.tail);
    if (tail === undefined || lastOf.get(tail) !== last) continue;
    const sequence: EntryHead[] = [];
    for (let entry: EntryHead | undefined = tail; entry !== undefined; entry = nextOf(entry)) sequence.push(entry);
    return sequence;
  }
  return [];
}

/** An entry that puts sectors in place, as bytes. */
export function encodeEntry(entry: {
  readonly logGuid: string;
  readonly sequence: bigint;
  readonly tail: number;
  readonly flushedFileBytes: number;
  readonly lastFileBytes: number;
  readonly sectors: readonly { readonly offset: number; readonly bytes: Uint8Array }[];
}): Uint8Array {
  const { sequence, sectors } = entry;
  const front = descriptorSectors({ descriptors: sectors.length });
  const bytes = new Uint8Array((front + sectors.length) * LOG_SECTOR_BYTES);
  const view = new DataView(bytes.buffer);
  const sign = (at: number, signature: string): void => bytes.set(Buffer.from(signature, "latin1"), at);
  sign(0, "loge");
  view.setUint32(8, bytes.length, true);
  view.setUint32(12, entry.tail, true);
  view.setBigUint64(16, sequence, true);
  view.setUint32(24, sectors.length, true);
  writeGuid(entry.logGuid, bytes, 32);
  view.setBigUint64(48, BigInt(entry.flushedFileBytes), true);
  view.setBigUint64(56, BigInt(entry.lastFileBytes), true);
  for (const [index, { offset, bytes: content }] of sectors.entries()) {
    const at = headBytes + index * DESCRIPTOR_BYTES;
    sign(at, "desc");
    bytes.set(content.subarray(LOG_SECTOR_BYTES - 4), at + 4);
    bytes.set(content.subarray(0, 8), at + 8);
    view.setBigUint64(at + 16, BigInt(offset), true);
    view.setBigUint64(at + 24, sequence, true);
    const place = (front + index) * LOG_SECTOR_BYTES;
    bytes.set(content, place);
    sign(place, "data");
    view.setUint32(place + 4, Number(sequence >> 32n), true);
    view.setUint32(place + LOG_SECTOR_BYTES - 4, Number(sequence & 0xffff_ffffn), true);
  }
  view.setUint32(4, structureChecksum(bytes), true);
  return bytes;
}
