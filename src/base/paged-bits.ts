/**
 * A set of block numbers as bits, paged: only pages with a bit set take memory, so a disk of 64 TiB costs what is
 * touched of it (at most 128 MiB at 64 KiB blocks). Pages that a range fills share one.
 */
import { invariant } from "./errors.ts";

/** 4 KiB of bits: 2 GiB of disk at 64 KiB blocks. */
const pageBytes = 4096;
const bitsPerPage = pageBytes * 8;
/** Every page that {@link PagedBits.addRange} fills, in whatever set. Nobody writes into it. */
const fullPage = new Uint8Array(pageBytes).fill(0xff);

export class PagedBits {
  readonly #pages = new Map<number, Uint8Array>();
  #count = 0;
  #size: number;

  constructor(size: number) {
    invariant(Number.isSafeInteger(size) && size >= 0, "a bit set has a size");
    this.#size = size;
  }

  /** Bits in the set's range, 0 to `size - 1`. */
  get size(): number {
    return this.#size;
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
    if (this.has(bit)) return false;
    const within = bit % bitsPerPage;
    const page = this.#toChange(Math.floor(bit / bitsPerPage));
    page[within >> 3] = (page[within >> 3] ?? 0) | (1 << (within & 7));
    this.#count++;
    return true;
  }

