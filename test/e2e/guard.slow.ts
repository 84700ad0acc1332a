/** What may happen to content: an image that moves while it is sent, holes, rewrites, tails, full disks, damaged sources. */
import { copyFileSync, mkdirSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import {
  allocated,
  BLOCK,
  differences,
  KIB,
  logLines,
  makeNoise,
  makeSparse,
  MIB,
  noise,
  PART,
  punch,
  scattered,
  waitForLog,
  writeAt,
} from "./content.ts";
import { expectDone, makeSetting, through } from "./interrupt.ts";
import {
  cmpFiles,
  finish,
  makePki,
  needTools,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
  runTool,
  type Scope,
  send,
  type SendOptions,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;
/** For the tests that leave it as it is; each has a disk of its own. */
let shared: Receiver;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
  shared = await startReceiver(suite, { storeDir: join(tempDir(suite), "store"), tls: pki.recv });
});

function to(receiver: Receiver, disk: string, image: string): SendOptions {
  return { image, port: receiver.port, disk, tls: pki.send };
}

/** Sends, and the replica is the image. */
async function sendEqual(scope: Scope, disk: string, image: string) {
  const result = await send(scope, to(shared, disk, image));
  expect(result.code, result.stderr).toBe(0);
  expect(cmpFiles(image, replicaPath(shared.storeDir, disk))).toBeUndefined();
  if (result.done === undefined) throw new Error("a send that ended well says done");
  return result.done;
}

describe("an image that changes while it is sent (C-47)", () => {
  test("is not committed: image-changed, exit code 1", async (t) => {
    const setting = await makeSetting(t, pki, 16 * MIB, 1);
    const { image, receiver, proxy } = setting;
    proxy.holdUp(3 * MIB);
    const sender = startSend(t, through(setting, "vm"));
    await proxy.passedUp(3 * MIB);
    writeAt(image, [[5 * PART, noise(1, PART)]]);
    proxy.holdUp(undefined);
    const result = await finish(sender);
    expect(result.code).toBe(1);
    expect(result.done).toBeUndefined();
    expect(result.error).toMatchObject({ code: "image-changed", action: "never" });
    expect(result.error?.message).toContain(image);
    expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(0);
    // At rest it goes through, with what arrived before.
    const done = await expectDone(setting, startSend(t, to(receiver, "vm", image)), "vm");
    expect(done).toMatchObject({ point: 1, reason: "resume" });
    expect(done.bytesWire).toBeLessThan(4 * MIB);
  });

  test("with --allow-live is committed with consistency none, and mended by the next send", async (t) => {
    const setting = await makeSetting(t, pki, 16 * MIB, 2);
    const { image, receiver, proxy } = setting;
    proxy.holdUp(3 * MIB);
    const sender = startSend(t, through(setting, "vm", "--allow-live"));
    await proxy.passedUp(3 * MIB);
    // Behind and ahead of the scan.
    const offsets = scattered(16 * MIB, 50, 3);
    writeAt(
      image,
      offsets.map((offset) => [offset, noise(offset + 1, PART)] as const),
    );
    proxy.holdUp(undefined);
    const { code, done, stderr } = await finish(sender);
    expect(code, stderr).toBe(0);
    expect(done).toMatchObject({ consistency: "none", point: 1 });
    const next = await expectDone(setting, startSend(t, to(receiver, "vm", image)), "vm");
    expect(next).toMatchObject({ consistency: "crash", point: 2 });
  });

  test("shorter all of a sudden: the error names file and offset, and reaches the receiver's log (C-55)", async (t) => {
    // More than a sender reads ahead.
    const setting = await makeSetting(t, pki, 320 * MIB, 3);
    const { image, receiver, proxy } = setting;
    proxy.holdUp(2 * MIB);
    const sender = startSend(t, through(setting, "vm"));
    await proxy.passedUp(2 * MIB);
    truncateSync(image, 1 * MIB + 4_000);
    proxy.holdUp(undefined);
    const result = await finish(sender);
    expect(result.code).toBe(1);
    expect(["image-truncated", "image-changed"]).toContain(result.error?.code);
    expect(result.error?.message).toContain(image);
    expect(result.error?.message).toMatch(/offset \d+|size from \d+ to \d+ bytes/);
    const line = await waitForLog(receiver.process, { disk: "vm" }, /the sender gave up/);
    expect(line["msg"]).toContain(result.error?.message);
    expect(receiver.lines.filter((each) => each.event === "point")).toHaveLength(0);
  });
});

