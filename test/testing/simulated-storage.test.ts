/** The fault model of the simulated disk by itself: every crash test stands on it. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Storage, StorageFile } from "../../src/storage/seam.ts";
import type { Survives, Unsynced } from "../../src/testing/simulated-node.ts";
import {
  createSimulatedDisk,
  type Fault,
  type OperationKind,
  type SimulatedDisk,
} from "../../src/testing/simulated-storage.ts";

const sector = 512;
const none: Survives = () => false;
const all: Survives = () => true;

/** So many bytes of one value. */
const bytes = (value: number, count: number): Uint8Array => new Uint8Array(count).fill(value);

/** Answers from a list, and what was asked. */
function answering(answers: readonly boolean[]): { readonly asked: Unsynced[]; readonly survives: Survives } {
  const asked: Unsynced[] = [];
  return { asked, survives: (what) => answers[asked.push(what) - 1] ?? false };
}

/** Durable: the file, its name, and its content of `sectors` sectors of ones. */
async function durableFile(storage: Storage, sectors: number, path = "/file"): Promise<StorageFile> {
  const file = await storage.open(path, { write: true, create: true });
  await file.write(bytes(1, sectors * sector), 0);
  await file.datasync();
  await storage.syncDirectory("/");
  return file;
}

/** The value at the begin of each sector. */
function sectorsOf(disk: SimulatedDisk, path = "/file"): number[] {
  const content = disk.peek(path) ?? new Uint8Array();
  return Array.from({ length: Math.ceil(content.length / sector) }, (_, index) => content[index * sector] ?? -1);
}

async function readAll(storage: Storage, path = "/file"): Promise<Uint8Array> {
  const file = await storage.open(path);
  const target = new Uint8Array((await file.stat()).sizeBytes);
  await file.read(target, 0);
  await file.close();
  return target;
}

/** Fails the operations of a kind while it is switched on. */
function switched(
  kind: OperationKind,
  fault: Fault,
): { on: boolean; fault: (what: { kind: string }) => Fault | undefined } {
  const state = {
    on: false,
    fault: (what: { kind: string }) => (state.on && what.kind === kind ? fault : undefined),
  };
  return state;
}

