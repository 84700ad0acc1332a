/**
 * Several closed logs as one: what a reader finds who looks through them in order, and nothing else. Of each part the first content, of each block
 * the first digest; what was damaged stays marked.
 */
import { countParts, hasPart, isFullMask } from "../../base/part-mask.ts";
import { invariant } from "../../base/errors.ts";
import { maskBytes, MIB, PART_BYTES, partsPerBlock } from "../../base/units.ts";
import type { UndoEntry, UndoLogReader } from "./entry.ts";
import { contentChecksum, type EntryHead, entryFlags } from "./format.ts";

/** Entries with their contents one behind the other. */
export interface MergedBatch {
  readonly heads: readonly EntryHead[];
  readonly content: Uint8Array;
}

const batchBytes = MIB;
const batchHeads = 1_024;

/** What is wanted of the log that is made. */
export interface MergeTarget {
  readonly id: Uint8Array;
  readonly blockBytes: number;
  /** Compresses into `target` and returns the bytes, or 0 when it does not shrink. */
  readonly compressLz4: (source: Uint8Array, target: Uint8Array) => number;
}

/**
 * `readers`: in lookup order, with one geometry. Ascending by block. Throws `store-damaged` where one of them cannot be read: then the merge is to be
 * given up, because what it would leave out could be what the damage hides.
 */
export function* mergeLogs(readers: readonly UndoLogReader[], target: MergeTarget): Generator<MergedBatch> {
  const batch = new BatchBuilder(target);
  for (const { block, run } of mergedRuns(readers)) {
    batch.add(block, run, firstEntries(readers, block));
    if (batch.isFull) yield batch.take();
  }
  if (!batch.isEmpty) yield batch.take();
}

/** Blocks any of the logs has something of, ascending. What holds for the first block of a run holds for all of it. */
function* mergedRuns(readers: readonly UndoLogReader[]): Generator<{ readonly block: number; readonly run: number }> {
  const next = readers.map((reader) => reader.nextBlock(0));
  for (;;) {
    let lowest = Number.POSITIVE_INFINITY;
    for (const block of next) if (block !== undefined && block < lowest) lowest = block;
    if (lowest === Number.POSITIVE_INFINITY) return;
    const end = runEnd(readers, next, lowest);
    yield { block: lowest, run: end - lowest };
    for (const [index, reader] of readers.entries()) {
      const block = next[index];
      if (block !== undefined && block < end) next[index] = reader.nextBlock(end);
    }
  }
}

/** Where whole blocks of zeros end that one entry tells, with nothing of them in an earlier log: whatever is behind it is hidden. `next`: of each log from `block` on. */
function runEnd(readers: readonly UndoLogReader[], next: readonly (number | undefined)[], block: number): number {
  const index = next.indexOf(block);
  const reader = readers[index];
  const [entry] = reader?.entries(block, 1) ?? [];
  if (reader === undefined || entry === undefined || !entry.zero || entry.digest === undefined) return block + 1;
  if (entry.run === 1 || !isFullMask(entry.mask, reader.header.blockBytes)) return block + 1;
  return next.slice(0, index).reduce<number>((end, other) => Math.min(end, other ?? end), entry.block + entry.run);
}

/** The parts an entry gives, of those no earlier one gave. */
interface Piece {
  readonly reader: UndoLogReader;
  readonly entry: UndoEntry;
  readonly mask: Uint8Array;
}

interface FirstEntries {
  readonly digest: Uint8Array | undefined;
  readonly pieces: readonly Piece[];
}

function firstEntries(readers: readonly UndoLogReader[], block: number): FirstEntries {
  const pieces: Piece[] = [];
  let digest: Uint8Array | undefined;
  let taken: Uint8Array | undefined;
  for (const reader of readers) {
    for (const entry of reader.entries(block, 1)) {
      digest ??= entry.digest;
      taken ??= new Uint8Array(entry.mask.length);
      const mask = entry.mask.map((byte, index) => byte & ~(taken?.[index] ?? 0));
      if (mask.every((byte) => byte === 0)) continue;
      for (const [index, byte] of mask.entries()) taken[index] = (taken[index] ?? 0) | byte;
      pieces.push({ reader, entry, mask });
    }
  }
  return { digest, pieces };
}

class BatchBuilder {
  readonly #target: MergeTarget;
  readonly #content = Buffer.alloc(batchBytes);
  readonly #old: Buffer;
  readonly #parts: Buffer;
  readonly #packed: Buffer;
  #heads: EntryHead[] = [];
  #bytes = 0;

  constructor(target: MergeTarget) {
    this.#target = target;
    this.#old = Buffer.alloc(target.blockBytes);
    this.#parts = Buffer.alloc(target.blockBytes);
    this.#packed = Buffer.alloc(target.blockBytes);
  }

