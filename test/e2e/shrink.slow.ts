/** A disk that becomes smaller, and a store that is full, from the command line: real files, and `cmp` as the judge. */
import { copyFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { MIB, noise, waitForLog, writeAt } from "./content.ts";
import {
  cmpFiles,
  makeImage,
  makePki,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

async function onStore(t: TestContext, receiver: Receiver, verb: string, ...args: string[]): Promise<void> {
  const result = await replicate(t, [verb, "--store", receiver.storeDir, ...args, "--json"]);
  expect(result.code, result.stdout + result.stderr).toBe(0);
}

test("--allow-shrink: the replica is the smaller image, the older point is what it was; then larger again", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeImage(image, 24 * MIB + 1_000, 3);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv, args: ["--keep", "all"] });
  const target = { image, port: receiver.port, disk: "vm", tls: pki.send };
  const replica = replicaPath(receiver.storeDir, "vm");
  const copies: string[] = [];
  const sendIt = async (point: number, args: readonly string[] = []): Promise<void> => {
    const copy = join(dir, `copy-${String(point)}.raw`);
    copyFileSync(image, copy);
    copies.push(copy);
    const { done, stderr } = await send(t, { ...target, args });
    expect(done, stderr).toMatchObject({ point });
    expect(cmpFiles(image, replica)).toBeUndefined();
  };
  await sendIt(1);

  truncateSync(image, 9 * MIB + 70_001);
  const refused = await send(t, target);
  expect([refused.code, refused.error?.code]).toEqual([4, "size-shrunk"]);
  expect(refused.error?.message).toContain("--allow-shrink");
  expect(cmpFiles(copies[0] ?? "", replica)).toBeUndefined();

  writeAt(image, [[MIB, noise(7, 10_000)]]);
  await sendIt(2, ["--allow-shrink"]);
  // The flag is of one send; the disk has its new size.
  await sendIt(3);
  truncateSync(image, 30 * MIB);
  await sendIt(4);
  truncateSync(image, 0);
  await sendIt(5, ["--allow-shrink"]);

  for (const [index, copy] of copies.entries()) {
    const out = join(dir, `out-${String(index)}.raw`);
    await onStore(t, receiver, "restore", `vm@${String(index + 1)}`, out);
    expect(cmpFiles(copy, out)).toBeUndefined();
    expect(statSync(out).size).toBe(statSync(copy).size);
  }
  await onStore(t, receiver, "verify", "--all");
  const disks = await replicate(t, ["disks", "--store", receiver.storeDir, "--json"]);
  expect(disks.lines).toMatchObject([{ disk: "vm", sizeBytes: 0, points: 5 }]);
});

test("--when-full: a store below its reserve refuses, or drops the oldest points of the disk first", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeImage(image, 2 * MIB, 4);
  const storeDir = join(dir, "store");
  const first = await startReceiver(t, { storeDir, tls: pki.recv, args: ["--keep", "all"] });
  for (const point of [1, 2, 3]) {
    writeAt(image, [[point * 100_000, noise(point, 5_000)]]);
    expect((await send(t, { image, port: first.port, disk: "vm", tls: pki.send })).done).toMatchObject({ point });
  }
  const copy = join(dir, "copy.raw");
  copyFileSync(image, copy);
  await first.stop();
  writeAt(image, [[0, noise(9, 5_000)]]);

  const points = async (): Promise<unknown> =>
    (await replicate(t, ["points", "vm", "--store", storeDir, "--json"])).lines.map((line) => line["point"]);
  // More than any disk has.
  const reserve = ["--reserve", "8000000GiB"];
  const stopping = await startReceiver(t, { storeDir, tls: pki.recv, args: [...reserve, "--when-full", "stop"] });
  const refused = await send(t, { image, port: stopping.port, disk: "vm", tls: pki.send });
  expect(refused.error).toMatchObject({ code: "no-space", message: expect.stringContaining("reserve") });
  expect(await points()).toEqual([1, 2, 3]);
  await stopping.stop();

  const args = [...reserve, "--when-full", "drop-oldest"];
  const dropping = await startReceiver(t, { storeDir, tls: pki.recv, args });
  const short = await send(t, { image, port: dropping.port, disk: "vm", tls: pki.send });
  expect(short.error).toMatchObject({
    code: "no-space",
    message: expect.stringContaining("point 3, the oldest, stays: newest"),
  });
  for (const point of [1, 2]) await waitForLog(dropping.process, { level: 40, point }, /was dropped to make room/);
  expect(await points()).toEqual([3]);
  expect(cmpFiles(copy, replicaPath(storeDir, "vm"))).toBeUndefined();
  await dropping.stop();

  const wrong = ["recv", "--store", storeDir, "--listen", "127.0.0.1:0", "--tls", pki.recv, "--when-full", "panic"];
  const { code, stderr } = await replicate(t, wrong);
  expect([code, stderr]).toEqual([2, expect.stringContaining("drop-oldest")]);
});
