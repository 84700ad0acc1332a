/** Where the regions of a VHDX file lie. Pure. [MS-VHDX] 2.2.3 */
import { KIB, MIB } from "../../base/units.ts";
import { hasChecksum, structureChecksum } from "./crc32c.ts";
import { readGuid, writeGuid } from "./guid.ts";
import type { Parsed } from "./headers.ts";

export const regionTableBytes: number = 64 * KIB;
/** Where the two copies lie. */
export const regionTableOffsets: readonly number[] = [192 * KIB, 256 * KIB];
/** Everything else lies behind. */
export const headerSectionBytes: number = MIB;

export const batRegion = "2dc27766-f623-4200-9d64-115e9bfd4a08";
export const metadataRegion = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

const entriesMax = 2_047;

export interface Region {
  readonly guid: string;
  readonly offset: number;
  readonly length: number;
  /** Who does not know it must not open the file. QEMU leaves it out of known ones. */
  readonly required: boolean;
}

export function parseRegionTable(bytes: Uint8Array): Parsed<readonly Region[]> {
  if (Buffer.from(bytes.subarray(0, 4)).toString("latin1") !== "regi") return { problem: "signature missing" };
  if (!hasChecksum(bytes)) return { problem: "checksum wrong" };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = view.getUint32(8, true);
  if (count > entriesMax) return { problem: `it has ${count} entries, more than ${entriesMax}` };
  const regions: Region[] = [];
  for (let index = 0; index < count; index++) {
    const at = 16 + index * 32;
    regions.push({
      guid: readGuid(bytes, at),
      offset: Number(view.getBigUint64(at + 16, true)),
      length: view.getUint32(at + 24, true),
      required: (view.getUint32(at + 28, true) & 1) !== 0,
    });
  }
  return { value: regions };
}

export function encodeRegionTable(regions: readonly Region[]): Uint8Array {
  const bytes = new Uint8Array(regionTableBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from("regi", "latin1"));
  view.setUint32(8, regions.length, true);
  for (const [index, { guid, offset, length, required }] of regions.entries()) {
    const at = 16 + index * 32;
    writeGuid(guid, bytes, at);
    view.setBigUint64(at + 16, BigInt(offset), true);
    view.setUint32(at + 24, length, true);
    view.setUint32(at + 28, required ? 1 : 0, true);
  }
  view.setUint32(4, structureChecksum(bytes), true);
  return bytes;
}

/** Undefined: regions and log lie where they may, each for itself. */
export function placesProblem(
  regions: readonly Region[],
  log: { readonly logOffset: number; readonly logBytes: number },
): string | undefined {
  const places = [
    { name: "the log", offset: log.logOffset, length: log.logBytes },
    ...regions.map(({ guid, offset, length }) => ({ name: regionName(guid), offset, length })),
  ];
  for (const { name, offset, length } of places.slice(1)) {
    if (offset < headerSectionBytes || offset % MIB !== 0 || length === 0 || length % MIB !== 0) {
      return `${name} at ${offset}, ${length} bytes, is not in whole MiB behind the headers`;
    }
    if (!Number.isSafeInteger(offset + length)) return `${name} at ${offset} lies beyond the end of any file`;
  }
  const sorted = [...places].sort((a, b) => a.offset - b.offset);
  for (const [index, place] of sorted.entries()) {
    const next = sorted[index + 1];
    if (next !== undefined && place.offset + place.length > next.offset) {
      return `${place.name} at ${place.offset} and ${next.name} at ${next.offset} lie over each other`;
    }
  }
  return undefined;
}

export function regionName(guid: string): string {
  if (guid === batRegion) return "the BAT";
  return guid === metadataRegion ? "the metadata region" : `the region ${guid}`;
}
