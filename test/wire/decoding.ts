/** Decoders for tests. */
import { createFrameDecoder, type DecodedFrame, type FrameDecoder } from "../../src/wire/frame.ts";
import { preludeBytes } from "../../src/wire/prelude.ts";
import { crc32 } from "node:zlib";

export interface Collector {
  readonly decoder: FrameDecoder;
  readonly frames: DecodedFrame[];
  /** Sizes asked of `payloadTarget`. */
  readonly targets: number[];
}

export function collector(): Collector {
  const frames: DecodedFrame[] = [];
  const targets: number[] = [];
  const decoder = createFrameDecoder({
    payloadTarget(_message, bytes) {
      targets.push(bytes);
      return new Uint8Array(bytes);
    },
    onFrame: (frame) => frames.push(frame),
  });
  return { decoder, frames, targets };
}

/** All frames of `bytes`, given in one piece. */
export function decodeAll(bytes: Uint8Array): readonly DecodedFrame[] {
  const { decoder, frames } = collector();
  decoder.push(bytes);
  return frames;
}

/** A frame put together by hand, with a right checksum and whatever else is asked for. */
export function rawFrame(options: {
  readonly type: number;
  readonly header: Uint8Array;
  readonly payload?: Uint8Array;
  readonly headerBytes?: number;
  readonly payloadBytes?: number;
  readonly magic?: number;
  readonly flags?: number;
  readonly reserved?: number;
}): Uint8Array {
  const prelude = Buffer.alloc(preludeBytes);
  prelude.writeUInt16LE(options.magic ?? 0x5052, 0);
  prelude.writeUInt8(options.type, 2);
  prelude.writeUInt8(options.flags ?? 0, 3);
  prelude.writeUInt32LE(options.reserved ?? 0, 4);
  prelude.writeUInt32LE(options.headerBytes ?? options.header.length, 8);
  prelude.writeUInt32LE(options.payloadBytes ?? options.payload?.length ?? 0, 12);
  prelude.writeUInt32LE(crc32(options.header, crc32(prelude.subarray(0, 16))), 16);
  return new Uint8Array(Buffer.concat([prelude, options.header, options.payload ?? new Uint8Array(0)]));
}

/** What `work` throws; fails when it throws nothing. */
export function thrownBy(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}
