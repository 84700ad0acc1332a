import { describe, expect, test } from "vitest";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import {
  checkAfterCrash,
  crashAt,
  crashes,
  failAt,
  operationsOfLife,
  pointsOfLife,
  tryLife,
} from "./shrink-scenario.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import {
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
  shrinkTo,
} from "./simulated-store.ts";

const operations = await operationsOfLife();

test("a life without faults", async () => {
  const { process, history } = await tryLife(createSimulatedDisk(), () => undefined);
  expect(history.durable.size).toBe(pointsOfLife);
  await checkAfterCrash(process, history, 2);
});

// Each way at its share of operations, so that every one is met; shrink-crash.long.ts goes through all of them.
describe("a crash at every operation", () => {
  const ways = Object.entries(crashes);
  for (const [way, [name, survives]] of ways.entries()) {
    test(name, async () => {
      const places = operations.filter(({ index }) => index % ways.length === way);
      expect(places.length).toBeGreaterThan(30);
      for (const place of places) await crashAt(place, survives?.(place.index));
    });
  }
});

/** What a failed sync forgot must not come back: neither at once nor when power is lost later, when all was synced again. */
test("a failure at every sync and every change of a length", async () => {
  const all = operations.filter(({ kind }) => kind === "sync" || kind === "truncate");
  const places = all.filter(({ path, index }) => path.endsWith("replica.raw") || index % 3 === 0);
  expect(places.length).toBeGreaterThan(50);
  for (const place of places) await failAt(place);
});

/** Then nothing that the log names is left, and the page that lost its tail may be on the disk with the checksum it had before. */
test("the end lies between two blocks, and the first attempt to mend the table fails", async () => {
  const disk = createSimulatedDisk();
  let cutting = false;
  const before = disk.start({
    fault: ({ kind, path }) =>
      cutting && kind === "truncate" && path.endsWith("/pages") ? { kind: "kill" } : undefined,
  });
  const store = await openTestStore(before);
  await store.create(diskName, { geometry: geometry(4 * blockBytes), owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, before.lanes, 0, 1);
  await putBlock(writer, before.lanes, 3, 2);
  await writer.commit(commitFacts("c1"));
  await writer.begin();
  cutting = true;
  await expect(shrinkTo(writer, before.lanes, 3 * blockBytes)).rejects.toThrow();
  expect(before.dead).toBe(true);

  let failures = 1;
  const after = disk.start({
    fault: ({ kind, path }) =>
      kind === "sync" && path.endsWith("/digests") && failures-- > 0 ? { kind: "errno", errno: "EIO" } : undefined,
  });
  const failing = await openWriter(await openTestStore(after));
  await expect(rebuild(failing, after.lanes)).rejects.toThrow("digests");
  await failing.release();

  const last = await openWriter(await openTestStore(after));
  await rebuild(last, after.lanes);
  expect(last.record.sizeBytes).toBe(3 * blockBytes);
  expectTableTrue(last, after.lanes);
  await last.release();
});

/** The replica is shorter than its newest point then, durably: a log says nothing of that, and no lost length may take it for damage. */
describe("a disk that was cut and laid aside becomes longer, power is lost, and its table cannot be mended at once", () => {
  const larger: Readonly<Record<string, (writer: DiskWriter, store: Store) => Promise<unknown>>> = {
    "by the next part of the delta": async (writer) => {
      await writer.begin();
      await writer.grow(3 * blockBytes);
    },
    "by taking the delta back": async (writer, store) => writer.rollBack(await store.openPoint(diskName, 1)),
  };

  test.each(Object.keys(larger))("%s", async (how) => {
    const disk = createSimulatedDisk();
    const blocks = new Map([
      [0, 1],
      [3, 2],
    ]);
    const whole = geometry(4 * blockBytes);
    const first = disk.start();
    const store = await openTestStore(first);
    await store.create(diskName, { geometry: whole, owner: "sender", sectorBytes: 512 });
    const writer = await openWriter(store);
    await writer.begin();
    for (const [block, value] of blocks) await putBlock(writer, first.lanes, block, value);
    await writer.commit(commitFacts("c1"));
    await writer.begin();
    await shrinkTo(writer, first.lanes, 2 * blockBytes);
    await writer.suspend(0);
    await writer.release();
    first.kill();

    // The disk's new size is on record, and what was not synced is lost.
    let recorded = false;
    const second = disk.start({
      fault: ({ kind, path }) => {
        if (recorded && kind !== "sync-directory") return { kind: "kill" };
        recorded ||= kind === "rename" && path.endsWith("/disk.json");
        return undefined;
      },
    });
    const storeThen = await openTestStore(second);
    const longer = await openWriter(storeThen);
    const grown = larger[how]?.(longer, storeThen);
    await expect(Promise.resolve(grown).then(() => putBlock(longer, second.lanes, 1, 3))).rejects.toThrow();
    expect(recorded && second.dead).toBe(true);
    disk.losePower(() => false);

    // Only what the log names is in doubt: who is stopped while the table is mended leaves a point that can be read.
    const third = disk.start();
    const storeNow = await openTestStore(third);
    await expectPoint(storeNow, 1, whole, blocks);
    const doubtful = await openWriter(storeNow);
    expect(doubtful.record.sizeBytes).toBeGreaterThan(2 * blockBytes);
    await expectPoint(storeNow, 1, whole, blocks);
    third.kill();
    disk.losePower(() => false);

    const last = disk.start();
    const storeLast = await openTestStore(last);
    await expectPoint(storeLast, 1, whole, blocks);
    const mended = await openWriter(storeLast);
    expect(mended.doubt?.blocks).toBe("recent");
    await rebuild(mended, last.lanes);
    expectTableTrue(mended, last.lanes);
    await mended.rollBack(await storeLast.openPoint(diskName, 1));
    expect(mended.record.sizeBytes).toBe(whole.sizeBytes);
    await mended.release();
    await expectPoint(storeLast, 1, whole, blocks);
  });
});

/** A replica that no crash makes so short: what is gone is not taken for zeros because the log is there. */
test("a replica somebody has cut is compared as a whole, whatever the disk grew by since its newest point", async () => {
  const disk = createSimulatedDisk();
  const process = disk.start();
  const store = await openTestStore(process);
  await store.create(diskName, { geometry: geometry(2 * blockBytes), owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, process.lanes, 0, 1);
  await writer.commit(commitFacts("c1"));
  await writer.begin();
  await writer.grow(4 * blockBytes);
  await putBlock(writer, process.lanes, 3, 2);
  await writer.suspend(0);
  await writer.begin();
  process.kill();

  const somebody = disk.start();
  const replica = disk.files().find((path) => path.endsWith("/replica.raw")) ?? "";
  const file = await somebody.open(replica, { write: true });
  await file.truncate(3 * blockBytes);
  const cut = await openWriter(await openTestStore(somebody));
  const why = expect.stringContaining("the replica has 49152 bytes") as string;
  expect(cut.doubt).toMatchObject({ blocks: "differing", interrupted: true, why });
  await rebuild(cut, somebody.lanes);
  expectTableTrue(cut, somebody.lanes);
  expect(cut.table.isZero(3)).toBe(true);
  await cut.release();
});
