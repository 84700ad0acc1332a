/** Memory of both ends: a dense image of 4 GiB that nothing compresses, over a slow link, and to a receiver that stands still again and again; a tracker under load. */
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { followPeak, GIB, knownPeak, makeNoise, MIB } from "./content.ts";
import {
  type CliProcess,
  cmpFiles,
  finish,
  makePki,
  type Pki,
  procRss,
  type Receiver,
  replicaPath,
  seededRandom,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { type Proxy, startProxy } from "./proxy.ts";
import { Load, Tracker } from "./track/kit.ts";

const memoryMax = 300 * MIB;
const imageBytes = 4 * GIB;
const suite = suiteScope();
let pki: Pki;
let image: string;

beforeAll(async () => {
  const dir = tempDir(suite);
  pki = await makePki(suite, join(dir, "pki"));
  image = join(dir, "disk.raw");
  makeNoise(image, imageBytes, 1);
});

/** Sends the image while `hinder` makes it hard, and judges what both ends took. */
async function expectSmall(
  t: TestContext,
  hinder: (parts: { readonly sender: CliProcess; readonly receiver: Receiver; readonly proxy: Proxy }) => Promise<void>,
): Promise<void> {
  const receiver = await startReceiver(t, { storeDir: join(tempDir(t), "store"), tls: pki.recv });
  const proxy = await startProxy(t, receiver.port);
  const sender = startSend(t, { image, port: proxy.port, disk: "vm", tls: pki.send });
  const peak = followPeak(sender);
  await hinder({ sender, receiver, proxy });
  const { code, done, stderr } = await finish(sender);
  expect(code, stderr).toBe(0);
  expect(done).toMatchObject({ attempts: 1, bytesChanged: imageBytes });
  const peaks = [knownPeak(peak()), knownPeak(procRss(receiver.process.pid))];
  await t.annotate(
    `${String(done?.seconds)} s, peak memory ${peaks.map((bytes) => Math.round(bytes / MIB)).join(" and ")} MiB`,
  );
  expect(Math.max(...peaks)).toBeLessThan(memoryMax);
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
}

test("a slow link: what was read waits in a few slots, at both ends", async (t) => {
  await expectSmall(t, async ({ proxy }) => {
    proxy.setThrottle(12 * MIB);
    await proxy.passedUp(384 * MIB);
    proxy.setThrottle(undefined);
  });
});

/** Looks, one each 50 ms, after which bytes that do not move are taken for stuck. */
const stillLooks = 8;

/** Resolves when the link passes nothing more. */
async function stuck(proxy: Proxy): Promise<void> {
  for (let still = 0, before = -1; still < stillLooks; still++) {
    if (proxy.bytesUp !== before) still = 0;
    before = proxy.bytesUp;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("a receiver that is stopped after each 96 MiB until nothing moves any more", async (t) => {
  let stops = 0;
  await expectSmall(t, async ({ receiver, proxy }) => {
    for (let at = 96 * MIB; at < imageBytes; at += 96 * MIB) {
      await proxy.passedUp(at);
      receiver.process.signal("SIGSTOP");
      await stuck(proxy);
      receiver.process.signal("SIGCONT");
      stops++;
    }
  });
  expect(stops).toBeGreaterThan(40);
});

test("a tracker whose machine writes all the time, over a slow link: old content of the cut goes to a file", async (t) => {
  const dir = tempDir(t);
  const tracked = join(dir, "vm.raw");
  const trackedBytes = 768 * MIB;
  makeNoise(tracked, trackedBytes, 2);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const proxy = await startProxy(t, receiver.port, { throttleBytesPerSecond: 16 * MIB });
  const tracker = await Tracker.start(t, {
    ...{ image: tracked, socket: join(dir, "vm.sock"), to: `127.0.0.1:${String(proxy.port)}/vm`, tls: pki.send },
    args: ["--every", "0"],
  });
  const load = await Load.start(t, { uri: tracker.uri, random: seededRandom(3), bytes: trackedBytes });
  await tracker.firstDone();
  await tracker.nextDone(1);
  await load.stop();
  await t.annotate(`${String(load.written)} requests`);
  expect(load.written).toBeGreaterThan(10_000);
  proxy.setThrottle(undefined);
  await tracker.nextDone(2);
  const peaks = [tracker.child.pid, receiver.process.pid].map((pid) => knownPeak(procRss(pid)));
  await t.annotate(`peak memory ${peaks.map((bytes) => Math.round(bytes / MIB)).join(" and ")} MiB`);
  expect(Math.max(...peaks)).toBeLessThan(memoryMax);
  expect(cmpFiles(tracked, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
});
