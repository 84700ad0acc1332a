/** {@link Link} over a TLS socket whose peer has been checked. */
import type { Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { Clock } from "../base/clock.ts";
import { InvariantError, invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { KIB, MIB } from "../base/units.ts";
import { toErrorMessage } from "../wire/error-message.ts";
import { createFrameDecoder, encodeFrame, type FrameDecoder } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import { connectionError } from "./connection-errors.ts";
import { type DirectReception, receiveDirectly } from "./direct-reception.ts";
import { FrameQueue } from "./frame-queue.ts";
import type { Link, LinkHandlers, PeerIdentity } from "./link.ts";

/** Longest wait for the peer's end of a connection that was closed here. */
export const closeMillis = 2_000;

export interface TlsLinkOptions {
  readonly socket: TLSSocket;
  /** The TCP socket below: its counters include TLS. */
  readonly raw: Socket;
  readonly peer: PeerIdentity;
  readonly clock: Clock;
  readonly log: Logger;
  /** See {@link ListenTlsOptions.reclaim}. */
  readonly reclaim?: (() => void) | undefined;
}

/** Bytes received between two calls of `reclaim`. */
const reclaimBytes = 16 * MIB;

/** A TLS record. Shorter rooms are filled through the landing, so that a record is not torn over two pieces for nothing. */
const directBytesMin = 16 * KIB;
const landingBytes = 64 * KIB;

/** Why the connection is over; `error` undefined: in an orderly way. */
interface Ending {
  readonly error: ReplicationError | undefined;
}

/**
 * The socket must not have been read from since its handshake. From construction on the link has listeners for everything the
 * socket can emit, so that nothing it does goes unhandled.
 */
export class TlsLink implements Link {
  readonly peer: PeerIdentity;
  readonly #socket: TLSSocket;
  readonly #raw: Socket;
  readonly #frames: FrameQueue;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #reclaim: (() => void) | undefined;
  #unreclaimed = 0;
  /** Where received bytes go that do not go into a payload's own place. */
  #landing: Uint8Array | undefined;
  #direct: DirectReception | undefined;
  /** What the socket fills now, and whether it is the decoder's room. */
  #target: Uint8Array | undefined;
  #intoRoom = false;
  #handlers: LinkHandlers | undefined;
  #decoder: FrameDecoder | undefined;
  #ending: Ending | undefined;
  #closing: Promise<void> | undefined;
  /** Rejects the promise of each `sendFrame` under way. */
  readonly #waiting = new Set<(error: ReplicationError) => void>();
  #lastReceived: number;

  constructor({ socket, raw, peer, clock, log, reclaim }: TlsLinkOptions) {
    this.#reclaim = reclaim;
    this.peer = peer;
    this.#socket = socket;
    this.#raw = raw;
    this.#frames = new FrameQueue(socket);
    this.#clock = clock;
    this.#log = log;
    this.#lastReceived = clock.monotonic();
    // An error behind the reported end changes nothing: `#end` keeps the first, and that one is the cause.
    socket.on("error", (error) => this.#end(this.#lost(error)));
    socket.on("end", () => this.#peerEnded());
    socket.on("close", () => {
      this.#end(this.#closing === undefined ? this.#lostWords("the connection was closed") : undefined);
      this.#rejectWaiting();
    });
  }

  get bytesQueued(): number {
    return this.#socket.writableLength + this.#frames.bytes;
  }

  get bytesSent(): number {
    return this.#raw.bytesWritten;
  }

  get bytesReceived(): number {
    return this.#raw.bytesRead;
  }

  get lastReceived(): number {
    return this.#lastReceived;
  }

  start(handlers: LinkHandlers): void {
    invariant(this.#handlers === undefined, "a link is started once");
    this.#handlers = handlers;
    this.#decoder = createFrameDecoder({
      payloadTarget: (message, payloadBytes) => {
        this.#stopWhenOver();
        return handlers.payloadTarget(message, payloadBytes);
      },
      onFrame: (frame) => {
        this.#stopWhenOver();
        handlers.onFrame(frame);
      },
    });
    if (this.#ending !== undefined) this.#report(handlers, this.#ending);
    else this.#startReading();
  }

  #startReading(): void {
    const socket = this.#socket;
    const landing = Buffer.allocUnsafeSlow(landingBytes);
    // Came before the link was started.
    for (let early = readBuffered(socket); early !== undefined; early = readBuffered(socket)) this.#receive(early);
    this.#landing = landing;
    const first = this.#nextTarget();
    this.#direct = receiveDirectly(
      socket,
      first,
      (count) => this.#received(count),
      () => this.#nextTarget(),
    );
    if (this.#direct === undefined) {
      socket.on("data", (chunk: Uint8Array) => this.#receive(chunk, true));
    } else socket.resume();
  }

  send(message: Message, payload?: Uint8Array): boolean {
    const bytes = encodeFrame(message, payload);
    // Past the frames that wait: what is asked or answered should not queue behind megabytes.
    return this.#isOver ? false : this.#socket.write(bytes);
  }

  sendFrame(frame: Uint8Array): Promise<void> {
    if (this.#isOver) return Promise.reject(this.#endError());
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject);
      this.#frames.push(frame, (error) => {
        this.#waiting.delete(reject);
        if (error === undefined || error === null) resolve();
        else reject(this.#ending === undefined ? this.#lost(error) : this.#endError());
      });
    });
  }

  close(): Promise<void> {
    if (this.#closing === undefined) {
      this.#leaveRoom();
      this.#closing = this.#finish();
    }
    return this.#closing;
  }

  destroy(error: ReplicationError): void {
    this.#end(error);
  }

  get #isOver(): boolean {
    return this.#ending !== undefined || this.#closing !== undefined;
  }

  /** `ownArray`: the chunk is an array Node made for it. */
  #receive(chunk: Uint8Array, ownArray = false): void {
    this.#lastReceived = this.#clock.monotonic();
    if (this.#isOver) return;
    try {
      this.#decoder?.push(chunk);
      if (ownArray) this.#countForReclaim(chunk.length);
    } catch (thrown) {
      if (!this.#isOver) this.#end(this.#handlerError(thrown));
    }
  }

  /** Always true. */
  #received(count: number): true {
    const target = this.#target;
    if (!this.#intoRoom) {
      if (target !== undefined) this.#receive(target.subarray(0, count));
      return true;
    }
    this.#lastReceived = this.#clock.monotonic();
    if (this.#isOver) return true;
    try {
      this.#decoder?.filled(count);
    } catch (thrown) {
      if (!this.#isOver) this.#end(this.#handlerError(thrown));
    }
    return true;
  }

  /** Where the next bytes go: straight to their place where the frame under way has room for a record, else to the landing. */
  #nextTarget(): Uint8Array {
    const room = this.#isOver ? undefined : this.#decoder?.room;
    this.#intoRoom = room !== undefined && room.length >= directBytesMin;
    this.#target = this.#intoRoom ? room : this.#landing;
    invariant(this.#target !== undefined, "a link that reads has a landing");
    return this.#target;
  }

  /** The memory of a frame under way is its owner's again as soon as the link is over: what still comes is thrown away. */
  #leaveRoom(): void {
    if (!this.#intoRoom || this.#landing === undefined) return;
    this.#intoRoom = false;
    this.#target = this.#landing;
    this.#direct?.redirect(this.#landing);
  }

  #countForReclaim(bytes: number): void {
    this.#unreclaimed += bytes;
    if (this.#unreclaimed < reclaimBytes) return;
    this.#unreclaimed = 0;
    this.#reclaim?.();
  }

  /** The rest of a chunk is not delivered once a handler has ended the link. */
  #stopWhenOver(): void {
    if (this.#isOver) throw this.#endError();
  }

  #handlerError(thrown: unknown): ReplicationError {
    if (thrown instanceof ReplicationError && isMalformed(thrown)) {
      const { code, message, details } = thrown;
      const { name, address } = this.peer;
      return new ReplicationError(code, `${name} at ${address}: ${message}`, {
        cause: thrown,
        details: { ...details, peer: address },
      });
    }
    if (thrown instanceof InvariantError)
      this.#log.error({ peer: this.peer.address, err: thrown }, "session ended by an internal error");
    return toReplicationError(thrown);
  }

  #peerEnded(): void {
    if (this.#decoder?.atBoundary === false && !this.#isOver) {
      this.#end(this.#lostWords("the other side closed the connection in the middle of a frame"));
    } else this.#end(undefined);
  }

  /** Keeps the first cause; the rest of what a dying socket says is its consequence. */
  #end(error: ReplicationError | undefined): void {
    if (this.#ending !== undefined) return;
    const ending = { error };
    this.#ending = ending;
    this.#leaveRoom();
    if (error === undefined) {
      // What is queued may still leave; the peer has no unlimited time to take it.
      void this.close();
    } else {
      this.#rejectWaiting();
      if (isMalformed(error) && !error.remote) this.#refuse(error);
      else this.#socket.destroy();
    }
    if (this.#handlers !== undefined) this.#report(this.#handlers, ending);
  }

  /** A peer that is not told why would take it for a lost connection, and try for ever. */
  #refuse(error: ReplicationError): void {
    if (this.#socket.writable) this.#socket.write(encodeFrame(toErrorMessage(error)));
    void this.close();
  }

  /** In a job of its own: `onEnd` never runs inside a call of this link's methods. */
  #report(handlers: LinkHandlers, { error }: Ending): void {
    queueMicrotask(() => {
      try {
        handlers.onEnd(error);
      } catch (thrown) {
        // The session is over: there is nobody left to tell, and the embedding process must not die of it.
        this.#log.error({ peer: this.peer.address, err: thrown }, "the handler of a connection's end failed");
      }
    });
  }

  #rejectWaiting(): void {
    const error = this.#endError();
    this.#frames.clear();
    for (const reject of this.#waiting) reject(error);
    this.#waiting.clear();
  }

  async #finish(): Promise<void> {
    const socket = this.#socket;
    if (!socket.closed) {
      const timer = new AbortController();
      const closed = new Promise<void>((resolve) => {
        socket.once("close", () => resolve());
      });
      if (!socket.destroyed) {
        this.#frames.end();
        // Read on, so that the peer's end is seen and unread bytes do not turn the close into a reset.
        socket.resume();
      }
      const late = this.#clock.sleep(closeMillis, timer.signal).then(
        () => void socket.destroy(),
        // Aborted below: the socket closed in time.
        () => undefined,
      );
      await Promise.race([closed, late]);
      timer.abort();
      await closed;
    }
    this.#end(undefined);
  }

  #endError(): ReplicationError {
    return this.#ending?.error ?? this.#lostWords("the connection is closed");
  }

  #lost(thrown: unknown): ReplicationError {
    const { name, address } = this.peer;
    return connectionError(thrown, { peer: `${name} at ${address}`, phase: "session" });
  }

  #lostWords(what: string): ReplicationError {
    return this.#lost(
      new ReplicationError("connection-lost", `${this.peer.name} at ${this.peer.address}, session: ${what}`, {
        details: { peer: this.peer.address, phase: "session" },
      }),
    );
  }
}

function isMalformed({ code }: ReplicationError): boolean {
  return code === "frame-malformed" || code === "message-malformed";
}

function readBuffered(socket: TLSSocket): Uint8Array | undefined {
  const chunk: unknown = socket.read();
  return chunk instanceof Uint8Array ? chunk : undefined;
}
