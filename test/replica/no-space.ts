/** The file system is full, at any write and at any byte: the newest point stays and can be read, and with room again everything goes on. The same in both tiers, with other steps. */
import { expect } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { openStore, type Store } from "../../src/replica/store.ts";
import type { LaneStorage, Storage, StorageFile } from "../../src/storage/seam.ts";
import {
  createSimulatedDisk,
  type Fault,
  type Operation,
  type SimulatedDisk,
} from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { applyBytes, readPoint } from "./part-writes.ts";
import { methodsOf } from "./point-kit.ts";
import {
  blockBytes,
  commitFacts,
  createChance,
  createTestClock,
  createTestRandom,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  rebuild,
  storePath,
} from "./simulated-store.ts";

const sizeBytes = 5 * blockBytes + 512;
const grownBytes = 7 * blockBytes + 512;

/** Content of points 1 to 4; the third delta grows the disk. */
const contents = makeContents();

function makeContents(): readonly Buffer[] {
  const first = Buffer.alloc(sizeBytes);
  first.set(randomBytes(2 * blockBytes));
  first.fill("text\n", 3 * blockBytes);
  const second = Buffer.from(first);
  second.set(randomBytes(5000), 6000);
  const third = Buffer.concat([second, Buffer.alloc(grownBytes - sizeBytes)]);
  third.set(randomBytes(5000), 100);
  third.fill(0, blockBytes, 2 * blockBytes);
  third.set(randomBytes(1000), 2 * blockBytes);
  third.fill("grown\n", sizeBytes);
  const fourth = Buffer.from(third);
  // Over what the third has changed: of a list of both logs half is superfluous.
  fourth.set(randomBytes(5000), 100);
  fourth.fill("again\n", blockBytes, 2 * blockBytes);
  fourth.fill("grown, changed\n", sizeBytes);
  return [first, second, third, fourth];
}

export function contentOf(point: number): Buffer {
  return contents[point - 1] ?? Buffer.alloc(0);
}

/** A sender's cycle: the delta to `point`, from whatever an earlier try left. */
export async function makePoint(storage: Storage, store: Store, point: number): Promise<void> {
  const writer = await openWriter(store);
  try {
    // Made by an earlier try.
    const newest = writer.newest?.point ?? 0;
    if (newest >= point) return;
    expect(newest).toBe(point - 1);
    if (writer.doubt !== undefined) await rebuild(writer, storage.lanes);
    const content = contentOf(point);
    await writer.begin();
    await writer.grow(content.length);
    await applyBytes(writer, storage.lanes, content);
    await writer.commit(commitFacts(`c${point}`));
  } finally {
    await writer.release();
  }
}

export type Format = "raw" | "vhdx";

/** Two points, before anything is short. */
export async function makeDisk(machine: SimulatedDisk, format: Format = "raw"): Promise<void> {
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, {
    geometry: geometry(sizeBytes),
    owner: "sender",
    sectorBytes: 512,
    replica: { format },
  });
  for (const point of [1, 2]) await makePoint(process, store, point);
  process.kill();
}

