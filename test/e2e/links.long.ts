/** Bad networks at length: a minute of cuts, cuts at 200 bytes, and links that go silent. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { logLines, makeNoise, MIB, waitForLog } from "./content.ts";
import { expectDone, makeSetting } from "./interrupt.ts";
import {
  type CliProcess,
  cmpFiles,
  makePki,
  type Pki,
  replicaPath,
  send,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { cutAtEveryStage } from "./link-cuts.ts";
import { startProxy } from "./proxy.ts";
import { Load, Tracker } from "./track/kit.ts";

/** In the names of tests, so that a failure tells it. */
const seed = Date.now() & 0xffff;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("a link that is cut every 5 s, for a copy of a minute", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeNoise(image, 600 * MIB, 1);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const proxy = await startProxy(t, receiver.port, { cutEveryMs: 5_000 });
  const args = ["--rate", "10MiB", "--codec", "none"];
  const { code, done, stderr } = await send(t, { image, port: proxy.port, disk: "vm", tls: pki.send, args });
  expect(code, stderr).toBe(0);
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  expect(done?.attempts).toBeGreaterThan(5);
  expect(done?.bytesWire).toBeLessThan(600 * MIB * 1.05 + (done?.attempts ?? 0) * 3 * MIB);
});

test(`a connection reset at 200 bytes of chance: committed once, at both ends (C-49), seed ${String(seed)}`, async (t) => {
  await cutAtEveryStage(t, pki, { imageBytes: 4 * MIB, seed, random: 200, atOnce: 4 });
});

test("a link that goes silent in the middle of the data: both ends notice, free the disk, and go on after (C-56)", async (t) => {
  const setting = await makeSetting(t, pki, 32 * MIB, 2);
  const { proxy, receiver, image } = setting;
  const args = ["--rate", "8MiB", "--codec", "none"];
  const sender = startSend(t, { image, port: proxy.port, disk: "vm", tls: pki.send, args });
  await proxy.passedUp(8 * MIB);
  proxy.setBlackhole(true);
  await Promise.all([
    waitForLog(sender, { code: "peer-silent" }),
    waitForLog(receiver.process, { code: "peer-silent" }),
  ]);
  proxy.setBlackhole(false);
  const done = await expectDone(setting, sender, "vm");
  expect(done.point).toBe(1);
});

test("a link that goes silent before the last word: one point, and both ends say so (C-56, C-62)", async (t) => {
  const setting = await makeSetting(t, pki, 8 * MIB, 3);
  const { proxy, receiver, image } = setting;
  const args = ["--rate", "4MiB", "--codec", "none"];
  const sender = startSend(t, { image, port: proxy.port, disk: "vm", tls: pki.send, args });
  await proxy.passedUp(2 * MIB);
  proxy.setDeaf(true);
  await receiver.process.waitForEvent("point");
  await waitForLog(sender, { code: "peer-silent" });
  proxy.setDeaf(false);
  const done = await expectDone(setting, sender, "vm");
  expect(done.point).toBe(1);
  expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(1);
});

/** The process says this code once more than it has so far. */
async function saysAgain(child: CliProcess, code: string): Promise<void> {
  const count = (): number => logLines(child).filter((line) => line["code"] === code).length;
  const before = count();
  await child.waitFor(() => count() > before);
}

test("a receiver that stands still in the middle of the data: the sender notices, tries again, and goes on when it is back (C-56)", async (t) => {
  const setting = await makeSetting(t, pki, 32 * MIB, 4);
  const { proxy, receiver, image } = setting;
  const args = ["--rate", "8MiB", "--codec", "none"];
  const sender = startSend(t, { image, port: proxy.port, disk: "vm", tls: pki.send, args });
  await proxy.passedUp(8 * MIB);
  receiver.process.signal("SIGSTOP");
  await saysAgain(sender, "peer-silent");
  // Its kernel still takes connections; that is no answer.
  await saysAgain(sender, "handshake-timeout");
  await saysAgain(sender, "handshake-timeout");
  receiver.process.signal("SIGCONT");
  const done = await expectDone(setting, sender, "vm");
  expect(done).toMatchObject({ point: 1 });
  expect(done.attempts).toBeGreaterThan(3);
  expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(1);
});

test("between two cycles of a tracker the network goes, then the receiver stands still: cycles go on by themselves afterwards (C-56)", async (t) => {
  const setting = await makeSetting(t, pki, 16 * MIB, 5);
  const { proxy, receiver, image, dir } = setting;
  const to = `127.0.0.1:${String(proxy.port)}/vm`;
  const tracker = await Tracker.start(t, {
    ...{ image, socket: join(dir, "vm.sock"), to, tls: pki.send },
    args: ["--every", "5s", "--codec", "none"],
  });
  for (const [away, back] of [
    [(): void => proxy.setBlackhole(true), (): void => proxy.setBlackhole(false)],
    [(): void => receiver.process.signal("SIGSTOP"), (): void => receiver.process.signal("SIGCONT")],
  ] as const) {
    const { point } = await tracker.nextDone(1);
    away();
    // The machine does not notice.
    const load = await Load.start(t, { uri: tracker.uri, random: setting.random, bytes: setting.imageBytes });
    await load.more(200);
    await load.stop();
    // Until a cycle has been given up: it is the next one that goes on.
    const givenUp = (): number =>
      logLines(tracker.child).filter(({ msg }) => String(msg).endsWith("what changed is sent with the next cycle"))
        .length;
    const before = givenUp();
    await tracker.child.waitFor(() => givenUp() > before);
    expect(tracker.done.at(-1)).toMatchObject({ point });
    back();
    expect(await tracker.nextDone(1)).toMatchObject({ reason: "bitmap" });
    await tracker.nextDone(1);
    expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  }
  expect(await tracker.child.stop()).toBe(0);
  expect(logLines(receiver.process).filter((line) => line["code"] === "internal")).toEqual([]);
});
