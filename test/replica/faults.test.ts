import { describe, expect, test } from "vitest";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import {
  apply,
  blockBytes,
  commitFacts,
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

describe("a sync that failed once (C-97)", () => {
  const disk = geometry(40 * blockBytes);

  for (const file of ["replica.raw", "digests", "pages", "0000000001.json.new", "points", "points/0000000000.undo"]) {
    test(`of ${file}: the commit fails, no second try succeeds, and the next session starts from what is on disk`, async () => {
      const machine = createSimulatedDisk();
      let armed = false;
      const process = machine.start({
        fault({ kind, path }) {
          if (!armed || !kind.startsWith("sync") || !path.endsWith(file)) return undefined;
          armed = false;
          return { kind: "errno", errno: "EIO" };
        },
      });
      await process.makeDirectory(storePath);
      const store = await openTestStore(process);
      await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
      const writer = await openWriter(store);
      await writer.begin();
      await putBlock(writer, process.lanes, 3, 1);
      armed = true;
      await expect(writer.commit(commitFacts("c1"))).rejects.toMatchObject({ code: "sync-failed" });
      expect(armed).toBe(false);
      // The kernel would say yes to a second sync now.
      await expect(writer.commit(commitFacts("c1"))).rejects.toMatchObject({ code: "sync-failed" });
      await expect(writer.suspend(0)).rejects.toMatchObject({ code: "sync-failed" });
      await writer.release();

      const next = await openWriter(store);
      // Behind the rename everything the record speaks of is durable: the next open syncs the directory first.
      if (file === "points") expect(next.newest?.cycle).toBe("c1");
      else expect(next.doubt).toBeDefined();
      if (next.doubt !== undefined) await rebuild(next, process.lanes);
      expectTableTrue(next, process.lanes);
      await next.begin();
      await apply(next, process.lanes, new Map([[3, 1]]));
      const point = await next.commit(commitFacts("c2"));
      expect(point.root).toBe(rootOf(disk, new Map([[3, 1]])));
      await next.release();

      machine.losePower(() => false);
      const after = machine.start();
      const last = await openWriter(await openTestStore(after));
      expect(last.doubt).toBeUndefined();
      expect(last.newest?.cycle).toBe("c2");
      expectTableTrue(last, after.lanes);
    });
  }

  test("of session.json, when a delta is laid aside: nothing of it is believed, and the next session finishes the delta", async () => {
    const machine = createSimulatedDisk();
    let armed = false;
    const process = machine.start({
      fault({ kind, path }) {
        if (!armed || !kind.startsWith("sync") || !path.endsWith("session.json.new")) return undefined;
        armed = false;
        return { kind: "errno", errno: "EIO" };
      },
    });
    await process.makeDirectory(storePath);
    const store = await openTestStore(process);
    await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
    const writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 3, 1);
    armed = true;
    await expect(writer.suspend(4)).rejects.toMatchObject({ code: "sync-failed" });
    expect(armed).toBe(false);
    await expect(writer.suspend(4)).rejects.toMatchObject({ code: "sync-failed" });
    await expect(writer.commit(commitFacts("c1"))).rejects.toMatchObject({ code: "sync-failed" });
    await writer.release();

    const next = await openWriter(store);
    expect(next.newest).toBeUndefined();
    // Without the record nobody vouches for what was applied, nor for how far the scan came.
    expect(next.doubt).toBeDefined();
    expect(next.resumeBlock).toBe(0);
    await rebuild(next, process.lanes);
    expectTableTrue(next, process.lanes);
    await next.begin();
    await apply(next, process.lanes, new Map([[3, 1]]));
    const point = await next.commit(commitFacts("c2"));
    expect(point.root).toBe(rootOf(disk, new Map([[3, 1]])));
    await next.release();

    machine.losePower(() => false);
    const after = machine.start();
    const last = await openWriter(await openTestStore(after));
    expect(last.doubt).toBeUndefined();
    expect(last.newest?.cycle).toBe("c2");
    expectTableTrue(last, after.lanes);
  });

  test("of the replica: what the rebuild reads is the disk and not the page cache", async () => {
    const machine = createSimulatedDisk();
    const process = machine.start({
      fault: ({ kind, path, index }) =>
        kind === "sync" && path.endsWith("replica.raw") && index > 30 && !failed ? fail() : undefined,
    });
    let failed = false;
    const fail = () => {
      failed = true;
      return { kind: "errno", errno: "EIO" } as const;
    };
    await process.makeDirectory(storePath);
    const store = await openTestStore(process);
    await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
    const writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 3, 1);
    await expect(writer.commit(commitFacts("c1"))).rejects.toMatchObject({ code: "sync-failed" });
    await writer.release();
    const next = await openWriter(store);
    await rebuild(next, process.lanes);
    // Block 3 never reached the disk: the table must ask for it again.
    expect(next.table.isZero(3)).toBe(true);
  });
});
