/** Points read again: what is damaged is named, and where it is still to be had. */
import { afterEach, expect, test } from "vitest";
import type { Clock } from "../../src/base/clock.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { verifyPoint } from "../../src/index.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { writePoint } from "../../src/replica/points/point.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { hastyClock, type SendOptions } from "../replication/pair-kit.ts";
import { Changing, flip, makePoints, PointKit, whileChanged } from "./point-kit.ts";

const storage = createNodeStorage();
const block = 16 * KIB;
let kit: PointKit;

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
});

async function start(options: SendOptions = {}): Promise<void> {
  kit = await PointKit.create({ blockBytes: block, ...options });
}

type VerifyOptions = Partial<Parameters<typeof verifyPoint>[1]>;

function verify(point: number | "newest", options: VerifyOptions = {}, clock: Clock = hastyClock) {
  return verifyPoint(kit.pair.store, { engine: { storage, clock }, disk: "disk", point, ...options });
}

/** Flips a bit in each of these blocks of the replica for the time of `work`. */
function withBadBlocks(blocks: readonly number[], work: () => Promise<void>): Promise<void> {
  const flip = (bytes: Buffer): Buffer => {
    for (const number of blocks) bytes.writeUInt8(bytes.readUInt8(number * block + 5) ^ 0x10, number * block + 5);
    return bytes;
  };
  return whileChanged(kit.path("replica.raw"), flip, work);
}

test.each([
  [block, "xxh64", 700],
  [64 * KIB, "sha256", 0],
] as const)("good points: blocks of %i, %s", async (blockBytes, digestKind, odd) => {
  await start({ blockBytes, digestKind });
  await makePoints(kit, blockBytes * 18 + odd, blockBytes);
  for (const [number, content] of kit.contents) {
    let last: readonly number[] = [];
    const report = await verify(number, { onProgress: (...counts) => (last = counts) });
    expect(report).toMatchObject({
      disk: "disk",
      point: number,
      good: true,
      rootMatches: true,
      sizeBytes: content.length,
    });
    expect(report).toMatchObject({ damaged: [], damagedRanges: 0, damagedBytes: 0 });
    expect(last).toEqual([content.length, content.length]);
  }
  expect((await verify("newest")).point).toBe(6);
});

test("damage of the replica: ranges joined, and the newest point whose undo log has other content of them", async () => {
  await start();
  const disk = new Changing(100 * block);
  await kit.commit(disk.write(0, 100 * block).content);
  await kit.commit(disk.write(10 * block, 2 * block).content);
  await kit.commit(disk.write(10 * block, 2 * block).content);
  await kit.commit(disk.write(0, block).content);
  await withBadBlocks([10, 11, 50], async () => {
    const newest = await verify("newest");
    expect(newest).toMatchObject({ point: 4, good: false, damagedRanges: 2, damagedBytes: 3 * block });
    // The table is right: only content is damaged.
    expect(newest.rootMatches).toBe(true);
    expect(newest.damaged).toMatchObject([
      { offset: 10 * block, length: 2 * block, goodPoint: 2, sameContent: false },
      { offset: 50 * block, length: block, goodPoint: undefined, sameContent: false },
    ]);
    expect(newest.damaged[0]?.reason).toBe("its content does not match its digest");
    // Of point 2 those blocks are in the undo log.
    expect(await verify(2)).toMatchObject({ good: false, damaged: [{ offset: 50 * block, length: block }] });
  });
  expect((await verify("newest")).good).toBe(true);
});

test("damage of an undo log: a newer point that has the same content again is found (C-67)", async () => {
  await start();
  const disk = new Changing(40 * block);
  await kit.commit(disk.write(0, 40 * block).content);
  const before = Buffer.from(disk.content);
  await kit.commit(disk.write(20 * block, block).content);
  await kit.commit(before);
  await kit.commit(disk.write(20 * block, block).content);
  // The content lies behind the heads, and takes nearly all of the log.
  const rot = (bytes: Buffer): Buffer => {
    const at = bytes.indexOf(before.subarray(20 * block, 20 * block + 64));
    expect(at).toBeGreaterThan(0);
    return bytes.fill(0x55, at, at + 64);
  };
  await whileChanged(kit.logPath(1), rot, async () => {
    const report = await verify(1);
    expect(report).toMatchObject({ good: false, damagedRanges: 1 });
    expect(report.damaged).toMatchObject([{ offset: 20 * block, length: block, goodPoint: 3, sameContent: true }]);
    expect((await verify(2)).good).toBe(true);
  });
});