/** A delta that grows the disk, its commit, another one, the removal of a point between two that stay, and the joining of the logs that left. */
async function live(storage: Storage, store: Store): Promise<void> {
  for (const point of [3, 4]) await makePoint(storage, store, point);
  for (const point of [1, 2]) await store.hold(diskName, point, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  for (const point of [1, 2]) await store.release(diskName, point, "test");
  await store.compact(diskName);
}

/** Points 1, 2 and the newest read as they did, for who comes new. Returns the newest. */
async function expectPoints(storage: Storage): Promise<number> {
  const store = await openStore({
    ...{ path: storePath, storage, clock: createTestClock(storage), random: createTestRandom(3) },
    ...{ log: silentLogger, host: "receiver1" },
  });
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  const found = points.map(({ point }) => point);
  expect(found.slice(0, 2)).toEqual([1, 2]);
  for (const point of found) {
    const bytes = await readPoint(store, point);
    if (!bytes.equals(contentOf(point))) throw new Error(`point ${point} is wrong`);
  }
  expect((await readPoint(store, "newest")).equals(contentOf(found.at(-1) ?? 0))).toBe(true);
  return found.at(-1) ?? 0;
}

interface Crisis {
  readonly machine: SimulatedDisk;
  readonly storage: Storage;
  readonly makeRoom: () => void;
}

/** Lives until it is full, looks, makes room and lives on; `killed`: after a loss of power with this seed. True: room ran out. */
async function outlive({ machine, storage, makeRoom }: Crisis, killed: number | undefined): Promise<boolean> {
  let failure: unknown;
  let store: Store | undefined;
  try {
    store = await openTestStore(storage);
    await live(storage, store);
  } catch (error) {
    failure = error;
  }
  if (failure !== undefined) {
    expect(failure).toBeInstanceOf(ReplicationError);
    expect(failure).toMatchObject({ code: "no-space" });
    expect(await expectPoints(storage)).toBeGreaterThanOrEqual(2);
    makeRoom();
    if (killed !== undefined) {
      // Of what the replica was given some is there, whether or not the log that protects it is.
      const chance = createChance(killed);
      machine.losePower(() => chance() < 0.5);
      const process = machine.start();
      await expectPoints(process);
      await live(process, await openTestStore(process));
    } else {
      await live(storage, store ?? (await openTestStore(storage)));
    }
  }
  machine.losePower(() => false);
  const process = machine.start();
  expect(await expectPoints(process)).toBe(4);
  const left = (await (await openTestStore(process)).points(diskName)).points.map(({ point }) => point);
  expect(left).toEqual([1, 2, 4]);
  // Who writes next clears up. Of point 2 one log is left, which both were joined to; of failed attempts nothing.
  await (await openWriter(await openTestStore(process))).release();
  const logs = ((await process.list(`${storePath}/disks/${diskName}/points`)) ?? []).filter(
    (name) => !/\.(json|lock)$/.test(name),
  );
  expect(logs).toEqual(["0000000001.undo", expect.stringMatching(/^0000000002\.\d+\.undo$/)]);
  expect(await expectPoints(process)).toBe(4);
  return failure !== undefined;
}

/** An empty file takes no room. `inPlace`: nor does what is overwritten, of which a delta here has little else. */
export function takesRoom({ kind, path }: Operation, inPlace = false): boolean {
  if (inPlace && path.includes("/replica.")) return false;
  if (kind === "create") return !path.endsWith(".lock");
  return ["write", "sync", "punch", "rename", "link", "make-directory"].includes(kind);
}

/** Full from each `step`th operation on, until room is made; `killed`: and power is lost. */
export async function fullFromOperations(format: Format, killed: boolean, step: number): Promise<void> {
  let tried = 0;
  let full = 0;
  for (let at = 0, ended = false; !ended; at += step) {
    const machine = createSimulatedDisk();
    await makeDisk(machine, format);
    let room = true;
    ended = true;
    const fault = (operation: Operation): Fault | undefined => {
      if (operation.index === at) {
        room = false;
        ended = false;
      }
      return !room && takesRoom(operation, killed) ? { kind: "errno", errno: "ENOSPC" } : undefined;
    };
    const makeRoom = (): void => {
      room = true;
    };
    const crisis = { machine, storage: machine.start({ fault }), makeRoom };
    full += Number(
      await outlive(crisis, killed ? at : undefined).catch((error: unknown) => {
        throw new Error(`full from operation ${at} on`, { cause: error });
      }),
    );
    tried++;
  }
  // Where room ends behind the last thing that needs any, nobody notices.
  expect(tried).toBeGreaterThan(Math.max(25, 150 / step));
  expect(full).toBeGreaterThan(tried / 2);
}

/** Room for so many bytes: every write takes what it writes, as where nothing is overwritten in place. */
class Room {
  left: number;
  /** Bytes of each write, in order. */
  readonly writes: number[] = [];
  #paths = new Map<number, string>();

  constructor(bytes: number) {
    this.left = bytes;
  }

  over(storage: Storage): Storage {
    const { lanes } = storage;
    const limited: LaneStorage = {
      ...lanes,
      write: (fd, source, offset) => {
        const count = this.#take(source.length);
        if (count > 0) lanes.write(fd, source.subarray(0, count), offset);
        this.#check(count, source.length, this.#paths.get(fd));
      },
    };
    return {
      ...methodsOf(storage),
      lanes: limited,
      open: async (path, options) => this.#file(await storage.open(path, options)),
    };
  }

  #file(file: StorageFile): StorageFile {
    this.#paths.set(file.fd, file.path);
    return {
      path: file.path,
      fd: file.fd,
      read: (...args) => file.read(...args),
      write: async (source, offset) => {
        const count = this.#take(source.length);
        if (count > 0) await file.write(source.subarray(0, count), offset);
        this.#check(count, source.length, file.path);
      },
      truncate: (...args) => file.truncate(...args),
      nextData: (...args) => file.nextData(...args),
      datasync: () => file.datasync(),
      stat: () => file.stat(),
      close: () => file.close(),
    };
  }

  #take(bytes: number): number {
    this.writes.push(bytes);
    const count = Math.min(bytes, this.left);
    this.left -= count;
    return count;
  }

  /** What there was room for has been written. */
  #check(count: number, wanted: number, path: string | undefined): void {
    if (count < wanted) throw Object.assign(new Error(`ENOSPC: ${path ?? "?"}`), { code: "ENOSPC" });
  }
}

/**
 * Full when so many bytes were written: two deltas, their commits, a removal and a joining. `chosen` gets the length of each write that all of it needs; at odd
 * counts power is lost as well. Returns how many were tried.
 */
export async function fullAtBytes(
  format: Format,
  chosen: (writes: readonly number[]) => Iterable<number>,
): Promise<number> {
  const whole = new Room(2 ** 40);
  const machine = createSimulatedDisk();
  await makeDisk(machine, format);
  await outlive({ machine, storage: whole.over(machine.start()), makeRoom: () => undefined }, undefined);
  const needed = 2 ** 40 - whole.left;
  expect(needed).toBeGreaterThan(3 * blockBytes);
  let tried = 0;
  for (const bytes of chosen(whole.writes)) {
    const small = createSimulatedDisk();
    await makeDisk(small, format);
    const room = new Room(bytes);
    const makeRoom = (): void => {
      room.left = 2 ** 40;
    };
    const crisis = { machine: small, storage: room.over(small.start()), makeRoom };
    const full = await outlive(crisis, bytes % 2 === 1 ? bytes : undefined).catch((error: unknown) => {
      throw new Error(`room for ${bytes} bytes`, { cause: error });
    });
    expect(full || room.left > 0 || needed - bytes < blockBytes).toBe(true);
    tried++;
  }
  return tried;
}
