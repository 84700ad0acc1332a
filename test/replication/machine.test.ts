/** Several disks sent as they are at one moment: all get their point of the cut, or none does. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Point } from "../../src/replica/store.ts";
import { createMachineSender, type CutDisk, type MachineSender } from "../../src/replication/machine.ts";
import { createSender, type SenderOptions } from "../../src/replication/sender.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

let kit: PairKit;
/** What the receiver says, by disk. */
const told: { readonly disk: unknown; readonly text: string }[] = [];
/** What the sender of the whole cut says, by disk. */
const warned: unknown[] = [];
const warnOfCut = ({ disk }: { readonly disk?: unknown }): void => void warned.push(disk);
beforeEach(async () => {
  warned.length = 0;
  told.length = 0;
  const tell = ({ disk }: { readonly disk?: unknown }, text: string): void => void told.push({ disk, text });
  kit = await PairKit.create({ receiverLog: { ...silentLogger, info: tell, warn: tell } });
});
afterEach(async () => {
  expect(await kit.close()).toBe(true);
});

type MemoryImage = ReturnType<typeof createMemoryImage>;

/** A disk of the machine, and a guard that a test can make fail. */
interface TestDisk extends CutDisk {
  readonly image: MemoryImage;
  readonly guard: { begun: number; checks: number; changed: boolean };
}

async function diskOf(disk: string, sizeBytes = MIB): Promise<TestDisk> {
  const image = createMemoryImage(sizeBytes);
  await image.write(randomBytes(sizeBytes), 0);
  const guard = { begun: 0, checks: 0, changed: false };
  const source = {
    reader: image,
    name: `${disk}.img`,
    identity: disk,
    guard: {
      begin: async () => void guard.begun++,
      async check() {
        guard.checks++;
        if (guard.changed) throw new ReplicationError("image-changed", `${disk}.img changed while it was read`);
      },
    },
  };
  return { disk, source, image, guard };
}

interface Hooks {
  /** Called with each connection of a disk before it is used. */
  readonly onPair?: (disk: string, pair: LinkedPair, attempt: number) => void;
  readonly options?: Partial<SenderOptions>;
}

function machineOf(disks: readonly TestDisk[], { onPair, options }: Hooks = {}): MachineSender {
  const { lanes, pool, random, codecs } = kit.sending;
  return createMachineSender({
    disks,
    ...{ clock: hastyClock, random, log: { ...silentLogger, warn: warnOfCut } },
    createSender({ disk, source }, cut) {
      let attempt = 0;
      return createSender({
        ...{ source, disk, cut, instance: `instance-of-${disk}`, software: "test" },
        ...{ lanes, pool, random, codecs, clock: hastyClock, log: silentLogger },
        connect: () => {
          const pair = createLinkedPair({ clock: hastyClock });
          onPair?.(disk, pair, attempt++);
          kit.receiver.accept(pair.server);
          return Promise.resolve(pair.client);
        },
        ...options,
      });
    },
  });
}

async function pointsOf(disk: string): Promise<readonly Point[]> {
  if (!(await kit.store.disks()).includes(disk)) return [];
  return (await kit.store.points(disk)).points;
}

async function expectHeld({ disk, image }: TestDisk): Promise<void> {
  await kit.idle();
  const content = Buffer.alloc(image.sizeBytes);
  await image.read(content, 0);
  expect(kit.replica(disk).equals(content)).toBe(true);
}

test("every disk gets its point of one cut, with one time, again and again", async () => {
  const disks = [await diskOf("db.sys"), await diskOf("db.data", 3 * MIB), await diskOf("db.log", 70 * KIB)];
  const cuts: string[] = [];
  for (let round = 1; round <= 2; round++) {
    const report = await machineOf(disks).run();
    cuts.push(report.cut);
    expect(report.disks.map(({ disk, point, attempts }) => ({ disk, point, attempts }))).toEqual(
      disks.map(({ disk }) => ({ disk, point: round, attempts: 1 })),
    );
    const points = await Promise.all(disks.map(async ({ disk }) => (await pointsOf(disk)).at(-1)));
    const members = disks.map(({ disk }) => disk);
    expect(points.map((point) => point?.cut)).toEqual(disks.map(() => ({ id: report.cut, members })));
    expect(new Set(points.map((point) => point?.time)).size).toBe(1);
    for (const { disk } of disks) {
      expect((await kit.store.points(disk)).cuts.get(round)).toMatchObject({ complete: true, missing: [] });
    }
    for (const disk of disks) {
      await expectHeld(disk);
      expect(disk.guard.begun).toBe(round);
      await disk.image.write(randomBytes(5_000), 20_000);
    }
  }
  expect(new Set(cuts).size).toBe(2);
});

