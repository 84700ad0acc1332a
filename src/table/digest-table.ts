/**
 * The digest table of a disk: one digest a block, in pages of 4096 bytes, each page with a sha256 as its checksum, and a root over all.
 * `digests` and `pages` files: docs/formats.md. A page of zero blocks has 32 zero bytes as its page digest and is a hole in both files.
 *
 * Root = sha256(ASCII "replicate table 1\n", u64le size, u32le block bytes, u8 digest kind (1 xxh64, 2 sha256), page digests in order).
 */
import { errnoOf, invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  type Geometry,
  pageBlocks,
  pageCount,
  TABLE_PAGE_BYTES,
} from "../base/units.ts";
import type { LaneStorage } from "../storage/seam.ts";
import {
  CHUNK_BYTES,
  isAllZero,
  PAGE_DIGEST_BYTES,
  type PageDigests,
  PAGES_PER_CHUNK,
  pageDigest,
  SparsePageDigests,
} from "./page-digests.ts";

export { createPageDigests, type PageDigests, pageDigest } from "./page-digests.ts";

/** The table over its two files, paged: at most `cacheBytes` of pages in memory. Synchronous; one owner. */
export interface DigestTable {
  readonly geometry: Geometry;
  /** As of the last change, written or not. Read only: `set` is an error, the table sets its page digests by itself. */
  readonly pages: PageDigests;
  /** Digests of one page, only of blocks that exist. A view, valid until the next call. Throws `store-damaged` (details: page) when the page does not match its checksum. */
  page(page: number): Uint8Array;
  /** Digest of one block. A view, valid until the next call. */
  get(block: number): Uint8Array;
  isZero(block: number): boolean;
  /**
   * Sets digests of `count` blocks from `first`, from consecutive entries of `digests`. May write other pages to the file when
   * there are more changed ones than the cache holds (`write-failed`, `no-space`); never writes a page digest.
   */
  set(first: number, count: number, digests: Uint8Array): void;
  /** Sets blocks to zero. As {@link set}. */
  clear(first: number, count: number): void;
  /** Writes changed pages to `digests`, without syncing; `pages` stays as it is. Throws `write-failed`, `no-space`. */
  writeEntries(): void;
  /** Writes dirty pages and page digests to the files, without syncing. Throws `write-failed`, `no-space`. */
  write(): void;
  root(): Uint8Array;
  /**
   * The disk has another size now: blocks beyond the old end are zero, blocks beyond the new end are forgotten. The owner of the files
   * gives them their new length ({@link tableFileBytes}): before this call when they grow, after it when they shrink. Throws `store-damaged` when the
   * page the new end lies in does not match its checksum.
   */
  resize(sizeBytes: number): void;
  /** Forgets what the last page has behind the last block: a crash while the disk shrank leaves that. Throws `store-damaged` as {@link page}. */
  forgetTail(): void;
  /** Every block is zero. Nothing is read. */
  isEmpty(): boolean;
  /** The page is held in memory, or matches its checksum. */
  isSound(page: number): boolean;
  /** Reads all pages that are not zero. Gives those that do not match their checksums, and undefined each MiB: a good moment to let others go on. */
  check(): Iterable<number | undefined>;
}

/** Lengths of the two files of a table. */
export function tableFileBytes(geometry: Geometry): { readonly digests: number; readonly pages: number } {
  const count = pageCount(geometry);
  return { digests: count * TABLE_PAGE_BYTES, pages: count * PAGE_DIGEST_BYTES };
}

export interface DigestTableOptions {
  readonly geometry: Geometry;
  readonly lanes: LaneStorage;
  readonly digestsFd: number;
  readonly pagesFd: number;
  /** Default limits.tableCacheBytes; at least one page. */
  readonly cacheBytes?: number;
  /** Finds data in `pages`, so that holes are skipped (`nextData` of its file); default: all of it is read. */
  readonly nextPagesData?: (offset: number) => { readonly start: number; readonly end: number } | undefined;
  /** The files hold nothing of worth: every block is zero, and nothing is read. Whoever builds the table anew sets or clears every block. */
  readonly empty?: boolean;
  /** What messages call this table; default "the digest table". */
  readonly name?: string;
  /** Called for each page found not to match its checksum, before the error is thrown. */
  readonly onDamage?: (page: number) => void;
}

