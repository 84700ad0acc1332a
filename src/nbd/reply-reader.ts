/** Takes replies apart as they arrive. Content of reads goes straight to where the caller wants it. */
import { copyBytes } from "../base/copy-bytes.ts";
import type { ReplicationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { ByteSink } from "../transport/byte-stream.ts";
import { nbdLimits } from "./nbd-limits.ts";
import type { Pending, PendingRequests } from "./pending-requests.ts";
import { chunkDone, chunks, commands, isErrorChunk, magics } from "./protocol.ts";
import {
  checkChunkLength,
  chunkHeadBytes,
  decodeErrorPayload,
  decodeOffset,
  decodeStatusPayload,
  holeBytes,
  offsetBytes,
  simpleReplyBytes,
} from "./reply-codec.ts";
import { violation } from "./violation.ts";

/** Heads, and what of content comes with them. Longer content is received in its place. */
const landingBytes = 64 * KIB;

/** Content that is under way. */
interface Body {
  readonly target: Uint8Array;
  at: number;
  readonly whenFull: () => void;
}

export interface ReplyReaderOptions {
  readonly pending: PendingRequests;
  readonly structured: boolean;
  /** The last of a request's reply is there. */
  readonly onDone: (pending: Pending) => void;
  readonly onEnd: (error: ReplicationError | undefined) => void;
}

export class ReplyReader implements ByteSink {
  readonly #o: ReplyReaderOptions;
  readonly #landing = Buffer.allocUnsafeSlow(landingBytes);
  #start = 0;
  #end = 0;
  #body: Body | undefined;

  constructor(options: ReplyReaderOptions) {
    this.#o = options;
  }

  room(): Uint8Array {
    const body = this.#body;
    return body === undefined ? this.#landing.subarray(this.#end) : body.target.subarray(body.at);
  }

  filled(count: number): void {
    const body = this.#body;
    if (body === undefined) this.#end += count;
    else body.at += count;
    this.#parse();
  }

  /** What came before this reader was there; it fits the landing. */
  push(bytes: Uint8Array): void {
    this.#landing.set(bytes, this.#end);
    this.#end += bytes.length;
    this.#parse();
  }

  ended(error: ReplicationError | undefined): void {
    this.#o.onEnd(error);
  }

  #parse(): void {
    while (this.#step());
    this.#landing.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
  }

  /** False: more bytes are needed. */
  #step(): boolean {
    const body = this.#body;
    if (body !== undefined) return this.#fill(body);
    const had = this.#end - this.#start;
    if (had < 4) return false;
    const magic = this.#landing.readUInt32BE(this.#start);
    if (magic === magics.simpleReply) return had >= simpleReplyBytes && this.#simpleReply();
    if (magic !== magics.chunk || !this.#o.structured) throw violation("a reply does not begin as one");
    return had >= chunkHeadBytes && this.#chunk(had);
  }

  #fill(body: Body): boolean {
    const count = Math.min(this.#end - this.#start, body.target.length - body.at);
    copyBytes(this.#landing.subarray(this.#start, this.#start + count), body.target, body.at);
    this.#start += count;
    body.at += count;
    if (body.at < body.target.length) return false;
    this.#body = undefined;
    body.whenFull();
    return true;
  }

  #simpleReply(): boolean {
    const landing = this.#landing;
    const at = this.#start;
    const error = landing.readUInt32BE(at + 4);
    const pending = this.#o.pending.find(landing.readUInt32BE(at + 8), landing.readUInt32BE(at + 12));
    this.#start += simpleReplyBytes;
    const { command, target, offset, length } = pending;
    const content = command === commands.read || command === commands.blockStatus;
    if (content && this.#o.structured) throw violation("a simple reply in place of a structured one");
    if (error !== 0) pending.failure = { error, message: "" };
    else if (command === commands.read && target !== undefined) {
      pending.coverage?.add(offset, length);
      this.#body = { target, at: 0, whenFull: () => this.#o.onDone(pending) };
      return true;
    }
    this.#o.onDone(pending);
    return true;
  }

  #chunk(had: number): boolean {
    const landing = this.#landing;
    const at = this.#start;
    const done = (landing.readUInt16BE(at + 4) & chunkDone) !== 0;
    const type = landing.readUInt16BE(at + 6);
    const length = landing.readUInt32BE(at + 16);
    checkChunkLength(type, length, done);
    const pending = this.#o.pending.find(landing.readUInt32BE(at + 8), landing.readUInt32BE(at + 12));
    const body = at + chunkHeadBytes;
    const whenFull = (): void => {
      if (done) this.#o.onDone(pending);
    };
    if (type === chunks.offsetData) {
      if (had < chunkHeadBytes + offsetBytes) return false;
      this.#start = body + offsetBytes;
      this.#content(pending, decodeOffset(landing, body), length - offsetBytes, whenFull);
      return true;
    }
    if (type === chunks.blockStatus) {
      if (pending.command !== commands.blockStatus) throw violation("a block status nobody asked for");
      this.#start = body;
      this.#status(pending, length, whenFull);
      return true;
    }
    if (had < chunkHeadBytes + length) return false;
    this.#start = body + length;
    if (type === chunks.offsetHole) {
      const target = this.#room(pending, decodeOffset(landing, body), landing.readUInt32BE(body + holeBytes - 4));
      target.fill(0);
    } else if (isErrorChunk(type)) {
      pending.failure ??= decodeErrorPayload(landing.subarray(body, body + length));
    }
    whenFull();
    return true;
  }

  #content(pending: Pending, offset: number, length: number, whenFull: () => void): void {
    this.#body = { target: this.#room(pending, offset, length), at: 0, whenFull };
  }

  /** Where content of a read goes. Throws unless it was asked for, and did not come before. */
  #room(pending: Pending, offset: number, length: number): Uint8Array {
    const { target, coverage } = pending;
    if (target === undefined || coverage === undefined) throw violation("content nobody asked for");
    if (length === 0) throw violation("a hole of no bytes");
    coverage.add(offset, length);
    return target.subarray(offset - pending.offset, offset - pending.offset + length);
  }

  #status(pending: Pending, length: number, whenFull: () => void): void {
    // One for each context: more would pile up.
    if (pending.statuses.length >= nbdLimits.contextsMax) throw violation("a block status again and again");
    const target = Buffer.alloc(length);
    this.#body = {
      target,
      at: 0,
      whenFull: () => {
        const status = decodeStatusPayload(target);
        if (pending.statuses.some(({ id }) => id === status.id)) throw violation("two block statuses of one context");
        pending.statuses.push(status);
        whenFull();
      },
    };
  }
}
