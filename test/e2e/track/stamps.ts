/**
 * A machine of two disks that stamps everything it writes with a number, and looks for its stamps in the recovery points; the same in both tiers, with other numbers.
 *
 * A point of both disks is the machine at one moment when it has every write that was acknowledged before the newest write in it was sent, on whichever disk; and that
 * moment is the cut's when it has every write acknowledged before the cut began and none sent after it ended.
 */
import { join } from "node:path";
import { expect } from "vitest";
import { type Clock, systemClock } from "../../../src/base/clock.ts";
import { silentLogger } from "../../../src/base/logger.ts";
import type { BlockWriter } from "../../../src/image/block-device.ts";
import { createTrackedMachineSender, openTracked, type Tracked } from "../../../src/library/tracking.ts";
import { openNbdWriter } from "../../../src/nbd/client.ts";
import { parseNbdUri } from "../../../src/nbd/nbd-uri.ts";
import { openStore, type Store } from "../../../src/replica/store.ts";
import { createEngine } from "../../../src/replication/engine.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import type { Storage } from "../../../src/storage/seam.ts";
import { CUT_MILLIS_MAX } from "../../../src/track/tracked-image.ts";
import { loadCredentials } from "../../../src/transport/credentials.ts";
import { KIB, makeSparse, MIB } from "../content.ts";
import { type JsonLine, type Pki, type Receiver, type Scope, seededRandom, startReceiver, tempDir } from "../kit.ts";
import { Tracker, watchCuts } from "./kit.ts";

const diskNames = ["sys", "data"] as const;
/** A slot in each region of the journal, of which there are more than may be hot at a time: some writes wait for the journal, most do not. */
const regionBytes = 4 * MIB;
const slotsPerDisk = 320;
/** These are written to most of the time. */
const busySlots = 48;
const slotBytesMax = 32 * KIB;
const sectorBytes = 512;
/** Requests under way on each disk. */
const depth = 8;
/** Cuts that come to nothing, at most: one is given up when a disk is slow. */
const failuresMax = 20;

export interface StampCounts {
  cycles: number;
  /** Cuts without points: given up, or the tracker was stopped meanwhile. */
  failed: number;
  writes: number;
  /** Sectors looked at. */
  sectors: number;
  /** Writes that were under way during a cut, over all cuts. */
  underWay: number;
}

/** One write. Times count what this process saw: each write sent and each acknowledged is one. */
interface Write {
  readonly stamp: number;
  readonly sentAt: number;
  ackedAt: number;
}

/** A part of a disk that has one write under way at most. */
interface Slot {
  readonly disk: number;
  readonly number: number;
  readonly offset: number;
  readonly length: number;
  /** In the order in which they were sent. */
  readonly writes: Write[];
  busy: boolean;
}

type Writes = Pick<BlockWriter, "write" | "flush">;

interface Cut {
  /** Everything acknowledged before was there when the cut began. */
  readonly beganAt: number;
  /** Everything sent later came after it had ended. */
  endedAt: number;
  /** Lines of the tracker before: those of its points come next, if it came to anything. */
  readonly linesBefore: number;
}

/** Fills sectors with what says where they belong and which write they are of. */
function fillStamps(bytes: Buffer, slot: Slot, stamp: number): void {
  for (let at = 0; at < bytes.length; at += 16) {
    bytes.writeUInt32LE(stamp, at);
    bytes.writeUInt32LE(slot.disk * slotsPerDisk + slot.number, at + 4);
    bytes.writeUInt32LE(at, at + 8);
    bytes.writeUInt32LE(~stamp >>> 0, at + 12);
  }
}

class StampedMachine {
  readonly #random: () => number;
  readonly #slots: readonly (readonly Slot[])[];
  #now = 0;
  #stamps = 0;
  #stopping = false;
  #workers: readonly Promise<void>[] = [];

