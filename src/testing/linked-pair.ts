/**
 * Two links that are each other's other side, in memory: frames travel as bytes, through the real encoder and decoder, by promise jobs alone (and by the
 * clock where they are delayed or slowed), so that a run repeats exactly. Faults are asked for by byte, per direction.
 */
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { Link, LinkHandlers, PeerIdentity } from "../transport/link.ts";
import { createFrameDecoder, encodeFrame, type FrameDecoder } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import { createFakeClock } from "./fake-clock.ts";

/** What can go wrong on the way in one direction. Offsets count the direction's bytes from the start of the connection. */
export interface LinkFaults {
  /** Bytes delivered so far. */
  readonly delivered: number;
  /** Resets the connection, at both ends, when this many bytes have been delivered; at once when they have been. */
  cutAfter(bytes: number): void;
  /** Delivers nothing from this many bytes on (default: from now), not even the end: a half-open connection. */
  stallAfter(bytes?: number): void;
  /** Delivers again what was held back. */
  resume(): void;
  /** The byte at `offset`, if still to come, arrives changed: exclusive or with `mask` (default 0xff). */
  corruptAt(offset: number, mask?: number): void;
  /** What is sent from now on arrives this many milliseconds later, in order; 0: at once. A reset is not delayed: what was on the way is lost. */
  delay(millis: number): void;
  /** From now on at most this many bytes a second arrive, chunk by chunk; infinity: no limit. */
  slow(bytesPerSecond: number): void;
}

export interface LinkedPair {
  readonly client: Link;
  readonly server: Link;
  readonly toServer: LinkFaults;
  readonly toClient: LinkFaults;
}

export interface LinkedPairOptions {
  /** For `lastReceived`, the wait of `close`, `delay` and `slow`. Default: a fake clock that stands still. */
  readonly clock?: Clock;
  /** Who the server sees; default `client` of an authority made by `replicate pki`. */
  readonly client?: Partial<PeerIdentity>;
  /** Who the client sees; default `server`. */
  readonly server?: Partial<PeerIdentity>;
  /** Bytes delivered at a time; default 16 KiB, a TLS record. */
  readonly chunkBytes?: number;
}

const closeMillis = 2_000;
/** Above this much `send` returns false. */
const queueMark = 64 * KIB;

export function createLinkedPair(options: LinkedPairOptions = {}): LinkedPair {
  const clock = options.clock ?? createFakeClock();
  const chunkBytes = options.chunkBytes ?? 16 * KIB;
  invariant(chunkBytes > 0, "bytes are delivered in chunks of some size");
  const toServer = new Pipe(clock, chunkBytes);
  const toClient = new Pipe(clock, chunkBytes);
  const client = new LinkedEnd(clock, identity("server", options.server), toServer);
  const server = new LinkedEnd(clock, identity("client", options.client), toClient);
  toServer.connect(client, server);
  toClient.connect(server, client);
  return { client, server, toServer, toClient };
}

function identity(name: string, given: Partial<PeerIdentity> = {}): PeerIdentity {
  const fingerprint = Array.from({ length: 32 }, () => (name === "client" ? "C1" : "5E")).join(":");
  return { name, fingerprint, address: `linked:${name}`, ownAuthority: true, ...given };
}

interface Piece {
  readonly bytes: Uint8Array;
  /** Called when the other side has consumed the bytes. */
  readonly done: () => void;
}

/** A piece, and the time before which it does not arrive. */
interface Sent extends Piece {
  readonly at: number;
}

/** One direction. Like the TLS link, control frames overtake the frames that wait, but never one under way. */
class Pipe implements LinkFaults {
  delivered = 0;
  readonly #chunkBytes: number;
  readonly #time: PipeTime;
  #from: LinkedEnd | undefined;
  #to: LinkedEnd | undefined;
  #control: Sent[] = [];
  #frames: Sent[] = [];
  #current: { readonly piece: Piece; offset: number } | undefined;
  /** When the end arrives, if it was asked for. */
  #finAt: number | undefined;
  #delayMillis = 0;
  #bytesPerSecond = Number.POSITIVE_INFINITY;
  /** When the chunk that is under way has arrived. */
  #chunkAt: number | undefined;
  #running = false;
  #dead = false;
  #cutAt = Number.POSITIVE_INFINITY;
  #stallAt = Number.POSITIVE_INFINITY;
  readonly #corrupt = new Map<number, number>();

