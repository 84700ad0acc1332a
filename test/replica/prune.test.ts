/** Points are removed by names alone, and every point that stays reads as it did. */
import { beforeEach, describe, expect, test } from "vitest";
import { diskPaths, undoName } from "../../src/replica/layout.ts";
import { writePoint } from "../../src/replica/points/point.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import { createSimulatedDisk, type SimulatedDisk, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { powerLosses } from "./power-losses.ts";
import {
  apply,
  blockBytes,
  blockContent,
  type Blocks,
  commitFacts,
  createChance,
  diskName,
  expectPoint,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  storePath,
} from "./simulated-store.ts";

const disk = geometry(40 * blockBytes + 512);
const points = `${storePath}/disks/${diskName}/points`;

let machine: SimulatedDisk;
let process: SimulatedProcess;
let store: Store;
let kept: Map<number, Blocks>;

beforeEach(async () => {
  machine = createSimulatedDisk();
  process = machine.start();
  await process.makeDirectory(storePath);
  store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
  kept = new Map();
});

async function commitRandom(writer: DiskWriter, chance: () => number): Promise<void> {
  const before = kept.get(writer.newest?.point ?? 0) ?? new Map<number, number>();
  const blocks = new Map(before);
  for (let change = 0; change < 6; change++) {
    const block = Math.floor(chance() * 41);
    const value = Math.floor(chance() * 200);
    if (value < 40) blocks.delete(block);
    else blocks.set(block, value);
  }
  await writer.begin();
  await apply(writer, process.lanes, blocks);
  const point = await writer.commit(commitFacts(`c${(writer.newest?.point ?? 0) + 1}`));
  kept.set(point.point, blocks);
}

async function makePoints(count: number, seed: number): Promise<void> {
  const chance = createChance(seed);
  const writer = await openWriter(store);
  for (let made = 0; made < count; made++) await commitRandom(writer, chance);
  await writer.release();
}

async function listed(): Promise<readonly number[]> {
  return (await store.points(diskName)).points.map(({ point }) => point);
}

async function logBytes(): Promise<number> {
  let bytes = 0;
  for (const name of (await process.list(points)) ?? []) {
    if (name.endsWith(".undo")) bytes += (await process.stat(`${points}/${name}`))?.sizeBytes ?? 0;
  }
  return bytes;
}

async function expectAll(): Promise<void> {
  for (const point of await listed()) await expectPoint(store, point, disk, kept.get(point) ?? new Map());
}

/** Removes every point but these: the others are held, for a policy that keeps the newest only. */
async function keepOnly(wanted: readonly number[]): Promise<void> {
  for (const point of wanted) await store.hold(diskName, point, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  for (const point of wanted) await store.release(diskName, point, "test");
}

test("whatever is removed in whatever order, the rest reads as it did, and nothing else is left", async () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const chance = createChance(seed);
    await makePoints(12, seed);
    for (;;) {
      const now = await listed();
      // A newest point that is held would not count as the one to be kept.
      const staying = now.slice(0, -1).filter(() => chance() < 0.7);
      await keepOnly(staying);
      await expectAll();
      expect(await listed()).toEqual(now.filter((point) => staying.includes(point) || point === now.at(-1)));
      // The next delta is kept as any other.
      const writer = await openWriter(store);
      await commitRandom(writer, chance);
      await writer.release();
      await expectAll();
      if ((await listed()).length < 5) break;
    }
    await store.prune(diskName, { keep: "last=1" });
    const newest = (await listed()).at(-1) ?? 0;
    const left = ((await process.list(points)) ?? []).filter((name) => !name.endsWith(".lock"));
    expect(left).toEqual([`${newest.toString().padStart(10, "0")}.json`]);
  }
});

test("a delta under way stays readable over the removal of everything else", async () => {
  await makePoints(5, 9);
  const writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, process.lanes, 3, 222);
  await store.prune(diskName, { keep: "last=1" });
  expect(await listed()).toEqual([5]);
  await expectAll();
  await writer.release();
});

test("logs that are joined hold what their list held, in less room", async () => {
  for (const seed of [11, 12, 13]) {
    await makePoints(20, seed);
    const now = await listed();
    await keepOnly([now[0] ?? 0, now[12] ?? 0]);
    const before = await logBytes();
    const joined = await store.compact(diskName);
    expect(joined.length).toBeGreaterThan(0);
    await expectAll();
    expect(await logBytes()).toBe(
      before - joined.reduce((sum, { bytesBefore, bytesAfter }) => sum + bytesBefore - bytesAfter, 0),
    );
    expect(await logBytes()).toBeLessThan(before);
    // There is nothing left to join.
    expect(await store.compact(diskName)).toEqual([]);
    // Joined ones are joined again, and removed as others.
    await makePoints(10, seed + 100);
    await keepOnly([now[0] ?? 0]);
    await store.compact(diskName);
    await expectAll();
    await store.prune(diskName, { keep: "last=1" });
    expect(await logBytes()).toBe(0);
  }
});

