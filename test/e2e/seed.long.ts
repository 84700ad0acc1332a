/** An initial copy of 2 GiB over a portable disk, in several parts, killed at random moments. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { followPeak, GIB, knownPeak, makeNoise, until } from "./content.ts";
import {
  changeImage,
  CliProcess,
  cmpFiles,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  seededRandom,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;
/** In the name of the test, so that a failure tells it. */
const seed = Date.now() & 0xffff;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test(`2 GiB in files, the import killed ten times, then a delta, seed ${String(seed)}`, async (t) => {
  const dir = tempDir(t);
  const [image, usb, store] = ["disk.raw", "usb", "store"].map((name) => join(dir, name)) as [string, string, string];
  makeNoise(image, 2 * GIB, seed);
  const sending = new CliProcess(t, ["send", image, "vm", "--to-dir", usb, "--codec", "none", "--json"]);
  const peaks = [followPeak(sending)];
  expect(await sending.exited).toBe(0);
  const parts = readdirSync(usb).filter((name) => name.endsWith(".frames"));
  expect(parts.length).toBe(3);
  for (const name of parts) expect(statSync(join(usb, name)).size).toBeLessThanOrEqual(GIB);
  const recv = ["recv", "--store", store, "--from-dir", usb, "--owner", "send", "--json"];
  const replica = replicaPath(store, "vm");
  const taken = (): number => (existsSync(replica) ? statSync(replica).blocks * 512 : 0);
  const random = seededRandom(seed);
  for (let round = 0; round < 10; round++) {
    const applying = new CliProcess(t, recv);
    peaks.push(followPeak(applying));
    const wanted = taken() + ((random() % 1_000) / 1_000) * 0.15 * GIB;
    await until(() => applying.ended || taken() > wanted);
    expect(await applying.kill()).toBe("SIGKILL");
  }
  const done = await replicate(t, recv);
  expect(done.code, done.stdout + done.stderr).toBe(0);
  expect(done.lines.at(-1)).toMatchObject({ event: "done", point: 1, created: true });
  expect(done.lines.at(-1)?.["blocksSkipped"]).toBeGreaterThan(0);
  for (const peak of peaks) expect(knownPeak(peak())).toBeLessThan(300 * 2 ** 20);
  expect(cmpFiles(image, replica)).toBeUndefined();

  changeImage(image, 2_000, seed);
  const receiver = await startReceiver(t, { storeDir: store, tls: pki.recv });
  const delta = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(delta.done, delta.stderr).toMatchObject({ point: 2, reason: "scan" });
  expect(cmpFiles(image, replica)).toBeUndefined();
});
