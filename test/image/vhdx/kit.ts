/** VHDX files written down plainly, whole or wrong on purpose, and files in memory to read them from. */
import { MIB } from "../../../src/base/units.ts";
import { structureChecksum } from "../../../src/image/vhdx/crc32c.ts";
import { writeGuid } from "../../../src/image/vhdx/guid.ts";
import { openVhdx, type VhdxChain } from "../../../src/image/vhdx/open.ts";
import type { FileStat, LaneStorage, Storage, StorageFile } from "../../../src/storage/seam.ts";
import type { Piece } from "../conformance.ts";
import { writePieces } from "../pieces.ts";

export const guids = {
  bat: "2dc27766-f623-4200-9d64-115e9bfd4a08",
  metadata: "8b7ca206-4790-4b9a-b8fe-575f050f886e",
  fileParameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  diskSize: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  logicalSector: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  diskId: "beca12ab-b2e6-4523-93ef-c309e000c746",
  physicalSector: "cda348c7-445d-4471-9cc9-e9885251c556",
  parentLocator: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
  vhdxLocator: "b04aefb7-d19e-4a81-b789-25b8e9445913",
  data: "11111111-2222-3333-4444-555555555555",
  log: "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
} as const;

/** Where things lie in what {@link buildVhdx} makes. */
export const places = {
  headers: [64 * 1024, 128 * 1024],
  regionTables: [192 * 1024, 256 * 1024],
  log: MIB,
  metadata: 2 * MIB,
  bat: 3 * MIB,
} as const;

export const blockState = { notPresent: 0, undefined: 1, zero: 2, unmapped: 3, present: 6, partly: 7 } as const;

export interface VhdxPlan {
  readonly sizeBytes: number;
  readonly payloadBlockBytes?: number;
  readonly sectorBytes?: 512 | 4096;
  readonly fixed?: boolean;
  readonly dataGuid?: string;
  /** Entries of the parent locator. Its presence makes the file a differencing one. */
  readonly parent?: Readonly<Record<string, string>>;
  /** Content; blocks that it touches are present, or partly present where the file has a parent. */
  readonly pieces?: readonly Piece[];
  /** States of blocks that have no content. */
  readonly states?: ReadonlyMap<number, number>;
  /** Entries of the log, one behind the other from its start; the header names their log. */
  readonly log?: readonly LogEntryPlan[];
  readonly sequences?: readonly [bigint, bigint];
  readonly regionRequired?: boolean;
}

export interface LogEntryPlan {
  readonly sequence: bigint;
  /** In the log. */
  readonly tail: number;
  readonly flushed: number;
  readonly last: number;
  readonly zeros?: readonly { readonly offset: number; readonly length: number }[];
  readonly sectors?: readonly { readonly offset: number; readonly bytes: Uint8Array }[];
}

export interface BuiltVhdx {
  /** What is not here is zero. */
  readonly pieces: Piece[];
  readonly sizeBytes: number;
  /** Where each payload block with content begins. */
  readonly blockPlaces: ReadonlyMap<number, number>;
  /** Where the BAT's entry of a block lies. */
  entryOf(block: number): number;
}

