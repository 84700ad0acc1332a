/** The table's two files, open: found whole, or emptied for a rebuild. */
import { type Geometry } from "../base/units.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import { createPageDigests, type DigestTable, openDigestTable, tableFileBytes } from "../table/digest-table.ts";
import { PAGE_DIGEST_BYTES } from "../table/page-digests.ts";
import { ReplicationError } from "../base/errors.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";

export class TableFiles {
  readonly #storage: Storage;
  readonly #digests: StorageFile;
  readonly #pages: StorageFile;
  readonly #disk: string;
  /** `pages` has no length: {@link empty}. */
  #isEmptied = false;

  private constructor(storage: Storage, digests: StorageFile, pages: StorageFile, disk: string) {
    this.#storage = storage;
    this.#digests = digests;
    this.#pages = pages;
    this.#disk = disk;
  }

  /** Opens both, created when missing: a missing one is one of length 0. */
  static async open(storage: Storage, paths: DiskPaths, disk: string): Promise<TableFiles> {
    return inFile("write-failed", `disk ${disk}: opening its table`, async () => {
      const digests = await storage.open(paths.digests, { write: true, create: true, mode: 0o600 });
      try {
        const pages = await storage.open(paths.pages, { write: true, create: true, mode: 0o600 });
        return new TableFiles(storage, digests, pages, disk);
      } catch (error) {
        await digests.close();
        throw error;
      }
    });
  }

  /** Whether both files are long enough for this geometry, and `pages` is not of a table that was being built anew: {@link settle}. */
  async holds(geometry: Geometry): Promise<boolean> {
    const wanted = tableFileBytes(geometry);
    const digests = await this.#digests.stat();
    const pages = await this.#pages.stat();
    const isWhole = pages.sizeBytes % PAGE_DIGEST_BYTES === 0;
    return isWhole && digests.sizeBytes >= wanted.digests && pages.sizeBytes >= wanted.pages;
  }

  /** The table as it is on disk, or in words why there is none to be had. */
  async read(
    geometry: Geometry,
    onDamage: (page: number) => void,
  ): Promise<{ readonly table: DigestTable } | { readonly trouble: string }> {
    const wanted = tableFileBytes(geometry);
    const digests = await this.#digests.stat();
    const pages = await this.#pages.stat();
    if (digests.sizeBytes !== wanted.digests || pages.sizeBytes !== wanted.pages) {
      return { trouble: "the table is missing or has not the length of the disk" };
    }
    try {
      return { table: this.#table(geometry, false, onDamage) };
    } catch (error) {
      if (error instanceof ReplicationError && error.code === "store-damaged") return { trouble: error.message };
      throw error;
    }
  }

  /**
   * Empties the table for a rebuild. `pages` loses its length first, and durably: until {@link settle} gives it back, every
   * open finds the table doubtful, whatever is in it. What `digests` holds is overwritten, or punched, by the rebuild, page by page.
   */
  async empty(geometry: Geometry, onDamage: (page: number) => void): Promise<DigestTable> {
    await this.distrust();
    this.#isEmptied = true;
    await inFile("write-failed", `disk ${this.#disk}: emptying its table`, () =>
      this.#digests.truncate(tableFileBytes(geometry).digests),
    );
    return this.#table(geometry, true, onDamage);
  }

  /** Makes every later open doubt the table. */
  async distrust(): Promise<void> {
    await inFile("write-failed", `disk ${this.#disk}: emptying its table`, async () => {
      await this.#pages.truncate(0);
      await this.#syncFile(this.#pages, "pages");
    });
  }

  /**
   * Writes and syncs a table that was built anew. After {@link empty} `pages` is too long, durably, until all of its content is durable: of what is written
   * at its end alone its length might survive, and page digests that are missing are those of zeros.
   */
  async settle(table: DigestTable): Promise<void> {
    const { pages } = tableFileBytes(table.geometry);
    table.writeEntries();
    await this.#syncFile(this.#digests, "digests");
    if (this.#isEmptied) await this.#cutPages(pages + 1);
    table.write();
    await this.#syncFile(this.#pages, "pages");
    if (this.#isEmptied) {
      try {
        await this.#cutPages(pages);
      } catch (error) {
        // A sync that failed may have forgotten the cut, though it is seen: the next open must not take it for one that stays.
        await this.#pages.truncate(pages + 1).catch(() => undefined);
        throw error;
      }
    }
    this.#isEmptied = false;
  }

  /** Durably. */
  async #cutPages(sizeBytes: number): Promise<void> {
    await inFile("write-failed", `disk ${this.#disk}: writing "pages"`, () => this.#pages.truncate(sizeBytes));
    await this.#syncFile(this.#pages, "pages");
  }

  /** Syncs what `table.write()` wrote. Throws `sync-failed`. */
  async sync(): Promise<void> {
    await settleAll([this.#syncFile(this.#digests, "digests"), this.#syncFile(this.#pages, "pages")]);
  }

  /** Gives both files the length for `geometry`; the table's `resize` follows. */
  async resize(geometry: Geometry): Promise<void> {
    const { digests, pages } = tableFileBytes(geometry);
    await this.#digests.truncate(digests);
    await this.#pages.truncate(pages);
  }

  async close(): Promise<void> {
    await settleAll([this.#digests.close(), this.#pages.close()]);
  }

  #table(geometry: Geometry, empty: boolean, onDamage: (page: number) => void): DigestTable {
    return openDigestTable({
      geometry,
      lanes: this.#storage.lanes,
      digestsFd: this.#digests.fd,
      pagesFd: this.#pages.fd,
      nextPagesData: (offset) => this.#pages.nextData(offset),
      empty,
      name: `disk ${this.#disk}, its digest table`,
      onDamage,
    });
  }

  #syncFile(file: StorageFile, what: string): Promise<void> {
    return inFile("sync-failed", `disk ${this.#disk}: syncing "${what}"`, () => file.datasync());
  }
}

/** Root of a disk on which nothing was ever written. Hex. */
export function emptyRoot(geometry: Geometry): string {
  return hexOf(createPageDigests(geometry).root());
}

export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

/** Waits for all, then throws the first failure: nothing is left running when it throws. */
export async function settleAll(tasks: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(tasks)) if (result.status === "rejected") throw result.reason;
}
