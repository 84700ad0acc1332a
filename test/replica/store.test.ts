import { describe, expect, test } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { GIB, MIB } from "../../src/base/units.ts";
import { checkDiskName } from "../../src/base/disk-name.ts";
import { openStore, type Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type DiskOptions,
  type ProcessOptions,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import {
  apply,
  blockBytes,
  blockContent,
  commitFacts,
  createTestClock,
  createTestRandom,
  diskName,
  geometry,
  holder,
  expectTableTrue,
  nonZeroBlocks,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  storePath,
} from "./simulated-store.ts";

const facts = { geometry: geometry(40 * blockBytes), owner: "sender", sectorBytes: 512 };
const directory = `${storePath}/disks/${diskName}`;

interface Bench {
  readonly machine: SimulatedDisk;
  readonly process: SimulatedProcess;
  readonly store: Store;
}

async function setUp(options: { readonly disk?: DiskOptions; readonly process?: ProcessOptions } = {}): Promise<Bench> {
  const machine = createSimulatedDisk(options.disk);
  const process = machine.start(options.process);
  return { machine, process, store: await openTestStore(process) };
}

/** A disk with one point, blocks 1 and 2. */
async function setUpPoint(options: { readonly process?: ProcessOptions } = {}): Promise<Bench> {
  const bench = await setUp(options);
  await bench.store.create(diskName, facts);
  const writer = await openWriter(bench.store);
  await writer.begin();
  await apply(
    writer,
    bench.process.lanes,
    new Map([
      [1, 1],
      [2, 2],
    ]),
  );
  await writer.commit(commitFacts("c1"));
  await writer.release();
  return bench;
}

describe("names", () => {
  const hostile = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc",
    "A",
    "-a",
    ".a",
    "_a",
    "a b",
    "a\0",
    "ä",
    "a\n",
    "x".repeat(64),
    "__proto__",
    "con:",
  ];
  for (const name of hostile) {
    test(`${JSON.stringify(name)} names no disk`, async () => {
      const { store, machine } = await setUp();
      const before = machine.files();
      const refused = { code: "disk-name-invalid", message: expect.stringContaining("1 to 63 characters") };
      await expect(store.create(name, facts)).rejects.toMatchObject(refused);
      await expect(store.openWriter(name, holder)).rejects.toMatchObject(refused);
      await expect(store.summary(name)).rejects.toMatchObject(refused);
      expect(machine.files()).toEqual(before);
    });
  }

  test("what is allowed", () => {
    for (const name of ["a", "0", "vm1.sda", "a-b_c.d", "x".repeat(63)]) {
      expect(() => {
        checkDiskName(name);
      }).not.toThrow();
    }
  });

  test("names that others put beside the disks are not listed", async () => {
    const { store, process } = await setUp();
    await store.create("b", facts);
    await store.create("a", facts);
    for (const other of ["Other", ".hidden", "no-record"]) await process.makeDirectory(`${storePath}/disks/${other}`);
    expect(await store.disks()).toEqual(["a", "b"]);
  });
});