test("holes punched between two sends are zeros at the end, and give their space back (C-100, C-85)", async (t) => {
  needTools(t, "fallocate");
  const image = join(tempDir(t), "disk.raw");
  makeNoise(image, 24 * MIB, 4);
  await sendEqual(t, "holes", image);
  for (const offset of scattered(24 * MIB, 100, 5)) punch(image, offset, 3 * PART);
  for (const offset of scattered(24 * MIB, 40, 6, BLOCK)) punch(image, offset, 2 * BLOCK);
  const done = await sendEqual(t, "holes", image);
  expect(done.blocksZero).toBeGreaterThan(30);
  expect(done.bytesWire).toBeLessThan(1 * MIB);
});

test("a hole that is filled, and a filled range that becomes a hole and is filled again (C-37)", async (t) => {
  needTools(t, "fallocate");
  const image = join(tempDir(t), "disk.raw");
  makeSparse(image, 8 * MIB);
  writeAt(image, [[0, noise(1, BLOCK)]]);
  await sendEqual(t, "fill", image);
  writeAt(image, [[3 * MIB + 512, noise(2, 100 * KIB)]]);
  await sendEqual(t, "fill", image);
  punch(image, 3 * MIB, 1 * MIB);
  writeAt(image, [[3 * MIB + 50 * KIB, noise(3, 512)]]);
  await sendEqual(t, "fill", image);
  punch(image, 3 * MIB, 1 * MIB);
  expect(await sendEqual(t, "fill", image)).toMatchObject({ blocksZero: 1 });
});

test("everything rewritten with the same content: nothing travels, nothing is written (C-43)", async (t) => {
  const image = join(tempDir(t), "disk.raw");
  makeNoise(image, 48 * MIB, 7);
  const first = await sendEqual(t, "same", image);
  const stored = async (): Promise<readonly unknown[]> =>
    (await replicate(t, ["points", "--store", shared.storeDir, "same", "--json"])).lines.map(
      (line) => line["storedBytes"],
    );
  expect(await stored()).toEqual([0]);
  makeNoise(image, 48 * MIB, 7);
  writeAt(
    image,
    [1, 20, 47].map((at) => [at * MIB, noise(at + 1, PART)] as const),
  );
  const done = await sendEqual(t, "same", image);
  expect(done).toMatchObject({ bytesChanged: 3 * PART, point: first.point + 1 });
  expect(done.bytesWire).toBeLessThan(3 * PART + 24 * KIB);
  // The log of the older point: its header, its end, and a batch for each changed part, whose head takes a page.
  const [older, newest] = await stored();
  expect(older).toBeGreaterThanOrEqual(3 * PART);
  expect(older).toBeLessThanOrEqual(3 * 2 * PART + 2 * PART);
  expect(newest).toBe(0);
});

test("one byte that is not zero in each unit, at awkward places (C-40)", async (t) => {
  const image = join(tempDir(t), "disk.raw");
  const pieces: [number, Uint8Array][] = [];
  let at = 0;
  for (const unit of [4 * KIB, 64 * KIB, 1 * MIB]) {
    const places = [
      0,
      1,
      7,
      8,
      9,
      4_087,
      4_088,
      4_095,
      unit >> 1,
      (unit >> 1) - 1,
      unit - 4_096,
      unit - 9,
      unit - 8,
      unit - 1,
    ];
    for (const place of places) {
      pieces.push([at + place, Buffer.of(1 + (place % 255))]);
      at += unit;
    }
    at = Math.ceil(at / MIB) * MIB;
  }
  makeSparse(image, at);
  writeAt(image, pieces);
  await sendEqual(t, "pattern", image);
  // The bytes move by one: the old places must become zero.
  writeAt(
    image,
    pieces.flatMap(([offset]) => [
      [offset, Buffer.of(0)] as const,
      [offset % 2 === 0 ? offset + 1 : offset - 1, Buffer.of(0x80)] as const,
    ]),
  );
  await sendEqual(t, "pattern", image);
});

test.each([512 + 1, 4_096 + 1, 1 * MIB + 512, 1 * MIB + 1])(
  "a tail of old bytes becomes zero: %i bytes (C-41)",
  async (sizeBytes) => {
    const image = join(tempDir(suite), "disk.img");
    makeSparse(image, sizeBytes);
    writeAt(image, [[0, Buffer.alloc(sizeBytes, 0xbb)]]);
    const disk = `tail-${String(sizeBytes)}`;
    await sendEqual(suite, disk, image);
    const tail = sizeBytes % BLOCK;
    writeAt(image, [[sizeBytes - tail, Buffer.alloc(tail)]]);
    await sendEqual(suite, disk, image);
    writeAt(image, [[sizeBytes - 1, Buffer.of(0xcc)]]);
    await sendEqual(suite, disk, image);
  },
);

