/**
 * The sender's end of one session: handshake, requests with their answers, credit, and the commit. Knows nothing of images.
 * Everything pending is rejected with the first failure; {@link SenderSession.signal} fires with it.
 */
import { setMaxListeners } from "node:events";
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { PagedBits } from "../base/paged-bits.ts";
import { blockCount } from "../base/units.ts";
import type { Link } from "../transport/link.ts";
import type { DecodedFrame } from "../wire/frame.ts";
import { fromErrorMessage, toErrorMessage } from "../wire/error-message.ts";
import { settle } from "../wire/handshake.ts";
import type {
  AskBlocks,
  AskPages,
  AskParts,
  Commit,
  Data,
  Durable,
  Hello,
  Message,
  Open,
  Opened,
  Synced,
  Zero,
} from "../wire/messages.ts";
import { createSessionRules, type SessionRules } from "../wire/session-rules.ts";
import { watchLiveness } from "./liveness.ts";

type Single = "hello" | "opened" | "durable" | "synced";

interface Deferred<T> {
  readonly resolve: (value: T) => void;
  readonly reject: (error: unknown) => void;
}

/** Page digests as the receiver gave them. */
export interface PagesAnswer {
  readonly first: number;
  readonly count: number;
  readonly payload: Uint8Array;
}

/** Block digests of some of the pages that were asked, as the receiver gave them. */
export interface BlocksAnswer {
  readonly count: number;
  readonly payload: Uint8Array;
}

export interface SenderSessionOptions {
  readonly clock: Clock;
  /** Makes a connection; called once for each. */
  readonly connect: (signal: AbortSignal) => Promise<Link>;
  readonly connections: number;
  readonly hello: Hello;
  /** The receiver wants blocks whole: blocks of the disk, each once in a session. */
  readonly onRepeat: (blocks: readonly number[]) => void;
  readonly beat: () => { readonly bytes: number; readonly phase: string };
  /** Called with each control frame the work needs: what opens, asks and commits. */
  readonly onControl?: (message: Message) => void;
  readonly signal: AbortSignal;
}

export class SenderSession {
  readonly #options: SenderSessionOptions;
  readonly #rules: SessionRules = createSessionRules("sender");
  readonly #links: Link[] = [];
  readonly #frames: number[] = [];
  readonly #singles = new Map<Single, Deferred<never>>();
  readonly #requests = new Map<
    number,
    { left: number; readonly deferred: Deferred<never>; readonly parts: DecodedFrame[] }
  >();
  readonly #creditWaiters: Deferred<void>[] = [];
  readonly #abort = new AbortController();
  /** Blocks the receiver has asked for whole; undefined: none of a disk that is not open. */
  #repeats: PagedBits | undefined;
  #credit = 0;
  #nextRequest = 1;
  #durable: Promise<Durable> | undefined;
  #synced: Promise<Synced> | undefined;
  #stopWatching: (() => void) | undefined;
  /** What the peer last said it was busy with. */
  peerPhase = "";
  #ended = false;

  constructor(options: SenderSessionOptions) {
    this.#options = options;
    // Everything that waits listens: as many as there are pieces under way, and no leak.
    setMaxListeners(0, this.#abort.signal);
  }

  /** Fires when the session fails or is stopped, with the reason. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  get wireBytes(): number {
    return this.#links.reduce((sum, link) => sum + link.bytesSent + link.bytesReceived, 0);
  }

  /** Connects, agrees on a version, opens the disk. */
  async open(open: Open): Promise<Opened> {
    const { signal } = this.#options;
    signal.throwIfAborted();
    signal.addEventListener("abort", this.#onAbort, { once: true });
    const first = await this.#connect();
    this.#stopWatching = watchLiveness({
      clock: this.#options.clock,
      links: () => this.#links,
      beat: this.#options.beat,
      onSilent: (error) => {
        this.fail(error);
      },
    });
    const answer = await this.#greet(first, this.#options.hello, 0);
    for (let connection = 1; connection < this.#options.connections; connection++) {
      const link = await this.#connect();
      const token = answer.token ?? "";
      await this.#greet(link, { ...this.#options.hello, join: { token, connection } }, connection);
    }
    const opened = this.#await<Opened>("opened");
    this.#send(open);
    const result = await opened;
    this.#credit = result.credit;
    this.#repeats = new PagedBits(blockCount({ ...result, sizeBytes: open.sizeBytes }));
    return result;
  }

