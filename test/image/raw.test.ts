import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { GIB, MIB } from "../../src/base/units.ts";
import { createRawReader, createRawWriter, sizeRawTarget } from "../../src/image/raw.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { Storage, StorageFile } from "../../src/storage/seam.ts";
import { attachLoop, createScratch, type Scratch, whyNoLoop } from "../storage/scratch.ts";
import { randomBytes } from "../random.ts";
import { extentsOf, readRange } from "./conformance.ts";

const storage = createNodeStorage();
const bare = createNodeStorage({ linux: { missing: "left out by the test" } });
const noLoop = await whyNoLoop();
const skipped = noLoop === undefined ? "" : ` (skipped: ${noLoop})`;

let scratch: Scratch;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(() => scratch.remove());

async function makeFile(sizeBytes: number): Promise<StorageFile> {
  const file = await storage.open(scratch.file("disk.raw"), { write: true, create: true });
  await file.truncate(sizeBytes);
  return file;
}

/** A file of which some calls are replaced. */
function altered(file: StorageFile, changes: Partial<StorageFile>): StorageFile {
  return {
    path: file.path,
    fd: file.fd,
    read: (target, offset) => file.read(target, offset),
    write: (source, offset) => file.write(source, offset),
    truncate: (sizeBytes) => file.truncate(sizeBytes),
    nextData: (offset) => file.nextData(offset),
    datasync: () => file.datasync(),
    stat: () => file.stat(),
    close: () => file.close(),
    ...changes,
  };
}

describe("C-19 a file that is shorter than its disk", () => {
  test("is an error with file and offset, and what is there still reads", async () => {
    const file = await makeFile(MIB);
    const reader = createRawReader(file, { sizeBytes: MIB });
    await file.truncate(MIB - 1);
    await expect(readRange(reader, MIB - 4096, 4096)).rejects.toMatchObject({
      code: "image-truncated",
      details: { file: file.path, offset: MIB - 1 },
    });
    expect(await readRange(reader, 0, MIB - 4096)).toHaveLength(MIB - 4096);
    await reader.close();
  });

  test("does not show its missing end as a hole", async () => {
    const file = await makeFile(8 * MIB);
    await file.write(Buffer.alloc(4096, 1), 0);
    const reader = createRawReader(file, { sizeBytes: 8 * MIB });
    await file.truncate(2 * MIB);
    await expect(extentsOf(reader, 0, 8 * MIB)).rejects.toMatchObject({ code: "image-truncated" });
    await reader.close();
  });
});

test("a medium that cannot be read names file, offset and cause", async () => {
  const file = await makeFile(MIB);
  const cause = Object.assign(new Error("EIO: i/o error, read"), { code: "EIO" });
  const broken = altered(file, { read: () => Promise.reject(cause) });
  const reader = createRawReader(broken, { sizeBytes: MIB });
  const failure = await readRange(reader, 65_536, 10).catch((error: unknown) => error);
  expect(failure).toMatchObject({
    code: "image-unreadable",
    cause,
    details: { file: file.path, offset: 65_536, errno: "EIO" },
  });
  expect(String(failure)).toContain("65536");
  await reader.close();
});

test("C-22 sizes are kept to the byte", async () => {
  for (const sizeBytes of [GIB + 512, GIB + 4096, GIB - 1, 1]) {
    const file = await makeFile(0);
    const options = await sizeRawTarget(file, storage, sizeBytes);
    const writer = createRawWriter(file, storage, options);
    expect(writer.sizeBytes).toBe(sizeBytes);
    await writer.write(Uint8Array.of(0x55), sizeBytes - 1);
    await writer.flush();
    expect((await file.stat()).sizeBytes).toBe(sizeBytes);
    expect(await readRange(writer, sizeBytes - 1, 1)).toEqual(Uint8Array.of(0x55));
    await writer.close();
  }
});

test("C-38 a file system that calls its final hole data costs a read and nothing else", async () => {
  const sizeBytes = GIB + 4096;
  const file = await makeFile(sizeBytes);
  await file.write(Buffer.alloc(4096, 1), 0);
  for (const answer of [undefined, "all"] as const) {
    const odd = altered(file, {
      nextData: (offset) => {
        if (offset < 4096) return { start: offset, end: 4096 };
        return answer === undefined ? undefined : { start: offset, end: sizeBytes };
      },
    });
    const extents = await extentsOf(createRawReader(odd, { sizeBytes }), 0, sizeBytes);
    expect(extents.map((extent) => [extent.kind, extent.length])).toEqual([
      ["data", 4096],
      [answer === undefined ? "hole" : "data", GIB],
    ]);
  }
  await file.close();
});

