/** Bytes of a simulated file: sparse, so that a disk of terabytes costs what is written of it, and a copy costs what is changed afterwards. */

const pageBytes = 4096;

export class SimulatedContent {
  #sizeBytes = 0;
  readonly #pages: Map<number, Uint8Array>;
  /** Pages that nobody else has: no copy, and nobody whose bytes were written. */
  #own = new Set<number>();

  constructor(pages = new Map<number, Uint8Array>()) {
    this.#pages = pages;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get allocatedBytes(): number {
    return this.#pages.size * pageBytes;
  }

  clone(): SimulatedContent {
    const copy = new SimulatedContent(new Map(this.#pages));
    copy.#sizeBytes = this.#sizeBytes;
    this.#own.clear();
    return copy;
  }

  /** Bytes read, fewer only at the end. */
  read(target: Uint8Array, offset: number): number {
    const length = Math.max(0, Math.min(target.length, this.#sizeBytes - offset));
    for (let done = 0; done < length; ) {
      const { page, from, count } = piece(offset + done, length - done);
      const bytes = this.#pages.get(page);
      if (bytes === undefined) target.fill(0, done, done + count);
      else target.set(bytes.subarray(from, from + count), done);
      done += count;
    }
    return length;
  }

  /** Takes `source` over: nobody writes into it again, but others may read it. */
  write(source: Uint8Array, offset: number): void {
    for (let done = 0; done < source.length; ) {
      const { page, from, count } = piece(offset + done, source.length - done);
      const bytes = source.subarray(done, done + count);
      if (count === pageBytes) {
        this.#pages.set(page, bytes);
        this.#own.delete(page);
      } else this.#toChange(page).set(bytes, from);
      done += count;
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + source.length);
  }

  truncate(sizeBytes: number): void {
    if (sizeBytes < this.#sizeBytes) this.punch(sizeBytes, this.#sizeBytes - sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  punch(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#sizeBytes);
    if (offset >= end) return;
    const first = Math.floor(offset / pageBytes);
    const last = Math.floor((end - 1) / pageBytes);
    // Whichever is fewer: the pages of the range, or those there are.
    const pages = last - first < this.#pages.size ? range(first, last) : [...this.#pages.keys()];
    for (const page of pages) {
      const from = Math.max(0, offset - page * pageBytes);
      const to = Math.min(pageBytes, end - page * pageBytes);
      if (!this.#pages.has(page) || from >= to) continue;
      // Behind the end of the file there is nothing to keep.
      if (from === 0 && (to === pageBytes || end === this.#sizeBytes)) this.#pages.delete(page);
      else this.#toChange(page).fill(0, from, to);
    }
  }

  /** A page that is about to be written to, and is nobody else's. */
  #toChange(page: number): Uint8Array {
    const before = this.#pages.get(page);
    if (before !== undefined && this.#own.has(page)) return before;
    const bytes = before === undefined ? new Uint8Array(pageBytes) : new Uint8Array(before);
    this.#pages.set(page, bytes);
    this.#own.add(page);
    return bytes;
  }

  nextData(offset: number): { readonly start: number; readonly end: number } | undefined {
    if (offset >= this.#sizeBytes) return undefined;
    let first = Number.POSITIVE_INFINITY;
    for (const page of this.#pages.keys()) if ((page + 1) * pageBytes > offset && page < first) first = page;
    if (first === Number.POSITIVE_INFINITY) return undefined;
    let end = first;
    while (this.#pages.has(end)) end++;
    return { start: Math.max(offset, first * pageBytes), end: Math.min(end * pageBytes, this.#sizeBytes) };
  }
}

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

function piece(
  offset: number,
  length: number,
): { readonly page: number; readonly from: number; readonly count: number } {
  const page = Math.floor(offset / pageBytes);
  const from = offset - page * pageBytes;
  return { page, from, count: Math.min(length, pageBytes - from) };
}
