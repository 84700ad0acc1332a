/**
 * A disk that becomes smaller, laid aside, rolled back, larger again, smaller again, with a crash or a failure at every operation: no point is lost or
 * changed, the table is true or in doubt, and whatever size comes next goes through.
 */
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import type { Geometry } from "../../src/base/units.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import { powerLosses } from "./power-losses.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  commitFacts,
  diskName,
  expectPoint,
  expectTableTrue,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  rootOf,
  shrinkTo,
  storePath,
} from "./simulated-store.ts";

/** Of 3 table pages, 2 and one. Each end lies within a block that is used, and in a page with blocks behind it that are. */
const large = 515 * blockBytes + 512;
const middle = 260 * blockBytes + 5_000;
const small = 3 * blockBytes + 600;

interface State {
  readonly cycle: string;
  readonly sizeBytes: number;
  readonly blocks: Blocks;
}

const states: readonly State[] = [
  state("c1", large, [0, 1], [1, 2], [3, 3], [5, 4], [257, 3], [260, 4], [300, 5], [514, 5], [515, 6]),
  state("c2", middle, [0, 1], [2, 7], [3, 3], [5, 4], [260, 4]),
  state("c3", large, [2, 7], [3, 3], [5, 4], [260, 4], [515, 8]),
  state("c4", 0),
  state("c5", middle, [2, 9], [258, 3]),
];

/** How many points a whole life makes. */
export const pointsOfLife = states.length;

function state(cycle: string, sizeBytes: number, ...blocks: (readonly [number, number])[]): State {
  return { cycle, sizeBytes, blocks: new Map(blocks) };
}

function shape({ sizeBytes }: State): Geometry {
  return geometry(sizeBytes);
}

/** What the sender was told, and what it asked for and was told nothing about. */
export interface History {
  readonly durable: Map<number, State>;
  asked: State | undefined;
}

async function withWriter(
  store: Store,
  process: SimulatedProcess,
  use: (writer: DiskWriter) => Promise<void>,
): Promise<void> {
  const writer = await openWriter(store);
  try {
    // Until all is read anew no point can be read, and it may be cut short again.
    expect(writer.doubt?.blocks ?? "recent").toBe("recent");
    if (writer.doubt !== undefined) await rebuild(writer, process.lanes);
    expectTableTrue(writer, process.lanes);
    await use(writer);
  } finally {
    await writer.release();
  }
}

async function resize(writer: DiskWriter, process: SimulatedProcess, sizeBytes: number): Promise<void> {
  await writer.begin();
  if (sizeBytes > writer.record.sizeBytes) await writer.grow(sizeBytes);
  else if (sizeBytes < writer.record.sizeBytes) await shrinkTo(writer, process.lanes, sizeBytes);
}

async function commit(writer: DiskWriter, process: SimulatedProcess, history: History, wanted: State): Promise<void> {
  await resize(writer, process, wanted.sizeBytes);
  await apply(writer, process.lanes, wanted.blocks);
  history.asked = wanted;
  const { point, root, sizeBytes } = await writer.commit(commitFacts(wanted.cycle));
  expect({ root, sizeBytes }).toEqual({ root: rootOf(shape(wanted), wanted.blocks), sizeBytes: wanted.sizeBytes });
  history.durable.set(point, wanted);
  history.asked = undefined;
}

async function rollBack(store: Store, writer: DiskWriter): Promise<void> {
  const { newest } = writer;
  if (newest === undefined || writer.logged === undefined) return;
  const reader = await store.openPoint(diskName, newest.point);
  try {
    await writer.rollBack(reader);
  } finally {
    await reader.close();
  }
  expect(writer.record.sizeBytes).toBe(newest.sizeBytes);
  expect(Buffer.from(writer.table.root()).toString("hex")).toBe(newest.root);
}

/** A commit nobody heard of is found by its cycle. */
function settleAsked(history: History, newest: DiskWriter["newest"]): void {
  const { asked } = history;
  if (asked !== undefined && newest?.cycle === asked.cycle) history.durable.set(newest.point, asked);
  history.asked = undefined;
}

/**
 * Points of all sizes; before each one half of a delta to another size is laid aside, a smaller one or a larger one, and given up or gone on from. A size in
 * the middle of one block, between two blocks, and nothing.
 */
