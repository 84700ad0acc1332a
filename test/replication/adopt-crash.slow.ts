/** A crash at every operation of an adoption, and of a delta after it; each sync of it bites. */
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import { powerLosses } from "../replica/power-losses.ts";
import { apply, commitFacts, createChance, expectTableTrue, rebuild } from "../replica/simulated-store.ts";
import {
  adopt,
  bytesOf,
  content,
  disk,
  expectPointIs,
  imagePath,
  movedPath,
  openStoreOn,
  peekImage,
  second,
  shape,
  writeImage,
  writerOf,
} from "./adopt-kit.ts";

type Fate = (operation: Operation) => Fault | undefined;

interface Case {
  readonly move: boolean;
  /** The image was on disk, with its name, before. Else only an adoption that was done makes it so. */
  readonly durable: boolean;
}

const cases: readonly Case[] = [
  { move: false, durable: true },
  { move: true, durable: true },
  { move: false, durable: false },
  { move: true, durable: false },
];

/** The store and the image; what makes them is no part of what is crashed. */
async function prepare({ durable }: Case): Promise<SimulatedDisk> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await openStoreOn(process);
  await process.syncDirectory("/");
  await writeImage(process, { durable });
  await process.syncDirectory("/");
  process.kill();
  return machine;
}

function whole(machine: SimulatedDisk, path: string): boolean {
  return peekImage(machine, path)?.equals(bytesOf(content, shape)) ?? false;
}

/** After whatever: either there is no disk and the image is as it was, or the disk has the image, whole. Returns whether there is one. */
async function checkState(machine: SimulatedDisk, { move, durable }: Case): Promise<boolean> {
  const storage = machine.start();
  const store = await openStoreOn(storage);
  const summary = await store.summary(disk);
  const stat = await storage.stat(imagePath);
  if (summary === undefined) {
    if (durable) {
      expect(whole(machine, imagePath)).toBe(true);
      expect(stat?.mode).toBe(0o644);
    }
    return false;
  }
  expect(summary).toMatchObject({ state: "idle", trouble: undefined, newest: { point: 1, source: "adopted" } });
  expect(summary.record.image).toBe(move ? undefined : imagePath);
  const replica = move ? movedPath : imagePath;
  expect(whole(machine, replica)).toBe(true);
  if (stat !== undefined && move) expect(stat).toMatchObject({ inode: (await storage.stat(replica))?.inode, links: 2 });
  await expectPointIs(store, 1, content);
  const writer = await writerOf(store);
  expect(writer.doubt).toBeUndefined();
  expectTableTrue(writer, storage.lanes);
  await writer.release();
  storage.kill();
  return true;
}

/** Adopts with a kill before operation `at`; power is lost unless `loss` is "killed". */
async function crashAt(what: Case, at: number, loss: string, also: Fate = () => undefined): Promise<boolean> {
  const machine = await prepare(what);
  const fault: Fate = (operation) => (operation.index === at ? { kind: "kill" } : also(operation));
  const process = machine.start({ fault });
  let done = false;
  try {
    await adopt(process, what);
    done = true;
  } catch (error) {
    if (!process.dead) throw error;
  }
  process.kill();
  const survives = powerLosses[loss];
  if (survives !== undefined) machine.losePower(survives(at));
  const there = await checkState(machine, what);
  if (done) expect(there).toBe(true);
  if (done && what.move) expect(machine.peek(imagePath)).toBeUndefined();
  // What power took of an image that was not on disk yet is not ours.
  if (!there && !what.durable && !whole(machine, imagePath)) return done;
  if (at % 3 === 0 && !there) {
    // A sender is first: it gets a disk of its own, and the image stays.
    const sender = machine.start();
    await (await openStoreOn(sender)).create(disk, { geometry: shape, owner: "owner", sectorBytes: 512 });
    expect(whole(machine, imagePath)).toBe(true);
    expect(await sender.stat(imagePath)).toMatchObject({ links: 1, mode: 0o644 });
    machine.losePower(() => false);
    const made = await (await openStoreOn(machine.start())).summary(disk);
    expect(made).toMatchObject({ state: "idle", trouble: undefined, newest: undefined });
    return done;
  }
  await adopt(machine.start(), what);
  // What a later run built on the remains of a killed one must be there to stay.
  machine.losePower(() => false);
  expect(await checkState(machine, what)).toBe(true);
  const storage = machine.start();
  expect(await storage.stat(imagePath)).toEqual(
    what.move ? undefined : expect.objectContaining({ mode: 0o400, links: 1 }),
  );
  expect(await storage.stat(movedPath)).toEqual(
    what.move ? expect.objectContaining({ mode: 0o400, links: 1 }) : undefined,
  );
  expect(machine.files().filter((path) => path.endsWith(".new"))).toEqual([]);
  return done;
}