export function buildVhdx(plan: VhdxPlan): BuiltVhdx {
  const { sizeBytes, payloadBlockBytes = MIB, sectorBytes = 512 } = plan;
  const ratio = (2 ** 23 * sectorBytes) / payloadBlockBytes;
  const entryOf = (block: number): number => places.bat + (block + Math.floor(block / ratio)) * 8;
  const bitmapEntryOf = (chunk: number): number => places.bat + (chunk * (ratio + 1) + ratio) * 8;
  const blocks = Math.ceil(sizeBytes / payloadBlockBytes);
  const entries = (Math.floor(Math.max(blocks - 1, 0) / ratio) + 1) * (ratio + 1);
  const batBytes = Math.max(1, Math.ceil((entries * 8) / MIB)) * MIB;
  const pieces: Piece[] = [];
  const entry = (offset: number, state: number, at = 0): void => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(at) | BigInt(state));
    pieces.push({ offset, bytes });
  };
  let end = places.bat + batBytes;
  const blockPlaces = new Map<number, number>();
  const bitmapPlaces = new Map<number, number>();
  for (const [block, state] of plan.states ?? []) entry(entryOf(block), state);
  for (const piece of plan.pieces ?? []) {
    for (let done = 0; done < piece.bytes.length; ) {
      const offset = piece.offset + done;
      const block = Math.floor(offset / payloadBlockBytes);
      const within = offset - block * payloadBlockBytes;
      const length = Math.min(payloadBlockBytes - within, piece.bytes.length - done);
      let place = blockPlaces.get(block);
      if (place === undefined) {
        place = end;
        end += payloadBlockBytes;
        blockPlaces.set(block, place);
        entry(entryOf(block), plan.parent === undefined ? blockState.present : blockState.partly, place);
      }
      pieces.push({ offset: place + within, bytes: piece.bytes.subarray(done, done + length) });
      if (plan.parent !== undefined) {
        const chunk = Math.floor(block / ratio);
        let bitmap = bitmapPlaces.get(chunk);
        if (bitmap === undefined) {
          bitmap = end;
          end += MIB;
          bitmapPlaces.set(chunk, bitmap);
          entry(bitmapEntryOf(chunk), 6, bitmap);
        }
        for (let sector = Math.floor(offset / sectorBytes); sector * sectorBytes < offset + length; sector++) {
          setBit(pieces, bitmap, sector % 2 ** 23);
        }
      }
      done += length;
    }
  }
  pieces.push(...header(plan), ...regionTables(batBytes, plan.regionRequired ?? true), ...metadata(plan));
  let at = places.log;
  for (const each of plan.log ?? []) {
    const bytes = logEntry(each);
    pieces.push({ offset: at, bytes });
    at += bytes.length;
  }
  return { pieces, sizeBytes: end, blockPlaces, entryOf };
}

const bitmapPages = new WeakMap<Piece[], Map<number, Buffer>>();

function setBit(pieces: Piece[], bitmap: number, index: number): void {
  const pages = bitmapPages.get(pieces) ?? new Map<number, Buffer>();
  bitmapPages.set(pieces, pages);
  const offset = bitmap + Math.floor(index / 8 / 4096) * 4096;
  let page = pages.get(offset);
  if (page === undefined) {
    page = Buffer.alloc(4096);
    pages.set(offset, page);
    pieces.push({ offset, bytes: page });
  }
  const at = Math.floor(index / 8) % 4096;
  page[at] = (page[at] ?? 0) | (1 << (index % 8));
}

function header(plan: VhdxPlan): Piece[] {
  const identifier = Buffer.alloc(520);
  identifier.write("vhdxfile", "latin1");
  identifier.write("a test", 8, "utf16le");
  const [one, two] = plan.sequences ?? [1n, 2n];
  return [
    { offset: 0, bytes: identifier },
    ...[one, two].map((sequence, index) => ({
      offset: places.headers[index] ?? 0,
      bytes: sealed(headerBytes(sequence, plan)),
    })),
  ];
}

export function headerBytes(sequence: bigint, plan: Pick<VhdxPlan, "dataGuid" | "log">): Buffer {
  const bytes = Buffer.alloc(4096);
  bytes.write("head", "latin1");
  bytes.writeBigUInt64LE(sequence, 8);
  writeGuid("99999999-0000-0000-0000-000000000001", bytes, 16);
  writeGuid(plan.dataGuid ?? guids.data, bytes, 32);
  if (plan.log !== undefined) writeGuid(guids.log, bytes, 48);
  bytes.writeUInt16LE(1, 66);
  bytes.writeUInt32LE(MIB, 68);
  bytes.writeBigUInt64LE(BigInt(places.log), 72);
  return bytes;
}

/** With its checksum. */
export function sealed(bytes: Buffer): Buffer {
  bytes.writeUInt32LE(structureChecksum(bytes), 4);
  return bytes;
}

