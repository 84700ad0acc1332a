/**
 * Entries in the packed form of index pages, sorted by block and, of one block, in the order they were written: a sixth of what
 * they take as objects.
 *
 *     0 block u64 · 8 run u32 · 12 flags u8 · 13 reserved · 16 content bytes u32 · 20 content checksum u32 · 24 content offset u64
 *     32 digest · mask
 */
import { invariant } from "../../base/errors.ts";
import { digestBytes, maskBytes } from "../../base/units.ts";
import type { UndoEntry } from "./entry.ts";
import {
  type BatchHeader,
  entryFault,
  entryFlags,
  type EntryHead,
  entryHeadBytes,
  get32,
  get64,
  put64,
  UNDO_BATCH_HEADER_BYTES,
  UNDO_PAGE_BYTES,
  type UndoShape,
  writeEntryFields,
} from "./format.ts";

const digestAt = 32;
const offsetAt = 24;

export function indexEntryBytes(shape: UndoShape): number {
  return entryHeadBytes(shape) + 8;
}

function writeIndexEntry(target: Uint8Array, at: number, entry: UndoEntry, shape: UndoShape): void {
  writeEntryFields(target, at, at + digestAt, { ...entry, flags: flagsOf(entry) }, shape);
  put64(target, at + offsetAt, entry.contentOffset);
}

export function flagsOf(entry: Pick<UndoEntry, "digest" | "zero" | "damaged" | "codec">): number {
  return (
    (entry.digest === undefined ? 0 : entryFlags.digest) +
    (entry.zero ? entryFlags.zero : 0) +
    (entry.damaged ? entryFlags.damaged : 0) +
    (entry.codec === "lz4" ? entryFlags.lz4 : 0)
  );
}

/** What is wrong with an index entry of a run at `runOffset`, if anything. */
export function indexEntryFault(
  bytes: Uint8Array,
  at: number,
  runOffset: number,
  shape: UndoShape,
): string | undefined {
  const contentOffset = get64(bytes, at + offsetAt);
  const contentBytes = get32(bytes, at + 16);
  const behindHeader = contentOffset >= UNDO_PAGE_BYTES + UNDO_BATCH_HEADER_BYTES;
  const placed = contentBytes === 0 ? contentOffset === 0 : behindHeader && contentOffset + contentBytes <= runOffset;
  return placed ? entryFault(bytes, at, at + digestAt, shape) : "content in no batch before it";
}

/** See the head of this file. */
export class EntryList {
  readonly count: number;
  readonly #bytes: Uint8Array;
  readonly #shape: UndoShape;
  readonly #each: number;

  /** Keeps `bytes`, exactly `count` index entries, sorted and without fault. */
  constructor(bytes: Uint8Array, shape: UndoShape) {
    this.#bytes = bytes;
    this.#shape = shape;
    this.#each = indexEntryBytes(shape);
    this.count = bytes.length / this.#each;
  }

  get byteLength(): number {
    return this.#bytes.length;
  }

