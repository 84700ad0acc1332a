/** Listens for byte streams: TCP, and unix sockets that only their owner can connect to. */
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { dirname, join } from "node:path";
import type { Clock } from "../base/clock.ts";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { Storage } from "../storage/seam.ts";
import type { ByteStream } from "./byte-stream.ts";
import { listenError } from "./connection-errors.ts";
import { formatAddress } from "./names.ts";
import { SocketStream } from "./socket-stream.ts";
import { connectStream, formatPlace, type StreamPlace } from "./stream-connect.ts";

export interface ListenStreamsOptions {
  /** Port 0: any free one. A unix socket gets mode 0600; its folder exists. */
  readonly place: StreamPlace;
  /** A connection; nothing was read from it. It must not throw. */
  readonly onStream: (stream: ByteStream) => void;
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
}

export interface StreamListener {
  /** With the port that was found. */
  readonly place: StreamPlace;
  /** Takes no more connections, and removes the socket's file. Streams stay: they belong to who got them. */
  close(): Promise<void>;
}

const keepAliveMillis = 30_000;

/** Listens. Errors: `listen-failed`; for a unix socket also when somebody listens there, or the path is another kind of file. */
export async function listenStreams(options: ListenStreamsOptions): Promise<StreamListener> {
  const { place, clock, log, onStream } = options;
  const server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: keepAliveMillis });
  let count = 0;
  server.on("connection", (socket: Socket) => {
    count++;
    const peer =
      place.kind === "unix"
        ? `${place.path}#${count}`
        : formatAddress(socket.remoteAddress ?? "unknown", socket.remotePort ?? 0);
    onStream(new SocketStream({ socket, peer, clock }));
  });
  const close = place.kind === "unix" ? await listenUnix(server, place.path, options) : await listenTcp(server, place);
  server.on("error", (error) => log.warn({ err: error }, "a connection could not be accepted"));
  return { place: place.kind === "tcp" ? { ...place, port: (server.address() as AddressInfo).port } : place, close };
}

async function listenTcp(server: Server, place: StreamPlace & { readonly kind: "tcp" }): Promise<() => Promise<void>> {
  await listening(server, { host: place.host, port: place.port }, formatPlace(place));
  return async () => void server.close();
}

/**
 * Made in a folder nobody else can enter, given its mode there, and only then linked to its path: at no moment can another user connect. A file of the
 * same name that is a socket nobody listens on is replaced.
 */
async function listenUnix(server: Server, path: string, options: ListenStreamsOptions): Promise<() => Promise<void>> {
  const { storage, random } = options;
  const folder = join(dirname(path), `.nbd-${Buffer.from(random.bytes(3)).toString("hex")}`);
  const hidden = join(folder, "s");
  try {
    await removeStale(path, options);
    await storage.makeDirectory(folder);
    await listening(server, { path: hidden }, path);
    await storage.setMode(hidden, 0o600);
    await storage.link(hidden, path);
  } catch (thrown) {
    server.close();
    throw thrown instanceof ReplicationError ? thrown : listenError(thrown, path);
  } finally {
    await storage.unlink(hidden);
    await storage.removeDirectory(folder).catch(() => {
      // It could not be made in the first place, which is what is thrown.
    });
  }
  const made = await storage.stat(path);
  return async () => {
    server.close();
    const now = await storage.stat(path);
    // Another process may listen there by now.
    if (now !== undefined && now.inode === made?.inode) await storage.unlink(path);
  };
}

/** Clears the way for a new socket, or says why it must not. */
async function removeStale(path: string, { storage, clock }: ListenStreamsOptions): Promise<void> {
  const refuse = (what: string): ReplicationError =>
    new ReplicationError("listen-failed", `cannot listen on ${path}: ${what}`, { details: { address: path } });
  if ((await storage.stat(dirname(path)))?.kind !== "directory") throw refuse("its folder does not exist: make it");
  const stat = await storage.stat(path);
  if (stat === undefined) return;
  if (stat.kind !== "other") throw refuse("there is a file of that name: choose another path");
  try {
    const stream = await connectStream({ kind: "unix", path }, { clock, signal: new AbortController().signal });
    stream.destroy();
  } catch (error) {
    if (errnoOf((error as Error).cause) === "ECONNREFUSED") {
      await storage.unlink(path);
      return;
    }
  }
  throw refuse("another process listens there: choose another path, or stop it");
}

function listening(
  server: Server,
  where: { readonly path: string } | { readonly host: string; readonly port: number },
  address: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => reject(listenError(error, address));
    server.once("error", onError);
    server.listen(where, () => {
      server.off("error", onError);
      resolve();
    });
  });
}
