/** Images that are mostly holes, and images of awkward sizes. */
import { existsSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, type TestContext, test } from "vitest";
import {
  allocated,
  BLOCK,
  followPeak,
  knownPeak,
  GIB,
  KIB,
  makeNoise,
  makeSparse,
  MIB,
  noise,
  readAt,
  TIB,
  writeAt,
} from "./content.ts";
import {
  cmpFiles,
  finish,
  makePki,
  needTools,
  type Pki,
  procRss,
  replicaPath,
  runTool,
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
});

/** A sparse image with pieces of 64 KiB at even distances; skips where the file system has no such files. */
function makeSpread(t: TestContext, path: string, sizeBytes: number, pieces: number): readonly number[] {
  try {
    makeSparse(path, sizeBytes);
  } catch (error) {
    t.skip(`no files of ${String(sizeBytes / TIB)} TiB here: ${String(error)}`);
  }
  const stride = Math.floor(sizeBytes / pieces / BLOCK) * BLOCK;
  const offsets = Array.from({ length: pieces }, (_unused, index) => index * stride);
  writeAt(
    path,
    offsets.map((offset) => [offset, noise(offset / BLOCK, BLOCK)] as const),
  );
  return offsets;
}

/** Initial copy, no change, one change: what travels, what the replica takes, what memory was needed. */
async function replicateSparse(t: TestContext, sizeBytes: number, pieces: number): Promise<void> {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  const offsets = makeSpread(t, image, sizeBytes, pieces);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const replica = replicaPath(receiver.storeDir, "sparse");
  const transfer = async () => {
    const sender = startSend(t, { image, port: receiver.port, disk: "sparse", tls: pki.send });
    const peak = followPeak(sender);
    const result = await finish(sender);
    expect(result.code, result.stderr).toBe(0);
    expect(knownPeak(peak())).toBeLessThan(memoryMax);
    return result.done;
  };

  const initial = await transfer();
  expect(initial).toMatchObject({ reason: "initial", bytesScanned: sizeBytes, bytesChanged: pieces * BLOCK });
  expect(statSync(replica).size).toBe(sizeBytes);
  expect(Math.abs(allocated(replica) - allocated(image))).toBeLessThanOrEqual(0.01 * allocated(image));

  const same = await transfer();
  expect(same).toMatchObject({ bytesScanned: sizeBytes, bytesChanged: 0, blocksZero: 0, root: initial?.root });

  const last = offsets.at(-1) ?? 0;
  writeAt(image, [[last + 4 * KIB, noise(1, 4 * KIB)]]);
  expect(await transfer()).toMatchObject({ bytesChanged: 4 * KIB });

  // Comparing terabytes of holes is no use: the pieces are read, and the rest is known to be holes by its allocation.
  for (const offset of [0, offsets[1] ?? 0, last]) {
    expect(readAt(replica, offset, BLOCK).equals(readAt(image, offset, BLOCK)), `at ${String(offset)}`).toBe(true);
  }
  expect(Math.abs(allocated(replica) - allocated(image))).toBeLessThanOrEqual(0.01 * allocated(image));
  expect(knownPeak(procRss(receiver.process.pid))).toBeLessThan(memoryMax);
}

test("1 TiB with 64 MiB of data: copied, nothing to do, one change; allocation and memory stay small", async (t) => {
  await replicateSparse(t, TIB, 1_024);
});

test("15 TiB with 1 MiB of data", async (t) => {
  await replicateSparse(t, 15 * TIB, 16);
});

describe("a raw image keeps its size to the byte", () => {
  test.each([1, 512, BLOCK + 1, 512 * 333 + 1, 512 * 1_025, 4_097])("%i bytes", async (sizeBytes) => {
    const dir = tempDir(suite);
    const image = join(dir, "disk.img");
    makeNoise(image, sizeBytes, sizeBytes);
    const receiver = await startReceiver(suite, { storeDir: join(dir, "store"), tls: pki.recv });
    const target = { image, port: receiver.port, disk: "odd", tls: pki.send };
    const initial = await send(suite, target);
    expect(initial.code, initial.stderr).toBe(0);
    const replica = replicaPath(receiver.storeDir, "odd");
    expect(statSync(replica).size).toBe(sizeBytes);
    expect(cmpFiles(image, replica)).toBeUndefined();
    // The last byte alone changes.
    writeAt(image, [[sizeBytes - 1, Buffer.of(noise(sizeBytes, sizeBytes)[sizeBytes - 1]! ^ 0xff)]]);
    const delta = await send(suite, target);
    expect(delta.code, delta.stderr).toBe(0);
    expect(cmpFiles(image, replica)).toBeUndefined();
    await receiver.stop();
  });

  test("0 bytes", async (t) => {
    const dir = tempDir(t);
    const image = join(dir, "disk.img");
    makeSparse(image, 0);
    const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
    const target = { image, port: receiver.port, disk: "none", tls: pki.send };
    const initial = await send(t, target);
    expect(initial.code, initial.stderr).toBe(0);
    expect(initial.done).toMatchObject({ point: 1, bytesSize: 0, bytesChanged: 0 });
    expect(statSync(replicaPath(receiver.storeDir, "none")).size).toBe(0);
    expect((await send(t, target)).done).toMatchObject({ point: 2, root: initial.done?.["root"] });
  });
});

test("a file system that cannot hold the disk is named before data is sent", async (t) => {
  needTools(t, "mke2fs", "mount", "umount");
  if (process.getuid?.() !== 0) t.skip("mounting needs root");
  const dir = tempDir(t);
  const volume = join(dir, "volume.ext4");
  const mountPoint = join(dir, "mounted");
  makeSparse(volume, 2 * GIB);
  // With blocks of 1 KiB an ext4 file has at most 4 TiB.
  expect(runTool("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", volume]).code).toBe(0);
  mkdirSync(mountPoint);
  const mounted = runTool("mount", ["-o", "loop", volume, mountPoint]);
  if (mounted.code !== 0) t.skip(`no loop mount here: ${mounted.stderr.trim()}`);
  t.onTestFinished(() => {
    runTool("umount", [mountPoint]);
  });
  const image = join(dir, "disk.raw");
  makeSpread(t, image, 5 * TIB, 4);
  const receiver = await startReceiver(t, { storeDir: join(mountPoint, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "large", tls: pki.send });
  expect(result.code).toBe(1);
  expect(result.error).toMatchObject({ code: "target-too-small", action: "never" });
  expect(result.error?.message).toContain(String(5 * TIB));
  expect(existsSync(replicaPath(receiver.storeDir, "large"))).toBe(false);
  await receiver.stop();
});