describe("a store", () => {
  const options = (process: SimulatedProcess) => ({
    path: storePath,
    storage: process,
    clock: createTestClock(process),
    random: createTestRandom(),
    log: silentLogger,
    host: "h",
  });

  test("keeps its id", async () => {
    const { store, process } = await setUp();
    expect((await openStore(options(process))).id).toBe(store.id);
  });

  test("is not made unasked", async () => {
    const process = createSimulatedDisk().start();
    await expect(openStore(options(process))).rejects.toMatchObject({ code: "store-not-found" });
    expect(await process.list("/")).toEqual([]);
  });

  test("is not made where something else lies", async () => {
    const process = createSimulatedDisk().start();
    await process.makeDirectory(`${storePath}/photos`);
    await expect(openStore({ ...options(process), create: true })).rejects.toThrow(/not empty \(it holds "photos"\)/);
  });

  test("is made on a fresh file system", async () => {
    const process = createSimulatedDisk().start();
    await process.makeDirectory(`${storePath}/lost+found`);
    expect((await openStore({ ...options(process), create: true })).path).toBe(storePath);
  });

  test("is not opened without locks, unless at the user's word; then one writer at a time all the same", async () => {
    const process = createSimulatedDisk().start({ locks: false });
    await expect(openStore({ ...options(process), create: true })).rejects.toMatchObject({
      code: "locks-unsupported",
      message: expect.stringContaining("--single-process"),
    });
    const store = await openStore({ ...options(process), create: true, singleProcess: true });
    await store.create(diskName, facts);
    const writer = await openWriter(store);
    expect((await store.openWriter(diskName, holder)).kind).toBe("busy");
    expect((await store.summary(diskName))?.state).toBe("receiving");
    await writer.release();
    // A log that was being joined when its process ended.
    const left = `${directory}/points/0000000001.7.undo`;
    await (await process.open(left, { write: true, create: true })).close();
    await (await openWriter(store)).release();
    expect(await process.stat(left)).toBeUndefined();
  });

  test("keeps a reserve", async () => {
    const { process } = await setUp({ disk: { freeBytes: 500 * MIB } });
    // 5 % of a terabyte are more than the default reserve of 1 GiB.
    const store = await openStore(options(process));
    await expect(store.checkReserve()).rejects.toMatchObject({
      code: "no-space",
      details: { freeBytes: 500 * MIB, reserveBytes: GIB },
    });
    await (await openStore({ ...options(process), reserveBytes: 500 * MIB })).checkReserve();
  });
});

describe("a new disk", () => {
  test("is empty, private and has no point", async () => {
    const { store, process, machine } = await setUp();
    await store.create(diskName, facts);
    expect(await store.summary(diskName)).toMatchObject({
      state: "idle",
      newest: undefined,
      holder: undefined,
      allocatedBytes: 0,
    });
    const modes = await Promise.all(
      ["disk.json", "replica.raw", "digests", "pages"].map(
        async (name) => (await process.stat(`${directory}/${name}`))?.mode,
      ),
    );
    expect(modes).toEqual([0o600, 0o400, 0o600, 0o600]);
    expect(machine.files().filter((path) => path.endsWith(".new"))).toEqual([]);
    const writer = await openWriter(store);
    expect(writer).toMatchObject({ newest: undefined, doubt: undefined, resumeBlock: 0 });
    expect(writer.record).toMatchObject({
      name: diskName,
      owner: "sender",
      term: 1,
      sectorBytes: 512,
      ...facts.geometry,
    });
    expect(writer.table.isEmpty()).toBe(true);
  });

  test("too large for the file system is refused with both numbers before anything is made", async () => {
    const { store, machine } = await setUp({ disk: { fileBytesMax: 100_000 } });
    await expect(store.create(diskName, facts)).rejects.toMatchObject({
      code: "target-too-small",
      message: expect.stringMatching(/655360 bytes.*100000 bytes/),
    });
    expect(machine.files()).toEqual([`${storePath}/store.json`]);
  });

  test("too large for a file system that does not tell its limit is refused too, and leaves nothing", async () => {
    const { store, machine } = await setUp({ disk: { fileBytesMax: 100_000, fileBytesMaxKnown: false } });
    await expect(store.create(diskName, facts)).rejects.toMatchObject({ code: "target-too-small" });
    expect(machine.files()).toEqual([`${storePath}/store.json`, `${directory}/apply.lock`].sort());
    expect(await store.disks()).toEqual([]);
    expect(await store.summary(diskName)).toBeUndefined();
  });

  test("that exists already stays as it is", async () => {
    const { store } = await setUpPoint();
    const before = await store.summary(diskName);
    await store.create(diskName, { ...facts, geometry: geometry(blockBytes) });
    expect(await store.summary(diskName)).toEqual(before);
  });

  test("is not made over points whose disk.json was lost", async () => {
    const { store, process } = await setUpPoint();
    await process.unlink(`${directory}/disk.json`);
    await expect(store.create(diskName, facts)).rejects.toMatchObject({
      code: "store-damaged",
      message: expect.stringContaining("disk.json"),
    });
    expect((await process.list(`${directory}/points`))?.length).toBe(1);
  });

  test("no disk, no writer", async () => {
    const { store } = await setUp();
    await expect(store.openWriter("nothing", holder)).rejects.toMatchObject({ code: "disk-not-found" });
    expect(await store.summary("nothing")).toBeUndefined();
  });
});

