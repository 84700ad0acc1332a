/** Page digests in memory and the root over them. Layout and root: docs/formats.md, "Digest table". */
import { createHash, hash } from "node:crypto";
import { invariant } from "../base/errors.ts";
import { type Geometry, pageCount, TABLE_PAGE_BYTES } from "../base/units.ts";

/** Page digests in memory, sparse: pages of zero blocks take none. 1 MiB for each TiB of data at the defaults. */
export interface PageDigests {
  readonly geometry: Geometry;
  /** 32 bytes, all zero for a page of zero blocks. A view: copy to keep. */
  get(page: number): Uint8Array;
  set(page: number, digest: Uint8Array): void;
  isZero(page: number): boolean;
  /** 32 bytes. Costs one sha256 over 32 bytes a page. */
  root(): Uint8Array;
}

export const PAGE_DIGEST_BYTES = 32;
/** Pages of one chunk of memory: 16 KiB of page digests, 16 GiB of disk at the defaults. */
export const PAGES_PER_CHUNK = 512;
export const CHUNK_BYTES = PAGES_PER_CHUNK * PAGE_DIGEST_BYTES;

export function createPageDigests(geometry: Geometry): PageDigests {
  return new SparsePageDigests(geometry);
}

/** The page digest of one page of digests: 32 zero bytes when all are zero, else sha256 over exactly 4096 bytes (blocks that do not exist count as zero). */
export function pageDigest(digests: Uint8Array): Uint8Array {
  invariant(digests.length <= TABLE_PAGE_BYTES, "a table page has at most 4096 bytes");
  if (isAllZero(digests)) return Buffer.alloc(PAGE_DIGEST_BYTES);
  if (digests.length === TABLE_PAGE_BYTES) return hash("sha256", digests, "buffer");
  const whole = Buffer.alloc(TABLE_PAGE_BYTES);
  whole.set(digests);
  return hash("sha256", whole, "buffer");
}

const zeros = Buffer.alloc(CHUNK_BYTES);

export function isAllZero(bytes: Uint8Array): boolean {
  if (bytes.length <= zeros.length) return Buffer.compare(bytes, zeros.subarray(0, bytes.length)) === 0;
  return bytes.every((byte) => byte === 0);
}

interface Chunk {
  readonly bytes: Buffer;
  /** Page digests of this chunk that are not zero; at 0 the chunk is given back. */
  used: number;
}

/** {@link PageDigests} with what the table over files needs beside it. */
export class SparsePageDigests implements PageDigests {
  #geometry: Geometry;
  #pageCount: number;
  readonly #chunks = new Map<number, Chunk>();
  #root: Uint8Array | undefined;

  constructor(geometry: Geometry) {
    this.#geometry = geometry;
    this.#pageCount = pageCount(geometry);
  }

  get geometry(): Geometry {
    return this.#geometry;
  }

  get chunkCount(): number {
    return Math.ceil(this.#pageCount / PAGES_PER_CHUNK);
  }

  get(page: number): Uint8Array {
    const chunk = this.#chunks.get(this.#chunkOf(page));
    if (chunk === undefined) return zeros.subarray(0, PAGE_DIGEST_BYTES);
    const at = (page % PAGES_PER_CHUNK) * PAGE_DIGEST_BYTES;
    return chunk.bytes.subarray(at, at + PAGE_DIGEST_BYTES);
  }

  isZero(page: number): boolean {
    return isAllZero(this.get(page));
  }

  set(page: number, digest: Uint8Array): void {
    invariant(digest.length === PAGE_DIGEST_BYTES, "a page digest has 32 bytes");
    const number = this.#chunkOf(page);
    this.#root = undefined;
    let chunk = this.#chunks.get(number);
    const zero = isAllZero(digest);
    if (chunk === undefined) {
      if (zero) return;
      chunk = { bytes: Buffer.alloc(CHUNK_BYTES), used: 0 };
      this.#chunks.set(number, chunk);
    }
    const at = (page % PAGES_PER_CHUNK) * PAGE_DIGEST_BYTES;
    const target = chunk.bytes.subarray(at, at + PAGE_DIGEST_BYTES);
    chunk.used += Number(isAllZero(target)) - Number(zero);
    target.set(digest);
    if (chunk.used === 0) this.#chunks.delete(number);
  }

  root(): Uint8Array {
    this.#root ??= this.#computeRoot();
    return Buffer.from(this.#root);
  }

  /** Page digests of a chunk, only of pages that exist; undefined: all zero. A view. */
  chunk(number: number): Uint8Array | undefined {
    return this.#chunks.get(number)?.bytes.subarray(0, this.chunkBytes(number));
  }

  /** Bytes of page digests in a chunk. */
  chunkBytes(number: number): number {
    return Math.min(CHUNK_BYTES, (this.#pageCount - number * PAGES_PER_CHUNK) * PAGE_DIGEST_BYTES);
  }

  get isEmpty(): boolean {
    return this.#chunks.size === 0;
  }

  /** Numbers of pages that are not zero, ascending. */
  *nonZeroPages(): Generator<number> {
    for (const number of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const pages = this.chunkBytes(number) / PAGE_DIGEST_BYTES;
      for (let page = number * PAGES_PER_CHUNK; page < number * PAGES_PER_CHUNK + pages; page++) {
        if (!this.isZero(page)) yield page;
      }
    }
  }

  /** Page digests beyond the new end become zero. */
  resize(geometry: Geometry): void {
    const before = this.#pageCount;
    this.#geometry = geometry;
    this.#pageCount = pageCount(geometry);
    this.#root = undefined;
    const after = this.#pageCount;
    if (after >= before) return;
    for (const number of [...this.#chunks.keys()]) {
      if (number * PAGES_PER_CHUNK >= after) this.#chunks.delete(number);
    }
    const last = this.#chunks.get(Math.floor(after / PAGES_PER_CHUNK));
    if (last === undefined) return;
    last.bytes.fill(0, (after % PAGES_PER_CHUNK) * PAGE_DIGEST_BYTES);
    last.used = 0;
    for (let at = 0; at < CHUNK_BYTES; at += PAGE_DIGEST_BYTES) {
      last.used += Number(!isAllZero(last.bytes.subarray(at, at + PAGE_DIGEST_BYTES)));
    }
    if (last.used === 0) this.#chunks.delete(Math.floor(after / PAGES_PER_CHUNK));
  }

  #chunkOf(page: number): number {
    invariant(Number.isInteger(page) && page >= 0 && page < this.#pageCount, "a table page lies within its disk");
    return Math.floor(page / PAGES_PER_CHUNK);
  }

  #computeRoot(): Uint8Array {
    const { sizeBytes, blockBytes, digestKind } = this.#geometry;
    const facts = Buffer.alloc(13);
    facts.writeBigUInt64LE(BigInt(sizeBytes), 0);
    facts.writeUInt32LE(blockBytes, 8);
    facts.writeUInt8(digestKind === "xxh64" ? 1 : 2, 12);
    const root = createHash("sha256").update("replicate table 1\n").update(facts);
    for (let number = 0; number < this.chunkCount; number++) {
      root.update(this.chunk(number) ?? zeros.subarray(0, this.chunkBytes(number)));
    }
    return root.digest();
  }
}
