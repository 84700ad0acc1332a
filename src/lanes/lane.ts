/** What a job has to work with: memory, files, digests and codecs of its own thread. */
import { invariant } from "../base/errors.ts";
import { BLOCK_BYTES_MAX, type DigestKind } from "../base/units.ts";
import type { SharedMemory } from "../base/shared-memory.ts";
import { type CodecSet, loadCodecs } from "../codec/compression.ts";
import { digestRoomBytes } from "../codec/digest-sizes.ts";
import { createDigester, type Digester } from "../codec/digest.ts";
import { createDigestKernel, type DigestKernel } from "../codec/digest-kernel.ts";
import type { LaneStorage } from "../storage/seam.ts";
import { laneRoomBytes, slotBytes } from "./slot-layout.ts";

export interface Lane {
  readonly storage: LaneStorage;
  readonly codecs: CodecSet;
  digester(kind: DigestKind): Digester;
  /** Works in the memory of slots and scratches. Undefined: it is no memory of WebAssembly. */
  readonly kernel: DigestKernel | undefined;
  /** The digest of a part of zeros. */
  readonly zeroPart: bigint;
  /** All of a slot. */
  slot(index: number): Uint8Array;
  /** `target.set(source)`, fast where both lie in the memory of the slots. They may overlap. */
  copy(target: Uint8Array, source: Uint8Array): void;
  /** `target.fill(0)`, fast there. */
  zero(target: Uint8Array): void;
  /** One block of memory of its own; content is anybody's between jobs. */
  readonly scratch: Uint8Array;
  /** Another one. */
  readonly secondScratch: Uint8Array;
}

export async function createLane(options: {
  /** Slot i lies at `i * slotBytes`. */
  readonly memory: SharedMemory;
  /** Where in `memory` {@link laneRoomBytes} lie that no other lane uses. */
  readonly roomAt: number;
  readonly storage: LaneStorage;
  readonly lz4?: "native" | "wasm" | undefined;
}): Promise<Lane> {
  const { memory, roomAt, storage } = options;
  invariant(roomAt + laneRoomBytes <= memory.buffer.byteLength, "a lane's room lies in the memory");
  // No buffers of Node: their views cost several times as much to make.
  const room = new Uint8Array(memory.buffer, roomAt, laneRoomBytes);
  const digestRoomAt = roomAt + 2 * BLOCK_BYTES_MAX;
  const codecs = await loadCodecs(options.lz4 === "wasm" ? { lz4: "wasm" } : {});
  const digesters: Record<DigestKind, Digester> = {
    xxh64: await createDigester("xxh64", { memory, at: digestRoomAt }),
    sha256: await createDigester("sha256", { memory, at: digestRoomAt + digestRoomBytes }),
  };
  const views = new Map<number, Uint8Array>();
  const kernel = memory.wasm === undefined ? undefined : createDigestKernel(memory.wasm);
  return {
    storage,
    codecs,
    kernel,
    zeroPart: Buffer.from(digesters.xxh64.zeroParts).readBigInt64LE(),
    digester: (kind) => digesters[kind],
    slot(index) {
      let view = views.get(index);
      if (view === undefined) {
        invariant((index + 1) * slotBytes <= memory.buffer.byteLength, "a slot lies in the pool");
        view = new Uint8Array(memory.buffer, index * slotBytes, slotBytes);
        views.set(index, view);
      }
      return view;
    },
    copy(target, source) {
      invariant(source.length <= target.length, "what is copied fits");
      if (kernel !== undefined && target.buffer === memory.buffer && source.buffer === memory.buffer) {
        kernel.copy(target.byteOffset, source.byteOffset, source.length);
      } else target.set(source);
    },
    zero(target) {
      if (kernel !== undefined && target.buffer === memory.buffer) kernel.zero(target.byteOffset, target.length);
      else target.fill(0);
    },
    scratch: room.subarray(0, BLOCK_BYTES_MAX),
    secondScratch: room.subarray(BLOCK_BYTES_MAX, 2 * BLOCK_BYTES_MAX),
  };
}
