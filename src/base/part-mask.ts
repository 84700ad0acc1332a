/** Sets of parts of one block, as in frames and undo logs: bit p%8 of byte p>>3 stands for part p. Pure. */
import { maskBytes, partsPerBlock } from "./units.ts";

export function hasPart(mask: Uint8Array, part: number): boolean {
  return ((mask[part >> 3] ?? 0) & (1 << (part & 7))) !== 0;
}

export function addPart(mask: Uint8Array, part: number): void {
  mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
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
