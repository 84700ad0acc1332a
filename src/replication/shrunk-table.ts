/**
 * The digest table of a disk that is to become smaller, as it will be: the sender's questions are answered from it before anything is changed. It
 * differs from the table there is in the page the new end lies in.
 */
import { digestBytes, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import { type PageDigests, pageDigest } from "../table/digest-table.ts";

export interface ShrunkTable {
  readonly geometry: Geometry;
  /** The page the new end lies in; -1: the disk becomes empty. */
  readonly lastPage: number;
  /** Its digests, of blocks that exist. */
  readonly digests: Uint8Array;
  readonly pages: Pick<PageDigests, "get" | "isZero">;
}

export async function shrunkTable(
  geometry: Geometry,
  table: {
    /** Of the table there is. */
    readonly pages: Pick<PageDigests, "get" | "isZero">;
    /** Digests of one of its pages, a view. */
    readonly page: (page: number) => Promise<Uint8Array>;
    /** What the digest of the last block becomes, asked when its page was read; undefined: it stays. */
    readonly lastDigest: () => Promise<Uint8Array | undefined>;
  },
): Promise<ShrunkTable> {
  const lastPage = pageCount(geometry) - 1;
  const { pages } = table;
  if (lastPage < 0) return { geometry, lastPage, digests: new Uint8Array(), pages };
  const width = digestBytes(geometry.digestKind);
  const { count } = pageBlocks(geometry, lastPage);
  const digests = Uint8Array.from((await table.page(lastPage)).subarray(0, count * width));
  const lastDigest = await table.lastDigest();
  if (lastDigest !== undefined) digests.set(lastDigest, (count - 1) * width);
  const last = pageDigest(digests);
  const lastIsZero = last.every((byte) => byte === 0);
  return {
    geometry,
    lastPage,
    digests,
    pages: {
      get: (page) => (page === lastPage ? last : pages.get(page)),
      isZero: (page) => (page === lastPage ? lastIsZero : pages.isZero(page)),
    },
  };
}