describe("a loss of power", () => {
  test("what was synced stays, what was not is gone when nothing survives, and all of it there when all does", async () => {
    for (const [survives, expected] of [
      [none, [1, 1, 1]],
      [all, [1, 2, 2]],
    ] as const) {
      const disk = createSimulatedDisk();
      const storage = disk.start();
      const file = await durableFile(storage, 3);
      await file.write(bytes(2, 2 * sector), sector);
      expect(sectorsOf(disk)).toEqual([1, 2, 2]);
      disk.losePower(survives);
      expect(sectorsOf(disk)).toEqual(expected);
      // It has ended all processes.
      expect(storage.dead).toBe(true);
      await expect(file.read(new Uint8Array(1), 0)).rejects.toMatchObject({ code: "EKILLED" });
    }
  });

  test("any subset of the sectors of a write that was not synced survives, each by itself", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }), async (answers) => {
        const disk = createSimulatedDisk();
        const file = await durableFile(disk.start(), 4);
        await file.write(bytes(2, 4 * sector), 0);
        const { asked, survives } = answering(answers);
        disk.losePower(survives);
        expect(asked).toEqual([...answers.map(() => "write"), "time"]);
        expect(sectorsOf(disk)).toEqual(answers.map((survived) => (survived ? 2 : 1)));
      }),
      { numRuns: 40 },
    );
  });

  test("a write that begins within a sector is parted at the sectors of the file, and none of them is torn", async () => {
    const disk = createSimulatedDisk();
    const file = await durableFile(disk.start(), 3);
    // 212 bytes of the first sector, the second, 100 of the third.
    await file.write(bytes(2, 212 + sector + 100), 300);
    const { asked, survives } = answering([true, false, true]);
    disk.losePower(survives);
    expect(asked).toEqual(["write", "write", "write", "time"]);
    const expected = bytes(1, 3 * sector)
      .fill(2, 300, sector)
      .fill(2, 2 * sector, 2 * sector + 100);
    expect(disk.peek("/file")).toEqual(expected);
  });

  test("an older write survives without the newer one over it, and the newer one without the older", async () => {
    for (const [answers, expected] of [
      [[true, false], 2],
      [[false, true], 3],
      [[true, true], 3],
      [[false, false], 1],
    ] as const) {
      const disk = createSimulatedDisk();
      const file = await durableFile(disk.start(), 1);
      await file.write(bytes(2, sector), 0);
      await file.write(bytes(3, sector), 0);
      disk.losePower(answering(answers).survives);
      expect(sectorsOf(disk)).toEqual([expected]);
    }
  });

  test("a truncation survives or not, whatever becomes of the writes beside it", async () => {
    for (const [answers, expected] of [
      [
        [true, false],
        [1, 1],
      ],
      // The write makes the file longer again, and zeros are between.
      [
        [true, true],
        [1, 1, 0, 2],
      ],
      [
        [false, true],
        [1, 1, 1, 2],
      ],
      [
        [false, false],
        [1, 1, 1, 1],
      ],
    ] as const) {
      const disk = createSimulatedDisk();
      const file = await durableFile(disk.start(), 4);
      await file.truncate(2 * sector);
      await file.write(bytes(2, sector), 3 * sector);
      const { asked, survives } = answering(answers);
      disk.losePower(survives);
      expect(asked).toEqual(["truncate", "write", "time"]);
      expect(sectorsOf(disk)).toEqual(expected);
    }
  });

  test("of a punched hole any subset of the sectors survives", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const file = await durableFile(storage, 4);
    expect(storage.lanes.punch(file.fd, 0, 4 * sector)).toBe(true);
    expect(sectorsOf(disk)).toEqual([0, 0, 0, 0]);
    const { asked, survives } = answering([true, false, false, true]);
    disk.losePower(survives);
    expect(asked).toEqual(["punch", "punch", "punch", "punch", "time"]);
    expect(sectorsOf(disk)).toEqual([0, 1, 1, 0]);
  });

  test("what has survived once is durable, and what was lost does not come back", async () => {
    const disk = createSimulatedDisk();
    const file = await durableFile(disk.start(), 2);
    await file.write(bytes(2, 2 * sector), 0);
    disk.losePower(answering([true, false]).survives);
    disk.losePower(all);
    expect(sectorsOf(disk)).toEqual([2, 1]);
    disk.losePower(none);
    expect(sectorsOf(disk)).toEqual([2, 1]);
  });

  test("bytes may be new and the times of the file old, and the other way round", async () => {
    for (const isNew of [false, true]) {
      const disk = createSimulatedDisk();
      const file = await durableFile(disk.start(), 1);
      const synced = await file.stat();
      await file.write(bytes(2, sector), 0);
      const written = await file.stat();
      expect(written.changedNanos).toBeGreaterThan(synced.changedNanos);
      disk.losePower((what) => (what === "time") === isNew);
      const found = await disk.start().stat("/file");
      expect(found?.changedNanos).toBe(isNew ? written.changedNanos : synced.changedNanos);
      expect(sectorsOf(disk)).toEqual([isNew ? 1 : 2]);
    }
  });
});

