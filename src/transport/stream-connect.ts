/** Connects byte streams: TCP and unix sockets. */
import { createConnection, type Socket } from "node:net";
import type { Clock } from "../base/clock.ts";
import { toReplicationError } from "../base/errors.ts";
import type { ByteStream } from "./byte-stream.ts";
import { connectionError } from "./connection-errors.ts";
import { formatAddress } from "./names.ts";
import { SocketStream } from "./socket-stream.ts";

/** Where a stream leads, or a listener waits. */
export type StreamPlace =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

export function formatPlace(place: StreamPlace): string {
  return place.kind === "unix" ? place.path : formatAddress(place.host, place.port);
}

/** The kernel asks a silent peer from this long on. */
const keepAliveMillis = 30_000;

/** One stream, connected; `signal` ends the attempt with its reason. Errors: `connect-failed`. Nothing is left open after an error. */
export function connectStream(
  place: StreamPlace,
  options: { readonly clock: Clock; readonly signal: AbortSignal },
): Promise<ByteStream> {
  const { clock, signal } = options;
  const peer = formatPlace(place);
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(toReplicationError(signal.reason));
      return;
    }
    const socket: Socket =
      place.kind === "unix"
        ? createConnection({ path: place.path })
        : createConnection({
            host: place.host,
            port: place.port,
            noDelay: true,
            keepAlive: true,
            keepAliveInitialDelay: keepAliveMillis,
          });
    const onAbort = (): void => {
      socket.destroy();
      reject(toReplicationError(signal.reason));
    };
    const onError = (error: Error): void => {
      signal.removeEventListener("abort", onAbort);
      socket.destroy();
      reject(connectionError(error, { peer, phase: "connect" }));
    };
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once("error", onError);
    socket.once("connect", () => {
      signal.removeEventListener("abort", onAbort);
      if (socket.destroyed) return;
      socket.off("error", onError);
      resolve(new SocketStream({ socket, peer, clock }));
    });
  });
}