test("a disk whose replica was lost is copied anew, the others get their deltas, and the cut is complete (C-79)", async () => {
  const disks = [await diskOf("db.sys"), await diskOf("db.data"), await diskOf("db.log")];
  await machineOf(disks).run();
  expect(warned).toEqual([]);
  await kit.idle();
  rmSync(join(kit.folder, "store/disks/db.data"), { recursive: true });
  for (const { image } of disks) await image.write(randomBytes(5_000), 20_000);
  told.length = 0;
  const report = await machineOf(disks).run();
  // Sender and receiver say which one was copied whole; of the others only what changed travels.
  expect(told.filter(({ text }) => text === "disk created").map(({ disk }) => disk)).toEqual(["db.data"]);
  expect(warned).toEqual(["db.data"]);
  expect(report.disks.map(({ funnel }) => funnel.shippedBytes)).toEqual([12 * KIB, MIB, 12 * KIB]);
  expect(report.disks.map(({ disk, point, reason }) => ({ disk, point, reason }))).toEqual([
    { disk: "db.sys", point: 2, reason: "scan" },
    { disk: "db.data", point: 1, reason: "initial" },
    { disk: "db.log", point: 2, reason: "scan" },
  ]);
  for (const disk of disks) await expectHeld(disk);
  const { cuts } = await kit.store.points("db.sys");
  // What the lost disk had of the first cut is gone, and it is said so.
  expect(cuts.get(1)).toMatchObject({ complete: false, missing: ["db.data"] });
  expect(cuts.get(2)).toMatchObject({ complete: true, missing: [] });
});

test("disks that come and go: each its own copy, those that left keep their points (C-80)", async () => {
  const [system, data] = [await diskOf("db.sys"), await diskOf("db.data")];
  await machineOf([system]).run();
  const added = await machineOf([system, data]).run();
  expect(added.disks.map(({ point, reason }) => ({ point, reason }))).toEqual([
    { point: 2, reason: "scan" },
    { point: 1, reason: "initial" },
  ]);
  expect((await kit.store.points("db.sys")).cuts.get(2)).toMatchObject({ complete: true });
  await machineOf([data]).run();
  expect((await pointsOf("db.sys")).map(({ point }) => point)).toEqual([1, 2]);
  expect((await pointsOf("db.data")).map(({ cut }) => cut?.members)).toEqual([["db.sys", "db.data"], ["db.data"]]);
  // Something else under the name that left: no delta on what was there, unless the user says so.
  const again = await diskOf("db.sys");
  const other = { ...again, source: { ...again.source, identity: "another" } };
  await expect(machineOf([other, data]).run()).rejects.toMatchObject({ code: "another-image" });
  expect((await pointsOf("db.sys")).map(({ point }) => point)).toEqual([1, 2]);
  await expectHeld(system);
});

test("more disks than a receiver has memory for at a time", async () => {
  const disks = await Promise.all(
    Array.from({ length: 12 }, (_unused, index) => diskOf(`many.disk${index}`, 200 * KIB)),
  );
  // Waits are none by this clock: who finds no memory asks again until the others are done.
  const report = await machineOf(disks, { options: { attemptsMax: 100_000 } }).run();
  expect(report.disks.map(({ point }) => point)).toEqual(disks.map(() => 1));
  for (const disk of disks) await expectHeld(disk);
});

describe("none has a point", () => {
  test("when one image changes while others are still being read", async () => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data"), await diskOf("db.log")];
    const [sys, data, log] = disks;
    const guard = log?.source.guard;
    if (sys === undefined || data === undefined || log === undefined || guard === undefined)
      throw new Error("three disks");
    log.guard.changed = true;
    const check = guard.check.bind(guard);
    guard.check = async () => {
      while (sys.guard.checks + data.guard.checks < 2) await new Promise((resolve) => setImmediate(resolve));
      await check();
    };
    await expect(machineOf(disks).run()).rejects.toMatchObject({ code: "image-changed" });
    for (const { disk } of disks) expect(await pointsOf(disk)).toEqual([]);
    await kit.idle();
    // What was shipped is not sent again.
    log.guard.changed = false;
    const report = await machineOf(disks).run();
    expect(report.disks[0]?.funnel.shippedBytes).toBe(0);
    for (const disk of disks) await expectHeld(disk);
  });

  test("when one disk is refused", async () => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    await kit.send((await diskOf("other")).image, { disk: "db.data", instance: "other" });
    await kit.idle();
    await expect(machineOf(disks).run()).rejects.toMatchObject({ code: "another-image" });
    expect(await pointsOf("db.sys")).toEqual([]);
  });

  test("when it is aborted while one disk waits for the other", async () => {
    const stop = new AbortController();
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    const [, data] = disks;
    const source = data?.source.guard;
    if (data === undefined || source === undefined) throw new Error("a guard");
    const check = source.check.bind(source);
    source.check = async () => {
      while (kit.receiver.sessions > 1) await new Promise((resolve) => setImmediate(resolve));
      stop.abort();
      await check();
    };
    await expect(machineOf(disks).run(stop.signal)).rejects.toMatchObject({ code: "aborted" });
    for (const { disk } of disks) expect(await pointsOf(disk)).toEqual([]);
  });

  test("when a guard cannot begin", async () => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    const guard = disks[1]?.source.guard;
    if (guard !== undefined)
      guard.begin = () => Promise.reject(new ReplicationError("image-in-use", "somebody writes"));
    await expect(machineOf(disks).run()).rejects.toMatchObject({ code: "image-in-use" });
    expect(await kit.store.disks()).toEqual([]);
  });
});

