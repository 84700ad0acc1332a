/** Lives that are killed, and lose power, in the middle of deltas: what each session builds on what it found must hold in the next. */
import type { Store } from "../../src/replica/store.ts";
import { settleAll } from "../../src/replica/table-files.ts";
import type { Operation, SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import {
  begin,
  commit,
  createDisk,
  during,
  grownBytes,
  hearOf,
  type History,
  loseTable,
  sizeBytes,
  type State,
  stateOf,
  withWriter,
} from "./crash-history.ts";
import type { Step } from "./crash-scenario.ts";
import { blockBytes, diskName, openTestStore, putBlock, storePath } from "./simulated-store.ts";

/** Where a life is lived. */
export interface World {
  /** The next process of this life; the one before it has ended. */
  start(): SimulatedProcess;
  /** Does `work` until just before an operation for which `before` is true: then the process is killed. */
  cutOff(before: (step: Step) => boolean, work: () => Promise<void>): Promise<void>;
  /** Ends the process without warning, and with `power` takes what was not synced, or some of it. */
  crash(how: "killed" | "power"): void;
}

export type Life = (world: World, history: History) => Promise<void>;

export const first = stateOf(
  "c1",
  sizeBytes,
  new Map([
    [0, 1],
    [1, 2],
    [257, 3],
    [260, 4],
  ]),
);
export const fourth = stateOf(
  "c4",
  grownBytes,
  new Map([
    [0, 1],
    [1, 5],
    [256, 6],
    [260, 4],
  ]),
);

export async function openStore(process: SimulatedProcess): Promise<Store> {
  await process.makeDirectory(storePath);
  return openTestStore(process);
}

export async function rollBack(store: Store, process: SimulatedProcess, history: History): Promise<void> {
  history.doing = "apply";
  await withWriter(store, process, history, (writer) =>
    during(history, "roll back", async () => {
      const reader = await store.openPoint(diskName, writer.newest?.point ?? 0);
      history.quiet = false;
      try {
        await writer.rollBack(reader);
      } finally {
        await reader.close();
      }
      history.quiet = true;
      history.rolledBack = true;
    }),
  );
}

type Blocks = readonly (readonly [block: number, value: number])[];

/** A disk with one point, and how its life goes on. */
class Session {
  readonly #world: World;
  readonly history: History;
  process: SimulatedProcess;
  store: Store;

  private constructor(world: World, history: History, process: SimulatedProcess, store: Store) {
    this.#world = world;
    this.history = history;
    this.process = process;
    this.store = store;
  }

  static async start(world: World, history: History, point = first): Promise<Session> {
    const process = world.start();
    history.doing = "create";
    const store = await openStore(process);
    await createDisk(store, history);
    const session = new Session(world, history, process, store);
    await session.commit(point);
    return session;
  }

  /** The process ends, another one starts. */
  async next(how: "killed" | "power"): Promise<void> {
    this.#world.crash(how);
    this.process = this.#world.start();
    this.history.doing = "open";
    this.store = await openStore(this.process);
  }

  commit(state: State): Promise<void> {
    return commit(this.store, this.process, this.history, state);
  }

  rollBack(): Promise<void> {
    return rollBack(this.store, this.process, this.history);
  }

  /** A part of a delta. `suspends`: laid aside then. */
  part(bytes: number, blocks: Blocks, suspends = false): Promise<void> {
    const { history, process } = this;
    history.doing = "apply";
    return withWriter(this.store, process, history, async (writer) => {
      hearOf(history, writer.newest);
      await begin(writer, process, history, bytes);
      // Side by side, as a receiver does it: their batches share a sync.
      await settleAll(blocks.map(([block, value]) => putBlock(writer, process.lanes, block, value)));
      if (!suspends) return;
      history.doing = "suspend";
      await writer.suspend(1);
      history.quiet = true;
    });
  }

  /** Opens the disk and closes it again. */
  open(): Promise<void> {
    return withWriter(this.store, this.process, this.history, (writer) => {
      hearOf(this.history, writer.newest);
      return Promise.resolve();
    });
  }

  /** Somebody takes a file of the table away. */
  lose(file: "digests" | "pages"): Promise<void> {
    return loseTable(this.process, this.history, file);
  }
}

export async function recoveries(world: World, history: History): Promise<void> {
  const session = await Session.start(world, history);
  await session.part(sizeBytes, [
    [0, 21],
    [1, 0],
    [3, 22],
  ]);
  await session.next("killed");
  await session.part(sizeBytes, [
    [0, 23],
    [257, 24],
    [4, 25],
  ]);
  await session.next("power");
  await session.part(grownBytes, [
    [257, 0],
    [5, 26],
    [300, 27],
  ]);
  await session.next("power");
  await session.part(grownBytes, [
    [1, 28],
    [301, 29],
  ]);
  await session.next("killed");
  await session.rollBack();
  await session.next("power");
  await session.part(grownBytes, [
    [1, 30],
    [2, 31],
  ]);
  await session.next("killed");
  await session.lose("pages");
  await session.part(grownBytes, [[0, 32]]);
  await session.next("power");
  await session.commit(fourth);
  await session.lose("digests");
  await session.open();
}

/** Of more pages than their digests have room for in one sector: those may be torn. */
const pageBlocks = 256;
const wideBytes = (16 * pageBlocks + 3) * blockBytes;

/** A delta empties a page; then all of the table is built anew beside the open log. */
export async function wide(world: World, history: History): Promise<void> {
  const kept: Blocks = [
    [1, 81],
    [3 * pageBlocks, 82],
    [16 * pageBlocks + 1, 83],
  ];
  history.first = wideBytes;
  history.last = stateOf("c9", wideBytes, new Map([...kept, [0, 86]]));
  const session = await Session.start(
    world,
    history,
    stateOf("c1", wideBytes, new Map([...kept, [0, 84], [5 * pageBlocks, 85]])),
  );
  await session.part(wideBytes, [
    [0, 87],
    [5 * pageBlocks, 0],
  ]);
  await session.next("killed");
  await session.lose("pages");
  await session.open();
  await session.next("power");
  // Now there is a clean-stop record.
  await session.lose("digests");
  await session.open();
  await session.next("power");
  await session.open();
}

const logSynced = ({ kind, path, past }: Step): boolean =>
  kind === "sync" && path.endsWith(".undo") && isEntries(past.findLast((each) => each.path === path));

function isEntries(operation: Operation | undefined): boolean {
  return operation?.kind === "write" && Buffer.from(operation.bytes ?? []).toString("latin1", 0, 8) === "rplubtch";
}

const renamed =
  (name: RegExp) =>
  ({ kind, path }: Step): boolean =>
    kind === "rename" && name.test(path);

/** Cut off just before something becomes durable, so that what is found next is there for now only. */
export async function cutOff(world: World, history: History): Promise<void> {
  const session = await Session.start(world, history);
  const blocks: Blocks = [
    [0, 41],
    [1, 42],
    [257, 43],
  ];
  await world.cutOff(logSynced, () => session.part(sizeBytes, blocks));
  await session.next("killed");
  await session.part(sizeBytes, blocks);
  await session.next("power");
  await world.cutOff(logSynced, () =>
    session.part(sizeBytes, [
      [260, 44],
      [2, 45],
      [258, 46],
    ]),
  );
  await session.next("power");
  await session.part(sizeBytes, [[2, 47]]);
  await session.next("power");
  await session.part(sizeBytes, [
    [260, 48],
    [258, 0],
  ]);
  await world.cutOff(renamed(/session\.json$/), () => session.part(sizeBytes, [[3, 49]], true));
  await session.next("killed");
  await session.part(
    sizeBytes,
    [
      [3, 50],
      [0, 51],
    ],
    true,
  );
  await session.next("power");
  await world.cutOff(renamed(/\d\.json$/), () => session.commit(fourth));
  await session.next("killed");
  await session.part(grownBytes, [
    [1, 52],
    [300, 53],
  ]);
  await session.next("power");
  await session.commit(fourth);
}

/** Two blocks, the second a short one; and a part of the first. */
// Whole sectors, which is what a VHDX can have.
const shortBytes = blockBytes + 1_536;
const shortestBytes = 512;

/** Cut within a delta and by a delta, grown again, with the old tail's content never to be seen again but in its points. */
export async function shorter(world: World, history: History): Promise<void> {
  const session = await Session.start(world, history);
  await session.commit(
    stateOf(
      "c2",
      shortBytes,
      new Map([
        [0, 61],
        [1, 2],
      ]),
    ),
  );
  await session.part(sizeBytes, [
    [1, 62],
    [258, 63],
  ]);
  await session.next("power");
  await session.part(shortestBytes, [[0, 64]]);
  await session.next("killed");
  await session.part(grownBytes, [[257, 65]], true);
  await session.next("power");
  await session.rollBack();
  await session.part(shortestBytes, [[0, 66]]);
  await session.next("power");
  await session.rollBack();
  await session.commit(
    stateOf(
      "c3",
      sizeBytes,
      new Map([
        [1, 67],
        [258, 68],
        [260, 4],
      ]),
    ),
  );
  await session.part(shortBytes, [[0, 69]], true);
  await session.part(sizeBytes, [[259, 70]]);
  await session.next("killed");
  await session.commit(fourth);
}
