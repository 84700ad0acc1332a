/**
 * Which blocks of a disk may have changed: one bit a block. Pure. Memory is what is touched of it; a range of any length costs next to
 * nothing (base/paged-bits.ts).
 */
import { invariant } from "../base/errors.ts";
import { PagedBits } from "../base/paged-bits.ts";
import { isBlockSize } from "../base/units.ts";

export interface DiskBlocks {
  /** Of the disk, in bytes. */
  readonly sizeBytes: number;
  /** A block size: base/units.ts. */
  readonly blockBytes: number;
}

/** Blocks one behind the other. */
export interface BlockRange {
  readonly first: number;
  readonly count: number;
}

/** A bitmap as its readers see it. */
export interface DirtyBits extends DiskBlocks {
  /** Blocks of the disk. */
  readonly blocks: number;
  /** Dirty ones among them. */
  readonly count: number;
  has(block: number): boolean;
  /** The first run of dirty blocks at or behind `from`, cut off before `from`; undefined: there is none. */
  next(from: number): BlockRange | undefined;
  /** Every run, ascending. */
  ranges(): Generator<BlockRange>;
}

export class DirtyBitmap implements DirtyBits {
  readonly blockBytes: number;
  #sizeBytes: number;
  readonly #bits: PagedBits;
  #frozen = false;

  /** Nothing is dirty. */
  constructor({ sizeBytes, blockBytes }: DiskBlocks) {
    invariant(isBlockSize(blockBytes), "a bitmap is of blocks");
    this.blockBytes = blockBytes;
    this.#sizeBytes = sizeBytes;
    this.#bits = new PagedBits(Math.ceil(sizeBytes / blockBytes));
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get blocks(): number {
    return this.#bits.size;
  }

  get count(): number {
    return this.#bits.count;
  }

  has(block: number): boolean {
    return this.#bits.has(block);
  }

  next(from: number): BlockRange | undefined {
    const first = this.#bits.next(from);
    if (first === undefined) return undefined;
    return { first, count: (this.#bits.next(first, false) ?? this.blocks) - first };
  }

  *ranges(): Generator<BlockRange> {
    for (let run = this.next(0); run !== undefined; run = this.next(run.first + run.count)) yield run;
  }

  /** Whether every block that a range of bytes touches is dirty. */
  covers(offset: number, length: number): boolean {
    const { first, count } = this.blocksOf(offset, length);
    if (count <= 1) return count === 0 || this.#bits.has(first);
    const clean = this.#bits.next(first, false);
    return clean === undefined || clean >= first + count;
  }

  /** True: it was clean. */
  set(block: number): boolean {
    this.#changing();
    return this.#bits.add(block);
  }

  /** True: it was dirty. */
  clear(block: number): boolean {
    this.#changing();
    return this.#bits.delete(block);
  }

  setRange({ first, count }: BlockRange): void {
    this.#changing();
    if (count === 1) this.#bits.add(first);
    else this.#bits.addRange(first, count);
  }

  /** Every block that a range of bytes touches. What lies behind the disk's end is left out. */
  setBytes(offset: number, length: number): void {
    this.setRange(this.blocksOf(offset, length));
  }

  setAll(): void {
    this.setRange({ first: 0, count: this.blocks });
  }

  /** Blocks are of one size in both; those of `other` behind this disk's end are left out. */
  or(other: DirtyBitmap): void {
    this.#changing();
    invariant(other.blockBytes === this.blockBytes, "bitmaps that are joined have blocks of one size");
    this.#bits.or(other.#bits);
  }

  /** Bits of a smaller disk's missing blocks are gone; what a greater one has more is dirty, and so is the block its old end lay in. */
  resize(sizeBytes: number): void {
    this.#changing();
    const before = this.#sizeBytes;
    this.#sizeBytes = sizeBytes;
    this.#bits.resize(Math.ceil(sizeBytes / this.blockBytes));
    if (sizeBytes > before) this.setBytes(before, sizeBytes - before);
  }

  clone(): DirtyBitmap {
    const copy = new DirtyBitmap(this);
    copy.#bits.or(this.#bits);
    return copy;
  }

  /** From now on a change is a wrong call. */
  freeze(): this {
    this.#frozen = true;
    return this;
  }

  /** Bits as bytes: block b is bit b % 8 of byte b >> 3; `target[0]` is byte `firstByte`. */
  readBits(target: Uint8Array, firstByte: number): void {
    this.#bits.readBytes(target, firstByte);
  }

  /** Sets the bits of `bytes`, in the form of {@link readBits}. */
  orBits(bytes: Uint8Array, firstByte: number): void {
    this.#changing();
    this.#bits.orBytes(bytes, firstByte);
  }

  /** The blocks that a range of bytes touches, within the disk. */
  blocksOf(offset: number, length: number): BlockRange {
    const end = Math.min(offset + length, this.#sizeBytes);
    if (end <= offset) return { first: 0, count: 0 };
    const first = Math.floor(offset / this.blockBytes);
    return { first, count: Math.ceil(end / this.blockBytes) - first };
  }

  #changing(): void {
    invariant(!this.#frozen, "a frozen bitmap does not change");
  }
}
