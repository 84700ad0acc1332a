/** Reads a stream in pieces of known length, for the negotiation: one question, one answer. */
import { invariant, ReplicationError } from "../base/errors.ts";
import type { ByteSink, ByteStream } from "../transport/byte-stream.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { violation } from "./violation.ts";

interface Wanted {
  readonly count: number;
  readonly resolve: (bytes: Buffer) => void;
  readonly reject: (error: ReplicationError) => void;
}

/** Holds at most `nbdLimits.negotiationAheadBytes`: a peer that sends more than that unasked ends its stream. */
export class ByteReader implements ByteSink {
  readonly #buffer = Buffer.alloc(nbdLimits.negotiationAheadBytes);
  #start = 0;
  #end = 0;
  #wanted: Wanted | undefined;
  #ending: ReplicationError | undefined;

  /** Takes what `stream` receives from now on. */
  constructor(stream: ByteStream) {
    stream.receive(this);
  }

  /** The next `count` bytes, the caller's own. Rejects with `connection-lost` when the stream ends before them. One call at a time. */
  read(count: number): Promise<Buffer> {
    invariant(this.#wanted === undefined, "one piece is read at a time");
    invariant(count <= this.#buffer.length, "a piece fits the buffer");
    return new Promise((resolve, reject) => {
      this.#wanted = { count, resolve, reject };
      this.#serve();
    });
  }

  /** What came and was not asked for: the next sink's. */
  rest(): Buffer {
    return this.#take(this.#end - this.#start);
  }

  room(): Uint8Array {
    if (this.#start > 0) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    return this.#buffer.subarray(this.#end);
  }

  filled(count: number): void {
    this.#end += count;
    this.#serve();
    if (this.#start === 0 && this.#end === this.#buffer.length) throw violation("more than was asked for");
  }

  ended(error: ReplicationError | undefined): void {
    this.#ending = error ?? new ReplicationError("connection-lost", "the other side closed the connection");
    this.#serve();
  }

  #serve(): void {
    const wanted = this.#wanted;
    if (wanted === undefined) return;
    if (this.#end - this.#start >= wanted.count) {
      this.#wanted = undefined;
      wanted.resolve(this.#take(wanted.count));
    } else if (this.#ending !== undefined) {
      this.#wanted = undefined;
      wanted.reject(this.#ending);
    }
  }

  #take(count: number): Buffer {
    const bytes = Buffer.from(this.#buffer.subarray(this.#start, this.#start + count));
    this.#start += count;
    return bytes;
  }
}
