/**
 * A small store, every byte of it flipped in turn. What is read afterwards is right, or an error says where it is not; and what does not depend on
 * the flipped byte stays readable. {@link expectFlip} says for each kind of place which points and which blocks may be lost.
 */
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { createSimulatedDisk, type SimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { type DiskWriter, type NewDisks, openStore, type Store } from "../../src/replica/store.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { writeSuspicion } from "../../src/replica/suspicion.ts";
import { verifyStoredPoint } from "../../src/replica/verify-point.ts";
import { randomBytes } from "../random.ts";
import { applyBytes, type Masks, partBytes, withPoint } from "./part-writes.ts";
import { placesOf } from "./undo-places.ts";
import {
  blockBytes,
  commitFacts,
  createTestClock,
  createTestRandom,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  rebuild,
  storePath,
} from "./simulated-store.ts";

/** The last block is a short one. */
const sizeBytes = 6 * blockBytes + 512;
const blocks = 7;
const disk = `${storePath}/disks/${diskName}`;

/** Content of points 1 to 3 and what a fourth delta was about to make of it. */
const contents = makeContents();

function makeContents(): readonly Buffer[] {
  const first = Buffer.alloc(sizeBytes);
  // Noise is stored as it is, text as lz4; block 3 is never written.
  for (const block of [0, 2, 5]) first.set(randomBytes(blockBytes), block * blockBytes);
  first.fill("all work and no play\n", blockBytes, 2 * blockBytes);
  first.fill("the end\n", 6 * blockBytes);
  const second = Buffer.from(first);
  second.set(randomBytes(100), partBytes + 7);
  second.fill("makes Jack a dull boy\n", blockBytes, 2 * blockBytes);
  second.fill("was zero\n", 4 * blockBytes, 4 * blockBytes + 2 * partBytes);
  const third = Buffer.from(second);
  third.set(randomBytes(partBytes), 2 * partBytes);
  third.fill(0, 2 * blockBytes, 3 * blockBytes);
  third.fill("another end\n", 6 * blockBytes);
  const fourth = Buffer.from(third);
  fourth.set(randomBytes(blockBytes));
  fourth.fill("all play and no work\n", blockBytes, 2 * blockBytes);
  fourth.set(randomBytes(partBytes), 2 * blockBytes + partBytes);
  fourth.fill("more\n", 4 * blockBytes + partBytes, 4 * blockBytes + 2 * partBytes);
  return [first, second, third, fourth];
}

function contentOf(point: number): Buffer {
  const content = contents[point - 1];
  if (content === undefined) throw new Error(`there is no point ${point}`);
  return content;
}

export interface SmallStore {
  readonly machine: SimulatedDisk;
  /** Parts of each block that the undo log of point `index + 1` has. */
  readonly kept: readonly Masks[];
  /** Files that are not empty, as they should be. */
  readonly files: ReadonlyMap<string, Uint8Array>;
}

/** Three points; `open`: and a delta laid aside by a process that was killed right afterwards. `replica`: default a raw image. */
export async function makeSmallStore(open: boolean, replica?: NewDisks): Promise<SmallStore> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512, replica });
  await store.setPolicy(diskName, "last=9");
  const writer = await openWriter(store);
  const kept: Masks[] = [];
  for (let point = 1; point <= 3; point++) {
    await writer.begin();
    kept.push(await applyBytes(writer, process.lanes, contentOf(point)));
    await writer.commit(commitFacts(`c${point}`));
  }
  if (open) {
    await writer.begin();
    kept.push(await applyBytes(writer, process.lanes, contentOf(4)));
    await writer.suspend(0);
  } else {
    await writer.release();
  }
  process.kill();
  const files = new Map<string, Uint8Array>();
  for (const path of machine.files()) files.set(path, machine.peek(path) ?? Buffer.alloc(0));
  for (const [path, bytes] of files) if (bytes.length === 0) files.delete(path);
  return { machine, kept: kept.slice(1), files };
}