describe("names", () => {
  /** Changes of the root since its sync, and what is there after the first so many of them. */
  async function changeNames(storage: Storage): Promise<readonly (readonly string[])[]> {
    for (const path of ["/a", "/b"]) await durableFile(storage, 1, path);
    await storage.link("/a", "/c");
    await storage.rename("/b", "/d");
    await storage.unlink("/a");
    return [
      ["/a", "/b"],
      ["/a", "/b", "/c"],
      ["/a", "/c", "/d"],
      ["/c", "/d"],
    ];
  }

  test("after a loss of power a prefix of the changes since the directory's sync has happened", async () => {
    for (let survivors = 0; survivors <= 3; survivors++) {
      const disk = createSimulatedDisk();
      const states = await changeNames(disk.start());
      expect(disk.files()).toEqual(states[3]);
      let asked = 0;
      // Behind the first that does not survive nothing is asked: what says yes then must not count.
      disk.losePower((what) => what === "entry" && asked++ !== survivors);
      expect(disk.files()).toEqual(states[survivors]);
      expect(asked).toBe(Math.min(survivors + 1, 3));
    }
  });

  test("with `any`, a later change survives without an earlier one", async () => {
    const disk = createSimulatedDisk({ entriesSurvive: "any" });
    await changeNames(disk.start());
    let asked = 0;
    disk.losePower((what) => what === "entry" && asked++ === 2);
    expect(disk.files()).toEqual(["/b"]);
  });

  test("a rename is one step, within a directory, and takes the name that was there", async () => {
    for (const [survives, expected] of [
      [none, 1],
      [all, 2],
    ] as const) {
      const disk = createSimulatedDisk();
      const storage = disk.start();
      await durableFile(storage, 1, "/file");
      const created = await storage.open("/file.new", { write: true, create: true });
      await created.write(bytes(2, sector), 0);
      await created.datasync();
      await storage.syncDirectory("/");
      await storage.rename("/file.new", "/file");
      disk.losePower(survives);
      expect(disk.files()).toEqual(expected === 1 ? ["/file", "/file.new"] : ["/file"]);
      expect(sectorsOf(disk)).toEqual([expected]);
    }
  });

  test("a sync of a file does not make its name durable, and a sync of the directory not its content", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const synced = await storage.open("/content", { write: true, create: true });
    await synced.write(bytes(2, sector), 0);
    await synced.datasync();
    disk.losePower(none);
    expect(disk.files()).toEqual([]);

    const again = disk.start();
    const named = await again.open("/name", { write: true, create: true });
    await named.write(bytes(2, sector), 0);
    await again.syncDirectory("/");
    disk.losePower(none);
    expect(disk.files()).toEqual(["/name"]);
    expect(disk.peek("/name")).toEqual(new Uint8Array());
  });

  test("a sync of a directory that fails leaves its changes to the next one", async () => {
    const failing = switched("sync-directory", { kind: "errno", errno: "EIO" });
    const disk = createSimulatedDisk();
    const storage = disk.start({ fault: failing.fault });
    await storage.open("/file", { write: true, create: true });
    failing.on = true;
    await expect(storage.syncDirectory("/")).rejects.toMatchObject({ code: "EIO" });
    failing.on = false;
    await storage.syncDirectory("/");
    disk.losePower(none);
    expect(disk.files()).toEqual(["/file"]);
  });
});

describe("a sync that fails", () => {
  async function failed() {
    const failing = switched("sync", { kind: "errno", errno: "EIO" });
    const disk = createSimulatedDisk();
    const storage = disk.start({ fault: failing.fault });
    const file = await durableFile(storage, 2);
    await file.write(bytes(2, sector), 0);
    failing.on = true;
    await expect(file.datasync()).rejects.toMatchObject({ code: "EIO" });
    failing.on = false;
    return { disk, storage, file };
  }

  test("forgets what was to be written: reads show it, the next sync succeeds, and no power loss keeps it", async () => {
    const { disk, storage, file } = await failed();
    await file.datasync();
    expect((await readAll(storage))[0]).toBe(2);
    disk.losePower(all);
    expect(sectorsOf(disk)).toEqual([1, 1]);
  });

  test("what is written after it is durable with the next sync", async () => {
    const { disk, file } = await failed();
    await file.write(bytes(3, sector), sector);
    await file.datasync();
    expect(sectorsOf(disk)).toEqual([2, 3]);
    disk.losePower(none);
    expect(sectorsOf(disk)).toEqual([1, 3]);
  });

  test("without the page cache reads show what is durable or pending", async () => {
    const { disk, storage, file } = await failed();
    await file.write(bytes(3, sector), sector);
    storage.lanes.dropCache(file.fd, 0, 2 * sector);
    expect(sectorsOf(disk)).toEqual([1, 3]);
    // A process whose hint is not followed goes on seeing it.
    const { disk: other } = await failed();
    const deaf = other.start({ dropsCache: () => false });
    const reading = await deaf.open("/file");
    deaf.lanes.dropCache(reading.fd, 0, 2 * sector);
    expect((await readAll(deaf))[0]).toBe(2);
  });
});

