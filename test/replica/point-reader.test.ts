import { statSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { PointReader } from "../../src/replica/store.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import type { KitOptions, SendOptions } from "../replication/pair-kit.ts";
import {
  changed,
  Changing,
  expectContent,
  expectExtents,
  holdContents,
  hookedLanes,
  imageOf,
  makePoints,
  PointKit,
  rootOf,
  steppedStorage,
} from "./point-kit.ts";

let kit: PointKit;
const readers: PointReader[] = [];

async function start(options: SendOptions = {}, kitOptions: KitOptions = {}): Promise<void> {
  kit = await PointKit.create(options, kitOptions);
}

async function open(point: number | "newest"): Promise<PointReader> {
  const reader = await kit.open(point);
  readers.push(reader);
  return reader;
}

afterEach(async () => {
  for (const reader of readers.splice(0)) await reader.close();
  expect(await kit.close(), "every slot is back").toBe(true);
});

describe("each point is what was sent", () => {
  test.each([
    [16 * KIB, "xxh64", 0],
    [64 * KIB, "xxh64", 1],
    [16 * KIB, "sha256", 513],
    [1 * MIB, "sha256", 4096 + 7],
  ] as const)("blocks of %i, %s, %i bytes beyond the last whole block", async (blockBytes, digestKind, odd) => {
    await start({ blockBytes, digestKind });
    // The places of changes do not follow the size of a block.
    const unit = Math.min(blockBytes, 80 * KIB);
    await makePoints(kit, unit * 18 + odd, unit);
    await kit.expectAll();
    await kit.expectPoint("newest", 6);
    const { points, unreadable, openLog } = await kit.pair.store.points("disk");
    expect(points.map(({ point }) => point)).toEqual([1, 2, 3, 4, 5, 6]);
    expect({ unreadable, openLog }).toEqual({ unreadable: [], openLog: false });
  });

  test("more than one table page, mostly holes", async () => {
    await start({ blockBytes: 16 * KIB, digestKind: "sha256" });
    const page = 256 * 16 * KIB;
    const disk = new Changing(5 * page + 5_000);
    await kit.commit(disk.write(page - 20_000, 40_000).write(4 * page, 100).content);
    await kit.commit(disk.write(page - 100, 200).write(3 * page, 16 * KIB).content);
    await kit.commit(disk.zero(0, 2 * page).write(5 * page + 4_000, 900).content);
    await kit.expectAll();
    const reader = await open(2);
    const kinds: string[] = [];
    for await (const { kind, offset } of reader.extents(0, reader.sizeBytes))
      kinds.push(`${kind} ${offset / KIB / 16}`);
    expect(kinds).toEqual(["zero 0", "data 254", "zero 258", "data 768", "zero 769", "data 1024", "zero 1025"]);
  });

  test("ranges of any offset and length", async () => {
    await start({ blockBytes: 16 * KIB });
    await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
    const reader = await open(3);
    const content = kit.content(3);
    const range = fc
      .tuple(fc.nat(content.length), fc.nat(content.length))
      .map(([a, b]) => ({ offset: Math.min(a, b), length: Math.abs(a - b) }));
    await fc.assert(
      fc.asyncProperty(range, async ({ offset, length }) => {
        const target = Buffer.alloc(length, 0xee);
        await reader.read(target, offset);
        expect(target.equals(content.subarray(offset, offset + length))).toBe(true);
        let at = offset;
        for await (const extent of reader.extents(offset, length)) {
          expect(extent.offset).toBe(at);
          at += extent.length;
          if (extent.kind === "zero")
            expect(content.subarray(extent.offset, at).every((byte) => byte === 0)).toBe(true);
        }
        expect(at).toBe(offset + length);
      }),
      { numRuns: 60, seed: 7 },
    );
    const bytes = Buffer.alloc(10);
    expect(() => reader.read(bytes, content.length - 9)).toThrow(InvariantError);
  });

  test("digests are those of the blocks, zero for a zero block", async () => {
    await start({ blockBytes: 16 * KIB });
    await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
    const reader = await open(3);
    const digests = Buffer.from(await reader.digests(0));
    for (let block = 0; block * 16 * KIB < reader.sizeBytes; block++) {
      const digest = Buffer.from(await reader.digest(block));
      expect(digest.equals(digests.subarray(block * 8, block * 8 + 8))).toBe(true);
      const zero = kit
        .content(3)
        .subarray(block * 16 * KIB, (block + 1) * 16 * KIB)
        .every((byte) => byte === 0);
      expect(digest.every((byte) => byte === 0)).toBe(zero);
    }
  });

  test("a disk of no bytes", async () => {
    await start();
    await kit.commit(Buffer.alloc(0));
    await kit.commit(new Changing(0).grow(100).write(0, 100).content);
    await kit.expectAll();
  });
});

/** One step of a delta, in blocks of 16 KiB: any offset in parts, any length. */
const change = fc.record({
  kind: fc.constantFrom("write", "write", "text", "zero", "zero blocks", "grow"),
  at: fc.nat(1000),
  length: fc.integer({ min: 1, max: 70_000 }),
});

function applyChange(disk: Changing, { kind, at, length }: { kind: string; at: number; length: number }): void {
  const offset = Math.floor((at / 1000) * disk.content.length);
  if (kind === "write") disk.write(offset, length);
  else if (kind === "text") disk.text(offset, length);
  else if (kind === "zero") disk.zero(offset, length);
  else if (kind === "zero blocks") disk.zero(offset - (offset % (16 * KIB)), 4 * 16 * KIB);
  else if (disk.content.length < 3 * MIB) disk.grow(length);
}

test("many points, each of any changes", async () => {
  await start({ blockBytes: 16 * KIB, digestKind: "xxh64" });
  let disk = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(change, { maxLength: 6 }), { minLength: 20, maxLength: 20 }), async (deltas) => {
      const name = `disk${disk++}`;
      const changing = new Changing(1 * MIB + 300).write(0, 400_000);
      const contents: Buffer[] = [];
      for (const delta of deltas) {
        for (const each of delta) applyChange(changing, each);
        await kit.pair.send(await imageOf(changing.content), { disk: name, blockBytes: 16 * KIB });
        await kit.pair.idle();
        contents.push(Buffer.from(changing.content));
      }
      for (const [index, content] of contents.entries()) {
        const reader = await kit.pair.store.openPoint(name, index + 1);
        await expectContent(reader, content);
        await reader.close();
      }
    }),
    { numRuns: 2, seed: 11, endOnFailure: true },
  );
});

