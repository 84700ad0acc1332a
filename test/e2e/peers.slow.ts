/** Strangers and broken clients at a receiver's port: each is told apart in its log, and the transfer next to them goes on. */
import { readFileSync } from "node:fs";
import { connect as connectTcp, type Socket } from "node:net";
import { join } from "node:path";
import { connect as connectTls, type SecureContextOptions, type TLSSocket } from "node:tls";
import { beforeAll, expect, type TestContext, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { systemRandom } from "../../src/base/random.ts";
import { issueCertificate } from "../../src/transport/pki.ts";
import { encodeFrame } from "../../src/wire/frame.ts";
import { offer } from "../../src/wire/handshake.ts";
import { knownPeak, logLines, makeNoise, MIB, noise, until, waitForLog } from "./content.ts";
import { expectDone, makeSetting, through } from "./interrupt.ts";
import {
  cmpFiles,
  finish,
  makePki,
  type Pki,
  procRss,
  type Receiver,
  replicaPath,
  replicate,
  send,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";

const memoryMax = 300 * MIB;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
  expect((await replicate(suite, ["pki", "issue", pki.dir, "guest"])).code).toBe(0);
  // Issued three days ago for one day.
  const past = { ...systemClock, now: () => Date.now() - 3 * 86_400_000 };
  await issueCertificate({ directory: pki.dir, name: "expired", days: 1, clock: past, random: systemRandom });
});

function identity(directory: string): SecureContextOptions {
  const file = (name: string): Buffer => readFileSync(join(directory, name));
  return { ca: file("ca.pem"), cert: file("cert.pem"), key: file("key.pem") };
}

/** A TLS connection; resolves when its handshake is through as far as the client can tell. */
async function openTls(
  t: TestContext,
  receiver: Receiver,
  options: SecureContextOptions,
): Promise<{ readonly socket: TLSSocket; readonly address: string }> {
  const socket = connectTls({ ...options, host: "127.0.0.1", port: receiver.port, rejectUnauthorized: false });
  t.onTestFinished(() => void socket.destroy());
  // Taken at once: the receiver may be quick to end it.
  let address = "";
  socket.once("connect", () => {
    address = `127.0.0.1:${String(socket.localPort)}`;
  });
  await new Promise<void>((resolve, reject) => {
    socket.once("secureConnect", resolve);
    socket.once("error", reject);
  });
  socket.on("error", () => {
    // The receiver ends it, which is what is looked for in its log.
  });
  socket.resume();
  return { socket, address };
}

async function openTcp(
  t: TestContext,
  receiver: Receiver,
): Promise<{ readonly socket: Socket; readonly address: string }> {
  const socket = connectTcp({ host: "127.0.0.1", port: receiver.port });
  t.onTestFinished(() => void socket.destroy());
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", reject);
  });
  const address = `127.0.0.1:${String(socket.localPort)}`;
  socket.on("error", () => {
    // As above.
  });
  socket.resume();
  return { socket, address };
}

function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.closed) resolve();
    else socket.once("close", () => resolve());
  });
}

interface Running {
  readonly receiver: Receiver;
  /** The paced transfer ended well beside all this. */
  finished(): Promise<void>;
}

/** A receiver with a paced transfer under way. */
async function startTransfer(t: TestContext, megabytes: number): Promise<Running> {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeNoise(image, megabytes * MIB, 1);
  const args = ["--allow", "send=vm*", "--allow", "guest=guest-*", "--log-level", "debug"];
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv, args });
  const sendArgs = ["--rate", "4MiB", "--codec", "none"];
  const sender = startSend(t, { image, port: receiver.port, disk: "vm1", tls: pki.send, args: sendArgs });
  await waitForLog(receiver.process, { disk: "vm1" }, /session open/);
  return {
    receiver,
    async finished() {
      const { code, done, stderr } = await finish(sender);
      expect(code, stderr).toBe(0);
      expect(done).toMatchObject({ attempts: 1, point: 1 });
      expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm1"))).toBeUndefined();
      expect(knownPeak(procRss(receiver.process.pid))).toBeLessThan(memoryMax);
    },
  };
}

