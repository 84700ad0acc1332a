/** From an address to a connection whose requests can be sent. */
import type { Clock } from "../base/clock.ts";
import { throwIfAborted, withDeadline } from "../base/deadline.ts";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ByteStream } from "../transport/byte-stream.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { connectStream } from "../transport/stream-connect.ts";
import { startTls } from "../transport/stream-tls.ts";
import { ClientConnection, named } from "./client-connection.ts";
import { negotiate } from "./client-negotiation.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { formatNbdUri, type NbdAddress } from "./nbd-uri.ts";
import { encodeOption } from "./option-codec.ts";
import { options } from "./protocol.ts";

export interface NbdTarget {
  readonly address: NbdAddress;
  /** Needed for `nbds` addresses: what this side shows, and whom it trusts. */
  readonly credentials?: CredentialSource | undefined;
  /** Contexts beside `base:allocation`, such as `qemu:dirty-bitmap:NAME`. */
  readonly contexts?: readonly string[] | undefined;
  readonly clock: Clock;
  /** How a stream is made, in place of a socket; for tests. */
  readonly connect?: ((signal: AbortSignal) => Promise<ByteStream>) | undefined;
}

/**
 * One connection, negotiated. Errors name the address: those of `connectStream`, `startTls` and `negotiate`; `handshake-timeout`, `usage` without
 * credentials where TLS is wanted, what `signal` has for a reason. Nothing is left open after an error.
 */
export async function connectNbd(
  target: NbdTarget,
  contexts: readonly string[],
  signal?: AbortSignal,
): Promise<ClientConnection> {
  const { address, clock, credentials } = target;
  const name = formatNbdUri(address);
  if (address.tls && credentials === undefined) {
    throw new ReplicationError("usage", `${name}: TLS needs certificates of this side: name their folder`);
  }
  const millis = nbdLimits.handshakeMillis;
  const error = (): ReplicationError =>
    new ReplicationError(
      "handshake-timeout",
      `${name}: no NBD negotiation within ${millis / 1000} s: is it an NBD server, and has it room?`,
    );
  return await withDeadline({ clock, millis, error, signal }, async (limit) => {
    let stream: ByteStream | undefined;
    const onAbort = (): void => stream?.destroy(toReplicationError(limit.reason));
    limit.addEventListener("abort", onAbort, { once: true });
    try {
      stream = await (target.connect?.(limit) ?? connectStream(address.place, { clock, signal: limit }));
      throwIfAborted(limit);
      const negotiated = await negotiate(stream, {
        exportName: address.exportName,
        contexts,
        startTls:
          credentials === undefined || !address.tls
            ? undefined
            : async (plain) => {
                // While TLS is set up nothing but its own signal ends the socket.
                stream = undefined;
                const serverName = address.place.kind === "tcp" ? address.place.host : "localhost";
                stream = await startTls(plain, { credentials, serverName, clock, signal: limit });
                return stream;
              },
      });
      throwIfAborted(limit);
      return new ClientConnection(negotiated, { name, clock });
    } catch (thrown) {
      const failure = toReplicationError(limit.aborted ? limit.reason : thrown);
      if (stream !== undefined) giveUp(stream, failure);
      throw named(failure, name);
    } finally {
      limit.removeEventListener("abort", onAbort);
    }
  });
}

/** A server that refused in good order is told goodbye: it need not log a connection that broke off. */
function giveUp(stream: ByteStream, { code, remote }: ReplicationError): void {
  if (remote && (code === "image-not-found" || code === "not-allowed")) {
    stream.write([encodeOption(options.abort)]);
    stream.close();
  } else stream.destroy();
}
