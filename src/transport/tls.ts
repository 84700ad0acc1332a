/**
 * Connections over TLS 1.3 with certificates on both sides. The only place that opens sockets for sessions.
 *
 * Verification is not optional. Node is told `rejectUnauthorized: false` all the same, on both sides, because it would then drop a peer without
 * a word: no alert goes out, and the person at the other end reads "connection reset". Instead every connection passes `checkPeer` before anything
 * else may happen on it; who does not pass is sent the reason as an `error` frame and closed. A peer of another make that refuses us by a TLS alert
 * is understood too: with TLS 1.3 that alert comes after our own handshake is done, as the end of the link.
 */
import { createConnection, isIP, type AddressInfo, type Socket } from "node:net";
import * as tls from "node:tls";
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { toErrorMessage } from "../wire/error-message.ts";
import { encodeFrame } from "../wire/frame.ts";
import { connectionError, listenError, type Phase, timeoutError } from "./connection-errors.ts";
import { type CredentialSource, currentOf } from "./credential-source.ts";
import type { Credentials } from "./credentials.ts";
import type { Link } from "./link.ts";
import { formatAddress } from "./names.ts";
import { certificateFacts, checkPeer, parseFingerprint } from "./peer-check.ts";
import { PendingHandshakes } from "./pending-handshakes.ts";
import { createRejectionLog } from "./rejection-log.ts";
import { contextOptions } from "./tls-context.ts";
import { closeMillis, TlsLink } from "./tls-link.ts";

/** The kernel asks a silent peer from this long on; the session's own heartbeat is quicker, this frees what no session watches. */
const keepAliveMillis = 30_000;

export interface ConnectTlsOptions {
  readonly host: string;
  readonly port: number;
  readonly credentials: CredentialSource;
  /** SHA-256 of the one certificate to accept, in place of an authority and the host's name. */
  readonly fingerprint?: string;
  /** The name the certificate must be for, where that is not `host`. */
  readonly serverName?: string;
  /** For TCP and TLS together; default `limits.handshakeMillis`. */
  readonly timeoutMillis?: number;
  readonly clock: Clock;
  readonly log?: Logger;
  readonly signal?: AbortSignal;
}

/**
 * Connects and checks the peer. Errors name peer and phase: `connect-failed`, `connection-lost`, `handshake-timeout`, `not-tls`, `tls-failed`, the
 * `certificate-*` codes of {@link checkPeer}, `aborted`, `usage`. Nothing is left open after an error.
 */
export async function connectTls(options: ConnectTlsOptions): Promise<Link> {
  const { signal, clock, timeoutMillis = limits.handshakeMillis } = options;
  if (options.fingerprint !== undefined) parseFingerprint(options.fingerprint);
  if (signal?.aborted === true) throw abortError(signal);
  const attempt = new ConnectAttempt(options);
  const timer = new AbortController();
  const onAbort = (): void => attempt.fail(abortError(signal));
  signal?.addEventListener("abort", onAbort, { once: true });
  clock.sleep(timeoutMillis, timer.signal).then(
    () => attempt.fail(timeoutError(attempt, timeoutMillis)),
    // Aborted below: the attempt was over in time.
    () => undefined,
  );
  try {
    return await attempt.link;
  } finally {
    timer.abort();
    signal?.removeEventListener("abort", onAbort);
  }
}

function abortError(signal: AbortSignal | undefined): ReplicationError {
  const reason: unknown = signal?.reason;
  return reason instanceof ReplicationError ? reason : new ReplicationError("aborted", "stopped on request");
}

class ConnectAttempt {
  readonly peer: string;
  readonly link: Promise<Link>;
  phase: Phase = "connect";
  readonly #options: ConnectTlsOptions;
  readonly #raw: Socket;
  #socket: tls.TLSSocket | undefined;
  #settle: { readonly resolve: (link: Link) => void; readonly reject: (error: ReplicationError) => void } | undefined;