/** Of the newest point. */
async function expectCycle(cycle: string | undefined): Promise<void> {
  const reader = await kit.open("newest");
  expect(reader.point.cycle).toBe(cycle);
  await reader.close();
}

describe("while a delta is under way (C-65)", () => {
  test.each([1, 3, 5])("stopped after %i pieces: the newest point is whole", async (pieces) => {
    let jobs = 0;
    let stop = Number.POSITIVE_INFINITY;
    const controller = new AbortController();
    const hook = (job: string, when: string): Promise<void> => {
      if ((job === "apply" || job === "clear") && when === "after" && ++jobs === stop) controller.abort();
      return Promise.resolve();
    };
    /** As the sender named them, of each commit it asked for. */
    const cycles: string[] = [];
    const onPair = ({ client }: LinkedPair): void => {
      const send = client.send.bind(client);
      client.send = (message, payload) => {
        if (message.type === "commit") cycles.push(message.cycle);
        return send(message, payload);
      };
    };
    await start({ blockBytes: 16 * KIB, onPair }, { receiverLanes: hookedLanes(hook) });
    const disk = new Changing(6 * MIB + 100).write(0, 6 * MIB);
    await kit.commit(disk.content);
    await kit.commit(disk.write(100_000, 9_000).zero(2 * MIB, MIB).content);
    jobs = 0;
    stop = pieces;
    disk
      .write(0, 8 * MIB)
      .zero(8 * MIB, 3 * 16 * KIB)
      .write(9 * MIB, 100);
    const failed = kit.pair.sendUntil(controller.signal, await imageOf(disk.content));
    await expect(failed).rejects.toBeInstanceOf(Error);
    await kit.pair.idle();
    expect((await kit.pair.store.points("disk")).openLog).toBe(true);
    await kit.expectPoint("newest", 2);
    await expectCycle(cycles[1]);
    await kit.expectAll();
    stop = Number.POSITIVE_INFINITY;
    await kit.commit(disk.content);
    await expectCycle(cycles[2]);
    expect(new Set(cycles).size).toBe(3);
    await kit.expectAll();
  });

  test("a write that fails half way: the newest point is whole, and the table is in doubt", async () => {
    let fail = false;
    const controller = new AbortController();
    const hook = (job: string, when: string): Promise<void> => {
      if (!fail || job !== "apply" || when !== "after") return Promise.resolve();
      controller.abort();
      return Promise.reject(new ReplicationError("write-failed", "the medium failed"));
    };
    await start({ blockBytes: 16 * KIB }, { receiverLanes: hookedLanes(hook) });
    const disk = new Changing(3 * MIB + 100).write(0, 2 * MIB);
    await kit.commit(disk.content);
    fail = true;
    const image = await imageOf(new Changing(3 * MIB + 100).write(0, 3 * MIB).content);
    await expect(kit.pair.sendUntil(controller.signal, image)).rejects.toBeInstanceOf(Error);
    await kit.pair.idle();
    await kit.expectPoint("newest", 1);
  });

  test("readers opened before and between, read at every step of it", async () => {
    const versions = new Map<PointReader, Buffer>();
    let busy = false;
    let reads = 0;
    const readSome = async (): Promise<void> => {
      if (busy) return;
      busy = true;
      for (const [reader, content] of versions) {
        const offset = Math.floor(Changing.chance() * content.length);
        const target = Buffer.alloc(
          Math.min(content.length - offset, 1 + Math.floor(Changing.chance() * 60_000)),
          0xee,
        );
        await reader.read(target, offset);
        if (!target.equals(content.subarray(offset, offset + target.length))) {
          throw new Error(`point ${reader.point.point} is wrong at ${offset}`);
        }
        reads++;
      }
      busy = false;
    };
    const failures: unknown[] = [];
    const step = (): Promise<void> => readSome().catch((error: unknown) => void failures.push(error));
    await start({ blockBytes: 16 * KIB }, { receiverLanes: hookedLanes(step), receiverStorage: steppedStorage(step) });
    const disk = new Changing(2 * MIB + 4_321).write(0, 1_500_000);
    for (let delta = 0; delta < 8; delta++) {
      const point = await kit.commit(disk.content);
      versions.set(await open(point), kit.content(point));
      for (let change = 0; change < 12; change++) {
        const offset = Math.floor(Changing.chance() * disk.content.length);
        if (change % 3 === 0) disk.zero(offset - (offset % (16 * KIB)), 40_000);
        else disk.write(offset, 30_000);
      }
      if (delta === 3) disk.grow(100_000).write(2 * MIB, 90_000);
    }
    expect(failures).toEqual([]);
    expect(reads).toBeGreaterThan(500);
    for (const [reader, content] of versions) await expectContent(reader, content);
  });

  test("every block is read while its delta is between log and replica", async () => {
    const opened: { reader?: PointReader; digests?: PointReader } = {};
    const wrong: string[] = [];
    const readAll = async (job: string, when: string): Promise<void> => {
      const { reader } = opened;
      if (reader === undefined) return;
      const found = Buffer.alloc(reader.sizeBytes);
      await reader.read(found, 0);
      if (!found.equals(kit.content(1))) wrong.push(`${when} ${job}`);
      await expectDigests();
    };
    // One that only ever asks for these.
    const expectDigests = async (): Promise<void> => {
      const { digests } = opened;
      if (digests === undefined) return;
      await expectExtents(digests, kit.content(1));
      if ((await rootOf(digests)) !== digests.point.root) wrong.push("the root");
    };
    await start(
      { blockBytes: 64 * KIB },
      { receiverLanes: hookedLanes(readAll), receiverStorage: steppedStorage(expectDigests) },
    );
    const disk = new Changing(MIB + 12_345).write(0, MIB);
    await kit.commit(disk.content);
    opened.reader = await open(1);
    opened.digests = await open(1);
    const late = await open(1);
    const later = await open(1);
    await kit.commit(
      disk
        .write(70_000, 10_000)
        .zero(128 * KIB, 256 * KIB)
        .write(MIB, 12_345).content,
    );
    await kit.commit(disk.write(128 * KIB, 100_000).content);
    expect(wrong).toEqual([]);
    await expectContent(opened.reader, kit.content(1));
    // Opened before, and asked for the first time now.
    expect(await rootOf(late)).toBe(late.point.root);
    await expectExtents(later, kit.content(1));
  });

  test("an entry whose content is not written yet", async () => {
    const held = holdContents();
    const opened: { reader?: PointReader } = {};
    let looks = 0;
    const failures: unknown[] = [];
    const lanes = hookedLanes(async (job, when) => {
      const { reader } = opened;
      if (job !== "append" || reader === undefined) return;
      held.on = true;
      if (when === "before") return;
      // The second time the entry is known before anything is read.
      for (let time = 0; time < 2; time++) {
        const found = Buffer.alloc(reader.sizeBytes);
        await reader.read(found, 0).catch((error: unknown) => void failures.push(error));
        if (!found.equals(kit.content(1))) failures.push("wrong");
        looks++;
      }
      held.flush();
    });
    await start({ blockBytes: 16 * KIB }, { receiverLanes: lanes, receiverStorage: held.wrap });
    const disk = new Changing(MIB).write(0, MIB);
    await kit.commit(disk.content);
    opened.reader = await open(1);
    await kit.commit(disk.write(5_000, 10_000).write(300_000, 100_000).content);
    held.on = false;
    expect(failures).toEqual([]);
    expect(looks).toBeGreaterThan(0);
    expect(held.count).toBeGreaterThan(0);
    await expectContent(opened.reader, kit.content(1));
  });
});