test("two stores of one disk: a removal that is killed at any operation and done again leaves what the other's did (C-101)", async () => {
  /** Five points of the same changes in a store of their own, three of them to be removed. */
  const fill = async (): Promise<void> => {
    machine = createSimulatedDisk();
    process = machine.start();
    await process.makeDirectory(storePath);
    store = await openTestStore(process, storePath, { keep: "all" });
    await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
    await makePoints(5, 21);
  };
  const thin = async (): Promise<void> => {
    await keepOnly([1]);
    await store.compact(diskName);
  };
  /** Content of each point, whole. */
  const contents = async (): Promise<ReadonlyMap<number, Buffer>> => {
    const all = new Map<number, Buffer>();
    for (const point of await listed()) {
      const reader = await store.openPoint(diskName, point);
      const content = Buffer.alloc(reader.sizeBytes);
      await reader.read(content, 0);
      await reader.close();
      all.set(point, content);
    }
    return all;
  };
  await fill();
  const five = await contents();
  await thin();
  const two = await contents();
  expect([...two.keys()]).toEqual([1, 5]);
  const expectSame = (found: typeof five, other: typeof five, at: number): void => {
    for (const [point, content] of found) {
      expect(content.equals(other.get(point) ?? Buffer.alloc(0)), `killed at ${at}, point ${point}`).toBe(true);
    }
  };
  expectSame(two, five, -1);
  for (let at = 0, over = false; !over; at++) {
    await fill();
    let seen = 0;
    process = machine.start({ fault: () => (seen++ === at ? { kind: "kill" } : undefined) });
    over = await openTestStore(process, storePath)
      .then((opened) => {
        store = opened;
        return thin();
      })
      .then(
        () => true,
        () => false,
      );
    expect(process.dead).toBe(!over);
    process = machine.start();
    store = await openTestStore(process, storePath);
    expectSame(await contents(), five, at);
    await thin();
    const found = await contents();
    expect([...found.keys()]).toEqual([1, 5]);
    expectSame(found, two, at);
  }
});

test("a reader goes on over the joining of its logs", async () => {
  await makePoints(12, 21);
  const reader = await store.openPoint(diskName, 1);
  await keepOnly([1]);
  expect((await store.compact(diskName)).length).toBe(1);
  const found = Buffer.alloc(blockBytes);
  for (const [block, value] of kept.get(1) ?? []) {
    const size = Math.min(blockBytes, disk.sizeBytes - block * blockBytes);
    await reader.read(found.subarray(0, size), block * blockBytes);
    expect(found.subarray(0, size).equals(blockContent(value).subarray(0, size))).toBe(true);
  }
  await reader.close();
  await expectAll();
});

test("a list never grows beyond what a record holds: the point stays until logs are joined", async () => {
  await makePoints(2, 31);
  const paths = diskPaths(storePath, diskName);
  const [first, second] = (await store.points(diskName)).points;
  const closed = second?.closed;
  if (first === undefined || second === undefined || closed === undefined) throw new Error("two points were made");
  // A list as months of removed points leave it, of names that are short of nothing but their files.
  const logs = Array.from({ length: 3_999 }, (_unused, index) => ({ name: undoName(1, index + 1), closed }));
  await writePoint(process, paths, { ...first, logs: [{ name: undoName(1), closed }, ...logs] });
  await makePoints(2, 32);
  await store.hold(diskName, 1, { owner: "test", until: undefined });
  const verdicts = await store.prune(diskName, { keep: "last=1" });
  expect(verdicts.map(({ keep }) => keep)).toEqual([true, true, false, true]);
  expect(verdicts[1]?.rule).toContain("joined");
  expect((await store.points(diskName)).unreadable).toEqual([]);
  // And a record that would be too long replaces nothing.
  const many = Array.from({ length: 12_000 }, (_unused, index) => ({ name: undoName(1, index + 1), closed }));
  await expect(writePoint(process, paths, { ...first, logs: many })).rejects.toMatchObject({ code: "limit-exceeded" });
  expect((await store.points(diskName)).unreadable).toEqual([]);
});

