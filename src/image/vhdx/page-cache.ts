/** The pages of tables of a VHDX file used last: its BAT and sector bitmaps, which may be far larger than memory. */
import { limits } from "../../base/limits.ts";
import { KIB } from "../../base/units.ts";
import type { LoggedFile } from "./logged-file.ts";

export const TABLE_PAGE_BYTES: number = 64 * KIB;

export class PageCache {
  readonly #file: LoggedFile;
  /** By place in the file, the one used last at the end. */
  readonly #pages = new Map<number, Uint8Array>();

  constructor(file: LoggedFile) {
    this.#file = file;
  }

  /** A page of the file, at a multiple of {@link TABLE_PAGE_BYTES}: tables are in whole MiB, so that all of it is there. Not to be changed. */
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

  /** Reads a page, so that {@link page} has it at once. */
  async fetch(at: number): Promise<void> {
    if (this.#pages.has(at)) return;
    const page = this.#room(at);
    await this.#file.read(page, at);
    this.#keep(at, page);
  }

  #room(at: number): Uint8Array {
    const { sizeBytes } = this.#file;
    const end = at + TABLE_PAGE_BYTES;
    if (end > sizeBytes) throw this.#file.truncated(sizeBytes, `one of its tables reaches to ${end}`);
    return new Uint8Array(TABLE_PAGE_BYTES);
  }

  #keep(at: number, page: Uint8Array): Uint8Array {
    this.#pages.set(at, page);
    if (this.#pages.size * TABLE_PAGE_BYTES > limits.vhdxCacheBytes) {
      const [oldest] = this.#pages.keys();
      if (oldest !== undefined) this.#pages.delete(oldest);
    }
    return page;
  }
}
