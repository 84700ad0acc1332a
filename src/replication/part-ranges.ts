/** Which parts of blocks differ, and where in the image they lie. */
import { countParts, forEachRun, fullMask, hasPart } from "../base/part-mask.ts";
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

/**
 * The parts that differ, from the payload of `parts` (a bit a block: known; then 4 bytes a part of each known block) and our own
 * part digests of the same blocks, `count` of them. A block the receiver does not know goes whole; so does one of which no part differs by its
 * 32 bits although the block does. Throws `message-malformed` when the payload has another length than it says.
 */
export function differingParts(answer: Uint8Array, own: Uint8Array, count: number, blockBytes: number): PartsOfBlocks {
  const parts = partsPerBlock(blockBytes);
  const perMask = maskBytes(blockBytes);
  const known = answer.subarray(0, Math.ceil(count / 8));
  if (answer.length !== known.length + countParts(known) * parts * 4) {
    throw new ReplicationError("message-malformed", "the receiver's part digests do not fit their bitmap");
  }
  const theirs = wordsOf(answer.subarray(known.length));
  const ours = wordsOf(own.subarray(0, count * parts * 4));
  const whole = fullMask(blockBytes);
  const masks = new Uint8Array(count * perMask);
  const counts = new Uint16Array(count);
  let at = 0;
  for (let block = 0; block < count; block++) {
    let differing = 0;
    if (hasPart(known, block)) {
      for (let part = 0; part < parts; part++) {
        if (theirs[at + part] === ours[block * parts + part]) continue;
        const byte = block * perMask + (part >> 3);
        masks[byte] = (masks[byte] ?? 0) | (1 << (part & 7));
        differing++;
      }
      at += parts;
    }
    if (differing === 0) masks.set(whole, block * perMask);
    counts[block] = differing === 0 ? parts : differing;
  }
  return { masks, counts };
}

/** The same bytes as words, to be compared with others: their order within a word does not matter. */
function wordsOf(bytes: Uint8Array): Uint32Array {
  const aligned = new Uint8Array(bytes.length);
  aligned.set(bytes);
  return new Uint32Array(aligned.buffer);
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
