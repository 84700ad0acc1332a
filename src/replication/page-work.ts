import { isZero } from "../base/zero.ts";
import type { FileRun } from "../image/block-device.ts";
import { type BlockRange, rangesOf } from "./data-cursor.ts";

/** One page of the table on its way through a scan. */
export interface PageWork {
  readonly page: number;
  readonly first: number;
  readonly count: number;
  /** Digests of the source, filled as blocks are read. */
  readonly digests: Uint8Array;
  /** Blocks not settled, and 1 for the scan itself. */
  open: number;
  /** What reading this page brought into the page cache. */
  readonly cold: FileRun[];
}

/** Blocks of a page whose digest is not the receiver's: those that are zero now, and ranges of the others. */
export function differences(
  work: PageWork,
  base: Uint8Array,
): { readonly zeros: readonly number[]; readonly ranges: readonly BlockRange[] } {
  const width = work.digests.length / work.count;
  const zeros: number[] = [];
  const blocks: number[] = [];
  for (let index = 0; index < work.count; index++) {
    const mine = work.digests.subarray(index * width, (index + 1) * width);
    if (Buffer.compare(mine, base.subarray(index * width, (index + 1) * width)) === 0) continue;
    if (isZero(mine)) zeros.push(work.first + index);
    else blocks.push(work.first + index);
  }
  return { zeros, ranges: rangesOf(blocks) };
}

/** Digests of the pages settled last, at most so many. */
export class RecentPages {
  readonly #max: number;
  readonly #pages = new Map<number, Uint8Array>();

  constructor(max: number) {
    this.#max = max;
  }

  get(page: number): Uint8Array | undefined {
    return this.#pages.get(page);
  }

  set(page: number, digests: Uint8Array): void {
    this.#pages.set(page, digests);
    const [oldest] = this.#pages.keys();
    if (this.#pages.size > this.#max && oldest !== undefined) this.#pages.delete(oldest);
  }
}
