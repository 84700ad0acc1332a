/** Bad networks at length: a minute of cuts, cuts at 200 bytes, and links that go silent. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeNoise, MIB, waitForLog } from "./content.ts";
import { expectDone, makeSetting } from "./interrupt.ts";
import {
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
