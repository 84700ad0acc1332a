/** xxh64 of parts: in place where content lies in memory that lanes share, else through `xxhash-wasm`. */
import xxhash from "xxhash-wasm";
import { invariant } from "../base/errors.ts";
import type { SharedMemory } from "../base/shared-memory.ts";
import { PART_BYTES } from "../base/units.ts";
import { blocksMax, digestRoomBytes, PART_DIGEST_BYTES, partsMax } from "./digest-sizes.ts";
import { createDigestKernel, type DigestKernel } from "./digest-kernel.ts";

/** Memory whose blocks are digested in place, and where in it {@link digestRoomBytes} lie that nobody else uses. */
export interface DigestRoom {
  readonly memory: SharedMemory;
  readonly at: number;
}

/** The multiple that {@link DigestKernel} takes. */
const stripeBytes = 32;

/** One instance for the thread: it is compiled once, and its calls are synchronous, so that nobody's lies between another's. */
let hasher: ReturnType<typeof xxhash> | undefined;

/** xxh64 of parts, and the memory its results lie in until the next call. */
export interface PartHasher {
  /** {@link PART_DIGEST_BYTES} a part, the low halves, digests of blocks, and part masks. */
  readonly wide: Uint8Array;
  readonly low: Uint8Array;
  readonly digests: Uint8Array;
  readonly masks: Uint8Array;
  /** Of the parts of `content` into `wide` and `low`. Returns their count. */
  parts(content: Uint8Array): number;
  /** Everything of whole blocks, xxh64 digests among them, in one call; false: not of memory like this. */
  blocks(content: Uint8Array, blockBytes: number): boolean;
  /** Big endian, a view. */
  xxh64(bytes: Uint8Array): Uint8Array;
}

export async function createPartHasher(room: DigestRoom | undefined): Promise<PartHasher> {
  hasher ??= xxhash();
  const { h64Raw } = await hasher;
  const wasm = room?.memory.wasm;
  const kernel: DigestKernel | undefined = wasm === undefined ? undefined : createDigestKernel(wasm);
  const memory = room?.memory.buffer;
  const bytes =
    room === undefined ? new Uint8Array(digestRoomBytes) : new Uint8Array(room.memory.buffer, room.at, digestRoomBytes);
  const wideView = new DataView(bytes.buffer, bytes.byteOffset);
  const wide = bytes.subarray(0, partsMax * PART_DIGEST_BYTES);
  const low = bytes.subarray(wide.length, wide.length + partsMax * 4);
  const digests = bytes.subarray(wide.length + low.length, digestRoomBytes - blocksMax);
  const masks = bytes.subarray(digestRoomBytes - blocksMax);
  const hash64 = new Uint8Array(8);
  const view = new DataView(hash64.buffer);
  return {
    ...{ wide, low, digests, masks },
    parts(content) {
      invariant(content.length % PART_BYTES === 0, "content has whole parts");
      const count = content.length / PART_BYTES;
      invariant(count <= partsMax, "the parts of a block fit their room");
      if (kernel !== undefined && content.buffer === memory && count > 0) {
        kernel.parts(content.byteOffset, count, wide.byteOffset, low.byteOffset);
        return count;
      }
      for (let part = 0; part < count; part++) {
        wideView.setBigUint64(part * 8, h64Raw(content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES)), true);
        low.set(wide.subarray(part * 8, part * 8 + 4), part * 4);
      }
      return count;
    },
    blocks(content, blockBytes) {
      if (kernel === undefined || content.buffer !== memory) return false;
      const places = [digests.byteOffset, masks.byteOffset, wide.byteOffset, low.byteOffset] as const;
      kernel.blocks(content.byteOffset, content.length / blockBytes, blockBytes / PART_BYTES, ...places);
      return true;
    },
    xxh64(content) {
      const inPlace = kernel !== undefined && content.buffer === memory && content.length % stripeBytes === 0;
      view.setBigUint64(0, inPlace ? kernel.xxh64(content.byteOffset, content.length) : h64Raw(content));
      return hash64;
    },
  };
}