describe("C-46 a target full of noise", () => {
  const cases: readonly (readonly [string, Storage])[] = [
    ["punching", storage],
    ["writing zeros", bare],
  ];
  test.each(cases)("is zero after zero(), by %s", async (_name, store) => {
    const sizeBytes = 3 * MIB + 777;
    const path = scratch.file("noise.raw");
    const file = await store.open(path, { write: true, create: true });
    await file.write(randomBytes(sizeBytes), 0);
    const writer = createRawWriter(file, store, await sizeRawTarget(file, store, sizeBytes));
    expect((await readRange(writer, 0, sizeBytes)).some((byte) => byte !== 0)).toBe(true);
    await writer.zero(0, sizeBytes);
    await writer.flush();
    expect((await readRange(writer, 0, sizeBytes)).every((byte) => byte === 0)).toBe(true);
    expect((await file.stat()).sizeBytes).toBe(sizeBytes);
    await writer.close();
  });

  test("gives its space back where the file system can", async (context) => {
    if (!storage.capabilities.punch) return context.skip("no hole punching here");
    const file = await makeFile(4 * MIB);
    await file.write(randomBytes(4 * MIB), 0);
    await file.datasync();
    const before = (await file.stat()).allocatedBytes;
    const writer = createRawWriter(file, storage, { sizeBytes: 4 * MIB });
    await writer.zero(100, 4 * MIB - 200);
    await writer.flush();
    expect((await file.stat()).allocatedBytes).toBeLessThan(before / 10);
    await writer.close();
  });

  test.skipIf(noLoop !== undefined)(`on a device${skipped}`, async () => {
    const file = await makeFile(8 * MIB);
    await file.write(randomBytes(8 * MIB), 0);
    await file.close();
    const loop = attachLoop(file.path, 4096);
    try {
      for (const store of [storage, bare]) {
        const device = await store.open(loop.path, { write: true, holdDevice: true });
        const writer = createRawWriter(device, store, await sizeRawTarget(device, store, 8 * MIB));
        await writer.write(randomBytes(MIB), MIB + 3);
        await writer.zero(513, 8 * MIB - 513);
        await writer.flush();
        expect((await readRange(writer, 513, 8 * MIB - 513)).every((byte) => byte === 0)).toBe(true);
        await writer.close();
      }
    } finally {
      loop.detach();
    }
  });
});

describe("C-44 targets that cannot do everything", () => {
  test("a disk beyond the file system's largest file is refused before anything is sent", async () => {
    const file = await makeFile(0);
    const fat: Storage = { ...storage, space: async () => ({ freeBytes: GIB, fileBytesMax: 4 * GIB - 1 }) };
    await expect(sizeRawTarget(file, fat, 4 * GIB)).rejects.toMatchObject({
      code: "target-too-small",
      message: expect.stringContaining("4294967295"),
    });
    expect((await file.stat()).sizeBytes).toBe(0);
    await sizeRawTarget(file, fat, 4 * GIB - 1);
    await file.close();
  });

  test.skipIf(noLoop !== undefined)(`C-58 a device is checked and never truncated${skipped}`, async () => {
    await (await makeFile(12 * MIB)).close();
    const loop = attachLoop(scratch.file("disk.raw"), 4096);
    try {
      const device = await storage.open(loop.path, { write: true, holdDevice: true });
      expect(await device.stat()).toMatchObject({ kind: "device", sizeBytes: 12 * MIB, sectorBytes: 4096 });
      const noTruncate = altered(device, { truncate: () => Promise.reject(new Error("truncated a device")) });
      expect(await sizeRawTarget(noTruncate, storage, 10 * MIB)).toEqual({ sizeBytes: 10 * MIB, sectorBytes: 4096 });
      await expect(sizeRawTarget(noTruncate, storage, 10 * MIB + 512)).rejects.toMatchObject({
        code: "target-unsuitable",
      });
      await expect(sizeRawTarget(noTruncate, storage, 12 * MIB + 4096)).rejects.toMatchObject({
        code: "target-too-small",
      });
      await device.close();
    } finally {
      loop.detach();
    }
  });
});
