/** Footer and dynamic header of a VHD file. All numbers are big endian. Pure. */
import { limits } from "../../base/limits.ts";
import { MIB } from "../../base/units.ts";

export const footerBytes = 512;
export const dynamicHeaderBytes = 1024;
const sectorBytes = 512;

export type VhdType = "fixed" | "dynamic" | "differencing";
const types: Readonly<Record<number, VhdType>> = { 2: "fixed", 3: "dynamic", 4: "differencing" };

export interface VhdFooter {
  readonly type: VhdType;
  /** Of the disk. The geometry beside it is rounded and means nothing. */
  readonly sizeBytes: number;
  /** Where the dynamic header lies; of a fixed file nowhere. */
  readonly headerAt: number;
  readonly creator: string;
  readonly id: string;
  readonly checksumRight: boolean;
}

/** Undefined: it is none. A string: why it cannot be used. */
export function parseFooter(bytes: Uint8Array): VhdFooter | string | undefined {
  if (bytes.length < footerBytes || text(bytes, 0, 8) !== "conectix") return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, footerBytes);
  const type = types[view.getUint32(60)];
  if (type === undefined) return `its type ${view.getUint32(60)} is unknown`;
  if (view.getUint32(12) >>> 16 !== 1) return `its version ${view.getUint32(12)} is unknown`;
  const sizeBytes = Number(view.getBigUint64(48));
  if (sizeBytes % sectorBytes !== 0 || sizeBytes > limits.diskBytesMax) return `a disk of ${sizeBytes} bytes`;
  return {
    type,
    sizeBytes,
    headerAt: Number(view.getBigUint64(16)),
    creator: text(bytes, 28, 4).trim(),
    id: Buffer.from(bytes.subarray(68, 84)).toString("hex"),
    checksumRight: sum(bytes.subarray(0, footerBytes), 64) === view.getUint32(64),
  };
}

export interface VhdHeader {
  readonly tableAt: number;
  readonly entries: number;
  readonly payloadBlockBytes: number;
  readonly parentId: string;
  readonly parentName: string;
  readonly locators: readonly {
    readonly platform: string;
    readonly at: number;
    readonly length: number;
  }[];
  readonly checksumRight: boolean;
}

/** A string: why it cannot be used. */
export function parseDynamicHeader(bytes: Uint8Array): VhdHeader | string {
  if (text(bytes, 0, 8) !== "cxsparse") return "the signature of its dynamic header is missing";
  const view = new DataView(bytes.buffer, bytes.byteOffset, dynamicHeaderBytes);
  if (view.getUint32(24) >>> 16 !== 1) return `the version ${view.getUint32(24)} of its dynamic header is unknown`;
  const payloadBlockBytes = view.getUint32(32);
  // 512 KiB and 2 MiB are in use.
  const isPower = Number.isInteger(Math.log2(payloadBlockBytes));
  if (!isPower || payloadBlockBytes < 4096 || payloadBlockBytes > 256 * MIB) {
    return `payload blocks of ${payloadBlockBytes} bytes`;
  }
  return {
    tableAt: Number(view.getBigUint64(16)),
    entries: view.getUint32(28),
    payloadBlockBytes,
    parentId: Buffer.from(bytes.subarray(40, 56)).toString("hex"),
    parentName: utf16(bytes.subarray(64, 576), "big").replace(/\0.*$/s, ""),
    locators: Array.from({ length: 8 }, (_unused, index) => {
      const at = 576 + index * 24;
      return { platform: text(bytes, at, 4), at: Number(view.getBigUint64(at + 16)), length: view.getUint32(at + 8) };
    }).filter(({ platform, length }) => platform !== "\0\0\0\0" && length > 0),
    checksumRight: sum(bytes.subarray(0, dynamicHeaderBytes), 36) === view.getUint32(36),
  };
}

/** One's complement of the sum of all bytes but the four of the checksum. */
export function sum(bytes: Uint8Array, checksumAt: number): number {
  let total = 0;
  for (const [index, byte] of bytes.entries()) if (index < checksumAt || index >= checksumAt + 4) total += byte;
  return ~total >>> 0;
}

export function utf16(bytes: Uint8Array, order: "big" | "little"): string {
  const copy = Buffer.from(bytes.subarray(0, bytes.length - (bytes.length % 2)));
  return (order === "big" ? copy.swap16() : copy).toString("utf16le");
}

function text(bytes: Uint8Array, at: number, length: number): string {
  return Buffer.from(bytes.subarray(at, at + length)).toString("latin1");
}
