/** Many points, thinned by a policy: those that stay read as they did, and thinning costs what the points are, not what they hold. */
import { expect, test } from "vitest";
import { diskPaths } from "../../src/replica/layout.ts";
import { type Point, writePoint } from "../../src/replica/points/point.ts";
import { defaultPolicyText } from "../../src/replica/retention/policy.ts";
import type { Store } from "../../src/replica/store.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createSimulatedDisk, type Operation, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { applyBytes, partBytes, readPoint, shaOf } from "./part-writes.ts";
import { methodsOf } from "./point-kit.ts";
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

/** Points an hour apart. Returns the sha256 of each. */
async function makePoints(
  process: SimulatedProcess,
  store: Store,
  count: number,
): Promise<ReadonlyMap<number, string>> {
  const content = Buffer.alloc(12 * blockBytes + 512);
  await store.create(diskName, { geometry: geometry(content.length), owner: "sender", sectorBytes: 512 });
  const hashes = new Map<number, string>();
  const writer = await openWriter(store);
  for (let made = 1; made <= count; made++) {
    change(content);
    await writer.begin();
    await applyBytes(writer, process.lanes, content);
    const { point } = await writer.commit({ ...commitFacts(`c${made}`), time: begin + made * hour });
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

async function startStore(keep: string): Promise<{ readonly process: SimulatedProcess; readonly store: Store }> {
  const process = createSimulatedDisk().start();
  await process.makeDirectory(storePath);
  return { process, store: await openTestStore(process, storePath, { keep }) };
}

/** 30 of 200 points an hour apart: the last 10, then one each 9 hours. */
const thirty = "grid=10x1h(keep=all)|20x9h";

test("200 points thinned to 30 at once: each of them is what was made", async () => {
  const { process, store } = await startStore("all");
  const hashes = await makePoints(process, store, 200);
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
  const { process, store } = await startStore(thirty);
  const hashes = await makePoints(process, store, 200);
  const left = await expectHashes(store, hashes);
  expect(left.length).toBeGreaterThan(20);
  expect(left.length).toBeLessThan(40);
});

// What it costs ------------------------------------------------------------------------------------------------------

/** Points a second apart, their logs stand-ins of one page: removing a point does not look into them. */
async function makeRecords(storage: Storage, count: number): Promise<void> {
  const store = await openTestStore(storage, storePath, { keep: "all" });
  await store.create(diskName, { geometry: geometry(blockBytes), owner: "sender", sectorBytes: 512 });
  const paths = diskPaths(storePath, diskName);
  for (let sequence = 1; sequence <= count; sequence++) {
    const point: Point = {
      ...{ point: sequence, ...commitFacts(`c${sequence}`), time: begin + sequence * 1000 },
      ...{ root: "ab".repeat(32), sizeBytes: blockBytes, generation: "g", term: 1 },
      closed: sequence === 1 ? undefined : { sizeBytes: 4096, footerOffset: 0, footerChecksum: sequence },
    };
    await writePoint(storage, paths, point);
    if (sequence === count) continue;
    const log = await storage.open(paths.undo(sequence), { write: true, create: true });
    await log.write(Buffer.alloc(4096, 1), 0);
    await log.close();
  }
}

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
  readonly calls: number;
  readonly syncs: number;
  /** Points before and after. */
  readonly count: number;
  readonly kept: number;
  /** Names of files that were created or written to. */
  readonly written: readonly string[];
  readonly grownBytes: number;
}

async function pruneCost(count: number): Promise<Cost> {
  const machine = createSimulatedDisk();
  const maker = machine.start();
  await maker.makeDirectory(storePath);
  await makeRecords(maker, count);
  let calls = 0;
  let syncs = 0;
  const written = new Set<string>();
  const fault = ({ kind, path }: Operation): undefined => {
    if (kind === "write" || kind === "create") written.add(path.slice(path.lastIndexOf("/") + 1));
    if (kind.startsWith("sync")) syncs++;
  };
  const sizeOf = (): number => machine.files().reduce((sum, path) => sum + (machine.peek(path)?.length ?? 0), 0);
  const before = sizeOf();
  const storage = counted(machine.start({ fault }), () => calls++);
  const store = await openTestStore(storage, storePath);
  const verdicts = await store.prune(diskName, { keep: defaultPolicyText });
  const kept = verdicts.filter(({ keep }) => keep).map(({ point }) => point);
  const cost = { calls, syncs, count, kept: kept.length, written: [...written], grownBytes: sizeOf() - before };
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  expect(points.map(({ point }) => point)).toEqual(kept);
  return cost;
}

test("points a second apart are pruned in a few calls each, and take no room but for their records", async () => {
  // Of the newest hour all stay, of the hour before the oldest.
  for (const [count, left] of [
    [900, 900],
    [3_600, 3_600],
    [7_200, 3_601],
  ] as const) {
    const cost = await pruneCost(count);
    expect(cost.kept).toBe(left);
    const gone = count - left;
    // Each record is opened; of a point that goes there is a lock, and two or three names.
    expect(cost.calls).toBeLessThan(3 * count + 3 * gone);
    // One record inherits all logs, a few hundred at a time; the others stay as they are.
    const rounds = Math.ceil(gone / 256);
    expect(cost.syncs).toBeLessThan(6 + 4 * rounds);
    const written = cost.written.filter((name) => !name.endsWith(".lock"));
    expect(written).toEqual(gone === 0 ? [] : ["0000000001.json.new"]);
    expect(cost.grownBytes).toBeLessThanOrEqual(0);
  }
});
