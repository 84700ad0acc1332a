/** Many points, thinned by a policy: those that stay read as they did, and thinning costs what the points are, not what they hold. */
import { basename } from "node:path/posix";
import { expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { defaultPolicyText } from "../../src/replica/retention/policy.ts";
import type { Store } from "../../src/replica/store.ts";
import type { Storage } from "../../src/storage/seam.ts";
import {
  createSimulatedDisk,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { applyBytes, partBytes, readPoint, shaOf } from "./part-writes.ts";
import { methodsOf } from "./point-kit.ts";
import { Room } from "./room.ts";
import {
  blockBytes,
  commitFacts,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";

const hour = 3_600_000;
const begin = 1_690_000_000_000;

/** Parts written over, compressible ones, zeros; now and then a whole block. */
function change(content: Buffer): void {
  const draw = randomBytes(64);
  const changes = 1 + ((draw[0] ?? 0) % 5);
  for (let index = 0; index < changes; index++) {
    const at = (draw.readUInt32LE(4 + index * 8) % Math.ceil(content.length / partBytes)) * partBytes;
    const kind = (draw[56 + index] ?? 0) % 8;
    const block = content.subarray(at - (at % blockBytes)).subarray(0, blockBytes);
    const rest = content.subarray(at);
    if (kind === 0) block.fill(0);
    else if (kind < 3) rest.subarray(0, partBytes).fill(`text ${draw[48 + index] ?? 0} `);
    else if (kind < 6) rest.subarray(0, 100).set(randomBytes(100));
    else rest.subarray(0, 2 * partBytes).set(randomBytes(Math.min(2 * partBytes, rest.length)));
  }
}

interface Series {
  readonly count: number;
  readonly content: Buffer;
  /** Changes `content` from each point to the next. */
  readonly step: (made: number) => void;
  readonly every: number;
  readonly from?: number;
}

/** Returns the sha256 of each. */
async function makePoints(process: SimulatedProcess, store: Store, series: Series): Promise<Map<number, string>> {
  const { count, content, step, every, from = begin } = series;
  const hashes = new Map<number, string>();
  const writer = await openWriter(store);
  for (let made = 1; made <= count; made++) {
    step(made);
    await writer.begin();
    await applyBytes(writer, process.lanes, content);
    const time = from + made * every;
    const { point } = await writer.commit({ ...commitFacts(`c${time}`), time });
    hashes.set(point, shaOf(content));
  }
  await writer.release();
  return hashes;
}

async function expectHashes(store: Store, hashes: ReadonlyMap<number, string>): Promise<readonly number[]> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  for (const { point } of points)
    expect(shaOf(await readPoint(store, point)), `point ${point}`).toBe(hashes.get(point));
  return points.map(({ point }) => point);
}

interface Started {
  readonly machine: SimulatedDisk;
  readonly process: SimulatedProcess;
  readonly store: Store;
}

async function startStore(keep: string, sizeBytes: number): Promise<Started> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep });
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512 });
  return { machine, process, store };
}

/** 200 points an hour apart, of any changes. */
function anyChanges(): Series {
  const content = Buffer.alloc(12 * blockBytes + 512);
  return { count: 200, content, step: () => change(content), every: hour };
}

/** 30 of 200 points an hour apart: the last 10, then one each 9 hours. */
const thirty = "grid=10x1h(keep=all)|20x9h";

test("200 points thinned to 30 at once: each of them is what was made", async () => {
  const series = anyChanges();
  const { process, store } = await startStore("all", series.content.length);
  const hashes = await makePoints(process, store, series);
  expect(new Set(hashes.values()).size).toBeGreaterThan(190);
  expect((await store.points(diskName)).points).toHaveLength(200);
  await store.prune(diskName, { keep: thirty });
  const left = await expectHashes(store, hashes);
  expect(left).toHaveLength(30);
  expect(left.slice(-10)).toEqual(Array.from({ length: 10 }, (_unused, index) => 191 + index));
  // Joining the logs each has inherited changes nothing but their size.
  const storedBytes = async (): Promise<number> =>
    [...(await store.points(diskName)).storedBytes.values()].reduce((sum, bytes) => sum + bytes, 0);
  const before = await storedBytes();
  expect((await store.compact(diskName)).length).toBeGreaterThan(5);
  expect(await storedBytes()).toBeLessThan(before * 0.9);
  expect(await expectHashes(store, hashes)).toEqual(left);
  // And once more, over lists that points have inherited.
  await store.prune(diskName, { keep: "last=3,daily=4" });
  expect((await expectHashes(store, hashes)).length).toBeLessThan(9);
});

test("200 points thinned after each commit: each of them is what was made", async () => {
  const series = anyChanges();
  const { process, store } = await startStore(thirty, series.content.length);
  const hashes = await makePoints(process, store, series);
  const left = await expectHashes(store, hashes);
  expect(left.length).toBeGreaterThan(20);
  expect(left.length).toBeLessThan(40);
});