  get isEmpty(): boolean {
    return this.#heads.length === 0;
  }

  /** A further block may not fit. */
  get isFull(): boolean {
    return this.#heads.length >= batchHeads || this.#bytes + this.#target.blockBytes > batchBytes;
  }

  take(): MergedBatch {
    const batch = { heads: this.#heads, content: Uint8Array.from(this.#content.subarray(0, this.#bytes)) };
    this.#heads = [];
    this.#bytes = 0;
    return batch;
  }

  /** A `run` of more than one block is one of zeros. */
  add(block: number, run: number, { digest, pieces }: FirstEntries): void {
    const zero = new Uint8Array(maskBytes(this.#target.blockBytes));
    // The first entry of a block has its digest.
    let own = digest;
    for (const damaged of [false, true]) {
      const wanted = pieces.filter(({ entry }) => !entry.zero && entry.damaged === damaged);
      if (wanted.length === 0) continue;
      this.#addContent(block, own, damaged, wanted);
      own = undefined;
    }
    for (const { entry, mask } of pieces) {
      if (entry.zero) for (const [index, byte] of mask.entries()) zero[index] = (zero[index] ?? 0) | byte;
    }
    if (zero.some((byte) => byte !== 0) || own !== undefined) this.#addZero(block, run, own, zero);
  }

  #addZero(block: number, run: number, digest: Uint8Array | undefined, mask: Uint8Array): void {
    const flags =
      (mask.some((byte) => byte !== 0) ? entryFlags.zero : 0) + (digest === undefined ? 0 : entryFlags.digest);
    this.#heads.push({ block, run, flags, contentBytes: 0, contentChecksum: 0, digest, mask });
  }

  #addContent(block: number, digest: Uint8Array | undefined, damaged: boolean, pieces: readonly Piece[]): void {
    const mask = new Uint8Array(maskBytes(this.#target.blockBytes));
    for (const piece of pieces) this.#collect(piece, mask);
    let end = 0;
    for (let part = 0; part < partsPerBlock(this.#target.blockBytes); part++) {
      if (!hasPart(mask, part)) continue;
      this.#old.copy(this.#parts, end, part * PART_BYTES, (part + 1) * PART_BYTES);
      end += PART_BYTES;
    }
    const raw = this.#parts.subarray(0, end);
    const shrunk = this.#target.compressLz4(raw, this.#packed.subarray(0, end - 1));
    const stored = shrunk > 0 ? this.#packed.subarray(0, shrunk) : raw;
    invariant(this.#bytes + stored.length <= this.#content.length, "a batch has room for a block");
    this.#content.set(stored, this.#bytes);
    this.#bytes += stored.length;
    this.#heads.push({
      block,
      run: 1,
      flags:
        (digest === undefined ? 0 : entryFlags.digest) +
        (damaged ? entryFlags.damaged : 0) +
        (shrunk > 0 ? entryFlags.lz4 : 0),
      contentBytes: stored.length,
      contentChecksum: contentChecksum(this.#target.id, block, stored),
      digest,
      mask,
    });
  }

  /** Puts the parts of a piece in their places in `#old`. */
  #collect({ reader, entry, mask }: Piece, all: Uint8Array): void {
    let parts = 0;
    const perBlock = partsPerBlock(this.#target.blockBytes);
    for (let part = 0; part < perBlock; part++) if (hasPart(entry.mask, part)) parts++;
    const content = this.#parts.subarray(0, parts * PART_BYTES);
    reader.readContent(entry, content);
    let at = 0;
    for (let part = 0; part < perBlock; part++) {
      if (!hasPart(entry.mask, part)) continue;
      if (hasPart(mask, part)) content.copy(this.#old, part * PART_BYTES, at, at + PART_BYTES);
      at += PART_BYTES;
    }
    for (const [index, byte] of mask.entries()) all[index] = (all[index] ?? 0) | byte;
  }
}

/** Parts with content that a merge keeps, and all that the logs hold. */
export interface MergeCount {
  readonly kept: number;
  readonly held: number;
}

/** Whether a merge is worth it, counted in steps: reading the indexes of many logs takes its time. */
export function* countMerge(readers: readonly UndoLogReader[]): Generator<undefined, MergeCount> {
  let kept = 0;
  let held = 0;
  let blocks = 0;
  for (const { block, run } of mergedRuns(readers)) {
    for (const { entry, mask } of firstEntries(readers, block).pieces) if (!entry.zero) kept += countParts(mask);
    for (const reader of readers) {
      for (const entry of reader.entries(block, run)) if (!entry.zero) held += countParts(entry.mask);
    }
    if (++blocks % 512 === 0) yield undefined;
  }
  return { kept, held };
}