describe("a killed process", () => {
  test("leaves all it wrote, synced or not, and loses its descriptors and locks", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const file = await durableFile(storage, 2);
    await file.write(bytes(2, sector), 0);
    await file.truncate(3 * sector);
    await storage.rename("/file", "/other");
    expect(await storage.lock("/lock", "exclusive")).toBeDefined();
    const next = disk.start();
    expect(await next.lock("/lock", "shared")).toBeUndefined();
    storage.kill();
    expect(disk.files()).toEqual(["/lock", "/other"]);
    expect(sectorsOf(disk, "/other")).toEqual([2, 1, 0]);
    expect(await next.lock("/lock", "exclusive")).toBeDefined();
    await expect(file.write(bytes(3, 1), 0)).rejects.toMatchObject({ code: "EKILLED" });
    await expect(storage.open("/other")).rejects.toMatchObject({ code: "EKILLED" });
    // Nothing has become durable by it.
    const { asked, survives } = answering([]);
    disk.losePower(survives);
    expect(asked).toContain("entry");
    expect(sectorsOf(disk)).toEqual([1, 1]);
  });

  test("a kill at an operation comes before its effect", async () => {
    const killing = switched("write", { kind: "kill" });
    const disk = createSimulatedDisk();
    const storage = disk.start({ fault: killing.fault });
    const file = await durableFile(storage, 1);
    killing.on = true;
    await expect(file.write(bytes(2, sector), 0)).rejects.toMatchObject({ code: "EKILLED" });
    expect(storage.dead).toBe(true);
    expect(sectorsOf(disk)).toEqual([1]);
  });

  test("what it wrote is made durable by the sync of another process", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const file = await durableFile(storage, 1);
    await file.write(bytes(2, sector), 0);
    storage.kill();
    const next = disk.start();
    const again = await next.open("/file", { write: true });
    await again.datasync();
    disk.losePower(none);
    expect(sectorsOf(disk)).toEqual([2]);
  });
});

describe("reads", () => {
  test("of synced data fail where they are made to, for that process alone", async () => {
    const disk = createSimulatedDisk();
    await durableFile(disk.start(), 2);
    const unlucky = disk.start({
      readFault: (path, offset) => (path === "/file" && offset === sector ? "EIO" : undefined),
    });
    const file = await unlucky.open("/file");
    expect(await file.read(new Uint8Array(sector), 0)).toBe(sector);
    await expect(file.read(new Uint8Array(sector), sector)).rejects.toMatchObject({ code: "EIO" });
    expect(() => unlucky.lanes.read(file.fd, new Uint8Array(1), sector)).toThrow("EIO");
    expect(await readAll(disk.start())).toEqual(bytes(1, 2 * sector));
  });

  test("of synced data come out flipped where the medium has rotted, also after a loss of power", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const file = await durableFile(storage, 2);
    const before = await file.stat();
    disk.poke("/file", bytes(0xfe, 1), 700);
    const expected = bytes(1, 2 * sector);
    expected[700] = 0xfe;
    expect(await readAll(storage)).toEqual(expected);
    // Nobody has written to it.
    expect((await file.stat()).changedNanos).toBe(before.changedNanos);
    disk.losePower(none);
    expect(disk.peek("/file")).toEqual(expected);
  });

  test("rot under what is still to be written goes when that is synced", async () => {
    const disk = createSimulatedDisk();
    const storage = disk.start();
    const file = await durableFile(storage, 1);
    await file.write(bytes(2, sector), 0);
    disk.poke("/file", bytes(9, 1), 0);
    expect((await readAll(storage))[0]).toBe(9);
    await file.datasync();
    disk.losePower(none);
    expect(disk.peek("/file")).toEqual(bytes(2, sector));
  });
});
