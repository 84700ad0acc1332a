/**
 * A replica that somebody else writes to, twice, with a crash at every operation of what is done about it: what was written is overwritten by nobody before a
 * person has decided, what is kept is a point, what was not written to stays what it was, and a disk in order is never refused.
 */
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { blockCount } from "../../src/base/units.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import { SessionDisk } from "../../src/replication/receiver-disk.ts";
import { repairDisk } from "../../src/replication/store-work.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import { powerLosses } from "./power-losses.ts";
import { readSuspicion } from "../../src/replica/suspicion.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  blockContent,
  commitFacts,
  diskName,
  expectTableTrue,
  geometry,
  lanesOver,
  openTestStore,
  openWriter,
  pool,
  storePath,
} from "./simulated-store.ts";

const shape = geometry(260 * blockBytes + 512);
const paths = diskPaths(storePath, diskName);

interface Made {
  readonly cycle: string;
  readonly blocks: Blocks;
  /** Overwritten by somebody else before any delta kept them. */
  readonly lost: Set<number>;
}

export interface History {
  /** By their numbers, from 1. */
  readonly points: Made[];
  asked: Made | undefined;
  /** On the replica, durably, and nobody has decided. */
  foreign: Blocks | undefined;
  /** A sender was told. */
  isTold: boolean;
  /** What a person has asked for and was told nothing about. */
  wish: "keep" | "give-up" | undefined;
}

type Fate = (operation: Operation) => Fault | undefined;

/** One store on one disk, with a process that comes and goes. */
class World {
  readonly history: History = { points: [], asked: undefined, foreign: undefined, isTold: false, wish: undefined };
  readonly disk = createSimulatedDisk();
  readonly #fate: Fate;
  readonly #change: Fate;
  #isOthers = false;
  /** Its life has ended, and is looked at. */
  isOver = false;
  process: SimulatedProcess;

  /** `change`: what is taken out of the program, also when the life is looked at. */
  constructor(fate: Fate, change: Fate = () => undefined) {
    this.#fate = fate;
    this.#change = change;
    this.process = this.start();
  }