test("a disk whose maker was stopped at the last step is there to stay once it was used", async () => {
  const machine = createSimulatedDisk();
  const process = machine.start({
    fault: ({ kind, path }) => (kind === "sync-directory" && path === directory ? { kind: "kill" } : undefined),
  });
  const store = await openTestStore(process);
  await expect(store.create(diskName, facts)).rejects.toThrow(/EKILLED/);
  const writer = await openWriter(await openTestStore(machine.start()));
  // An empty disk, committed as it is.
  await writer.commit(commitFacts("c1"));
  machine.losePower(() => false);
  expect(await (await openTestStore(machine.start())).summary(diskName)).toMatchObject({ newest: { cycle: "c1" } });
});

describe("one writer", () => {
  test("the second is told who the first is; a killed one leaves no lock", async () => {
    const { store, machine, process } = await setUpPoint();
    await openWriter(store);
    const other = machine.start();
    const second = await openTestStore(other);
    expect(await second.openWriter(diskName, { identity: "other", instance: "i2" })).toEqual({
      kind: "busy",
      holder: { host: "receiver1", pid: 4711, since: expect.any(Number), ...holder },
    });
    expect(await second.summary(diskName)).toMatchObject({ state: "receiving", holder, newest: { cycle: "c1" } });
    process.kill();
    expect(await second.summary(diskName)).toMatchObject({ state: "idle", holder: undefined });
    const writer = await openWriter(second);
    expect(writer.newest?.cycle).toBe("c1");
    await writer.release();
    expect(await second.summary(diskName)).toMatchObject({ state: "idle", holder: undefined });
  });

  test("a look at the disk does not keep a writer out", async () => {
    const { store, machine, process } = await setUpPoint();
    // The text of a killed writer is what makes a look ask the kernel.
    await openWriter(store);
    let current = process;
    const restart = async (): Promise<Store> => {
      current.kill();
      current = machine.start();
      return openTestStore(current);
    };
    let second = await restart();
    for (let steps = 0; steps < 60; steps++) {
      const looks = [second.summary(diskName)];
      for (let step = 0; step < steps; step++) await Promise.resolve();
      looks.push(second.summary(diskName));
      const opened = await second.openWriter(diskName, holder);
      expect(opened.kind).toBe("open");
      await Promise.all(looks);
      // Killed and not released, so that the text stays.
      second = await restart();
    }
  });

  test("summary is right at every step of a live writer", async () => {
    const watched: Store[] = [];
    let looks = 0;
    const pending: Promise<void>[] = [];
    const machine = createSimulatedDisk();
    const watcher = machine.start();
    const look = async (): Promise<void> => {
      const summary = await watched[0]?.summary(diskName);
      if (summary === undefined) return;
      looks++;
      expect(summary.trouble).toBeUndefined();
      expect(["receiving", "idle", "interrupted"]).toContain(summary.state);
    };
    const process = machine.start({
      fault: () => {
        pending.push(look());
        return undefined;
      },
    });
    const own = await openTestStore(process);
    await own.create(diskName, facts);
    watched.push(await openTestStore(watcher));
    for (const cycle of ["c1", "c2", "c3"]) {
      const writer = await openWriter(own);
      await writer.begin();
      await putBlock(writer, process.lanes, 3, cycle.charCodeAt(1));
      await writer.commit(commitFacts(cycle));
      await writer.release();
    }
    await Promise.all(pending);
    expect(looks).toBeGreaterThan(50);
    expect(await watched[0]?.summary(diskName)).toMatchObject({ state: "idle", newest: { cycle: "c3", point: 3 } });
  });

  test("release may be called twice; after it the writer is dead", async () => {
    const { store, process } = await setUpPoint();
    const writer = await openWriter(store);
    await Promise.all([writer.release(), writer.release()]);
    expect((await process.stat(`${directory}/apply.lock`))?.sizeBytes).toBe(0);
    expect(() => writer.begin()).toThrow(/released/);
  });

  test("begin may be called by many at once", async () => {
    const { store, process, machine } = await setUpPoint();
    const writer = await openWriter(store);
    const before = process.operations;
    await Promise.all([writer.begin(), writer.begin(), writer.begin()]);
    // The heartbeat written and synced; the log created, its header written and synced, two directories synced, once; no record to remove.
    expect(process.operations - before).toBe(8);
    expect(machine.files()).toContain(`${directory}/points/0000000001.undo`);
  });
});

