/** What was promised of a disk, and whether a crash kept it: nothing durable is lost, the table is true or in doubt, the next delta goes through. */
import type { NewDisks } from "../../src/replica/store.ts";
import { expect } from "vitest";
import { toReplicationError } from "../../src/base/errors.ts";
import { blockCount, type Geometry } from "../../src/base/units.ts";
import { neededLogs } from "../../src/replica/chain.ts";
import { diskPaths, undoName } from "../../src/replica/layout.ts";
import { listPoints, loadPoints } from "../../src/replica/points/point.ts";
import { copyPoint, dataBytesOf } from "../../src/replica/restore-point.ts";
import { openRestoreTarget } from "../../src/replica/restore-target.ts";
import type { DiskWriter, PointReader, Store } from "../../src/replica/store.ts";
import type { SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { expectFiles, expectHoles, expectOpened } from "./crash-promises.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  blockContent,
  commitFacts,
  diskName,
  expectPoint,
  expectReader,
  expectTableTrue,
  geometry,
  nonZeroBlocks,
  openTestStore,
  openWriter,
  rebuild,
  rootOf,
  shrinkTo,
  storePath,
} from "./simulated-store.ts";

/** 2 pages of the table, the last block a short one; then 3 pages. */
export const sizeBytes = 260 * blockBytes + 512;
export const grownBytes = 520 * blockBytes + 4096;
export const restorePath = "/restored.img";

/** Content of a disk at one moment. */
export interface State {
  /** Its number, once it is a point. */
  readonly point?: number;
  readonly cycle: string;
  readonly disk: Geometry;
  readonly blocks: Blocks;
  readonly root: string;
}

export function stateOf(cycle: string, bytes: number, blocks: Blocks): State {
  const disk = geometry(bytes);
  return { cycle, disk, blocks, root: rootOf(disk, blocks) };
}

const last = stateOf(
  "c9",
  grownBytes,
  new Map([
    [1, 7],
    [256, 6],
    [260, 4],
    [520, 8],
  ]),
);

/** What the sender knows: the points it was told are durable, and the one it asked for and was told nothing about. */
export interface History {
  /** What is being done, for who looks at operations. */
  doing: string;
  /** What the disk's replica is to be. */
  readonly replica: NewDisks | undefined;
  /** Size of the disk when it is made, and what its last delta makes of it. */
  first: number;
  last: State;
  /** The disk was told to be there. */
  created: boolean;
  readonly durable: State[];
  asked: State | undefined;
  /** Points somebody asked to be removed. */
  readonly going: Set<number>;
  /** The table was taken away: until it is built anew no block can be checked, and none is served. */
  tableLost: boolean;
  /** True while nothing was begun since the last commit or clean stop: then the table needs no rebuild. */
  quiet: boolean;
  /** The replica's file is the newest point: nothing was begun since a commit or a rollback. */
  rolledBack: boolean;
  /** Points being read. */
  readonly readers: { readonly reader: PointReader; readonly of: State }[];
  /** The point that {@link restorePath} is to be, and whether it was told to be complete. */
  restored: { readonly of: State; told: boolean } | undefined;
}

export function createHistory(replica?: NewDisks): History {
  const quiet = { doing: "", tableLost: false, quiet: true, rolledBack: false };
  return {
    ...quiet,
    replica,
    first: sizeBytes,
    last,
    created: false,
    durable: [],
    asked: undefined,
    going: new Set(),
    readers: [],
    restored: undefined,
  };
}

/** Names what is being done, and does it. */
export async function during<T>(history: History, doing: string, work: () => Promise<T>): Promise<T> {
  history.doing = doing;
  return work();
}

export async function createDisk(store: Store, history: History): Promise<void> {
  const { replica } = history;
  await store.create(diskName, { geometry: geometry(history.first), owner: "sender", sectorBytes: 512, replica });
  history.created = true;
}

/** Opens the disk for writing, with its table made true. */
export async function withWriter(
  store: Store,
  process: SimulatedProcess,
  history: History,
  use: (writer: DiskWriter) => Promise<void>,
): Promise<void> {
  const { doing } = history;
  const writer = await during(history, "open", () => openWriter(store));
  try {
    if (writer.doubt !== undefined) {
      await during(history, "rebuild", () => rebuild(writer, process.lanes));
      history.quiet = true;
      history.tableLost = false;
    }
    history.doing = doing;
    await use(writer);
  } finally {
    await writer.release();
  }
}

