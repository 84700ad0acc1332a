/** How connections end: in order, half, in the middle, by reset, by silence, and by peers that mean harm. */
import { connect as connectTcp, createServer, type Socket } from "node:net";
import * as tls from "node:tls";
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import type { Credentials } from "../../src/transport/credentials.ts";
import type { Link } from "../../src/transport/link.ts";
import { rejectionLinesMax } from "../../src/transport/rejection-log.ts";
import { connectTls } from "../../src/transport/tls.ts";
import { createFrameDecoder, encodeFrame } from "../../src/wire/frame.ts";
import type { Message } from "../../src/wire/messages.ts";
import {
  dataFrame,
  foreignOptions,
  keepLog,
  listen,
  loopback,
  makePki,
  observe,
  type TestListener,
  type TestPki,
  until,
} from "./kit.ts";

let pki: TestPki;
let site: Credentials;
let node: Credentials;
let listener: TestListener;
const log = keepLog();

beforeAll(async () => {
  pki = await makePki();
  site = await pki.node("site");
  node = await pki.node("node");
  listener = await listen({ credentials: site, log });
});
afterAll(async () => {
  await listener.close();
  await pki.remove();
});

const bye = encodeFrame({ type: "bye" });
const durable = encodeFrame({ type: "durable", point: 1, root: new Uint8Array(32), cycle: "c/1", created: true });

/** A good peer by its certificate, of another make: plain node TLS. */
async function foreignClient(): Promise<{ socket: tls.TLSSocket; raw: Socket; link: Link }> {
  const next = listener.nextLink();
  const raw = connectTcp(listener.port, loopback);
  const socket = tls.connect({ ...(await foreignOptions(node)), socket: raw });
  socket.on("error", () => undefined);
  await new Promise<void>((resolve) => socket.once("secureConnect", () => resolve()));
  return { socket, raw, link: await next };
}

function decodeFrames(bytes: Uint8Array): Message[] {
  const messages: Message[] = [];
  const decoder = createFrameDecoder({
    payloadTarget: () => new Uint8Array(),
    onFrame: ({ message }) => void messages.push(message),
  });
  decoder.push(bytes);
  expect(decoder.atBoundary).toBe(true);
  return messages;
}

describe("the end of a link", () => {
  test("half-closed behind the last frame: the frame counts, the end is orderly (C-50)", async () => {
    const { socket, link } = await foreignClient();
    const server = observe(link);
    socket.write(bye);
    socket.end(durable);
    expect(await server.ended).toBeUndefined();
    expect(server.messages.map(({ type }) => type)).toEqual(["bye", "durable"]);
    await link.close();
    expect(server.ends).toHaveLength(1);
  });

  test("destroyed in the write's callback: the frame still counts, however the end looks (C-50)", async () => {
    const { socket, link } = await foreignClient();
    const server = observe(link);
    socket.write(durable, () => socket.destroy());
    const error = await server.ended;
    expect(server.messages).toMatchObject([{ type: "durable" }]);
    expect(error === undefined || error.code === "connection-lost").toBe(true);
  });

  test("in the middle of a frame it is lost, wherever that is", async () => {
    for (const kept of [1, 19, 20, durable.length - 1]) {
      const { socket, link } = await foreignClient();
      const server = observe(link);
      socket.end(Buffer.concat([bye, durable.subarray(0, kept)]));
      const error = await server.ended;
      expect(error).toMatchObject({ code: "connection-lost", details: { phase: "session" } });
      expect(error?.message).toMatch(/node at 127\.0\.0\.1:\d+.* in the middle of a frame/);
      expect(server.messages).toHaveLength(1);
    }
  });

  test("garbage inside TLS is a malformed frame, and names the peer", async () => {
    const { socket, link } = await foreignClient();
    const server = observe(link);
    const received: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => void received.push(chunk));
    socket.write("GET / HTTP/1.1\r\n\r\n".repeat(10));
    const error = await server.ended;
    expect(error?.code).toBe("frame-malformed");
    expect(error?.message).toMatch(/^node at 127\.0\.0\.1:\d+: /);
    await until(() => socket.destroyed);
    expect(decodeFrames(Buffer.concat(received))).toMatchObject([{ type: "error", code: "frame-malformed" }]);
  });

  test("before start it is kept and told after", async () => {
    const { raw, link } = await foreignClient();
    raw.resetAndDestroy();
    await until(() => !link.send({ type: "bye" }));
    const server = observe(link);
    expect(server.ends).toEqual([]);
    expect(await server.ended).toMatchObject({ code: "connection-lost" });
  });

  test("destroy: the error given is the one told, once, and not before the call returns", async () => {
    const { socket, link } = await foreignClient();
    const server = observe(link);
    socket.resume();
    const waiting = [1, 2].map((fill) => link.sendFrame(dataFrame(1024 * 1024, fill)).catch((error: unknown) => error));
    const error = new ReplicationError("superseded", "a newer session took over");
    link.destroy(error);
    link.destroy(new ReplicationError("internal", "too late"));
    expect(server.ends).toEqual([]);
    expect(await server.ended).toBe(error);
    expect(await Promise.all(waiting)).toEqual([error, error]);
    await link.close();
    expect(server.ends).toEqual([error]);
    await until(() => socket.destroyed);
  });

  test("close waits two seconds for a peer that does not answer", async () => {
    const clock = createFakeClock({ now: Date.now() });
    const slow = await listen({ credentials: site, clock });
    const options = { ...(await foreignOptions(node)), host: loopback, port: slow.port };
    const raw = connectTcp({ host: loopback, port: slow.port, allowHalfOpen: true });
    const socket = tls.connect({ ...options, socket: raw });
    socket.on("error", () => undefined);
    await new Promise<void>((resolve) => socket.once("secureConnect", () => resolve()));
    const server = observe(await slow.nextLink());
    // Reads nothing: neither frames nor the end.
    socket.pause();
    let closed = false;
    const closing = server.link.close().then(() => void (closed = true));
    clock.advance(1_999);
    await until(() => clock.waiting > 0);
    expect(closed).toBe(false);
    clock.advance(1);
    await closing;
    expect(server.ends).toEqual([undefined]);
    socket.destroy();
    await slow.close();
  });
});