  /** Sets `count` bits from `first` on. Costs what pages there are in the range. */
  addRange(first: number, count: number): void {
    invariant(first >= 0 && count >= 0 && first + count <= this.#size, "a range lies in its set");
    for (let bit = first; bit < first + count; ) {
      const number = Math.floor(bit / bitsPerPage);
      const end = Math.min(first + count, (number + 1) * bitsPerPage);
      if (end - bit === bitsPerPage) {
        this.#count += bitsPerPage - countBits(this.#pages.get(number));
        this.#pages.set(number, fullPage);
      } else if (this.#pages.get(number) !== fullPage) this.#fill(this.#toChange(number), bit % bitsPerPage, end - bit);
      bit = end;
    }
  }

  /** The first bit at or behind `from` that is set, or is not (`set` false); undefined: there is none. */
  next(from: number, set = true): number | undefined {
    for (let bit = Math.max(0, from); bit < this.#size; ) {
      const number = Math.floor(bit / bitsPerPage);
      const page = this.#pages.get(number);
      const within = page === undefined || page === fullPage ? undefined : nextWithin(page, bit % bitsPerPage, set);
      if (within !== undefined) bit = number * bitsPerPage + within;
      else if ((page === fullPage) !== set || (page !== undefined && page !== fullPage)) {
        bit = (number + 1) * bitsPerPage;
        continue;
      }
      return bit < this.#size ? bit : undefined;
    }
    return undefined;
  }

  /** Sets every bit that is set in `other`; those behind the end of this set are left out. */
  or(other: PagedBits): void {
    for (const [number, page] of other.#pages) {
      if (number * bitsPerPage < this.#size) this.orBytes(page, number * pageBytes);
    }
  }

  /** Sets the bits of `bytes`, of which the first stands for the bits from 8 * `firstByte` on; those behind the end are left out. */
  orBytes(bytes: Uint8Array, firstByte: number): void {
    const bytesMax = Math.ceil(this.#size / 8) - firstByte;
    for (let at = 0; at < Math.min(bytes.length, bytesMax); at++) {
      let value = bytes[at] ?? 0;
      if (value === 0) continue;
      const bit = (firstByte + at) * 8;
      if (bit + 8 > this.#size) value &= (1 << (this.#size - bit)) - 1;
      const number = Math.floor(bit / bitsPerPage);
      const within = (firstByte + at) % pageBytes;
      const old = this.#pages.get(number)?.[within] ?? 0;
      if ((old | value) === old) continue;
      this.#toChange(number)[within] = old | value;
      this.#count += bitCounts[value & ~old] ?? 0;
    }
  }

  /** Fills `target` with the bits from 8 * `firstByte` on, as {@link orBytes} takes them. */
  readBytes(target: Uint8Array, firstByte: number): void {
    for (let done = 0; done < target.length; ) {
      const at = firstByte + done;
      const within = at % pageBytes;
      const count = Math.min(target.length - done, pageBytes - within);
      const page = this.#pages.get(Math.floor(at / pageBytes));
      if (page === undefined) target.fill(0, done, done + count);
      else target.set(page.subarray(within, within + count), done);
      done += count;
    }
    // A full page is full behind the end, too.
    const end = Math.max(0, Math.ceil(this.#size / 8) - firstByte);
    if (end < target.length) target.fill(0, end);
  }

  /** Bits behind a smaller size are gone; those of a greater one are not set. */
  resize(size: number): void {
    invariant(Number.isSafeInteger(size) && size >= 0, "a bit set has a size");
    const last = Math.floor(size / bitsPerPage);
    for (const [number, page] of size < this.#size ? [...this.#pages] : []) {
      if (number < last) continue;
      this.#count -= countBits(page);
      this.#pages.delete(number);
      if (number > last || size === last * bitsPerPage) continue;
      const kept = new Uint8Array(page);
      clearFrom(kept, size % bitsPerPage);
      this.#count += countBits(kept);
      this.#pages.set(number, kept);
    }
    this.#size = size;
  }

  clone(): PagedBits {
    const copy = new PagedBits(this.#size);
    for (const [number, page] of this.#pages) copy.#pages.set(number, page === fullPage ? page : new Uint8Array(page));
    copy.#count = this.#count;
    return copy;
  }

  /** Clears a bit; true when it was set before. */
  delete(bit: number): boolean {
    if (!this.has(bit)) return false;
    const within = bit % bitsPerPage;
    const page = this.#toChange(Math.floor(bit / bitsPerPage));
    page[within >> 3] = (page[within >> 3] ?? 0) & ~(1 << (within & 7));
    this.#count--;
    return true;
  }

  clear(): void {
    this.#pages.clear();
    this.#count = 0;
  }

  /** A page that is this set's alone. */
  #toChange(number: number): Uint8Array {
    const page = this.#pages.get(number);
    if (page !== undefined && page !== fullPage) return page;
    const own = page === undefined ? new Uint8Array(pageBytes) : new Uint8Array(page);
    this.#pages.set(number, own);
    return own;
  }

  #fill(page: Uint8Array, first: number, count: number): void {
    for (let bit = first; bit < first + count; ) {
      const whole = (bit & 7) === 0 && bit + 8 <= first + count;
      const old = page[bit >> 3] ?? 0;
      const value = old | (whole ? 0xff : 1 << (bit & 7));
      this.#count += bitCounts[value & ~old] ?? 0;
      page[bit >> 3] = value;
      bit += whole ? 8 : 1;
    }
  }
}

const bitCounts = Uint8Array.from({ length: 256 }, (_, value) => value.toString(2).replaceAll("0", "").length);

function countBits(page: Uint8Array | undefined): number {
  if (page === undefined) return 0;
  let count = 0;
  for (const value of page) count += bitCounts[value] ?? 0;
  return count;
}

function nextWithin(page: Uint8Array, from: number, set: boolean): number | undefined {
  const none = set ? 0 : 0xff;
  for (let bit = from; bit < bitsPerPage; ) {
    const value = page[bit >> 3] ?? 0;
    if (value === none) bit = (bit | 7) + 1;
    else if (((value & (1 << (bit & 7))) !== 0) === set) return bit;
    else bit++;
  }
  return undefined;
}

function clearFrom(page: Uint8Array, bit: number): void {
  page[bit >> 3] = (page[bit >> 3] ?? 0) & ((1 << (bit & 7)) - 1);
  page.fill(0, (bit >> 3) + 1);
}