  constructor(seed: number) {
    this.#random = seededRandom(seed);
    this.#slots = diskNames.map((_name, disk) =>
      Array.from({ length: slotsPerDisk }, (_unused, number) => {
        const length = 4 * KIB * (1 + (this.#random() % (slotBytesMax / (4 * KIB))));
        const room = (regionBytes - length) / (4 * KIB);
        const offset = number * regionBytes + 4 * KIB * (this.#random() % room);
        return { disk, number, offset, length, writes: [], busy: false };
      }),
    );
  }

  get now(): number {
    return this.#now;
  }

  get writes(): number {
    return this.#stamps;
  }

  start(disks: readonly Writes[]): void {
    this.#workers = disks.flatMap((disk, nth) => Array.from({ length: depth }, () => this.#work(disk, nth)));
    // Looked at by `stop`.
    for (const worker of this.#workers) worker.catch(() => undefined);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#workers);
  }

  async #work(disk: Writes, nth: number): Promise<void> {
    const bytes = Buffer.alloc(slotBytesMax);
    while (!this.#stopping) {
      if (this.#random() % 64 === 0) {
        await disk.flush();
        continue;
      }
      const slot = this.#freeSlot(nth);
      slot.busy = true;
      const write: Write = { stamp: ++this.#stamps, sentAt: ++this.#now, ackedAt: Number.POSITIVE_INFINITY };
      slot.writes.push(write);
      const content = bytes.subarray(0, slot.length);
      fillStamps(content, slot, write.stamp);
      await disk.write(content, slot.offset);
      write.ackedAt = ++this.#now;
      slot.busy = false;
    }
  }

  #freeSlot(disk: number): Slot {
    for (;;) {
      const number = this.#random() % (this.#random() % 8 === 0 ? slotsPerDisk : busySlots);
      const slot = this.#slots[disk]?.[number];
      if (slot !== undefined && !slot.busy) return slot;
    }
  }

  /** Writes that were sent before the cut had ended, and not acknowledged when it began. */
  underWay({ beganAt, endedAt }: Cut): number {
    return this.#all().reduce(
      (sum, { writes }) => sum + writes.filter(({ sentAt, ackedAt }) => sentAt < endedAt && ackedAt > beganAt).length,
      0,
    );
  }

  #all(): readonly Slot[] {
    return this.#slots.flat();
  }

  /** Both disks at the points of a cut are the machine at one moment of it. Returns the number of sectors looked at. */
  async expectMoment(store: Store, cut: Cut, points: readonly number[]): Promise<number> {
    const readers = await Promise.all(
      diskNames.map((name, disk) => store.openPoint(`pair.${name}`, points[disk] ?? 0)),
    );
    let sectors = 0;
    const found: { readonly slot: Slot; readonly oldest: number; readonly newest: number }[] = [];
    for (const slot of this.#all()) {
      const bytes = Buffer.alloc(slot.length);
      await readers[slot.disk]?.read(bytes, slot.offset);
      const stamps = stampsOf(bytes, slot);
      sectors += stamps.length;
      found.push({ slot, oldest: Math.min(...stamps), newest: Math.max(...stamps) });
    }
    for (const reader of readers) await reader.close();
    const newestSentAt = Math.max(...found.map(({ slot, newest }) => sentAtOf(slot, newest)));
    for (const { slot, oldest, newest } of found) {
      const where = `points ${points.join(" and ")}, ${String(diskNames[slot.disk])}, slot ${String(slot.number)}`;
      const due = ackedBefore(slot, cut.beganAt);
      if (oldest < due)
        throw new Error(
          `${where}: write ${String(due)} was acknowledged before the cut, and ${String(oldest)} is there`,
        );
      if (sentAtOf(slot, newest) > cut.endedAt)
        throw new Error(`${where}: write ${String(newest)} was sent after the cut, and is there`);
      const before = ackedBefore(slot, newestSentAt);
      if (oldest < before)
        throw new Error(
          `${where}: write ${String(before)} was acknowledged before another that is there was sent, and ${String(oldest)} is there`,
        );
    }
    return sectors;
  }
}

