/** Lives of one disk, step by step, to be ended by a crash at any step of them. */
import { expect } from "vitest";
import {
  begin,
  checkReaders,
  closeReaders,
  commit,
  createDisk,
  during,
  grownBytes,
  type History,
  loseTable,
  openReader,
  restore,
  sizeBytes,
  type State,
  stateOf,
  withWriter,
} from "./crash-history.ts";
import {
  cutOff,
  first,
  fourth,
  type Life,
  openStore,
  recoveries,
  rollBack,
  shorter,
  wide,
  type World,
} from "./crash-recoveries.ts";
import { diskName, putBlock } from "./simulated-store.ts";

export type { Life, World } from "./crash-recoveries.ts";

const second = stateOf(
  "c2",
  sizeBytes,
  new Map([
    [0, 1],
    [1, 5],
    [256, 6],
    [260, 4],
  ]),
);
const third = stateOf(
  "c3",
  grownBytes,
  new Map([
    [1, 7],
    [256, 6],
    [260, 4],
    [520, 8],
  ]),
);
const fifth = stateOf("c5", grownBytes, third.blocks);

/** Two deltas that overwrite the same blocks: joined, their logs keep the first content only. */
const overwritten = stateOf(
  "c2",
  sizeBytes,
  new Map([
    [0, 11],
    [1, 5],
    [256, 6],
    [260, 4],
  ]),
);
const overwrittenAgain = stateOf(
  "c3",
  sizeBytes,
  new Map([
    [0, 12],
    [1, 7],
    [256, 6],
    [260, 4],
  ]),
);

/** Made, first copy, a delta laid aside and taken up again, the table lost, growth, points held and removed. */
async function disk(world: World, history: History): Promise<void> {
  const process = world.start();
  const store = await during(history, "create", async () => {
    const opened = await openStore(process);
    await createDisk(opened, history);
    return opened;
  });
  const add = (state: State): Promise<void> => commit(store, process, history, state);
  await add(first);

  await during(history, "suspend", () =>
    withWriter(store, process, history, async (writer) => {
      await begin(writer, process, history, sizeBytes);
      await putBlock(writer, process.lanes, 1, 5);
      await putBlock(writer, process.lanes, 257, 0);
      await writer.suspend(258);
      history.quiet = true;
    }),
  );
  await during(history, "resume", () =>
    withWriter(store, process, history, async (writer) => {
      expect(writer.doubt).toBeUndefined();
      expect(writer.resumeBlock).toBe(258);
    }),
  );

  await add(second);
  // The table is lost while nothing is under way: it is built anew.
  await loseTable(process, history, "pages");
  await add(third);
  await add(fourth);
  // One in the middle and the oldest.
  await during(history, "prune", async () => {
    for (const point of [1, 3]) history.going.add(point);
    await store.hold(diskName, 2, { owner: "test", until: undefined });
    await store.prune(diskName, { keep: "last=1" });
    await store.release(diskName, 2, "test");
  });
  await add(fifth);
  await store.close();
}

/**
 * Three deltas, each point read from then on; one removed, its log joined; a delta that grows the disk left in the middle, taken back; a point
 * restored; one more delta.
 */
async function points(world: World, history: History): Promise<void> {
  const process = world.start();
  const store = await during(history, "create", async () => {
    const opened = await openStore(process);
    await createDisk(opened, history);
    return opened;
  });
  const add = async (state: State): Promise<void> => {
    await commit(store, process, history, state);
    await during(history, "read", async () => {
      await openReader(store, history);
      await checkReaders(history);
    });
  };
  await add(first);
  await add(overwritten);
  await add(overwrittenAgain);

  await during(history, "prune", async () => {
    await closeReaders(history, 2);
    history.going.add(2);
    const verdicts = await store.prune(diskName, { keep: "last=1" });
    expect(verdicts.map(({ point, keep, rule }) => (keep ? rule : point))).toEqual(["in use", 2, "newest"]);
  });
  await during(history, "compact", async () => {
    expect(await store.compact(diskName)).toMatchObject([{ point: 1 }]);
    await checkReaders(history);
  });
  await during(history, "apply", () =>
    withWriter(store, process, history, async (writer) => {
      await begin(writer, process, history, grownBytes);
      for (const [block, value] of [
        [1, 9],
        [256, 0],
        [520, 10],
        [300, 11],
      ] as const)
        await putBlock(writer, process.lanes, block, value);
    }),
  );
  await during(history, "read", () => checkReaders(history));
  await rollBack(store, process, history);
  await during(history, "read", () => checkReaders(history));
  const [oldest] = history.durable;
  if (oldest !== undefined) await restore(store, process, history, oldest);
  await add(fourth);
  await closeReaders(history);
  await store.close();
}

export const lives: Readonly<Record<string, Life>> = { disk, points, recoveries, "cut off": cutOff, shorter, wide };
