/** The pages used last of the tables of an image file, which may be far larger than memory. */
import { limits } from "../base/limits.ts";
import { KIB } from "../base/units.ts";
import type { MappedFile } from "./mapped-reader.ts";

export const TABLE_PAGE_BYTES: number = 64 * KIB;
const pagesMin = 4;

/** A file whose tables can be read at once. */
export interface TableFile extends MappedFile {
  readNow(target: Uint8Array, offset: number): void;
}

export class TablePages {
  readonly #file: TableFile;
  /** By place in the file, the one used last at the end. */
  readonly #pages = new Map<number, Uint8Array>();

  /** A power of two. */
  readonly pageBytes: number;

  readonly #pagesMax: number;

  /** At least a few pages are kept: of a table, and of the bitmap that it names. */
  constructor(
    file: TableFile,
    options: { readonly pageBytes?: number | undefined; readonly cacheBytes?: number | undefined } = {},
  ) {
    const { pageBytes = TABLE_PAGE_BYTES, cacheBytes = limits.imageTableCacheBytes } = options;
    this.#file = file;
    this.pageBytes = pageBytes;
    this.#pagesMax = Math.max(pagesMin, Math.floor(cacheBytes / pageBytes));
  }

  /** A page of the file, at a multiple of {@link pageBytes}; shorter at the end of the file, never empty. Not to be changed. */
  page(at: number): Uint8Array {
    const held = this.#pages.get(at);
    if (held !== undefined) {
      this.#pages.delete(at);
      this.#pages.set(at, held);
      return held;
    }
    const page = this.#room(at);
    this.#file.readNow(page, at);
    return this.#keep(at, page);
  }

  has(at: number): boolean {
    return this.#pages.has(at);
  }

  /** Forgets the pages of a range that was written. */
  drop(offset: number, length: number): void {
    const first = Math.floor(offset / this.pageBytes) * this.pageBytes;
    for (let at = first; at < offset + length; at += this.pageBytes) this.#pages.delete(at);
  }

  /** Reads a page, so that {@link page} has it at once. */
  async fetch(at: number): Promise<void> {
    if (this.#pages.has(at)) return;
    const page = this.#room(at);
    await this.#file.read(page, at);
    this.#keep(at, page);
  }

  /** The bytes of a table from `at` on, `length` of them, which lie in one page. */
  view(at: number, length: number): DataView {
    const start = Math.floor(at / this.pageBytes) * this.pageBytes;
    const page = this.page(start);
    if (at - start + length > page.length) {
      throw this.#file.truncated(this.#file.sizeBytes, `one of its tables reaches to ${at + length}`);
    }
    return new DataView(page.buffer, page.byteOffset + at - start, length);
  }

  #room(at: number): Uint8Array {
    const { sizeBytes } = this.#file;
    if (at >= sizeBytes) throw this.#file.truncated(sizeBytes, `one of its tables reaches beyond ${at}`);
    return new Uint8Array(Math.min(this.pageBytes, sizeBytes - at));
  }

  #keep(at: number, page: Uint8Array): Uint8Array {
    this.#pages.set(at, page);
    if (this.#pages.size > this.#pagesMax) {
      const [oldest] = this.#pages.keys();
      if (oldest !== undefined) this.#pages.delete(oldest);
    }
    return page;
  }
}