describe("a commit that is known or not (C-61, C-62)", () => {
  test("is found by its cycle after a crash at any step behind the rename, as exactly one point", async () => {
    const steps = await commitSteps();
    const renamed = steps.findIndex((step) => step.startsWith("rename"));
    expect(renamed).toBeGreaterThan(0);
    for (let stop = renamed + 1; stop <= steps.length; stop++) {
      const { machine, store, process, start } = await setUpStop(stop);
      await commitSecond(store, process, start).catch(() => undefined);
      process.kill();
      const after = machine.start();
      const again = await openTestStore(after);
      const writer = await openWriter(again);
      // What a sender compares with its own cycle: equal means there is nothing to do.
      expect(writer.newest).toMatchObject({ cycle: "c2", point: 2 });
      expect(writer.doubt).toBeUndefined();
      expect(await after.list(`${directory}/points`)).toEqual([
        "0000000001.json",
        "0000000001.undo",
        "0000000002.json",
      ]);
      expect(await after.list(directory)).not.toContain("session.json");
      await writer.begin();
      expect((await writer.commit(commitFacts("c3"))).point).toBe(3);
    }
  });

  interface Stopped extends Bench {
    /** From here the process is killed at the `stop`-th operation. */
    readonly start: () => void;
  }

  async function setUpStop(stop: number, seen?: string[]): Promise<Stopped> {
    let counted = Number.NEGATIVE_INFINITY;
    const bench = await setUpPoint({
      process: {
        fault(operation) {
          if (counted >= 0) seen?.push(`${operation.kind} ${operation.path}`);
          return counted++ === stop ? { kind: "kill" } : undefined;
        },
      },
    });
    return { ...bench, start: () => (counted = 0) };
  }

  async function commitSecond(store: Store, process: SimulatedProcess, start: () => void): Promise<void> {
    let writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 3, 3);
    await writer.suspend(4);
    await writer.release();
    writer = await openWriter(store);
    // Not begun again: all of the delta was there, and the record of the clean stop still is.
    start();
    await writer.commit(commitFacts("c2"));
  }

  async function commitSteps(): Promise<string[]> {
    const seen: string[] = [];
    const { store, process, start } = await setUpStop(-1, seen);
    await commitSecond(store, process, start);
    return seen;
  }
});

