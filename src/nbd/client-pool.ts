/** The connections of one client: as many as the server allows and are of use, made again when they are lost. */
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { connectNbd, type NbdTarget } from "./client-connect.ts";
import type { ClientConnection } from "./client-connection.ts";
import type { Negotiated } from "./client-negotiation.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { exportFlags } from "./protocol.ts";
import { formatNbdUri } from "./nbd-uri.ts";

export interface ClientPoolOptions extends NbdTarget {
  readonly log: Logger;
  /** Connect again when all connections are lost: only where nothing written can be lost with them. */
  readonly reconnects: boolean;
}

/** What is fixed for the life of a client: the first connection tells, all others must say the same. */
export type ExportFacts = Pick<Negotiated, "info" | "blocks" | "structured" | "contexts">;

export class ClientPool {
  readonly facts: ExportFacts;
  readonly #o: ClientPoolOptions;
  readonly #wanted: readonly string[];
  readonly #stop = new AbortController();
  #connections: ClientConnection[];
  #connecting: Promise<void> | undefined;
  #extras: Promise<void> | undefined;
  #lost: ReplicationError | undefined;

  private constructor(options: ClientPoolOptions, wanted: readonly string[], first: ClientConnection) {
    this.#o = options;
    this.#wanted = wanted;
    this.facts = first.negotiated;
    this.#connections = [first];
    this.#addExtras();
  }

  /** `wanted`: contexts. Errors: see {@link connectNbd}. */
  static async open(options: ClientPoolOptions, wanted: readonly string[], signal?: AbortSignal): Promise<ClientPool> {
    return new ClientPool(options, wanted, await connectNbd(options, wanted, signal));
  }

  /** The connection with the fewest requests under way. Connects again when there is none; errors of that, or `connection-lost`. */
  async take(): Promise<ClientConnection> {
    for (;;) {
      const found = this.#leastLoaded();
      if (found !== undefined) return found;
      if (this.#stop.signal.aborted) throw this.#stop.signal.reason;
      if (!this.#o.reconnects) throw this.#lost ?? this.#writesLost();
      this.#connecting ??= this.#connectAgain().finally(() => {
        this.#connecting = undefined;
      });
      await this.#connecting;
    }
  }

  async close(): Promise<void> {
    const error = new ReplicationError("connection-lost", `${formatNbdUri(this.#o.address)}: the image is closed`);
    this.#stop.abort(error);
    for (const connection of this.#connections) connection.close();
    await this.#extras;
  }

  #leastLoaded(): ClientConnection | undefined {
    let best: ClientConnection | undefined;
    for (const connection of this.#connections) {
      if (!connection.isOver && (best === undefined || connection.load < best.load)) best = connection;
    }
    return best;
  }

  #writesLost(): ReplicationError {
    this.#lost = new ReplicationError(
      "connection-lost",
      `${formatNbdUri(this.#o.address)}: the connection was lost, and with it perhaps what was written since the last flush: open the image again`,
    );
    return this.#lost;
  }

  async #connectAgain(): Promise<void> {
    const connection = await connectNbd(this.#o, this.#wanted, this.#stop.signal);
    const change = this.#changeOf(connection.negotiated);
    if (change !== undefined) {
      connection.close();
      throw new ReplicationError("image-changed", `${formatNbdUri(this.#o.address)}: ${change} since it was opened`);
    }
    this.#connections = [connection];
    this.#addExtras();
  }

  /** What another connection says that differs from the first, in words. */
  #changeOf({ info, blocks, structured, contexts }: Negotiated): string | undefined {
    const { facts } = this;
    if (info.sizeBytes !== facts.info.sizeBytes) {
      return `its size went from ${facts.info.sizeBytes} to ${info.sizeBytes} bytes`;
    }
    const same =
      info.flags === facts.info.flags &&
      structured === facts.structured &&
      blocks.minimum === facts.blocks.minimum &&
      blocks.maximum === facts.blocks.maximum &&
      [...facts.contexts].every(([name, id]) => contexts.get(name) === id);
    return same ? undefined : "what the server offers changed";
  }

  /** In the background: a server may have said that several are fine, and take one only. */
  #addExtras(): void {
    if ((this.facts.info.flags & exportFlags.multiConnection) === 0) return;
    this.#extras = this.#connectExtras().catch((thrown: unknown) => {
      const { message } = toReplicationError(thrown);
      this.#o.log.debug({ image: formatNbdUri(this.#o.address) }, `no further connection: ${message}`);
    });
  }

  async #connectExtras(): Promise<void> {
    const into = this.#connections;
    while (into.length < nbdLimits.clientConnectionsMax) {
      const connection = await connectNbd(this.#o, this.#wanted, this.#stop.signal);
      const ofUse = into === this.#connections && !this.#stop.signal.aborted;
      if (!ofUse || this.#changeOf(connection.negotiated) !== undefined) {
        connection.close();
        return;
      }
      into.push(connection);
    }
  }
}
