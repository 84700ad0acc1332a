/** A disk image in memory, sparse: what was never written, or was zeroed, takes none. For tests and small disks. */
import { invariant } from "../base/errors.ts";
import { PART_BYTES } from "../base/units.ts";
import type { BlockWriter, Extent } from "./block-device.ts";
import { checkRange } from "./range.ts";

const pageBytes = PART_BYTES;

/**
 * A disk of `sizeBytes` zeros. Extents: what was written is `data` (in pages of 4 KiB), the rest `hole`. The content
 * lives as long as the object; `close` changes nothing, so the same image can be opened again and again.
 */
export function createMemoryImage(sizeBytes: number, options: { readonly sectorBytes?: 512 | 4096 } = {}): BlockWriter {
  invariant(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, "a disk has a size");
  const pages = createPages();
  return {
    sizeBytes,
    sectorBytes: options.sectorBytes ?? 512,
    async read(target, offset) {
      checkRange(sizeBytes, offset, target.length);
      forEachPage(offset, target.length, (piece) => {
        const into = target.subarray(piece.at, piece.at + piece.length);
        const page = pages.get(piece.page);
        if (page === undefined) into.fill(0);
        else into.set(page.subarray(piece.within, piece.within + piece.length));
      });
    },
    async write(source, offset) {
      checkRange(sizeBytes, offset, source.length);
      forEachPage(offset, source.length, (piece) => {
        pages.ensure(piece.page).set(source.subarray(piece.at, piece.at + piece.length), piece.within);
      });
    },
    async zero(offset, length) {
      checkRange(sizeBytes, offset, length);
      // The last page of a disk may be a part of one: nothing lies behind it.
      const end = offset + length === sizeBytes ? Math.ceil(sizeBytes / pageBytes) * pageBytes : offset + length;
      if (length > 0) zeroPages(pages, offset, end);
    },
    extents: (offset, length) => memoryExtents(pages, sizeBytes, offset, length),
    async flush() {},
    async close() {},
  };
}

interface Pages {
  get(page: number): Uint8Array | undefined;
  ensure(page: number): Uint8Array;
  delete(page: number): void;
  /** The first page present at or behind `page`. */
  next(page: number): number | undefined;
}

function createPages(): Pages {
  const held = new Map<number, Uint8Array>();
  /** Numbers of the pages held, ascending; undefined after a change, made again when asked for. */
  let sorted: Float64Array | undefined;
  return {
    get: (page) => held.get(page),
    ensure(page) {
      const old = held.get(page);
      if (old !== undefined) return old;
      const made = new Uint8Array(pageBytes);
      held.set(page, made);
      sorted = undefined;
      return made;
    },
    delete(page) {
      if (held.delete(page)) sorted = undefined;
    },
    next(page) {
      // The common case, a page right here, needs no order.
      if (held.has(page)) return page;
      sorted ??= Float64Array.from(held.keys()).sort();
      let low = 0;
      let high = sorted.length;
      while (low < high) {
        const middle = (low + high) >>> 1;
        if ((sorted[middle] ?? 0) < page) low = middle + 1;
        else high = middle;
      }
      return sorted[low];
    },
  };
}

/** A stretch within one page: `at` counts from the start of the range. */
interface Piece {
  readonly page: number;
  readonly within: number;
  readonly length: number;
  readonly at: number;
}

function forEachPage(offset: number, length: number, visit: (piece: Piece) => void): void {
  let at = 0;
  while (at < length) {
    const page = Math.floor((offset + at) / pageBytes);
    const within = (offset + at) % pageBytes;
    const piece = { page, within, length: Math.min(pageBytes - within, length - at), at };
    visit(piece);
    at += piece.length;
  }
}

function zeroPages(pages: Pages, start: number, end: number): void {
  const doomed: number[] = [];
  const first = Math.floor(start / pageBytes);
  for (let page = pages.next(first); page !== undefined && page * pageBytes < end; page = pages.next(page + 1)) {
    const from = Math.max(start - page * pageBytes, 0);
    const to = Math.min(end - page * pageBytes, pageBytes);
    if (from === 0 && to === pageBytes) doomed.push(page);
    else pages.get(page)?.fill(0, from, to);
  }
  for (const page of doomed) pages.delete(page);
}

async function* memoryExtents(
  pages: Pages,
  sizeBytes: number,
  offset: number,
  length: number,
): AsyncGenerator<Extent, void, undefined> {
  checkRange(sizeBytes, offset, length);
  const end = offset + length;
  let position = offset;
  while (position < end) {
    const page = pages.next(Math.floor(position / pageBytes));
    const start = page === undefined ? end : Math.min(Math.max(page * pageBytes, position), end);
    if (start > position) yield { kind: "hole", offset: position, length: start - position };
    if (page === undefined || start === end) return;
    let last = page;
    while ((last + 1) * pageBytes < end && pages.get(last + 1) !== undefined) last++;
    position = Math.min((last + 1) * pageBytes, end);
    yield { kind: "data", offset: start, length: position - start };
  }
}
