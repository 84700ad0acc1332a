import { PagedBits } from "../base/paged-bits.ts";
import { type Geometry, pageCount } from "../base/units.ts";
import { createPageDigests, type PageDigests } from "../table/digest-table.ts";

/** What is learnt of the source and outlives a lost connection: the same image is not read twice. */
export interface ScanMemory {
  readonly geometry: Geometry;
  /** Page digests of the source, of pages in `done`. */
  readonly pages: PageDigests;
  readonly done: PagedBits;
  /** Blocks that are in the funnel, of pages not in `done`: those pages are in it as a whole. */
  readonly counted: Map<number, Set<number>>;
  /**
   * Of sources whose changes are known: digests of the blocks of a page as the receiver had them before this cycle, of pages of which something was sent, as many
   * as {@link baseBlocksMax}. What a lost session left half done is known by them.
   */
  readonly baseBlocks: Map<number, Uint8Array>;
  /** Bytes of parts sent in all attempts, those sent again too: whether an attempt got anywhere. */
  sentBytes: number;
  /** Where the next attempt starts. */
  nextPage: number;
}

/** 64 MiB of digests: pages of 512 GiB at the defaults. */
export const baseBlocksMax = 16_384;

export function createScanMemory(geometry: Geometry): ScanMemory {
  return {
    geometry,
    pages: createPageDigests(geometry),
    done: new PagedBits(pageCount(geometry)),
    counted: new Map(),
    baseBlocks: new Map(),
    sentBytes: 0,
    nextPage: 0,
  };
}
