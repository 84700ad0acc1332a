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
import {
  blockBytes,
  commitFacts,
  diskName,
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
