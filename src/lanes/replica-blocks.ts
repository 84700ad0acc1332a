/** Blocks of a replica, each at its place in the file. */
import { errnoOf } from "../base/errors.ts";
import { neighboursEnd } from "../base/neighbours.ts";
import type { BlockShape } from "./jobs.ts";
import type { Lane } from "./lane.ts";

/** The part of a request that says where blocks are. */
export interface ReplicaBlocks {
  readonly fd: number;
  /** Of the disk. */
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly blocks: readonly number[];
  /**
   * Where in the file each of `blocks` lies, as a number of blocks from its beginning; negative: nowhere, and it reads as zeros. Left out: in a raw image
   * a block lies at its own number.
   */
  readonly places?: readonly number[] | undefined;
}

/** Where in the file the block with this index in the request begins; negative: nowhere. */
export function fileOffset({ blocks, places, blockBytes }: ReplicaBlocks, index: number): number {
  return ((places ?? blocks)[index] ?? 0) * blockBytes;
}

/** End of the blocks from index `start` on that follow one another on the disk and in the file; at most `most` of them. */
export function stretchEnd({ blocks, places }: ReplicaBlocks, start: number, most?: number): number {
  const end = neighboursEnd(blocks, start, most);
  return places === undefined ? end : Math.min(end, neighboursEnd(places, start, most));
}

/**
 * Fills `target` from `within` the block with this index on, over the blocks behind it where they follow one another; with zeros behind the end of the disk.
 * False when it cannot be read: the sender sends it whole, and writing it anew may heal it.
 */
export function readPadded(lane: Lane, request: ReplicaBlocks, index: number, target: Uint8Array, within = 0): boolean {
  const offset = (request.blocks[index] ?? 0) * request.blockBytes + within;
  const from = fileOffset(request, index);
  const length = from < 0 ? 0 : Math.max(0, Math.min(target.length, request.sizeBytes - offset));
  try {
    const count = length === 0 ? 0 : lane.storage.read(request.fd, target.subarray(0, length), from + within);
    if (count < target.length) lane.zero(target.subarray(count));
    return true;
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return false;
  }
}

/** Reads the old block with this index, padded with zeros. `differs`: it does not match its digest. */
export function readOld(
  lane: Lane,
  request: ReplicaBlocks & BlockShape,
  index: number,
  digest: Uint8Array,
  target: Uint8Array,
): "good" | "differs" | "unreadable" {
  if (!readPadded(lane, request, index, target)) return "unreadable";
  const found = new Uint8Array(digest.length);
  lane.digester(request.digestKind).digest(target, found, 0);
  return Buffer.compare(found, digest) === 0 ? "good" : "differs";
}
