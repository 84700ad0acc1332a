import { connect as connectTcp, createServer, type Socket } from "node:net";
import * as tls from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import type { Credentials } from "../../src/transport/credentials.ts";
import { type ConnectTlsOptions, connectTls } from "../../src/transport/tls.ts";
import { encodeFrame } from "../../src/wire/frame.ts";
import {
  dataFrame,
  day,
  foreignOptions,
  listen,
  loopback,
  makePki,
  minute,
  type Observed,
  observe,
  shiftedClock,
  type TestListener,
  type TestPki,
  until,
} from "./kit.ts";

let pki: TestPki;
let other: TestPki;
let site: Credentials;
let node: Credentials;
let stranger: Credentials;
let listener: TestListener;

beforeAll(async () => {
  pki = await makePki();
  other = await makePki();
  site = await pki.node("site");
  node = await pki.node("node", { hosts: [] });
  stranger = await other.node("stranger");
  listener = await listen({ credentials: site });
});
afterAll(async () => {
  await listener.close();
  await pki.remove();
  await other.remove();
});

type Overrides = Partial<ConnectTlsOptions>;

function connect(overrides: Overrides = {}) {
  return connectTls({ host: loopback, port: listener.port, credentials: node, clock: systemClock, ...overrides });
}

async function connectedPair(overrides: Overrides = {}): Promise<{ client: Observed; server: Observed }> {
  const next = listener.nextLink();
  const client = observe(await connect(overrides));
  return { client, server: observe(await next) };
}

/** Runs `attempt`, which the listener must reject: what it says. */
async function rejection(attempt: () => Promise<unknown>): Promise<ReplicationError> {
  const count = listener.rejected.length;
  await attempt();
  await until(() => listener.rejected.length > count);
  expect(listener.rejected).toHaveLength(count + 1);
  const error = listener.rejected[count]?.error;
  if (error === undefined) throw new Error("nothing was rejected");
  return error;
}

/** A client that gets as far as a link and is then told why it is not wanted. */
async function refusedClient(credentials: Credentials, overrides: Overrides = {}) {
  let told: Observed | undefined;
  const here = await rejection(async () => {
    told = observe(await connect({ credentials, ...overrides }));
    // The session's first frame is on its way when the refusal comes: it must not turn the reason into a reset.
    told.link.send({ type: "bye" });
    expect(await told.ended).toBeUndefined();
  });
  expect(told?.messages).toMatchObject([{ type: "error", code: here.code, message: here.message }]);
  return here;
}

describe("a good pair", () => {
  test("knows each other, and frames go both ways", async () => {
    const { client, server } = await connectedPair();
    expect(client.link.peer).toEqual({
      name: "site",
      fingerprint: site.fingerprint,
      address: `${loopback}:${listener.port}`,
      ownAuthority: true,
    });
    expect(server.link.peer).toMatchObject({ name: "node", fingerprint: node.fingerprint, ownAuthority: true });
    expect(server.link.peer.address).toMatch(/^127\.0\.0\.1:\d+$/);

    const frames = [1, 2, 3].map((fill) => dataFrame(1024 * 1024, fill));
    await Promise.all(frames.map((frame) => client.link.sendFrame(frame)));
    await server.received(3);
    expect(server.payloads.map((payload) => [payload.length, payload[0]])).toEqual([
      [1024 * 1024, 1],
      [1024 * 1024, 2],
      [1024 * 1024, 3],
    ]);
    server.link.send({ type: "pages", request: 1, first: 0, count: 1 }, Uint8Array.of(0));
    await client.received(1);
    expect(client.messages).toEqual([{ type: "pages", request: 1, first: 0, count: 1 }]);
    await client.link.close();
    expect([await client.ended, await server.ended]).toEqual([undefined, undefined]);
    await server.link.close();
    expect([client.ends.length, server.ends.length]).toEqual([1, 1]);
  });

  test("counts the bytes on the wire, TLS included, and still after the end", async () => {
    const { client, server } = await connectedPair();
    const before = client.link.bytesSent;
    expect(before).toBeGreaterThan(1_000);
    const frame = dataFrame(1024 * 1024, 7);
    await client.link.sendFrame(frame);
    await server.received(1);
    const used = client.link.bytesSent - before;
    // 22 bytes for each record of 16 KiB.
    expect(used - frame.length).toBeGreaterThanOrEqual(22 * 64);
    expect(used - frame.length).toBeLessThan(22 * 100);
    await client.link.close();
    await server.link.close();
    expect(server.link.bytesReceived).toBe(client.link.bytesSent);
    expect(client.link.bytesReceived).toBe(server.link.bytesSent);
  });

  test("delivers what came before start, and nothing is read of a flood until then", async () => {
    const next = listener.nextLink();
    const client = observe(await connect());
    const link = await next;
    let taken = 0;
    const sends = Array.from({ length: 64 }, (_, index) =>
      client.link.sendFrame(dataFrame(1024 * 1024, index)).then(() => void taken++),
    );
    await until(() => taken > 0 && client.link.bytesQueued > 0 && link.bytesReceived > 10_000);
    const held = link.bytesReceived;
    expect(held).toBeLessThan(1024 * 1024);
    const server = observe(link);
    await Promise.all(sends);
    await server.received(64);
    expect(server.payloads.map((payload) => payload[0])).toEqual(Array.from({ length: 64 }, (_, index) => index));
    expect(client.link.bytesQueued).toBe(0);
    await client.link.close();
    await server.link.close();
  });

  test("frames waiting when the link is closed still leave", async () => {
    const { client, server } = await connectedPair();
    const sends = [1, 2, 3, 4].map((fill) => client.link.sendFrame(dataFrame(1024 * 1024, fill)));
    const closed = client.link.close();
    await Promise.all(sends);
    await closed;
    expect(await server.ended).toBeUndefined();
    expect(server.payloads).toHaveLength(4);
    await expect(client.link.sendFrame(dataFrame(4_096, 1))).rejects.toMatchObject({ code: "connection-lost" });
    expect(client.link.send({ type: "bye" })).toBe(false);
  });

  test("a certificate made on a machine two minutes ahead is good at once (C-91)", async () => {
    const ahead = await pki.node("ahead", { clock: shiftedClock(2 * minute) });
    const { client, server } = await connectedPair({ credentials: ahead });
    expect(server.link.peer.name).toBe("ahead");
    await client.link.close();
  });
});