async function operationsOf(what: Case): Promise<readonly Operation[]> {
  const machine = await prepare(what);
  const operations: Operation[] = [];
  const fault: Fate = (operation) => {
    operations.push(operation);
    return undefined;
  };
  await adopt(machine.start({ fault }), what);
  return operations;
}

const losses = ["killed", ...Object.keys(powerLosses)];
const nameOf = ({ move, durable }: Case): string =>
  `${move ? "moved" : "where it lies"}, ${durable ? "an image on disk" : "an image not synced yet"}`;

describe("a crash at every operation of an adoption", () => {
  for (const what of cases) {
    test.each(losses)(`${nameOf(what)}; %s`, async (loss) => {
      const count = (await operationsOf(what)).length;
      expect(count).toBeGreaterThan(20);
      for (let at = 0; at <= count; at++) {
        const done = await crashAt(what, at, loss).catch((error: unknown) => {
          throw new Error(`crash at operation ${at}`, { cause: error });
        });
        expect(done).toBe(at === count);
      }
    });
  }
});

describe("a fault at every operation of an adoption", () => {
  for (const what of cases.filter(({ durable }) => durable)) {
    test.each(["EIO", "ENOSPC"])(`${nameOf(what)}; %s`, async (errno) => {
      const count = (await operationsOf(what)).length;
      for (let at = 0; at < count; at++) {
        const machine = await prepare(what);
        const fault: Fate = ({ index }) => (index === at ? { kind: "errno", errno } : undefined);
        await adopt(machine.start({ fault }), what).then(
          () => expect.unreachable(`operation ${at} failed, and the adoption did not`),
          (error: unknown) => expect(error).toBeInstanceOf(ReplicationError),
        );
        await checkState(machine, what);
        await adopt(machine.start(), what);
        machine.losePower(() => false);
        expect(await checkState(machine, what)).toBe(true);
      }
    });
  }
});

const edges: readonly (readonly [name: string, kind: Operation["kind"], path: RegExp, which: Case])[] = [
  ["adopt.new and of what lies beside it", "sync-directory", /\/disks\/web$/, { move: false, durable: true }],
  ["the image", "sync", /\/images\/web\.raw$/, { move: false, durable: false }],
  ["the directory that names it", "sync-directory", /^\/images$/, { move: false, durable: false }],
  ["the table's entries", "sync", /\/digests$/, { move: false, durable: true }],
  ["the table's page digests", "sync", /\/pages$/, { move: false, durable: true }],
  ["point 1 before its rename", "sync", /\/0000000001\.json\.new$/, { move: false, durable: true }],
  ["the directory of points", "sync-directory", /\/points$/, { move: false, durable: true }],
  ["disk.json before its rename", "sync", /\/disk\.json\.new$/, { move: false, durable: true }],
  ["the directory that named it", "sync-directory", /^\/images$/, { move: true, durable: true }],
];

test.each(edges)("without the sync of %s something is lost", async (_name, kind, path, what) => {
  const isEdge = (operation: Operation): boolean => operation.kind === kind && path.test(operation.path);
  const operations = await operationsOf(what);
  const first = operations.findIndex(isEdge);
  expect(first).toBeGreaterThanOrEqual(0);
  const lost: string[] = [];
  for (let at = first + 1; at <= operations.length && lost.length === 0; at++) {
    for (const loss of Object.keys(powerLosses)) {
      await crashAt(what, at, loss, (operation) => (isEdge(operation) ? { kind: "skip" } : undefined)).catch(
        (error: unknown) => lost.push(`${loss}, crash at ${at}: ${String(error)}`),
      );
    }
  }
  expect(lost).not.toEqual([]);
});

describe("a crash in a delta of an adopted disk", () => {
  async function delta(process: SimulatedProcess): Promise<void> {
    const writer = await writerOf(await openStoreOn(process));
    if (writer.doubt !== undefined) await rebuild(writer, process.lanes);
    expectTableTrue(writer, process.lanes);
    await writer.begin();
    await apply(writer, process.lanes, second);
    await writer.commit(commitFacts("c2"));
    await writer.release();
  }

  test.each([false, true])("at any operation, killed or without power; moved: %s", async (move) => {
    const counting = await prepare({ move, durable: true });
    await adopt(counting.start(), { move });
    const counter = counting.start();
    await delta(counter);
    for (let at = 0; at < counter.operations; at++) {
      const machine = await prepare({ move, durable: true });
      await adopt(machine.start(), { move });
      const process = machine.start({ fault: ({ index }) => (index === at ? { kind: "kill" } : undefined) });
      await delta(process).catch((error: unknown) => {
        if (!process.dead) throw error;
      });
      const chance = createChance(at);
      if (at % 3 > 0) machine.losePower(() => chance() < 0.5);
      else process.kill();
      const next = machine.start();
      await expectPointIs(await openStoreOn(next), 1, content);
      await delta(next);
      const store = await openStoreOn(next);
      await expectPointIs(store, 1, content);
      await expectPointIs(store, (await store.summary(disk))?.newest?.point ?? 0, second);
    }
  });
});
