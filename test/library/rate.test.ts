/** `rate` is of the link: whatever number of disks is sent at a time, all of them together send no more. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Clock } from "../../src/base/clock.ts";
import { KIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createReceiver } from "../../src/library/receiving.ts";
import { createMachineSender } from "../../src/library/sending.ts";
import { createEngine } from "../../src/replication/engine.ts";
import type { RateLimit } from "../../src/replication/rate.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "../replication/pair-kit.ts";
import { loopback, makePki } from "../transport/kit.ts";

const greetingBytesMax = 250;

/** Longer waits are limits of handshakes and of closing, which are not what is waited for here. */
const rateWaitMillisMax = 1_900;

/** Time that passes only when {@link pass} is called, and who waits for it because of a rate. */
function watchedClock() {
  const fake = createFakeClock();
  let asleep = 0;
  const clock: Clock = {
    ...fake,
    now: () => Date.now(),
    async sleep(millis, signal) {
      if (millis > rateWaitMillisMax) return await fake.sleep(millis, signal);
      asleep++;
      try {
        await fake.sleep(millis, signal);
      } finally {
        asleep--;
      }
    },
  };
  return {
    clock,
    get asleep() {
      return asleep;
    },
    /** To the moment at which the first of them goes on. */
    pass() {
      fake.advance((fake.nextAt ?? 0) - fake.monotonic());
    },
  };
}

test("three disks of a machine together move no more than the rate, and one burst", async (t) => {
  const rate = 1024 * KIB;
  const diskBytes = 400 * KIB;
  const watched = watchedClock();
  const { clock } = watched;
  const folder = mkdtempSync(join(tmpdir(), "replicate-rate-"));
  const pki = await makePki();
  const receiving = await createEngine({ lanes: 0, poolBytes: 48 * 1024 * KIB });
  const engine = await createEngine({ lanes: 0, poolBytes: 24 * 1024 * KIB, clock });
  const [recv, send] = [await pki.node("recv"), await pki.node("send")];
  const receiver = await createReceiver({
    ...{ engine: receiving, directory: join(folder, "store"), host: loopback, port: 0, reserveBytes: 0 },
    credentials: recv,
  });
  t.onTestFinished(async () => {
    await receiver.close();
    await engine.close();
    await receiving.close();
    await pki.remove();
    rmSync(folder, { recursive: true });
  });
  const disks = await Promise.all(
    ["system", "data", "log"].map(async (name) => {
      const reader = createMemoryImage(diskBytes);
      await reader.write(randomBytes(diskBytes), 0);
      return { name, source: { reader, name: `${name}.img`, identity: name } };
    }),
  );
  const sender = createMachineSender({
    ...{ engine, machine: "vm", disks, rate, codec: "stored" },
    receiver: { host: loopback, port: receiver.port, credentials: send },
  });
  let ended = false;
  const run = sender.run().finally(() => {
    ended = true;
  });
  let scanned = 0;
  while (!ended) {
    await new Promise((resolve) => setImmediate(resolve));
    const progress = sender.progress().map((member) => member.progress);
    const packed = progress.reduce((sum, { funnel }) => sum + funnel.packedBytes, 0);
    expect(packed).toBeLessThanOrEqual(rate * (clock.monotonic() / 1000 + 0.25));
    // Time goes on when whoever still has something to send waits for it; all three begin before.
    const scanning = progress.filter(({ phase }) => phase === "scanning").length;
    const connecting = progress.filter(({ phase }) => phase === "connecting").length;
    scanned = Math.max(scanned, scanning);
    if (connecting === 0 && scanning > 0 && watched.asleep >= scanning) watched.pass();
  }
  const report = await run;
  expect(scanned).toBe(3);
  expect(report.disks.map(({ point }) => point)).toEqual([1, 1, 1]);
  const seconds = clock.monotonic() / 1000;
  expect(seconds).toBeGreaterThanOrEqual((3 * diskBytes) / rate - 0.25);
  // And no less: nobody waits for what others did not send.
  expect(seconds).toBeLessThan((3 * diskBytes * 1.1) / rate);
});

test("what opens, asks and commits counts as well as what is shipped", async (t) => {
  const kit = await PairKit.create();
  t.onTestFinished(async () => void (await kit.close()));
  const image = createMemoryImage(3 * 1024 * KIB);
  await image.write(randomBytes(image.sizeBytes), 0);
  for (const change of [undefined, randomBytes(9_000), undefined]) {
    // Whole blocks of zeros, too.
    if (change !== undefined) await image.write(Buffer.concat([change, Buffer.alloc(128 * KIB)]), 60 * KIB);
    let counted = 0;
    const limit: RateLimit = {
      take: (bytes) => Promise.resolve(void (counted += bytes())),
      spent: (bytes) => void (counted += bytes()),
    };
    const pairs: LinkedPair[] = [];
    await kit.send(image, { limit, onPair: (pair) => pairs.push(pair) });
    const sent = pairs.reduce((sum, { client }) => sum + client.bytesSent, 0);
    // The greeting and the farewell are not worth a word.
    expect(counted).toBeLessThanOrEqual(sent);
    expect(counted).toBeGreaterThan(sent - greetingBytesMax);
  }
});