/** Of each sector; 0: it was never written. Throws for anything that was not written there. */
function stampsOf(bytes: Buffer, slot: Slot): readonly number[] {
  const stamps: number[] = [];
  const expected = Buffer.alloc(bytes.length);
  let filled = -1;
  for (let at = 0; at < bytes.length; at += sectorBytes) {
    const stamp = bytes.readUInt32LE(at);
    if (stamp !== filled) {
      if (stamp === 0) expected.fill(0);
      else fillStamps(expected, slot, stamp);
      filled = stamp;
    }
    const same = bytes.compare(expected, at, at + sectorBytes, at, at + sectorBytes) === 0;
    if (!same || (stamp > 0 && !slot.writes.some((write) => write.stamp === stamp)))
      throw new Error(`${String(diskNames[slot.disk])}, slot ${String(slot.number)}: nobody wrote what is there`);
    stamps.push(stamp);
  }
  return stamps;
}

function sentAtOf(slot: Slot, stamp: number): number {
  return slot.writes.find((write) => write.stamp === stamp)?.sentAt ?? 0;
}

/** Stamp of the last write acknowledged before; 0: none. */
function ackedBefore(slot: Slot, time: number): number {
  return slot.writes.findLast(({ ackedAt }) => ackedAt < time)?.stamp ?? 0;
}

interface StampOptions {
  readonly cycles: number;
  readonly seed: number;
}

/** Runs the machine on two exports of `replicate track` until so many cycles have made points, and judges all of them. */
export async function stampTracker(scope: Scope, pki: Pki, options: StampOptions): Promise<Readonly<StampCounts>> {
  const { dir, imageOf, receiver } = await prepare(scope, pki, options);
  const machine = new StampedMachine(options.seed);
  const cuts: Cut[] = [];
  const running: { tracker?: Tracker } = {};
  const aroundCuts = await watchCuts(scope, dir, {
    async freeze() {
      const { tracker } = running;
      await tracker?.heard();
      const linesBefore = tracker?.done.length ?? 0;
      // Something is wrong; who waits for cycles hears what the tracker said.
      if (cuts.length > failuresMax + linesBefore) await tracker?.child.kill();
      cuts.push({ beganAt: machine.now, endedAt: Number.POSITIVE_INFINITY, linesBefore });
    },
    thaw() {
      const cut = cuts.at(-1);
      if (cut !== undefined) cut.endedAt = machine.now;
    },
  });
  const tracker = await Tracker.start(scope, {
    image: "pair",
    disks: diskNames.map((name) => ({ name, image: imageOf(name) })),
    socket: join(dir, "pair.sock"),
    ...{ to: `127.0.0.1:${String(receiver.port)}`, tls: pki.send },
    args: ["--every", "0", "--codec", "none", ...aroundCuts],
  });
  running.tracker = tracker;
  const disks = await Promise.all(tracker.uris.map((uri) => openNbdWriter({ address: parseNbdUri(uri) })));
  machine.start(disks);
  await tracker.nextDone(options.cycles * diskNames.length);
  await machine.stop();
  for (const disk of disks) await disk.close();
  // The second begins when nobody writes, and has everything.
  await tracker.nextDone(2 * diskNames.length);
  expect(await tracker.child.stop()).toBe(0);
  return await judge(scope, { receiver, machine, cuts, lines: tracker.done });
}

/**
 * The same in this process, on devices that take their time: what was written reaches the image some turns of the event loop later, so that a cut always finds writes under
 * way, and reads their blocks before they end if it does not wait for them.
 */
