/** The oldest point is removed to make room: it needs none itself, gives its log back at once, and a crash in the middle costs nothing but that point. */
import { expect, test } from "vitest";
import type { Cut, Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import { powerLosses } from "./power-losses.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  commitFacts,
  diskName,
  expectPoint,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  storePath,
} from "./simulated-store.ts";

const shape = geometry(8 * blockBytes);

function blocksOf(point: number): Blocks {
  return new Map([
    [0, 1],
    [1, 10 + point],
    [2 + point, 20 + point],
  ]);
}

async function open(process: SimulatedProcess): Promise<Store> {
  await process.makeDirectory(storePath);
  return openTestStore(process, storePath, { keep: "all" });
}

async function makePoints(store: Store, process: SimulatedProcess, points: number): Promise<void> {
  await store.create(diskName, { geometry: shape, owner: "sender", sectorBytes: 512 });
  for (let point = 1; point <= points; point++) {
    const writer = await openWriter(store);
    await writer.begin();
    await apply(writer, process.lanes, blocksOf(point));
    await writer.commit(commitFacts(`c${point}`));
    await writer.release();
  }
}

async function setUp(points: number): Promise<SimulatedDisk> {
  const disk = createSimulatedDisk();
  const process = disk.start();
  await makePoints(await open(process), process, points);
  process.kill();
  return disk;
}

/** Points from `first` on read as they were made. */
async function expectPoints(store: Store, first: number, last: number): Promise<void> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  expect(points.map(({ point }) => point)).toEqual(
    Array.from({ length: last - first + 1 }, (_unused, at) => first + at),
  );
  for (let point = first; point <= last; point++) await expectPoint(store, point, shape, blocksOf(point));
}

function logs(disk: SimulatedDisk): readonly string[] {
  return disk.files().filter((path) => path.endsWith(".undo"));
}

test("needs no room, and gives the log back at once; down to the newest", async () => {
  const disk = await setUp(3);
  const takesRoom = ["create", "write", "sync", "rename", "link", "make-directory"];
  let full = false;
  // An empty file takes none.
  const fault = ({ kind, path }: Operation): Fault | undefined =>
    full && takesRoom.includes(kind) && !path.endsWith(".lock") ? { kind: "errno", errno: "ENOSPC" } : undefined;
  const process = disk.start({ fault });
  const store = await open(process);
  full = true;
  for (const point of [1, 2]) {
    const before = logs(disk).length;
    expect(await store.dropOldest(diskName)).toEqual({ dropped: true, point, bytes: expect.any(Number) });
    expect(logs(disk).length).toBe(before - 1);
    await expectPoints(store, point + 1, 3);
  }
  expect(await store.dropOldest(diskName)).toEqual({ dropped: false, why: "point 3, the oldest, stays: newest" });
  expect(logs(disk)).toEqual([]);
});

test("a crash at every operation leaves the point or removes it, and no other", async () => {
  for (const [name, survives] of [["killed", undefined] as const, ...Object.entries(powerLosses)]) {
    for (let at = 0, ended = false; !ended; at++) {
      const disk = await setUp(3);
      // A delta is open meanwhile.
      const process = disk.start();
      const writer = await openWriter(await open(process));
      await writer.begin();
      await writer.release();
      process.kill();
      const dropping = disk.start({ fault: ({ index }) => (index === at ? { kind: "kill" } : undefined) });
      const drop = async (): Promise<unknown> => (await open(dropping)).dropOldest(diskName);
      const result = await drop().catch((error: unknown) => {
        if (!dropping.dead) throw error;
        return undefined;
      });
      ended = result !== undefined;
      dropping.kill();
      if (survives !== undefined) disk.losePower(survives(at));
      const after = disk.start();
      const left = await open(after);
      const [oldest] = (await left.points(diskName)).points;
      expect([1, 2], name).toContain(oldest?.point);
      if (ended && survives === undefined) expect(oldest?.point).toBe(2);
      await expectPoints(left, oldest?.point ?? 0, 3);
      const next = await openWriter(left);
      if (next.doubt !== undefined) await rebuild(next, after.lanes);
      await next.begin();
      await putBlock(next, after.lanes, 7, 99);
      await next.release();
      await expectPoints(left, oldest?.point ?? 0, 3);
    }
  }
});

test("what stays: held, in use, of a record that cannot be read, the newest that all disks of a cut have", async () => {
  const disk = createSimulatedDisk();
  const process = disk.start();
  const store = await open(process);
  await makePoints(store, process, 2);
  await store.hold(diskName, 1, { owner: "audit", until: undefined });
  expect(await store.dropOldest(diskName)).toMatchObject({ why: "point 1, the oldest, stays: held by audit" });
  await store.release(diskName, 1, "audit");
  const reader = await store.openPoint(diskName, 1);
  expect(await store.dropOldest(diskName)).toMatchObject({ why: "point 1, the oldest, stays: in use" });
  await reader.close();
  await expectPoints(store, 1, 2);

  const cut = (id: string): Cut => ({ id, members: ["vm.a", "vm.b"] });
  for (const name of ["vm.a", "vm.b"]) {
    await store.create(name, { geometry: shape, owner: "sender", sectorBytes: 512 });
    // The last cut lacks one disk: what all disks have together is the second.
    for (const [index, id] of ["cut-1", "cut-2", ...(name === "vm.a" ? ["cut-3"] : [])].entries()) {
      const writer = await openWriter(store, name);
      await writer.begin();
      await writer.commit({ ...commitFacts(`${name} ${index}`), cut: cut(id) });
      await writer.release();
    }
  }
  expect(await store.dropOldest("vm.a")).toMatchObject({ dropped: true, point: 1 });
  expect(await store.dropOldest("vm.a")).toMatchObject({
    why: expect.stringContaining("newest of all disks that are cut together"),
  });

  disk.poke(`${storePath}/disks/${diskName}/points/0000000002.json`, Buffer.from("broken"), 0);
  expect(await store.dropOldest(diskName)).toMatchObject({ why: expect.stringContaining("record of point 2") });
  await expect(store.dropOldest("none")).rejects.toMatchObject({ code: "disk-not-found" });
});
