import { PagedBits } from "../base/paged-bits.ts";
import { type Geometry, pageCount } from "../base/units.ts";
import { createPageDigests, type PageDigests } from "../table/digest-table.ts";

/** What is learnt of the source and outlives a lost connection: the same image is not read twice. */
export interface ScanMemory {
  readonly geometry: Geometry;
  /** Page digests of the source, of pages in `done`. */
  readonly pages: PageDigests;
  readonly done: PagedBits;
  /** Where the next attempt starts. */
  nextPage: number;
}

export function createScanMemory(geometry: Geometry): ScanMemory {
  return { geometry, pages: createPageDigests(geometry), done: new PagedBits(pageCount(geometry)), nextPage: 0 };
}
