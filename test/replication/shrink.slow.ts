/** A disk that becomes smaller, by `--allow-shrink`: the replica is the source, and older points keep their own size and content. */
import { readdirSync, statSync } from "node:fs";
import { chmod, open } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { GIB, KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { hastyClock } from "./pair-kit.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { systemClock } from "../../src/base/clock.ts";
import { DiskLocks } from "../../src/replica/disk-lock.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { readPoint, refreshTimes } from "../../src/replica/points/point.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { FileStat } from "../../src/storage/seam.ts";
import { verifyPoint } from "../../src/library/points.ts";
import { Changing, imageOf, PointKit } from "../replica/point-kit.ts";
import { randomBytes } from "../random.ts";
import { rollBackDisk } from "../../src/replication/store-work.ts";
import { silentLogger } from "../../src/base/logger.ts";

const block = 16 * KIB;
const shrink = { allowShrink: true } as const;

let kit: PointKit;
const rejections: unknown[] = [];
const onRejection = (reason: unknown): void => void rejections.push(reason);

beforeEach(async () => {
  rejections.length = 0;
  process.on("unhandledRejection", onRejection);
  kit = await PointKit.create({ blockBytes: block, digestKind: "sha256" });
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  process.off("unhandledRejection", onRejection);
  expect(rejections).toEqual([]);
});

/** The replica's file is `content`, and so is what a session would say of its size. */
async function expectReplica(content: Buffer): Promise<void> {
  const replica = kit.pair.replica();
  expect(replica.length).toBe(content.length);
  expect(replica.equals(content)).toBe(true);
  expect((await kit.pair.store.summary("disk"))?.record.sizeBytes).toBe(content.length);
}

function cut(content: Buffer, sizeBytes: number): Buffer {
  return Buffer.from(content.subarray(0, sizeBytes));
}

async function commit(content: Buffer): Promise<void> {
  await kit.commit(content, shrink);
  await expectReplica(content);
}

/** Sends until so many bytes have passed to the receiver, then the connection is gone for good. */
async function interrupt(content: Buffer, bytes: number): Promise<void> {
  const sending = kit.pair.send(await imageOf(content), {
    ...shrink,
    ...{ blockBytes: block, digestKind: "sha256" },
    attemptsMax: 1,
    onPair: (pair) => {
      pair.toServer.cutAfter(bytes);
    },
  });
  await expect(sending).rejects.toMatchObject({ code: "connection-lost" });
  await kit.pair.idle();
}

async function bytesOf(reader: BlockReader, offset: number): Promise<Buffer> {
  const bytes = Buffer.alloc(MIB);
  await reader.read(bytes, offset);
  return bytes;
}

/** The newest point's record gets the times of the replica as it is. */
async function forgetTouch(): Promise<void> {
  const storage = createNodeStorage();
  const paths = diskPaths(join(kit.pair.folder, "store"), "disk");
  const point = await readPoint(storage, paths, 1);
  if (point === undefined) throw new Error("there is a point");
  await refreshTimes({ storage, locks: new DiskLocks(storage, systemClock, false) }, paths, point, {
    stat: async () => (await storage.stat(paths.replica)) as FileStat,
  });
}

async function rollBack(): Promise<void> {
  const { lanes, pool } = kit.pair.receiving;
  await rollBackDisk(kit.pair.store, "disk", { lanes, pool, clock: hastyClock, log: silentLogger, identity: "test" });
}

describe("without leave", () => {
  test("a smaller image is refused, says how to allow it, and changes nothing", async () => {
    const content = new Changing(2 * MIB + 100).write(0, 2 * MIB + 100).content;
    await kit.commit(content);
    const sending = kit.pair.send(await imageOf(cut(content, MIB)));
    await expect(sending).rejects.toMatchObject({
      code: "size-shrunk",
      action: "never",
      message: expect.stringContaining("--allow-shrink"),
    });
    await kit.pair.idle();
    await expectReplica(content);
    expect((await kit.pair.store.summary("disk"))?.state).toBe("idle");
  });

  test("another image with leave to shrink, but not to take the name over, cuts nothing", async () => {
    const content = new Changing(2 * MIB + 100).write(0, 2 * MIB + 100).content;
    await kit.commit(content);
    const other = new Changing(MIB).write(0, MIB).content;
    const reader = await imageOf(other);
    const source = { reader, name: "other", identity: "image-2" };
    await expect(kit.pair.send(reader, { ...shrink, source })).rejects.toMatchObject({ code: "another-image" });
    await kit.pair.idle();
    await expectReplica(content);
    expect((await kit.pair.store.summary("disk"))?.state).toBe("idle");
    await kit.commit(other, { ...shrink, source, adopt: true });
    await expectReplica(other);
    await kit.expectAll();
  });

  test("what an interrupted delta made the disk longer by may go: no point has it", async () => {
    const content = new Changing(MIB + 100).write(0, MIB).content;
    await kit.commit(content);
    const longer = new Changing(3 * MIB).write(0, 3 * MIB).content;
    await interrupt(longer, 2_500_000);
    expect((await kit.pair.store.summary("disk"))?.record.sizeBytes).toBe(3 * MIB);
    await kit.commit(new Changing(2 * MIB).write(0, 2 * MIB).content);
    await interrupt(longer, 2_500_000);
    await kit.commit(randomBytes(2 * MIB));
    await kit.expectAll();
  });

  test("a disk without points may become anything", async () => {
    await interrupt(randomBytes(3 * MIB), 1_500_000);
    const content = randomBytes(MIB + 5);
    await kit.commit(content);
    await expectReplica(content);
  });
});

describe("smaller", () => {
  const start = 3 * 256 * block + 3 * block + 5_000;

  test.each([
    ["within the last block, and the last part", start - 100],
    ["within the last block, at a part's end", start - 5_000 + 4_096],
    ["to the last block's begin", start - 5_000],
    ["by whole blocks", start - 5_000 - 2 * block],
    ["into the middle of a block", start - 2 * block],
    ["to a table page's end", 2 * 256 * block],
    ["over table pages, into the middle of a block", 2 * 256 * block + block + 1],
    ["to one byte", 1],
    ["to nothing", 0],
  ])("%s, and larger again", async (_how, sizeBytes) => {
    const full = new Changing(start).write(0, 20 * block).write(start - 260 * block, 260 * block);
    await commit(Buffer.from(full.content));
    await commit(cut(full.content, sizeBytes));
    // What was cut off does not come back: it is zero, and the source is not.
    const again = new Changing(start + 999);
    again.content.set(cut(full.content, sizeBytes));
    await commit(again.content);
    await commit(Buffer.from(again.write(sizeBytes, 3 * block).content));
    await commit(cut(again.content, sizeBytes));
    await kit.expectAll();
    for (const point of kit.contents.keys()) {
      const { damagedBytes } = await verifyPoint(kit.pair.store, { engine: kit.pair.receiving, disk: "disk", point });
      expect(damagedBytes).toBe(0);
    }
  });

  test("only zeros are cut off, and the rest is as it was: one point, nothing shipped", async () => {
    const content = new Changing(4 * MIB + 77).write(0, MIB).content;
    await commit(content);
    const smaller = cut(content, MIB + 50);
    const report = await kit.pair.send(await imageOf(smaller), { ...shrink, skipEmpty: true });
    expect(report).toMatchObject({ created: true, point: 2 });
    expect(report.funnel).toMatchObject({ changedBytes: 0, shippedBytes: 0 });
    await kit.pair.idle();
    await expectReplica(smaller);
    kit.contents.set(2, smaller);
    await kit.expectAll();
  });

  test("a tail that was rotten is said to be lost, and nothing else is", async () => {
    const content = new Changing(MIB).write(0, MIB).content;
    await commit(content);
    const path = kit.path("replica.raw");
    await chmod(path, 0o600);
    const file = await open(path, "r+");
    await file.write(Buffer.from("rot"), 0, 3, 40 * block + 5);
    await file.close();
    // As rot does it: without a trace in the times.
    await forgetTouch();
    await kit.pair.send(await imageOf(cut(content, 20 * block)), shrink);
    await kit.pair.idle();
    const reader = await kit.open(1);
    const found = Buffer.alloc(block);
    await expect(reader.read(found, 40 * block)).rejects.toMatchObject({ code: "store-damaged" });
    await reader.read(found, 41 * block);
    expect(found.equals(content.subarray(41 * block, 42 * block))).toBe(true);
    await reader.close();
  });
});

test("a sparse disk: a tail of zeros costs an entry a table page, in a log and in a joined one", async () => {
  const large = createMemoryImage(256 * GIB + 5_000);
  await large.write(randomBytes(MIB), 0);
  await large.write(randomBytes(MIB), 128 * GIB);
  const small = createMemoryImage(MIB + 5_000);
  await small.write(await bytesOf(large, 0), 0);
  const { pair } = kit;
  for (const image of [large, small, large, small]) {
    await pair.send(image, shrink);
    await pair.idle();
  }
  // An entry takes 34 bytes in a batch and 42 in the index; batches begin on pages, and there are 64 entries in one.
  const entries = (256 * GIB) / (512 * 64 * KIB);
  const logBytes = statSync(kit.logPath(1)).size;
  expect(logBytes).toBeLessThan(2 * MIB + entries * 150);
  const reader = await kit.open(1);
  expect((await bytesOf(reader, 128 * GIB)).equals(await bytesOf(large, 128 * GIB))).toBe(true);
  await reader.close();
  await pair.store.hold("disk", 1, { owner: "test", until: undefined });
  await pair.store.prune("disk", { keep: "last=1" });
  expect(await pair.store.compact("disk")).toMatchObject([{ point: 1 }]);
  const [joined] = readdirSync(kit.points).filter((name) => /^0000000001\.\d+\.undo$/.test(name));
  expect(statSync(join(kit.points, joined ?? "")).size).toBeLessThan(2 * MIB + entries * 150);
  const again = await kit.open(1);
  expect((await bytesOf(again, 128 * GIB)).equals(await bytesOf(large, 128 * GIB))).toBe(true);
  await again.close();
});

test("any sizes and contents, one after another, interrupted at any byte, rolled back or not; points thinned out and joined", async () => {
  const sizes = fc.integer({ min: 0, max: 40 * block });
  const step = fc.record({
    sizeBytes: fc.oneof(
      sizes,
      fc.integer({ min: 0, max: 40 }).map((blocks) => blocks * block),
    ),
    writes: fc.array(fc.tuple(sizes, fc.integer({ min: 1, max: 5 * block })), { maxLength: 4 }),
    zero: fc.option(fc.tuple(sizes, fc.integer({ min: 1, max: 9 * block })), { nil: undefined }),
    interruptions: fc.array(fc.record({ bytes: fc.nat(400_000), sizeBytes: sizes, rollBack: fc.boolean() }), {
      maxLength: 2,
    }),
    drop: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 6 }), async (steps) => {
      await kit.close();
      kit = await PointKit.create({ blockBytes: block, digestKind: "sha256" });
      let content = Buffer.alloc(0);
      let isFirst = true;
      for (const { sizeBytes, writes, zero, interruptions, drop } of steps) {
        const before = content;
        const next = new Changing(sizeBytes);
        next.content.set(content.subarray(0, sizeBytes));
        for (const [offset, length] of writes) next.write(offset, length);
        if (zero !== undefined) next.zero(...zero);
        for (const { bytes, sizeBytes: other, rollBack: back } of interruptions) {
          const half = new Changing(other);
          half.content.set(next.content.subarray(0, other));
          try {
            await interrupt(half.write(0, 3 * block).content, bytes);
          } catch {
            // It went through before so many bytes: then it is a point.
            const { points } = await kit.pair.store.points("disk");
            kit.contents.set(points.at(-1)?.point ?? 0, Buffer.from(half.content));
            isFirst = false;
            await kit.pair.idle();
          }
          if (!isFirst) await kit.expectPoint("newest");
          if (back && !isFirst) {
            await rollBack();
            const newest = (await kit.pair.store.points("disk")).points.at(-1)?.point ?? 0;
            await expectReplica(kit.content(newest));
          }
        }
        expect(before).toBe(content);
        content = Buffer.from(next.content);
        await commit(Buffer.from(content));
        isFirst = false;
        if (drop) {
          const verdicts = await kit.pair.store.prune("disk", { keep: "last=2" });
          for (const { point, keep } of verdicts) if (!keep) kit.contents.delete(point);
          await kit.pair.store.compact("disk");
        }
        await kit.expectAll();
      }
      expect([kit.pair.sending, kit.pair.receiving].map(({ pool }) => pool.slotCount - pool.free)).toEqual([0, 0]);
    }),
    { numRuns: 15 },
  );
});