/** Without making anything that is missing. */
export function openQuietly(machine: SimulatedDisk): Promise<Store> {
  const storage = machine.start();
  return openStore({
    path: storePath,
    storage,
    clock: createTestClock(storage),
    random: createTestRandom(1),
    log: silentLogger,
    host: "receiver1",
  });
}

// What is found ------------------------------------------------------------------------------------------------------

/** What became of a point. */
export type PointOutcome =
  | { readonly lost: ReplicationError }
  /** Blocks that are not served; all others are right. */
  | { readonly refused: readonly number[] };

export interface Outcome {
  /** The store or the disk cannot be opened. */
  readonly lost: ReplicationError | undefined;
  readonly points: readonly PointOutcome[];
  readonly unreadable: readonly number[];
}

/** An error of the product that says what is damaged; anything else is a defect. */
export function damageOf(error: unknown): ReplicationError {
  if (!(error instanceof ReplicationError)) throw error;
  expect(["store-damaged", "store-version-unsupported"], error.message).toContain(error.code);
  return error;
}

/** Opens, lists, reads and verifies everything. Throws when something is served that is not what it must be. */
export async function look(machine: SimulatedDisk): Promise<Outcome> {
  const found: PointOutcome[] = [];
  let unreadable: readonly number[];
  try {
    const store = await openQuietly(machine);
    expect(await store.disks()).toEqual([diskName]);
    const listed = await store.points(diskName);
    unreadable = listed.unreadable.map(({ point }) => point);
    const summary = await store.summary(diskName);
    if (unreadable.includes(3)) expect(summary?.state).toBe("damaged");
    for (let point = 1; point <= 3; point++) found.push(await lookAtPoint(store, point));
  } catch (error) {
    return { lost: damageOf(error), points: [], unreadable: [] };
  }
  return { lost: undefined, points: found, unreadable };
}

async function lookAtPoint(store: Store, point: number): Promise<PointOutcome> {
  let refused: readonly number[];
  try {
    refused = await withPoint(store, point, async (reader) => {
      expect(reader.sizeBytes).toBe(sizeBytes);
      for await (const { kind, offset, length } of reader.extents(0, sizeBytes)) {
        const bytes = contentOf(point).subarray(offset, offset + length);
        if (kind !== "data" && bytes.some((byte) => byte !== 0)) {
          throw new Error(`point ${point} calls data at offset ${offset} zeros`);
        }
      }
      return readAll(reader, point);
    });
  } catch (error) {
    const lost = damageOf(error);
    await expect(verify(store, point)).rejects.toMatchObject({ code: lost.code });
    return { lost };
  }
  const report = await verify(store, point);
  expect(report.damagedBytes).toBe(refused.reduce((sum, block) => sum + lengthOf(block), 0));
  expect(report.good).toBe(refused.length === 0);
  return { refused };
}

export function verify(store: Store, point: number): ReturnType<typeof verifyStoredPoint> {
  return verifyStoredPoint(store, diskName, point, {
    from: 0,
    pace: () => Promise.resolve(),
    signal: undefined,
    onProgress: () => undefined,
  });
}

function lengthOf(block: number): number {
  return Math.min(blockBytes, sizeBytes - block * blockBytes);
}

type Reader = Parameters<Parameters<typeof withPoint>[2]>[0];

async function readAll(reader: Reader, point: number): Promise<readonly number[]> {
  const whole = Buffer.alloc(sizeBytes, 0xee);
  let failure: ReplicationError | undefined;
  try {
    await reader.read(whole, 0);
    if (!whole.equals(contentOf(point))) throw new Error(`point ${point} is wrong`);
  } catch (error) {
    failure = damageOf(error);
  }
  const refused: number[] = [];
  // What cannot be read in one go can be read but for the blocks that are damaged.
  for (let block = 0; failure !== undefined && block < blocks; block++) {
    const offset = block * blockBytes;
    const bytes = Buffer.alloc(lengthOf(block), 0xee);
    try {
      await reader.read(bytes, offset);
      if (!bytes.equals(contentOf(point).subarray(offset, offset + bytes.length))) {
        throw new Error(`point ${point} is wrong in block ${block}`);
      }
    } catch (error) {
      expect(damageOf(error).details).toMatchObject({ disk: diskName, point, block, offset });
      refused.push(block);
    }
  }
  expect(refused.length > 0).toBe(failure !== undefined);
  return refused;
}

