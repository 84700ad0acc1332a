/** Lines of JSON over a byte stream, a value each: talk between processes of one machine. */
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ByteSink, ByteStream } from "./byte-stream.ts";

export interface JsonLinesOptions {
  /** A value that came. A throw ends the stream with it. */
  readonly onValue: (value: unknown) => void;
  /** Once, and nothing after it. As of a {@link ByteSink}. */
  readonly onEnd: (error: ReplicationError | undefined) => void;
}

/** Of one line, without its end: a peer that sends more ends its stream. */
export const lineBytesMax = 64 * 1024;

export class JsonLines implements ByteSink {
  readonly #stream: ByteStream;
  readonly #o: JsonLinesOptions;
  readonly #buffer = Buffer.alloc(lineBytesMax + 1);
  #length = 0;

  /** Takes what `stream` receives from now on. */
  constructor(stream: ByteStream, options: JsonLinesOptions) {
    this.#stream = stream;
    this.#o = options;
    stream.receive(this);
  }

  /** After the end it is lost. */
  send(value: unknown): void {
    this.#stream.write([Buffer.from(`${JSON.stringify(value)}\n`)]);
  }

  /** Sends what is queued, then ends. */
  close(): void {
    this.#stream.close();
  }

  room(): Uint8Array {
    return this.#buffer.subarray(this.#length);
  }

  filled(count: number): void {
    this.#length += count;
    let start = 0;
    for (;;) {
      const end = this.#buffer.subarray(0, this.#length).indexOf(0x0a, start);
      if (end < 0) break;
      const line = this.#buffer.toString("utf8", start, end);
      start = end + 1;
      this.#o.onValue(parse(line, this.#stream.peer));
    }
    this.#buffer.copyWithin(0, start, this.#length);
    this.#length -= start;
    if (this.#length === this.#buffer.length) {
      throw new ReplicationError(
        "message-malformed",
        `${this.#stream.peer}: a line of more than ${lineBytesMax} bytes`,
      );
    }
  }

  ended(error: ReplicationError | undefined): void {
    this.#o.onEnd(error);
  }
}

function parse(line: string, peer: string): unknown {
  try {
    return JSON.parse(line) as unknown;
  } catch (thrown) {
    throw new ReplicationError("message-malformed", `${peer}: a line that is no JSON`, {
      cause: toReplicationError(thrown),
    });
  }
}
