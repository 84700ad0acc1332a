/** The life of one disk, step by step, with what must be true after a crash at any moment of it. */
import { blockCount, type Geometry } from "../../src/base/units.ts";
import { expect } from "vitest";
import { toReplicationError } from "../../src/base/errors.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  commitFacts,
  createChance,
  expectPoint,
  diskName,
  expectTableTrue,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  rootOf,
  storePath,
} from "./simulated-store.ts";

/** 2 pages of the table, the last block a short one; then 3 pages. */
const sizeBytes = 260 * blockBytes + 512;
const grownBytes = 520 * blockBytes + 4096;

const first: Blocks = new Map([
  [0, 1],
  [1, 2],
  [257, 3],
  [260, 4],
]);
const second: Blocks = new Map([
  [0, 1],
  [1, 5],
  [256, 6],
  [260, 4],
]);
const third: Blocks = new Map([
  [1, 7],
  [256, 6],
  [260, 4],
  [520, 8],
]);

interface State {
  /** Its number, once it is a point. */
  readonly point?: number;
  readonly cycle: string;
  readonly disk: Geometry;
  readonly blocks: Blocks;
}

/** What the sender knows: the points it was told are durable, and the one it asked for and was told nothing about. */
export interface History {
  readonly durable: State[];
  asked: State | undefined;
  /** Points somebody asked to be removed. */
  readonly going: Set<number>;
  /** The table was taken away: until it is built anew no block can be checked, and none is served. */
  tableLost: boolean;
  /** True while nothing was begun since the last commit or clean stop: then the table needs no rebuild. */
  quiet: boolean;
}

export function createHistory(): History {
  return { durable: [], asked: undefined, going: new Set(), tableLost: false, quiet: true };
}

async function withWriter(store: Store, use: (writer: DiskWriter) => Promise<void>): Promise<void> {
  const writer = await openWriter(store);
  try {
    await use(writer);
  } finally {
    await writer.release();
  }
}

async function commit(history: History, store: Store, process: SimulatedProcess, state: State): Promise<void> {
  await withWriter(store, async (writer) => {
    if (writer.doubt !== undefined) await rebuild(writer, process.lanes);
    history.quiet = false;
    await writer.begin();
    await writer.grow(state.disk.sizeBytes);
    await apply(writer, process.lanes, state.blocks);
    history.asked = state;
    const point = await writer.commit(commitFacts(state.cycle));
    expect(point.root).toBe(rootOf(state.disk, state.blocks));
    history.durable.push({ ...state, point: point.point });
    history.asked = undefined;
    history.quiet = true;
    history.tableLost = false;
  });
}

/** Create, first copy, a delta laid aside and taken up again, a delta with growth. */
export async function live(process: SimulatedProcess, history: History): Promise<void> {
  await process.makeDirectory(storePath);
  const store = await openTestStore(process);
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512 });
  await commit(history, store, process, { cycle: "c1", disk: geometry(sizeBytes), blocks: first });

  await withWriter(store, async (writer) => {
    history.quiet = false;
    await writer.begin();
    await putBlock(writer, process.lanes, 1, 5);
    await putBlock(writer, process.lanes, 257, 0);
    await writer.suspend(258);
    history.quiet = true;
  });
  await withWriter(store, async (writer) => {
    expect(writer.doubt).toBeUndefined();
    expect(writer.resumeBlock).toBe(258);
  });

  await commit(history, store, process, { cycle: "c2", disk: geometry(sizeBytes), blocks: second });
  // The table is lost while nothing is under way: it is built anew.
  history.quiet = false;
  history.tableLost = true;
  await process.unlink(`${storePath}/disks/${diskName}/pages`).catch((error: unknown) => {
    throw toReplicationError(error);
  });
  await commit(history, store, process, { cycle: "c3", disk: geometry(grownBytes), blocks: third });
  await commit(history, store, process, { cycle: "c4", disk: geometry(grownBytes), blocks: second });
  // One in the middle and the oldest.
  for (const point of [1, 3]) history.going.add(point);
  await store.hold(diskName, 2, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  await store.release(diskName, 2, "test");
  await commit(history, store, process, { cycle: "c5", disk: geometry(grownBytes), blocks: third });
  await store.close();
}

/** Every point that was told durable holds what it held, or was to be removed. */
async function checkPoints(store: Store, history: History): Promise<void> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  const there = new Map(points.map((point) => [point.point, point]));
  for (const state of history.durable) {
    const point = there.get(state.point ?? 0);
    if (point === undefined) {
      expect(history.going).toContain(state.point);
      continue;
    }
    expect(point).toMatchObject({ cycle: state.cycle, root: rootOf(state.disk, state.blocks) });
    await expectPoint(store, point.point, state.disk, state.blocks);
  }
}

