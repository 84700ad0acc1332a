/** Digests of blocks and parts. */
import { hash } from "node:crypto";
import xxhash from "xxhash-wasm";
import { invariant } from "../base/errors.ts";
import type { SharedMemory } from "../base/shared-memory.ts";
import { BLOCK_BYTES_MAX, type DigestKind, PART_BYTES, digestBytes } from "../base/units.ts";
import { createDigestKernel, type DigestKernel } from "./digest-kernel.ts";

/**
 * Digests with one scratch memory; not shared between threads. All methods are synchronous and pure. A digest of a zero
 * block is written as all zero bytes; a digest that comes out zero for other content is written as 1.
 */
export interface Digester {
  readonly kind: DigestKind;
  readonly digestBytes: 8 | 16;
  /**
   * Writes the digest of `block` (a whole block: the caller pads the last, shorter one with zeros) to `target` at
   * `offset`, big endian. Returns true when the block is all zeros (every byte was looked at).
   */
  digest(block: Uint8Array, target: Uint8Array, offset: number): boolean;
  /**
   * Writes 32 bits, little endian, of each part ({@link PART_BYTES}) of `block` to `target` at `offset`: the low half of its xxh64, whatever
   * the kind of the block digest.
   */
  parts(block: Uint8Array, target: Buffer, offset: number): void;
}

/** Bytes a digester needs in the memory whose blocks it digests in place. */
export const digestRoomBytes: number = (BLOCK_BYTES_MAX / PART_BYTES) * 4;

/** Memory whose blocks are digested in place, and where in it {@link digestRoomBytes} lie that nobody else uses. */
export interface DigestRoom {
  readonly memory: SharedMemory;
  readonly at: number;
}

/** The multiple that {@link DigestKernel} takes. */
const stripeBytes = 32;

/** One instance for the thread: it is compiled once, and its calls are synchronous, so that nobody's lies between another's. */
let hasher: ReturnType<typeof xxhash> | undefined;

/** xxh64 with seed 0, or the first 16 bytes of sha256. Blocks may lie in any memory; those that lie in that of `room` are not copied. */
export async function createDigester(kind: DigestKind, room?: DigestRoom): Promise<Digester> {
  hasher ??= xxhash();
  const { h64Raw } = await hasher;
  const wasm = room?.memory.wasm;
  const kernel: DigestKernel | undefined = wasm === undefined ? undefined : createDigestKernel(wasm);
  const memory = room?.memory.buffer;
  const partRoom = room === undefined ? undefined : Buffer.from(room.memory.buffer, room.at, digestRoomBytes);
  const width = digestBytes(kind);
  const scratch = new Uint8Array(8);
  const scratchView = new DataView(scratch.buffer);

  const computed = (block: Uint8Array): Uint8Array => {
    if (kind === "sha256") return hash("sha256", block, "buffer").subarray(0, width);
    const inPlace = kernel !== undefined && block.buffer === memory && block.length % stripeBytes === 0;
    scratchView.setBigUint64(0, inPlace ? kernel.xxh64(block.byteOffset, block.length) : h64Raw(block));
    return scratch;
  };

  return {
    kind,
    digestBytes: width,
    digest(block, target, offset) {
      invariant(offset >= 0 && offset + width <= target.length, "a digest fits its target");
      if (isZero(block)) {
        target.fill(0, offset, offset + width);
        return true;
      }
      const digest = computed(block);
      target.set(digest, offset);
      // Zero means zero block; content must never look like one.
      if (isZero(digest)) target[offset + width - 1] = 1;
      return false;
    },
    parts(block, target, offset) {
      invariant(block.length % PART_BYTES === 0, "a block has whole parts");
      const count = block.length / PART_BYTES;
      if (kernel !== undefined && partRoom !== undefined && block.buffer === memory && count > 0) {
        invariant(count * 4 <= digestRoomBytes, "the parts of a block fit their room");
        kernel.parts(block.byteOffset, count, partRoom.byteOffset);
        target.set(partRoom.subarray(0, count * 4), offset);
        return;
      }
      for (let at = 0; at < block.length; at += PART_BYTES) {
        // asUintN reads the low digit as it is; masking with & would make a second BigInt, a fifth of the whole cost.
        const part = Number(BigInt.asUintN(32, h64Raw(block.subarray(at, at + PART_BYTES))));
        offset = target.writeUInt32LE(part, offset);
      }
    },
  };
}

/** True when every byte is zero. Stops at the first byte that is not. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length === 0) return true;
  if (bytes[0] !== 0 || bytes[length - 1] !== 0) return false;
  // The first byte is zero and each byte equals the one before it: one native compare of the array with itself, one
  // place further. Needs no array of zeros, reads the memory once, and ends where the bytes first differ.
  return Buffer.prototype.compare.call(bytes as Buffer, bytes, 1, length, 0, length - 1) === 0;
}