  constructor(options: ConnectTlsOptions) {
    const { host, port } = options;
    this.#options = options;
    this.peer = formatAddress(host, port);
    this.link = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.#raw = createConnection({
      host,
      port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: keepAliveMillis,
    });
    // Stays for good. Once TLS is on top its socket reports the same error with more to say, and this one is its echo.
    this.#raw.on("error", (error) => {
      if (this.phase === "connect") this.fail(connectionError(error, this));
    });
    this.#raw.once("connect", () => {
      if (this.#settle === undefined) return;
      try {
        this.#startTls();
      } catch (thrown) {
        this.fail(toReplicationError(thrown, "tls-failed"));
      }
    });
  }

  fail(error: ReplicationError): void {
    const settle = this.#settle;
    if (settle === undefined) return;
    this.#settle = undefined;
    this.#socket?.destroy();
    this.#raw.destroy();
    settle.reject(error);
  }

  #startTls(): void {
    this.phase = "TLS handshake";
    const { host, serverName = host } = this.#options;
    const credentials = currentOf(this.#options.credentials);
    const socket = tls.connect({
      ...contextOptions(credentials),
      socket: this.#raw,
      rejectUnauthorized: false,
      ...(isIP(serverName) === 0 ? { servername: serverName } : {}),
      checkServerIdentity: (_host, certificate) => tls.checkServerIdentity(serverName, certificate),
    });
    this.#socket = socket;
    const onError = (error: Error): void => this.fail(connectionError(error, this));
    const onClose = (): void => {
      const text = `${this.peer}, ${this.phase}: the other side closed the connection`;
      const details = { peer: this.peer, phase: this.phase };
      this.fail(new ReplicationError("connection-lost", text, { details }));
    };
    // `on`: a socket that was given up may say more while it dies, and `fail` takes the first only.
    socket.on("error", onError);
    socket.on("close", onClose);
    socket.once("secureConnect", () => {
      if (this.#settle === undefined) return;
      this.#check(socket, credentials, serverName, () => {
        socket.off("error", onError);
        socket.off("close", onClose);
      });
    });
  }

  #check(socket: tls.TLSSocket, credentials: Credentials, host: string, handOver: () => void): void {
    const { clock, log = silentLogger, fingerprint } = this.#options;
    const settle = this.#settle;
    invariant(settle !== undefined, "a checked attempt is under way");
    try {
      const peer = checkPeer({
        ...certificateFacts(socket),
        address: this.peer,
        host,
        fingerprint: fingerprint === undefined ? undefined : parseFingerprint(fingerprint),
        authorities: credentials.authorities,
        now: clock.now(),
      });
      const link = new TlsLink({ socket, raw: this.#raw, peer, clock, log });
      handOver();
      this.#settle = undefined;
      settle.resolve(link);
    } catch (thrown) {
      const error = toReplicationError(thrown);
      this.#settle = undefined;
      refuse(socket, error, clock);
      settle.reject(error);
    }
  }
}

/** Tells the peer why, then closes; what it has sent is read and thrown away, lest a reset overtakes the reason. */
function refuse(socket: tls.TLSSocket, error: ReplicationError, clock: Clock): void {
  const timer = new AbortController();
  // The reason is on its way or it is not: nothing that happens to this socket changes the outcome any more.
  socket.on("error", () => undefined);
  socket.once("close", () => timer.abort());
  socket.end(encodeFrame(toErrorMessage(error)));
  socket.resume();
  clock.sleep(closeMillis, timer.signal).then(
    () => socket.destroy(),
    // Aborted: the socket is closed.
    () => undefined,
  );
}

export interface ListenTlsOptions {
  /** Address to listen on; default: all addresses of this machine. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port: number;
  readonly credentials: CredentialSource;
  /**
   * A peer that passed the check. The receiver starts the link, and limits the time until the peer's first message. A throw
   * ends the link with that error.
   */
  readonly onLink: (link: Link) => void;
  /** A connection that did not get that far, once each. */
  readonly onRejected?: (error: ReplicationError, address: string) => void;
  /** Connections in handshake; the oldest makes room for a newer one. Default `limits.pendingHandshakesMax`. */
  readonly pendingMax?: number;
  /** Time for the TLS handshake; default `limits.handshakeMillis`. */
  readonly handshakeMillis?: number;
  readonly clock: Clock;
  readonly log?: Logger;
  /**
   * Called after each 16 MiB received. Node hands out every TLS record in an array of its own, and their sum drives full garbage collections
   * (measured: an eighth of a receiver's time); a program that owns its process may collect the young ones here.
   */
  readonly reclaim?: (() => void) | undefined;
}