  /** A view. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** First block of entry `index`. */
  block(index: number): number {
    return get64(this.#bytes, index * this.#each);
  }

  run(index: number): number {
    return get32(this.#bytes, index * this.#each + 8);
  }

  /** Index of the first entry whose first block is at or behind `block`. */
  lowerBound(block: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.block(middle) < block) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  entry(index: number): UndoEntry {
    const bytes = this.#bytes;
    const at = index * this.#each;
    const flags = bytes[at + 12] ?? 0;
    const maskAt = at + digestAt + digestBytes(this.#shape.digestKind);
    return {
      block: this.block(index),
      run: this.run(index),
      zero: (flags & entryFlags.zero) !== 0,
      damaged: (flags & entryFlags.damaged) !== 0,
      digest: (flags & entryFlags.digest) === 0 ? undefined : bytes.slice(at + digestAt, maskAt),
      mask: bytes.slice(maskAt, maskAt + maskBytes(this.#shape.blockBytes)),
      codec: (flags & entryFlags.lz4) === 0 ? "stored" : "lz4",
      contentOffset: get64(bytes, at + offsetAt),
      contentBytes: get32(bytes, at + 16),
      contentChecksum: get32(bytes, at + 20),
    };
  }

  /** Entries `from` to `to - 1`; shares memory. */
  slice(from: number, to: number): EntryList {
    return new EntryList(this.#bytes.subarray(from * this.#each, to * this.#each), this.#shape);
  }

  /** Both, sorted; of one block those of this list come first. */
  merge(later: EntryList): EntryList {
    if (later.count === 0) return this;
    if (this.count === 0) return later;
    const merged = new Uint8Array(this.#bytes.length + later.#bytes.length);
    let left = 0;
    let right = 0;
    for (let at = 0; at < merged.length; ) {
      // Runs of one side are copied at once: batches are often sorted among themselves already.
      const takeLeft = right === later.count || (left < this.count && this.block(left) <= later.block(right));
      const from = takeLeft ? this : later;
      const start = takeLeft ? left : right;
      const end = takeLeft
        ? right === later.count
          ? this.count
          : this.lowerBound(later.block(right) + 1)
        : left === this.count
          ? later.count
          : later.lowerBound(this.block(left));
      const bytes = from.#bytes.subarray(start * this.#each, end * this.#each);
      merged.set(bytes, at);
      at += bytes.length;
      if (takeLeft) left = end;
      else right = end;
    }
    return new EntryList(merged, this.#shape);
  }
}

/**
 * The entries of a batch, in the order they were written, packed but not sorted; undefined: not what a writer writes. `heads`: of
 * `header`, checked.
 */
export function packHeads(
  header: Pick<BatchHeader, "count" | "contentStart" | "contentEnd">,
  heads: Uint8Array,
  shape: UndoShape,
): Uint8Array | undefined {
  const headSize = entryHeadBytes(shape);
  const packed = new Uint8Array(header.count * (headSize + 8));
  let contentOffset = header.contentStart;
  for (let index = 0; index < header.count; index++) {
    const from = index * headSize;
    if (entryFault(heads, from, from + 24, shape) !== undefined) return undefined;
    const to = index * (headSize + 8);
    packed.set(heads.subarray(from, from + 24), to);
    packed.set(heads.subarray(from + 24, from + headSize), to + digestAt);
    const contentBytes = get32(heads, from + 16);
    if (contentBytes > 0) put64(packed, to + offsetAt, contentOffset);
    contentOffset += contentBytes;
  }
  return contentOffset === header.contentEnd ? packed : undefined;
}

/**
 * Writes the heads of a batch to `target`, and returns them packed. `contents`: of all of them together, right behind. What a reader would refuse is a
 * wrong call.
 */
export function writeHeads(
  target: Uint8Array,
  heads: readonly EntryHead[],
  contents: Pick<BatchHeader, "contentStart" | "contentEnd">,
  shape: UndoShape,
): Uint8Array {
  const each = entryHeadBytes(shape);
  invariant(target.length === heads.length * each, "the heads of a batch have their length");
  for (const [index, head] of heads.entries()) {
    writeEntryFields(target, index * each, index * each + 24, head, shape);
  }
  const packed = packHeads({ count: heads.length, ...contents }, target, shape);
  invariant(packed !== undefined, "a batch can be read back, and has the contents of its entries");
  return packed;
}

/** Entries as a list, in the order they were written. */
export function packEntries(entries: readonly UndoEntry[], shape: UndoShape): Uint8Array {
  const each = indexEntryBytes(shape);
  const packed = new Uint8Array(entries.length * each);
  for (const [index, entry] of entries.entries()) writeIndexEntry(packed, index * each, entry, shape);
  return packed;
}

/** `packed` as a list; sorts it into new memory where it is not sorted yet. */
export function sortedList(packed: Uint8Array, shape: UndoShape): EntryList {
  const list = new EntryList(packed, shape);
  let sorted = true;
  for (let index = 1; index < list.count && sorted; index++) sorted = list.block(index - 1) <= list.block(index);
  if (sorted) return list;
  const blocks = Float64Array.from({ length: list.count }, (_unused, index) => list.block(index));
  const order = new Uint32Array(list.count).map((_, index) => index);
  order.sort((a, b) => (blocks[a] ?? 0) - (blocks[b] ?? 0) || a - b);
  const each = indexEntryBytes(shape);
  const bytes = new Uint8Array(packed.length);
  order.forEach((from, to) => {
    bytes.set(packed.subarray(from * each, (from + 1) * each), to * each);
  });
  return new EntryList(bytes, shape);
}

/** Lists added in the order they were written, kept as few: each is merged once per doubling. */
export class EntryLists {
  #lists: EntryList[] = [];

  get byteLength(): number {
    return this.#lists.reduce((sum, list) => sum + list.byteLength, 0);
  }

  /** Sorted lists; of one block, entries of an earlier list were written earlier. */
  get lists(): readonly EntryList[] {
    return this.#lists;
  }

  add(list: EntryList): void {
    let last = list;
    for (let before = this.#lists.at(-1); before !== undefined && before.count <= 2 * last.count; ) {
      last = before.merge(last);
      this.#lists.pop();
      before = this.#lists.at(-1);
    }
    if (last.count > 0) this.#lists.push(last);
  }

  /** All as one list, in place of what was there. */
  joined(shape: UndoShape): EntryList {
    const empty = new EntryList(new Uint8Array(), shape);
    const all = this.#lists.reduceRight((later, list) => list.merge(later), empty);
    this.#lists = [all];
    return all;
  }

  clear(): void {
    this.#lists = [];
  }
}