/** Opens a table over its files. Throws `store-damaged` when `pages` is shorter than the geometry asks. */
export function openDigestTable(options: DigestTableOptions): DigestTable {
  return new StoredTable(options);
}

interface CachedPage {
  /** Always {@link TABLE_PAGE_BYTES}; zero behind the last block. */
  readonly bytes: Buffer;
  /** Differs from the file. */
  dirty: boolean;
  /** Differs from its page digest in memory. */
  stale: boolean;
}

const zeroPage = Buffer.alloc(TABLE_PAGE_BYTES);
/** In a check of all pages. */
const pagesBetweenPauses = 256;

class StoredTable implements DigestTable {
  readonly #options: DigestTableOptions;
  readonly #name: string;
  readonly #width: 8 | 16;
  readonly #perPage: number;
  readonly #cachePagesMax: number;
  /** In order of use, the page used last at the end. */
  readonly #cache = new Map<number, CachedPage>();
  /** The page used last, at the end of the cache; -1: none. */
  #lastPage = -1;
  #last: CachedPage | undefined;
  readonly #digests: SparsePageDigests;
  /** Chunks of page digests that differ from the file. */
  readonly #dirtyChunks = new Set<number>();
  readonly #scratch = Buffer.alloc(TABLE_PAGE_BYTES);
  readonly pages: PageDigests;

  constructor(options: DigestTableOptions) {
    this.#options = options;
    this.#name = options.name ?? "the digest table";
    this.#width = digestBytes(options.geometry.digestKind);
    this.#perPage = blocksPerPage(options.geometry.digestKind);
    this.#cachePagesMax = Math.max(1, Math.floor((options.cacheBytes ?? limits.tableCacheBytes) / TABLE_PAGE_BYTES));
    this.#digests = new SparsePageDigests(options.geometry);
    this.pages = this.#freshPages();
    if (options.empty !== true) this.#readPageDigests();
  }

  get geometry(): Geometry {
    return this.#digests.geometry;
  }

  page(page: number): Uint8Array {
    const { count } = pageBlocks(this.geometry, page);
    return this.#view(page).subarray(0, count * this.#width);
  }

