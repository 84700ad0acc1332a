/** Makes an empty VHDX file. [MS-VHDX] 2.1 */
import { limits } from "../../base/limits.ts";
import type { Random } from "../../base/random.ts";
import { MIB } from "../../base/units.ts";
import type { StorageFile } from "../../storage/seam.ts";
import { batEntries, chunkRatio, presentEntry } from "./bat.ts";
import { noGuid } from "./guid.ts";
import { encodeHeader, fileSignature, headerOffsets } from "./headers.ts";
import { encodeMetadata } from "./metadata.ts";
import { batRegion, encodeRegionTable, metadataRegion, regionTableOffsets } from "./region-table.ts";

export interface VhdxShape {
  /** Whole sectors. */
  readonly sizeBytes: number;
  /** Default 512. */
  readonly sectorBytes?: 512 | 4096;
  /** A power of two, 1 to 256 MiB; default 32 MiB, as Hyper-V has it. */
  readonly payloadBlockBytes?: number;
  /** Every payload block has its place from the start. */
  readonly fixed?: boolean;
}

const logAt = MIB;
const logBytes = MIB;
const metadataAt: number = logAt + logBytes;
const metadataBytes = MIB;
const batAt: number = metadataAt + metadataBytes;
const creator = "replicate";

/**
 * Writes the tables of an empty disk to an empty file; not synced. There is room in its table for the largest disk, so that a disk that
 * grows changes nothing but numbers.
 */
export async function createVhdx(file: StorageFile, shape: VhdxShape, random: Random): Promise<void> {
  const { sizeBytes, sectorBytes = 512, payloadBlockBytes = 32 * MIB, fixed = false } = shape;
  const disk = {
    ...{ sizeBytes, sectorBytes, payloadBlockBytes, fixed, physicalSectorBytes: 4096 as const },
    diskId: random.uuid(),
  };
  const largest = batEntries({ ...disk, sizeBytes: limits.diskBytesMax, hasParent: false });
  const batBytes = Math.ceil((largest * 8) / MIB) * MIB;
  const contentAt = batAt + batBytes;
  const blocks = fixed ? Math.ceil(sizeBytes / payloadBlockBytes) : 0;
  await file.truncate(contentAt + blocks * payloadBlockBytes);
  const identifier = Buffer.alloc(520);
  identifier.write(fileSignature, "latin1");
  identifier.write(creator, 8, "utf16le");
  await file.write(identifier, 0);
  const regions = encodeRegionTable([
    { guid: metadataRegion, offset: metadataAt, length: metadataBytes, required: true },
    { guid: batRegion, offset: batAt, length: batBytes, required: true },
  ]);
  for (const at of regionTableOffsets) await file.write(regions, at);
  await file.write(encodeMetadata(disk), metadataAt);
  await writePlaces(file, { blocks, ratio: chunkRatio({ ...disk, hasParent: false }), contentAt, payloadBlockBytes });
  const header = {
    ...{ fileWriteGuid: random.uuid(), dataWriteGuid: random.uuid(), logGuid: noGuid },
    ...{ logVersion: 0, version: 1, logBytes, logOffset: logAt },
  };
  for (const [index, at] of headerOffsets.entries()) {
    await file.write(encodeHeader({ ...header, sequence: BigInt(index + 1) }), at);
  }
}

/** Of a fixed disk: payload blocks one behind the other. */
async function writePlaces(
  file: StorageFile,
  how: {
    readonly blocks: number;
    readonly ratio: number;
    readonly contentAt: number;
    readonly payloadBlockBytes: number;
  },
): Promise<void> {
  const { blocks, ratio, contentAt, payloadBlockBytes } = how;
  // A chunk at a time, of which the entry of its bitmap is left out.
  const perPiece = Math.min(ratio, 64 * 1024);
  for (let first = 0; first < blocks; first += perPiece) {
    const count = Math.min(perPiece, blocks - first);
    const bytes = Buffer.alloc(count * 8);
    for (let index = 0; index < count; index++) {
      bytes.writeBigUInt64LE(presentEntry(contentAt + (first + index) * payloadBlockBytes), index * 8);
    }
    await file.write(bytes, batAt + (first + Math.floor(first / ratio)) * 8);
  }
}