// What it costs ------------------------------------------------------------------------------------------------------

const second = 1_000;

/** Every call counts, those that only look as well. */
function counted(storage: Storage, count: () => void): Storage {
  const counting = <Args extends readonly unknown[], T>(call: (...args: Args) => T): ((...args: Args) => T) => {
    return (...args) => {
      count();
      return call(...args);
    };
  };
  const all = methodsOf(storage);
  return {
    ...all,
    open: counting(all.open),
    rename: counting(all.rename),
    unlink: counting(all.unlink),
    list: counting(all.list),
    syncDirectory: counting(all.syncDirectory),
    stat: counting(all.stat),
    lock: counting(all.lock),
  };
}

interface Cost {
  /** Points before and after. */
  readonly count: number;
  readonly kept: readonly number[];
  readonly calls: number;
  readonly syncs: number;
  /** Names of files that were created or written to, but for locks. */
  readonly written: ReadonlySet<string>;
  /** More than before, at the worst moment and in the end. */
  readonly mostBytes: number;
  readonly grownBytes: number;
}

/** By the default policy, in a process of its own. */
async function pruneCost(machine: SimulatedDisk): Promise<Cost> {
  let calls = 0;
  let syncs = 0;
  const written = new Set<string>();
  const room = new Room(machine);
  const { bytes: before } = room;
  const fault = (operation: Operation): undefined => {
    const { kind, path } = operation;
    room.before(operation);
    if ((kind === "write" || kind === "create") && !path.endsWith(".lock")) written.add(basename(path));
    if (kind.startsWith("sync")) syncs++;
  };
  const store = await openTestStore(counted(machine.start({ fault }), () => calls++));
  const verdicts = await store.prune(diskName, { keep: defaultPolicyText });
  const cost = { calls, syncs, written };
  room.settle();
  const kept = verdicts.filter(({ keep }) => keep).map(({ point }) => point);
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  expect(points.map(({ point }) => point)).toEqual(kept);
  return { ...cost, count: verdicts.length, kept, mostBytes: room.most - before, grownBytes: room.bytes - before };
}

test("3,600 points a second apart, thinned by the default policy hours and days later: what stays is what was made, for a few calls a point", async () => {
  const content = Buffer.alloc(4 * blockBytes);
  const { machine, process, store } = await startStore("all", content.length);
  // A part each, so that what a point held is spread over many logs behind it.
  const step = (made: number): void => {
    content.set(randomBytes(100), (made % 16) * partBytes);
  };
  const hashes = await makePoints(process, store, { count: 3_600, content, step, every: second });
  const held = [900, 1_800, 2_700];
  for (const point of held) await store.hold(diskName, point, { owner: "test", until: undefined });
  const later = (millis: number) =>
    makePoints(process, store, { count: 1, content, step, every: second, from: begin + 3_600 * second + millis });

  // All of the last hour stays, and nothing is written to find that.
  const atOnce = await pruneCost(machine);
  expect(atOnce.kept).toHaveLength(3_600);
  expect(atOnce.calls).toBeLessThan(3 * 3_600);
  expect([...atOnce.written]).toEqual([]);

  let kept: readonly number[] = [];
  for (const [after, newest] of [
    [5 * hour, 3_601],
    [3 * 24 * hour, 3_602],
  ] as const) {
    for (const [point, hash] of await later(after)) hashes.set(point, hash);
    const cost = await pruneCost(machine);
    expect(cost.kept).toEqual(expect.arrayContaining([...held, newest]));
    expect(cost.kept.length).toBeLessThan(held.length + 6);
    const gone = cost.count - cost.kept.length;
    // Each record is opened; of a point that goes there is a lock, and two or three names. Points that stay get lists, a few hundred removals at a time.
    expect(cost.calls).toBeLessThan(3 * cost.count + 3 * gone + 100);
    expect(cost.syncs).toBeLessThan(6 + 4 * (cost.kept.length + Math.ceil(gone / 256)));
    // No log is touched, let alone made.
    for (const name of cost.written) expect(name).toMatch(/^\d{10}\.json\.new$/);
    // A record takes the place of another only when both are there.
    expect(cost.mostBytes).toBeLessThan(MIB);
    expect(cost.grownBytes).toBeLessThan(0);
    kept = await expectHashes(store, hashes);
    expect(kept).toEqual(cost.kept);
  }
  // Joined, the lists of up to 1,800 logs hold each part once.
  const [joined] = (await store.compact(diskName)).slice(-1);
  expect(joined?.bytesAfter).toBeLessThan(joined?.bytesBefore ?? 0);
  expect(await expectHashes(store, hashes)).toEqual(kept);
});
