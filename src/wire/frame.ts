/**
 * Frames: prelude (prelude.ts), msgpack header (message-codec.ts), raw payload. See docs/protocol.md. Pure: bytes in,
 * values out.
 */
import { copyBytes } from "../base/copy-bytes.ts";
import { invariant } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import {
  createHeaderDecoder,
  encodeHeader,
  formOfType,
  type HeaderDecoder,
  type MessageForm,
} from "./message-codec.ts";
import type { Message } from "./messages.ts";
import { checkChecksum, checkPrelude, headerBytesOf, payloadBytesOf, preludeBytes, writeHead } from "./prelude.ts";

/**
 * Encodes prelude and header into `target` so that they END at `end` (the payload, if any, follows there in place).
 * Returns the offset where the frame starts. Throws InvariantError when the header is larger than the room, or when the
 * message is one a receiver would refuse.
 */
export function encodeHeadBefore(message: Message, payloadBytes: number, target: Uint8Array, end: number): number {
  const header = checkedHeader(message, payloadBytes);
  const start = end - header.length - preludeBytes;
  invariant(start >= 0 && end <= target.length, "prelude and header fit in front of the payload");
  writeHead(formOfType(message.type), header, payloadBytes, target, start);
  return start;
}

/** A whole frame as one new array: for control messages. The payload is copied. */
export function encodeFrame(message: Message, payload?: Uint8Array): Uint8Array {
  const payloadBytes = payload?.length ?? 0;
  const header = checkedHeader(message, payloadBytes);
  const frame = Buffer.allocUnsafeSlow(preludeBytes + header.length + payloadBytes);
  writeHead(formOfType(message.type), header, payloadBytes, frame, 0);
  if (payload !== undefined) frame.set(payload, preludeBytes + header.length);
  return frame;
}

function checkedHeader(message: Message, payloadBytes: number): Uint8Array {
  invariant(payloadBytes >= 0 && payloadBytes <= limits.framePayloadBytesMax, "a payload fits a frame");
  return encodeHeader(message, payloadBytes);
}

/**
 * Where the decoder puts the payload of a frame whose header it has checked. Must be exactly `payloadBytes` long, and
 * stays with the decoder until `onFrame` or an error. Not called for a frame without payload.
 */
export type PayloadTarget = (message: Message, payloadBytes: number) => Uint8Array;

export interface DecodedFrame {
  readonly message: Message;
  /** What `payloadTarget` returned, now filled; empty when there is none. */
  readonly payload: Uint8Array;
  /** Bytes of the whole frame on the wire (before TLS). */
  readonly frameBytes: number;
}

/**
 * Incremental. `push` consumes all of `chunk` and calls `onFrame` for each completed frame, in order, synchronously.
 * Payload bytes are copied once, into the array `payloadTarget` gives. A malformed frame throws `frame-malformed` or
 * `message-malformed` and the decoder is dead: later pushes throw the same error. So does whatever the two functions
 * throw. "Need more bytes" is not an event at all.
 */
export interface FrameDecoder {
  push(chunk: Uint8Array): void;
  /** What is still missing of a payload under way, in the array `payloadTarget` gave; empty otherwise. */
  readonly room: Uint8Array;
  /** `count` bytes were put at the start of `room`: as if they had been pushed, without the copy. */
  filled(count: number): void;
  /** True when the stream may end here: no partial frame is pending. */
  readonly atBoundary: boolean;
}

export interface FrameDecoderOptions {
  readonly payloadTarget: PayloadTarget;
  readonly onFrame: (frame: DecodedFrame) => void;
}

export function createFrameDecoder(options: FrameDecoderOptions): FrameDecoder {
  return new IncrementalDecoder(options);
}

/** Holds every header but the largest; grows to the largest a peer sends, which `limits` bounds. */
const headBytesUsual = 4_096;
const empty: Uint8Array = new Uint8Array(0);

class IncrementalDecoder implements FrameDecoder {
  readonly #options: FrameDecoderOptions;
  readonly #decodeHeader: HeaderDecoder = createHeaderDecoder();
  /** Prelude and header of the frame under way; used again for each frame. */
  #head = new Uint8Array(headBytesUsual);
  #prelude = new DataView(this.#head.buffer, 0, preludeBytes);
  #headFilled = 0;
  /** Bytes the head will have, as far as is known: of the prelude, then with the header. */
  #headBytes = preludeBytes;
  #form: MessageForm | undefined;
  #message: Message | undefined;
  #payload = empty;
  #payloadFilled = 0;
  #busy = false;
  #death: { readonly error: unknown } | undefined;