describe("a handler that throws", () => {
  async function withHandler(onFrame: (link: Link) => void) {
    const { socket, link } = await foreignClient();
    let frames = 0;
    const ended = new Promise<ReplicationError | undefined>((resolve) => {
      link.start({
        payloadTarget: (_message, bytes) => new Uint8Array(bytes),
        onFrame() {
          frames++;
          onFrame(link);
        },
        onEnd: resolve,
      });
    });
    socket.write(Buffer.concat([bye, bye, bye]));
    return { error: await ended, frames };
  }

  test("ends the link with its error; the rest of the chunk is not delivered", async () => {
    const refusal = new ReplicationError("disk-busy", "busy");
    const thrown = await withHandler(() => {
      throw refusal;
    });
    expect(thrown).toEqual({ error: refusal, frames: 1 });
    const destroyed = await withHandler((link) => link.destroy(refusal));
    expect(destroyed).toEqual({ error: refusal, frames: 1 });
    const closed = await withHandler((link) => void link.close());
    expect(closed).toEqual({ error: undefined, frames: 1 });
  });

  test("a broken rule of our own ends that link only, and is logged", async () => {
    const { error } = await withHandler(() => {
      throw new InvariantError("a rule");
    });
    expect(error).toMatchObject({ code: "internal" });
    expect(log.at("error")).toContain("session ended by an internal error");
    expect((await withHandler((link) => void link.close())).error).toBeUndefined();
  });
});

describe("silent clients", () => {
  test("200 of them: few are kept, a running link does not notice, all are gone after the time limit", async () => {
    const clock = createFakeClock({ now: Date.now() });
    const crowd = await listen({ credentials: site, clock, pendingMax: 16, handshakeMillis: 10_000, log });
    const connect = () =>
      connectTls({ host: loopback, port: crowd.port, credentials: node, clock: systemClock }).then((link) =>
        observe(link),
      );
    const running = await connect();
    const far = observe(await crowd.nextLink());
    const sockets: Socket[] = [];
    for (let index = 0; index < 200; index++) {
      const socket = connectTcp(crowd.port, loopback);
      socket.on("error", () => undefined);
      socket.resume();
      sockets.push(socket);
    }
    await until(() => crowd.pending === 16 && crowd.rejected.length === 184);
    expect(new Set(crowd.rejected.map(({ error }) => error.code))).toEqual(new Set(["handshake-timeout"]));
    const made = (): string[] => log.at("warn").filter((line) => line.includes("closed to make room"));
    expect(made()).toHaveLength(rejectionLinesMax);

    await running.link.sendFrame(dataFrame(1024 * 1024, 1));
    await far.received(1);
    // Who has a certificate gets in all the same.
    const late = await connect();
    observe(await crowd.nextLink());

    clock.advance(9_000);
    expect(crowd.pending).toBe(15);
    clock.advance(1_000);
    expect(crowd.pending).toBe(0);
    expect(crowd.rejected).toHaveLength(200);
    expect(crowd.rejected.at(-1)?.error.message).toMatch(/not done within 10 s/);
    const lines = log.lines.filter(({ message }) => message.includes("not done within 10 s"));
    expect([lines.length, lines[0]?.fields]).toEqual([
      15,
      expect.objectContaining({ linesLeftOut: 185 - rejectionLinesMax }),
    ]);
    await until(() => sockets.every((socket) => socket.destroyed));
    expect([running.ends, far.ends]).toEqual([[], []]);
    await Promise.all([running, late].map(({ link }) => link.close()));
    await crowd.close();
    expect(clock.waiting).toBe(0);
  });

  test("a listener that closes drops them, and leaves its links", async () => {
    const closing = await listen({ credentials: site });
    const client = observe(
      await connectTls({ host: loopback, port: closing.port, credentials: node, clock: systemClock }),
    );
    const far = observe(await closing.nextLink());
    const silent = connectTcp(closing.port, loopback);
    silent.on("error", () => undefined);
    await until(() => closing.pending === 1);
    await closing.close();
    await until(() => silent.destroyed || silent.readableEnded || closing.pending === 0);
    expect(closing.rejected).toMatchObject([{ error: { code: "receiver-stopping" } }]);
    client.link.send({ type: "bye" });
    await far.received(1);
    await client.link.close();
    silent.destroy();
  });
});

