/** Points written to files and images: what gets the name is the point, whatever goes wrong. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { openImage } from "../../src/image/open-image.ts";
import { restorePoint } from "../../src/index.ts";
import { LostRanges } from "../../src/replica/damaged-blocks.ts";
import { copyPoint } from "../../src/replica/restore-point.ts";
import type { PointReader } from "../../src/replica/store.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { randomBytes } from "../random.ts";
import { hasCommand } from "../storage/scratch.ts";
import { hastyClock, type SendOptions } from "../replication/pair-kit.ts";
import { Changing, makePoints, PointKit, whileChanged } from "./point-kit.ts";

const storage = createNodeStorage();
let kit: PointKit;

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
});

async function start(options: SendOptions = {}): Promise<void> {
  kit = await PointKit.create({ blockBytes: 16 * KIB, ...options });
}

const out = (name = "out.raw"): string => join(kit.pair.folder, name);
/** Names beside the store. */
const beside = (): string[] => readdirSync(kit.pair.folder).filter((name) => name !== "store");

type RestoreOptions = Partial<Parameters<typeof restorePoint>[1]>;

function restore(point: number | "newest", options: RestoreOptions = {}, files: Storage = storage) {
  return restorePoint(kit.pair.store, {
    engine: { storage: files, clock: hastyClock },
    disk: "disk",
    point,
    target: out(),
    ...options,
  });
}

/** Two points of 4 MiB and a bit; the second has data in the first and the last MiB. */
async function startTwo(): Promise<void> {
  await start();
  const disk = new Changing(4 * MIB + 700);
  await kit.commit(disk.write(0, 300 * KIB).write(3 * MIB, 900 * KIB).content);
  await kit.commit(disk.write(100 * KIB, 50 * KIB).write(4 * MIB, 700).content);
}