describe("which points there are", () => {
  test("no disk, no point, no such point", async () => {
    await start({ blockBytes: 16 * KIB });
    await expect(kit.open("newest")).rejects.toMatchObject({ code: "disk-not-found" });
    const geometry = { sizeBytes: MIB, blockBytes: 16 * KIB, digestKind: "xxh64" } as const;
    await kit.pair.store.create("disk", { geometry, owner: "client", sectorBytes: 4096 });
    await expect(kit.open("newest")).rejects.toMatchObject({ code: "point-not-found" });
    await kit.commit(new Changing(MIB).write(0, 100).content);
    await expect(kit.open(2)).rejects.toMatchObject({
      code: "point-not-found",
      message: "disk disk has no point 2; its points are from 1 to 1",
    });
    const reader = await open(1);
    expect(reader.sectorBytes).toBe(4096);
    expect(statSync(join(kit.points, "0000000001.lock")).isFile()).toBe(true);
  });

  test("a missing or damaged log or record: newer points can be read", async () => {
    await start({ blockBytes: 16 * KIB });
    await makePoints(kit, 16 * KIB * 18, 16 * KIB);
    const { store } = kit.pair;
    await changed(
      kit,
      "points/0000000003.json",
      (bytes) => bytes.fill(0x20, 10, 20),
      async () => {
        for (const point of [1, 2, 3]) {
          await expect(kit.open(point)).rejects.toMatchObject({
            code: "store-damaged",
            message: expect.stringContaining("0000000003.json"),
          });
        }
        await kit.expectPoint(4);
        expect((await store.points("disk")).unreadable).toMatchObject([{ point: 3 }]);
      },
    );
    const before = await open(3);
    unlinkSync(kit.logPath(4));
    await expect(kit.open(3)).rejects.toMatchObject({
      code: "store-damaged",
      message: expect.stringContaining("0000000004.undo"),
    });
    await kit.expectPoint(5);
    // Who has it open already needs no name.
    await expectContent(before, kit.content(3));
  });

  test("points removed around it change nothing", async () => {
    await start({ blockBytes: 16 * KIB });
    await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
    const { store } = kit.pair;
    const before = await open(3);
    await store.hold("disk", 1, { owner: "test", until: undefined });
    const left = async (): Promise<readonly number[]> => (await store.points("disk")).points.map(({ point }) => point);
    await store.prune("disk", { keep: "last=1" });
    expect(await left()).toEqual([1, 3, 6]);
    for (const point of [1, 3, 6]) await kit.expectPoint(point);
    await expectContent(before, kit.content(3));
    await expect(kit.open(2)).rejects.toMatchObject({ code: "point-not-found" });
    // Two commits between two looks, the first of them gone again.
    const disk = new Changing(kit.content(6).length).write(0, 100_000);
    await kit.commit(disk.content);
    await kit.commit(disk.write(50_000, 100_000).content);
    await store.prune("disk", { keep: "last=1" });
    expect(await left()).toEqual([1, 3, 8]);
    await expectContent(before, kit.content(3));
    for (const point of [1, 3, 8]) await kit.expectPoint(point);
  });

  test("the newest record taken away while its log is there", async () => {
    await start({ blockBytes: 16 * KIB });
    await makePoints(kit, 16 * KIB * 18, 16 * KIB);
    unlinkSync(join(kit.points, "0000000005.json"));
    unlinkSync(join(kit.points, "0000000006.json"));
    await expect(kit.open("newest")).rejects.toMatchObject({
      code: "store-damaged",
      message: expect.stringContaining("0000000005.json"),
    });
  });

  test("a point cannot be removed while it is open", async () => {
    await start({ blockBytes: 16 * KIB });
    await kit.commit(new Changing(MIB).write(0, 100).content);
    const storage = createNodeStorage();
    const path = join(kit.points, "0000000001.lock");
    const first = await kit.open(1);
    const second = await kit.open("newest");
    await first.close();
    await first.close();
    expect(await storage.lock(path, "exclusive")).toBeUndefined();
    await second.close();
    const lock = await storage.lock(path, "exclusive");
    expect(lock).toBeDefined();
    await expect(kit.open(1)).rejects.toMatchObject({ code: "disk-busy" });
    await lock?.release();
    await expect(first.digest(0)).rejects.toBeInstanceOf(InvariantError);
  });
});

test("the root over the digests of any point is the point's", async () => {
  await start({ blockBytes: 16 * KIB, digestKind: "sha256" });
  await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
  const reader = await open(1);
  expect(await rootOf(reader)).toBe(reader.point.root);
});