  get(block: number): Uint8Array {
    invariant(block >= 0 && block < blockCount(this.geometry), "a block lies within its disk");
    const at = (block % this.#perPage) * this.#width;
    return this.#view(Math.floor(block / this.#perPage)).subarray(at, at + this.#width);
  }

  isZero(block: number): boolean {
    const entry = this.get(block);
    for (let at = 0; at < entry.length; at++) if (entry[at] !== 0) return false;
    return true;
  }

  set(first: number, count: number, digests: Uint8Array): void {
    invariant(digests.length === count * this.#width, "one digest is given for each block");
    this.#change(first, count, (target, done) => {
      target.set(digests.subarray(done * this.#width, done * this.#width + target.length));
    });
  }

  clear(first: number, count: number): void {
    this.#change(first, count, (target) => target.fill(0));
  }

  writeEntries(): void {
    // In the order of the file, whatever the order of use.
    for (const [page, cached] of [...this.#cache].sort(([a], [b]) => a - b)) this.#writePage(page, cached);
  }

  write(): void {
    this.writeEntries();
    for (const number of this.#dirtyChunks) {
      const offset = number * CHUNK_BYTES;
      const chunk = this.#digests.chunk(number);
      if (chunk === undefined) this.#zero(this.#options.pagesFd, offset, this.#digests.chunkBytes(number));
      else this.#put(this.#options.pagesFd, chunk, offset);
    }
    this.#dirtyChunks.clear();
  }

  root(): Uint8Array {
    this.#refreshAll();
    return this.#digests.root();
  }

  resize(sizeBytes: number): void {
    const before = blockCount(this.geometry);
    const geometry = { ...this.geometry, sizeBytes };
    const after = blockCount(geometry);
    if (after < before) {
      const kept = pageCount(geometry);
      // Of the page that holds the new end only the blocks behind it go.
      const tail = Math.min(before, kept * this.#perPage);
      if (tail > after) this.clear(after, tail - after);
      for (const page of [...this.#cache.keys()]) {
        if (page < kept) continue;
        this.#cache.delete(page);
        this.#forget(page);
      }
      for (const number of [...this.#dirtyChunks])
        if (number * PAGES_PER_CHUNK >= kept) this.#dirtyChunks.delete(number);
    }
    this.#digests.resize(geometry);
  }

  forgetTail(): void {
    const page = pageCount(this.geometry) - 1;
    if (page < 0) return;
    const cached = this.#forChange(page, false);
    const tail = cached.bytes.subarray(pageBlocks(this.geometry, page).count * this.#width);
    if (isAllZero(tail)) return;
    tail.fill(0);
    cached.dirty = true;
    cached.stale = true;
  }

  isEmpty(): boolean {
    this.#refreshAll();
    return this.#digests.isEmpty;
  }

  *check(): Generator<number | undefined> {
    let read = 0;
    for (const page of this.#digests.nonZeroPages()) {
      if (!this.isSound(page)) yield page;
      if (++read % pagesBetweenPauses === 0) yield undefined;
    }
  }

  isSound(page: number): boolean {
    if (this.#cache.has(page) || this.#digests.isZero(page)) return true;
    try {
      // Past the cache, which must keep what is in use.
      this.#load(page, this.#scratch);
      return true;
    } catch (error) {
      if (error instanceof ReplicationError && error.code === "store-damaged") return false;
      throw error;
    }
  }

  #change(first: number, count: number, fill: (target: Buffer, done: number) => void): void {
    invariant(first >= 0 && count >= 0 && first + count <= blockCount(this.geometry), "blocks lie within their disk");
    for (let done = 0; done < count; ) {
      const page = Math.floor((first + done) / this.#perPage);
      const inPage = pageBlocks(this.geometry, page);
      const from = first + done - inPage.first;
      const length = Math.min(count - done, inPage.count - from);
      // A page that is replaced as a whole need not be readable.
      const cached = this.#forChange(page, length === inPage.count);
      const target = cached.bytes.subarray(from * this.#width, (from + length) * this.#width);
      fill(target, done);
      cached.dirty = true;
      cached.stale = true;
      done += length;
    }
  }

  /** All of a page's bytes: from memory, or read and checked. */
  #view(page: number): Buffer {
    const cached = this.#touch(page);
    if (cached !== undefined) return cached.bytes;
    if (this.#digests.isZero(page)) return zeroPage;
    return this.#keep(page, this.#load(page, Buffer.alloc(TABLE_PAGE_BYTES))).bytes;
  }

  #forChange(page: number, whole: boolean): CachedPage {
    const cached = this.#touch(page);
    if (cached !== undefined) return cached;
    const bytes = Buffer.alloc(TABLE_PAGE_BYTES);
    if (!whole && !this.#digests.isZero(page)) this.#load(page, bytes);
    return this.#keep(page, bytes);
  }

  #touch(page: number): CachedPage | undefined {
    // Scans and writes stay on one page for long.
    if (page === this.#lastPage) return this.#last;
    const cached = this.#cache.get(page);
    if (cached === undefined) return undefined;
    this.#cache.delete(page);
    this.#cache.set(page, cached);
    this.#lastPage = page;
    this.#last = cached;
    return cached;
  }

  #forget(page: number): void {
    if (page !== this.#lastPage) return;
    this.#lastPage = -1;
    this.#last = undefined;
  }

  #keep(page: number, bytes: Buffer): CachedPage {
    while (this.#cache.size >= this.#cachePagesMax) {
      const [oldest] = this.#cache;
      if (oldest === undefined) break;
      this.#writePage(oldest[0], oldest[1]);
      this.#cache.delete(oldest[0]);
      this.#forget(oldest[0]);
    }
    const cached = { bytes, dirty: false, stale: false };
    this.#cache.set(page, cached);
    this.#lastPage = page;
    this.#last = cached;
    return cached;
  }

  #load(page: number, target: Buffer): Buffer {
    const count = this.#read(this.#options.digestsFd, target, page * TABLE_PAGE_BYTES);
    target.fill(0, count);
    if (count === TABLE_PAGE_BYTES && Buffer.compare(pageDigest(target), this.#digests.get(page)) === 0) return target;
    this.#options.onDamage?.(page);
    throw new ReplicationError(
      "store-damaged",
      `${this.#name}: page ${page} of "digests" (offset ${page * TABLE_PAGE_BYTES}) does not match its checksum in "pages"; ` +
        "whoever writes to the disk digests its blocks anew",
      { details: { page, offset: page * TABLE_PAGE_BYTES } },
    );
  }

  #writePage(page: number, cached: CachedPage): void {
    if (!cached.dirty) return;
    this.#refresh(page, cached);
    const offset = page * TABLE_PAGE_BYTES;
    if (this.#digests.isZero(page)) this.#zero(this.#options.digestsFd, offset, TABLE_PAGE_BYTES);
    else this.#put(this.#options.digestsFd, cached.bytes, offset);
    cached.dirty = false;
  }

  #refresh(page: number, cached: CachedPage): void {
    if (!cached.stale) return;
    this.#digests.set(page, pageDigest(cached.bytes));
    this.#dirtyChunks.add(Math.floor(page / PAGES_PER_CHUNK));
    cached.stale = false;
  }

  #refreshAll(): void {
    for (const [page, cached] of this.#cache) this.#refresh(page, cached);
  }

  /** Page digests as others see them: brought up to date as they are asked for. */
  #freshPages(): PageDigests {
    const digests = this.#digests;
    const fresh = (page: number): void => {
      const cached = this.#cache.get(page);
      if (cached !== undefined) this.#refresh(page, cached);
    };
    return {
      get geometry() {
        return digests.geometry;
      },
      get(page) {
        fresh(page);
        return digests.get(page);
      },
      isZero(page) {
        fresh(page);
        return digests.isZero(page);
      },
      set: () => invariant(false, "a table over files sets its page digests by itself"),
      root: () => this.root(),
    };
  }

  #readPageDigests(): void {
    const bytes = tableFileBytes(this.geometry).pages;
    const nextData =
      this.#options.nextPagesData ?? ((offset) => (offset < bytes ? { start: offset, end: bytes } : undefined));
    const last = Buffer.alloc(PAGE_DIGEST_BYTES);
    if (bytes > 0 && this.#read(this.#options.pagesFd, last, bytes - PAGE_DIGEST_BYTES) < PAGE_DIGEST_BYTES) {
      throw new ReplicationError(
        "store-damaged",
        `${this.#name}: "pages" is shorter than the ${bytes} bytes it must have`,
      );
    }
    const buffer = Buffer.alloc(CHUNK_BYTES);
    for (let at = 0; at < bytes; ) {
      const data = nextData(at);
      if (data === undefined || data.start >= bytes) break;
      at = Math.floor(data.start / CHUNK_BYTES) * CHUNK_BYTES;
      for (; at < Math.min(data.end, bytes); at += CHUNK_BYTES) this.#readChunk(buffer, at, bytes);
    }
  }

  #readChunk(buffer: Buffer, offset: number, bytes: number): void {
    const count = this.#read(this.#options.pagesFd, buffer, offset);
    const end = Math.min(count, bytes - offset);
    for (let at = 0; at + PAGE_DIGEST_BYTES <= end; at += PAGE_DIGEST_BYTES) {
      const digest = buffer.subarray(at, at + PAGE_DIGEST_BYTES);
      if (!isAllZero(digest)) this.#digests.set((offset + at) / PAGE_DIGEST_BYTES, digest);
    }
  }

  #read(fd: number, target: Uint8Array, offset: number): number {
    try {
      return this.#options.lanes.read(fd, target, offset);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      throw new ReplicationError("store-damaged", `${this.#name} cannot be read at offset ${offset} (${errno})`, {
        cause: error,
        details: { offset, errno },
      });
    }
  }

  #zero(fd: number, offset: number, length: number): void {
    if (this.#inFile(offset, () => this.#options.lanes.punch(fd, offset, length))) return;
    this.#put(fd, Buffer.alloc(length), offset);
  }

  #put(fd: number, bytes: Uint8Array, offset: number): void {
    this.#inFile(offset, () => {
      this.#options.lanes.write(fd, bytes, offset);
    });
  }

  #inFile<T>(offset: number, change: () => T): T {
    try {
      return change();
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      const full = errno === "ENOSPC" || errno === "EDQUOT";
      throw new ReplicationError(
        full ? "no-space" : "write-failed",
        `${this.#name}: ${full ? "no space left for it" : `writing it failed (${errno})`} at offset ${offset}`,
        { cause: error, details: { offset, errno } },
      );
    }
  }
}
