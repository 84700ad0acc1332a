/**
 * The digest table of a disk: one digest a block, in pages of 4096 bytes, each page with a sha256 as its checksum, and a root over all.
 * `digests` and `pages` files: docs/formats.md. A page of zero blocks has 32 zero bytes as its page digest and is a hole in both files.
 *
 * Root = sha256(ASCII "replicate table 1\n", u64le size, u32le block bytes, u8 digest kind (1 xxh64, 2 sha256), page digests in order).
 */
import type { Geometry } from "../base/units.ts";
import type { LaneStorage } from "../storage/seam.ts";

/** Page digests in memory, sparse: pages of zero blocks take none. 1 MiB for each TiB of data at the defaults. */
export interface PageDigests {
  readonly geometry: Geometry;
  /** 32 bytes, all zero for a page of zero blocks. A view: copy to keep. */
  get(page: number): Uint8Array;
  set(page: number, digest: Uint8Array): void;
  isZero(page: number): boolean;
  /** 32 bytes. Costs one sha256 over 32 bytes a page. */
  root(): Uint8Array;
}

export declare function createPageDigests(geometry: Geometry): PageDigests;
/** The page digest of one page of digests: 32 zero bytes when all are zero, else sha256 over exactly 4096 bytes (blocks that do not exist count as zero). */
export declare function pageDigest(digests: Uint8Array): Uint8Array;

/** The table over its two files, paged: at most `cacheBytes` of pages in memory. Synchronous; one owner. */
export interface DigestTable {
  readonly geometry: Geometry;
  readonly pages: PageDigests;
  /** Digests of one page, only of blocks that exist. A view, valid until the next call. Throws `store-damaged` (details: page) when the page does not match its checksum. */
  page(page: number): Uint8Array;
  /** Digest of one block. A view, valid until the next call. */
  get(block: number): Uint8Array;
  isZero(block: number): boolean;
  /** Sets digests of `count` blocks from `first`, from consecutive entries of `digests`. */
  set(first: number, count: number, digests: Uint8Array): void;
  /** Sets blocks to zero. */
  clear(first: number, count: number): void;
  /** Writes dirty pages and page digests to the files, without syncing. */
  write(): void;
  root(): Uint8Array;
  /** The disk has another size now: blocks beyond the old end are zero, blocks beyond the new end are forgotten. */
  resize(sizeBytes: number): void;
  /** Blocks that are not zero. Counted at open by reading non-zero pages. Undefined until somebody asked for it. */
  countNonZero(): number;
}

export declare function openDigestTable(options: {
  readonly geometry: Geometry;
  readonly lanes: LaneStorage;
  readonly digestsFd: number;
  readonly pagesFd: number;
  readonly cacheBytes?: number;
}): DigestTable;
