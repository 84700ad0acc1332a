/** What a VHDX file says of its disk. Pure. [MS-VHDX] 2.6 */
import { KIB, MIB } from "../../base/units.ts";
import { readGuid, writeGuid } from "./guid.ts";
import type { Parsed } from "./headers.ts";

export const metadataTableBytes: number = 64 * KIB;
const entriesMax = 2_047;
const itemBytesMax: number = MIB;

export const metadataItems = {
  fileParameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  diskSize: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  diskId: "beca12ab-b2e6-4523-93ef-c309e000c746",
  logicalSector: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  physicalSector: "cda348c7-445d-4471-9cc9-e9885251c556",
  parentLocator: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
} as const;

const known: ReadonlySet<string> = new Set(Object.values(metadataItems));

export interface MetadataEntry {
  readonly item: string;
  /** In the metadata region. */
  readonly offset: number;
  readonly length: number;
  readonly isUser: boolean;
  readonly isRequired: boolean;
}

/** Of the table at the start of the region; items lie behind it. */
export function parseMetadataTable(table: Uint8Array, regionBytes: number): Parsed<readonly MetadataEntry[]> {
  if (Buffer.from(table.subarray(0, 8)).toString("latin1") !== "metadata") return { problem: "signature missing" };
  const view = new DataView(table.buffer, table.byteOffset, table.length);
  const count = view.getUint16(10, true);
  if (count > entriesMax) return { problem: `it has ${count} entries, more than ${entriesMax}` };
  const entries: MetadataEntry[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < count; index++) {
    const at = 32 + index * 32;
    const flags = view.getUint32(at + 24, true);
    const entry: MetadataEntry = {
      item: readGuid(table, at),
      offset: view.getUint32(at + 16, true),
      length: view.getUint32(at + 20, true),
      isUser: (flags & 1) !== 0,
      isRequired: (flags & 4) !== 0,
    };
    const { item, offset, length, isUser } = entry;
    if (length > itemBytesMax || (length > 0 && (offset < metadataTableBytes || offset + length > regionBytes))) {
      return { problem: `item ${item} at ${offset}, ${length} bytes, does not lie in its region` };
    }
    if (seen.has(`${item} ${isUser}`)) return { problem: `item ${item} is there twice` };
    seen.add(`${item} ${isUser}`);
    entries.push(entry);
  }
  return { value: entries };
}

/** A required item that is not known here, by its GUID. Whoever does not know it must not open the file. */
export function unknownRequired(entries: readonly MetadataEntry[]): string | undefined {
  return entries.find(({ item, isUser, isRequired }) => isRequired && (isUser || !known.has(item)))?.item;
}

/** The disk as its metadata describe it. */
export interface VhdxDisk {
  readonly payloadBlockBytes: number;
  /** Blocks are meant to stay allocated. Says nothing of what the BAT holds. */
  readonly fixed: boolean;
  readonly hasParent: boolean;
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly physicalSectorBytes: 512 | 4096;
  readonly diskId: string | undefined;
}

/** `itemOf`: the bytes of a system item; undefined: not there. */
export function parseDisk(itemOf: (item: string) => Uint8Array | undefined, sizeBytesMax: number): Parsed<VhdxDisk> {
  const parameters = itemOf(metadataItems.fileParameters);
  const size = itemOf(metadataItems.diskSize);
  const logical = itemOf(metadataItems.logicalSector);
  const physical = itemOf(metadataItems.physicalSector);
  for (const [name, bytes, length] of [
    ["the file parameters", parameters, 8],
    ["the size of the disk", size, 8],
    ["the logical sector", logical, 4],
    ["the physical sector", physical, 4],
  ] as const) {
    if (bytes === undefined) return { problem: `${name} are missing`.replace(/(sector|disk) are/, "$1 is") };
    if (bytes.length < length) return { problem: `${name}: ${bytes.length} bytes, needed ${length}` };
  }
  const payloadBlockBytes = uint32(parameters, 0);
  const flags = uint32(parameters, 4);
  const sizeBytes = uint32(size, 0) + uint32(size, 4) * 2 ** 32;
  const sectorBytes = sector(uint32(logical, 0));
  const physicalSectorBytes = sector(uint32(physical, 0));
  if (sectorBytes === undefined) return { problem: `logical sectors of ${uint32(logical, 0)} bytes` };
  if (physicalSectorBytes === undefined) return { problem: `physical sectors of ${uint32(physical, 0)} bytes` };
  const isPower = Number.isInteger(Math.log2(payloadBlockBytes));
  if (!isPower || payloadBlockBytes < MIB || payloadBlockBytes > 256 * MIB) {
    return { problem: `payload blocks of ${payloadBlockBytes} bytes` };
  }
  if (sizeBytes % sectorBytes !== 0 || sizeBytes > sizeBytesMax) {
    return { problem: `a disk of ${sizeBytes} bytes, with sectors of ${sectorBytes}` };
  }
  const id = itemOf(metadataItems.diskId);
  return {
    value: {
      payloadBlockBytes,
      fixed: (flags & 1) !== 0,
      hasParent: (flags & 2) !== 0,
      sizeBytes,
      sectorBytes,
      physicalSectorBytes,
      diskId: id === undefined || id.length < 16 ? undefined : readGuid(id, 0),
    },
  };
}

/** Table and items of a disk without a parent: the start of its metadata region. */
export function encodeMetadata(disk: Omit<VhdxDisk, "hasParent" | "diskId"> & { readonly diskId: string }): Uint8Array {
  const bytes = new Uint8Array(metadataTableBytes + 4 * KIB);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from("metadata", "latin1"));
  let at = metadataTableBytes;
  const ofDisk = 2;
  const required = 4;
  const items: readonly [item: string, length: number, flags: number, fill: (at: number) => void][] = [
    [
      metadataItems.fileParameters,
      8,
      required,
      (place) => {
        view.setUint32(place, disk.payloadBlockBytes, true);
        view.setUint32(place + 4, disk.fixed ? 1 : 0, true);
      },
    ],
    [metadataItems.diskSize, 8, ofDisk | required, (place) => view.setBigUint64(place, BigInt(disk.sizeBytes), true)],
    [metadataItems.logicalSector, 4, ofDisk | required, (place) => view.setUint32(place, disk.sectorBytes, true)],
    [
      metadataItems.physicalSector,
      4,
      ofDisk | required,
      (place) => view.setUint32(place, disk.physicalSectorBytes, true),
    ],
    [metadataItems.diskId, 16, ofDisk | required, (place) => writeGuid(disk.diskId, bytes, place)],
  ];
  view.setUint16(10, items.length, true);
  for (const [index, [item, length, flags, fill]] of items.entries()) {
    const entry = 32 + index * 32;
    writeGuid(item, bytes, entry);
    view.setUint32(entry + 16, at, true);
    view.setUint32(entry + 20, length, true);
    view.setUint32(entry + 24, flags, true);
    fill(at);
    at += Math.ceil(length / 8) * 8;
  }
  return bytes;
}

function sector(bytes: number): 512 | 4096 | undefined {
  return bytes === 512 || bytes === 4096 ? bytes : undefined;
}

function uint32(bytes: Uint8Array | undefined, at: number): number {
  if (bytes === undefined) return 0;
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(at, true);
}
