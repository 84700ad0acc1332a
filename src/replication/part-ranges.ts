/** Which parts of blocks differ, and where in the image they lie. */
import { addPart, countParts, fullMask, hasPart } from "../base/part-mask.ts";
import { ReplicationError } from "../base/errors.ts";
import { EXTENT_BYTES_MAX, type Geometry, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import { type BlockRange, cutRanges } from "./data-cursor.ts";

/** Bytes of the disk, and how many zero bytes fill them up to whole parts (at the end of the disk only). */
export interface PartRange {
  readonly offset: number;
  readonly length: number;
  readonly padding: number;
}

/**
 * Masks of the parts that differ, from the payload of `parts` (a bit a block: known; then 4 bytes a part of each known block) and our own
 * part digests of the same blocks. A block the receiver does not know goes whole; so does one of which no part differs by its 32 bits
 * although the block does. Throws `message-malformed` when the payload has another length than it says.
 */
export function differingParts(answer: Uint8Array, own: readonly Uint8Array[], blockBytes: number): Uint8Array[] {
  const parts = partsPerBlock(blockBytes);
  const known = answer.subarray(0, Math.ceil(own.length / 8));
  if (answer.length !== known.length + countParts(known) * parts * 4) {
    throw new ReplicationError("message-malformed", "the receiver's part digests do not fit their bitmap");
  }
  const theirs = new DataView(answer.buffer, answer.byteOffset, answer.length);
  let at = known.length;
  return own.map((mine, index) => {
    if (!hasPart(known, index)) return fullMask(blockBytes);
    const mask = new Uint8Array(maskBytes(blockBytes));
    const ours = new DataView(mine.buffer, mine.byteOffset, mine.length);
    for (let part = 0; part < parts; part++) {
      if (theirs.getUint32(at + part * 4) !== ours.getUint32(part * 4)) addPart(mask, part);
    }
    at += parts * 4;
    return countParts(mask) === 0 ? fullMask(blockBytes) : mask;
  });
}

/** Ranges of the disk that the masks name, in order; neighbours are joined. */
export function partRanges(
  blocks: readonly number[],
  masks: readonly Uint8Array[],
  geometry: Geometry,
): readonly PartRange[] {
  const ranges: { offset: number; length: number; padding: number }[] = [];
  for (const [index, block] of blocks.entries()) {
    const mask = masks[index];
    if (mask === undefined) continue;
    for (let part = 0; part < partsPerBlock(geometry.blockBytes); part++) {
      if (!hasPart(mask, part)) continue;
      const offset = block * geometry.blockBytes + part * PART_BYTES;
      const length = Math.max(0, Math.min(PART_BYTES, geometry.sizeBytes - offset));
      const last = ranges.at(-1);
      if (last !== undefined && last.padding === 0 && last.offset + last.length === offset && length === PART_BYTES) {
        last.length += length;
      } else ranges.push({ offset, length, padding: PART_BYTES - length });
    }
  }
  return ranges;
}

/** The ranges as file runs; undefined when the reader has none. */
export function runsOf(reader: BlockReader, ranges: readonly PartRange[]): FileRun[] | undefined {
  const runs: FileRun[] = [];
  for (const { offset, length, padding } of ranges) {
    if (length > 0) {
      const found = reader.runs?.(offset, length);
      if (found === undefined) return undefined;
      runs.push(...found);
    }
    if (padding > 0) runs.push({ kind: "zero", length: padding });
  }
  return runs;
}

/** End of the masks from `start` whose parts fit one frame together. */
export function frameEnd(masks: readonly Uint8Array[], start: number): number {
  let end = start;
  for (let parts = 0; end < masks.length; end++) {
    parts += countParts(masks[end] ?? new Uint8Array(0));
    if (parts * PART_BYTES > EXTENT_BYTES_MAX) break;
  }
  return end;
}

/** Where the blocks of these ranges lie, in pieces of an extent; empty when the reader has no runs. */
export function runsOfRanges(reader: BlockReader, geometry: Geometry, ranges: readonly BlockRange[]): FileRun[] {
  const { blockBytes, sizeBytes } = geometry;
  return cutRanges(ranges, EXTENT_BYTES_MAX / blockBytes).flatMap(({ first, end }) => {
    const offset = first * blockBytes;
    return reader.runs?.(offset, Math.min(end * blockBytes, sizeBytes) - offset) ?? [];
  });
}

/** Reads the ranges one after the other into `target`, which is as long as they are with their padding. */
export async function readParts(reader: BlockReader, ranges: readonly PartRange[], target: Uint8Array): Promise<void> {
  let at = 0;
  for (const { offset, length, padding } of ranges) {
    if (length > 0) await reader.read(target.subarray(at, at + length), offset);
    target.fill(0, at + length, at + length + padding);
    at += length + padding;
  }
}
