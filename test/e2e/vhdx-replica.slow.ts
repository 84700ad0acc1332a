/** Replicas that are VHDX images: what QEMU says of them after each commit, what is restored from them, and that nothing is lost. 200 kills: vhdx-replica.long.ts. */
import { readFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { writeVhdx } from "../image/vhdx/kit.ts";
import { BLOCK, KIB, makeSparse, MIB, noise, PART, punch, TIB, writeAt } from "./content.ts";
import {
  cmpFiles,
  hasTool,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { expectSound, expectTool, killVhdxReplica, startVhdxReceiver } from "./vhdx-replica.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("C-08 C-11 C-85 raw to VHDX to raw: every commit leaves a good image of the newest point, through growth, zeros and a shorter disk", async (t) => {
  needTools(t, "fallocate");
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeSparse(image, 300 * MIB + 512);
  writeAt(image, [
    [0, noise(1, 3 * BLOCK)],
    [100 * MIB, noise(2, MIB)],
    [300 * MIB, noise(3, 512)],
  ]);
  const receiver = await startVhdxReceiver(t, pki, join(dir, "store"));
  const replica = replicaPath(receiver.storeDir, "vm", "vhdx");
  let point = 0;
  const transfer = async (...args: readonly string[]) => {
    const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send, args });
    expect(result.code, result.stderr).toBe(0);
    expect(result.done?.point).toBe(++point);
    expect(statSync(replica).mode & 0o777).toBe(0o400);
    expectSound(replica);
    if (hasTool("qemu-img")) expectTool("qemu-img", "compare", "-f", "vhdx", "-F", "raw", replica, image);
    const restored = join(dir, `restored-${String(point)}.raw`);
    const run = await replicate(t, ["restore", "--store", receiver.storeDir, "vm", restored]);
    expect(run.code, run.stderr).toBe(0);
    expect(cmpFiles(image, restored)).toBeUndefined();
    return result.done;
  };
  await transfer();
  // Three payload blocks of ten, and of them what was written.
  expect(statSync(replica).blocks * 512).toBeLessThan(3 * MIB);
  expect(await transfer()).toMatchObject({ bytesChanged: 0 });
  writeAt(image, [
    [4 * KIB, noise(4, PART)],
    [200 * MIB, noise(5, 2 * PART)],
  ]);
  punch(image, 100 * MIB, 512 * KIB);
  expect((await transfer())?.bytesWire).toBeLessThan(40 * KIB);
  truncateSync(image, 420 * MIB);
  writeAt(image, [[400 * MIB, noise(6, PART)]]);
  expect((await transfer())?.bytesWire).toBeLessThan(40 * KIB);
  truncateSync(image, 100 * MIB + 300 * KIB);
  await transfer("--allow-shrink");
  // What was cut off is zero when the disk is long again.
  truncateSync(image, 420 * MIB);
  await transfer();
  // Points of every size are what they were.
  const verified = await replicate(t, ["verify", "--store", receiver.storeDir, "vm", "--all"]);
  expect(verified.code, verified.stdout).toBe(0);
  for (const older of [3, 4, 5]) {
    const out = join(dir, "older.raw");
    const run = await replicate(t, ["restore", "--store", receiver.storeDir, `vm@${String(older)}`, out, "--force"]);
    expect(run.code, run.stderr).toBe(0);
    expect(cmpFiles(join(dir, `restored-${String(older)}.raw`), out)).toBeUndefined();
  }
});

test("VHDX to a VHDX replica: digests are of the disk, so that the file's own shape is no change", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.vhdx");
  const pieces = [{ offset: 5 * MIB, bytes: noise(7, 3 * MIB) }];
  await writeVhdx(image, { sizeBytes: 40 * MIB, payloadBlockBytes: MIB, pieces });
  const receiver = await startVhdxReceiver(t, pki, join(dir, "store"));
  const target = { port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, { ...target, image })).code).toBe(0);
  const replica = replicaPath(receiver.storeDir, "vm", "vhdx");
  // The replica itself, as a source.
  const same = await send(t, { ...target, image: replica, args: ["--adopt"] });
  expect(same.code, same.stderr).toBe(0);
  expect(same.done).toMatchObject({ bytesChanged: 0 });
});

test("a disk of more than 2 TiB, and one whose size no VHDX can have", async (t) => {
  const dir = tempDir(t);
  const receiver = await startVhdxReceiver(t, pki, join(dir, "store"));
  const target = { port: receiver.port, tls: pki.send };
  const image = join(dir, "large.raw");
  makeSparse(image, 3 * TIB);
  const far = [2 * TIB + 5 * MIB, 3 * TIB - BLOCK];
  writeAt(
    image,
    far.map((at) => [at, Buffer.alloc(BLOCK, 0x5a)] as const),
  );
  const large = await send(t, { ...target, image, disk: "large" });
  expect(large.code, large.stderr).toBe(0);
  const replica = replicaPath(receiver.storeDir, "large", "vhdx");
  expectSound(replica);
  // All of it would take QEMU minutes.
  for (const at of hasTool("qemu-io") ? far : []) {
    const read = (what: string) => ["-c", `read -P ${what}`];
    const commands = [...read(`0x5a ${String(at)} 64k`), ...read(`0 ${String(at - BLOCK)} 64k`)];
    expectTool("qemu-io", "-r", "-f", "vhdx", ...commands, replica);
  }
  const odd = join(dir, "odd.raw");
  makeSparse(odd, MIB + 1);
  const refused = await send(t, { ...target, image: odd, disk: "odd" });
  expect(refused.error).toMatchObject({ code: "target-unsuitable", action: "never" });
  expect(refused.error?.message).toMatch(/1048577 bytes.*--format raw/);
  truncateSync(odd, MIB);
  expect((await send(t, { ...target, image: odd, disk: "odd" })).code).toBe(0);
  truncateSync(odd, MIB + 100);
  expect((await send(t, { ...target, image: odd, disk: "odd" })).error).toMatchObject({ code: "target-unsuitable" });
});

test("disks that exist stay what they are, whatever new ones become", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeSparse(image, 4 * MIB);
  writeAt(image, [[MIB, noise(1, BLOCK)]]);
  const storeDir = join(dir, "store");
  const first = await startVhdxReceiver(t, pki, storeDir);
  expect((await send(t, { image, port: first.port, disk: "old", tls: pki.send })).code).toBe(0);
  await first.stop();
  const second = await startReceiver(t, { storeDir, tls: pki.recv });
  writeAt(image, [[2 * MIB, noise(2, BLOCK)]]);
  for (const disk of ["old", "new"]) {
    expect((await send(t, { image, port: second.port, disk, tls: pki.send })).code).toBe(0);
  }
  expectSound(replicaPath(storeDir, "old", "vhdx"));
  expect(readFileSync(replicaPath(storeDir, "new")).equals(readFileSync(image))).toBe(true);
});

test("3 kills while it is given content", async (t) => {
  const counts = await killVhdxReplica(t, pki, { kills: 3, seed: 3 });
  expect(counts.restored).toBeGreaterThan(0);
});