export interface TlsListener {
  readonly address: string;
  readonly port: number;
  /** Connections that have not finished their handshake. */
  readonly pending: number;
  /** Takes no more connections and drops those in handshake. Links stay: they belong to who got them. */
  close(): Promise<void>;
}

/** Listens. Errors: `listen-failed`. */
export async function listenTls(options: ListenTlsOptions): Promise<TlsListener> {
  const { log = silentLogger, clock, onRejected } = options;
  let credentials = currentOf(options.credentials);
  const server = tls.createServer({
    ...contextOptions(credentials),
    requestCert: true,
    rejectUnauthorized: false,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: keepAliveMillis,
  });
  const logRejection = createRejectionLog(log, clock);
  const pending = new PendingHandshakes({
    max: options.pendingMax ?? limits.pendingHandshakesMax,
    handshakeMillis: options.handshakeMillis ?? limits.handshakeMillis,
    clock,
    onRejected(error, address) {
      logRejection(error, address);
      onRejected?.(error, address);
    },
  });
  // In front of the server's own listener, which starts TLS with the context it then finds.
  server.prependListener("connection", (raw: Socket) => {
    const next = currentOf(options.credentials);
    if (next !== credentials) server.setSecureContext(contextOptions(next));
    credentials = next;
    // As above at the client: the TLS socket says it better.
    raw.on("error", () => undefined);
    pending.add(addressOf(raw), raw);
  });
  server.on("tlsClientError", (error, socket) => pending.reject(addressOf(socket), error));
  server.on("secureConnection", (socket) => admit(socket, credentials, options, pending));
  try {
    await listening(server, options.host, options.port);
  } catch (error) {
    pending.close();
    throw error;
  }
  server.on("error", (error) => log.warn({ err: error }, "a connection could not be accepted"));
  const bound = server.address() as AddressInfo;
  return {
    address: bound.address,
    port: bound.port,
    get pending() {
      return pending.count;
    },
    async close() {
      pending.close();
      // Its callback would wait for the links as well.
      if (server.listening) server.close();
    },
  };
}

function admit(
  socket: tls.TLSSocket,
  credentials: Credentials,
  options: ListenTlsOptions,
  pending: PendingHandshakes,
): void {
  const { clock, log = silentLogger, onLink } = options;
  const address = addressOf(socket);
  let link: TlsLink;
  try {
    const facts = certificateFacts(socket);
    const { authorities } = credentials;
    const peer = checkPeer({
      ...facts,
      address,
      host: undefined,
      fingerprint: undefined,
      authorities,
      now: clock.now(),
    });
    const raw = pending.admit(address);
    if (raw === undefined) {
      socket.on("error", () => undefined);
      socket.destroy();
      return;
    }
    link = new TlsLink({ socket, raw, peer, clock, log, reclaim: options.reclaim });
  } catch (thrown) {
    const error = toReplicationError(thrown);
    pending.reject(address, error);
    refuse(socket, error, clock);
    return;
  }
  try {
    onLink(link);
  } catch (thrown) {
    link.destroy(toReplicationError(thrown));
  }
}

function listening(server: tls.Server, host: string | undefined, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => reject(listenError(error, formatAddress(host ?? "*", port)));
    server.once("error", onError);
    server.listen({ port, ...(host === undefined ? {} : { host }) }, () => {
      server.off("error", onError);
      resolve();
    });
  });
}

function addressOf(socket: Socket): string {
  // A connection that is gone already has no address any more; it is reported by the close of its TCP socket.
  return formatAddress(socket.remoteAddress ?? "unknown", socket.remotePort ?? 0);
}
