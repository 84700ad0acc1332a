/** TLS on a byte stream that is connected already, for protocols that ask for it in the middle (STARTTLS). Certificates on both sides, always. */
import { isIP, type Socket } from "node:net";
import * as tls from "node:tls";
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ByteStream } from "./byte-stream.ts";
import { connectionError } from "./connection-errors.ts";
import { type CredentialSource, currentOf } from "./credential-source.ts";
import { certificateFacts, checkPeer } from "./peer-check.ts";
import { SocketStream } from "./socket-stream.ts";
import { contextOptions } from "./tls-context.ts";

export interface StreamTlsOptions {
  readonly credentials: CredentialSource;
  /** At a client: the name the server's certificate must be for. Undefined: this is the server. */
  readonly serverName: string | undefined;
  readonly clock: Clock;
  /** Ends the handshake with its reason. */
  readonly signal: AbortSignal;
}

/**
 * The same connection inside TLS, its peer checked; the given stream is over. It has delivered all it read: a byte too many would be plain text taken for
 * secret. Errors: `not-tls`, `tls-failed`, the `certificate-*` codes of {@link checkPeer}. Nothing is left open after an error.
 */
export async function startTls(stream: ByteStream, options: StreamTlsOptions): Promise<ByteStream> {
  invariant(stream instanceof SocketStream, "TLS goes over a socket");
  const { serverName, clock, signal } = options;
  const { peer } = stream;
  const credentials = currentOf(options.credentials);
  const raw = stream.detach();
  const context = { ...contextOptions(credentials), rejectUnauthorized: false } as const;
  try {
    const begin = serverName === undefined ? acceptTls(raw, context) : connectTls(raw, context, serverName);
    const socket = await secured(begin, raw, { peer, signal });
    const identity = checkPeer({
      ...certificateFacts(socket),
      ...{ address: peer, host: serverName, fingerprint: undefined },
      ...{ authorities: credentials.authorities, now: clock.now() },
    });
    return new SocketStream({ socket, peer, identity, clock });
  } catch (thrown) {
    raw.destroy();
    throw toReplicationError(thrown, "tls-failed");
  }
}

type Context = tls.SecureContextOptions & { readonly rejectUnauthorized: false };

/** Starts a handshake; calls back with the socket once it is secure, or with what went wrong, or both: the first counts. */
type Begin = (done: (socket: tls.TLSSocket) => void, failed: (error: Error) => void) => void;

/** A server that never listens: only a server's sockets tell whether the client's certificate was verified. */
function acceptTls(raw: Socket, context: Context): Begin {
  return (done, failed) => {
    const server = tls.createServer({ ...context, requestCert: true });
    server.on("tlsClientError", failed);
    server.on("secureConnection", done);
    server.emit("connection", raw);
  };
}

function connectTls(raw: Socket, context: Context, serverName: string): Begin {
  return (done, failed) => {
    const socket = tls.connect({
      ...context,
      socket: raw,
      ...(isIP(serverName) === 0 ? { servername: serverName } : {}),
      checkServerIdentity: (_host, certificate) => tls.checkServerIdentity(serverName, certificate),
    });
    // Stays: what a dying socket says after the first error changes nothing.
    socket.on("error", failed);
    socket.once("secureConnect", () => {
      done(socket);
      socket.off("error", failed);
    });
  };
}

function secured(
  begin: Begin,
  raw: Socket,
  { peer, signal }: { readonly peer: string; readonly signal: AbortSignal },
): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const phase = "TLS handshake";
    const onAbort = (): void => reject(toReplicationError(signal.reason));
    const onClose = (): void => {
      const text = `${peer}, ${phase}: the other side closed the connection`;
      reject(new ReplicationError("connection-lost", text, { details: { peer, phase } }));
    };
    const done = (socket: tls.TLSSocket): void => {
      signal.removeEventListener("abort", onAbort);
      raw.off("close", onClose);
      // Until the stream has its own listener, and when the peer is refused for good.
      socket.on("error", () => undefined);
      resolve(socket);
    };
    raw.once("close", onClose);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    else begin(done, (error) => reject(connectionError(error, { peer, phase })));
  });
}
