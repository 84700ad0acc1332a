/**
 * What lies where in a slot. A slot has two areas, each with head room in front, so that a frame's head can be written right before
 * a payload that is in place already and the whole frame goes to the socket as one array.
 *
 * Sender: area A takes what was read (then the parts to ship, moved together), area B the compressed form.
 * Receiver: area B takes the payload as it came, area A the decompressed form.
 */
import { limits } from "../base/limits.ts";
import { DIRECT_BYTES } from "../storage/seam.ts";
import { BLOCK_BYTES_MAX, EXTENT_BYTES_MAX, KIB } from "../base/units.ts";
import { digestRoomBytes } from "../codec/digest-sizes.ts";

/** Room for prelude and header of a data frame: blocks, masks and digests of 256 blocks fit. */
const headRoom = 16 * KIB;

export const areaA: number = headRoom;
export const areaABytes: number = EXTENT_BYTES_MAX;
export const areaB: number = areaA + areaABytes + headRoom;
export const areaBBytes: number = limits.framePayloadBytesMax;
/** Bytes of one slot of the pool. */
export const slotBytes: number = areaB + areaBBytes;

/** Bytes of the memory behind the slots that a lane has for itself: two blocks, and what its digesters need. */
export const laneRoomBytes: number = 2 * BLOCK_BYTES_MAX + 2 * digestRoomBytes;

/**
 * Where old content goes, a receiver's, so that a head of `headBytes` right before it begins on a page: both can then be written past the page
 * cache in one piece. Up to a page behind the start of area A; a head that is too long for the room before is written for itself.
 */
export function oldContentAt(headBytes: number): number {
  return areaA + (headBytes > headRoom ? 0 : headBytes % DIRECT_BYTES);
}

/** Slots that fit the memory bound of a pool. */
export function slotsFor(poolBytes: number): number {
  return Math.max(4, Math.floor(poolBytes / slotBytes));
}