  start(): SimulatedProcess {
    const fault = (operation: Operation): Fault | undefined => {
      if (this.#isOthers) return undefined;
      return (this.isOver ? undefined : this.#fate(operation)) ?? this.#change(operation);
    };
    this.process = this.disk.start({ fault });
    return this.process;
  }

  async store(): Promise<Store> {
    await this.process.makeDirectory(storePath);
    return openTestStore(this.process, storePath, { keep: "all" });
  }

  /** Somebody else writes, and syncs. */
  async writeAsOthers(foreign: Blocks): Promise<void> {
    this.#isOthers = true;
    try {
      const file = await this.process.open(paths.replica, { write: true });
      for (const [block, value] of foreign) await file.write(blockContent(value), block * blockBytes);
      await file.datasync();
      await file.close();
    } finally {
      this.#isOthers = false;
    }
    this.history.foreign = foreign;
  }

  async session(store: Store, use: (writer: DiskWriter) => Promise<void>): Promise<void> {
    const writer = await openWriter(store);
    try {
      const slot = await pool.acquire();
      try {
        const disk = new SessionDisk({
          ...{ name: diskName, writer, lanes: lanesOver(this.process.lanes), log: silentLogger, slots: [slot], pool },
          clock: { sleep: () => Promise.resolve() },
          signal: new AbortController().signal,
          onProgress: () => undefined,
        });
        await disk.rebuild();
      } finally {
        slot.release();
      }
      await use(writer);
    } finally {
      await writer.release();
    }
  }

  async commit(store: Store, cycle: string, blocks: Blocks): Promise<void> {
    const { history } = this;
    await this.session(store, async (writer) => {
      expectTableTrue(writer, this.process.lanes);
      await writer.begin();
      await apply(writer, this.process.lanes, blocks);
      history.asked = { cycle, blocks, lost: new Set() };
      await writer.commit(commitFacts(cycle));
      history.points.push(history.asked);
      history.asked = undefined;
    });
  }

  /** A person decides. */
  async repair(store: Store, wish: "keep" | "give-up"): Promise<void> {
    const { history } = this;
    history.wish = wish;
    const keep = wish === "keep" ? { label: "theirs", cycle: "theirs", time: 1, owner: "test" } : undefined;
    const { kept } = await repairDisk(store, diskName, {
      ...{ lanes: lanesOver(this.process.lanes), pool, log: silentLogger, identity: "test", keep },
      clock: { sleep: () => Promise.resolve() },
    });
    expect(kept !== undefined).toBe(wish === "keep");
    this.decided();
  }

  /** What was asked for is done. */
  decided(): void {
    const { history } = this;
    const newest = history.points.at(-1);
    if (newest === undefined || history.foreign === undefined) throw new Error("there is nothing to decide");
    for (const block of history.foreign.keys()) newest.lost.add(block);
    if (history.wish === "keep") {
      const blocks = new Map([...newest.blocks, ...history.foreign]);
      history.points.push({ cycle: "theirs", blocks, lost: new Set() });
    }
    history.foreign = undefined;
    history.isTold = false;
    history.wish = undefined;
  }
}

async function refused(session: Promise<void>): Promise<boolean> {
  try {
    await session;
    return false;
  } catch (error) {
    if (error instanceof ReplicationError && error.code === "replica-changed") return true;
    throw error;
  }
}

const nothing = (): Promise<void> => Promise.resolve();

async function expectRefused(world: World, store: Store): Promise<void> {
  expect(await refused(world.session(store, nothing))).toBe(true);
  world.history.isTold = true;
}

async function live(world: World): Promise<void> {
  const store = await world.store();
  await store.create(diskName, { geometry: shape, owner: "sender", sectorBytes: 512 });
  await world.commit(
    store,
    "c1",
    new Map([
      [0, 1],
      [1, 2],
      [257, 3],
      [260, 4],
    ]),
  );
  await world.writeAsOthers(
    new Map([
      [1, 91],
      [258, 92],
    ]),
  );
  await expectRefused(world, store);
  await expectRefused(world, store);
  await world.repair(store, "keep");
  await world.commit(
    store,
    "c3",
    new Map([
      [0, 5],
      [1, 6],
      [260, 4],
    ]),
  );
  await world.writeAsOthers(
    new Map([
      [0, 95],
      [3, 96],
    ]),
  );
  await expectRefused(world, store);
  await world.repair(store, "give-up");
  await world.commit(
    store,
    "c4",
    new Map([
      [0, 7],
      [1, 6],
      [260, 8],
    ]),
  );
  await store.close();
}

async function checkPoints(store: Store, { points, foreign }: History): Promise<void> {
  const found = await store.points(diskName);
  expect(found.unreadable).toEqual([]);
  for (const [index, { cycle, blocks, lost }] of points.entries()) {
    expect(found.points[index]).toMatchObject({ point: index + 1, cycle });
    // What was overwritten before anybody looked was that of the newest point.
    const isLost = (block: number): boolean =>
      lost.has(block) || (index === points.length - 1 && foreign?.has(block) === true);
    const reader = await store.openPoint(diskName, index + 1);
    try {
      for (const block of new Set([0, 1, 3, 257, 258, 260])) {
        const content = Buffer.alloc(Math.min(blockBytes, shape.sizeBytes - block * blockBytes));
        try {
          await reader.read(content, block * blockBytes);
        } catch (error) {
          if (!isLost(block)) throw error;
          expect(error).toMatchObject({ code: "store-damaged" });
          continue;
        }
        const wanted = blockContent(blocks.get(block) ?? 0).subarray(0, content.length);
        if (!wanted.equals(content)) throw new Error(`point ${index + 1} is wrong in block ${block}`);
      }
    } finally {
      await reader.close();
    }
  }
}

async function expectForeign(process: SimulatedProcess, foreign: Blocks): Promise<void> {
  const file = await process.open(paths.replica);
  const found = Buffer.alloc(blockBytes);
  for (const [block, value] of foreign) {
    await file.read(found, block * blockBytes);
    if (!found.equals(blockContent(value))) throw new Error(`what was written to block ${block} is gone`);
  }
  await file.close();
}

export async function checkAfterCrash(world: World): Promise<void> {
  const { history, process } = world;
  const store = await world.store();
  const summary = await store.summary(diskName);
  if (summary === undefined) {
    expect(history.points).toEqual([]);
    return;
  }
  expect(summary.trouble).toBeUndefined();
  expect(blockCount(shape)).toBe(261);
  const { newest } = summary;
  if (history.asked !== undefined && newest?.cycle === history.asked.cycle) history.points.push(history.asked);
  history.asked = undefined;
  if (history.wish === "keep" && newest?.cycle === "theirs") world.decided();
  await checkPoints(store, history);
  const suspicion = await readSuspicion(process, paths);
  // A reader finds it whole, or none; and of what a sender was told it is on record.
  expect(suspicion?.why ?? "").not.toMatch(/damaged/);
  if (history.isTold && history.wish !== "give-up") expect(suspicion?.found).toBe(true);
  if (history.foreign === undefined) {
    // Nobody wrote: nobody is asked.
    await world.session(store, nothing);
  } else {
    await expectForeign(process, history.foreign);
    const isRefused = await refused(world.session(store, nothing));
    if (!isRefused) {
      expect(history.wish, "somebody else's content is believed").toBe("give-up");
      world.decided();
    } else {
      await expectForeign(process, history.foreign);
      await world.repair(store, history.wish ?? "keep");
      await checkPoints(store, history);
    }
  }
  await world.commit(
    store,
    "c9",
    new Map([
      [1, 9],
      [258, 9],
      [260, 4],
    ]),
  );
  await world.commit(
    store,
    "c10",
    new Map([
      [0, 10],
      [258, 9],
      [260, 4],
    ]),
  );
  await checkPoints(store, history);
  await store.close();
}

async function tryLife(world: World): Promise<void> {
  try {
    await live(world);
  } catch (error) {
    if (!world.process.dead) throw error;
  }
}

export async function operationsOfLife(): Promise<readonly Operation[]> {
  const found: Operation[] = [];
  const world = new World((operation) => {
    found.push(operation);
    return undefined;
  });
  await tryLife(world);
  await checkAfterCrash(world);
  return found;
}

/** `survives` undefined: it is killed. `change`: see {@link World}. */
export async function crashAt(
  index: number,
  survives: Survives | undefined,
  change: Fate = () => undefined,
): Promise<void> {
  const world = new World((operation) => (operation.index === index ? { kind: "kill" } : undefined), change);
  await tryLife(world);
  world.process.kill();
  world.isOver = true;
  if (survives !== undefined) world.disk.losePower(survives);
  world.start();
  await checkAfterCrash(world);
}

/** Ways to crash: what survives, for a seed. */
export const ways: readonly (readonly [string, ((seed: number) => Survives) | undefined])[] = [
  ["killed", undefined],
  ...Object.entries(powerLosses),
];

export async function crashAtEach(
  operations: readonly Operation[],
  survives: ((seed: number) => Survives) | undefined,
): Promise<void> {
  expect(operations.length).toBeGreaterThan(30);
  for (const { index, kind, path } of operations) {
    try {
      await crashAt(index, survives?.(index));
    } catch (error) {
      throw new Error(`operation ${index} (${kind} ${path})`, { cause: error });
    }
  }
}
