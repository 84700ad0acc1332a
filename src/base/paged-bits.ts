/**
 * A set of block numbers as bits, paged: only pages with a bit set take memory, so a disk of 64 TiB costs what is
 * touched of it (at most 128 MiB at 64 KiB blocks).
 */
import { invariant } from "./errors.ts";

/** 4 KiB of bits: 2 GiB of disk at 64 KiB blocks. */
const pageBytes = 4096;
const bitsPerPage = pageBytes * 8;

export class PagedBits {
  readonly #pages = new Map<number, Uint8Array>();
  #count = 0;
  /** Bits in the set's range, 0 to `size - 1`. */
  readonly size: number;

  constructor(size: number) {
    invariant(Number.isSafeInteger(size) && size >= 0, "a bit set has a size");
    this.size = size;
  }

  /** Number of bits set. */
  get count(): number {
    return this.#count;
  }

  has(bit: number): boolean {
    const page = this.#pages.get(Math.floor(bit / bitsPerPage));
    if (page === undefined) return false;
    const within = bit % bitsPerPage;
    return ((page[within >> 3] ?? 0) & (1 << (within & 7))) !== 0;
  }

  /** Sets a bit; true when it was not set before. */
  add(bit: number): boolean {
    invariant(bit >= 0 && bit < this.size, "a bit lies in its set");
    const number = Math.floor(bit / bitsPerPage);
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new Uint8Array(pageBytes);
      this.#pages.set(number, page);
    }
    const within = bit % bitsPerPage;
    const mask = 1 << (within & 7);
    const old = page[within >> 3] ?? 0;
    if ((old & mask) !== 0) return false;
    page[within >> 3] = old | mask;
    this.#count++;
    return true;
  }

  /** Clears a bit; true when it was set before. */
  delete(bit: number): boolean {
    const page = this.#pages.get(Math.floor(bit / bitsPerPage));
    if (page === undefined) return false;
    const within = bit % bitsPerPage;
    const mask = 1 << (within & 7);
    const old = page[within >> 3] ?? 0;
    if ((old & mask) === 0) return false;
    page[within >> 3] = old & ~mask;
    this.#count--;
    return true;
  }

  clear(): void {
    this.#pages.clear();
    this.#count = 0;
  }
}