describe("an interrupted copy is known as one at any time (C-76, C-77)", () => {
  test("by its records, whatever the times of its files say", async () => {
    const { store, process, machine } = await setUp();
    await store.create(diskName, facts);
    const writer = await openWriter(store);
    expect((await store.summary(diskName))?.newest).toBeUndefined();
    await writer.begin();
    expect(await store.summary(diskName)).toMatchObject({ state: "receiving", newest: undefined });
    await putBlock(writer, process.lanes, 0, 1);
    process.kill();
    const after = machine.start();
    await after.setMode(`${directory}/replica.raw`, 0o400);
    const again = await openTestStore(after);
    expect(await again.summary(diskName)).toMatchObject({ state: "interrupted", newest: undefined });
    const next = await openWriter(again);
    expect(next).toMatchObject({ newest: undefined, doubt: expect.anything() });
    await rebuild(next, after.lanes);
    expect(next.table.isZero(0)).toBe(false);
    expect((await after.stat(`${directory}/replica.raw`))?.mode).toBe(0o400);
  });

  test("a replica touched after a clean stop is read again", async () => {
    const { store, process } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 5, 5);
    await writer.suspend(6);
    await writer.release();
    await process.setMode(`${directory}/replica.raw`, 0o644);
    const next = await openWriter(store);
    expect(next.doubt?.why).toMatch(/touched/);
    expect(next.resumeBlock).toBe(0);
    expect((await process.stat(`${directory}/replica.raw`))?.mode).toBe(0o400);
  });

  test("a replica that was cut gets its length back, and is compared however often the disk is opened", async () => {
    const { store, process } = await setUpPoint();
    const file = await process.open(`${directory}/replica.raw`, { write: true });
    await file.truncate(1_000);
    await file.close();
    for (const why of [/has 1000 bytes/, /has 1000 bytes/]) {
      const writer = await openWriter(store);
      expect(writer.doubt).toMatchObject({ blocks: "differing", why: expect.stringMatching(why) });
      await writer.release();
    }
    expect((await process.stat(`${directory}/suspect.json`))?.sizeBytes).toBeGreaterThan(0);
  });
});

describe("state from another moment (C-95)", () => {
  test("a clean-stop record put back from before the last writes is not believed", async () => {
    const { store, process, machine } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 5, 5);
    await writer.suspend(6);
    const old = machine.peek(`${directory}/session.json`);
    await writer.begin();
    await putBlock(writer, process.lanes, 6, 6);
    writer.table.write();
    process.kill();
    const after = machine.start();
    const file = await after.open(`${directory}/session.json`, { write: true, create: true });
    await file.write(old ?? new Uint8Array(), 0);
    await file.close();
    const next = await openWriter(await openTestStore(after));
    expect(next.doubt).toBeDefined();
    expect(next.newest?.cycle).toBe("c1");
  });

  test("an owner who is not root resumes without a rebuild, and the replica stays read-only", async () => {
    const { store, process } = await setUpPoint({ process: { root: false } });
    let writer = await openWriter(store);
    await writer.begin();
    await putBlock(writer, process.lanes, 5, 5);
    await writer.suspend(6);
    await writer.release();
    for (let round = 0; round < 3; round++) {
      writer = await openWriter(store);
      expect(writer.doubt).toBeUndefined();
      expect(writer.resumeBlock).toBe(6);
      expect((await process.stat(`${directory}/replica.raw`))?.mode).toBe(0o400);
      await writer.release();
    }
  });
});