function regionTables(batBytes: number, required: boolean): Piece[] {
  const bytes = regionTable([
    { guid: guids.bat, offset: places.bat, length: batBytes, required },
    { guid: guids.metadata, offset: places.metadata, length: MIB, required },
  ]);
  return places.regionTables.map((offset) => ({ offset, bytes }));
}

export function regionTable(
  regions: readonly {
    readonly guid: string;
    readonly offset: number;
    readonly length: number;
    readonly required: boolean;
  }[],
): Buffer {
  const bytes = Buffer.alloc(64 * 1024);
  bytes.write("regi", "latin1");
  bytes.writeUInt32LE(regions.length, 8);
  for (const [index, region] of regions.entries()) {
    const at = 16 + index * 32;
    writeGuid(region.guid, bytes, at);
    bytes.writeBigUInt64LE(BigInt(region.offset), at + 16);
    bytes.writeUInt32LE(region.length, at + 24);
    bytes.writeUInt32LE(region.required ? 1 : 0, at + 28);
  }
  return sealed(bytes);
}

function metadata(plan: VhdxPlan): Piece[] {
  const parameters = Buffer.alloc(8);
  parameters.writeUInt32LE(plan.payloadBlockBytes ?? MIB);
  parameters.writeUInt32LE((plan.fixed === true ? 1 : 0) | (plan.parent === undefined ? 0 : 2), 4);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(plan.sizeBytes));
  const sector = Buffer.alloc(4);
  sector.writeUInt32LE(plan.sectorBytes ?? 512);
  const physical = Buffer.alloc(4);
  physical.writeUInt32LE(4096);
  return metadataRegion([
    { guid: guids.fileParameters, bytes: parameters },
    { guid: guids.diskSize, bytes: size },
    { guid: guids.logicalSector, bytes: sector },
    { guid: guids.physicalSector, bytes: physical },
    ...(plan.parent === undefined ? [] : [{ guid: guids.parentLocator, bytes: parentLocator(plan.parent) }]),
    // QEMU does not open a file without one.
    { guid: guids.diskId, bytes: Buffer.alloc(16, 0x5d) },
  ]);
}

export function metadataRegion(items: readonly { readonly guid: string; readonly bytes: Buffer }[]): Piece[] {
  const table = Buffer.alloc(64 * 1024);
  table.write("metadata", "latin1");
  table.writeUInt16LE(items.length, 10);
  const pieces: Piece[] = [{ offset: places.metadata, bytes: table }];
  let offset = 64 * 1024;
  for (const [index, { guid, bytes }] of items.entries()) {
    const at = 32 + index * 32;
    writeGuid(guid, table, at);
    table.writeUInt32LE(offset, at + 16);
    table.writeUInt32LE(bytes.length, at + 20);
    table.writeUInt32LE(4, at + 24);
    pieces.push({ offset: places.metadata + offset, bytes });
    offset += Math.ceil(bytes.length / 8) * 8;
  }
  return pieces;
}

export function parentLocator(pairs: Readonly<Record<string, string>>): Buffer {
  const entries = Object.entries(pairs);
  const head = Buffer.alloc(20 + entries.length * 12);
  writeGuid(guids.vhdxLocator, head, 0);
  head.writeUInt16LE(entries.length, 18);
  const texts: Buffer[] = [];
  let at = head.length;
  for (const [index, [key, value]] of entries.entries()) {
    for (const [text, offsetAt, lengthAt] of [
      [key, 0, 8],
      [value, 4, 10],
    ] as const) {
      const bytes = Buffer.from(text, "utf16le");
      head.writeUInt32LE(at, 20 + index * 12 + offsetAt);
      head.writeUInt16LE(bytes.length, 20 + index * 12 + lengthAt);
      texts.push(bytes);
      at += bytes.length;
    }
  }
  return Buffer.concat([head, ...texts]);
}