describe("each point is restored", () => {
  test.each([
    [16 * KIB, "xxh64", 0],
    [64 * KIB, "xxh64", 1],
    [16 * KIB, "sha256", 513],
    [1 * MIB, "sha256", 4096 + 7],
  ] as const)("blocks of %i, %s, %i bytes beyond the last whole block", async (blockBytes, digestKind, odd) => {
    await start({ blockBytes, digestKind });
    const unit = Math.min(blockBytes, 80 * KIB);
    await makePoints(kit, unit * 18 + odd, unit);
    for (const [number, content] of kit.contents) {
      const target = out(`${number}.raw`);
      const { point, writtenBytes } = await restore(number, { target });
      expect(point.point).toBe(number);
      expect(readFileSync(target).equals(content), `point ${number}`).toBe(true);
      expect(writtenBytes).toBeLessThanOrEqual(content.length);
    }
    expect(beside().filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("as VHDX: the same disk, small, and as QEMU reads it", async () => {
    await start();
    const disk = new Changing(70 * MIB);
    await kit.commit(disk.write(0, 300 * KIB).write(69 * MIB, MIB).content);
    await kit.commit(disk.write(100 * KIB, 50 * KIB).write(40 * MIB, 512).content);
    for (const number of [1, 2]) {
      const target = out(`${number}.vhdx`);
      await restore(number, { target, format: "vhdx" });
      const { reader, format } = await openImage(target, { storage });
      expect(format).toBe("vhdx");
      const all = new Uint8Array(reader.sizeBytes);
      await reader.read(all, 0);
      await reader.close();
      expect(kit.content(number).equals(all), `point ${number}`).toBe(true);
      if (storage.capabilities.holes) expect(statSync(target).blocks * 512).toBeLessThan(3 * MIB);
      if (!hasCommand("qemu-img", "--version")) continue;
      writeFileSync(out("raw"), kit.content(number));
      execFileSync("qemu-img", ["check", "-q", "-f", "vhdx", target]);
      execFileSync("qemu-img", ["compare", "-q", "-f", "vhdx", "-F", "raw", target, out("raw")]);
    }
    expect(beside().filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("as VHDX only when it is whole sectors, and never beside what is there", async () => {
    await startTwo();
    await expect(restore(1, { format: "vhdx" })).rejects.toMatchObject({
      code: "target-unsuitable",
      message: expect.stringContaining("4195004 bytes"),
    });
    expect(beside().filter((name) => name.startsWith("out"))).toEqual([]);
  });

  test("with holes where it is zero; progress ends at what was written", async () => {
    await startTwo();
    const seen: (readonly [number, number])[] = [];
    const { point, writtenBytes } = await restore("newest", { onProgress: (...counts) => seen.push(counts) });
    expect(point.point).toBe(2);
    expect(readFileSync(out()).equals(kit.content(2))).toBe(true);
    expect(writtenBytes).toBeLessThan(1.5 * MIB);
    if (storage.capabilities.holes) expect(statSync(out()).blocks * 512).toBeLessThan(1.6 * MIB);
    expect(seen.at(-1)).toEqual([writtenBytes, writtenBytes]);
  });

  test("over old content: what is zero at the point is zeroed", async () => {
    await startTwo();
    const reader = await kit.open(1);
    const image = createMemoryImage(reader.sizeBytes);
    await image.write(randomBytes(reader.sizeBytes), 0);
    await copyPoint(reader, image, { clear: true, signal: undefined, onProgress: () => undefined });
    await reader.close();
    const found = Buffer.alloc(image.sizeBytes);
    await image.read(found, 0);
    expect(found.equals(kit.content(1))).toBe(true);
  });

  test("an empty disk", async () => {
    await start();
    await kit.commit(Buffer.alloc(0));
    await restore(1);
    expect(statSync(out()).size).toBe(0);
  });
});

describe("targets that are refused", () => {
  test("a file that exists, and a part that was left; both are replaced at the user's word", async () => {
    await startTwo();
    writeFileSync(out(), "mine");
    await expect(restore(1)).rejects.toMatchObject({
      code: "target-exists",
      message: expect.stringContaining("--force") as string,
    });
    expect(readFileSync(out(), "utf8")).toBe("mine");
    expect(beside()).toEqual(["out.raw"]);
    const other = out("other.raw");
    writeFileSync(`${other}.part`, "half");
    await expect(restore(1, { target: other })).rejects.toMatchObject({ code: "target-exists" });
    expect(readFileSync(`${other}.part`, "utf8")).toBe("half");
    for (const target of [out(), other]) {
      await restore(1, { target, overwrite: true });
      expect(readFileSync(target).equals(kit.content(1))).toBe(true);
    }
    expect(beside().sort()).toEqual(["other.raw", "out.raw"]);
  });

  test("folders, folders that are missing, and whatever lies in a store, by any name", async () => {
    await startTwo();
    mkdirSync(out("folder"));
    symlinkSync(join(kit.pair.folder, "store/disks/disk"), out("link"));
    const before = readFileSync(kit.path("replica.raw"));
    for (const target of [
      out("folder"),
      out("missing/out.raw"),
      kit.path("replica.raw"),
      kit.path("new.raw"),
      join(kit.pair.folder, "store/new.raw"),
      out("link/replica.raw"),
      out("folder/../link/points/new.raw"),
    ]) {
      await expect(restore(1, { target, overwrite: true }), target).rejects.toMatchObject({
        code: "target-unsuitable",
      });
    }
    expect(readFileSync(kit.path("replica.raw")).equals(before)).toBe(true);
    expect(readdirSync(kit.path("")).filter((name) => name.includes("part"))).toEqual([]);
  });

  test.skipIf(!storage.capabilities.locks)("a part that another restore writes", async () => {
    await startTwo();
    const lock = await storage.lock(`${out()}.part`, "exclusive");
    await expect(restore(1, { overwrite: true })).rejects.toMatchObject({ code: "image-busy" });
    expect(existsSync(`${out()}.part`)).toBe(true);
    await lock?.release();
    await restore(1, { overwrite: true });
  });

  test("a file system without room, before anything is written", async () => {
    await startTwo();
    const small: Storage = { ...storage, space: async (path) => ({ ...(await storage.space(path)), freeBytes: 1000 }) };
    await expect(restore(1, {}, small)).rejects.toMatchObject({ code: "no-space", details: { freeBytes: 1000 } });
    expect(beside()).toEqual([]);
  });

  test("points and disks that are not there", async () => {
    await startTwo();
    await expect(restore(3)).rejects.toMatchObject({ code: "point-not-found" });
    await expect(restore(1, { disk: "other" })).rejects.toMatchObject({ code: "disk-not-found" });
    expect(beside()).toEqual([]);
  });
});

describe("what goes wrong on the way leaves no file, and one that exists as it was", () => {
  test("a block that does not match its digest", async () => {
    await startTwo();
    writeFileSync(out(), "mine");
    const flip = (bytes: Buffer): Buffer => bytes.fill(bytes.readUInt8(3 * MIB) ^ 1, 3 * MIB, 3 * MIB + 1);
    await whileChanged(kit.path("replica.raw"), flip, async () => {
      await expect(restore("newest", { overwrite: true })).rejects.toMatchObject({
        code: "store-damaged",
        details: { point: 2, offset: 3 * MIB },
      });
    });
    expect(readFileSync(out(), "utf8")).toBe("mine");
    expect(beside()).toEqual(["out.raw"]);
  });

  test("stopped", async () => {
    await startTwo();
    const stop = new AbortController();
    const stopped = restore("newest", { signal: stop.signal, onProgress: () => stop.abort() });
    await expect(stopped).rejects.toMatchObject({ code: "aborted" });
    expect(beside()).toEqual([]);
  });

  test("a write that fails", async () => {
    await startTwo();
    const full = Object.assign(new Error("full"), { code: "ENOSPC" });
    let writes = 0;
    const failing: Storage = {
      ...storage,
      async open(path, options) {
        const file = await storage.open(path, options);
        if (!path.endsWith(".part")) return file;
        file.write = () => (++writes === 2 ? Promise.reject(full) : Promise.resolve());
        return file;
      },
    };
    await expect(restore("newest", {}, failing)).rejects.toMatchObject({ code: "no-space" });
    expect(writes).toBe(2);
    expect(beside()).toEqual([]);
  });

  test("content that has not the point's root, though every block was served", async () => {
    await startTwo();
    const reader = await kit.open(2);
    const zeros = Buffer.alloc(reader.sizeBytes);
    const fake = (served: (target: Uint8Array, offset: number) => Promise<void>): PointReader => ({
      disk: reader.disk,
      point: reader.point,
      sizeBytes: reader.sizeBytes,
      sectorBytes: 512,
      read: served,
      extents: (offset, length) => reader.extents(offset, length),
      digest: (block) => reader.digest(block),
      digests: (page) => reader.digests(page),
      close: () => reader.close(),
    });
    const copy = (point: PointReader): Promise<number> =>
      copyPoint(point, createMemoryImage(reader.sizeBytes), {
        clear: false,
        signal: undefined,
        onProgress: () => undefined,
      });
    const wrong = fake(async (target, offset) => {
      target.set(zeros.subarray(offset, offset + target.length));
    });
    await expect(copy(wrong)).rejects.toMatchObject({
      code: "store-damaged",
      message: expect.stringContaining("root") as string,
    });
    await copy(fake((target, offset) => reader.read(target, offset)));
    await reader.close();
  });
});

describe("what is left of a damaged point", () => {
  test("zeros in place of what cannot be told, and all else as it was, also on a device's old content", async () => {
    await startTwo();
    const content = Buffer.from(kit.content(2));
    const flip = (bytes: Buffer): Buffer => {
      for (const at of [0, 3 * MIB, 3 * MIB + 17 * KIB, 3 * MIB + 50 * KIB]) bytes[at] = (bytes[at] ?? 0) ^ 1;
      return bytes;
    };
    await whileChanged(kit.path("replica.raw"), flip, async () => {
      const report = await restore("newest", { salvage: true });
      expect(report).toMatchObject({
        point: { point: 2 },
        lost: [
          { offset: 0, length: 16 * KIB, reason: "its content does not match its digest" },
          { offset: 3 * MIB, length: 32 * KIB },
          { offset: 3 * MIB + 48 * KIB, length: 16 * KIB },
        ],
        lostRanges: 3,
        lostBytes: 64 * KIB,
      });
      for (const { offset, length } of report.lost) content.fill(0, offset, offset + length);
      expect(readFileSync(out()).equals(content)).toBe(true);
      const old = createMemoryImage(content.length);
      await old.write(randomBytes(content.length), 0);
      const reader = await kit.open(2);
      const lost = new LostRanges();
      await copyPoint(reader, old, { clear: true, lost, signal: undefined, onProgress: () => undefined });
      await reader.close();
      const found = Buffer.alloc(content.length);
      await old.read(found, 0);
      expect(found.equals(content)).toBe(true);
      expect(lost).toMatchObject({ count: 3, bytes: 64 * KIB });
    });
    expect(beside()).toEqual(["out.raw"]);
  });

  test("of a good point it is the point, whose root is compared as ever", async () => {
    await startTwo();
    expect(await restore("newest", { salvage: true })).toMatchObject({ lost: [], lostRanges: 0, lostBytes: 0 });
    expect(readFileSync(out()).equals(kit.content(2))).toBe(true);
    const reader = await kit.open(2);
    const wrong: PointReader = {
      disk: reader.disk,
      point: reader.point,
      sizeBytes: reader.sizeBytes,
      sectorBytes: 512,
      read: (target) => Promise.resolve(void target.fill(0)),
      extents: (offset, length) => reader.extents(offset, length),
      digest: (block) => reader.digest(block),
      digests: (page) => reader.digests(page),
      close: () => reader.close(),
    };
    const copied = copyPoint(wrong, createMemoryImage(reader.sizeBytes), {
      ...{ clear: false, lost: new LostRanges() },
      ...{ signal: undefined, onProgress: () => undefined },
    });
    await expect(copied).rejects.toMatchObject({ code: "store-damaged" });
    await reader.close();
  });
});
