/**
 * The replica's digest table as a reader beside its writer sees it. The writer may write pages of `digests` at any time and writes
 * `pages` at commits only, so a page need not match its checksum; and while it builds the table anew both files may be short.
 */
import { blocksPerPage, digestBytes, type DigestKind, TABLE_PAGE_BYTES } from "../../base/units.ts";
import { errnoOf } from "../../base/errors.ts";
import type { LaneStorage, Storage, StorageFile } from "../../storage/seam.ts";
import { PAGE_DIGEST_BYTES, pageDigest } from "../../table/page-digests.ts";
import { fileError, inFile } from "../file-error.ts";
import { ByteLru } from "../undo/lru.ts";

export interface TablePage {
  /** {@link TABLE_PAGE_BYTES}; what the file does not have is zero. */
  readonly bytes: Buffer;
  /** The page digest in `pages`; undefined: there is none, so the table is being built anew, or was lost. */
  readonly checksum: Buffer | undefined;
  /** The page is the one the checksum was made of, or that page with only named blocks changed. */
  readonly proven: boolean;
}

/** A block that the open log names, and its digest before that log. */
export interface NamedDigest {
  readonly block: number;
  readonly digest: Uint8Array;
}

/** Pages read at once: readers go on to the next ones. */
const windowPages = 16;
const cacheBytes = 4 * 1024 * 1024;
const zeroChecksum = Buffer.alloc(PAGE_DIGEST_BYTES);
/** What is read at once, until the next read: a look at a page is one synchronous step. */
const windowBytes = Buffer.alloc(windowPages * TABLE_PAGE_BYTES);
const windowChecksums = Buffer.alloc(windowPages * PAGE_DIGEST_BYTES);

export class TablePages {
  readonly #lanes: LaneStorage;
  readonly #digests: StorageFile | undefined;
  readonly #pages: StorageFile | undefined;
  /**
   * Proven pages. They stay good for blocks that no log of the chain names: what a page says of such a block does not change until an entry
   * of the block is in a log.
   */
  readonly #cache = new ByteLru<number, TablePage>(cacheBytes);

  private constructor(lanes: LaneStorage, digests: StorageFile | undefined, pages: StorageFile | undefined) {
    this.#lanes = lanes;
    this.#digests = digests;
    this.#pages = pages;
  }

  /** Files that are missing count as empty. */
  static async open(
    storage: Storage,
    paths: { readonly digests: string; readonly pages: string },
  ): Promise<TablePages> {
    const digests = await openIfThere(storage, paths.digests);
    try {
      return new TablePages(storage.lanes, digests, await openIfThere(storage, paths.pages));
    } catch (error) {
      await digests?.close();
      throw error;
    }
  }

  /** Throws `store-damaged` when the files cannot be read. */
  page(page: number): TablePage {
    const kept = this.#cache.get(page);
    if (kept !== undefined) return kept;
    const [bytes, checksums] = [windowBytes, windowChecksums];
    // Entries first: `pages` loses its length before they are emptied, so emptied ones are never believed.
    bytes.fill(0, this.#read(this.#digests, bytes, page * TABLE_PAGE_BYTES));
    const count = this.#read(this.#pages, checksums, page * PAGE_DIGEST_BYTES);
    const found: TablePage[] = [];
    for (let index = 0; index < windowPages; index++) {
      const has = count >= (index + 1) * PAGE_DIGEST_BYTES;
      if (index > 0 && !has) break;
      // Copies: a view would keep the whole window in memory.
      const own = Buffer.from(bytes.subarray(index * TABLE_PAGE_BYTES, (index + 1) * TABLE_PAGE_BYTES));
      const checksum = has
        ? Buffer.from(checksums.subarray(index * PAGE_DIGEST_BYTES, (index + 1) * PAGE_DIGEST_BYTES))
        : undefined;
      const proven = checksum !== undefined && checksum.equals(pageDigest(own));
      found.push({ bytes: own, checksum, proven });
    }
    // The one asked for last, so that it stays.
    for (let index = found.length - 1; index >= 0; index--) this.#keep(page + index, found[index]);
    return found[0] ?? { bytes: Buffer.alloc(TABLE_PAGE_BYTES), checksum: undefined, proven: false };
  }

  /**
   * Tries to prove a page with what the open log says its blocks had before: during a delta the writer puts changed pages into
   * `digests`, and their checksums only at the commit.
   */
  prove(page: number, found: TablePage, named: readonly NamedDigest[], digestKind: DigestKind): TablePage {
    if (found.proven || found.checksum === undefined || named.length === 0) return found;
    const before = Buffer.from(found.bytes);
    const first = page * blocksPerPage(digestKind);
    for (const { block, digest } of named) before.set(digest, (block - first) * digestBytes(digestKind));
    if (!found.checksum.equals(pageDigest(before))) return found;
    const proven = { ...found, proven: true };
    this.#keep(page, proven);
    return proven;
  }

  async close(): Promise<void> {
    await this.#digests?.close();
    await this.#pages?.close();
  }

  #keep(page: number, found: TablePage | undefined): void {
    if (found?.proven === true) this.#cache.set(page, found, TABLE_PAGE_BYTES + 200);
  }

  #read(file: StorageFile | undefined, target: Uint8Array, offset: number): number {
    if (file === undefined) return 0;
    try {
      return this.#lanes.read(file.fd, target, offset);
    } catch (error) {
      throw fileError(error, "store-damaged", `reading ${file.path} at offset ${offset}`);
    }
  }
}

/** Whether `pages` says that every block of the page is zero; what lies in `digests` then means nothing. */
export function saysZero(found: TablePage): boolean {
  return found.checksum?.equals(zeroChecksum) === true;
}

function openIfThere(storage: Storage, path: string): Promise<StorageFile | undefined> {
  return inFile("store-damaged", `opening ${path}`, async () => {
    try {
      return await storage.open(path);
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return undefined;
      throw error;
    }
  });
}
