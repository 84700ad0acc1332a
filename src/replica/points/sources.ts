/**
 * Where the blocks of one table page come from at a point: for each part the first log that holds it, for each block the first entry's
 * digest. Pure. What no log holds comes from the replica and its table.
 */
import { isFullMask } from "../../base/part-mask.ts";
import { maskBytes, PART_BYTES, partsPerBlock } from "../../base/units.ts";
import type { UndoEntry } from "../undo/entry.ts";

/** Parts of a block that one entry has first. */
export interface Piece {
  /** Index in the chain. */
  readonly log: number;
  readonly entry: UndoEntry;
  readonly parts: Uint8Array;
}

/** A block that some log of the chain has an entry of. */
export interface BlockSources {
  readonly pieces: readonly Piece[];
  /** Parts within the point that no log has. */
  readonly missing: Uint8Array;
  readonly anyMissing: boolean;
  /** Of the first entry; undefined: the log has lost the entry that had it. */
  readonly digest: Uint8Array | undefined;
  /** Where the digest comes from: index in the chain, and offset of the entry's content; 0: it has none. */
  readonly digestLog: number;
  readonly digestOffset: number;
}

export type PageSources = ReadonlyMap<number, BlockSources>;

export interface PointShape {
  readonly blockBytes: number;
  /** Of the disk at the point. */
  readonly sizeBytes: number;
}

/** Blocks `first` to `end - 1`. */
export interface BlockRange {
  readonly first: number;
  readonly end: number;
}

interface Growing {
  readonly pieces: Piece[];
  readonly missing: Uint8Array;
  left: number;
  readonly digest: Uint8Array | undefined;
  readonly digestLog: number;
  readonly digestOffset: number;
}

/** Bytes a block and a piece take in memory, about. */
const blockBytesTaken = 300;
const pieceBytesTaken = 600;
/** A further block of a run. */
const sharedBytesTaken = 60;

/** Takes in logs in chain order. */
export class PageSourcesBuilder {
  readonly #shape: PointShape;
  readonly #range: BlockRange;
  readonly #before: PageSources | undefined;
  readonly #found = new Map<number, BlockSources & Growing>();
  #bytes = 0;

  /** `before`: what logs before those taken in here have; it stays as it is. */
  constructor(shape: PointShape, range: BlockRange, before?: PageSources) {
    this.#shape = shape;
    this.#range = range;
    this.#before = before;
  }

  /** Memory of what was built, about. */
  get byteLength(): number {
    return this.#bytes;
  }

  /** Only blocks that were taken in here; complete with what `before` has of them. */
  get found(): PageSources {
    return this.#found;
  }

  /** `entries`: of log `log`, in the order they were written for each block. */
  add(log: number, entries: readonly UndoEntry[]): void {
    for (const entry of entries) {
      // Says only that the block was overwritten again.
      if (entry.mask.every((byte) => byte === 0)) continue;
      const end = Math.min(entry.block + entry.run, this.#range.end);
      let shared: (BlockSources & Growing) | undefined;
      for (let block = Math.max(entry.block, this.#range.first); block < end; block++) {
        const isNew = !this.#found.has(block) && this.#before?.has(block) !== true;
        if (isNew && shared !== undefined && (block + 1) * this.#shape.blockBytes <= this.#shape.sizeBytes) {
          this.#found.set(block, shared);
          this.#bytes += sharedBytesTaken;
          continue;
        }
        this.#take(log, block, entry);
        // Of a run of zeros that has all of its blocks: they are told in the same words, and nothing is added to them any more.
        const taken = this.#found.get(block);
        if (isNew && entry.run > 1 && taken?.left === 0 && isFullMask(entry.mask, this.#shape.blockBytes))
          shared = taken;
      }
    }
  }

  #take(log: number, block: number, entry: UndoEntry): void {
    let sources = this.#found.get(block);
    if (sources === undefined) {
      sources = this.#begin(log, block, entry);
      this.#found.set(block, sources);
      this.#bytes += blockBytesTaken;
    }
    if (sources.left === 0) return;
    const parts = new Uint8Array(sources.missing.length);
    let count = 0;
    for (const [at, byte] of sources.missing.entries()) {
      const taken = byte & (entry.mask[at] ?? 0);
      parts[at] = taken;
      sources.missing[at] = byte & ~taken;
      for (let bits = taken; bits !== 0; bits &= bits - 1) count++;
    }
    if (count === 0) return;
    sources.left -= count;
    sources.pieces.push({ log, entry, parts });
    this.#bytes += pieceBytesTaken;
  }

  #begin(log: number, block: number, entry: UndoEntry): BlockSources & Growing {
    const before = this.#before?.get(block);
    const missing = before === undefined ? partsWithin(this.#shape, block) : Uint8Array.from(before.missing);
    return {
      pieces: [...(before?.pieces ?? [])],
      missing,
      left: countBits(missing),
      get anyMissing() {
        return this.left > 0;
      },
      digest: before === undefined ? entry.digest : before.digest,
      digestLog: before?.digestLog ?? log,
      digestOffset: before?.digestOffset ?? entry.contentOffset,
    };
  }
}

/** Parts of a block that lie, at least in part, within the disk. */
export function partsWithin({ blockBytes, sizeBytes }: PointShape, block: number): Uint8Array {
  const mask = new Uint8Array(maskBytes(blockBytes));
  const count = Math.min(partsPerBlock(blockBytes), Math.ceil((sizeBytes - block * blockBytes) / PART_BYTES));
  for (let part = 0; part < count; part++) mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
  return mask;
}

function countBits(mask: Uint8Array): number {
  let count = 0;
  for (let byte of mask) for (; byte !== 0; byte &= byte - 1) count++;
  return count;
}

/** Puts `parts` of an entry's content, which has all parts of `mask` in order, into their places in the block. */
export function placeParts(block: Uint8Array, mask: Uint8Array, parts: Uint8Array, content: Uint8Array): void {
  let at = 0;
  for (let part = 0; part < block.length / PART_BYTES; part++) {
    const bit = 1 << (part & 7);
    if (((mask[part >> 3] ?? 0) & bit) === 0) continue;
    if (((parts[part >> 3] ?? 0) & bit) !== 0) block.set(content.subarray(at, at + PART_BYTES), part * PART_BYTES);
    at += PART_BYTES;
  }
}

export function clearParts(block: Uint8Array, parts: Uint8Array): void {
  for (let part = 0; part < block.length / PART_BYTES; part++) {
    if (((parts[part >> 3] ?? 0) & (1 << (part & 7))) !== 0) block.fill(0, part * PART_BYTES, (part + 1) * PART_BYTES);
  }
}
