/** One connection to a server, past its negotiation: many requests under way, replies in any order. */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { Gate } from "../base/gate.ts";
import type { Negotiated } from "./client-negotiation.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { type Answer, type Asked, type Pending, PendingRequests } from "./pending-requests.ts";
import { commands } from "./protocol.ts";
import { ReplyReader } from "./reply-reader.ts";
import { encodeRequest, requestHeadBytes } from "./request-codec.ts";
import { violation } from "./violation.ts";

/** How often the age of requests is looked at. */
const lookMillis = 1_000;

export class ClientConnection {
  readonly negotiated: Negotiated;
  readonly #name: string;
  readonly #clock: Clock;
  readonly #pending = new PendingRequests();
  readonly #gate = new Gate(nbdLimits.clientRequestsMax);
  readonly #stopLooking: () => void;
  #ending: ReplicationError | undefined;

  /** Takes the stream over. `name`: for messages. */
  constructor(negotiated: Negotiated, { name, clock }: { readonly name: string; readonly clock: Clock }) {
    this.negotiated = negotiated;
    this.#name = name;
    this.#clock = clock;
    const reader = new ReplyReader({
      pending: this.#pending,
      structured: negotiated.structured,
      onDone: (pending) => this.#done(pending),
      onEnd: (error) => this.#end(error ?? this.#lost("the server closed the connection")),
    });
    this.#stopLooking = clock.every(lookMillis, () => this.#look());
    reader.push(negotiated.ahead());
    negotiated.stream.receive(reader);
  }

  /** Requests under way, for choosing among connections. */
  get load(): number {
    return this.#pending.count;
  }

  get isOver(): boolean {
    return this.#ending !== undefined;
  }

  /**
   * Sends a request when one of the places is free, and resolves with what the server says of it. `target` and `source` are on loan until then. Rejects when the
   * connection is over: `connection-lost`, `peer-silent`, `protocol-violation`.
   */
  async request(asked: Asked): Promise<Answer> {
    await this.#gate.enter();
    try {
      return await this.#send(asked);
    } finally {
      this.#gate.leave();
    }
  }

  /** Says goodbye. Requests under way are rejected; what they borrowed is not touched any more. */
  close(): void {
    if (this.#ending !== undefined) return;
    const { stream } = this.negotiated;
    const busy = this.#pending.count > 0;
    this.#end(this.#lost("the connection is closed"));
    if (busy) {
      stream.destroy();
      return;
    }
    const head = Buffer.alloc(requestHeadBytes);
    encodeRequest({ command: commands.disconnect, flags: 0, high: 0, low: 0, offset: 0, length: 0 }, head, 0);
    stream.write([head]);
    stream.close();
  }

  #send(asked: Asked): Promise<Answer> {
    const { stream } = this.negotiated;
    if (this.#ending !== undefined) return Promise.reject(this.#ending);
    return new Promise((resolve, reject) => {
      const { cookie, command, flags, offset, length, source } = this.#pending.add(asked, this.#clock.monotonic(), {
        resolve,
        reject,
      });
      const head = Buffer.allocUnsafe(requestHeadBytes);
      encodeRequest({ ...cookie, command, flags, offset, length }, head, 0);
      stream.write(source === undefined ? [head] : [head, source]);
    });
  }

  #done(pending: Pending): void {
    const { command, coverage, failure, statuses } = pending;
    if (failure === undefined && command === commands.read && coverage?.complete !== true) {
      throw violation("a reply that ends before its content");
    }
    if (failure === undefined && command === commands.blockStatus && statuses.length === 0) {
      throw violation("a block status that says nothing");
    }
    this.#pending.remove(pending);
    pending.resolve({ failure, statuses });
  }

  #look(): void {
    const oldest = this.#pending.oldest;
    if (oldest === undefined || this.#clock.monotonic() - oldest < nbdLimits.requestMillis) return;
    const text = `${this.#name}: no answer to a request within ${nbdLimits.requestMillis / 1000} s`;
    this.negotiated.stream.destroy(new ReplicationError("peer-silent", text));
  }

  #lost(what: string): ReplicationError {
    return new ReplicationError("connection-lost", what);
  }

  #end(error: ReplicationError): void {
    if (this.#ending !== undefined) return;
    this.#ending = named(error, this.#name);
    this.#stopLooking();
    this.#pending.rejectAll(this.#ending);
  }
}

/** An error of this connection with its address in front. */
export function named(error: ReplicationError, name: string): ReplicationError {
  if (error.message.startsWith(name)) return error;
  const { code, message, details, remote } = error;
  return new ReplicationError(code, `${name}: ${message}`, {
    cause: error,
    details: { ...details, peer: name },
    remote,
  });
}
