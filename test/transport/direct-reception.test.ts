/** Received bytes go straight to their place, and never to a place that has been given back. */
import { connect as connectTcp } from "node:net";
import * as tls from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { MIB } from "../../src/base/units.ts";
import type { Credentials } from "../../src/transport/credentials.ts";
import { receiveDirectly } from "../../src/transport/direct-reception.ts";
import type { Link } from "../../src/transport/link.ts";
import { TlsLink } from "../../src/transport/tls-link.ts";
import {
  dataFrame,
  foreignOptions,
  listen,
  loopback,
  makePki,
  observe,
  type TestListener,
  type TestPki,
  until,
} from "./kit.ts";

let pki: TestPki;
let node: Credentials;
let listener: TestListener;
let reclaims = 0;

beforeAll(async () => {
  pki = await makePki();
  node = await pki.node("node");
  listener = await listen({ credentials: await pki.node("site"), reclaim: () => reclaims++ });
});
afterAll(async () => {
  await listener.close();
  await pki.remove();
});

async function foreignClient(): Promise<{ socket: tls.TLSSocket; link: Link }> {
  const next = listener.nextLink();
  const socket = tls.connect({ ...(await foreignOptions(node)), socket: connectTcp(listener.port, loopback) });
  socket.on("error", () => undefined);
  await new Promise<void>((resolve) => socket.once("secureConnect", () => resolve()));
  return { socket, link: await next };
}

test("this version of Node has the switch: no array is made for a record", async () => {
  const { socket, link } = await foreignClient();
  const server = observe(link);
  reclaims = 0;
  for (let frame = 1; frame <= 40; frame++) socket.write(dataFrame(MIB, frame));
  await server.received(40);
  expect(reclaims).toBe(0);
  for (const [index, payload] of server.payloads.entries()) {
    expect(Buffer.compare(payload, Buffer.alloc(MIB, index + 1))).toBe(0);
  }
  socket.end();
  expect(await server.ended).toBeUndefined();
});

test("frames of every length, in pieces of every length", async () => {
  const { socket, link } = await foreignClient();
  const server = observe(link);
  const lengths = [4_096, 8_192, 16_384, 20_480, 65_536, 4_096 * 100, MIB];
  const whole = Buffer.concat(lengths.map((length, index) => dataFrame(length, index + 1)));
  for (let at = 0, step = 1; at < whole.length; at += step, step = (step * 7 + 3) % 50_021) {
    await new Promise<void>((resolve) => void socket.write(whole.subarray(at, at + step), () => resolve()));
  }
  await server.received(lengths.length);
  for (const [index, payload] of server.payloads.entries()) {
    expect(Buffer.compare(payload, Buffer.alloc(lengths[index] ?? 0, index + 1))).toBe(0);
  }
  socket.end();
  await server.ended;
});

const endings: readonly [string, (link: Link) => unknown][] = [
  ["closed", (link) => link.close()],
  ["destroyed", (link) => link.destroy(new ReplicationError("aborted", "stop"))],
];

test.each(endings)(
  "a link that is %s in the middle of a payload leaves its memory alone at once",
  async (_name, end) => {
    const { socket, link } = await foreignClient();
    const payload = new Uint8Array(MIB);
    const ended = new Promise<void>((resolve) => {
      link.start({ payloadTarget: () => payload, onFrame: () => undefined, onEnd: () => resolve() });
    });
    const frame = dataFrame(MIB, 7);
    socket.write(frame.subarray(0, 400_000));
    await until(() => payload[300_000] === 7);
    const over = end(link);
    payload.fill(0xee); // its next owner
    socket.end(frame.subarray(400_000));
    await ended;
    await over;
    await until(() => socket.destroyed);
    expect(Buffer.compare(payload, Buffer.alloc(MIB, 0xee))).toBe(0);
  },
);

test("without the switch the same frames come by another way", async () => {
  const options = await foreignOptions(node);
  let link: TlsLink | undefined;
  let asked = 0;
  const server = tls.createServer(options, (socket) => {
    Reflect.set(Reflect.get(socket, "_handle"), "useUserBuffer", undefined);
    const peer = { name: "node", fingerprint: "", address: loopback, ownAuthority: true };
    link = new TlsLink({ socket, raw: socket, peer, clock: systemClock, log: silentLogger, reclaim: () => asked++ });
  });
  await new Promise<void>((resolve) => server.listen(0, loopback, resolve));
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  const client = tls.connect({ ...options, host: loopback, port });
  await until(() => link !== undefined);
  if (link === undefined) throw new Error("no link");
  const seen = observe(link);
  for (let frame = 1; frame <= 20; frame++) client.write(dataFrame(MIB, frame));
  await seen.received(20);
  expect(asked).toBe(1);
  for (const [index, payload] of seen.payloads.entries()) {
    expect(Buffer.compare(payload, Buffer.alloc(MIB, index + 1))).toBe(0);
  }
  client.end();
  await seen.ended;
  server.close();
});

test("a socket that is built otherwise is left alone", () => {
  const stranger = new Proxy({}, {}) as tls.TLSSocket;
  expect(
    receiveDirectly(
      stranger,
      Buffer.alloc(1),
      () => true,
      () => Buffer.alloc(1),
    ),
  ).toBeUndefined();
});
