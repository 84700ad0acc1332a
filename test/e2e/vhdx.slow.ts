/** VHDX and VHD images as sources: what QEMU writes into them arrives, with their chains, and they stay as they are. */
import { createHash } from "node:crypto";
import { readFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { guids, writeVhdx } from "../image/vhdx/kit.ts";
import { noSamples, samples, vhdSamples } from "../image/vhdx/samples.ts";
import { BLOCK, KIB, MIB, noise, TIB } from "./content.ts";
import {
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  runTool,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { cycleSamples } from "./samples.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

function must(name: string, ...args: readonly string[]): void {
  const { code, stdout, stderr } = runTool(name, args);
  expect(code, `${name} ${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
}

const digestOf = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

test("C-08 C-11 C-22 a VHDX that QEMU writes: initial copy and deltas are equal, of its size, and only what changed travels", async (t) => {
  needTools(t, "qemu-img", "qemu-io");
  const dir = tempDir(t);
  const image = join(dir, "disk.vhdx");
  const sizeBytes = 300 * MIB + 512;
  must("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=2M", image, String(sizeBytes));
  const write = (...commands: readonly string[]): void =>
    must("qemu-io", "-f", "vhdx", ...commands.flatMap((command) => ["-c", command]), image);
  write("write -P 0xa1 0 64k", "write -P 0xa2 100M 1M", `write -P 0x54 ${String(sizeBytes - 512)} 512`);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const replica = replicaPath(receiver.storeDir, "vm");
  const transfer = async () => {
    const before = digestOf(image);
    const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
    expect(result.code, result.stderr).toBe(0);
    expect(digestOf(image)).toBe(before);
    expect(statSync(replica).size).toBe(sizeBytes);
    must("qemu-img", "compare", "-f", "vhdx", "-F", "raw", image, replica);
    return result.done;
  };
  const initial = await transfer();
  expect(initial).toMatchObject({ reason: "initial", bytesScanned: sizeBytes });
  // 64 KiB, 1 MiB, and the last sector's block: not the 6 MiB of their payload blocks.
  expect(initial?.bytesRead).toBeLessThan(2 * MIB);
  expect(await transfer()).toMatchObject({ bytesChanged: 0, root: initial?.root });
  // Over old content, in a new payload block, and zeros.
  write("write -P 0xb1 4k 4k", "write -P 0xb2 200M 8k", "write -z 100M 64k");
  const last = await transfer();
  expect(last).toMatchObject({ bytesShipped: 12 * KIB, blocksZero: 1 });
  // Restored as VHDX it is the same disk, to QEMU and to the next send: digests are of the disk, not of the file.
  const restored = join(dir, "restored.vhdx");
  const run = await replicate(t, ["restore", "--store", receiver.storeDir, "vm", restored, "--format", "vhdx"]);
  expect(run.code, run.stderr).toBe(0);
  must("qemu-img", "check", "-q", "-f", "vhdx", restored);
  must("qemu-img", "compare", "-f", "vhdx", "-F", "vhdx", image, restored);
  const args = ["--adopt"];
  const same = await send(t, { image: restored, port: receiver.port, disk: "vm", tls: pki.send, args });
  expect(same.code, same.stderr).toBe(0);
  expect(same.done).toMatchObject({ bytesChanged: 0, root: last?.root });
});

test("C-19 a VHDX that was cut after its first copy: the send fails where it ends, and the point before is whole", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.vhdx");
  const content = noise(7, 3 * MIB);
  await writeVhdx(image, { sizeBytes: 4 * MIB, pieces: [{ offset: 0, bytes: content }] });
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const target = { image, port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, target)).code).toBe(0);
  truncateSync(image, statSync(image).size - MIB / 2);
  const cut = await send(t, target);
  expect(cut.code).toBe(1);
  expect(cut.error).toMatchObject({ code: "image-truncated", action: "never" });
  expect(cut.error?.message).toMatch(/payload block 2 at \d+/);
  const restored = join(dir, "restored.raw");
  const run = await replicate(t, ["restore", "--store", receiver.storeDir, "vm", restored]);
  expect(run.code, run.stderr).toBe(0);
  const right = Buffer.alloc(4 * MIB);
  content.copy(right);
  expect(readFileSync(restored).equals(right)).toBe(true);
});

test("C-08 images of Hyper-V and others: a full cycle, after which each is what it was", async (t) => {
  if (noSamples !== undefined) return t.skip(noSamples);
  await cycleSamples(
    t,
    pki,
    [...samples, ...vhdSamples].filter(({ large }) => large !== true),
  );
});

test("C-22 a VHD that QEMU writes: copied and changed", async (t) => {
  needTools(t, "qemu-img", "qemu-io");
  const dir = tempDir(t);
  const image = join(dir, "disk.vhd");
  must("qemu-img", "create", "-q", "-f", "vpc", "-o", "force_size=on", image, "64M");
  must("qemu-io", "-f", "vpc", "-c", "write -P 0xa1 0 64k", "-c", "write -P 0xa2 40M 1M", image);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const replica = replicaPath(receiver.storeDir, "vm");
  for (const reason of ["initial", "scan"]) {
    const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
    expect(result.code, result.stderr).toBe(0);
    expect(result.done).toMatchObject({ reason });
    expect(statSync(replica).size).toBe(64 * MIB);
    must("qemu-img", "compare", "-f", "vpc", "-F", "raw", image, replica);
    must("qemu-io", "-f", "vpc", "-c", "write -P 0xb1 20M 8k", image);
  }
});

test("a chain of three files is one disk", async (t) => {
  const dir = tempDir(t);
  const sizeBytes = 40 * MIB;
  const piece = (offset: number, length: number) => ({ offset, bytes: noise(offset / 512, length) });
  const all = [piece(0, 20 * MIB), piece(5 * MIB + 512, 4 * MIB), piece(8 * MIB, 4 * KIB)];
  const middle = "22222222-2222-2222-2222-222222222222";
  await writeVhdx(join(dir, "base.vhdx"), { sizeBytes, payloadBlockBytes: 32 * MIB, pieces: all.slice(0, 1) });
  await writeVhdx(join(dir, "a.avhdx"), {
    ...{ sizeBytes, dataGuid: middle, pieces: all.slice(1, 2) },
    parent: { parent_linkage: `{${guids.data}}`, relative_path: ".\\base.vhdx" },
  });
  const image = join(dir, "b.avhdx");
  await writeVhdx(image, {
    ...{ sizeBytes, dataGuid: guids.log, pieces: all.slice(2), payloadBlockBytes: 2 * MIB },
    parent: { parent_linkage: `{${middle}}`, relative_path: ".\\a.avhdx" },
  });
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  const right = Buffer.alloc(sizeBytes);
  for (const { offset, bytes } of all) bytes.copy(right, offset);
  expect(readFileSync(replicaPath(receiver.storeDir, "vm")).equals(right)).toBe(true);
});

test("a damaged header is told, and the disk is sent all the same; a missing parent ends the send before it begins", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.vhdx");
  await writeVhdx(image, { sizeBytes: 4 * MIB, pieces: [{ offset: 0, bytes: noise(1, BLOCK) }] });
  runTool("dd", ["if=/dev/zero", `of=${image}`, "bs=4096", "seek=16", "count=1", "conv=notrunc"]);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  expect(result.stderr).toContain("header 1: signature missing, header 2 used");
  const child = join(dir, "child.avhdx");
  await writeVhdx(child, {
    sizeBytes: 4 * MIB,
    parent: { parent_linkage: `{${guids.log}}`, relative_path: ".\\gone.vhdx" },
  });
  const refused = await send(t, { image: child, port: receiver.port, disk: "child", tls: pki.send });
  expect(refused.error).toMatchObject({ code: "image-not-found", action: "never" });
  expect(refused.error?.message).toContain("gone.vhdx");
});

test("a dynamic VHDX of 15 TiB in payload blocks of 1 MiB, of which one sector was written: that one is read", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.vhdx");
  const sizeBytes = 15 * TIB;
  await writeVhdx(image, {
    sizeBytes,
    payloadBlockBytes: MIB,
    pieces: [{ offset: sizeBytes - 512, bytes: noise(3, 512) }],
  });
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  expect(result.done).toMatchObject({ bytesScanned: sizeBytes, bytesRead: BLOCK });
});
