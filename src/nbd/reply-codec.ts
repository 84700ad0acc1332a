/** Replies as bytes and back: simple ones, and chunks of structured ones. Pure. Decoders throw `protocol-violation`. */
import { nbdLimits } from "./nbd-limits.ts";
import { chunkDone, chunks, magics } from "./protocol.ts";
import type { Cookie } from "./request-codec.ts";
import { violation } from "./violation.ts";

export const simpleReplyBytes = 16;
export const chunkHeadBytes = 20;
/** In front of the content of an `offsetData` chunk. */
export const offsetBytes = 8;
export const holeBytes = 12;

export function encodeSimpleReply(cookie: Cookie, error: number, target: Buffer, at: number): void {
  target.writeUInt32BE(magics.simpleReply, at);
  target.writeUInt32BE(error, at + 4);
  target.writeUInt32BE(cookie.high, at + 8);
  target.writeUInt32BE(cookie.low, at + 12);
}

/** `type`: of `chunks`. `length`: bytes of payload that follow. */
export function encodeChunkHead(
  cookie: Cookie,
  chunk: { readonly type: number; readonly done: boolean; readonly length: number },
  target: Buffer,
  at: number,
): void {
  target.writeUInt32BE(magics.chunk, at);
  target.writeUInt16BE(chunk.done ? chunkDone : 0, at + 4);
  target.writeUInt16BE(chunk.type, at + 6);
  target.writeUInt32BE(cookie.high, at + 8);
  target.writeUInt32BE(cookie.low, at + 12);
  target.writeUInt32BE(chunk.length, at + 16);
}

export function encodeOffset(offset: number, target: Buffer, at: number): void {
  target.writeUInt32BE(Math.floor(offset / 2 ** 32), at);
  target.writeUInt32BE(offset % 2 ** 32, at + 4);
}

/** Payload of an `error` chunk. */
export function encodeErrorPayload(error: number, message: string): Buffer {
  const text = Buffer.from(message).subarray(0, nbdLimits.stringBytesMax);
  const bytes = Buffer.alloc(6 + text.length);
  bytes.writeUInt32BE(error, 0);
  bytes.writeUInt16BE(text.length, 4);
  bytes.set(text, 6);
  return bytes;
}

/** What every error chunk begins with, whatever its type. */
export function decodeErrorPayload(bytes: Buffer): { readonly error: number; readonly message: string } {
  if (bytes.length < 6) throw violation("an error chunk ends too early");
  const error = bytes.readUInt32BE(0);
  const length = bytes.readUInt16BE(4);
  if (error === 0) throw violation("an error chunk without an error");
  if (6 + length > bytes.length) throw violation("an error chunk ends before its text");
  return { error, message: bytes.toString("utf8", 6, 6 + length) };
}

/** An offset that lies in a disk. */
export function decodeOffset(bytes: Buffer, at: number): number {
  const high = bytes.readUInt32BE(at);
  if (high >= 2 ** 21) throw violation("a chunk for an offset that no disk has");
  return high * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

/** Payload of a `blockStatus` chunk: descriptors are pairs of length and flags. */
export function encodeStatusPayload(id: number, descriptors: ArrayLike<number>): Buffer {
  const bytes = Buffer.alloc(4 + 4 * descriptors.length);
  bytes.writeUInt32BE(id, 0);
  for (let index = 0; index < descriptors.length; index++) {
    bytes.writeUInt32BE(descriptors[index] ?? 0, 4 + 4 * index);
  }
  return bytes;
}

/** What a context says of the bytes from the asked offset on. */
export interface StatusPayload {
  readonly id: number;
  /** Pairs of length, never 0, and flags. */
  readonly descriptors: Uint32Array;
}

export function decodeStatusPayload(bytes: Buffer): StatusPayload {
  if (bytes.length < 12 || bytes.length % 8 !== 4) throw violation(`a block status of ${bytes.length} bytes`);
  const descriptors = new Uint32Array((bytes.length - 4) / 4);
  for (let index = 0; index < descriptors.length; index++) {
    const value = bytes.readUInt32BE(4 + 4 * index);
    if (index % 2 === 0 && value === 0) throw violation("a block status of no bytes");
    descriptors[index] = value;
  }
  return { id: bytes.readUInt32BE(0), descriptors };
}

/** Throws unless a chunk of this type may have a payload of `length` bytes. A chunk of content is bounded by its request, not here. */
export function checkChunkLength(type: number, length: number, done: boolean): void {
  if (type === chunks.none) {
    if (length !== 0 || !done) throw violation("a chunk of nothing that is not the last, or has content");
  } else if (type === chunks.offsetData) {
    if (length <= offsetBytes) throw violation("a chunk of content without content");
  } else if (type === chunks.offsetHole) {
    if (length !== holeBytes) throw violation(`a chunk of a hole with ${length} bytes`);
  } else if (type === chunks.blockStatus) {
    if (length > nbdLimits.statusChunkBytesMax) throw violation(`a block status of ${length} bytes`);
  } else if (type >= 0x8000) {
    if (length > nbdLimits.errorChunkBytesMax) throw violation(`an error chunk of ${length} bytes`);
  } else throw violation(`a chunk of the unknown type ${type}`);
}