test("an image may change as soon as it is shipped: the point is of the moment before", async () => {
  const disks = [await diskOf("db.sys"), await diskOf("db.data")];
  const [sys, data] = disks;
  if (sys === undefined || data === undefined) throw new Error("two disks");
  const before = Buffer.alloc(MIB);
  await sys.image.read(before, 0);
  const guard = data.source.guard;
  if (guard === undefined) throw new Error("a guard");
  const check = guard.check.bind(guard);
  guard.check = async () => {
    // By then the other disk is shipped, and its session over.
    while (sys.guard.checks === 0 || kit.receiver.sessions > 1) await new Promise((resolve) => setImmediate(resolve));
    await sys.image.write(randomBytes(9_000), 100_000);
    sys.guard.changed = true;
    await check();
  };
  const report = await machineOf(disks).run();
  expect(report.disks.map(({ point }) => point)).toEqual([1, 1]);
  await kit.idle();
  expect(kit.replica("db.sys").equals(before)).toBe(true);
  expect(sys.guard.checks).toBe(1);
});

describe("connections that break", () => {
  test.each(["db.sys", "db.data"])("%s: before and behind everything, and in between", async (broken) => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    const report = await machineOf(disks, {
      onPair(disk, pair, attempt) {
        if (disk === broken && attempt < 3) pair.toServer.cutAfter(attempt * 300_000 + 10);
      },
    }).run();
    expect(report.disks.map(({ point }) => point)).toEqual([1, 1]);
    for (const disk of disks) {
      await expectHeld(disk);
      expect(await pointsOf(disk.disk)).toHaveLength(1);
    }
  });

  test("a commit whose answer is lost makes one point", async () => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    let cut = false;
    const report = await machineOf(disks, {
      onPair(disk, pair) {
        if (disk !== "db.sys") return;
        const { server } = pair;
        const send = server.send.bind(server);
        server.send = (message, payload) => {
          if (message.type !== "durable" || cut) return send(message, payload);
          cut = true;
          server.destroy(new ReplicationError("connection-lost", "cut"));
          return false;
        };
      },
    }).run();
    expect(cut).toBe(true);
    expect(report.disks.map(({ point }) => point)).toEqual([1, 1]);
    for (const { disk } of disks) expect(await pointsOf(disk)).toHaveLength(1);
  });

  test("one disk cannot be committed any more: the failure says which has a point, and the store that the cut is incomplete", async () => {
    const disks = [await diskOf("db.sys"), await diskOf("db.data")];
    const sender = machineOf(disks, {
      options: { attemptsMax: 2 },
      onPair(disk, pair) {
        if (disk !== "db.data") return;
        const { client } = pair;
        const send = client.send.bind(client);
        client.send = (message, payload) => {
          if (message.type !== "commit") return send(message, payload);
          void (async () => {
            while ((await pointsOf("db.sys")).length === 0) await new Promise((resolve) => setImmediate(resolve));
            client.destroy(new ReplicationError("connection-lost", "no more"));
          })();
          return true;
        };
      },
    });
    await expect(sender.run()).rejects.toMatchObject({ code: "connection-lost", details: { committed: "db.sys" } });
    await kit.idle();
    expect((await kit.store.points("db.sys")).cuts.get(1)).toMatchObject({ complete: false, missing: ["db.data"] });
    // Another cut is complete.
    const report = await machineOf(disks).run();
    expect(report.disks.map(({ point }) => point)).toEqual([2, 1]);
    const { cuts } = await kit.store.points("db.sys");
    expect([cuts.get(1)?.complete, cuts.get(2)?.complete]).toEqual([false, true]);
  });
});

describe("what makes no sense", () => {
  test("no disks, too many, two of one name", async () => {
    expect(() => machineOf([])).toThrow(expect.objectContaining({ code: "usage" }));
    const one = await diskOf("db.sys", KIB);
    expect(() => machineOf([one, one])).toThrow(expect.objectContaining({ code: "usage" }));
    const many = Array.from({ length: 65 }, (_unused, index) => ({ ...one, disk: `db.disk${index}` }));
    expect(() => machineOf(many)).toThrow(expect.objectContaining({ code: "usage" }));
  });

  test.each([
    ["without the disk itself", ["other"]],
    ["with a path", ["disk", "../x"]],
    ["with one twice", ["disk", "disk"]],
  ])("a commit of a cut %s is refused", async (_name, members) => {
    const cut = { group: "g", members, time: 0, shipped: () => true, allShipped: () => Promise.resolve() };
    const image = createMemoryImage(MIB);
    await expect(kit.send(image, { cut, attemptsMax: 1 })).rejects.toMatchObject({ code: "protocol-violation" });
    expect(await pointsOf("disk")).toEqual([]);
  });
});