/** Somebody takes a file of the table away. Where the disk does not let them, it counts as a failure like one of the store's own operations. */
export async function loseTable(process: SimulatedProcess, history: History, file: "digests" | "pages"): Promise<void> {
  history.doing = "lose";
  history.quiet = false;
  history.tableLost = true;
  try {
    await process.unlink(`${storePath}/disks/${diskName}/${file}`);
  } catch (error) {
    throw toReplicationError(error);
  }
}

/** A delta begins, and the disk gets the size of its source. */
export async function begin(
  writer: DiskWriter,
  { lanes }: SimulatedProcess,
  history: History,
  bytes: number,
): Promise<void> {
  history.quiet = false;
  history.rolledBack = false;
  await writer.begin();
  if (bytes >= writer.record.sizeBytes) return writer.grow(bytes);
  const { doing } = history;
  await during(history, "shrink", () => shrinkTo(writer, lanes, bytes));
  history.doing = doing;
}

export async function commit(store: Store, process: SimulatedProcess, history: History, state: State): Promise<void> {
  history.doing = "commit";
  await withWriter(store, process, history, async (writer) => {
    await begin(writer, process, history, state.disk.sizeBytes);
    await apply(writer, process.lanes, state.blocks);
    history.asked = state;
    const point = await writer.commit(commitFacts(state.cycle));
    expect(point.root).toBe(state.root);
    history.durable.push({ ...state, point: point.point });
    history.asked = undefined;
    history.quiet = true;
  });
}

/** A commit nobody heard of, and which is there to stay: the disk was opened for writing since. */
export function hearOf(history: History, newest: { readonly point: number; readonly cycle: string } | undefined): void {
  if (newest === undefined || newest.cycle !== history.asked?.cycle) return;
  history.durable.push({ ...history.asked, point: newest.point });
  history.asked = undefined;
}

/** A reader of the newest point that was told, open until {@link closeReaders}. */
export async function openReader(store: Store, history: History): Promise<void> {
  const of = history.durable.at(-1);
  if (of?.point === undefined) throw new Error("there is no point to read");
  history.readers.push({ of, reader: await store.openPoint(diskName, of.point) });
}

/** Everything readers opened reads as it did. */
export async function checkReaders(history: History): Promise<void> {
  for (const { reader, of } of history.readers) await expectReader(reader, of.disk, of.blocks);
}

export async function closeReaders(history: History, point?: number): Promise<void> {
  const closing = history.readers.filter(({ of }) => point === undefined || of.point === point);
  history.readers.splice(0, Infinity, ...history.readers.filter((each) => !closing.includes(each)));
  for (const { reader } of closing) await reader.close();
}

/** Restores the point to {@link restorePath}. */
export async function restore(store: Store, process: SimulatedProcess, history: History, of: State): Promise<void> {
  history.doing = "restore";
  const again = history.restored !== undefined;
  history.restored = { of, told: history.restored?.told ?? false };
  const reader = await store.openPoint(diskName, of.point ?? 0);
  try {
    const dataBytes = await dataBytesOf(reader);
    const { sizeBytes: bytes } = reader;
    const target = { storage: process, sizeBytes: bytes, dataBytes, overwrite: again };
    const { writer, clear, finish, close } = await openRestoreTarget(restorePath, target);
    try {
      await copyPoint(reader, writer, { clear, signal: undefined, onProgress: () => undefined });
      await finish();
      history.restored.told = true;
    } finally {
      await close();
    }
  } finally {
    await reader.close();
  }
}

/** What has the name of the restored file is all of the point. */
async function checkRestored(process: SimulatedProcess, history: History): Promise<void> {
  if (history.restored === undefined) return;
  const { of, told } = history.restored;
  const stat = await process.stat(restorePath);
  if (stat === undefined) {
    expect(told, "the restored file is gone").toBe(false);
    return;
  }
  expect(stat.sizeBytes).toBe(of.disk.sizeBytes);
  const file = await process.open(restorePath);
  try {
    const found = Buffer.alloc(blockBytes);
    for (let block = 0; block < blockCount(of.disk); block++) {
      const count = await file.read(found, block * blockBytes);
      const wanted = blockContent(of.blocks.get(block) ?? 0).subarray(0, count);
      if (!wanted.equals(found.subarray(0, count))) throw new Error(`the restored file is wrong in block ${block}`);
    }
  } finally {
    await file.close();
  }
}

