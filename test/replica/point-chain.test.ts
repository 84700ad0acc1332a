import { expect, test } from "vitest";
import { KIB } from "../../src/base/units.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { type Point, readPoint, writePoint } from "../../src/replica/points/point.ts";
import { openChain, readPoints } from "../../src/replica/points/chain.ts";
import { createUndoLog } from "../../src/replica/undo-log.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { methodsOf } from "./point-kit.ts";

const paths = diskPaths("/store", "vm1");
const closed = (footerOffset: number): NonNullable<Point["closed"]> => ({
  sizeBytes: footerOffset + 4096,
  footerOffset,
  footerChecksum: footerOffset,
});

function pointOf(point: number): Point {
  return {
    point,
    time: point,
    label: undefined,
    consistency: "crash",
    root: "00".repeat(32),
    sizeBytes: 1,
    generation: "g",
    term: 1,
    cycle: "c",
    source: "s",
    sourceName: "s",
    closed: point === 1 ? undefined : closed(4096 * point),
  };
}

async function start(points: number): Promise<Storage> {
  const storage = createSimulatedDisk().start();
  await storage.makeDirectory(paths.points);
  for (let point = 1; point <= points; point++) await writePoint(storage, paths, pointOf(point));
  return storage;
}

/** Calls `step` before the file is opened for the first time. */
function beforeOpen(storage: Storage, path: string, step: () => Promise<void>): Storage {
  let done = false;
  return {
    ...methodsOf(storage),
    async open(opened, options) {
      if (opened === path && !done) {
        done = true;
        await step();
      }
      return storage.open(opened, options);
    },
  };
}

test("a point removed while the records are read: its logs are not lost", async () => {
  const storage = await start(4);
  // The record before it was read by then, without the logs it gets now.
  const removing = beforeOpen(storage, paths.point(2), async () => {
    const logs = [1, 2].map((point) => ({ name: `000000000${point}.undo`, closed: closed(4096 * (point + 1)) }));
    await writePoint(storage, paths, { ...pointOf(1), logs });
    await storage.unlink(paths.point(2));
  });
  const { points, unreadable } = await readPoints(removing, paths);
  expect(points.map(({ point }) => point)).toEqual([1, 3, 4]);
  expect(points[0]?.logs?.map(({ name }) => name)).toEqual(["0000000001.undo", "0000000002.undo"]);
  expect(unreadable).toEqual([]);
});

test("points from one on: the records before it are not read", async () => {
  const storage = await start(4);
  const reading = beforeOpen(storage, paths.point(2), () => Promise.reject(new Error("an older record was read")));
  const { points, files } = await readPoints(reading, paths, 3);
  expect(points.map(({ point }) => point)).toEqual([3, 4]);
  expect(files.records).toEqual([1, 2, 3, 4]);
});

test("a log whose point has no record counts as one that cannot be read", async () => {
  const storage = await start(2);
  const file = await storage.open(paths.undo(3), { write: true, create: true });
  await file.close();
  const { points, unreadable } = await readPoints(storage, paths);
  expect(points).toEqual([await readPoint(storage, paths, 1), await readPoint(storage, paths, 2)]);
  expect(unreadable).toEqual([{ point: 3, message: expect.stringContaining("0000000003.json") }]);
});

test("records that come and go without end", async () => {
  const storage = await start(2);
  const restless: Storage = {
    ...methodsOf(storage),
    list: async (path) => [...((await storage.list(path)) ?? []), "0000000009.json"],
  };
  await expect(readPoints(restless, paths)).rejects.toMatchObject({ code: "disk-busy" });
});

test("an open log that is made anew before anything was in it", async () => {
  const storage = await start(1);
  const header = { sequence: 1, blockBytes: 16 * KIB, digestKind: "xxh64", sizeBytes: 1 } as const;
  const decompressLz4 = (): never => {
    throw new Error("nothing is compressed");
  };
  const { blockBytes, digestKind } = header;
  const chain = await openChain({ storage, paths, name: "vm1", blockBytes, digestKind, decompressLz4 }, 1);
  expect(chain.hasOpenLog).toBe(false);
  // Its header did not become durable, so its writer began again.
  const first = await createUndoLog(storage, paths, { ...header, id: new Uint8Array(8).fill(1) });
  await chain.findOpenLog();
  expect(chain.hasOpenLog).toBe(true);
  const torn = await storage.open(paths.undo(1), { write: true });
  await torn.truncate(0);
  chain.refresh();
  expect(chain.view(0).sources(0)).toBeUndefined();
  const second = await createUndoLog(storage, paths, { ...header, id: new Uint8Array(8).fill(2) });
  const entry = { block: 0, run: 1, flags: 3, contentBytes: 0, contentChecksum: 0, digest: new Uint8Array(8) };
  await second.put([{ ...entry, mask: Uint8Array.of(15) }]);
  chain.refresh();
  expect(chain.view(0).sources(0)).toMatchObject({ anyMissing: false, digest: new Uint8Array(8) });
  // Behind entries a header does not change.
  await torn.write(Uint8Array.of(1), 20);
  const again = openChain({ storage, paths, name: "vm1", blockBytes, digestKind, decompressLz4 }, 1);
  await expect(again).rejects.toMatchObject({ code: "store-damaged" });
  for (const file of [first, second, torn, ...chain.logs.map((log) => log.file)]) await file.close();
});