describe("damage", () => {
  const flip = (machine: SimulatedDisk, path: string, at: number): void => {
    const bytes = machine.peek(path) ?? new Uint8Array();
    machine.poke(path, Uint8Array.of((bytes[at] ?? 0) ^ 0x01), at);
  };

  for (const name of ["disk.json", "points/0000000001.json"]) {
    test(`of ${name} is named, and nothing is changed`, async () => {
      const { store, machine } = await setUpPoint();
      const path = `${directory}/${name}`;
      const text = Buffer.from(machine.peek(path) ?? []).toString();
      flip(machine, path, text.indexOf('"content"') + 30);
      const before = machine.files();
      const damaged = { code: "store-damaged", message: expect.stringContaining(path) };
      await expect(store.openWriter(diskName, holder)).rejects.toMatchObject(damaged);
      // The lock was given up: the error comes again, and not "busy".
      await expect(store.openWriter(diskName, holder)).rejects.toMatchObject(damaged);
      expect(machine.files()).toEqual(before);
    });
  }

  test("of the newest point shows in the summary", async () => {
    const { store, machine } = await setUpPoint();
    flip(machine, `${directory}/points/0000000001.json`, 40);
    const summary = await store.summary(diskName);
    expect(summary?.state).toBe("damaged");
    expect(summary?.trouble).toContain("points/0000000001.json");
  });

  test("a point's record taken away is not mistaken for an empty disk", async () => {
    const { store, process } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await writer.release();
    await process.unlink(`${directory}/points/0000000001.json`);
    await expect(store.openWriter(diskName, holder)).rejects.toMatchObject({
      code: "store-damaged",
      message: expect.stringContaining("0000000001.json"),
    });
    expect(await store.summary(diskName)).toMatchObject({ state: "damaged" });
  });

  test("a point's record under another number is damage (C-67)", async () => {
    const { store, process } = await setUpPoint();
    await process.rename(`${directory}/points/0000000001.json`, `${directory}/points/0000000002.json`);
    await expect(store.openWriter(diskName, holder)).rejects.toThrow(/is the record of point 1/);
  });

  test("a missing replica is told and not made anew", async () => {
    const { store, process } = await setUpPoint();
    await process.unlink(`${directory}/replica.raw`);
    expect(await store.summary(diskName)).toMatchObject({
      state: "damaged",
      trouble: expect.stringContaining("replica.raw"),
    });
    await expect(store.openWriter(diskName, holder)).rejects.toMatchObject({ code: "store-damaged" });
    expect(await process.list(directory)).not.toContain("replica.raw");
  });

  for (const name of ["digests", "pages"]) {
    test(`a missing "${name}" costs a rebuild and no more`, async () => {
      const { store, process } = await setUpPoint();
      await process.unlink(`${directory}/${name}`);
      const writer = await openWriter(store);
      expect(writer.doubt?.why).toMatch(/missing/);
      await rebuild(writer, process.lanes);
      expect(Buffer.from(writer.table.root()).toString("hex")).toBe(writer.newest?.root);
      await writer.release();
      expect((await openWriter(store)).doubt).toBeUndefined();
    });
  }

  test("of a table page ends the session, and the next one builds the table anew", async () => {
    const { store, process, machine } = await setUpPoint();
    flip(machine, `${directory}/digests`, 20);
    const writer = await openWriter(store);
    expect(() => writer.table.page(0)).toThrow(/page 0/);
    await writer.release();
    const next = await openWriter(store);
    expect(next.doubt).toBeDefined();
    await rebuild(next, process.lanes);
    expect(Buffer.from(next.table.root()).toString("hex")).toBe(next.newest?.root);
  });

  test("a damaged clean-stop record is doubt and no error", async () => {
    const { store, process, machine } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await writer.suspend(3);
    await writer.release();
    flip(machine, `${directory}/session.json`, 60);
    const next = await openWriter(store);
    expect(next.doubt?.why).toMatch(/did not end cleanly/);
    await rebuild(next, process.lanes);
    expect(next.doubt).toBeUndefined();
  });

  test("a replica of another length is doubt, and gets its length back", async () => {
    for (const sizeBytes of [1000, 41 * blockBytes]) {
      const { store, process } = await setUpPoint();
      const file = await process.open(`${directory}/replica.raw`, { write: true });
      await file.truncate(sizeBytes);
      await file.close();
      if (sizeBytes > 655_360) {
        // What lies behind the end is somebody's.
        await expect(openWriter(store)).rejects.toMatchObject({ code: "replica-changed" });
        expect((await process.stat(`${directory}/replica.raw`))?.sizeBytes).toBe(sizeBytes);
      }
      const opened = await store.openWriter(diskName, { ...holder, mayCut: true });
      if (opened.kind !== "open") throw new Error("the disk is busy");
      const { writer } = opened;
      expect(writer.doubt?.why).toContain(`${sizeBytes} bytes and not the 655360`);
      expect((await process.stat(`${directory}/replica.raw`))?.sizeBytes).toBe(655_360);
      await rebuild(writer, process.lanes);
      await writer.release();
      // Cut short it lost its blocks: the disk is not its newest point any more, and says so.
      expect((await store.summary(diskName))?.state).toBe(sizeBytes === 1000 ? "interrupted" : "idle");
      expect((await openWriter(store)).doubt).toBeUndefined();
    }
  });

  test("doubt outlives a loss of power, though what caused it was put right", async () => {
    const { store, process, machine } = await setUpPoint();
    const file = await process.open(`${directory}/replica.raw`, { write: true });
    await file.truncate(1000);
    await file.close();
    expect((await openWriter(store)).doubt).toBeDefined();
    machine.losePower(() => false);
    const next = await openWriter(await openTestStore(machine.start()));
    expect(next.doubt).toBeDefined();
  });

  test("a rebuild leaves holes in the table where blocks are zero", async () => {
    const { store, process, machine } = await setUp();
    await store.create(diskName, { ...facts, geometry: geometry(600 * blockBytes) });
    machine.poke(`${directory}/digests`, Buffer.alloc(4096, 1), 4096);
    await process.unlink(`${directory}/pages`);
    const writer = await openWriter(store);
    await rebuild(writer, process.lanes);
    expect((await process.stat(`${directory}/digests`))?.allocatedBytes).toBe(0);
  });

  test("a file of a newer version is refused and left alone", async () => {
    const { store, machine } = await setUpPoint();
    const path = `${directory}/disk.json`;
    const text = Buffer.from(machine.peek(path) ?? []).toString();
    machine.poke(path, Buffer.from("2"), text.indexOf('"version": 1') + 11);
    const refused = {
      code: "store-version-unsupported",
      message: expect.stringMatching(/version 2; this program reads version 1/),
    };
    await expect(store.openWriter(diskName, holder)).rejects.toMatchObject(refused);
    await expect(store.summary(diskName)).rejects.toMatchObject(refused);
  });

  test("unfinished files of a crash are ignored, then removed by the next writer", async () => {
    const { store, process } = await setUpPoint();
    for (const name of ["disk.json.new", "session.json.new", "points/0000000002.json.new"]) {
      const file = await process.open(`${directory}/${name}`, { write: true, create: true });
      await file.write(Buffer.from("{"), 0);
      await file.close();
    }
    expect(await store.summary(diskName)).toMatchObject({ state: "idle", newest: { point: 1 } });
    await (await openWriter(store)).release();
    const left = [...((await process.list(directory)) ?? []), ...((await process.list(`${directory}/points`)) ?? [])];
    expect(left.filter((name) => name.endsWith(".new"))).toEqual([]);
  });
});

