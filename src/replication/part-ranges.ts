/** Which parts of blocks differ, and where in the image they lie. */
import { addDiffering, countParts, forEachRun, fullMask, hasPart } from "../base/part-mask.ts";
import { ReplicationError } from "../base/errors.ts";
import { neighboursEnd } from "../base/neighbours.ts";
import { EXTENT_BYTES_MAX, type Geometry, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import { type HeldRuns, holdRuns } from "../image/held-runs.ts";
import type { BlockStretch } from "../lanes/jobs.ts";
import { type BlockRange, cutRanges } from "./data-cursor.ts";

/** Of some blocks: which of their parts. */
export interface PartsOfBlocks {
  /** A part mask a block. */
  readonly masks: Uint8Array;
  /** How many parts each names. */
  readonly counts: Uint16Array;
}

/** What the receiver says of the parts of some blocks. */
export interface KnownPartDigests {
  /** 1 for a block it knows. */
  readonly known: Uint8Array;
  /** 4 bytes a part of each block; zeros for one that it does not know. */
  readonly parts: Uint8Array;
}

/**
 * The payload of `parts` (a bit a block: known; then 4 bytes a part of each known block), of `count` blocks. Throws `message-malformed` when it has another length than it
 * says.
 */
export function partDigestsOf(answer: Uint8Array, count: number, blockBytes: number): KnownPartDigests {
  const perBlock = partsPerBlock(blockBytes) * 4;
  const bits = answer.subarray(0, Math.ceil(count / 8));
  if (answer.length !== bits.length + countParts(bits) * perBlock) {
    throw new ReplicationError("message-malformed", "the receiver's part digests do not fit their bitmap");
  }
  const known = new Uint8Array(count);
  const parts = new Uint8Array(count * perBlock);
  let at = bits.length;
  for (let block = 0; block < count; block++) {
    if (!hasPart(bits, block)) continue;
    known[block] = 1;
    parts.set(answer.subarray(at, at + perBlock), block * perBlock);
    at += perBlock;
  }
  return { known, parts };
}

/**
 * The parts that differ, from the payload of `parts` and our own part digests of the same blocks, `count` of them. A block the receiver does not know goes whole; so does
 * one of which no part differs by its 32 bits although the block does.
 */
export function differingParts(answer: Uint8Array, own: Uint8Array, count: number, blockBytes: number): PartsOfBlocks {
  const theirs = partDigestsOf(answer, count, blockBytes);
  const perMask = maskBytes(blockBytes);
  const perBlock = partsPerBlock(blockBytes) * 4;
  const whole = fullMask(blockBytes);
  const masks = new Uint8Array(count * perMask);
  const counts = new Uint16Array(count);
  for (let block = 0; block < count; block++) {
    const mask = masks.subarray(block * perMask, (block + 1) * perMask);
    const [from, end] = [block * perBlock, (block + 1) * perBlock];
    const differing =
      theirs.known[block] === 1 ? addDiffering(mask, theirs.parts.subarray(from, end), own.subarray(from, end)) : 0;
    if (differing === 0) mask.set(whole);
    counts[block] = differing === 0 ? partsPerBlock(blockBytes) : differing;
  }
  return { masks, counts };
}

/** End of the blocks from `start` whose parts fit one frame together. */
export function frameEnd(counts: Uint16Array, start: number): number {
  let end = start;
  for (let parts = 0; end < counts.length; end++) {
    parts += counts[end] ?? 0;
    if (parts * PART_BYTES > EXTENT_BYTES_MAX) break;
  }
  return end;
}

/** Where the bytes of blocks lie, those that follow one another together, and what holds them; undefined when some can only be read through the reader. */
export function stretchesOf(
  reader: BlockReader,
  blocks: readonly number[],
  geometry: Geometry,
): { readonly stretches: BlockStretch[]; release(): void } | undefined {
  const { blockBytes, sizeBytes } = geometry;
  const stretches: BlockStretch[] = [];
  const held: HeldRuns[] = [];
  const release = (): void => {
    for (const each of held) each.release();
  };
  for (let start = 0; start < blocks.length; ) {
    const first = blocks[start] ?? 0;
    const count = neighboursEnd(blocks, start) - start;
    const offset = first * blockBytes;
    const length = Math.min(count * blockBytes, sizeBytes - offset);
    const place = holdRuns(reader, offset, length);
    held.push(place);
    if (place.runs === undefined) {
      release();
      return undefined;
    }
    stretches.push({ blocks: count, length, runs: place.runs });
    start += count;
  }
  return { stretches, release };
}

/** Reads the parts one behind the other into `target`, padded with zeros at the end of the disk. For a reader without runs. */
export async function readParts(
  reader: BlockReader,
  blocks: readonly number[],
  masks: Uint8Array,
  geometry: Geometry,
  target: Uint8Array,
): Promise<void> {
  const { blockBytes, sizeBytes } = geometry;
  const perMask = maskBytes(blockBytes);
  const ranges: { readonly offset: number; readonly length: number; readonly at: number }[] = [];
  let at = 0;
  for (const [index, block] of blocks.entries()) {
    forEachRun(masks.subarray(index * perMask, (index + 1) * perMask), (first, count) => {
      const offset = block * blockBytes + first * PART_BYTES;
      ranges.push({ offset, length: Math.max(0, Math.min(count * PART_BYTES, sizeBytes - offset)), at });
      target.fill(0, at, at + count * PART_BYTES);
      at += count * PART_BYTES;
    });
  }
  for (const { offset, length, at: to } of ranges) {
    if (length > 0) await reader.read(target.subarray(to, to + length), offset);
  }
}

/** Where the blocks of these ranges lie, in pieces of an extent; empty when the reader has no runs. */
export function runsOfRanges(reader: BlockReader, geometry: Geometry, ranges: readonly BlockRange[]): FileRun[] {
  const { blockBytes, sizeBytes } = geometry;
  return cutRanges(ranges, EXTENT_BYTES_MAX / blockBytes).flatMap(({ first, end }) => {
    const offset = first * blockBytes;
    return reader.runs?.(offset, Math.min(end * blockBytes, sizeBytes) - offset) ?? [];
  });
}
