/** An NBD server: exports images to any NBD client, QEMU and the kernel's among them. */
import type { Clock } from "../base/clock.ts";
import { withDeadline } from "../base/deadline.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { Storage } from "../storage/seam.ts";
import type { ByteStream } from "../transport/byte-stream.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { createRejectionLog } from "../transport/rejection-log.ts";
import type { StreamPlace } from "../transport/stream-connect.ts";
import { listenStreams } from "../transport/stream-listen.ts";
import { startTls } from "../transport/stream-tls.ts";
import { ExportedDisk, type ExportOptions } from "./exported-disk.ts";
import { MemoryBudget } from "./memory-budget.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { ServerConnection } from "./server-connection.ts";
import { admit } from "./server-negotiation.ts";

export interface NbdServerOptions {
  /** At least one, each with a name of its own; the first answers to the empty name too. Images belong to the caller, and are open until {@link NbdServer.close} has resolved. */
  readonly exports: readonly ExportOptions[];
  /** TLS is required, with a certificate of one of its authorities. Undefined: no TLS, which is for unix sockets and loopback. */
  readonly credentials?: CredentialSource | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface NbdServer {
  /** Clients that are connected, negotiating or beyond. */
  readonly connections: number;
  /** Serves a client on this stream. */
  accept(stream: ByteStream): void;
  /** Takes no more clients, finishes what they asked for, and ends their connections. */
  close(): Promise<void>;
}

/** A server without a listener: streams come through `accept`. */
export function createNbdServer(options: NbdServerOptions): NbdServer {
  return new Server(options);
}

export interface ListenNbdOptions extends NbdServerOptions {
  /** Unix sockets get mode 0600. */
  readonly place: StreamPlace;
  readonly storage: Storage;
  readonly random: Random;
}

export interface NbdListener {
  /** With the port that was found. */
  readonly place: StreamPlace;
  readonly connections: number;
  /** Stops listening, then as {@link NbdServer.close}. */
  close(): Promise<void>;
}

/** Serves at a place. Errors: `listen-failed`. */
export async function listenNbd(options: ListenNbdOptions): Promise<NbdListener> {
  const server = new Server(options);
  const listener = await listenStreams({ ...options, onStream: (stream) => server.accept(stream) });
  return {
    place: listener.place,
    get connections() {
      return server.connections;
    },
    async close() {
      await listener.close();
      await server.close();
    },
  };
}

/** A client from its first byte to its last. */
interface Client {
  /** Undefined once it is past its negotiation. */
  negotiating: AbortController | undefined;
  connection: ServerConnection | undefined;
}

class Server implements NbdServer {
  readonly #o: NbdServerOptions;
  readonly #exports: readonly ExportedDisk[];
  readonly #budget = new MemoryBudget(nbdLimits.serverHeldBytesTotal);
  readonly #noteEnd: (error: ReplicationError, address: string) => void;
  readonly #noteTrouble: (error: ReplicationError, address: string) => void;
  readonly #clients = new Set<Client>();
  #closing = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: NbdServerOptions) {
    this.#o = options;
    this.#exports = options.exports.map((each) => new ExportedDisk(each));
    const names = new Set(this.#exports.map(({ name }) => name));
    invariant(names.size > 0 && names.size === this.#exports.length, "exports have names of their own");
    const { log, clock } = options;
    this.#noteEnd = createRejectionLog(log, clock, "an NBD client was lost or sent away");
    this.#noteTrouble = createRejectionLog(log, clock, "a request of an NBD client failed");
  }

  get connections(): number {
    return this.#clients.size;
  }

  accept(stream: ByteStream): void {
    if (this.#closing || !this.#makeRoom()) {
      stream.destroy();
      const text = `NBD: ${nbdLimits.serverConnectionsMax} clients are connected, another one was sent away`;
      if (!this.#closing) this.#noteEnd(new ReplicationError("receiver-busy", text), stream.peer);
      return;
    }
    const client: Client = { negotiating: new AbortController(), connection: undefined };
    this.#clients.add(client);
    void this.#serve(client, stream);
  }

  async close(): Promise<void> {
    this.#closing = true;
    for (const { negotiating, connection } of this.#clients) {
      negotiating?.abort(new ReplicationError("aborted", "NBD: this side is stopping"));
      connection?.leave();
    }
    if (this.#clients.size === 0) return;
    await new Promise<void>((resolve) => {
      this.#onEmpty = resolve;
    });
  }

  /** The client that has been negotiating for longest makes room for a new one. False: all are at work. */
  #makeRoom(): boolean {
    if (this.#clients.size < nbdLimits.serverConnectionsMax) return true;
    for (const client of this.#clients) {
      if (client.negotiating === undefined || client.negotiating.signal.aborted) continue;
      client.negotiating.abort(new ReplicationError("handshake-timeout", "NBD: closed to make room for newer clients"));
      this.#clients.delete(client);
      return true;
    }
    return false;
  }

  async #serve(client: Client, stream: ByteStream): Promise<void> {
    const gone = (error: ReplicationError | undefined): void => {
      if (error !== undefined && error.code !== "aborted") this.#noteEnd(error, stream.peer);
      this.#clients.delete(client);
      if (this.#clients.size === 0) this.#onEmpty?.();
    };
    try {
      const admitted = await this.#negotiate(client, stream);
      if (admitted === undefined) {
        gone(undefined);
        return;
      }
      client.negotiating = undefined;
      client.connection = new ServerConnection({
        admitted,
        budget: this.#budget,
        onTrouble: (error) => this.#noteTrouble(toReplicationError(error, "image-unreadable"), stream.peer),
        onEnd: gone,
      });
      if (this.#closing) client.connection.leave();
    } catch (thrown) {
      gone(toReplicationError(thrown));
    }
  }

  async #negotiate(client: Client, stream: ByteStream) {
    const { clock, credentials } = this.#o;
    const millis = nbdLimits.handshakeMillis;
    const error = (): ReplicationError =>
      new ReplicationError("handshake-timeout", `NBD: no export was chosen within ${millis / 1000} s`);
    return await withDeadline({ clock, millis, error, signal: client.negotiating?.signal }, async (signal) => {
      let current: ByteStream | undefined = stream;
      const onAbort = (): void => current?.destroy(toReplicationError(signal.reason));
      signal.addEventListener("abort", onAbort, { once: true });
      try {
        const admitted = await admit(stream, {
          exports: this.#exports,
          startTls:
            credentials === undefined
              ? undefined
              : async (plain) => {
                  current = undefined;
                  current = await startTls(plain, { credentials, serverName: undefined, clock, signal });
                  return current;
                },
        });
        if (admitted === undefined) current?.close();
        return admitted;
      } catch (thrown) {
        current?.destroy();
        throw thrown;
      } finally {
        signal.removeEventListener("abort", onAbort);
      }
    });
  }
}