describe("the client's certificate", () => {
  test("none", async () => {
    const error = await rejection(async () => {
      const socket = tls.connect({ host: loopback, port: listener.port, rejectUnauthorized: false });
      const closed = new Promise((resolve) => socket.once("close", resolve));
      socket.on("error", () => undefined);
      socket.resume();
      await closed;
    });
    expect(error).toMatchObject({ code: "certificate-missing", details: { phase: "TLS handshake" } });
  });

  test("of another authority, though of the same name", async () => {
    const error = await refusedClient(stranger, { fingerprint: site.fingerprint });
    expect(error.code).toBe("certificate-unknown-authority");
    expect(error.message).toMatch(/"CN=stranger" of 127\.0\.0\.1:\d+ .* of the same name .* another key/);
  });

  test("expired", async () => {
    const old = await pki.node("old", { days: 1, clock: shiftedClock(-2 * day) });
    expect(await refusedClient(old)).toMatchObject({ code: "certificate-expired" });
  });

  test("not yet valid: clocks differ, and the message says by how much (C-92)", async () => {
    const young = await pki.node("young", { clock: shiftedClock(day) });
    const error = await refusedClient(young);
    expect(error.code).toBe("certificate-not-yet-valid");
    expect(error.message).toMatch(/clocks differ by about (1439|1440|1441) min/);
  });
});

describe("the server's certificate", () => {
  async function against(credentials: Credentials, overrides: Overrides = {}): Promise<ReplicationError> {
    const server = await listen({ credentials });
    const outcome: unknown = await connect({ port: server.port, ...overrides }).catch((error: unknown) => error);
    await server.close();
    for (const link of server.links) await link.close();
    if (!(outcome instanceof ReplicationError)) throw new Error("the client should have refused");
    expect(outcome.message).toContain(`${loopback}:${server.port}`);
    return outcome;
  }

  test("of another authority", async () => {
    expect(await against(stranger)).toMatchObject({ code: "certificate-unknown-authority" });
  });

  test("expired, not yet valid", async () => {
    const old = await pki.node("old-site", { days: 1, clock: shiftedClock(-2 * day) });
    expect(await against(old)).toMatchObject({ code: "certificate-expired" });
    const young = await pki.node("young-site", { clock: shiftedClock(day) });
    expect((await against(young)).message).toMatch(/clocks differ by about/);
  });

  test("for another host; a name given for it is checked in its place", async () => {
    const error = await against(node);
    expect(error.code).toBe("certificate-wrong-host");
    expect(error.message).toMatch(/not for 127\.0\.0\.1 but for DNS:node/);
    expect(await against(site, { serverName: "elsewhere" })).toMatchObject({ code: "certificate-wrong-host" });
    const { client, server } = await connectedPair({ serverName: "site" });
    expect(server.link.peer.name).toBe("node");
    await client.link.close();
  });

  test("pinned: that one and no other, whoever issued it", async () => {
    const { fingerprint } = site;
    const spellings = [fingerprint, fingerprint.toLowerCase(), fingerprint.replaceAll(":", "")];
    for (const spelling of spellings) {
      const { client } = await connectedPair({ fingerprint: spelling, serverName: "elsewhere" });
      expect(client.link.peer).toMatchObject({ name: "site", ownAuthority: true });
      await client.link.close();
    }
    const wrong = await against(site, { fingerprint: node.fingerprint });
    expect(wrong.code).toBe("certificate-wrong-fingerprint");
    const old = await pki.node("pinned-old", { days: 1, clock: shiftedClock(-2 * day) });
    expect(await against(old, { fingerprint: old.fingerprint })).toMatchObject({ code: "certificate-expired" });
    await expect(connect({ fingerprint: "AA:BB" })).rejects.toMatchObject({ code: "usage" });
  });

  test("the server is told why it was refused", async () => {
    const next = listener.nextLink();
    await expect(connect({ serverName: "elsewhere" })).rejects.toMatchObject({ code: "certificate-wrong-host" });
    const server = observe(await next);
    expect(await server.ended).toBeUndefined();
    expect(server.messages).toMatchObject([{ type: "error", code: "certificate-wrong-host" }]);
  });
});