describe("poison", () => {
  test("makes the next open doubt what was begun, and nothing where nothing was", async () => {
    const { store, process } = await setUpPoint();
    let writer = await openWriter(store);
    writer.poison();
    await expect(writer.begin()).rejects.toMatchObject({ code: "sync-failed" });
    await writer.release();
    writer = await openWriter(store);
    expect(writer.doubt).toBeUndefined();
    await writer.begin();
    await putBlock(writer, process.lanes, 3, 9);
    writer.poison();
    await writer.release();
    writer = await openWriter(store);
    expect(writer.doubt).toMatchObject({ blocks: "recent" });
    expect(writer.logged?.recentCount).toBeGreaterThan(0);
    await rebuild(writer, process.lanes);
    expectTableTrue(writer, process.lanes);
  });

  test("a doubtful disk takes no delta before its table is built", async () => {
    const { store, process } = await setUpPoint();
    await process.unlink(`${directory}/pages`);
    const writer = await openWriter(store);
    await expect(writer.begin()).rejects.toThrow(/doubtful table/);
  });
});

describe("growth", () => {
  test("is part of a delta and keeps what is there", async () => {
    const { store, process } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await writer.grow(50 * blockBytes + 100);
    await writer.grow(50 * blockBytes + 100);
    expect(writer.record.sizeBytes).toBe(50 * blockBytes + 100);
    expect(writer.table.geometry.sizeBytes).toBe(50 * blockBytes + 100);
    expect(writer.newest?.sizeBytes).toBe(40 * blockBytes);
    await putBlock(writer, process.lanes, 50, 7);
    const point = await writer.commit(commitFacts("c2"));
    expect(point.sizeBytes).toBe(50 * blockBytes + 100);
    await writer.release();
    const next = await openWriter(store);
    expect(next.doubt).toBeUndefined();
    expect(nonZeroBlocks(next.table)).toBe(3);
  });

  test("gives the table files their length, whatever is written", async () => {
    const { store, process } = await setUpPoint();
    const writer = await openWriter(store);
    await writer.begin();
    await writer.grow(1_000 * blockBytes);
    await putBlock(writer, process.lanes, 3, 3);
    await writer.commit(commitFacts("c2"));
    await writer.release();
    expect((await process.stat(`${directory}/digests`))?.sizeBytes).toBe(4 * 4096);
    expect((await process.stat(`${directory}/pages`))?.sizeBytes).toBe(4 * 32);
    expect((await openWriter(store)).doubt).toBeUndefined();
  });

  test("beyond the file system's limit is refused with both numbers, and the delta goes on", async () => {
    const { store, process } = await setUp({ disk: { fileBytesMax: 50 * blockBytes } });
    await store.create(diskName, facts);
    const writer = await openWriter(store);
    await writer.begin();
    await expect(writer.grow(51 * blockBytes)).rejects.toMatchObject({
      code: "target-too-small",
      message: expect.stringContaining(`${50 * blockBytes}`),
    });
    await putBlock(writer, process.lanes, 1, 1);
    expect((await writer.commit(commitFacts("c1"))).sizeBytes).toBe(40 * blockBytes);
  });

  test("that there is no room for is told before anything of the points is dropped, and they keep their size (C-86)", async () => {
    let full = false;
    const fault: ProcessOptions["fault"] = ({ kind }) =>
      full && kind === "write" ? { kind: "errno", errno: "ENOSPC" } : undefined;
    const { store, process } = await setUpPoint({ process: { fault } });
    const writer = await openWriter(store);
    for (const value of [2, 3, 4, 5]) {
      await writer.begin();
      await putBlock(writer, process.lanes, 7, value);
      await writer.commit(commitFacts(`c${value}`));
    }
    await writer.begin();
    full = true;
    await expect(
      writer.grow(2_000 * blockBytes).then(() => putBlock(writer, process.lanes, 1_500, 9)),
    ).rejects.toMatchObject({ code: "no-space" });
    await writer.release();
    const sizes = async (): Promise<readonly number[]> =>
      (await store.points(diskName)).points.map(({ sizeBytes }) => sizeBytes);
    expect(await sizes()).toEqual(Array(5).fill(40 * blockBytes));
    full = false;
    const next = await openWriter(store);
    if (next.doubt !== undefined) await rebuild(next, process.lanes);
    await next.begin();
    await next.grow(2_000 * blockBytes);
    await putBlock(next, process.lanes, 1_500, 9);
    await next.commit(commitFacts("c6"));
    expect(await sizes()).toEqual([...Array(5).fill(40 * blockBytes), 2_000 * blockBytes]);
    for (const value of [2, 3, 4, 5]) {
      const reader = await store.openPoint(diskName, value);
      expect(reader.sizeBytes).toBe(40 * blockBytes);
      const found = Buffer.alloc(blockBytes);
      await reader.read(found, 7 * blockBytes);
      expect(found.equals(blockContent(value))).toBe(true);
      await reader.close();
    }
  });

  test("before begin is a wrong call", async () => {
    const { store } = await setUpPoint();
    const writer = await openWriter(store);
    await expect(writer.grow(50 * blockBytes)).rejects.toThrow(/begin comes before grow/);
  });
});

test("points are in the order of their numbers, also from 9 to 10 and beyond", async () => {
  const { store, process } = await setUp();
  await store.create(diskName, facts);
  for (let cycle = 1; cycle <= 12; cycle++) {
    const writer = await openWriter(store);
    expect(writer.newest?.point).toBe(cycle === 1 ? undefined : cycle - 1);
    await writer.begin();
    await putBlock(writer, process.lanes, 1, cycle);
    await writer.commit({ ...commitFacts(`c${cycle}`), time: 1_000_000 - cycle });
    await writer.release();
  }
  expect((await store.summary(diskName))?.newest).toMatchObject({ point: 12, time: 1_000_000 - 12 });
});
