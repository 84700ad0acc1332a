/**
 * A connection within one process. Frames pass as bytes through the real encoder and decoder, so that an end is trusted no more for being near. Delivery is
 * by promise jobs, in order; the two ends cannot fall silent.
 */
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { createFrameDecoder, encodeFrame, type FrameDecoder } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import type { Link, LinkHandlers, PeerIdentity } from "./link.ts";

export interface LocalPair {
  readonly client: Link;
  readonly server: Link;
}

/** `client`: who the server sees; `server`: who the client sees. */
export function createLocalPair(options: {
  readonly clock: Clock;
  readonly client: PeerIdentity;
  readonly server: PeerIdentity;
}): LocalPair {
  const client = new LocalEnd(options.clock, options.server);
  const server = new LocalEnd(options.clock, options.client);
  client.connect(server);
  server.connect(client);
  return { client, server };
}

interface Piece {
  readonly bytes: Uint8Array;
  /** The other end has consumed the bytes. */
  readonly done: () => void;
  readonly lost: (error: ReplicationError) => void;
}

class LocalEnd implements Link {
  readonly peer: PeerIdentity;
  readonly #clock: Clock;
  #other: LocalEnd | undefined;
  #handlers: LinkHandlers | undefined;
  #decoder: FrameDecoder | undefined;
  /** What the other end sent and this one has not taken yet. */
  #incoming: Piece[] = [];
  #incomingBytes = 0;
  #taking = false;
  #end: { readonly error: ReplicationError | undefined } | undefined;
  #closing: Promise<void> | undefined;
  #sent = 0;
  #received = 0;

  constructor(clock: Clock, peer: PeerIdentity) {
    this.#clock = clock;
    this.peer = peer;
  }

  connect(other: LocalEnd): void {
    this.#other = other;
  }

  get bytesQueued(): number {
    return this.#other?.waitingBytes ?? 0;
  }

  get bytesSent(): number {
    return this.#sent;
  }

  get bytesReceived(): number {
    return this.#received;
  }

  get lastReceived(): number {
    return this.#clock.monotonic();
  }

  get waitingBytes(): number {
    return this.#incomingBytes;
  }

  start(handlers: LinkHandlers): void {
    invariant(this.#handlers === undefined, "a link is started once");
    this.#handlers = handlers;
    this.#decoder = createFrameDecoder({ payloadTarget: handlers.payloadTarget, onFrame: handlers.onFrame });
    if (this.#end !== undefined) this.#tell(handlers, this.#end.error);
    this.#wake();
  }

  send(message: Message, payload?: Uint8Array): boolean {
    const bytes = encodeFrame(message, payload);
    if (this.#isOver) return false;
    // What is lost with the link is told by its end.
    this.#push({ bytes, done: () => undefined, lost: () => undefined });
    return true;
  }

  sendFrame(frame: Uint8Array): Promise<void> {
    if (this.#isOver) return Promise.reject(this.#overError());
    return new Promise((resolve, reject) => {
      this.#push({ bytes: frame, done: resolve, lost: reject });
    });
  }

  close(): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      const ended = (): void => {
        this.#finish(undefined);
        this.#other?.finishLater();
        resolve();
      };
      if (this.#end !== undefined) ended();
      else this.#other?.take({ bytes: new Uint8Array(0), done: ended, lost: ended });
    });
    return this.#closing;
  }

  destroy(error: ReplicationError): void {
    this.#finish(error);
    this.#other?.lose();
  }

  /** From the other end. */
  take(piece: Piece): void {
    if (this.#end !== undefined) {
      piece.lost(this.#overError());
      return;
    }
    this.#incoming.push(piece);
    this.#incomingBytes += piece.bytes.length;
    this.#wake();
  }

  /** The other end closed, and all it had sent was taken. */
  finishLater(): void {
    void Promise.resolve().then(() => {
      this.#finish(undefined);
    });
  }

  lose(): void {
    const { name, address } = this.peer;
    this.#finish(new ReplicationError("connection-lost", `${name} (${address}) ended the connection`));
  }

  #push(piece: Piece): void {
    this.#sent += piece.bytes.length;
    this.#other?.take(piece);
  }

  get #isOver(): boolean {
    return this.#end !== undefined || this.#closing !== undefined;
  }

  #wake(): void {
    if (this.#taking || this.#handlers === undefined) return;
    this.#taking = true;
    void this.#takeAll();
  }

  async #takeAll(): Promise<void> {
    for (;;) {
      await Promise.resolve();
      const piece = this.#end === undefined ? this.#incoming.shift() : undefined;
      if (piece === undefined) break;
      this.#incomingBytes -= piece.bytes.length;
      this.#received += piece.bytes.length;
      try {
        this.#decoder?.push(piece.bytes);
      } catch (thrown) {
        const error = toReplicationError(thrown);
        piece.lost(error);
        this.destroy(error);
        break;
      }
      piece.done();
    }
    this.#taking = false;
  }

  #finish(error: ReplicationError | undefined): void {
    if (this.#end !== undefined) return;
    this.#end = { error };
    const lost = this.#incoming.splice(0);
    this.#incomingBytes = 0;
    for (const piece of lost) piece.lost(this.#overError());
    if (this.#handlers !== undefined) this.#tell(this.#handlers, error);
  }

  #tell(handlers: LinkHandlers, error: ReplicationError | undefined): void {
    void Promise.resolve().then(() => {
      handlers.onEnd(error);
    });
  }

  #overError(): ReplicationError {
    const { name, address } = this.peer;
    return (
      this.#end?.error ?? new ReplicationError("connection-lost", `the connection to ${name} (${address}) is closed`)
    );
  }
}