  async #greet(link: Link, hello: Hello, connection: number): Promise<Hello> {
    const waiting = this.#await<Hello>("hello");
    this.#rules.sent(hello, connection);
    link.send(hello);
    const answer = await waiting;
    settle(hello, answer);
    return answer;
  }

  async #connect(): Promise<Link> {
    const number = this.#links.length;
    const link = await this.#options.connect(this.#abort.signal);
    if (this.#abort.signal.aborted) {
      link.destroy(toReplicationError(this.#abort.signal.reason));
      throw this.#abort.signal.reason;
    }
    this.#links.push(link);
    this.#frames.push(0);
    link.start({
      payloadTarget: (_message, bytes) => Buffer.allocUnsafe(bytes),
      onFrame: (frame) => {
        this.#receive(frame, number);
      },
      onEnd: (error) => {
        if (this.#ended) return;
        const peer = `${link.peer.name} (${link.peer.address})`;
        this.fail(
          error ??
            new ReplicationError("connection-lost", `${peer} closed connection ${number} before the work was done`),
        );
      },
    });
    return link;
  }

  /** One answer frame for a page request. */
  async askPages(first: number, count: number): Promise<PagesAnswer> {
    const [frame] = await this.#ask({ type: "ask-pages", request: this.#nextRequest++, first, count }, 1);
    const message = frame?.message;
    if (message?.type !== "pages" || message.first !== first || message.count !== count) {
      throw new ReplicationError(
        "protocol-violation",
        "the receiver answered another question than the one asked (pages)",
      );
    }
    return { first, count, payload: frame?.payload ?? new Uint8Array(0) };
  }

  /** Block digests of pages, in the order asked: some pages an answer. */
  async askBlocks(pages: readonly number[]): Promise<readonly BlocksAnswer[]> {
    const frames = await this.#ask({ type: "ask-blocks", request: this.#nextRequest++, pages }, pages.length);
    let done = 0;
    return frames.map(({ message, payload }) => {
      if (message.type !== "blocks" || message.page !== pages[done]) {
        throw new ReplicationError(
          "protocol-violation",
          "the receiver answered another question than the one asked (blocks)",
        );
      }
      done += message.count;
      return { count: message.count, payload };
    });
  }

  /** Payload of the answer: see the message `parts`. */
  async askParts(blocks: readonly number[]): Promise<Uint8Array> {
    const [frame] = await this.#ask({ type: "ask-parts", request: this.#nextRequest++, blocks }, 1);
    if (frame?.message.type !== "parts" || frame.message.count !== blocks.length) {
      throw new ReplicationError(
        "protocol-violation",
        "the receiver answered another question than the one asked (parts)",
      );
    }
    return frame.payload;
  }

  #ask(message: AskPages | AskBlocks | AskParts, answers: number): Promise<readonly DecodedFrame[]> {
    return new Promise((resolve, reject) => {
      if (this.#abort.signal.aborted) {
        reject(this.#abort.signal.reason);
        return;
      }
      const deferred = { resolve, reject } as unknown as Deferred<never>;
      this.#requests.set(message.request, { left: answers, deferred, parts: [] });
      this.#send(message);
    });
  }

  /** Resolves when one more data or zero frame may be sent, in the order of asking. */
  takeCredit(): Promise<void> {
    if (this.#abort.signal.aborted) return Promise.reject(this.#abort.signal.reason);
    if (this.#credit > 0 && this.#creditWaiters.length === 0) {
      this.#credit--;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      this.#creditWaiters.push({ resolve, reject });
    });
  }

  /** From the first commit on nothing is asked any more. */
  get committing(): boolean {
    return this.#rules.state === "committing";
  }

  /** Credits not used: 0 means the receiver sets the pace. */
  get credit(): number {
    return this.#credit;
  }

  /** Sends a data frame that lies ready as one array; one credit must have been taken. The array is on loan until the promise settles. */
  sendData(message: Data, frame: Uint8Array): Promise<void> {
    let best = 0;
    for (const [number, link] of this.#links.entries()) {
      if (link.bytesQueued < (this.#links[best]?.bytesQueued ?? 0)) best = number;
    }
    const link = this.#links[best];
    invariant(link !== undefined, "a session has a connection");
    this.#frames[best] = (this.#frames[best] ?? 0) + 1;
    this.#rules.sent(message, best);
    return link.sendFrame(frame);
  }

  /** One credit must have been taken. */
  sendZero(message: Zero): void {
    this.#frames[0] = (this.#frames[0] ?? 0) + 1;
    this.#send(message);
  }

  /** Asks for the commit. Resolves with `durable`. May be called again after repeats: the last call counts. */
  commit(commit: Omit<Commit, "type" | "frames">): Promise<Durable> {
    const answer = (this.#durable ??= this.#await<Durable>("durable"));
    this.#send({ type: "commit", frames: [...this.#frames], ...commit });
    return answer;
  }

  /** As {@link commit}, in its place: what was sent is kept, and no point is made. Resolves with `synced`. */
  pass(root: Uint8Array): Promise<Synced> {
    const answer = (this.#synced ??= this.#await<Synced>("synced"));
    this.#send({ type: "pass", frames: [...this.#frames], root });
    return answer;
  }

  #send(message: Message): void {
    this.#rules.sent(message);
    this.#first.send(message);
    if (message.type !== "zero") this.#options.onControl?.(message);
  }

  get #first(): Link {
    const link = this.#links[0];
    invariant(link !== undefined, "a session has a connection");
    return link;
  }

  #await<T>(type: Single): Promise<T> {
    const answer = new Promise<T>((resolve, reject) => {
      if (this.#abort.signal.aborted) {
        reject(this.#abort.signal.reason);
        return;
      }
      invariant(!this.#singles.has(type), "one answer is awaited once");
      this.#singles.set(type, { resolve, reject } as unknown as Deferred<never>);
    });
    answer.catch(() => {
      // Whoever awaits it sees it; nobody does when the question itself could not be sent, which is the error to tell.
    });
    return answer;
  }

  #receive(frame: DecodedFrame, connection: number): void {
    if (this.#ended) return;
    const { message } = frame;
    this.#rules.received(message, connection);
    switch (message.type) {
      case "hello":
      case "opened":
      case "durable":
      case "synced":
        this.#settleSingle(message.type, message);
        return;
      case "pages":
      case "blocks":
      case "parts":
        this.#settleRequest(message.request, frame);
        return;
      case "grant":
        this.#grant(message.frames);
        return;
      case "ask-repeat":
        this.#repeat(message.blocks);
        return;
      case "heartbeat":
        this.peerPhase = message.phase;
        return;
      case "error":
        throw fromErrorMessage(message);
      case "bye":
        return;
      default:
        throw new ReplicationError(
          "protocol-violation",
          `the receiver sent ${message.type}, which only a sender sends`,
        );
    }
  }

  #settleSingle(type: Single, message: Message): void {
    const waiting = this.#singles.get(type);
    if (waiting === undefined) {
      throw new ReplicationError("protocol-violation", `the receiver sent ${type} at a moment when none is expected`);
    }
    this.#singles.delete(type);
    waiting.resolve(message as never);
  }

  #settleRequest(id: number, frame: DecodedFrame): void {
    const request = this.#requests.get(id);
    if (request === undefined) {
      throw new ReplicationError("protocol-violation", `the receiver answered request ${id}, which is not open`);
    }
    request.parts.push(frame);
    request.left -= frame.message.type === "blocks" ? frame.message.count : 1;
    if (request.left > 0) return;
    if (request.left < 0) {
      throw new ReplicationError("protocol-violation", `the receiver gave more to request ${id} than it was asked for`);
    }
    this.#requests.delete(id);
    request.deferred.resolve(request.parts as never);
  }

  /** Judged as it arrives: when a block can be sent is for the receiver to say, and what waits until then must be bounded. */
  #repeat(blocks: readonly number[]): void {
    const asked = this.#repeats;
    for (const block of blocks) {
      if (asked !== undefined && block < asked.size && asked.add(block)) continue;
      throw new ReplicationError(
        "protocol-violation",
        `the receiver asks for block ${block} whole, which there is not, or a second time`,
      );
    }
    this.#options.onRepeat(blocks);
  }

  #grant(frames: number): void {
    this.#credit += frames;
    if (this.#credit > limits.creditFramesMax) {
      throw new ReplicationError(
        "protocol-violation",
        `the receiver granted more than ${limits.creditFramesMax} frames`,
      );
    }
    while (this.#credit > 0) {
      const waiter = this.#creditWaiters.shift();
      if (waiter === undefined) return;
      this.#credit--;
      waiter.resolve();
    }
  }

  readonly #onAbort = (): void => {
    this.fail(toReplicationError(this.#options.signal.reason, "aborted"));
  };

  /** Ends the session with an error; the peer is told. Idempotent: the first error stays. */
  fail(error: ReplicationError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#release();
    this.#abort.abort(error);
    for (const link of this.#links) {
      if (!error.remote && error.code !== "connection-lost") {
        link.send(toErrorMessage(error));
        void link.close();
      } else {
        link.destroy(error);
      }
    }
    for (const waiting of this.#singles.values()) waiting.reject(error);
    for (const request of this.#requests.values()) request.deferred.reject(error);
    for (const waiter of this.#creditWaiters) waiter.reject(error);
    this.#singles.clear();
    this.#requests.clear();
    this.#creditWaiters.length = 0;
  }

  /** An orderly end after the work was done. Nothing depends on its success. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#release();
    for (const link of this.#links) link.send({ type: "bye" });
    await Promise.all(this.#links.map((link) => link.close()));
    this.#abort.abort(new ReplicationError("aborted", "the session is over"));
  }

  #release(): void {
    this.#stopWatching?.();
    this.#options.signal.removeEventListener("abort", this.#onAbort);
  }
}
