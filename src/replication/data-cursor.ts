/** Which blocks of an image hold data, in ascending order, without reading any. */
import { invariant } from "../base/errors.ts";
import type { BlockReader, Extent } from "../image/block-device.ts";

export interface BlockRange {
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
}

/** Walks the extents of an image once. A block with any byte of data counts as data. */
export class DataCursor {
  readonly #blockBytes: number;
  readonly #extents: AsyncIterator<Extent>;
  #current: Extent | undefined;
  #done = false;
  #askedTo = 0;
  /** Bytes of data extents passed. */
  dataBytes = 0;

  constructor(reader: BlockReader, options: { readonly blockBytes: number; readonly fromBlock: number }) {
    this.#blockBytes = options.blockBytes;
    const offset = options.fromBlock * options.blockBytes;
    this.#extents = reader.extents(offset, reader.sizeBytes - offset)[Symbol.asyncIterator]();
    this.#askedTo = options.fromBlock;
  }

  /** Ranges of blocks with data in [first, end). Called with ascending ranges. */
  async ranges(first: number, end: number): Promise<readonly BlockRange[]> {
    invariant(first >= this.#askedTo, "a cursor moves forward");
    this.#askedTo = end;
    const from = first * this.#blockBytes;
    const to = end * this.#blockBytes;
    const found: { first: number; end: number }[] = [];
    for (;;) {
      if (this.#current === undefined && !(await this.#advance())) break;
      const extent = this.#current;
      if (extent === undefined || extent.offset >= to) break;
      const extentEnd = extent.offset + extent.length;
      if (extent.kind === "data" && extentEnd > from) {
        const a = Math.max(first, Math.floor(extent.offset / this.#blockBytes));
        const b = Math.min(end, Math.ceil(extentEnd / this.#blockBytes));
        const last = found.at(-1);
        if (last !== undefined && a <= last.end) last.end = Math.max(last.end, b);
        else found.push({ first: a, end: b });
      }
      // An extent that reaches beyond stays: the next range begins inside it.
      if (extentEnd > to) break;
      this.#current = undefined;
    }
    return found;
  }

  async #advance(): Promise<boolean> {
    if (this.#done) return false;
    const next = await this.#extents.next();
    if (next.done === true) {
      this.#done = true;
      return false;
    }
    this.#current = next.value;
    if (next.value.kind === "data") this.dataBytes += next.value.length;
    return true;
  }

  async close(): Promise<void> {
    await this.#extents.return?.();
  }
}

/** Blocks of [first, first + count) that lie in none of the ranges, which are ascending. */
export function blocksOutside(first: number, count: number, ranges: readonly BlockRange[]): number[] {
  const outside: number[] = [];
  let next = 0;
  for (let block = first; block < first + count; block++) {
    while (next < ranges.length && block >= (ranges[next]?.end ?? 0)) next++;
    const range = ranges[next];
    if (range === undefined || block < range.first) outside.push(block);
  }
  return outside;
}

/** Blocks of ranges. */
export function blocksIn(ranges: readonly BlockRange[]): number[] {
  return ranges.flatMap(({ first, end }) => Array.from({ length: end - first }, (_unused, nth) => first + nth));
}

/** Ranges of ascending blocks. */
export function rangesOf(blocks: readonly number[]): readonly BlockRange[] {
  const ranges: { first: number; end: number }[] = [];
  for (const block of blocks) {
    const last = ranges.at(-1);
    if (last?.end === block) last.end++;
    else ranges.push({ first: block, end: block + 1 });
  }
  return ranges;
}

/** Ranges cut into pieces of at most `step` blocks, each within one stretch of `step` blocks of the disk. */
export function cutRanges(ranges: readonly BlockRange[], step: number): BlockRange[] {
  const pieces: BlockRange[] = [];
  for (const range of ranges) {
    for (let first = range.first; first < range.end; ) {
      const end = Math.min(range.end, Math.floor(first / step) * step + step);
      pieces.push({ first, end });
      first = end;
    }
  }
  return pieces;
}
