import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createBufferPool } from "../../src/base/buffer-pool.ts";
import { InvariantError } from "../../src/base/errors.ts";
import { GIB, MIB } from "../../src/base/units.ts";
import { fileBytesMax } from "../../src/storage/file-system.ts";
import { loadLinuxCalls } from "../../src/storage/linux.ts";
import { nodeLaneStorage } from "../../src/storage/node-lanes.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { DIRECT_BYTES } from "../../src/storage/seam.ts";
import { createScratch, hasCommand, mountTmpfs, type Scratch, whyNoTmpfs } from "./scratch.ts";

const linux = loadLinuxCalls();
const storage = createNodeStorage();
const noTmpfs = await whyNoTmpfs();
const why = (reason: string | undefined): string => (reason === undefined ? "" : ` (skipped: ${reason})`);
const noLinux = linux.missing;
const noFlock = hasCommand("flock", "--version") ? noLinux : "no flock command";

let scratch: Scratch;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(() => scratch.remove());

describe("files", () => {
  test("a created file is private, and exclusive means new", async () => {
    const file = await storage.open(scratch.file("a"), { write: true, exclusive: true });
    await file.close();
    expect((await storage.stat(scratch.file("a")))?.mode).toBe(0o600);
    await expect(storage.open(scratch.file("a"), { write: true, exclusive: true })).rejects.toMatchObject({
      code: "EEXIST",
    });
    await expect(storage.open(scratch.file("b"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("a read at the end is short, behind the end empty, and never padded", async () => {
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    await file.write(Buffer.from("hello"), 0);
    const target = Buffer.alloc(8, 0xee);
    expect(await file.read(target, 2)).toBe(3);
    expect(target.toString("latin1")).toBe("lloîîîîî");
    expect(await file.read(target, 5)).toBe(0);
    expect(nodeLaneStorage().read(file.fd, target, 4)).toBe(1);
    await file.close();
  });

  test("a direct write goes past the page cache and is read like any other; what is not aligned is refused, and nothing else", async (context) => {
    const path = scratch.file("a");
    const file = await storage.open(path, { write: true, create: true, direct: true });
    try {
      const { directFd } = file;
      if (directFd === undefined) return context.skip("the file system of the temporary folder has no direct writes");
      const pool = createBufferPool({ slotBytes: 4 * DIRECT_BYTES, slotCount: 1 });
      const memory = Buffer.from(pool.memory.buffer, 0, 4 * DIRECT_BYTES);
      for (let at = 0; at < memory.length; at++) memory[at] = at % 251;
      const { writeDirect } = nodeLaneStorage();
      await file.write(Buffer.alloc(5 * DIRECT_BYTES, 9), 0);
      expect(writeDirect?.(directFd, memory, DIRECT_BYTES)).toBe(true);
      expect(fs.readFileSync(path).equals(Buffer.concat([Buffer.alloc(DIRECT_BYTES, 9), memory]))).toBe(true);
      expect(writeDirect?.(directFd, memory.subarray(1), 0)).toBe(false);
      const reading = fs.openSync(path, "r");
      expect(() => writeDirect?.(reading, memory, 0)).toThrow(expect.objectContaining({ code: "EBADF" }));
      fs.closeSync(reading);
    } finally {
      await file.close();
    }
  });

  test("a file that nobody asked it for has no direct descriptor", async () => {
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    expect(file.directFd).toBeUndefined();
    await file.close();
  });

  test("close waits for what is under way, is idempotent, and ends the use", async () => {
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    const writing = file.write(Buffer.alloc(8 * MIB, 7), 0);
    const closing = file.close();
    await Promise.all([writing, closing, file.close()]);
    expect(fs.statSync(scratch.file("a")).size).toBe(8 * MIB);
    await expect(file.stat()).rejects.toThrow(InvariantError);
    expect(() => file.nextData(0)).toThrow(InvariantError);
  });

  test("directories: made private and whole, listed in order, missing is told apart", async () => {
    const deep = join(scratch.path, "x", "y");
    await storage.makeDirectory(deep);
    await storage.makeDirectory(deep);
    expect((await storage.stat(deep))?.mode).toBe(0o700);
    expect((await storage.stat(deep))?.kind).toBe("directory");
    for (const name of ["b", "a", "B"]) await (await storage.open(join(deep, name), { create: true })).close();
    expect(await storage.list(deep)).toEqual(["B", "a", "b"]);
    expect(await storage.list(join(deep, "none"))).toBeUndefined();
    expect(await storage.stat(join(deep, "a", "below-a-file"))).toBeUndefined();
    await storage.rename(join(deep, "a"), join(deep, "b"));
    await storage.link(join(deep, "b"), join(deep, "c"));
    expect((await storage.stat(join(deep, "c")))?.links).toBe(2);
    await storage.setMode(join(deep, "c"), 0o400);
    expect((await storage.stat(join(deep, "b")))?.mode).toBe(0o400);
    await storage.unlink(join(deep, "c"));
    await storage.unlink(join(deep, "c"));
    await storage.syncDirectory(deep);
    await expect(storage.removeDirectory(deep)).rejects.toMatchObject({ code: "ENOTEMPTY" });
  });

  test("space: free bytes, and the largest file where the file system is known", async () => {
    const space = await storage.space(scratch.path);
    expect(space.freeBytes).toBeGreaterThan(0);
    expect(fileBytesMax(0x4d44, 4096)).toBe(4 * GIB - 1);
    expect(fileBytesMax(0xef53, 4096)).toBe(2 ** 44 - 4096);
    expect(fileBytesMax(0x58465342, 4096)).toBeUndefined();
  });

  test("the largest file named for ext4 is the one the kernel allows", async (context) => {
    const { fileBytesMax: max } = await storage.space(scratch.path);
    if (max === undefined) return context.skip("the temporary directory is not on ext4");
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    await file.truncate(max);
    await expect(file.truncate(max + 1)).rejects.toMatchObject({ code: "EFBIG" });
    await file.close();
  });
});

describe("C-53 requests of 2 GiB and more", () => {
  // The memory is never touched, so this costs none; every byte of such a read is checked by large-requests.long.ts.
  test("are split: none is refused, and the count is exact", async () => {
    const huge = new Uint8Array(2 * GIB + 5);
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    await file.write(Buffer.from("hello"), 0);
    expect(storage.lanes.read(file.fd, huge, 1)).toBe(4);
    expect(await file.read(huge, 1)).toBe(4);
    await file.close();
    const sink = await storage.open("/dev/null", { write: true });
    await sink.write(huge, 0);
    storage.lanes.write(sink.fd, huge, 0);
    await sink.close();
  });
});

describe.skipIf(noTmpfs !== undefined)(`C-52 a full file system${why(noTmpfs)}`, () => {
  test.each([1, 64])("surfaces as ENOSPC, in pieces of %d MiB", async (pieceMib) => {
    const mount = mountTmpfs(scratch.path, "64m");
    try {
      const piece = Buffer.alloc(pieceMib * MIB, 1);
      const write = async (put: (offset: number) => Promise<void>): Promise<void> => {
        for (let offset = 0; offset < 80 * MIB; offset += piece.length) await put(offset);
      };
      const file = await storage.open(scratch.file("replica"), { write: true, create: true });
      await expect(write((offset) => file.write(piece, offset))).rejects.toMatchObject({ code: "ENOSPC" });
      await file.truncate(0);
      const lane = async (offset: number): Promise<void> => storage.lanes.write(file.fd, piece, offset);
      await expect(write(lane)).rejects.toMatchObject({ code: "ENOSPC" });
      expect((await storage.space(scratch.path)).freeBytes).toBe(0);
      // Space returns and with it the ability to write.
      await file.truncate(0);
      await file.write(piece.subarray(0, MIB), 0);
      expect((await storage.space(scratch.path)).freeBytes).toBeGreaterThan(32 * MIB);
      await file.close();
    } finally {
      mount.unmount();
    }
  });
});

describe.skipIf(noLinux !== undefined)(`holes and hints${why(noLinux)}`, () => {
  test("data is found among holes, and punched away", async () => {
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    await file.truncate(GIB + 1);
    expect(file.nextData(0)).toBeUndefined();
    await file.write(Buffer.alloc(128 * 1024, 1), 512 * MIB);
    expect(file.nextData(0)).toEqual({ start: 512 * MIB, end: 512 * MIB + 128 * 1024 });
    expect(file.nextData(512 * MIB + 70_000)).toEqual({ start: 512 * MIB + 70_000, end: 512 * MIB + 128 * 1024 });
    expect(file.nextData(GIB + 1)).toBeUndefined();
    expect(storage.lanes.punch(file.fd, 512 * MIB + 10, 128 * 1024 - 10)).toBe(true);
    const target = new Uint8Array(128 * 1024);
    await file.read(target, 512 * MIB);
    expect(target.findIndex((byte) => byte === 0)).toBe(10);
    expect(target.subarray(10).every((byte) => byte === 0)).toBe(true);
    expect(storage.lanes.punch(file.fd, 0, 0)).toBe(true);
    expect((await file.stat()).sizeBytes).toBe(GIB + 1);
    await file.close();
  });

  test("the page cache is asked, dropped and filled", async (context) => {
    if (fs.statfsSync(scratch.path).type === 0x01021994) return context.skip("a tmpfs is nothing but page cache");
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    const { lanes } = storage;
    await file.write(Buffer.alloc(4 * MIB, 1), 0);
    lanes.startWriteback(file.fd, 0, 4 * MIB);
    lanes.datasync(file.fd);
    expect(lanes.isCached?.(file.fd, MIB)).toBe(true);
    lanes.dropCache(file.fd, 0, 0);
    expect(lanes.isCached?.(file.fd, MIB)).toBe(true);
    lanes.dropCache(file.fd, 0, 4 * MIB);
    expect(lanes.isCached?.(file.fd, MIB)).toBe(false);
    expect(lanes.isCached?.(file.fd, 0, 4 * MIB)).toBe(false);
    lanes.read(file.fd, new Uint8Array(4096), 3 * MIB);
    expect(lanes.isCached?.(file.fd, 3 * MIB)).toBe(true);
    expect(lanes.isCached?.(file.fd, 0, 4 * MIB)).toBe(true);
    await file.close();
  });

  test("a scan that stops the kernel's read-ahead leaves nothing behind, and what was cached stays", async (context) => {
    if (fs.statfsSync(scratch.path).type === 0x01021994) return context.skip("a tmpfs is nothing but page cache");
    const file = await storage.open(scratch.file("a"), { write: true, create: true });
    const { lanes } = storage;
    const piece = Buffer.alloc(256 * 1024, 1);
    const pieces = 64;
    for (let index = 0; index < pieces; index++) await file.write(piece, index * piece.length);
    await file.datasync();
    lanes.dropCache(file.fd, 0, pieces * piece.length);
    lanes.stopReadAhead?.(file.fd);
    lanes.read(file.fd, piece, 20 * piece.length);
    for (let index = 0; index < pieces; index++) {
      const offset = index * piece.length;
      const own = lanes.isCached?.(file.fd, offset) === false;
      lanes.read(file.fd, piece, offset);
      if (own) lanes.dropCache(file.fd, offset, piece.length);
    }
    const left: number[] = [];
    for (let index = 0; index < pieces; index++) {
      if (lanes.isCached?.(file.fd, index * piece.length, piece.length) === true) left.push(index);
    }
    expect(left).toEqual([20]);
    await file.close();
  });

  test("hints on a bad descriptor throw nothing; a punch says what was wrong", () => {
    const { lanes } = storage;
    lanes.dropCache(-1, 0, 4096);
    lanes.readAhead(-1, 0, 4096);
    lanes.startWriteback(-1, 0, 4096);
    expect(lanes.isCached?.(-1, 0)).toBeUndefined();
    expect(() => lanes.punch(-1, 0, 4096)).toThrow(expect.objectContaining({ code: "EBADF", syscall: "fallocate" }));
    expect(() => lanes.punch(0, -1, 4096)).toThrow(InvariantError);
  });
});

describe("C-44 what the platform lacks", () => {
  test.each(["EOPNOTSUPP", "EINVAL", "ENODEV", "ENOSYS"] as const)(
    "punching refused with %s is told by false",
    async (code) => {
      const refusing = createNodeStorage({ linux: { ...linux, punch: () => -constants.errno[code] } });
      expect(refusing.lanes.punch(0, 0, 4096)).toBe(false);
    },
  );

  test("a full disk or a broken one while punching is an error, not an inability", () => {
    for (const code of ["ENOSPC", "EIO"] as const) {
      const failing = createNodeStorage({ linux: { ...linux, punch: () => -constants.errno[code] } });
      expect(() => failing.lanes.punch(0, 0, 4096)).toThrow(expect.objectContaining({ code }));
    }
  });

  test("without native calls: everything is data, nothing is punched, locks are refused", async () => {
    const bare = createNodeStorage({ linux: { missing: "left out by the test" } });
    expect(bare.capabilities).toEqual({
      holes: false,
      punch: false,
      locks: false,
      hints: false,
      missing: "left out by the test",
    });
    const file = await bare.open(scratch.file("a"), { write: true, create: true });
    await file.truncate(10 * MIB);
    expect(file.nextData(5)).toEqual({ start: 5, end: 10 * MIB });
    expect(bare.lanes.punch(file.fd, 0, MIB)).toBe(false);
    expect(bare.lanes.isCached?.(file.fd, 0)).toBeUndefined();
    bare.lanes.dropCache(file.fd, 0, MIB);
    await expect(bare.lock(scratch.file("l"), "shared")).rejects.toMatchObject({ code: "ENOTSUP" });
    expect(bare.probeImageLock?.(file)).toBeUndefined();
    await file.close();
  });
});

describe.skipIf(noLinux !== undefined)(`locks${why(noLinux)}`, () => {
  test("two handles of one process conflict, shared ones do not, and a lock ends with its release", async () => {
    const path = scratch.file("apply.lock");
    const first = await storage.lock(path, "exclusive");
    expect(first).toBeDefined();
    expect(await storage.lock(path, "exclusive")).toBeUndefined();
    expect(await storage.lock(path, "shared")).toBeUndefined();
    await first?.release();
    await first?.release();
    const readers = [await storage.lock(path, "shared"), await storage.lock(path, "shared")];
    expect(readers.every((lock) => lock !== undefined)).toBe(true);
    expect(await storage.lock(path, "exclusive")).toBeUndefined();
    for (const lock of readers) await lock?.release();
    const last = await storage.lock(path, "exclusive");
    expect(last).toBeDefined();
    await last?.release();
    expect((await storage.stat(path))?.kind).toBe("file");
  });

  test.skipIf(noFlock !== undefined)(`another process sees the lock${why(noFlock)}`, async () => {
    const path = scratch.file("apply.lock");
    const lock = await storage.lock(path, "exclusive");
    const tryIt = (): unknown => execFileSync("flock", ["--nonblock", path, "true"], { stdio: "pipe" });
    expect(tryIt).toThrow();
    await lock?.release();
    expect(tryIt).not.toThrow();
  });

  test("a file system without locks is told apart from a held lock", async () => {
    const without = createNodeStorage({ linux: { ...linux, flock: () => -constants.errno.ENOLCK } });
    await expect(without.lock(scratch.file("l"), "exclusive")).rejects.toMatchObject({ code: "ENOTSUP" });
  });
});

describe("the boot", () => {
  test(`has an id, which stays, and an age, which grows${why(noLinux)}`, async (context) => {
    context.skip(noLinux !== undefined, noLinux);
    const first = await storage.boot?.();
    expect(first?.id).toBe(fs.readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim());
    const uptime = Number(fs.readFileSync("/proc/uptime", "latin1").split(" ")[0]) * 1000;
    expect(first?.ageMillis).toBeGreaterThan(0);
    expect(first?.ageMillis).toBeLessThan(uptime + 60_000);
    expect((await storage.boot?.())?.id).toBe(first?.id);
  });
});
