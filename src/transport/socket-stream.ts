/** {@link ByteStream} over a socket, TLS or not. */
import type { Socket } from "node:net";
import type { Clock } from "../base/clock.ts";
import { copyBytes } from "../base/copy-bytes.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ByteSink, ByteStream } from "./byte-stream.ts";
import { connectionError } from "./connection-errors.ts";
import { type DirectReception, receiveDirectly } from "./direct-reception.ts";
import type { PeerIdentity } from "./link.ts";
import { closeMillis } from "./tls-link.ts";

export interface SocketStreamOptions {
  /** Connected, and not read from. */
  readonly socket: Socket;
  /** Address of the other side, for people. */
  readonly peer: string;
  readonly identity?: PeerIdentity | undefined;
  readonly clock: Clock;
}

export class SocketStream implements ByteStream {
  readonly peer: string;
  readonly identity: PeerIdentity | undefined;
  readonly #socket: Socket;
  readonly #clock: Clock;
  #sink: ByteSink | undefined;
  #direct: DirectReception | undefined;
  #ending: { readonly error: ReplicationError | undefined } | undefined;
  #closing = false;
  #paused = false;
  readonly #onError: (error: Error) => void;
  readonly #onEnd = (): void => this.#end(undefined);
  readonly #onClose = (): void => this.#end(this.#closing ? undefined : this.#lost("the connection was closed"));

  constructor({ socket, peer, identity, clock }: SocketStreamOptions) {
    this.peer = peer;
    this.identity = identity;
    this.#socket = socket;
    this.#clock = clock;
    this.#onError = (error) => this.#end(connectionError(error, { peer, phase: "session" }));
    socket.on("error", this.#onError);
    socket.on("end", this.#onEnd);
    socket.on("close", this.#onClose);
  }

  receive(sink: ByteSink): void {
    const first = this.#sink === undefined;
    this.#sink = sink;
    if (this.#ending !== undefined) this.#report(sink, this.#ending.error);
    else if (first) this.#startReading();
    else this.#direct?.redirect(sink.room());
  }

  #startReading(): void {
    const socket = this.#socket;
    for (let early: unknown = socket.read(); early instanceof Uint8Array; early = socket.read()) this.#deliver(early);
    const sink = this.#sink;
    if (this.#ending !== undefined || sink === undefined) return;
    this.#direct = receiveDirectly(
      socket,
      sink.room(),
      (count) => this.#filled(count),
      () => this.#room(),
    );
    if (this.#direct === undefined) socket.on("data", (chunk: Uint8Array) => this.#deliver(chunk));
    else if (!this.#paused) socket.resume();
  }

  write(parts: readonly Uint8Array[], taken?: () => void): void {
    if (this.#ending !== undefined || this.#closing) return;
    const socket = this.#socket;
    const last = parts.length - 1;
    if (last > 0) socket.cork();
    for (const [index, part] of parts.entries()) {
      if (index < last || taken === undefined) socket.write(part);
      else {
        socket.write(part, (error) => {
          if (error === undefined || error === null) taken();
        });
      }
    }
    if (last > 0) socket.uncork();
  }

  get bytesQueued(): number {
    return this.#socket.writableLength;
  }

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#ending !== undefined || this.#sink === undefined) return;
    // The sink may have made room meanwhile.
    this.#direct?.redirect(this.#sink.room());
    this.#socket.resume();
  }

  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    const socket = this.#socket;
    if (socket.destroyed) return;
    const timer = new AbortController();
    socket.once("close", () => timer.abort());
    socket.end();
    // Read on, so that the peer's end is seen and unread bytes do not turn the close into a reset.
    socket.resume();
    this.#clock.sleep(closeMillis, timer.signal).then(
      () => void socket.destroy(),
      // Aborted: the socket closed in time.
      () => undefined,
    );
  }

  destroy(error?: ReplicationError): void {
    this.#end(error);
    this.#socket.destroy();
  }

  /** The socket, for TLS on top of it: this stream is over, and says nothing more. Its errors are still heard, and are the echo of what TLS says. */
  detach(): Socket {
    invariant(this.#ending === undefined, "a stream that is over has no socket to give");
    const socket = this.#socket;
    socket.on("error", () => undefined);
    socket.off("error", this.#onError);
    socket.off("end", this.#onEnd);
    socket.off("close", this.#onClose);
    socket.removeAllListeners("data");
    socket.pause();
    this.#ending = { error: undefined };
    this.#closing = true;
    return socket;
  }

  /** Copies a chunk that Node made to where it belongs. */
  #deliver(chunk: Uint8Array): void {
    for (let at = 0; at < chunk.length && this.#ending === undefined; ) {
      const room = this.#room();
      const count = Math.min(room.length, chunk.length - at);
      copyBytes(chunk.subarray(at, at + count), room, 0);
      at += count;
      this.#filled(count);
    }
  }

  #room(): Uint8Array {
    return this.#ending === undefined && this.#sink !== undefined ? this.#sink.room() : discarded;
  }

  /** Always true. */
  #filled(count: number): true {
    if (this.#ending !== undefined) return true;
    try {
      this.#sink?.filled(count);
    } catch (thrown) {
      this.destroy(toReplicationError(thrown));
    }
    return true;
  }

  #end(error: ReplicationError | undefined): void {
    if (this.#ending !== undefined) return;
    this.#ending = { error };
    // The memory of the sink is its owner's again.
    this.#direct?.redirect(discarded);
    if (error === undefined) this.close();
    else this.#socket.destroy();
    if (this.#sink !== undefined) this.#report(this.#sink, error);
  }

  #report(sink: ByteSink, error: ReplicationError | undefined): void {
    queueMicrotask(() => sink.ended(error));
  }

  #lost(what: string): ReplicationError {
    const { peer } = this;
    const details = { peer, phase: "session" };
    return new ReplicationError("connection-lost", `${peer}, session: ${what}`, { details });
  }
}

/** Where bytes go that nobody wants any more. */
const discarded = new Uint8Array(16_384);
