/** Two processes at one disk: at one step of what the first does the second does all of its own. */
import { toReplicationError } from "../../src/base/errors.ts";
import type { NewDisks, Store } from "../../src/replica/store.ts";
import type { FileLock, Storage, StorageFile } from "../../src/storage/seam.ts";
import { overriding } from "./overriding.ts";
import { createSimulatedDisk, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import {
  begin,
  checkAfterCrash,
  checkReaders,
  closeReaders,
  commit,
  createDisk,
  createHistory,
  type History,
  restore,
  sizeBytes,
  stateOf,
  withWriter,
} from "./crash-history.ts";
import { diskName, openTestStore, putBlock, storePath } from "./simulated-store.ts";

type Deed = (store: Store, process: SimulatedProcess, history: History) => Promise<void>;

const third = stateOf(
  "c3",
  sizeBytes,
  new Map([
    [0, 12],
    [1, 7],
  ]),
);
const committed = [
  stateOf(
    "c1",
    sizeBytes,
    new Map([
      [0, 1],
      [1, 2],
      [257, 3],
    ]),
  ),
  stateOf(
    "c2",
    sizeBytes,
    new Map([
      [0, 11],
      [1, 5],
      [257, 3],
    ]),
  ),
  third,
];

/** All but the first, which is held, and the newest, whichever that is by then. */
async function prune(store: Store, _process: SimulatedProcess, history: History): Promise<void> {
  for (const point of [2, 3]) history.going.add(point);
  await store.hold(diskName, 1, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
}

async function compact(store: Store): Promise<void> {
  await store.compact(diskName);
}

/** A part of a delta, and its end. */
const delta =
  (cycle: string): Deed =>
  (store, process, history) =>
    commit(
      store,
      process,
      history,
      stateOf(
        cycle,
        sizeBytes,
        new Map([
          [0, 13],
          [2, cycle.length],
        ]),
      ),
    );

async function readSecond(store: Store, _process: SimulatedProcess, history: History): Promise<void> {
  const [, of] = history.durable;
  if (of?.point === undefined) return;
  const reader = await store.openPoint(diskName, of.point);
  history.readers.push({ reader, of });
  await checkReaders(history).catch((cause: unknown) => {
    throw new Error("a point went while it was read", { cause });
  });
  await closeReaders(history);
}

async function openDisk(store: Store, process: SimulatedProcess, history: History): Promise<void> {
  await withWriter(store, process, history, () => Promise.resolve());
}

async function layAside(store: Store, process: SimulatedProcess, history: History): Promise<void> {
  await withWriter(store, process, history, async (writer) => {
    await begin(writer, process, history, sizeBytes);
    await putBlock(writer, process.lanes, 1, 9);
    await writer.suspend(0);
  });
}

async function restoreFirst(store: Store, process: SimulatedProcess, history: History): Promise<void> {
  await restore(store, process, history, history.durable[0] ?? third);
}

/** Who reads a point that is gone finds out when there is a newer one. */
async function pruneAndCommit(store: Store, process: SimulatedProcess, history: History): Promise<void> {
  await prune(store, process, history);
  await delta("c4")(store, process, history);
}

interface Meeting {
  readonly first: Deed;
  readonly second: Deed;
  /** Done alone before. */
  readonly prepare?: Deed;
}

export const meetings: Readonly<Record<string, Meeting>> = {
  "a point is held while others are removed": {
    first: (store) => store.hold(diskName, 1, { owner: "test", until: 2_000_000_000_000 }),
    second: prune,
  },
  "points are removed while a delta is committed": { first: prune, second: delta("c4") },
  "a delta is committed while points are removed": { first: delta("c4"), second: prune },
  // A list of several logs, so that names alone do not tell what is needed.
  "a delta is committed while more points are removed": {
    first: delta("c4"),
    second: prune,
    prepare: prune,
  },
  "logs are joined while another comes to their list": { first: compact, second: prune, prepare: pruneAndCommit },
  "logs are joined while the disk is opened": { first: compact, second: openDisk, prepare: prune },
  "a delta is committed while another begins": { first: delta("c4"), second: delta("c55") },
  "a delta begins while one is laid aside": { first: layAside, second: delta("c4") },
  "a point is read while a delta is committed": { first: readSecond, second: delta("c4") },
  "a point is read while it is removed": { first: readSecond, second: pruneAndCommit },
  "a point is restored while it is restored": { first: restoreFirst, second: restoreFirst },
};

export interface MeetingOptions {
  /** Locks that both take, and that keep nobody out. */
  readonly without?: RegExp | undefined;
  /** The first looks at each directory once only. */
  readonly looksOnce?: boolean | undefined;
  /** What the disk's replica is; default a raw image. */
  readonly replica?: NewDisks | undefined;
}

/** As {@link meet}; the error says at which step. */
export async function meetAt(name: string, at: number, options: MeetingOptions = {}): Promise<boolean> {
  return meet(name, at, options).catch((error: unknown) => {
    throw new Error(`step ${at}`, { cause: error });
  });
}

/** Throws what is wrong after the second came before step `at` of the first. False: the first has no such step. */
export async function meet(name: string, at: number, options: MeetingOptions = {}): Promise<boolean> {
  const meeting = meetings[name];
  if (meeting === undefined) throw new Error(`there is no meeting ${name}`);
  const disk = createSimulatedDisk();
  const history = createHistory(options.replica);
  const alone = disk.start();
  await alone.makeDirectory(storePath);
  const store = await openTestStore(alone);
  await createDisk(store, history);
  for (const state of committed) await commit(store, alone, history, state);
  await meeting.prepare?.(store, alone, history);

  let steps = Number.NEGATIVE_INFINITY;
  let met = false;
  const second = async (): Promise<void> => {
    met = true;
    const process = withoutLock(disk.start(), options.without);
    await tolerate(openTestStore(process).then((other) => meeting.second(other, process, history)));
  };
  const plain = stepped(disk.start(), async () => {
    if (steps++ === at) await second();
  });
  const process = withoutLock(options.looksOnce === true ? lookingOnce(plain) : plain, options.without);
  const first = await openTestStore(process);
  steps = 0;
  await tolerate(meeting.first(first, process, history));
  await checkReaders(history);
  await closeReaders(history);
  await checkAfterCrash(disk.start(), history);
  return met;
}

/** One of two may be told that the other is there, or was. */
async function tolerate(deed: Promise<void>): Promise<void> {
  try {
    await deed;
  } catch (error) {
    const { code } = toReplicationError(error);
    if (error instanceof Error && error.message === "the disk is busy") return;
    if (!["disk-busy", "image-busy", "target-exists", "point-not-found"].includes(code)) throw error;
  }
}

/** Calls `step` before each call of the control face. */
function stepped(process: SimulatedProcess, step: () => Promise<void>): SimulatedProcess {
  const before =
    <Args extends readonly unknown[], T>(call: (...args: Args) => Promise<T>): ((...args: Args) => Promise<T>) =>
    async (...args) => {
      await step();
      return call(...args);
    };
  const file = (opened: StorageFile): StorageFile =>
    overriding(opened, {
      read: before((...args: Parameters<StorageFile["read"]>) => opened.read(...args)),
      write: before((...args: Parameters<StorageFile["write"]>) => opened.write(...args)),
      truncate: before((sizeBytes: number) => opened.truncate(sizeBytes)),
      datasync: before(() => opened.datasync()),
      stat: before(() => opened.stat()),
    });
  return overriding(process, {
    open: before(async (...args: Parameters<Storage["open"]>) => file(await process.open(...args))),
    rename: before((...args: Parameters<Storage["rename"]>) => process.rename(...args)),
    link: before((...args: Parameters<Storage["link"]>) => process.link(...args)),
    unlink: before((path: string) => process.unlink(path)),
    makeDirectory: before((path: string) => process.makeDirectory(path)),
    removeDirectory: before((path: string) => process.removeDirectory(path)),
    list: before((path: string) => process.list(path)),
    syncDirectory: before((path: string) => process.syncDirectory(path)),
    stat: before((path: string) => process.stat(path)),
    setMode: before((...args: Parameters<Storage["setMode"]>) => process.setMode(...args)),
    lock: before((...args: Parameters<Storage["lock"]>) => process.lock(...args)),
  });
}

/** Locks whose path matches are given to everybody. */
function withoutLock(process: SimulatedProcess, without: RegExp | undefined): SimulatedProcess {
  if (without === undefined) return process;
  return overriding(process, {
    async lock(path, kind): Promise<FileLock | undefined> {
      const lock = await process.lock(path, kind);
      if (!without.test(path)) return lock;
      // Locking makes the file.
      await lock?.release();
      return { release: () => Promise.resolve() };
    },
  });
}

/** Each directory stays as it was first seen: who looks again sees nothing new. */
function lookingOnce(process: SimulatedProcess): SimulatedProcess {
  const seen = new Map<string, ReturnType<Storage["list"]>>();
  return overriding(process, {
    list(path) {
      const names = seen.get(path) ?? process.list(path);
      seen.set(path, names);
      return names;
    },
  });
}
