/** Requests that were sent and not answered yet. */
import type { ReplicationError } from "../base/errors.ts";
import { ContentCoverage } from "./content-coverage.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { commands } from "./protocol.ts";
import type { StatusPayload } from "./reply-codec.ts";
import type { Cookie } from "./request-codec.ts";
import { violation } from "./violation.ts";

/** What a server answered to a request that failed. */
export interface ServerError {
  readonly error: number;
  readonly message: string;
}

export interface Asked {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  /** Of a read: where its content goes, of this length. */
  readonly target?: Uint8Array;
  /** Of a write: its content, of this length. */
  readonly source?: Uint8Array;
}

/** Undefined: done. Statuses are those of a block status request. */
export interface Answer {
  readonly failure: ServerError | undefined;
  readonly statuses: readonly StatusPayload[];
}

export interface Pending extends Asked {
  readonly cookie: Cookie;
  /** Monotonic milliseconds. */
  readonly since: number;
  /** Of a read. */
  readonly coverage: ContentCoverage | undefined;
  readonly statuses: StatusPayload[];
  /** The first one counts. */
  failure: ServerError | undefined;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: ReplicationError) => void;
}

/** Finds requests by the cookie the server repeats: its low half is a place, its high half counts how often one was used, so that an old cookie is no new one. */
export class PendingRequests {
  readonly #places: (Pending | undefined)[] = Array.from({ length: nbdLimits.clientRequestsMax }, () => undefined);
  readonly #free: number[] = Array.from({ length: nbdLimits.clientRequestsMax }, (_, index) => index);
  #uses = 0;

  get count(): number {
    return this.#places.length - this.#free.length;
  }

  /** At least one place is free: see `nbdLimits.clientRequestsMax`. */
  add(asked: Asked, since: number, settle: Pick<Pending, "resolve" | "reject">): Pending {
    const low = this.#free.pop() ?? 0;
    this.#uses = (this.#uses + 1) >>> 0;
    const { offset, length } = asked;
    const pending: Pending = {
      ...asked,
      cookie: { high: this.#uses, low },
      since,
      coverage: asked.command === commands.read ? new ContentCoverage(offset, offset + length) : undefined,
      statuses: [],
      failure: undefined,
      ...settle,
    };
    this.#places[low] = pending;
    return pending;
  }

  find(high: number, low: number): Pending {
    const pending = this.#places[low];
    if (pending === undefined || pending.cookie.high !== high) throw violation("a reply to no request of ours");
    return pending;
  }

  remove({ cookie: { low } }: Pending): void {
    this.#places[low] = undefined;
    this.#free.push(low);
  }

  /** When the oldest was sent; undefined: there are none. */
  get oldest(): number | undefined {
    let oldest: number | undefined;
    for (const pending of this.#places) {
      if (pending !== undefined && (oldest === undefined || pending.since < oldest)) oldest = pending.since;
    }
    return oldest;
  }

  rejectAll(error: ReplicationError): void {
    for (const pending of this.#places) {
      if (pending === undefined) continue;
      this.remove(pending);
      pending.reject(error);
    }
  }
}