// What may be found --------------------------------------------------------------------------------------------------

/** A bit of the index, and one of a head that the index stands for: then what the head says is lost. */
export function* indexAndHead(path: string, bytes: Uint8Array): Generator<readonly Flip[]> {
  const placeOf = placesOf(bytes);
  const offsets = Array.from(bytes.keys());
  const index = offsets.find((at) => at % 4096 > 64 && placeOf(at).kind === "index") ?? 0;
  // Where each batch begins, and a digest in its first entry.
  for (const at of offsets.filter((offset) => offset % 4096 === 0 && placeOf(offset).kind === "entries")) {
    for (const head of [at + 40, at + 64 + 30])
      yield [index, head].map((offset) => ({ path, at: offset, bit: offset & 7 }));
  }
}

export interface Flip {
  readonly path: string;
  readonly at: number;
  readonly bit: number;
}

/** One bit of each byte, another one in each, of the bytes `wanted` names; `all`: every bit. */
export function* flipsOf(
  path: string,
  bytes: Uint8Array,
  wanted: (at: number) => "none" | "one" | "all",
): Generator<Flip> {
  for (let at = 0; at < bytes.length; at++) {
    const how = wanted(at);
    if (how === "one") yield { path, at, bit: (at + (at >> 3)) & 7 };
    for (let bit = 0; how === "all" && bit < 8; bit++) yield { path, at, bit };
  }
}

export function flip({ machine, files }: Pick<SmallStore, "machine" | "files">, { path, at, bit }: Flip): void {
  machine.poke(path, Uint8Array.of((files.get(path)?.[at] ?? 0) ^ (1 << bit)), at);
}

/** Flips each in turn, looks, and puts it back. Returns how many were tried. */
export async function tryFlips(small: SmallStore, flips: Iterable<Flip>): Promise<number> {
  let count = 0;
  for (const one of flips) {
    const { path, at, bit } = one;
    flip(small, one);
    try {
      expectFlip(small, path, at, await look(small.machine));
    } catch (error) {
      throw new Error(`${path}: bit ${bit} of the byte at ${at}`, { cause: error });
    }
    small.machine.poke(path, (small.files.get(path) ?? Buffer.alloc(0)).subarray(at, at + 1), at);
    count++;
  }
  return count;
}

const everyPoint = [1, 2, 3];

/** Blocks refused of each point; the points of `lost` cannot be opened. */
function expectOutcome(outcome: Outcome, refused: (point: number) => readonly number[], lost: readonly number[] = []) {
  expect(outcome.lost).toBeUndefined();
  const found = outcome.points.map((point) => ("lost" in point ? "lost" : point.refused));
  expect(found).toEqual(everyPoint.map((point) => (lost.includes(point) ? "lost" : refused(point))));
}

function expectNames(error: ReplicationError | undefined, path: string): void {
  expect(error?.message).toContain(path);
}