async function live(process: SimulatedProcess, history: History): Promise<void> {
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: geometry(large), owner: "sender", sectorBytes: 512 });
  for (const [index, wanted] of states.entries()) {
    await withWriter(store, process, async (writer) => {
      await resize(writer, process, index % 2 === 0 ? small : large + blockBytes);
      await putBlock(writer, process.lanes, 2, 50 + index);
      await writer.suspend(1);
      if (index === 2) await rollBack(store, writer);
    });
    await withWriter(store, process, (writer) => commit(writer, process, history, wanted));
  }
  await store.close();
}

async function checkPoints(store: Store, history: History): Promise<void> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  const there = new Map(points.map((point) => [point.point, point]));
  for (const [number, wanted] of history.durable) {
    const root = rootOf(shape(wanted), wanted.blocks);
    expect(there.get(number)).toMatchObject({ cycle: wanted.cycle, sizeBytes: wanted.sizeBytes, root });
    await expectPoint(store, number, shape(wanted), wanted.blocks);
  }
}

/** Before anything is mended: the points. Then: the table, and whatever comes next; `turn` says what. */
export async function checkAfterCrash(process: SimulatedProcess, history: History, turn: number): Promise<void> {
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  const summary = await store.summary(diskName);
  if (summary === undefined) {
    expect(history.durable.size).toBe(0);
    return;
  }
  expect(summary.trouble).toBeUndefined();
  await checkPoints(store, history);
  await withWriter(store, process, async (writer) => {
    settleAsked(history, writer.newest);
    expect(writer.newest?.point ?? 0).toBe(history.durable.size);
    if (turn % 3 === 0) await rollBack(store, writer);
    if (turn % 3 === 1) await resize(writer, process, [large, small, middle][turn % 7] ?? small + 1);
  });
  await checkPoints(store, history);
  for (const wanted of [state("c8", middle, [1, 9], [260, 4]), state("c9", large, [1, 9], [515, 8])]) {
    await withWriter(store, process, (writer) => commit(writer, process, history, wanted));
  }
  await checkPoints(store, history);
  await withWriter(store, process, async (writer) => {
    expect(writer.doubt).toBeUndefined();
  });
}

export type Fate = (operation: Operation) => Fault | undefined;

/** Returns the process, dead or not, and what its sender knows. */
export async function tryLife(
  disk: SimulatedDisk,
  fault: Fate,
): Promise<{ readonly process: SimulatedProcess; readonly history: History }> {
  const history: History = { durable: new Map(), asked: undefined };
  const process = disk.start({ fault });
  try {
    await live(process, history);
  } catch (error) {
    if (process.dead) return { process, history };
    if (!(error instanceof ReplicationError)) throw error;
    expect(["sync-failed", "write-failed", "no-space"]).toContain(error.code);
  }
  return { process, history };
}

/** All operations of a life without a fault. */
export async function operationsOfLife(): Promise<readonly Operation[]> {
  const found: Operation[] = [];
  await tryLife(createSimulatedDisk(), (operation) => {
    found.push(operation);
    return undefined;
  });
  return found;
}

/** Ways to crash: what survives, for a seed; undefined: the process is killed and everything survives. */
export const crashes: Readonly<Record<string, ((seed: number) => Survives) | undefined>> = {
  killed: undefined,
  ...powerLosses,
};

export async function crashAt(place: Operation, survives: Survives | undefined): Promise<void> {
  await about(place, async () => {
    const disk = createSimulatedDisk();
    const { process, history } = await tryLife(disk, ({ index }) =>
      index === place.index ? { kind: "kill" } : undefined,
    );
    expect(process.dead).toBe(true);
    if (survives !== undefined) disk.losePower(survives);
    await checkAfterCrash(disk.start(), history, place.index);
  });
}

/** The operation fails, everything goes on in the same process, and power is lost when all has been synced again. */
export async function failAt(place: Operation): Promise<void> {
  await about(place, async () => {
    const disk = createSimulatedDisk();
    const { process, history } = await tryLife(disk, ({ index }) =>
      index === place.index ? { kind: "errno", errno: "EIO" } : undefined,
    );
    expect(process.dead).toBe(false);
    await checkAfterCrash(process, history, place.index);
    // The disk was not made: there is nothing to lose.
    if (history.durable.size === 0) return;
    disk.losePower(() => false);
    const later = disk.start();
    const store = await openTestStore(later, storePath, { keep: "all" });
    await checkPoints(store, history);
    await withWriter(store, later, () => Promise.resolve());
  });
}

async function about({ index, kind, path }: Operation, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    throw new Error(`operation ${index} (${kind} ${path})`, { cause: error });
  }
}
