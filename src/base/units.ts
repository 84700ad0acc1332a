/**
 * Units and the only conversions between them. Offsets and lengths are bytes as `number`
 * (exact up to 2^53-1, 8 PiB); block, part and page numbers are indexes from 0.
 */

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** Transfer and undo unit: of a block that differs only the parts that differ travel. */
export const PART_BYTES = 4 * KIB;
/** One page of the digest table, in bytes of digests. */
export const TABLE_PAGE_BYTES = 4096;
/** Longest piece of one data frame and one compression unit. */
export const EXTENT_BYTES_MAX = MIB;

export const BLOCK_BYTES_DEFAULT = 64 * KIB;
export const BLOCK_BYTES_MIN = 16 * KIB;
export const BLOCK_BYTES_MAX = MIB;

/** xxh64 guards against accident; sha256 (first half) where a guest may be hostile. */
export type DigestKind = "xxh64" | "sha256";

/** Bytes of one digest in tables and frames. */
export function digestBytes(kind: DigestKind): 8 | 16 {
  return kind === "xxh64" ? 8 : 16;
}

/** What two tables must share to be comparable, and the only geometry anything may assume. */
export interface Geometry {
  /** Size of the disk in bytes, exact to the byte. */
  readonly sizeBytes: number;
  /** Power of two, {@link BLOCK_BYTES_MIN} to {@link BLOCK_BYTES_MAX}. */
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
}

export function isBlockSize(bytes: number): boolean {
  return Number.isInteger(bytes) && bytes >= BLOCK_BYTES_MIN && bytes <= BLOCK_BYTES_MAX && (bytes & (bytes - 1)) === 0;
}

/** Blocks of a disk, the last, shorter one included. */
export function blockCount(geometry: Geometry): number {
  return Math.ceil(geometry.sizeBytes / geometry.blockBytes);
}

/** Blocks described by one table page: 512 for xxh64, 256 for sha256. */
export function blocksPerPage(kind: DigestKind): number {
  return TABLE_PAGE_BYTES / digestBytes(kind);
}

/** Table pages of a disk. */
export function pageCount(geometry: Geometry): number {
  return Math.ceil(blockCount(geometry) / blocksPerPage(geometry.digestKind));
}

/** Bytes of the disk in block `block`: less than a block only at the end of the disk. */
export function blockLength(geometry: Geometry, block: number): number {
  return Math.min(geometry.blockBytes, geometry.sizeBytes - block * geometry.blockBytes);
}

/** Parts of one full block: 4 to 256. */
export function partsPerBlock(blockBytes: number): number {
  return blockBytes / PART_BYTES;
}

/** Bytes of one part mask: bit p of the mask (bit p%8 of byte p>>3) stands for part p. */
export function maskBytes(blockBytes: number): number {
  return Math.ceil(partsPerBlock(blockBytes) / 8);
}

/** Blocks of page `page`, as first block and count. */
export function pageBlocks(geometry: Geometry, page: number): { readonly first: number; readonly count: number } {
  const per = blocksPerPage(geometry.digestKind);
  const first = page * per;
  return { first, count: Math.min(per, blockCount(geometry) - first) };
}
