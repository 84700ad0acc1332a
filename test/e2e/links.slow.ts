/** Bad networks: links cut again and again, cut at any byte, and a last word that is lost. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { MIB } from "./content.ts";
import { expectDone, makeSetting, through } from "./interrupt.ts";
import { makePki, type Pki, send, startSend, suiteScope, tempDir } from "./kit.ts";
import { cutAtEveryStage } from "./link-cuts.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test.concurrent("a link that is cut every half second or so: the copy finishes, and little travels twice", async (t) => {
  const setting = await makeSetting(t, pki, 16 * MIB, 1);
  const { proxy, receiver, image } = setting;
  const args = ["--rate", "8MiB", "--codec", "none"];
  const sender = startSend(t, { image, port: proxy.port, disk: "vm", tls: pki.send, args });
  let cuts = 0;
  const cutting = async (): Promise<void> => {
    for (; ; cuts++) {
      await Promise.race([proxy.passedUp(proxy.bytesUp + 3 * MIB), sender.exited]);
      if (sender.ended) return;
      proxy.cut();
    }
  };
  const [done] = await Promise.all([expectDone(setting, sender, "vm"), cutting()]);
  expect(cuts).toBeGreaterThan(2);
  expect(done.attempts).toBe(cuts + 1);
  // What is under way when the link goes is lost: two or three extents of 1 MiB each time.
  expect(done.bytesWire).toBeLessThan(16 * MIB * 1.05 + cuts * 2.5 * MIB);
  expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(1);
});

test.concurrent("a connection reset at byte n, in the handshake, the data, the last words: committed once, at both ends (C-49)", async (t) => {
  await cutAtEveryStage(t, pki, { imageBytes: 2 * MIB, seed: 1, random: 2, atOnce: 4 });
});

test.concurrent("the last word is lost: the second try is known as the same cycle, and makes no second point (C-62)", async (t) => {
  const setting = await makeSetting(t, pki, 8 * MIB, 2);
  const { proxy, receiver, image } = setting;
  proxy.holdUp(2 * MIB);
  const sender = startSend(t, through(setting, "vm"));
  // Eight extents need no more credit than `opened` brought; from here on the sender hears nothing.
  await proxy.passedUp(2 * MIB);
  proxy.setDeaf(true);
  proxy.holdUp(undefined);
  await receiver.process.waitForEvent("point");
  proxy.setDeaf(false);
  proxy.cut();
  const done = await expectDone(setting, sender, "vm");
  expect(done).toMatchObject({ point: 1, attempts: 2 });
  expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(1);
  // The next run is another cycle.
  const next = await send(t, { image, port: proxy.port, disk: "vm", tls: pki.send });
  expect(next.done).toMatchObject({ point: 2, bytesChanged: 0 });
});