  constructor(options: FrameDecoderOptions) {
    this.#options = options;
  }

  get atBoundary(): boolean {
    return this.#headFilled === 0 && this.#message === undefined;
  }

  get room(): Uint8Array {
    return this.#message === undefined || this.#death !== undefined
      ? empty
      : this.#payload.subarray(this.#payloadFilled);
  }

  push(chunk: Uint8Array): void {
    this.#take(() => {
      let at = 0;
      while (at < chunk.length)
        at = this.#message === undefined ? this.#takeHead(chunk, at) : this.#takePayload(chunk, at);
    });
  }

  filled(count: number): void {
    const filled = this.#payloadFilled + count;
    // Called for each record: most only fill up.
    if (this.#message !== undefined && this.#death === undefined && !this.#busy && filled < this.#payload.length) {
      this.#payloadFilled = filled;
      return;
    }
    this.#take(() => {
      const message = this.#message;
      const { length } = this.#payload;
      invariant(message !== undefined && this.#payloadFilled + count <= length, "what was put into the room fits it");
      this.#payloadFilled += count;
      if (this.#payloadFilled === length) this.#finish(message);
    });
  }

  #take(step: () => void): void {
    if (this.#death !== undefined) throw this.#death.error;
    invariant(!this.#busy, "a decoder is not pushed from its own callbacks");
    this.#busy = true;
    try {
      step();
    } catch (error) {
      this.#death = { error };
      throw error;
    } finally {
      this.#busy = false;
    }
  }

  #takeHead(chunk: Uint8Array, from: number): number {
    const length = Math.min(this.#headBytes - this.#headFilled, chunk.length - from);
    this.#head.set(chunk.subarray(from, from + length), this.#headFilled);
    this.#headFilled += length;
    if (this.#headFilled === this.#headBytes) {
      if (this.#form === undefined) this.#beginHeader();
      else this.#beginPayload(this.#form);
    }
    return from + length;
  }

  #beginHeader(): void {
    this.#form = checkPrelude(this.#prelude);
    this.#headBytes = preludeBytes + headerBytesOf(this.#prelude);
    if (this.#headBytes <= this.#head.length) return;
    const larger = new Uint8Array(this.#headBytes);
    larger.set(this.#head.subarray(0, preludeBytes));
    this.#head = larger;
    this.#prelude = new DataView(larger.buffer, 0, preludeBytes);
  }

  #beginPayload(form: MessageForm): void {
    const head = this.#head.subarray(0, this.#headBytes);
    checkChecksum(form, this.#prelude, head);
    const payloadBytes = payloadBytesOf(this.#prelude);
    const message = this.#decodeHeader(form, head.subarray(preludeBytes), payloadBytes);
    this.#message = message;
    if (payloadBytes === 0) {
      this.#finish(message);
      return;
    }
    const target = this.#options.payloadTarget(message, payloadBytes);
    invariant(target.length === payloadBytes, "a payload target is exactly as long as the payload");
    this.#payload = target;
  }

  #takePayload(chunk: Uint8Array, from: number): number {
    const payload = this.#payload;
    const length = Math.min(payload.length - this.#payloadFilled, chunk.length - from);
    copyBytes(length === chunk.length ? chunk : chunk.subarray(from, from + length), payload, this.#payloadFilled);
    this.#payloadFilled += length;
    if (this.#payloadFilled === payload.length && this.#message !== undefined) this.#finish(this.#message);
    return from + length;
  }

  /** Ready for the next frame before this one is handed out, so that `atBoundary` holds in `onFrame`. */
  #finish(message: Message): void {
    const frame = { message, payload: this.#payload, frameBytes: this.#headBytes + this.#payload.length };
    this.#headFilled = 0;
    this.#headBytes = preludeBytes;
    this.#form = undefined;
    this.#message = undefined;
    this.#payload = empty;
    this.#payloadFilled = 0;
    this.#options.onFrame(frame);
  }
}