/** All that is lost by a flip of this byte; everything else must be there. */
function expectFlip(small: SmallStore, path: string, at: number, outcome: Outcome): void {
  const none = (): readonly number[] => [];
  const name = path.slice(disk.length + 1);
  if (path === `${storePath}/store.json` || name === "disk.json") {
    expectNames(outcome.lost, path);
    return;
  }
  const record = /^points\/(\d{10})\.json$/.exec(name);
  if (record !== null) {
    // Older points cannot be reached past it.
    const sequence = Number(record[1]);
    expect(outcome.unreadable).toEqual([sequence]);
    expectOutcome(
      outcome,
      none,
      everyPoint.filter((point) => point <= sequence),
    );
    for (const point of outcome.points) if ("lost" in point) expectNames(point.lost, path);
    return;
  }
  expect(outcome.unreadable).toEqual([]);
  const log = /^points\/(\d{10})\.undo$/.exec(name);
  if (log !== null) {
    expectLogFlip(small, path, { sequence: Number(log[1]), at }, outcome);
    return;
  }
  switch (name) {
    case "replica.raw": {
      const block = Math.floor(at / blockBytes);
      const part = 1 << (Math.floor(at / partBytes) % 4);
      expectOutcome(outcome, (point) => {
        const zero = contentOf(point)
          .subarray(block * blockBytes, (block + 1) * blockBytes)
          .every((byte) => byte === 0);
        return zero || (keptSince(small, point, block) & part) !== 0 ? [] : [block];
      });
      return;
    }
    case "digests": {
      const block = Math.floor(at / 16);
      expectOutcome(outcome, (point) => (block >= blocks || keptSince(small, point, block) !== 0 ? [] : [block]));
      return;
    }
    case "pages":
    case "session.json":
    case "suspect.json":
    case "keep.json":
    case "apply.lock":
      expectOutcome(outcome, none);
      return;
    default:
      throw new Error(`what is ${path}?`);
  }
}

/** Parts of a block that were overwritten since the point. */
function keptSince({ kept }: SmallStore, point: number, block: number): number {
  return kept.slice(point - 1).reduce((mask, log) => mask | (log.get(block) ?? 0), 0);
}

function expectLogFlip(
  small: SmallStore,
  path: string,
  { sequence, at }: { readonly sequence: number; readonly at: number },
  outcome: Outcome,
): void {
  const older = everyPoint.filter((point) => point <= sequence);
  const newer = everyPoint.filter((point) => point > sequence);
  for (const point of newer) expect(outcome.points[point - 1]).toEqual({ refused: [] });
  const place = placesOf(small.files.get(path) ?? Buffer.alloc(0))(at);
  switch (place.kind) {
    case "header":
      expectOutcome(outcome, () => [], older);
      for (const point of outcome.points) if ("lost" in point) expectNames(point.lost, path);
      return;
    case "content":
      // Of the point itself all of it comes first; an older one may have the parts from an older log.
      expect(outcome.points[sequence - 1]).toEqual({ refused: [place.block] });
      for (const point of outcome.points)
        if ("lost" in point || point.refused.some((block) => block !== place.block)) {
          expect(point).toEqual({ refused: [place.block] });
        }
      return;
    case "entries":
      // A closed log's index has them as well. Of the open one it is not known what was lost.
      if (sequence < 3) break;
      for (const point of outcome.points) expect("lost" in point).toBe(false);
      expect(outcome.points[2]).not.toEqual({ refused: [] });
      return;
    case "padding":
    case "checkpoint":
    case "index":
    case "footer":
      break;
  }
  expectOutcome(outcome, () => []);
}

/**
 * Flips bits of a record that somebody wrote to the replica: no point suffers, and the doubt does not get less. `found`: as the record has it. Returns how
 * many were tried.
 */
export async function trySuspicion(found: boolean, how: "one" | "all"): Promise<number> {
  const { machine, kept } = await makeSmallStore(false);
  const path = `${disk}/suspect.json`;
  const writing = machine.start();
  await writeSuspicion(writing, diskPaths(storePath, diskName), { why: "somebody mounted it", found, point: 3 });
  writing.kill();
  const small = { machine, kept, files: new Map([[path, machine.peek(path) ?? Buffer.alloc(0)]]) };
  let tried = 0;
  for (const [, bytes] of small.files) {
    for (const one of flipsOf(path, bytes, () => how)) {
      tried += await tryFlips(small, [one]);
      flip(small, one);
      const process = machine.start();
      const writer = await openWriter(await openTestStore(process));
      // What the record says cannot be told any more: changes were found, for all that is known.
      expect(writer.doubt, `bit ${one.bit} of the byte at ${one.at}`).toMatchObject({
        blocks: "differing",
        found: true,
      });
      process.kill();
      machine.poke(path, bytes.subarray(one.at, one.at + 1), one.at);
    }
  }
  return tried;
}

