/** Replies on their way out: those of one batch of requests leave together. */
import { KIB } from "../base/units.ts";
import type { ByteStream } from "../transport/byte-stream.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { chunks } from "./protocol.ts";
import {
  chunkHeadBytes,
  encodeChunkHead,
  encodeErrorPayload,
  encodeOffset,
  encodeSimpleReply,
  offsetBytes,
  simpleReplyBytes,
} from "./reply-codec.ts";
import type { Cookie } from "./request-codec.ts";

/** A piece of content with its heads fits, and many small replies. */
const batchBytes = nbdLimits.serverPieceBytes + 4 * KIB;
/** Batches kept for use again. */
const batchesKept = 4;

export class ReplyWriter {
  readonly structured: boolean;
  readonly #stream: ByteStream;
  /** The system has taken something. */
  readonly #onTaken: () => void;
  readonly #free: Buffer[] = [];
  #batch: Buffer = Buffer.alloc(0);
  #end = 0;
  #backlog = 0;

  constructor(stream: ByteStream, structured: boolean, onTaken: () => void) {
    this.#stream = stream;
    this.structured = structured;
    this.#onTaken = onTaken;
  }

  /** Bytes of replies that the system has not taken. */
  get backlog(): number {
    return this.#backlog + this.#end;
  }

  /** Memory of the batch for `count` bytes, at most a piece with its heads; nothing of it is sent before {@link commit}. */
  room(count: number): Buffer {
    if (this.#end + count > this.#batch.length) {
      this.flush();
      this.#batch = this.#free.pop() ?? Buffer.allocUnsafeSlow(batchBytes);
    }
    return this.#batch.subarray(this.#end, this.#end + count);
  }

  /** The first `count` bytes of what {@link room} gave last are a reply, or a part of one. */
  commit(count: number): void {
    this.#end += count;
  }

  /** A request is done that has no content to answer with. */
  done(cookie: Cookie): void {
    encodeSimpleReply(cookie, 0, this.room(simpleReplyBytes), 0);
    this.commit(simpleReplyBytes);
  }

  /** A read is done, and its content was sent or is none. */
  end(cookie: Cookie): void {
    if (!this.structured) {
      this.done(cookie);
      return;
    }
    encodeChunkHead(cookie, { type: chunks.none, done: true, length: 0 }, this.room(chunkHeadBytes), 0);
    this.commit(chunkHeadBytes);
  }

  /** A request failed. `error`: of `errors`. */
  error(cookie: Cookie, error: number, text: string): void {
    if (!this.structured) {
      encodeSimpleReply(cookie, error, this.room(simpleReplyBytes), 0);
      this.commit(simpleReplyBytes);
      return;
    }
    this.chunk(cookie, { type: chunks.error, done: true }, encodeErrorPayload(error, text));
  }

  chunk(cookie: Cookie, how: { readonly type: number; readonly done: boolean }, payload: Uint8Array): void {
    const room = this.room(chunkHeadBytes + payload.length);
    encodeChunkHead(cookie, { ...how, length: payload.length }, room, 0);
    room.set(payload, chunkHeadBytes);
    this.commit(room.length);
  }

  /** Sends what others own, behind the batch; on loan until `taken`. */
  send(bytes: Uint8Array, taken: () => void): void {
    this.flush();
    this.#backlog += bytes.length;
    this.#stream.write([bytes], () => {
      this.#backlog -= bytes.length;
      taken();
      this.#onTaken();
    });
  }

  /** Lets the batch go. */
  flush(): void {
    const batch = this.#batch;
    const count = this.#end;
    if (count === 0) return;
    this.#batch = Buffer.alloc(0);
    this.#end = 0;
    this.#backlog += count;
    this.#stream.write([batch.subarray(0, count)], () => {
      this.#backlog -= count;
      if (this.#free.length < batchesKept) this.#free.push(batch);
      this.#onTaken();
    });
  }
}

/** Bytes in front of the content of a read's reply. */
export function contentHeadBytes(structured: boolean): number {
  return structured ? chunkHeadBytes + offsetBytes : simpleReplyBytes;
}

/** Writes what stands in front of the content of a read's reply. */
export function encodeContentHead(
  cookie: Cookie,
  content: { readonly offset: number; readonly length: number; readonly done: boolean },
  structured: boolean,
  target: Buffer,
): void {
  if (!structured) {
    encodeSimpleReply(cookie, 0, target, 0);
    return;
  }
  const { offset, length, done } = content;
  encodeChunkHead(cookie, { type: chunks.offsetData, done, length: offsetBytes + length }, target, 0);
  encodeOffset(offset, target, chunkHeadBytes);
}