/** Every point that was told durable holds what it held, or was to be removed. */
export async function checkPoints(store: Store, history: History): Promise<void> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  const there = new Map(points.map((point) => [point.point, point]));
  for (const state of history.durable) {
    const point = there.get(state.point ?? 0);
    if (point === undefined) {
      expect(history.going).toContain(state.point);
      continue;
    }
    expect(point).toMatchObject({ cycle: state.cycle, root: state.root });
    await expectPoint(store, point.point, state.disk, state.blocks);
  }
}

async function checkDisk(process: SimulatedProcess, store: Store, history: History): Promise<void> {
  let writer = await during(history, "open", () => openWriter(store));
  await expectOpened(process, writer);
  const { newest } = writer;
  const { asked } = history;
  const state = asked !== undefined && newest?.cycle === asked.cycle ? asked : history.durable.at(-1);
  expect(newest?.cycle).toBe(state?.cycle);
  if (newest !== undefined && state !== undefined) expect(newest.root).toBe(state.root);
  expect((await store.summary(diskName))?.state).toBe("receiving");
  if (history.quiet) expect(writer.doubt).toBeUndefined();
  // Until all is read anew no point can be read, and it may be cut short again.
  if (!history.tableLost) expect(writer.doubt?.blocks ?? "recent").toBe("recent");
  if (writer.doubt !== undefined) {
    const isEmptied = writer.doubt.blocks === "all";
    await during(history, "rebuild", () => rebuild(writer, process.lanes));
    expectTableTrue(writer, process.lanes);
    if (isEmptied) await expectHoles(process, writer);
    await writer.release();
    writer = await during(history, "open", () => openWriter(store));
    expect(writer.doubt).toBeUndefined();
  }
  expectTableTrue(writer, process.lanes);
  await writer.release();
  // Nothing was begun, or everything was taken back: the replica itself is the newest point.
  const interrupted = (await store.summary(diskName))?.state === "interrupted";
  if (interrupted && !history.rolledBack) return;
  expect(nonZeroBlocks(writer.table)).toBe(state?.blocks.size ?? 0);
  if (interrupted) return;
  expect(Buffer.from(writer.table.root()).toString("hex")).toBe(
    newest?.root ?? rootOf(geometry(writer.record.sizeBytes), new Map()),
  );
  expect(blockCount(writer.table.geometry)).toBe(blockCount(state?.disk ?? geometry(history.first)));
}

/** After the disk was opened for writing nothing lies about that nobody needs. */
async function checkNoRubbish(process: SimulatedProcess): Promise<void> {
  const paths = diskPaths(storePath, diskName);
  const files = await listPoints(process, paths);
  const { points } = await loadPoints(process, paths, files);
  const needed = new Set([...neededLogs(points), undoName(files.newest)]);
  const names = (await process.list(paths.points)) ?? [];
  expect(names.filter((name) => name.endsWith(".undo") && !needed.has(name))).toEqual([]);
  expect(files.locks.filter((sequence) => !files.records.includes(sequence))).toEqual([]);
  const all = [...names, ...((await process.list(paths.directory)) ?? [])];
  expect(all.filter((name) => name.endsWith(".new"))).toEqual([]);
}

/** After a crash, or a failure in a process that lives on: everything that was promised, and then one more delta. */
export async function checkAfterCrash(process: SimulatedProcess, history: History): Promise<void> {
  history.doing = "check";
  await process.makeDirectory(storePath);
  await expectFiles(process);
  const store = await openTestStore(process);
  const summary = await store.summary(diskName);
  if (summary === undefined) {
    // A point that was told durable on a disk that is gone is the worst of losses.
    expect(history.durable).toEqual([]);
    expect(history.created, "the disk is gone").toBe(false);
    await createDisk(store, history);
  } else {
    expect(summary.trouble).toBeUndefined();
    expect(["idle", "interrupted"]).toContain(summary.state);
  }
  await checkRestored(process, history);
  if (!history.tableLost) {
    await checkReaders(history);
    await checkPoints(store, history);
  }
  await checkDisk(process, store, history);
  await checkNoRubbish(process);
  await commit(store, process, history, history.last);
  await checkDisk(process, store, history);
  await checkPoints(store, history);
  await checkReaders(history);
  expect((await store.summary(diskName))?.state).toBe("idle");
  if (history.restored !== undefined) {
    const { of } = history.restored;
    await restore(store, process, history, of);
    await checkRestored(process, history);
  }
  await closeReaders(history);
}