export async function stampSlowDevices(scope: Scope, pki: Pki, options: StampOptions): Promise<Readonly<StampCounts>> {
  const { imageOf, receiver } = await prepare(scope, pki, options);
  const machine = new StampedMachine(options.seed);
  const storage = slowly(createNodeStorage(), diskNames.map(imageOf), seededRandom(options.seed + 1));
  const engine = await createEngine({ lanes: 0, storage, clock: patientClock });
  scope.onTestFinished(() => engine.close());
  const disks: { readonly name: string; readonly tracked: Tracked }[] = [];
  for (const name of diskNames) disks.push({ name, tracked: await openTracked(imageOf(name), { engine }) });
  const cuts: Cut[] = [];
  const lines: JsonLine[] = [];
  const sender = createTrackedMachineSender({
    ...{ engine, machine: "pair", disks, codec: "stored", attemptsMax: 1 },
    receiver: { host: "127.0.0.1", port: receiver.port, credentials: await loadCredentials(pki.send) },
    quiescing: {
      async freeze() {
        cuts.push({ beganAt: machine.now, endedAt: Number.POSITIVE_INFINITY, linesBefore: lines.length });
      },
      async thaw() {
        const cut = cuts.at(-1);
        if (cut !== undefined) cut.endedAt = machine.now;
      },
    },
  });
  machine.start(disks.map(({ tracked }) => tracked.image));
  for (let cycle = 0; cycle <= options.cycles; cycle++) {
    if (cycle === options.cycles) await machine.stop();
    for (const { disk, point } of await sender.cycle()) lines.push({ event: "done", disk, point });
  }
  for (const { tracked } of disks) await tracked.close();
  return await judge(scope, { receiver, machine, cuts, lines });
}

/** On which no cut is given up because a write takes long. */
const patientClock: Clock = {
  ...systemClock,
  sleep: (millis, signal) => systemClock.sleep(millis === CUT_MILLIS_MAX ? 1_000 * millis : millis, signal),
};

/** For which a write may take: longer than it takes from a cut to the first read of it. */
const turnsMax = 20_000;

/** What is written to these files reaches them some turns later. */
function slowly(storage: Storage, paths: readonly string[], random: () => number): Storage {
  return {
    ...storage,
    async open(path, options) {
      const file = await storage.open(path, options);
      if (!paths.includes(path)) return file;
      const write = async (source: Uint8Array, offset: number): Promise<void> => {
        const turns = random() % 32 === 0 ? turnsMax : random() % 8;
        for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
        await file.write(source, offset);
      };
      return new Proxy(file, {
        get(target, name) {
          const value: unknown = Reflect.get(target, name, target);
          if (name === "write") return write;
          return typeof value === "function" ? value.bind(target) : value;
        },
      });
    },
  };
}

async function prepare(scope: Scope, pki: Pki, { cycles }: StampOptions) {
  const dir = tempDir(scope);
  const imageOf = (name: string): string => join(dir, `${name}.raw`);
  for (const name of diskNames) makeSparse(imageOf(name), slotsPerDisk * regionBytes);
  const args = ["--keep", `last=${String(cycles + 100)}`];
  const receiver = await startReceiver(scope, { storeDir: join(dir, "store"), tls: pki.recv, args });
  return { dir, imageOf, receiver };
}

/** Every cut that came to points is a moment of the machine. */
async function judge(
  scope: Scope,
  run: {
    readonly receiver: Receiver;
    readonly machine: StampedMachine;
    readonly cuts: readonly Cut[];
    readonly lines: readonly JsonLine[];
  },
): Promise<StampCounts> {
  const { receiver, machine, cuts, lines } = run;
  expect(await receiver.stop()).toBe(0);
  const engine = await createEngine({ lanes: 0 });
  scope.onTestFinished(() => engine.close());
  const { storage, clock, random, host } = engine;
  const store = await openStore({ path: receiver.storeDir, storage, clock, random, log: silentLogger, host });
  const counts: StampCounts = { cycles: 0, failed: 0, writes: machine.writes, sectors: 0, underWay: 0 };
  for (const [nth, cut] of cuts.entries()) {
    const told = lines.slice(cut.linesBefore, cuts[nth + 1]?.linesBefore);
    const points = diskNames.flatMap((name) =>
      told.filter(({ disk }) => disk === `pair.${name}`).map(({ point }) => Number(point)),
    );
    if (points.length < diskNames.length) {
      counts.failed++;
      continue;
    }
    counts.cycles++;
    counts.underWay += machine.underWay(cut);
    counts.sectors += await machine.expectMoment(store, cut, points);
  }
  await store.close();
  return counts;
}
