/** The test kit itself: a proxy that does not cut, or a comparison that finds nothing, would make other tests pass for nothing. */
import { once } from "node:events";
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { knownPeak } from "./content.ts";
import { changeImage, cmpFiles, fsck, makeExt4, makeImage, needTools, procRss, type Scope, tempDir } from "./kit.ts";
import { startProxy } from "./proxy.ts";

/** A server that sends back what it gets; returns its port. */
async function startEcho(scope: Scope): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  scope.onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** Sends `bytes`, half-closes, and returns what came back and whether the connection was reset. */
function exchange(port: number, bytes: Buffer): Promise<{ readonly got: Buffer; readonly reset: boolean }> {
  return new Promise((resolve) => {
    const parts: Buffer[] = [];
    let reset = false;
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("data", (chunk) => parts.push(chunk));
    socket.on("error", () => {
      reset = true;
    });
    socket.on("close", () => resolve({ got: Buffer.concat(parts), reset }));
    socket.end(bytes);
  });
}

const payload = Buffer.alloc(300_000, "0123456789abcdef");

test("the proxy passes bytes in both directions, and a half-close", async (t) => {
  const proxy = await startProxy(t, await startEcho(t));
  const { got, reset } = await exchange(proxy.port, payload);
  expect(reset).toBe(false);
  expect(got.equals(payload)).toBe(true);
  expect(proxy.bytes).toBe(2 * payload.length);
  await proxy.passed(payload.length);
});

test("the proxy cuts after so many bytes, the first connection only", async (t) => {
  const proxy = await startProxy(t, await startEcho(t), { cutAfterBytes: 100_000 });
  const first = await exchange(proxy.port, payload);
  expect(first.reset).toBe(true);
  expect(first.got.length).toBeLessThan(100_000);
  const second = await exchange(proxy.port, payload);
  expect(second.got.equals(payload)).toBe(true);
  expect(proxy.connections).toBe(2);
});

test("the proxy swallows and cuts on request", async (t) => {
  const proxy = await startProxy(t, await startEcho(t), { blackhole: true });
  const socket = connect({ host: "127.0.0.1", port: proxy.port });
  const failed = once(socket, "error");
  socket.write("lost");
  await once(socket, "connect");
  proxy.setBlackhole(false);
  proxy.cut();
  const outcome = await Promise.race([failed.then(() => "cut"), once(socket, "data").then(() => "data")]);
  expect(outcome).toBe("cut");
  expect(proxy.bytes).toBe(0);
});

test("a throttled proxy passes the same bytes", async (t) => {
  const proxy = await startProxy(t, await startEcho(t), { throttleBytesPerSecond: 10_000_000 });
  const { got } = await exchange(proxy.port, payload);
  expect(got.equals(payload)).toBe(true);
});

test("cmp finds one changed piece, and images are the same each time", (t) => {
  const dir = tempDir(t);
  const [a, b] = [join(dir, "a.raw"), join(dir, "b.raw")];
  makeImage(a, 1_000_003);
  makeImage(b, 1_000_003);
  expect(cmpFiles(a, b)).toBeUndefined();
  expect(changeImage(b, 3, 7)).toHaveLength(3);
  expect(cmpFiles(a, b)).toContain("differ");
});

test("e2fsck tells a good file system from a damaged one", (t) => {
  needTools(t, "mke2fs", "e2fsck");
  const dir = tempDir(t);
  mkdirSync(join(dir, "tree"));
  writeFileSync(join(dir, "tree/file"), "content");
  const image = join(dir, "a.ext4");
  makeExt4(image, 8, join(dir, "tree"));
  expect(fsck(image)).toMatchObject({ clean: true });
  copyFileSync(image, join(dir, "b.ext4"));
  expect(cmpFiles(image, join(dir, "b.ext4"))).toBeUndefined();
  writeFileSync(join(dir, "b.ext4"), Buffer.alloc(8 << 20).fill(7));
  expect(fsck(join(dir, "b.ext4")).clean).toBe(false);
});

test("peak memory of a process", (t) => {
  const own = procRss(process.pid);
  if (own === undefined) t.skip("no /proc");
  expect(own).toBeGreaterThan(10 << 20);
  expect(procRss(2 ** 30)).toBeUndefined();
  expect(knownPeak(own)).toBe(own);
  // A figure that is missing where there could be one is no small one.
  expect(() => knownPeak(undefined)).toThrow("missing");
});
