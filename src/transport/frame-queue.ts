/**
 * Large frames on their way into a TLS socket, one at a time: what waits in a socket Node joins into one new buffer before it encrypts,
 * and copying megabytes for that cost a fifth of the sender's processor time (measured).
 */
import type { Writable } from "node:stream";

type Done = (error: Error | null | undefined) => void;

export class FrameQueue {
  readonly #socket: Writable;
  readonly #waiting: { readonly frame: Uint8Array; readonly done: Done }[] = [];
  #waitingBytes = 0;
  #writing = false;
  #ending = false;

  constructor(socket: Writable) {
    this.#socket = socket;
  }

  /** Bytes not yet given to the socket. */
  get bytes(): number {
    return this.#waitingBytes;
  }

  /** `done` is called when the socket has taken the frame, with an error when it will not. Frames leave in the order of calls. */
  push(frame: Uint8Array, done: Done): void {
    this.#waiting.push({ frame, done });
    this.#waitingBytes += frame.length;
    if (!this.#writing) this.#writeNext();
  }

  /** Ends the socket behind the last frame. */
  end(): void {
    this.#ending = true;
    if (!this.#writing) this.#socket.end();
  }

  /** Drops the frames that wait, their `done` uncalled. The one the socket has is the socket's. */
  clear(): void {
    this.#waiting.length = 0;
    this.#waitingBytes = 0;
  }

  #writeNext(): void {
    const next = this.#waiting.shift();
    this.#writing = next !== undefined;
    if (next === undefined) {
      if (this.#ending) this.#socket.end();
      return;
    }
    this.#waitingBytes -= next.frame.length;
    this.#socket.write(next.frame, (error) => {
      next.done(error);
      this.#writeNext();
    });
  }
}