/** After a crash: nothing durable is lost, the table is true or doubted, and the next delta goes through. */
export async function checkAfterCrash(process: SimulatedProcess, history: History): Promise<void> {
  await process.makeDirectory(storePath);
  const store = await openTestStore(process);
  const summary = await store.summary(diskName);
  if (summary === undefined) {
    // A point that was told durable on a disk that is gone is the worst of losses.
    expect(history.durable).toEqual([]);
    await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512 });
  } else {
    expect(summary.trouble).toBeUndefined();
    expect(["idle", "interrupted"]).toContain(summary.state);
  }
  if (!history.tableLost) await checkPoints(store, history);
  await checkDisk(process, store, history);
  await checkPoints(store, history);
  await commit(history, store, process, { cycle: "c9", disk: geometry(grownBytes), blocks: third });
  await checkDisk(process, store, history);
  await checkPoints(store, history);
  expect((await store.summary(diskName))?.state).toBe("idle");
}

async function checkDisk(process: SimulatedProcess, store: Store, history: History): Promise<void> {
  let writer = await openWriter(store);
  const { newest } = writer;
  const last = history.durable.at(-1);
  const { asked } = history;
  const state = asked !== undefined && newest?.cycle === asked.cycle ? asked : last;
  expect(newest?.cycle).toBe(state?.cycle);
  if (newest !== undefined && state !== undefined) expect(newest.root).toBe(rootOf(state.disk, state.blocks));
  const { state: found } = (await store.summary(diskName)) ?? {};
  expect(found).toBe("receiving");
  if (history.quiet) expect(writer.doubt).toBeUndefined();
  if (writer.doubt !== undefined) {
    await rebuild(writer, process.lanes);
    expectTableTrue(writer, process.lanes);
    await writer.release();
    writer = await openWriter(store);
    expect(writer.doubt).toBeUndefined();
  }
  expectTableTrue(writer, process.lanes);
  await writer.release();
  if ((await store.summary(diskName))?.state === "interrupted") return;
  // Nothing was begun: the replica itself is the newest point.
  expect(Buffer.from(writer.table.root()).toString("hex")).toBe(
    newest?.root ?? rootOf(geometry(writer.record.sizeBytes), new Map()),
  );
  expect(writer.table.countNonZero()).toBe(state?.blocks.size ?? 0);
  expect(blockCount(writer.table.geometry)).toBe(blockCount(state?.disk ?? geometry(sizeBytes)));
}

/** A session starts after a kill, tells its sender what is there, and does no more: it must be there to stay. */
async function lookThenLosePower(disk: SimulatedDisk, history: History): Promise<void> {
  const process = disk.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process);
  if ((await store.summary(diskName)) !== undefined) {
    await withWriter(store, async (writer) => {
      if (writer.newest !== undefined && writer.newest.cycle === history.asked?.cycle) {
        history.durable.push({ ...history.asked, point: writer.newest.point });
        history.asked = undefined;
      }
      if (writer.doubt === undefined) return;
      await rebuild(writer, process.lanes);
      history.quiet = true;
    });
  }
  disk.losePower(() => false);
}

type Fate = (operation: Operation) => Fault | undefined;

/**
 * Lives on `disk` with a kill before operation `at`; then power is lost unless `survives` is undefined, and the disk is looked at.
 * `also`: faults beside the kill.
 */
export async function crashAt(
  disk: SimulatedDisk,
  at: number,
  survives: Survives | undefined,
  also: Fate = () => undefined,
): Promise<"crashed" | "ended"> {
  const process = disk.start({ fault: (operation) => (operation.index === at ? { kind: "kill" } : also(operation)) });
  const history = createHistory();
  try {
    await live(process, history);
  } catch (error) {
    if (!process.dead) throw error;
  }
  const result = process.dead ? "crashed" : "ended";
  process.kill();
  if (survives === undefined) await lookThenLosePower(disk, history);
  else disk.losePower(survives);
  await checkAfterCrash(disk.start(), history);
  // What a session built on the remains of a killed one must be there to stay.
  if (survives === undefined) {
    disk.losePower(() => false);
    await checkAfterCrash(disk.start(), history);
  }
  return result;
}

/** All operations of a life without a crash. */
export async function operationsOfLife(): Promise<readonly Operation[]> {
  const operations: Operation[] = [];
  const fault: Fate = (operation) => {
    operations.push(operation);
    return undefined;
  };
  await live(createSimulatedDisk().start({ fault }), createHistory());
  return operations;
}

function half(seed: number): Survives {
  const chance = createChance(seed);
  return () => chance() < 0.5;
}

/** Ways to lose power: what survives, for a seed. */
export const powerLosses: Readonly<Record<string, (seed: number) => Survives>> = {
  "power lost, nothing un-synced survives": () => () => false,
  "power lost, content survives and names do not": () => (what) => what !== "entry" && what !== "time",
  "power lost, half survives": half,
  "power lost, another half survives": (seed) => half(seed + 7_777),
};