// These wait for timers of the receiver more than they work: side by side.
test.concurrent("certificates: none, of another authority, expired, not allowed for the disk; each has its line in the log", async (t) => {
  const { receiver, finished } = await startTransfer(t, 16);
  const strangers = await makePki(t, join(tempDir(t), "strangers"));
  const cases: readonly [SecureContextOptions, string][] = [
    [{}, "certificate-missing"],
    [identity(strangers.send), "certificate-unknown-authority"],
    [identity(join(pki.dir, "expired")), "certificate-expired"],
  ];
  for (const [options, code] of cases) {
    const { socket, address } = await openTls(t, receiver, options);
    const line = await waitForLog(receiver.process, { code, peer: address });
    expect(String(line["msg"]).length).toBeGreaterThan(20);
    await closed(socket);
  }
  // One line each, not two.
  expect(logLines(receiver.process).filter((line) => "code" in line)).toHaveLength(cases.length);

  const image = join(tempDir(t), "disk.raw");
  makeNoise(image, 1 * MIB, 2);
  const refused = await send(t, { image, port: receiver.port, disk: "vm2", tls: join(pki.dir, "guest") });
  expect(refused.code).toBe(1);
  expect(refused.error).toMatchObject({ code: "not-allowed", action: "never" });
  await waitForLog(receiver.process, { code: "not-allowed", peer: "guest", disk: "vm2" });
  const allowed = await send(t, { image, port: receiver.port, disk: "guest-1", tls: join(pki.dir, "guest") });
  expect(allowed.code, allowed.stderr).toBe(0);

  const expired = await send(t, { image, port: receiver.port, disk: "vm3", tls: join(pki.dir, "expired") });
  expect(expired.code).toBe(1);
  expect(expired.error).toMatchObject({ code: "certificate-expired", action: "never" });
  await finished();
});

test.concurrent("bytes that are no TLS, no frames, no sensible lengths: each has its line in the log", async (t) => {
  const { receiver, finished } = await startTransfer(t, 16);
  for (const bytes of [Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), noise(1, 100_000), Buffer.alloc(4_096)]) {
    const { socket, address } = await openTcp(t, receiver);
    socket.write(bytes);
    await waitForLog(receiver.process, { code: "not-tls", peer: address });
    await closed(socket);
  }

  const hello = Buffer.from(encodeFrame(offer({ instance: "instance-of-a-test", software: "test/1" })));
  const withLength = (offset: number, value: number): Buffer => {
    const frame = Buffer.from(hello);
    frame.writeUInt32LE(value, offset);
    return frame;
  };
  const wrongSum = Buffer.from(hello);
  wrongSum[hello.length - 1]! ^= 1;
  const cases: readonly [string, Buffer, RegExp][] = [
    ["garbage", noise(2, 1 * MIB), /begins with/],
    ["zeros", Buffer.alloc(65_536), /begins with/],
    ["a header of 4 GiB", withLength(8, 0xffff_ffff), /header of 4294967295 bytes/],
    ["a payload of 2 GiB", withLength(12, 0x8000_0000), /payload of 2147483648 bytes/],
    ["a flipped bit", wrongSum, /checksum/],
    ["garbage after hello", Buffer.concat([hello, noise(3, 65_536)]), /begins with/],
  ];
  for (const [name, bytes, words] of cases) {
    const { socket, address } = await openTls(t, receiver, identity(pki.send));
    socket.write(bytes);
    const line = await waitForLog(receiver.process, { code: "frame-malformed", address });
    expect(line["msg"], name).toMatch(words);
    await closed(socket);
  }
  await finished();
});

test.concurrent("200 clients at once that connect and say nothing: room is made, memory stays, the transfer goes on", async (t) => {
  const { receiver, finished } = await startTransfer(t, 12);
  const silent = await Promise.all(Array.from({ length: 200 }, () => openTcp(t, receiver)));
  const ends = silent.map(({ socket }) => closed(socket));
  let ended = 0;
  for (const end of ends) void end.then(() => ended++);
  // 64 may wait; the older ones make room.
  await until(() => ended >= 200 - 64);
  // A real client still gets in, beside those that wait.
  const image = join(tempDir(t), "disk.raw");
  makeNoise(image, 1 * MIB, 3);
  const result = await send(t, { image, port: receiver.port, disk: "vm2", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  await finished();
  // The rest is dropped when its time is over, not kept for ever.
  await Promise.all(ends);
  const lines = logLines(receiver.process).filter((line) => line["code"] === "handshake-timeout");
  // Whoever reaches the port must not fill the log: some lines, and how many were left out.
  expect(lines.length).toBeGreaterThanOrEqual(20);
  expect(lines.length).toBeLessThan(200);
  expect(lines.some((line) => Number(line["linesLeftOut"]) > 0)).toBe(true);
});

test.concurrent("a certificate renewed on disk while a transfer runs: new connections get it, the transfer is not cut (C-89)", async (t) => {
  const own = await makePki(t, join(tempDir(t), "pki"));
  const setting = await makeSetting(t, own, 8 * MIB, 4);
  const { receiver, proxy } = setting;
  proxy.holdUp(3 * MIB);
  const sender = startSend(t, through(setting, "vm"));
  await proxy.passedUp(3 * MIB);
  const shown = async (): Promise<string> => {
    const { socket } = await openTls(t, receiver, identity(own.send));
    const { fingerprint256 } = socket.getPeerCertificate();
    socket.destroy();
    return fingerprint256;
  };
  const before = await shown();
  expect((await replicate(t, ["pki", "issue", own.dir, "recv", "--renew"])).code).toBe(0);
  await waitForLog(receiver.process, {}, /certificate renewed/);
  expect(await shown()).not.toBe(before);
  proxy.holdUp(undefined);
  expect(await expectDone(setting, sender, "vm")).toMatchObject({ attempts: 1 });
});
