/** The largest disk there is: 64 TiB, on a file system that can hold one. Ext4 ends at 16 TiB. */
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, type TestContext, test } from "vitest";
import {
  allocated,
  BLOCK,
  followPeak,
  knownPeak,
  GIB,
  KIB,
  makeSparse,
  MIB,
  noise,
  PART,
  readAt,
  TIB,
  writeAt,
} from "./content.ts";
import {
  finish,
  makePki,
  needTools,
  type Pki,
  procRss,
  replicaPath,
  replicate,
  runTool,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";

const sizeBytes = 64 * TIB;
const memoryMax = 300 * MIB;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

/** A folder on an XFS of its own; skips where there can be none. */
function mountXfs(t: TestContext): string {
  needTools(t, "mkfs.xfs", "mount", "umount");
  if (process.getuid?.() !== 0) t.skip("mounting needs root");
  // Not the folder for temporary files, which may lie in memory.
  const dir = mkdtempSync("/var/tmp/replicate-xfs-");
  t.onTestFinished(() => {
    rmSync(dir, { recursive: true, force: true });
  });
  const volume = join(dir, "volume.xfs");
  const mountPoint = join(dir, "mounted");
  makeSparse(volume, 8 * GIB);
  mkdirSync(mountPoint);
  const made = runTool("mkfs.xfs", ["-q", volume]);
  expect(made.code, made.stderr).toBe(0);
  const mounted = runTool("mount", ["-o", "loop", volume, mountPoint]);
  if (mounted.code !== 0) t.skip(`no XFS can be mounted here: ${mounted.stderr.trim()}`);
  t.onTestFinished(() => {
    const { code, stderr } = runTool("umount", [mountPoint]);
    expect(code, stderr).toBe(0);
  });
  return mountPoint;
}

test("64 TiB with 4 MiB of data spread over it: copied, nothing to do, changed at both ends, and equal", async (t) => {
  const mountPoint = mountXfs(t);
  const image = join(mountPoint, "disk.raw");
  makeSparse(image, sizeBytes);
  const pieces = 64;
  const stride = sizeBytes / pieces;
  const offsets = Array.from({ length: pieces }, (_unused, index) => index * stride);
  // The last block of the disk too.
  offsets.push(sizeBytes - BLOCK);
  writeAt(
    image,
    offsets.map((offset, index) => [offset, noise(index + 1, BLOCK)] as const),
  );

  const receiver = await startReceiver(t, { storeDir: join(mountPoint, "store"), tls: pki.recv });
  // Before the folder is unmounted.
  t.onTestFinished(async () => {
    await receiver.stop();
  });
  const replica = replicaPath(receiver.storeDir, "large");
  const transfer = async () => {
    const sender = startSend(t, { image, port: receiver.port, disk: "large", tls: pki.send });
    const peak = followPeak(sender);
    const { code, done, stderr } = await finish(sender);
    expect(code, stderr).toBe(0);
    const rss = { sender: knownPeak(peak()), receiver: knownPeak(procRss(receiver.process.pid)) };
    expect(Math.max(rss.sender, rss.receiver)).toBeLessThan(memoryMax);
    const peaks = [rss.sender, rss.receiver].map((bytes) => Math.round(bytes / MIB));
    await t.annotate(`${done?.reason ?? ""}: ${String(done?.seconds)} s, peak memory ${peaks.join(" and ")} MiB`);
    return done;
  };
  const compare = async () => (await replicate(t, ["compare", image, replica, "--json"])).code;

  const bytes = (pieces + 1) * BLOCK;
  const initial = await transfer();
  expect(initial).toMatchObject({ reason: "initial", point: 1, bytesScanned: sizeBytes, bytesChanged: bytes });
  expect(statSync(replica).size).toBe(sizeBytes);
  expect(allocated(replica)).toBeLessThanOrEqual(bytes * 1.1 + 64 * KIB);
  expect(await compare()).toBe(0);

  const same = await transfer();
  expect(same).toMatchObject({ reason: "scan", point: 2, bytesScanned: sizeBytes, bytesChanged: 0, blocksZero: 0 });
  expect(same?.root).toBe(initial?.root);

  writeAt(image, [
    [0, noise(1_001, PART)],
    [stride * 31 + BLOCK, noise(1_002, PART)],
    [sizeBytes - PART, noise(1_003, PART)],
  ]);
  expect(await compare()).toBe(3);
  expect(await transfer()).toMatchObject({ reason: "scan", point: 3, bytesChanged: 3 * PART });
  expect(await compare()).toBe(0);
  for (const offset of [0, stride * 31 + BLOCK, sizeBytes - BLOCK]) {
    expect(readAt(replica, offset, BLOCK).equals(readAt(image, offset, BLOCK)), `at ${String(offset)}`).toBe(true);
  }
});
