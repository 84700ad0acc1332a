/** TLS on a byte stream that is connected already, for protocols that ask for it in the middle (STARTTLS). Certificates on both sides, always. */
import { isIP } from "node:net";
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
  const shared = { ...contextOptions(credentials), rejectUnauthorized: false } as const;
  const socket =
    serverName === undefined
      ? new tls.TLSSocket(raw, { ...shared, isServer: true, requestCert: true })
      : tls.connect({
          ...shared,
          socket: raw,
          ...(isIP(serverName) === 0 ? { servername: serverName } : {}),
          checkServerIdentity: (_host, certificate) => tls.checkServerIdentity(serverName, certificate),
        });
  try {
    await secured(socket, serverName === undefined ? "secure" : "secureConnect", { peer, signal });
    const identity = checkPeer({
      ...certificateFacts(socket),
      ...{ address: peer, host: serverName, fingerprint: undefined },
      ...{ authorities: credentials.authorities, now: clock.now() },
    });
    return new SocketStream({ socket, peer, identity, clock });
  } catch (thrown) {
    // What a dying socket says changes nothing any more.
    socket.on("error", () => undefined);
    socket.destroy();
    raw.destroy();
    throw toReplicationError(thrown, "tls-failed");
  }
}

function secured(
  socket: tls.TLSSocket,
  event: "secure" | "secureConnect",
  { peer, signal }: { readonly peer: string; readonly signal: AbortSignal },
): Promise<void> {
  return new Promise((resolve, reject) => {
    const phase = "TLS handshake";
    const settle = (end: () => void): void => {
      signal.removeEventListener("abort", onAbort);
      socket.off("error", onError);
      socket.off("close", onClose);
      end();
    };
    const onAbort = (): void => settle(() => reject(toReplicationError(signal.reason)));
    const onError = (error: Error): void => settle(() => reject(connectionError(error, { peer, phase })));
    const onClose = (): void => {
      const text = `${peer}, ${phase}: the other side closed the connection`;
      settle(() => reject(new ReplicationError("connection-lost", text, { details: { peer, phase } })));
    };
    socket.on("error", onError);
    socket.on("close", onClose);
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once(event, () => settle(resolve));
    if (signal.aborted) onAbort();
  });
}