/** Forwards to the listener and resets both sides after `bytes` in one direction. */
async function resettingProxy(direction: "up" | "down", bytes: number): Promise<{ port: number; close(): void }> {
  const server = createServer((near) => {
    const far = connectTcp(listener.port, loopback);
    let left = bytes;
    const reset = (): void => {
      near.resetAndDestroy();
      far.resetAndDestroy();
    };
    const pass = (from: Socket, to: Socket, counted: boolean): void => {
      from.on("error", reset);
      from.on("end", () => to.end());
      from.on("data", (chunk: Buffer) => {
        if (!counted) {
          to.write(chunk);
          return;
        }
        to.write(chunk.subarray(0, left));
        left -= chunk.length;
        if (left <= 0) reset();
      });
    };
    pass(near, far, direction === "up");
    pass(far, near, direction === "down");
  });
  await new Promise<void>((resolve) => server.listen(0, loopback, resolve));
  const bound = server.address();
  if (bound === null || typeof bound === "string") throw new Error("no port");
  return { port: bound.port, close: () => server.close() };
}

test("a reset anywhere ends both sides with the peer and the phase in the message (C-49)", async () => {
  // Up: hello and certificates are some 2 kB, then 512 KiB of frames. Down: handshake and answers.
  const place = fc.oneof(
    fc.record({ direction: fc.constant("up" as const), bytes: fc.integer({ min: 1, max: 3_000 }) }),
    fc.record({ direction: fc.constant("up" as const), bytes: fc.integer({ min: 3_000, max: 512 * 1024 }) }),
    fc.record({ direction: fc.constant("down" as const), bytes: fc.integer({ min: 1, max: 2_500 }) }),
  );
  await fc.assert(
    fc.asyncProperty(place, async ({ direction, bytes }) => {
      const seen = listener.links.length;
      const proxy = await resettingProxy(direction, bytes);
      const talk = async (): Promise<ReplicationError | undefined> => {
        const link = await connectTls({
          host: loopback,
          port: proxy.port,
          credentials: node,
          clock: systemClock,
        });
        const client = observe(link);
        for (let fill = 0; fill < 9; fill++) {
          // Its rejection is the link's end, which is looked at.
          link.sendFrame(dataFrame(64 * 1024, fill)).catch(() => undefined);
        }
        return client.ended;
      };
      const answer = (link: Link): void => {
        const server = observe(link, () => {
          for (let index = 0; index < 40; index++) link.send({ type: "grant", frames: 1 });
        });
        void server.ended.then((error) => ends.push(error));
      };
      const ends: (ReplicationError | undefined)[] = [];
      let answered = seen;
      const talking = talk().catch((error: unknown) => error);
      let outcome: unknown;
      let done = false;
      void talking.then((result) => {
        outcome = result;
        done = true;
      });
      await until(() => {
        while (answered < listener.links.length) {
          const link = listener.links[answered++];
          if (link !== undefined) answer(link);
        }
        return done && ends.length === answered - seen;
      });
      proxy.close();
      const failures = [outcome, ...ends];
      expect(failures.some((failure) => failure !== undefined)).toBe(true);
      for (const failure of failures) {
        // See LinkHandlers.onEnd: a reset that a write noticed first looks like an end in order, at a frame's boundary.
        if (failure === undefined) continue;
        expect(failure).toBeInstanceOf(ReplicationError);
        if (!(failure instanceof ReplicationError)) return;
        expect(failure.code).toBe("connection-lost");
        expect(failure.message).toMatch(/127\.0\.0\.1:\d+, (TLS handshake|session): /);
        expect(failure.message).not.toMatch(/premature|write after|ERR_/i);
      }
    }),
    { numRuns: 30 },
  );
});