  constructor(clock: Clock, chunkBytes: number) {
    this.#chunkBytes = chunkBytes;
    this.#time = new PipeTime(clock, () => {
      this.wake();
    });
  }

  connect(from: LinkedEnd, to: LinkedEnd): void {
    this.#from = from;
    this.#to = to;
    to.listenTo(this);
  }

  get queued(): number {
    const { piece, offset = 0 } = this.#current ?? {};
    const waiting = [...this.#control, ...this.#frames].reduce((sum, { bytes }) => sum + bytes.length, 0);
    return waiting + (piece?.bytes.length ?? 0) - offset;
  }

  get stalled(): boolean {
    return this.delivered >= this.#stallAt;
  }

  cutAfter(bytes: number): void {
    this.#cutAt = bytes;
    this.wake();
  }

  stallAfter(bytes = this.delivered): void {
    this.#stallAt = bytes;
  }

  resume(): void {
    this.#stallAt = Number.POSITIVE_INFINITY;
    this.wake();
  }

  corruptAt(offset: number, mask = 0xff): void {
    this.#corrupt.set(offset, mask);
  }

  delay(millis: number): void {
    this.#delayMillis = millis;
  }

  slow(bytesPerSecond: number): void {
    invariant(bytesPerSecond > 0, "a link without any bytes is a stalled one");
    this.#bytesPerSecond = bytesPerSecond;
    this.#chunkAt = undefined;
    this.wake();
  }

  push(kind: "control" | "frame", piece: Piece): void {
    (kind === "control" ? this.#control : this.#frames).push({ ...piece, at: this.#time.now + this.#delayMillis });
    this.wake();
  }

  fin(): void {
    this.#finAt ??= this.#time.now + this.#delayMillis;
    this.wake();
  }

  /** The sending end is gone: what it had queued is lost, and the other side is told unless nothing gets through. */
  reset(): void {
    if (this.#dead) return;
    this.#die();
    this.#control = [];
    this.#frames = [];
    if (!this.stalled) void Promise.resolve().then(() => this.#to?.lose("the other side reset the connection"));
  }

  wake(): void {
    if (this.#running) return;
    this.#running = true;
    void this.#run();
  }

  async #run(): Promise<void> {
    try {
      do await Promise.resolve();
      while (this.#step());
    } finally {
      this.#running = false;
    }
  }

  /** Delivers one chunk; false when there is nothing to do until the next `wake`. */
  #step(): boolean {
    const to = this.#to;
    if (this.#dead || to === undefined) return false;
    if (this.delivered >= this.#cutAt) {
      this.#die();
      this.#from?.lose("the connection was reset");
      to.lose("the connection was reset");
      return false;
    }
    if (!to.reading || this.stalled) return false;
    const next = this.#current?.piece ?? this.#arrived(this.#control) ?? this.#arrived(this.#frames);
    if (next === undefined) {
      this.#stepWithoutPiece(to);
      return false;
    }
    this.#current ??= { piece: next, offset: 0 };
    const { offset } = this.#current;
    const until = Math.min(this.#cutAt, this.#stallAt) - this.delivered;
    const end = Math.min(next.bytes.length, offset + Math.min(this.#chunkBytes, until));
    this.#chunkAt ??= this.#time.now + ((end - offset) * 1000) / this.#bytesPerSecond;
    if (this.#time.isBefore(this.#chunkAt)) return false;
    this.#chunkAt = undefined;
    const chunk = this.#onTheWay(next.bytes.subarray(offset, end));
    this.delivered += chunk.length;
    this.#current.offset = end;
    to.receive(chunk);
    if (end === next.bytes.length) {
      this.#current = undefined;
      next.done();
    }
    return true;
  }

  /** The first of the queue, when its time has come. */
  #arrived(queue: Sent[]): Sent | undefined {
    const first = queue[0];
    return first === undefined || this.#time.isBefore(first.at) ? undefined : queue.shift();
  }

  /** The end is behind everything that was sent. */
  #stepWithoutPiece(to: LinkedEnd): void {
    if (this.#finAt === undefined || this.#control.length + this.#frames.length > 0) return;
    if (this.#time.isBefore(this.#finAt)) return;
    this.#die();
    to.peerEnded();
  }

  #die(): void {
    this.#dead = true;
    this.#time.stop();
  }

  #onTheWay(chunk: Uint8Array): Uint8Array {
    const hits = [...this.#corrupt].filter(([at]) => at >= this.delivered && at < this.delivered + chunk.length);
    if (hits.length === 0) return chunk;
    const changed = Uint8Array.from(chunk);
    for (const [at, mask] of hits) {
      const index = at - this.delivered;
      changed[index] = (changed[index] ?? 0) ^ mask;
    }
    return changed;
  }
}

/** The clock as one direction sees it: a wait that has ended has taken its time, whatever the clock shows then (a timer may be early, a test's clock hasty). */
class PipeTime {
  readonly #clock: Clock;
  readonly #onTime: () => void;
  #reached = Number.NEGATIVE_INFINITY;
  #wait: { readonly at: number; readonly abort: AbortController } | undefined;

  constructor(clock: Clock, onTime: () => void) {
    this.#clock = clock;
    this.#onTime = onTime;
  }

  get now(): number {
    return Math.max(this.#clock.monotonic(), this.#reached);
  }

  /** When it is, `onTime` is called once `at` has come, unless something earlier is asked for. */
  isBefore(at: number): boolean {
    const millis = at - this.now;
    if (millis <= 0) return false;
    if (this.#wait === undefined || at < this.#wait.at) this.#start(at, millis);
    return true;
  }

  stop(): void {
    this.#wait?.abort.abort();
    this.#wait = undefined;
  }

  #start(at: number, millis: number): void {
    this.stop();
    const wait = { at, abort: new AbortController() };
    this.#wait = wait;
    const onEnd = (): void => {
      if (this.#wait !== wait) return;
      this.#wait = undefined;
      this.#reached = at;
      this.#onTime();
    };
    // Aborted: something earlier is waited for, or nothing any more.
    void this.#clock.sleep(millis, wait.abort.signal).then(onEnd, () => undefined);
  }
}

class LinkedEnd implements Link {
  readonly peer: PeerIdentity;
  readonly #clock: Clock;
  readonly #out: Pipe;
  #in: Pipe | undefined;
  #handlers: LinkHandlers | undefined;
  #decoder: FrameDecoder | undefined;
  #ending: { readonly error: ReplicationError | undefined } | undefined;
  #closing: Promise<void> | undefined;
  #peerHasEnded = false;
  #onPeerEnd: (() => void) | undefined;
  readonly #waiting = new Set<(error: ReplicationError) => void>();
  #received = 0;
  #lastReceived: number;

  constructor(clock: Clock, peer: PeerIdentity, out: Pipe) {
    this.#clock = clock;
    this.peer = peer;
    this.#out = out;
    this.#lastReceived = clock.monotonic();
  }

  get bytesQueued(): number {
    return this.#out.queued;
  }

  get bytesSent(): number {
    return this.#out.delivered;
  }

  get bytesReceived(): number {
    return this.#received;
  }

  get lastReceived(): number {
    return this.#lastReceived;
  }

  /** Bytes may be delivered: a link that is over reads on and throws away, so that the other side sees its end. */
  get reading(): boolean {
    return this.#handlers !== undefined || this.#isOver;
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
    if (this.#ending !== undefined) this.#report(handlers, this.#ending.error);
    this.#in?.wake();
  }

  send(message: Message, payload?: Uint8Array): boolean {
    const bytes = encodeFrame(message, payload);
    if (this.#isOver) return false;
    this.#out.push("control", { bytes, done: () => undefined });
    return this.#out.queued <= queueMark;
  }

  sendFrame(frame: Uint8Array): Promise<void> {
    if (this.#isOver) return Promise.reject(this.#endError());
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject);
      this.#out.push("frame", {
        bytes: frame,
        done: () => {
          this.#waiting.delete(reject);
          resolve();
        },
      });
    });
  }

  close(): Promise<void> {
    this.#closing ??= this.#finish();
    return this.#closing;
  }

  destroy(error: ReplicationError): void {
    this.#end(error);
  }

  receive(chunk: Uint8Array): void {
    this.#received += chunk.length;
    this.#lastReceived = this.#clock.monotonic();
    if (this.#isOver) return;
    try {
      this.#decoder?.push(chunk);
    } catch (thrown) {
      if (!this.#isOver) this.#end(toReplicationError(thrown));
    }
  }

  peerEnded(): void {
    this.#peerHasEnded = true;
    this.#onPeerEnd?.();
    const halfway = this.#decoder?.atBoundary === false && !this.#isOver;
    if (halfway) this.lose("the other side closed the connection in the middle of a frame");
    else this.#end(undefined);
  }

  lose(what: string): void {
    this.#onPeerEnd?.();
    const { name, address } = this.peer;
    this.#end(
      new ReplicationError("connection-lost", `${name} at ${address}, session: ${what}`, {
        details: { peer: address, phase: "session" },
      }),
    );
  }

  /** The pipe towards this end. */
  listenTo(pipe: Pipe): void {
    this.#in = pipe;
  }

  get #isOver(): boolean {
    return this.#ending !== undefined || this.#closing !== undefined;
  }

  #stopWhenOver(): void {
    if (this.#isOver) throw this.#endError();
  }

  #end(error: ReplicationError | undefined): void {
    if (this.#ending !== undefined) return;
    this.#ending = { error };
    if (error === undefined) void this.close();
    else {
      this.#rejectWaiting();
      this.#out.reset();
    }
    this.#in?.wake();
    if (this.#handlers !== undefined) this.#report(this.#handlers, error);
  }

  #report(handlers: LinkHandlers, error: ReplicationError | undefined): void {
    void Promise.resolve().then(() => handlers.onEnd(error));
  }

  #rejectWaiting(): void {
    for (const reject of this.#waiting) reject(this.#endError());
    this.#waiting.clear();
  }

  async #finish(): Promise<void> {
    const timer = new AbortController();
    this.#out.fin();
    this.#in?.wake();
    if (!this.#peerHasEnded && this.#ending?.error === undefined) {
      const ended = new Promise<void>((resolve) => {
        this.#onPeerEnd = resolve;
      });
      const late = this.#clock.sleep(closeMillis, timer.signal).then(
        () => undefined,
        // Aborted below: the other side ended in time.
        () => undefined,
      );
      await Promise.race([ended, late]);
      timer.abort();
      if (!this.#peerHasEnded) this.#out.reset();
    }
    this.#end(undefined);
    this.#rejectWaiting();
  }

  #endError(): ReplicationError {
    const { name, address } = this.peer;
    return (
      this.#ending?.error ?? new ReplicationError("connection-lost", `${name} at ${address}: the connection is closed`)
    );
  }
}
