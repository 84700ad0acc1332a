/** Sets of parts of one block, as in frames and undo logs: bit p%8 of byte p>>3 stands for part p. Pure. */
import { maskBytes, partsPerBlock } from "./units.ts";

export function hasPart(mask: Uint8Array, part: number): boolean {
  return ((mask[part >> 3] ?? 0) & (1 << (part & 7))) !== 0;
}

export function addPart(mask: Uint8Array, part: number): void {
  mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
}

/** Adds the parts whose digests differ, 4 bytes each of `one` and `other`. Returns how many those are. */
export function addDiffering(mask: Uint8Array, one: Uint8Array, other: Uint8Array): number {
  let count = 0;
  for (let at = 0; at < one.length; at += 4) {
    const same =
      one[at] === other[at] &&
      one[at + 1] === other[at + 1] &&
      one[at + 2] === other[at + 2] &&
      one[at + 3] === other[at + 3];
    if (same) continue;
    addPart(mask, at / 4);
    count++;
  }
  return count;
}

/** Calls `visit` for each stretch of neighbouring parts, in order: its first part, how many it has, and how many named parts come before it. */
export function forEachRun(mask: Uint8Array, visit: (first: number, count: number, before: number) => void): void {
  const parts = mask.length * 8;
  let before = 0;
  for (let part = 0; part < parts; part++) {
    if (!hasPart(mask, part)) continue;
    const first = part;
    while (part < parts && hasPart(mask, part)) part++;
    visit(first, part - first, before);
    before += part - first;
  }
}

/** The same over the masks of blocks that follow one another; parts are counted through from the first block on, and join across blocks. */
export function forEachRunAcross(
  masks: Uint8Array,
  blockBytes: number,
  visit: (first: number, count: number, before: number) => void,
): void {
  const parts = partsPerBlock(blockBytes);
  const perMask = maskBytes(blockBytes);
  let first = 0;
  let count = 0;
  let before = 0;
  for (let at = 0; at < masks.length; at++) {
    const byte = masks[at] ?? 0;
    if (byte === 0) continue;
    const base = Math.floor(at / perMask) * parts + (at % perMask) * 8;
    for (let bit = 0; bit < 8; bit++) {
      if ((byte & (1 << bit)) === 0) continue;
      const part = base + bit;
      if (count > 0 && first + count === part) count++;
      else {
        if (count > 0) visit(first, count, before - count);
        first = part;
        count = 1;
      }
      before++;
    }
  }
  if (count > 0) visit(first, count, before - count);
}

/** A mask with all parts of a block. */
export function fullMask(blockBytes: number): Uint8Array {
  const mask = new Uint8Array(maskBytes(blockBytes));
  for (let part = 0; part < partsPerBlock(blockBytes); part++) addPart(mask, part);
  return mask;
}

export function isFullMask(mask: Uint8Array, blockBytes: number): boolean {
  for (let part = 0; part < partsPerBlock(blockBytes); part++) if (!hasPart(mask, part)) return false;
  return true;
}

/** Parts named by a mask. */
export function countParts(mask: Uint8Array): number {
  let count = 0;
  for (let byte of mask) {
    while (byte !== 0) {
      byte &= byte - 1;
      count++;
    }
  }
  return count;
}