// Going on -----------------------------------------------------------------------------------------------------------

/** A receiver's session over what is left: the next point is right, and the older ones are or are refused. */
async function goOn(machine: SimulatedDisk): Promise<"refused" | "committed"> {
  const process = machine.start();
  let writer: DiskWriter | undefined;
  try {
    const store = await openTestStore(process);
    const wanted = contentOf(4);
    // A damaged page of the table is found when it is used; then it is built anew.
    for (let tries = 1; ; tries++) {
      writer = await openWriter(store);
      try {
        if (writer.doubt !== undefined) await rebuild(writer, process.lanes);
        await writer.begin();
        await applyBytes(writer, process.lanes, wanted);
        expect((await writer.commit(commitFacts("c4"))).point).toBe(4);
        break;
      } catch (error) {
        damageOf(error);
        await writer.release();
        if (tries === 2) throw error;
      }
    }
    await writer.release();
    const bytes = Buffer.alloc(sizeBytes);
    await withPoint(store, 4, (reader) => reader.read(bytes, 0));
    if (!bytes.equals(wanted)) throw new Error("the next point is wrong");
    for (const point of everyPoint) await lookAtPoint(store, point);
    return "committed";
  } catch (error) {
    damageOf(error);
    return "refused";
  } finally {
    process.kill();
  }
}

/** As {@link goOn}, each with a store of its own. */
export async function tryGoingOn(
  open: boolean,
  flips: Iterable<Flip>,
  replica?: NewDisks,
): Promise<Readonly<Record<"refused" | "committed", number>>> {
  const counts = { refused: 0, committed: 0 };
  for (const one of flips) {
    const small = await makeSmallStore(open, replica);
    flip(small, one);
    try {
      counts[await goOn(small.machine)]++;
    } catch (error) {
      throw new Error(`${one.path}: bit ${one.bit} of the byte at ${one.at}`, { cause: error });
    }
  }
  return counts;
}

/** Points 1 and 4, the logs of all between them in the list of the first one. */
async function makeInherited(): Promise<SmallStore> {
  const { machine } = await makeSmallStore(false);
  expect(await goOn(machine)).toBe("committed");
  const process = machine.start();
  const store = await openTestStore(process);
  await store.hold(diskName, 1, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=1" });
  process.kill();
  const files = new Map<string, Uint8Array>();
  for (const path of machine.files()) {
    if (path.endsWith(".undo")) files.set(path, machine.peek(path) ?? Buffer.alloc(0));
  }
  return { machine, files, kept: [] };
}

/** Joins a list of three logs in each of which bits are flipped in turn: nothing becomes wrong by it, and nothing is lost that could be read. */
export async function tryJoining(
  choose: (path: string, bytes: Uint8Array) => Iterable<readonly Flip[]>,
): Promise<Readonly<Record<"joined" | "left", number>>> {
  const counts = { joined: 0, left: 0 };
  const { files } = await makeInherited();
  expect(files.size).toBe(3);
  for (const [path, bytes] of files) {
    for (const together of choose(path, bytes)) {
      const small = await makeInherited();
      for (const one of together) flip(small, one);
      try {
        counts[await join(small.machine)]++;
      } catch (error) {
        const places = together.map(({ at, bit }) => `bit ${bit} of the byte at ${at}`);
        throw new Error(`${path}: ${places.join(" and ")}`, { cause: error });
      }
    }
  }
  return counts;
}

async function join(machine: SimulatedDisk): Promise<"joined" | "left"> {
  const store = await openTestStore(machine.start());
  const before = await lookAtPoint(store, 1);
  let joined = false;
  try {
    joined = (await store.compact(diskName)).length > 0;
  } catch (error) {
    damageOf(error);
  }
  const after = await lookAtPoint(store, 1);
  if ("refused" in before) {
    if ("lost" in after) throw after.lost;
    expect(before.refused).toEqual(expect.arrayContaining([...after.refused]));
  }
  expect(await lookAtPoint(store, 4)).toEqual({ refused: [] });
  return joined ? "joined" : "left";
}