test("many points go in one call, a few hundred at a time", async () => {
  await makePoints(2, 41);
  const [first] = (await store.points(diskName)).points;
  if (first === undefined) throw new Error("a point was made");
  const paths = diskPaths(storePath, diskName);
  const closed = { sizeBytes: 8_192, footerOffset: 4_096, footerChecksum: 1 };
  for (let point = 3; point <= 700; point++) await writePoint(process, paths, { ...first, point, closed });
  await store.hold(diskName, 1, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  expect(await listed()).toEqual([1, 700]);
  const [kept1] = (await store.points(diskName)).points;
  expect(kept1?.logs?.length).toBe(699);
});

describe("what is never removed", () => {
  test("a point that is being read, until it is closed", async () => {
    await makePoints(4, 1);
    const reader = await store.openPoint(diskName, 2);
    const verdicts = await store.prune(diskName, { keep: "last=1" });
    expect(verdicts.map(({ point, keep, rule }) => [point, keep, rule])).toMatchObject([
      [1, false, expect.any(String)],
      [2, true, "in use"],
      [3, false, expect.any(String)],
      [4, true, "newest"],
    ]);
    expect(await listed()).toEqual([2, 4]);
    await expectAll();
    await reader.close();
    await store.prune(diskName, { keep: "last=1" });
    expect(await listed()).toEqual([4]);
  });

  test("a held point, until it is released by its owner", async () => {
    await makePoints(3, 2);
    await store.hold(diskName, 1, { owner: "audit", until: undefined });
    await store.prune(diskName, { keep: "last=1" });
    expect(await listed()).toEqual([1, 3]);
    await expect(store.release(diskName, 1, "somebody")).rejects.toMatchObject({ code: "not-allowed" });
    await store.release(diskName, 1, "audit");
    await store.prune(diskName, { keep: "last=1" });
    expect(await listed()).toEqual([3]);
  });

  test("nothing at all by a dry run", async () => {
    await makePoints(3, 3);
    const verdicts = await store.prune(diskName, { keep: "last=1", dryRun: true });
    expect(verdicts.filter(({ keep }) => keep).map(({ point }) => point)).toEqual([3]);
    expect(await listed()).toEqual([1, 2, 3]);
  });

  // What the record of the third says of the second's log nobody else says: all of them are whole again with the record.
  test("points that cannot be reached, with their logs, nor the one behind them", async () => {
    await makePoints(6, 4);
    const path = `${points}/0000000002.json`;
    const record = await process.open(path, { write: true });
    const good = new Uint8Array((await record.stat()).sizeBytes);
    await record.read(good, 0);
    machine.poke(path, Uint8Array.of(0), 60);
    const verdicts = await store.prune(diskName, { keep: "last=1" });
    expect(verdicts[0]).toMatchObject({ point: 3, keep: true, rule: expect.stringContaining("record of point 2") });
    const { points: left, unreadable } = await store.points(diskName);
    expect(unreadable.map(({ point }) => point)).toEqual([2]);
    expect(left.map(({ point }) => point)).toEqual([1, 3, 6]);
    await record.write(good, 0);
    await record.close();
    // Whoever writes next removes what no point needs.
    await makePoints(0, 0);
    expect(await listed()).toEqual([1, 2, 3, 6]);
    await expectAll();
  });

  test("a log whose point's record was taken away: older points wait for it, and say so", async () => {
    await makePoints(5, 5);
    const path = `${points}/0000000003.json`;
    const aside = `${points}/aside`;
    await process.rename(path, aside);
    const { unreadable } = await store.points(diskName);
    expect(unreadable).toMatchObject([{ point: 3, message: expect.stringContaining("taken away") }]);
    await expect(store.openPoint(diskName, 2)).rejects.toMatchObject({ code: "store-damaged" });
    await expectPoint(store, 4, disk, kept.get(4) ?? new Map());
    await store.prune(diskName, { keep: "last=1" });
    await makePoints(0, 0);
    await process.rename(aside, path);
    expect(await listed()).toEqual([1, 2, 3, 4, 5]);
    await expectAll();
  });
});

describe("the policy of the store", () => {
  test("is followed by each commit, and may be changed at any time", async () => {
    const before = await openTestStore(process, storePath, { keep: "last=3" });
    expect(await before.policy()).toBe("last=3");
    await makePoints(5, 5);
    // Read from the store: the one that was opened before follows as well.
    expect(await listed()).toEqual([3, 4, 5]);
    await expectAll();
    await openTestStore(process, storePath, { keep: "last=1" });
    await makePoints(1, 6);
    expect(await listed()).toEqual([6]);
    await openTestStore(process, storePath, { keep: "last=24" });
    await makePoints(3, 7);
    expect(await listed()).toEqual([6, 7, 8, 9]);
    await expectAll();
  });

  test("C-68: deltas that were never committed count for nothing, and the next good one does", async () => {
    await openTestStore(process, storePath, { keep: "last=2" });
    await makePoints(2, 8);
    for (let run = 0; run < 5; run++) {
      const writer = await openWriter(store);
      if (writer.doubt !== undefined) await rebuild(writer, process.lanes);
      await writer.begin();
      // Half of what would be sent, and then a session that ends in order, or does not.
      await putBlock(writer, process.lanes, 7 + run, 200 + run);
      if (run % 2 === 0) await writer.suspend(0);
      await writer.release();
      expect(await listed()).toEqual([1, 2]);
      await expectAll();
    }
    await makePoints(1, 9);
    expect(await listed()).toEqual([2, 3]);
    await expectAll();
    // What the five left is gone with it: two records, and the log of the older point.
    const left = ((await process.list(points)) ?? []).filter((name) => !name.endsWith(".lock"));
    expect(left.sort()).toEqual(["0000000002.json", "0000000002.undo", "0000000003.json"]);
  });

  test("one that makes no sense is refused before anything is stored", async () => {
    await expect(openTestStore(process, storePath, { keep: "grid=0x1h" })).rejects.toMatchObject({ code: "usage" });
    expect(await store.policy()).toBe("all");
    await expect(store.prune(diskName, { keep: "sometimes" })).rejects.toMatchObject({ code: "usage" });
  });
});

describe("the policy of one disk", () => {
  test("counts in place of the store's, until it is taken back", async () => {
    await openTestStore(process, storePath, { keep: "last=3" });
    expect(await store.policyOf(diskName)).toEqual({ keep: "last=3", own: false });
    const writer = await openWriter(store);
    const chance = createChance(11);
    for (let made = 0; made < 3; made++) await commitRandom(writer, chance);
    // Beside the writer, by another process.
    const other = await openTestStore(process);
    await other.setPolicy(diskName, "last=1");
    expect(await other.policyOf(diskName)).toEqual({ keep: "last=1", own: true });
    await commitRandom(writer, chance);
    expect(await listed()).toEqual([4]);
    await other.setPolicy(diskName, "all");
    for (let made = 0; made < 4; made++) await commitRandom(writer, chance);
    expect(await listed()).toEqual([4, 5, 6, 7, 8]);
    await expectAll();
    await other.setPolicy(diskName, undefined);
    expect(await other.policyOf(diskName)).toEqual({ keep: "last=3", own: false });
    await writer.release();
    await store.prune(diskName);
    expect(await listed()).toEqual([6, 7, 8]);
  });

  test("is of that disk alone", async () => {
    await store.setPolicy(diskName, "last=1");
    await store.create("other", { geometry: disk, owner: "sender", sectorBytes: 512 });
    expect(await store.policyOf("other")).toEqual({ keep: "all", own: false });
    await expect(store.setPolicy("nobody", "last=1")).rejects.toMatchObject({ code: "disk-not-found" });
    await expect(store.policyOf("nobody")).rejects.toMatchObject({ code: "disk-not-found" });
  });

  test("is there after a loss of power, set or taken back", async () => {
    for (const survives of Object.values(powerLosses)) {
      for (const keep of ["last=2", undefined]) {
        await store.setPolicy(diskName, keep);
        machine.losePower(survives(1));
        process = machine.start();
        store = await openTestStore(process);
        expect(await store.policyOf(diskName)).toEqual({ keep: keep ?? "all", own: keep !== undefined });
      }
    }
  });

  test("that makes no sense is refused, and the one before stays", async () => {
    await store.setPolicy(diskName, "last=2");
    await expect(store.setPolicy(diskName, "last=often")).rejects.toMatchObject({ code: "usage" });
    expect((await store.policyOf(diskName)).keep).toBe("last=2");
  });

  test("that is damaged removes nothing, and stops no delta", async () => {
    await store.setPolicy(diskName, "last=1");
    machine.poke(`${storePath}/disks/${diskName}/keep.json`, Uint8Array.of(0), 100);
    await makePoints(3, 12);
    expect(await listed()).toEqual([1, 2, 3]);
    await expectAll();
    await expect(store.prune(diskName)).rejects.toMatchObject({ code: "store-damaged" });
    // The way out.
    await store.setPolicy(diskName, "last=1");
    await store.prune(diskName);
    expect(await listed()).toEqual([3]);
  });
});