test.each([
  ["that no older log has: all points up to its own", 20, [1, 2, 3]],
  ["that the first log has too: not the first point", 10, [2, 3]],
  ["that the log before has too: its own point only", 30, [3]],
])("a byte of the third of five points' logs, in a block %s (C-67)", async (_name, rotten, damaged) => {
  await start();
  const disk = new Changing(40 * block).write(0, 40 * block);
  // Each log has the old content of what the next delta changes; the third one has all three blocks.
  const deltas = [[10], [30], [10, 20, 30], [30, 35]];
  await kit.commit(disk.content);
  for (const delta of deltas) {
    for (const changed of delta) disk.write(changed * block, block);
    await kit.commit(disk.content);
  }
  const old = kit.content(3).subarray(rotten * block, (rotten + 1) * block);
  const rot = (bytes: Buffer): Buffer => {
    const at = bytes.indexOf(old.subarray(0, 64));
    expect(at).toBeGreaterThan(0);
    return flip(at + 5_000)(bytes);
  };
  await whileChanged(kit.logPath(3), rot, async () => {
    for (const point of [1, 2, 3, 4, 5]) {
      const report = await verify(point);
      if (damaged.includes(point)) {
        expect(report, `point ${point}`).toMatchObject({ point, good: false, damagedRanges: 1, damagedBytes: block });
        const where = { offset: rotten * block, length: block };
        expect(report.damaged).toMatchObject([{ ...where, goodPoint: 5, sameContent: false }]);
        // Which content it was is known all the same.
        expect(report.rootMatches).toBe(true);
      } else expect(report, `point ${point}`).toMatchObject({ point, good: true, damaged: [], damagedRanges: 0 });
    }
  });
  // Reading has changed nothing.
  for (const point of [1, 2, 3, 4, 5]) expect((await verify(point)).good).toBe(true);
});

test("of many ranges twenty are named, all are counted", async () => {
  await start();
  await kit.commit(new Changing(80 * block + 9).write(0, 80 * block + 9).content);
  const bad = Array.from({ length: 33 }, (_unused, index) => 2 * index);
  await withBadBlocks([...bad, 79], async () => {
    const report = await verify("newest");
    expect(report).toMatchObject({ good: false, damagedRanges: 34, damagedBytes: 34 * block });
    expect(report.damaged.map(({ offset }) => offset / block)).toEqual(bad.slice(0, 20));
  });
});

test("a record with another root: the blocks are good, the point is not", async () => {
  await start();
  await kit.commit(new Changing(5 * block).write(0, 3 * block).content);
  const { points } = await kit.pair.store.points("disk");
  const [point] = points;
  if (point === undefined) throw new Error("there is a point");
  const paths = diskPaths(kit.pair.store.path, "disk");
  await writePoint(storage, paths, { ...point, root: "ab".repeat(32) });
  expect(await verify(1)).toMatchObject({ good: false, rootMatches: false, damaged: [], damagedRanges: 0 });
});

test("a rate is kept, and a stop is heeded", async () => {
  await start();
  await kit.commit(new Changing(8 * MIB).write(0, 8 * MIB).content);
  let now = 0;
  let slept = 0;
  const clock: Clock = {
    ...hastyClock,
    monotonic: () => now,
    sleep(millis) {
      now += millis;
      slept += millis;
      return Promise.resolve();
    },
  };
  const report = await verify(1, { rate: MIB }, clock);
  expect(report).toMatchObject({ good: true, readBytes: 8 * MIB });
  // Eight seconds' worth, less the burst that is let pass.
  expect(slept).toBeGreaterThan(7_000);
  expect(slept).toBeLessThanOrEqual(8_000);
  const stop = new AbortController();
  const stopped = verify(1, { signal: stop.signal, onProgress: () => stop.abort() });
  await expect(stopped).rejects.toMatchObject({ code: "aborted" });
});

test("a stop says how far it came and what it found, and the rest is read from there", async () => {
  await start();
  await kit.commit(new Changing(8 * MIB).write(0, 8 * MIB).content);
  await withBadBlocks([MIB / block, (6 * MIB) / block], async () => {
    const stop = new AbortController();
    const onProgress = (done: number): void => {
      if (done >= 3 * MIB) stop.abort();
    };
    await expect(verify(1, { signal: stop.signal, onProgress })).rejects.toMatchObject({
      code: "aborted",
      message: expect.stringContaining(`damaged in 1 range up to ${3 * MIB}: go on from ${3 * MIB}`),
      details: { offset: 3 * MIB, damagedRanges: 1, damagedBytes: block },
    });
    const rest = await verify(1, { from: 3 * MIB });
    expect(rest).toMatchObject({ good: false, rootMatches: true, fromBytes: 3 * MIB, readBytes: 5 * MIB });
    expect(rest.damaged.map(({ offset }) => offset)).toEqual([6 * MIB]);
    // In the middle of a block: the block is read.
    expect(await verify(1, { from: 6 * MIB + block + 1 })).toMatchObject({
      good: true,
      fromBytes: 6 * MIB + block,
      readBytes: 2 * MIB - block,
    });
    expect(await verify(1, { from: 8 * MIB })).toMatchObject({ good: true, readBytes: 0 });
    await expect(verify(1, { from: 8 * MIB + 1 })).rejects.toMatchObject({ code: "usage" });
  });
});

test("what is not there", async () => {
  await start();
  await kit.commit(new Changing(block).write(0, 10).content);
  await expect(verify(2)).rejects.toMatchObject({ code: "point-not-found" });
  await expect(verify(1, { disk: "other" })).rejects.toMatchObject({ code: "disk-not-found" });
});