describe("what is no TLS 1.3", () => {
  test.each([
    ["an HTTP request", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    ["a banner", "SSH-2.0-OpenSSH_9.9\r\n"],
    ["zeros", Buffer.alloc(64)],
    ["a frame of ours without TLS", encodeFrame({ type: "bye" })],
  ])("%s at the server", async (_what, bytes) => {
    const error = await rejection(async () => {
      const socket = connectTcp(listener.port, loopback, () => socket.write(bytes));
      socket.on("error", () => undefined);
      socket.resume();
      await new Promise((resolve) => socket.once("close", resolve));
    });
    expect(error).toMatchObject({ code: "not-tls", details: { phase: "TLS handshake" } });
    expect(listener.pending).toBe(0);
  });

  test("TLS 1.2 at the server", async () => {
    const error = await rejection(async () => {
      const options = { ...(await foreignOptions(node)), minVersion: "TLSv1.2", maxVersion: "TLSv1.2" } as const;
      const socket = tls.connect({ ...options, host: loopback, port: listener.port });
      socket.on("error", () => undefined);
      await new Promise((resolve) => socket.once("close", resolve));
    });
    expect(error.code).toBe("tls-failed");
    expect(error.message).toMatch(/does not speak TLS 1\.3/);
  });

  async function tcpServer(onSocket: (socket: Socket) => void): Promise<{ port: number; close(): void }> {
    const server = createServer((socket) => {
      socket.on("error", () => undefined);
      onSocket(socket);
    });
    await new Promise<void>((resolve) => server.listen(0, loopback, resolve));
    const bound = server.address();
    if (bound === null || typeof bound === "string") throw new Error("no port");
    return { port: bound.port, close: () => server.close() };
  }

  test.each<[string, (socket: Socket) => void, string]>([
    ["speaks HTTP", (socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"), "not-tls"],
    ["greets first", (socket) => socket.write("220 mail.example\r\n"), "not-tls"],
    ["closes at once", (socket) => socket.end(), "connection-lost"],
    ["resets when spoken to", (socket) => socket.once("data", () => socket.resetAndDestroy()), "connection-lost"],
  ])("a server that %s", async (_what, onSocket, code) => {
    const server = await tcpServer(onSocket);
    const error: unknown = await connect({ port: server.port }).catch((thrown: unknown) => thrown);
    server.close();
    const peer = `${loopback}:${server.port}`;
    expect(error).toMatchObject({ code, details: { peer, phase: "TLS handshake" } });
    expect(String(error)).toContain(`${peer}, TLS handshake`);
  });

  test("a server that says nothing: the time limit, and the caller's signal", async () => {
    const held: Socket[] = [];
    const server = await tcpServer((socket) => held.push(socket.resume()));
    const clock = createFakeClock({ now: Date.now() });
    const silent = connect({ port: server.port, clock, timeoutMillis: 5_000 });
    const watched = expect(silent).rejects.toMatchObject({
      code: "handshake-timeout",
      details: { phase: "TLS handshake" },
    });
    await until(() => held.length === 1);
    await new Promise((resolve) => held[0]?.once("data", resolve));
    clock.advance(5_000);
    await watched;
    expect(clock.waiting).toBe(0);

    const stop = new AbortController();
    const aborted = expect(connect({ port: server.port, clock, signal: stop.signal })).rejects.toMatchObject({
      code: "aborted",
    });
    await until(() => held.length === 2);
    stop.abort();
    await aborted;
    await expect(connect({ port: server.port, signal: stop.signal })).rejects.toMatchObject({ code: "aborted" });
    await until(() => held.every((socket) => socket.destroyed));
    server.close();
  });

  test("nobody listens", async () => {
    const server = await tcpServer(() => undefined);
    server.close();
    const error: unknown = await connect({ port: server.port }).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: "connect-failed", details: { phase: "connect" } });
    expect(String(error)).toContain("connection refused");
  });

  test("an address that is in use", async () => {
    await expect(listen({ credentials: site, port: listener.port })).rejects.toMatchObject({
      code: "listen-failed",
      message: expect.stringContaining("in use"),
    });
  });
});
