/** The root of a disk from the digests of its blocks, wherever they come from. */
import { invariant } from "../base/errors.ts";
import { blocksPerPage, digestBytes, type Geometry, TABLE_PAGE_BYTES } from "../base/units.ts";
import { createDigester, type Digester } from "../codec/digest.ts";
import { createPageDigests, type PageDigests, pageDigest } from "../table/page-digests.ts";

/** Takes the content of blocks in ascending order; those left out are zero. Memory: one table page, and 1 MiB for each TiB. */
export class ContentRoot {
  readonly #geometry: Geometry;
  readonly #digester: Digester;
  readonly #pages: PageDigests;
  readonly #perPage: number;
  readonly #width: number;
  readonly #page = new Uint8Array(TABLE_PAGE_BYTES);
  /** Of the last, shorter block. */
  readonly #padded: Uint8Array;
  #pageNumber = 0;
  #next = 0;

  private constructor(geometry: Geometry, digester: Digester) {
    this.#geometry = geometry;
    this.#digester = digester;
    this.#pages = createPageDigests(geometry);
    this.#perPage = blocksPerPage(geometry.digestKind);
    this.#width = digestBytes(geometry.digestKind);
    this.#padded = new Uint8Array(geometry.blockBytes);
  }

  static async create(geometry: Geometry): Promise<ContentRoot> {
    return new ContentRoot(geometry, await createDigester(geometry.digestKind));
  }

  /** Whole blocks, or up to the end of the disk. */
  add(content: Uint8Array, offset: number): void {
    const { blockBytes, sizeBytes } = this.#geometry;
    const first = offset / blockBytes;
    invariant(Number.isInteger(first) && first >= this.#next, "blocks come whole and in order");
    for (let at = 0, block = first; at < content.length; at += blockBytes, block++) {
      const bytes = content.subarray(at, at + blockBytes);
      if (bytes.length === blockBytes) this.#digest(block, bytes);
      else {
        invariant(offset + content.length === sizeBytes, "only the last block is short");
        this.#padded.fill(0);
        this.#padded.set(bytes);
        this.#digest(block, this.#padded);
      }
      this.#next = block + 1;
    }
  }

  /** Hex. */
  root(): string {
    this.#flush();
    return Buffer.from(this.#pages.root()).toString("hex");
  }

  #digest(block: number, bytes: Uint8Array): void {
    const page = Math.floor(block / this.#perPage);
    if (page !== this.#pageNumber) {
      this.#flush();
      this.#page.fill(0);
      this.#pageNumber = page;
    }
    this.#digester.digest(bytes, this.#page, (block - page * this.#perPage) * this.#width);
  }

  #flush(): void {
    if (this.#next > 0) this.#pages.set(this.#pageNumber, pageDigest(this.#page));
  }
}
