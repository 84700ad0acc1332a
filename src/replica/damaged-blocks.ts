/** Blocks of a point that cannot be told any more, and reading what lies around them. */
import { ReplicationError } from "../base/errors.ts";
import type { PointReader } from "./points/reader.ts";

/** Damaged ranges that are named; the others are counted. */
export const rangesNamed = 20;

/** Damage of blocks, which does not keep others from being read. */
export function isDamage(error: unknown): error is ReplicationError {
  return error instanceof ReplicationError && (error.code === "store-damaged" || error.code === "replica-unreadable");
}

/** Blocks side by side that cannot be told. */
export interface LostRange {
  readonly offset: number;
  length: number;
  /** Of its first block, in words. */
  readonly reason: string;
}

/** Ranges in ascending order, joined; only the first {@link rangesNamed} are kept. */
export class LostRanges {
  readonly named: LostRange[] = [];
  count = 0;
  bytes = 0;
  #end = -1;

  add(offset: number, length: number, reason: string): void {
    this.bytes += length;
    const last = this.named.at(-1);
    if (offset !== this.#end) {
      this.count++;
      if (this.count <= rangesNamed) this.named.push({ offset, length, reason });
    } else if (last !== undefined && this.count <= rangesNamed) last.length += length;
    this.#end = offset + length;
  }
}

/**
 * Fills `target` from `offset`, both of whole blocks or up to the disk's end. Blocks that cannot be told are added to `lost` and come out as zeros. Throws
 * what is not damage.
 */
export async function readAround(
  point: PointReader,
  target: Uint8Array,
  offset: number,
  lost: LostRanges,
): Promise<void> {
  try {
    await point.read(target, offset);
    return;
  } catch (error) {
    if (!isDamage(error)) throw error;
  }
  const { blockBytes } = point.disk;
  for (let at = 0; at < target.length; at += blockBytes) {
    const block = target.subarray(at, at + blockBytes);
    try {
      await point.read(block, offset + at);
    } catch (error) {
      if (!isDamage(error)) throw error;
      const { why } = error.details;
      block.fill(0);
      lost.add(offset + at, block.length, typeof why === "string" ? why : error.message);
    }
  }
}
