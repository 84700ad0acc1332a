/**
 * Frames: prelude, msgpack header, raw payload. See docs/protocol.md. Pure: bytes in, values out.
 *
 * Prelude, 20 bytes, little endian: "rpl1"-like magic u16, type u8, flags u8 (0), reserved u32 (0), header bytes u32, payload bytes u32,
 * crc32 u32 over prelude[0..16) and header. (The wire helper fixes the exact layout here and in the document.)
 */
import type { Message } from "./messages.ts";

/**
 * Encodes prelude and header into `target` so that they END at `end` (the payload, if any, follows there in place).
 * Returns the offset where the frame starts. Throws InvariantError when the header is larger than the room.
 */
export declare function encodeHeadBefore(
  message: Message,
  payloadBytes: number,
  target: Uint8Array,
  end: number,
): number;

/** A whole frame as one new array: for control messages. */
export declare function encodeFrame(message: Message, payload?: Uint8Array): Uint8Array;

/** Where the decoder puts the payload of a frame whose header it has checked. Must be exactly `payloadBytes` long. */
export type PayloadTarget = (message: Message, payloadBytes: number) => Uint8Array;

export interface DecodedFrame {
  readonly message: Message;
  /** What `payloadTarget` returned, now filled; empty when there is none. */
  readonly payload: Uint8Array;
  /** Bytes of the whole frame on the wire (before TLS). */
  readonly frameBytes: number;
}

/**
 * Incremental. `push` consumes all of `chunk` and calls `onFrame` for each completed frame, in order, synchronously. Payload bytes are copied once, into
 * the array `payloadTarget` gives. A malformed frame throws `frame-malformed` or `message-malformed` and the decoder is dead: later
 * pushes throw the same error. "Need more bytes" is not an event at all.
 */
export interface FrameDecoder {
  push(chunk: Uint8Array): void;
  /** True when the stream may end here: no partial frame is pending. */
  readonly atBoundary: boolean;
}

export declare function createFrameDecoder(options: {
  readonly payloadTarget: PayloadTarget;
  readonly onFrame: (frame: DecodedFrame) => void;
}): FrameDecoder;
