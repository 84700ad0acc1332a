/** The two headers of a VHDX file, and which of them counts. Pure. [MS-VHDX] 2.2.2 */
import { KIB, MIB } from "../../base/units.ts";
import { hasChecksum, structureChecksum } from "./crc32c.ts";
import { readGuid, writeGuid } from "./guid.ts";

export const fileSignature = "vhdxfile";
export const headerBytes: number = 4 * KIB;
/** Where the two lie. */
export const headerOffsets: readonly number[] = [64 * KIB, 128 * KIB];

export interface VhdxHeader {
  readonly offset: number;
  /** Numbers from Windows exceed 2^53. */
  readonly sequence: bigint;
  readonly fileWriteGuid: string;
  readonly dataWriteGuid: string;
  /** Of no log: {@link noGuid}. */
  readonly logGuid: string;
  readonly logVersion: number;
  readonly version: number;
  readonly logBytes: number;
  readonly logOffset: number;
  /** All of it. */
  readonly bytes: Uint8Array;
}

/** What a structure says, or why it cannot be believed: "checksum wrong". */
export type Parsed<T> = { readonly value: T; readonly problem?: undefined } | { readonly problem: string };

export function parseHeader(bytes: Uint8Array, offset: number): Parsed<VhdxHeader> {
  if (bytes.length < headerBytes) return { problem: "the file ends before it" };
  const view = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  if (Buffer.from(bytes.subarray(0, 4)).toString("latin1") !== "head") return { problem: "signature missing" };
  if (!hasChecksum(bytes.subarray(0, headerBytes))) return { problem: "checksum wrong" };
  const value: VhdxHeader = {
    offset,
    sequence: view.getBigUint64(8, true),
    fileWriteGuid: readGuid(bytes, 16),
    dataWriteGuid: readGuid(bytes, 32),
    logGuid: readGuid(bytes, 48),
    logVersion: view.getUint16(64, true),
    version: view.getUint16(66, true),
    logBytes: view.getUint32(68, true),
    logOffset: Number(view.getBigUint64(72, true)),
    bytes: bytes.subarray(0, headerBytes),
  };
  return { value };
}

/** A header as bytes, with its checksum. */
export function encodeHeader(header: Omit<VhdxHeader, "bytes" | "offset">): Uint8Array {
  const bytes = new Uint8Array(headerBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from("head", "latin1"));
  view.setBigUint64(8, header.sequence, true);
  writeGuid(header.fileWriteGuid, bytes, 16);
  writeGuid(header.dataWriteGuid, bytes, 32);
  writeGuid(header.logGuid, bytes, 48);
  view.setUint16(64, header.logVersion, true);
  view.setUint16(66, header.version, true);
  view.setUint32(68, header.logBytes, true);
  view.setBigUint64(72, BigInt(header.logOffset), true);
  view.setUint32(4, structureChecksum(bytes), true);
  return bytes;
}

export interface ChosenHeader {
  readonly header: VhdxHeader;
  /** What is wrong with the other one; undefined: nothing. */
  readonly remark: string | undefined;
}

/**
 * The header with the greater sequence number of those that are whole. Disk2VHD writes the same header twice; two that say different things under one
 * number are damage.
 */
export function chooseHeader(headers: readonly Parsed<VhdxHeader>[]): Parsed<ChosenHeader> {
  const [one, two] = headers;
  if (one === undefined || two === undefined) return { problem: "there are no headers" };
  if (one.problem !== undefined && two.problem !== undefined) {
    return {
      problem: `neither header can be used: header 1 at ${headerOffsets[0]}: ${one.problem}; header 2 at ${headerOffsets[1]}: ${two.problem}`,
    };
  }
  if (one.problem !== undefined)
    return two.problem === undefined
      ? { value: { header: two.value, remark: `header 1: ${one.problem}, header 2 used` } }
      : { problem: two.problem };
  if (two.problem !== undefined)
    return { value: { header: one.value, remark: `header 2: ${two.problem}, header 1 used` } };
  if (one.value.sequence > two.value.sequence) return { value: { header: one.value, remark: undefined } };
  if (one.value.sequence < two.value.sequence) return { value: { header: two.value, remark: undefined } };
  if (Buffer.compare(one.value.bytes, two.value.bytes) === 0)
    return { value: { header: one.value, remark: undefined } };
  return {
    problem: `the headers at ${headerOffsets[0]} and ${headerOffsets[1]} have the same sequence number ${one.value.sequence} and differ`,
  };
}

/** Undefined: what it says of the log can be. */
export function logProblem({ logBytes, logOffset }: VhdxHeader): string | undefined {
  if (logBytes === 0 || logBytes % MIB !== 0) return `the log has ${logBytes} bytes, which is no multiple of 1 MiB`;
  if (logOffset < MIB || logOffset % MIB !== 0 || !Number.isSafeInteger(logOffset)) {
    return `the log begins at ${logOffset}, which is no multiple of 1 MiB behind the headers`;
  }
  return undefined;
}
