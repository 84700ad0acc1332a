/** C-71: what joining undo logs needs of the file system: room for the joined log, at no moment more; and an interrupted one begins anew. */
import { basename, join } from "node:path/posix";
import { beforeEach, expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import type { Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { applyBytes, partBytes, readPoint, shaOf } from "./part-writes.ts";
import { Room } from "./room.ts";
import {
  blockBytes,
  commitFacts,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";

const sizeBytes = 400 * blockBytes;
const pointsDirectory = join(storePath, "disks", diskName, "points");

let machine: SimulatedDisk;
let hashes: Map<number, string>;

/** 25 points of 250 parts each, of which five are left, with lists of five logs: joined they are a few batches each. */
beforeEach(async () => {
  machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512 });
  const content = randomBytes(sizeBytes);
  hashes = new Map();
  const writer = await openWriter(store);
  for (let cycle = 1; cycle <= 25; cycle++) {
    // Few places, so that a list holds most of them several times.
    for (let change = 0; change < 250; change++) {
      const part = randomBytes(2).readUInt16LE() % 600;
      content.set(randomBytes(100), part * 2 * partBytes);
    }
    await writer.begin();
    await applyBytes(writer, process.lanes, content);
    const { point } = await writer.commit(commitFacts(`c${cycle}`));
    hashes.set(point, shaOf(content));
  }
  await writer.release();
  for (let point = 5; point <= 20; point += 5) await store.hold(diskName, point, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  expect((await store.points(diskName)).points.map(({ point }) => point)).toEqual([5, 10, 15, 20, 25]);
  await store.close();
});

/** A joined log: only these have a second number in their names. */
const joinedName = /^\d{10}\.\d+\.undo$/;

interface Joining {
  readonly name: string;
  /** Bytes of all files when it was made, and the most there were until the next one was. */
  readonly before: number;
  most: number;
  written: number;
}

interface Watched {
  readonly room: Room;
  readonly joinings: readonly Joining[];
  readonly process: SimulatedProcess;
  readonly store: Store;
}

/** A process of its own that joins logs. `onWrite`: before each write to a log it makes. */
async function watched(onWrite: (joining: Joining) => "kill" | undefined = () => undefined): Promise<Watched> {
  const room = new Room(machine);
  const joinings: Joining[] = [];
  const fault = (operation: Operation): { readonly kind: "kill" } | undefined => {
    const last = joinings.at(-1);
    room.before(operation);
    if (last !== undefined) last.most = Math.max(last.most, room.bytes);
    const name = basename(operation.path);
    if (!joinedName.test(name)) return undefined;
    if (name !== last?.name && operation.kind === "create") {
      joinings.push({ name, before: room.bytes, most: room.bytes, written: 0 });
    }
    const joining = joinings.at(-1);
    if (operation.kind !== "write" || joining?.name !== name) return undefined;
    if (onWrite(joining) === "kill") return { kind: "kill" };
    joining.written += operation.bytes?.length ?? 0;
    return undefined;
  };
  const process = machine.start({ fault });
  return { room, joinings, process, store: await openTestStore(process) };
}

/** The records of points: one of them is written anew beside the one it replaces. */
function recordBytesMax(): number {
  const records = machine.files().filter((path) => path.startsWith(pointsDirectory) && path.endsWith(".json"));
  return Math.max(...records.map((path) => machine.peek(path)?.length ?? 0));
}

async function expectPoints(store: Store): Promise<void> {
  const { points, unreadable } = await store.points(diskName);
  expect(unreadable).toEqual([]);
  expect(points).toHaveLength(5);
  for (const { point } of points)
    expect(shaOf(await readPoint(store, point)), `point ${point}`).toBe(hashes.get(point));
}

test("at no moment more than the log that is made, and the record that names it", async () => {
  const { room, joinings, store } = await watched();
  const { bytes: before } = room;
  const records = recordBytesMax();
  const joined = await store.compact(diskName);
  room.settle();
  expect(joined.map(({ point }) => point)).toEqual([5, 10, 15, 20]);
  expect(joinings).toHaveLength(joined.length);
  for (const [index, { bytesBefore, bytesAfter }] of joined.entries()) {
    const { before: began = 0, most = 0 } = joinings[index] ?? {};
    expect(bytesAfter).toBeLessThan(bytesBefore * 0.7);
    // It is there, whole, beside those it replaces; else nothing was measured.
    expect(most - began).toBeGreaterThanOrEqual(bytesAfter);
    expect(most - began).toBeLessThanOrEqual(bytesAfter + records);
  }
  // What one gives back is there for the next.
  expect(room.most - before).toBeLessThanOrEqual((joined[0]?.bytesAfter ?? 0) + records);
  const given = joined.reduce((sum, { bytesBefore, bytesAfter }) => sum + bytesBefore - bytesAfter, 0);
  expect(before - room.bytes).toBeGreaterThan(given - records);
  await expectPoints(store);
});

test("stopped half way: what it took is given back, what was joined before stays, and the next one begins that log anew", async () => {
  const stop = new AbortController();
  const first = await watched((joining) => {
    if (first.joinings.indexOf(joining) === 2 && joining.written > 0) stop.abort();
    return undefined;
  });
  await expect(first.store.compact(diskName, stop.signal)).rejects.toMatchObject({ name: "AbortError" });
  first.room.settle();
  const [, , stopped] = first.joinings;
  expect(first.joinings).toHaveLength(3);
  expect(stopped?.written).toBeGreaterThan(0);
  expect(first.room.bytes).toBe(stopped?.before);
  await expectPoints(first.store);

  const second = await watched();
  const joined = await second.store.compact(diskName);
  expect(joined.map(({ point }) => point)).toEqual([15, 20]);
  // All of it but for the gaps between its batches.
  expect(second.joinings[0]?.written).toBeGreaterThan((joined[0]?.bytesAfter ?? 0) * 0.9);
  await expectPoints(second.store);
});

test("killed half way: its unfinished log takes no more than the joined one would, until the disk is opened for a delta", async () => {
  const first = await watched((joining) =>
    first.joinings.indexOf(joining) === 2 && joining.written > MIB / 2 ? "kill" : undefined,
  );
  await expect(first.store.compact(diskName)).rejects.toThrow();
  expect(first.process.dead).toBe(true);
  first.room.settle();
  const [, , killed] = first.joinings;
  const left = first.room.bytes - (killed?.before ?? 0);
  expect(left).toBeGreaterThan(MIB / 2);

  const next = await watched();
  await expectPoints(next.store);
  await (await openWriter(next.store)).release();
  expect(machine.files().filter((path) => basename(path) === killed?.name)).toEqual([]);
  const joined = await next.store.compact(diskName);
  expect(joined.map(({ point }) => point)).toEqual([15, 20]);
  expect(left).toBeLessThanOrEqual(joined[0]?.bytesAfter ?? 0);
  await expectPoints(next.store);
});