export function logEntry(plan: LogEntryPlan): Buffer {
  const { zeros = [], sectors = [] } = plan;
  const count = zeros.length + sectors.length;
  const front = Buffer.alloc(Math.ceil((64 + count * 32) / 4096) * 4096);
  const whole = Buffer.concat([front, Buffer.alloc(sectors.length * 4096)]);
  whole.write("loge", "latin1");
  whole.writeUInt32LE(whole.length, 8);
  whole.writeUInt32LE(plan.tail, 12);
  whole.writeBigUInt64LE(plan.sequence, 16);
  whole.writeUInt32LE(count, 24);
  writeGuid(guids.log, whole, 32);
  whole.writeBigUInt64LE(BigInt(plan.flushed), 48);
  whole.writeBigUInt64LE(BigInt(plan.last), 56);
  let at = 64;
  for (const { offset, length } of zeros) {
    whole.write("zero", at, "latin1");
    whole.writeBigUInt64LE(BigInt(length), at + 8);
    whole.writeBigUInt64LE(BigInt(offset), at + 16);
    whole.writeBigUInt64LE(plan.sequence, at + 24);
    at += 32;
  }
  for (const [index, { offset, bytes }] of sectors.entries()) {
    const sector = Buffer.from(bytes);
    whole.write("desc", at, "latin1");
    sector.copy(whole, at + 4, 4092, 4096);
    sector.copy(whole, at + 8, 0, 8);
    whole.writeBigUInt64LE(BigInt(offset), at + 16);
    whole.writeBigUInt64LE(plan.sequence, at + 24);
    at += 32;
    const place = front.length + index * 4096;
    sector.copy(whole, place);
    whole.write("data", place, "latin1");
    whole.writeUInt32LE(Number(plan.sequence >> 32n), place + 4);
    whole.writeUInt32LE(Number(plan.sequence & 0xffffffffn), place + 4092);
  }
  return sealed(whole);
}

/** As a file, sparse. */
export async function writeVhdx(path: string, plan: VhdxPlan): Promise<BuiltVhdx> {
  const built = buildVhdx(plan);
  await writePieces(path, built);
  return built;
}

/** A storage whose files are arrays, all of them data. Reading beyond what is there gives less. */
export function memoryStorage(files: ReadonlyMap<string, Uint8Array>): Storage & { readonly opened: () => number } {
  let opened = 0;
  const byFd = new Map<number, Uint8Array>();
  const read = (bytes: Uint8Array, target: Uint8Array, offset: number): number => {
    const piece = bytes.subarray(offset, offset + target.length);
    target.set(piece);
    return piece.length;
  };
  const statOf = (path: string): FileStat | undefined => {
    const bytes = files.get(path);
    if (bytes === undefined) return undefined;
    return { sizeBytes: bytes.length, kind: "file", device: "1", inode: path } as FileStat;
  };
  const storage = {
    lanes: {
      read: (fd: number, target: Uint8Array, offset: number) => read(byFd.get(fd) ?? new Uint8Array(0), target, offset),
    } as LaneStorage,
    opened: () => opened,
    async open(path: string): Promise<StorageFile> {
      const bytes = files.get(path);
      if (bytes === undefined) throw Object.assign(new Error("ENOENT"), { code: "ENOENT" });
      opened++;
      const fd = byFd.size + 3;
      byFd.set(fd, bytes);
      return {
        path,
        fd,
        read: async (target: Uint8Array, offset: number) => read(bytes, target, offset),
        nextData: (offset: number) => (offset < bytes.length ? { start: offset, end: bytes.length } : undefined),
        stat: async () => statOf(path),
        async close() {
          opened--;
        },
      } as StorageFile;
    },
    stat: async (path: string) => statOf(path),
    list: async (folder: string) => {
      const start = folder.endsWith("/") ? folder : `${folder}/`;
      const inside = [...files.keys()].filter((path) => path.startsWith(start));
      return [...new Set(inside.map((path) => path.slice(start.length).split("/", 1)[0] ?? ""))].sort();
    },
  };
  return storage as unknown as Storage & { readonly opened: () => number };
}

/** Opens bytes as an image. */
export async function openBytes(
  bytes: Uint8Array,
  others: Readonly<Record<string, Uint8Array>> = {},
): Promise<VhdxChain> {
  const storage = memoryStorage(new Map([["/images/disk.vhdx", bytes], ...Object.entries(others)]));
  return openVhdx(await storage.open("/images/disk.vhdx"), storage);
}
