/**
 * The connections of a listener that have not shown who they are: few, and not for long. Who connects and says nothing costs one slot until
 * its time is over or until somebody newer wants it, and nothing else.
 */
import type { Socket } from "node:net";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { connectionError, timeoutError } from "./connection-errors.ts";

export interface PendingOptions {
  readonly max: number;
  readonly handshakeMillis: number;
  readonly clock: Clock;
  /** Once for each connection that did not get through. */
  readonly onRejected: (error: ReplicationError, address: string) => void;
}

interface Pending {
  readonly raw: Socket;
  readonly address: string;
  /** Monotonic milliseconds. */
  readonly since: number;
  /** Told why already; stays counted until its socket is closed. */
  rejected: boolean;
  readonly onClose: () => void;
}

const phase = "TLS handshake";

export class PendingHandshakes {
  readonly #options: PendingOptions;
  /** By address, which is unique among open connections of a listener; oldest first. */
  readonly #entries = new Map<string, Pending>();
  readonly #stop: () => void;

  constructor(options: PendingOptions) {
    this.#options = options;
    const look = Math.min(1_000, Math.max(10, Math.floor(options.handshakeMillis / 4)));
    this.#stop = options.clock.every(look, () => this.#sweep());
  }

  get count(): number {
    return this.#entries.size;
  }

  add(address: string, raw: Socket): void {
    const { max, clock } = this.#options;
    if (this.#entries.size >= max) {
      const [oldest] = this.#entries.values();
      if (oldest !== undefined) {
        const text = `${oldest.address}, ${phase}: closed to make room, ${max} newer connections have not finished theirs either`;
        this.#drop(
          oldest,
          new ReplicationError("handshake-timeout", text, { details: { peer: oldest.address, phase } }),
        );
      }
    }
    const onClose = (): void => {
      const error = new ReplicationError(
        "connection-lost",
        `${address}, ${phase}: the other side closed the connection`,
        {
          details: { peer: address, phase },
        },
      );
      this.#reject(entry, error);
      this.#entries.delete(address);
    };
    const entry: Pending = { raw, address, since: clock.monotonic(), rejected: false, onClose };
    raw.once("close", onClose);
    this.#entries.set(address, entry);
  }

  /** The connection is through: its TCP socket, or undefined when it was rejected meanwhile. */
  admit(address: string): Socket | undefined {
    const entry = this.#entries.get(address);
    if (entry === undefined || entry.rejected) return undefined;
    entry.raw.off("close", entry.onClose);
    this.#entries.delete(address);
    return entry.raw;
  }

  /** Says why; the connection counts until its socket is closed. */
  reject(address: string, thrown: unknown): void {
    const entry = this.#entries.get(address);
    // Without an entry its end has been reported by `onClose` or `#drop`.
    if (entry !== undefined) this.#reject(entry, connectionError(thrown, { peer: address, phase }));
  }

  close(): void {
    this.#stop();
    const error = new ReplicationError("receiver-stopping", "this side is stopping");
    for (const entry of [...this.#entries.values()]) this.#drop(entry, error);
  }

  #reject(entry: Pending, error: ReplicationError): void {
    if (entry.rejected) return;
    entry.rejected = true;
    this.#options.onRejected(error, entry.address);
  }

  #drop(entry: Pending, error: ReplicationError): void {
    this.#reject(entry, error);
    entry.raw.off("close", entry.onClose);
    this.#entries.delete(entry.address);
    entry.raw.destroy();
  }

  #sweep(): void {
    const { clock, handshakeMillis } = this.#options;
    const now = clock.monotonic();
    for (const entry of [...this.#entries.values()]) {
      if (now - entry.since < handshakeMillis) return;
      this.#drop(entry, timeoutError({ peer: entry.address, phase }, handshakeMillis));
    }
  }
}