test("zeros written over 50 MiB give the space back on the replica (C-85)", async (t) => {
  const image = join(tempDir(t), "disk.raw");
  makeNoise(image, 64 * MIB, 8);
  await sendEqual(t, "thin", image);
  const replica = replicaPath(shared.storeDir, "thin");
  const before = allocated(replica);
  writeAt(image, [[7 * MIB, Buffer.alloc(50 * MIB)]]);
  const done = await sendEqual(t, "thin", image);
  expect(done).toMatchObject({ blocksZero: (50 * MIB) / BLOCK });
  expect(before - allocated(replica)).toBeGreaterThanOrEqual(50 * MIB - 128 * KIB);
  // The image itself keeps its blocks: content equal, allocation apart.
  expect(allocated(image)).toBeGreaterThan(allocated(replica) + 40 * MIB);
});

test("a receiver that runs out of space: both ends say so, the point before stays, and it goes on when there is room (C-52)", async (t) => {
  needTools(t, "mount", "umount");
  if (process.getuid?.() !== 0) t.skip("mounting needs root");
  const dir = tempDir(t);
  const mountPoint = join(dir, "small");
  mkdirSync(mountPoint);
  const mounted = runTool("mount", ["-t", "tmpfs", "-o", "size=64m", "tmpfs", mountPoint]);
  if (mounted.code !== 0) t.skip(`no tmpfs here: ${mounted.stderr.trim()}`);
  t.onTestFinished(() => {
    runTool("umount", ["-l", mountPoint]);
  });
  const receiver = await startReceiver(t, {
    storeDir: join(mountPoint, "store"),
    tls: pki.recv,
    args: ["--reserve", "1MiB"],
  });
  const [image, other] = [join(dir, "disk.raw"), join(dir, "other.raw")];
  makeSparse(image, 80 * MIB);
  // A part of each block: whatever comes is in the way of something that the undo log has to keep.
  const old = new Set(
    Array.from({ length: (80 * MIB) / BLOCK }, (_unused, block) => block * BLOCK + (block % 16) * PART),
  );
  writeAt(
    image,
    [...old].map((offset) => [offset, noise(offset, PART)] as const),
  );
  const before = join(dir, "before.raw");
  copyFileSync(image, before);
  makeNoise(other, 4 * MIB, 9);
  expect((await send(t, to(receiver, "other", other))).code).toBe(0);
  expect((await send(t, to(receiver, "vm", image))).code).toBe(0);

  makeNoise(image, 80 * MIB, 10);
  const full = await send(t, to(receiver, "vm", image));
  expect(full.code).toBe(1);
  expect(full.done).toBeUndefined();
  const numbers = { freeBytes: expect.any(Number) as unknown, reserveBytes: expect.any(Number) as unknown };
  expect(full.error).toMatchObject({ code: "no-space", action: "never", details: numbers });
  expect(full.error?.message).toMatch(
    /no space left.*: .* has \d+ bytes free, less than the \d+ it keeps in reserve; free \d+ bytes/,
  );
  await waitForLog(receiver.process, { code: "no-space", disk: "vm" });
  const disks = await replicate(t, ["disks", "--store", receiver.storeDir, "--json"]);
  expect(disks.code, disks.stderr).toBe(0);
  expect(receiver.lines.filter((line) => line.event === "point")).toHaveLength(2);
  expect(cmpFiles(other, replicaPath(receiver.storeDir, "other"))).toBeUndefined();
  expect(logLines(receiver.process).filter((line) => line["code"] === "internal")).toHaveLength(0);

  // While there is still no room: every block of the point before is as its digests say, and it comes out as it was.
  const verified = await replicate(t, ["verify", "--store", receiver.storeDir, "vm@1", "--json"]);
  expect(verified.code, verified.stdout + verified.stderr).toBe(0);
  const restored = join(dir, "restored.raw");
  const restore = await replicate(t, ["restore", "--store", receiver.storeDir, "vm@1", restored]);
  expect(restore.code, restore.stdout + restore.stderr).toBe(0);
  expect(cmpFiles(before, restored)).toBeUndefined();
  // Which is not what the replica holds any more: some of it had been written over.
  const gone = differences(before, replicaPath(receiver.storeDir, "vm")).parts.filter((offset) => old.has(offset));
  expect(gone.length).toBeGreaterThan(100);

  // The undo log keeps whole blocks.
  expect(runTool("mount", ["-o", "remount,size=192m", mountPoint]).code).toBe(0);
  const left = differences(image, replicaPath(receiver.storeDir, "vm"));
  const done = await send(t, to(receiver, "vm", image));
  expect(done.code, done.stderr).toBe(0);
  expect(done.done).toMatchObject({ point: 2 });
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  expect(done.done?.bytesWire).toBeLessThan(left.parts.length * PART * 1.05 + 1 * MIB);
  await receiver.stop();
});
