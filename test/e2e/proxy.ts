/** A TCP proxy on loopback that cuts, slows and swallows, for tests of a bad network. */
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import type { Scope } from "./kit.ts";

export interface ProxyOptions {
  /** Ends the connection when so many bytes have passed, both directions together. */
  readonly cutAfterBytes?: number;
  /** Connections `cutAfterBytes` applies to, the first ones. Default 1. */
  readonly cutTimes?: number;
  /** Ends whatever is connected every so often. */
  readonly cutEveryMs?: number;
  /** Each direction of each connection. */
  readonly throttleBytesPerSecond?: number;
  /** Takes bytes and passes none on; the peer sees silence, no error. */
  readonly blackhole?: boolean;
}

export interface Proxy {
  readonly port: number;
  /** Connections accepted so far. */
  readonly connections: number;
  /** Bytes passed on so far, both directions. */
  readonly bytes: number;
  /** Bytes passed on so far from clients to the target. */
  readonly bytesUp: number;
  /** Ends what is connected now, as a lost connection does (RST). New connections work. */
  cut(): void;
  /** From now on passes nothing (true) or passes again (false); what was swallowed stays lost. */
  setBlackhole(on: boolean): void;
  /** From now on clients get nothing from the target (true), while what they send still passes. */
  setDeaf(on: boolean): void;
  /** From now on each direction passes so many bytes a second; undefined: as many as there are. */
  setThrottle(bytesPerSecond: number | undefined): void;
  /** Passes nothing more from clients once `bytesUp` has come to `bytes`, and loses nothing; undefined passes all again. */
  holdUp(bytes: number | undefined): void;
  /** Resolves when so many bytes have passed. */
  passed(bytes: number): Promise<void>;
  /** Resolves when so many bytes have passed from clients to the target. */
  passedUp(bytes: number): Promise<void>;
  close(): Promise<void>;
}

/** Starts a proxy to a port on 127.0.0.1. Closed with the scope at the latest. */
export async function startProxy(scope: Scope, targetPort: number, options: ProxyOptions = {}): Promise<Proxy> {
  let connections = 0;
  let bytes = 0;
  let bytesUp = 0;
  let blackhole = options.blackhole ?? false;
  let deaf = false;
  let throttle = options.throttleBytesPerSecond;
  let holdAt = Number.POSITIVE_INFINITY;
  const held = new Set<Socket>();
  const pairs = new Set<readonly [Socket, Socket]>();
  const watchers = new Set<() => void>();

  const cut = (): void => {
    for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy();
    pairs.clear();
  };

  const resume = (from: Socket, down: boolean): void => {
    if (down || bytesUp < holdAt) from.resume();
    else held.add(from);
  };

  /** Passes `from` on to `to`; `count` returns false when the connection was cut there. */
  const pipe = (from: Socket, to: Socket, down: boolean, count: (length: number) => boolean): void => {
    const swallows = (): boolean => blackhole || (down && deaf);
    from.on("data", (chunk) => {
      if (swallows()) return;
      if (!down) bytesUp += chunk.length;
      if (!count(chunk.length)) return;
      const room = to.write(chunk);
      if (throttle !== undefined) {
        from.pause();
        setTimeout(() => resume(from, down), (chunk.length / throttle) * 1000);
      } else if (!room) {
        from.pause();
        to.once("drain", () => resume(from, down));
      } else if (!down && bytesUp >= holdAt) {
        from.pause();
        held.add(from);
      }
    });
    from.on("end", () => {
      if (!swallows()) to.end();
    });
    // A reset of one side is passed on as a reset of the other; a link that swallows swallows that too.
    from.on("error", () => {
      if (!swallows()) to.resetAndDestroy();
    });
  };

  const server = createServer({ allowHalfOpen: true }, (client) => {
    connections++;
    const limit = connections <= (options.cutTimes ?? 1) ? options.cutAfterBytes : undefined;
    const upstream = connect({ host: "127.0.0.1", port: targetPort, allowHalfOpen: true });
    const pair = [client, upstream] as const;
    let through = 0;
    const count = (length: number): boolean => {
      through += length;
      if (limit !== undefined && through > limit) {
        pairs.delete(pair);
        for (const socket of pair) socket.resetAndDestroy();
        return false;
      }
      bytes += length;
      for (const watcher of watchers) watcher();
      return true;
    };
    pairs.add(pair);
    const forget = (): void => {
      if (client.destroyed && upstream.destroyed) pairs.delete(pair);
    };
    client.on("close", forget);
    upstream.on("close", forget);
    pipe(client, upstream, false, count);
    pipe(upstream, client, true, count);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  const timer = options.cutEveryMs === undefined ? undefined : setInterval(cut, options.cutEveryMs);

  const reached = (holds: () => boolean): Promise<void> =>
    new Promise((resolve) => {
      const look = (): void => {
        if (!holds()) return;
        watchers.delete(look);
        resolve();
      };
      watchers.add(look);
      look();
    });

  const proxy: Proxy = {
    port: (server.address() as AddressInfo).port,
    get connections() {
      return connections;
    },
    get bytes() {
      return bytes;
    },
    cut,
    setBlackhole(on) {
      blackhole = on;
    },
    get bytesUp() {
      return bytesUp;
    },
    setDeaf(on) {
      deaf = on;
    },
    setThrottle(bytesPerSecond) {
      throttle = bytesPerSecond;
    },
    holdUp(wanted) {
      holdAt = wanted ?? Number.POSITIVE_INFINITY;
      if (bytesUp >= holdAt) return;
      for (const socket of held) socket.resume();
      held.clear();
    },
    passed(wanted) {
      return reached(() => bytes >= wanted);
    },
    passedUp(wanted) {
      return reached(() => bytesUp >= wanted);
    },
    close() {
      clearInterval(timer);
      cut();
      return new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
      });
    },
  };
  scope.onTestFinished(() => proxy.close());
  return proxy;
}
