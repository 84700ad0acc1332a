/** The disk that power-loss.long.ts takes the power from, judged by a client we did not write. */
import { spawn } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, type TestContext, test } from "vitest";
import { KIB, makeSparse, MIB, noise, PART, writeAt } from "./content.ts";
import { needTools, seededRandom, tempDir } from "./kit.ts";
import { startVolatileDisk, type VolatileDisk } from "./volatile-disk.ts";

const sizeBytes = 4 * MIB;

async function setUp(t: TestContext): Promise<{ path: string; disk: VolatileDisk }> {
  needTools(t, "qemu-io");
  const dir = tempDir(t);
  const path = join(dir, "disk");
  makeSparse(path, sizeBytes);
  return { path, disk: await startVolatileDisk(t, path, join(dir, "nbd")) };
}

/** Commands of qemu-io, one after the other on one connection; cache=writeback leaves flushes to us. Resolves when it has ended. */
function qemuIo(
  disk: VolatileDisk,
  ...commands: readonly string[]
): Promise<{ readonly code: number | null; readonly output: string }> {
  const target = `driver=nbd,server.type=unix,server.path=${disk.socketPath}`;
  const options = ["-t", "writeback", "--image-opts", target];
  const child = spawn("qemu-io", [...commands.flatMap((command) => ["-c", command]), ...options]);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, output }));
  });
}

test("what was written is read before it is on the disk, and is there after a flush", async (t) => {
  const { path, disk } = await setUp(t);
  const old = noise(1, MIB);
  writeAt(path, [[MIB, old]]);
  const failed = disk.failWhen(({ bytes }) => bytes === undefined, {
    kept: 0,
    grainBytes: 512,
    random: seededRandom(1),
  });
  const first = await qemuIo(
    disk,
    "write -P 0x11 1M 64k",
    "write -P 0x22 1028k 4k",
    "write -P 0x33 1030k 512",
    "read -P 0x11 1M 4k",
    "read -P 0x22 1028k 2k",
    "read -P 0x33 1030k 512",
    "read -P 0x22 1055232 1536",
    "read -P 0x11 1032k 32k",
    "read -P 0 0 1M",
    "flush",
  );
  await failed;
  expect(first.output).not.toContain("verification failed");
  expect(first.output.match(/^read \d+\/\d+ bytes/gm)).toHaveLength(6);
  expect(disk.lostBytes).toBe(64 * KIB + 4 * KIB + 512);
  expect(
    readFileSync(path)
      .subarray(MIB, 2 * MIB)
      .equals(old),
  ).toBe(true);

  const second = await qemuIo(disk, "write -P 0x44 1M 64k", "flush");
  expect(second.code, second.output).toBe(0);
  expect(disk.unflushedBytes).toBe(0);
  disk.fail({ kept: 0, grainBytes: 512, random: seededRandom(1) });
  const now = readFileSync(path);
  expect(now.subarray(MIB, MIB + 64 * KIB).equals(Buffer.alloc(64 * KIB, 0x44))).toBe(true);
  expect(now.subarray(MIB + 64 * KIB, 2 * MIB).equals(old.subarray(64 * KIB))).toBe(true);
});

test("a write beyond the end is refused", async (t) => {
  const { path, disk } = await setUp(t);
  await qemuIo(disk, "write 4M 4k", "flush");
  expect(statSync(path).size).toBe(sizeBytes);
});

test.for([512, PART, Number.POSITIVE_INFINITY])(
  "of what was not flushed, pieces of %s bytes stay",
  async (grainBytes, t) => {
    const { path, disk } = await setUp(t);
    const failed = disk.failWhen(({ bytes }) => bytes === undefined, {
      kept: 0.5,
      grainBytes,
      random: seededRandom(7),
    });
    // The second 64 KiB are written twice: of a piece any of the three contents may stay.
    const writes = Array.from({ length: 32 }, (_unused, index) => `write -P 0x11 ${String(index * 4)}k 4k`);
    await qemuIo(disk, ...writes, "write -P 0x22 64k 64k", "flush");
    await failed;
    const unit = Math.min(grainBytes, PART);
    const bytes = readFileSync(path);
    const found = new Set<string>();
    for (let at = 0; at < 128 * KIB; at += unit) {
      const piece = bytes.subarray(at, at + unit);
      expect(piece.equals(Buffer.alloc(unit, piece[0])), `at ${String(at)}`).toBe(true);
      found.add(`${at < 64 * KIB ? "once" : "twice"} ${String(piece[0])}`);
    }
    const expected = ["once 0", "once 17", "twice 0", "twice 17", "twice 34"];
    // The long write is there as a whole, or not at all.
    if (Number.isFinite(grainBytes)) expect([...found].sort()).toEqual(expected);
    else expect([...found].filter((name) => name.startsWith("once")).sort()).toEqual(expected.slice(0, 2));
    expect(bytes.subarray(128 * KIB).every((byte) => byte === 0)).toBe(true);
  },
);
