/** Byte streams over real sockets: unix sockets that are their owner's alone, and where the bytes go. */
import { createServer } from "node:net";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test, type TestContext } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import type { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { systemRandom } from "../../src/base/random.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { ByteSink, ByteStream } from "../../src/transport/byte-stream.ts";
import { connectStream, type StreamPlace } from "../../src/transport/stream-connect.ts";
import { listenStreams, type StreamListener } from "../../src/transport/stream-listen.ts";
import { until } from "./kit.ts";

const storage = createNodeStorage();

function folder(t: TestContext): string {
  const path = mkdtempSync("/tmp/stream-");
  t.onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

async function listen(
  t: TestContext,
  place: StreamPlace,
  onStream: (stream: ByteStream) => void = () => undefined,
): Promise<StreamListener> {
  const listener = await listenStreams({
    place,
    onStream,
    storage,
    clock: systemClock,
    random: systemRandom,
    log: silentLogger,
  });
  t.onTestFinished(() => listener.close());
  return listener;
}

const connect = (place: StreamPlace): Promise<ByteStream> =>
  connectStream(place, { clock: systemClock, signal: new AbortController().signal });

/** Keeps what it hears, in rooms of a few bytes. */
class Listener implements ByteSink {
  heard = Buffer.alloc(0);
  readonly ends: (ReplicationError | undefined)[] = [];
  readonly #room: Uint8Array;

  constructor(roomBytes: number) {
    this.#room = new Uint8Array(roomBytes);
  }

  room(): Uint8Array {
    return this.#room;
  }

  filled(count: number): void {
    this.heard = Buffer.concat([this.heard, this.#room.subarray(0, count)]);
  }

  ended(error: ReplicationError | undefined): void {
    this.ends.push(error);
  }
}

test("a unix socket has mode 0600, leaves nothing beside it, and goes away with its listener", async (t) => {
  const dir = folder(t);
  const path = join(dir, "s");
  const listener = await listen(t, { kind: "unix", path });
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(dir)).toEqual(["s"]);
  (await connect({ kind: "unix", path })).destroy();
  await listener.close();
  expect(existsSync(path)).toBe(false);
});

test("a socket somebody listens on is left alone, a stale one is replaced, another file is not", async (t) => {
  const dir = folder(t);
  const path = join(dir, "s");
  const first = await listen(t, { kind: "unix", path });
  await expect(listen(t, { kind: "unix", path })).rejects.toMatchObject({
    code: "listen-failed",
    message: expect.stringContaining("another process listens") as string,
  });
  (await connect({ kind: "unix", path })).destroy();
  await first.close();
  // Left behind by a process that was killed: its file stays, and nobody listens.
  const dead = createServer();
  const hidden = join(dir, "hidden");
  await new Promise<void>((resolve) => dead.listen(hidden, resolve));
  await storage.link(hidden, path);
  await new Promise((resolve) => dead.close(resolve));
  expect(existsSync(path)).toBe(true);
  await expect(connect({ kind: "unix", path })).rejects.toMatchObject({ code: "connect-failed" });
  await listen(t, { kind: "unix", path });
  (await connect({ kind: "unix", path })).destroy();
  writeFileSync(join(dir, "file"), "precious");
  await expect(listen(t, { kind: "unix", path: join(dir, "file") })).rejects.toMatchObject({ code: "listen-failed" });
  await expect(listen(t, { kind: "unix", path: join(dir, "none/s") })).rejects.toMatchObject({ code: "listen-failed" });
});

test("bytes arrive whole through rooms of any size; a paused end takes nothing; another sink goes on where the first ended", async (t) => {
  let server: ByteStream | undefined;
  const { place } = await listen(t, { kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => {
    server = stream;
  });
  const client = await connect(place);
  await until(() => server !== undefined);
  const first = new Listener(7);
  const second = new Listener(100_000);
  server?.receive(first);
  const bytes = Buffer.from(Array.from({ length: 50_000 }, (_, index) => index % 251));
  let taken = 0;
  client.write([bytes.subarray(0, 100), bytes.subarray(100)], () => taken++);
  await until(() => first.heard.length === bytes.length);
  expect(first.heard.equals(bytes)).toBe(true);
  expect(taken).toBe(1);
  server?.pause();
  client.write([bytes]);
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(first.heard.length).toBe(bytes.length);
  server?.receive(second);
  server?.resume();
  await until(() => second.heard.length === bytes.length);
  expect(second.heard.equals(bytes)).toBe(true);
  client.close();
  await until(() => second.ends.length > 0);
  expect([first.ends, second.ends]).toEqual([[], [undefined]]);
});

test("a sink that throws ends its stream with that error, and a stream that is over says so to a new sink", async (t) => {
  let server: ByteStream | undefined;
  const { place } = await listen(t, { kind: "tcp", host: "127.0.0.1", port: 0 }, (stream) => {
    server = stream;
  });
  const client = await connect(place);
  await until(() => server !== undefined);
  const sink = new Listener(10);
  sink.filled = () => {
    throw new Error("enough");
  };
  server?.receive(sink);
  client.write([Buffer.from("x")]);
  await until(() => sink.ends.length > 0);
  expect(sink.ends[0]?.message).toBe("enough");
  const late = new Listener(10);
  server?.receive(late);
  await until(() => late.ends.length > 0);
  expect(late.ends[0]?.message).toBe("enough");
  client.destroy();
});
