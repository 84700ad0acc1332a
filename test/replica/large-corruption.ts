/**
 * A larger store with bits flipped here and there: many table pages, a held point whose logs were joined, points before and behind it, a delta laid aside.
 * By the same rules as corruption.ts, which flips every byte of a small one: what is read is right, or an error says where it is not; and what does
 * not depend on the flipped byte stays readable.
 */
import { createCipheriv } from "node:crypto";
import { expect } from "vitest";
import type { ReplicationError } from "../../src/base/errors.ts";
import { blocksPerPage, MIB } from "../../src/base/units.ts";
import type { NewDisks, PointReader, Store } from "../../src/replica/store.ts";
import { verifyStoredPoint } from "../../src/replica/verify-point.ts";
import { createSimulatedDisk, type SimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { damageOf, type Flip, openQuietly, type PointOutcome } from "./corruption.ts";
import { applyBlocks, type Masks, partBytes, withPoint } from "./part-writes.ts";
import {
  blockBytes,
  commitFacts,
  createChance,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";
import { spansOf, type UndoPlace } from "./undo-places.ts";
import { structures } from "./vhdx-corruption.ts";

/** The last block is a short one. */
const sizeBytes = 384 * MIB + 512;
const blocks = Math.ceil(sizeBytes / blockBytes);
const digestWidth = 16;
const folder = `${storePath}/disks/${diskName}`;
/** Of 1 to 8 these stay: the first is held, and inherits what the others leave behind. */
const points = [1, 5, 6, 7, 8] as const;
const last = 8;
/** Runs of blocks with content, and blocks of them that deltas change again and again. */
const usedRuns = 60;
const runBlocks = 4;
const hotBlocks = 80;

/**
 * Where an open log has lost entries nothing is certain, and all of the disk is refused: once so many blocks of a point are, only what has content is read,
 * the first refused block of each MiB stands for all of it, and the point is not verified.
 */
const refusedMax = 128;

/** Content by block; what is missing is zeros. */
type Content = ReadonlyMap<number, Buffer>;

export interface LargeStore {
  readonly machine: SimulatedDisk;
  readonly format: "raw" | "vhdx";
  /** By point; one more for the delta that was laid aside. */
  readonly contents: ReadonlyMap<number, Content>;
  /** Parts that the delta behind point `index + 1` changed. */
  readonly changed: readonly Masks[];
  /** Files that are not empty, as they should be. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly chance: () => number;
}

function lengthOf(block: number): number {
  return Math.min(blockBytes, sizeBytes - block * blockBytes);
}

/** Draws contents: noise is stored as it is, text as lz4 once logs are joined. */
class Draw {
  readonly chance: () => number;
  readonly #noise;

  constructor(seed: number) {
    this.chance = createChance(seed);
    this.#noise = createCipheriv("aes-128-ctr", Buffer.alloc(16, `large ${seed}`), Buffer.alloc(16));
  }

  below(end: number): number {
    return Math.floor(this.chance() * end);
  }

  bytes(length: number): Buffer {
    if (this.chance() < 0.5) return this.#noise.update(Buffer.alloc(length));
    return Buffer.alloc(length, `line ${this.below(1e9)} of a log file\n`);
  }

  /** Mostly a part of a block, now and then all of it, or zeros. */
  change(block: number, before: Buffer | undefined): Buffer {
    const kind = this.chance();
    if (before === undefined || kind < 0.15) return this.bytes(lengthOf(block));
    if (kind < 0.25) return Buffer.alloc(before.length);
    const after = Buffer.from(before);
    after.set(this.bytes(partBytes).subarray(0, after.length), after.length > partBytes ? (block % 4) * partBytes : 0);
    return after;
  }
}

/** Blocks that a delta makes other than they were. */
function nextContent(draw: Draw, before: Content, hot: readonly number[]): Content {
  const after = new Map(before);
  for (const block of hot) if (draw.chance() < 0.7) after.set(block, draw.change(block, before.get(block)));
  for (let count = 0; count < 8; count++) {
    const block = draw.below(blocks);
    after.set(block, draw.change(block, before.get(block)));
  }
  return after;
}

/** Eight points of which three are gone, their logs joined; a ninth was about to be made by a process that was killed. */
export async function makeLargeStore(format: "raw" | "vhdx", seed: number): Promise<LargeStore> {
  const draw = new Draw(seed);
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  const replica: NewDisks = { format, ...(format === "vhdx" ? { payloadBlockBytes: 32 * MIB } : {}) };
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512, replica });
  await store.setPolicy(diskName, "last=9");
  const starts = Array.from({ length: usedRuns }, () => draw.below(blocks - runBlocks));
  const used = [
    blocks - 1,
    ...starts.flatMap((start) => Array.from({ length: runBlocks }, (_unused, at) => start + at)),
  ];
  const hot = [...new Set(used.slice(0, hotBlocks))];
  const contents = new Map<number, Content>();
  const changed: Masks[] = [];
  let content: Content = new Map(used.map((block) => [block, draw.bytes(lengthOf(block))]));
  const writer = await openWriter(store);
  for (let point = 1; point <= last + 1; point++) {
    if (point > 1) content = nextContent(draw, content, hot);
    contents.set(point, content);
    await writer.begin();
    changed.push(await applyBlocks(writer, process.lanes, content));
    if (point > last) await writer.suspend(0);
    else await writer.commit(commitFacts(`c${point}`));
  }
  await writer.release();
  for (const point of [1, 6]) await store.hold(diskName, point, { owner: "test", until: undefined });
  await store.prune(diskName, { keep: "last=3" });
  expect(await store.compact(diskName)).toMatchObject([{ point: 1 }]);
  process.kill();
  const files = new Map<string, Uint8Array>();
  for (const path of machine.files()) files.set(path, machine.peek(path) ?? Buffer.alloc(0));
  for (const [path, bytes] of files) if (bytes.length === 0) files.delete(path);
  return { machine, format, contents, changed: changed.slice(1), files, chance: draw.chance };
}

// What is found ------------------------------------------------------------------------------------------------------

interface Found {
  readonly lost: ReplicationError | undefined;
  readonly points: ReadonlyMap<number, PointOutcome>;
  readonly unreadable: readonly number[];
}

/** Reads all of every point. Throws when something is served that is not what it must be. */
export async function lookAtAll(large: LargeStore): Promise<Found> {
  const found = new Map<number, PointOutcome>();
  let unreadable: readonly number[];
  try {
    const store = await openQuietly(large.machine);
    unreadable = (await store.points(diskName)).unreadable.map(({ point }) => point);
    for (const point of points) found.set(point, await lookAtPoint(large, store, point));
    await expectVerified(store, found);
  } catch (error) {
    return { lost: damageOf(error), points: new Map(), unreadable: [] };
  }
  return { lost: undefined, points: found, unreadable };
}

async function lookAtPoint(large: LargeStore, store: Store, point: number): Promise<PointOutcome> {
  try {
    return {
      refused: await withPoint(store, point, (reader) => readData(reader, large.contents.get(point) ?? new Map())),
    };
  } catch (error) {
    return { lost: damageOf(error) };
  }
}

/** What a verification says of the first point that is damaged; what is good was compared already. */
async function expectVerified(store: Store, found: ReadonlyMap<number, PointOutcome>): Promise<void> {
  for (const [point, outcome] of found) {
    if ("lost" in outcome) {
      await expect(verify(store, point)).rejects.toMatchObject({ code: outcome.lost.code });
      return;
    }
    if (outcome.refused.length === 0 || outcome.refused.length > refusedMax) continue;
    const report = await verify(store, point);
    expect(report.damagedBytes).toBe(outcome.refused.reduce((sum, block) => sum + lengthOf(block), 0));
    expect(report.good).toBe(false);
    return;
  }
}

function verify(store: Store, point: number): ReturnType<typeof verifyStoredPoint> {
  const how = { from: 0, pace: () => Promise.resolve(), signal: undefined, onProgress: () => undefined };
  return verifyStoredPoint(store, diskName, point, how);
}

/** Reads what is data, and sees that what is called zeros is. Returns the blocks that are refused. */
async function readData(reader: PointReader, content: Content): Promise<readonly number[]> {
  expect(reader.sizeBytes).toBe(sizeBytes);
  const refused: number[] = [];
  const seen = new Set<number>();
  for await (const { kind, offset, length } of reader.extents(0, sizeBytes)) {
    if (kind !== "data") continue;
    const end = offset + length;
    for (let at = offset; at < end; at += MIB) {
      const bytes = Buffer.alloc(Math.min(MIB, end - at), 0xee);
      const first = Math.floor(at / blockBytes);
      let hasContent = false;
      for (let block = first; block * blockBytes < at + bytes.length; block++) {
        seen.add(block);
        hasContent ||= content.has(block);
      }
      if (refused.length > refusedMax && !hasContent) continue;
      try {
        await reader.read(bytes, at);
        expectContent(reader, content, first, bytes);
      } catch (error) {
        damageOf(error);
        const range = { first, end: Math.ceil((at + bytes.length) / blockBytes) };
        refused.push(...(await readBlocks(reader, content, range, refused.length > refusedMax ? 1 : blocks)));
      }
    }
  }
  for (const [block, bytes] of content) {
    if (!seen.has(block) && !isZero(bytes)) throw new Error(`point ${reader.point.point} calls block ${block} zeros`);
  }
  return refused;
}

/** Blocks of the range that are refused, the first `most` of them; there is one at least. */
async function readBlocks(
  reader: PointReader,
  content: Content,
  { first, end }: { readonly first: number; readonly end: number },
  most: number,
): Promise<readonly number[]> {
  const refused: number[] = [];
  for (let block = first; block < end && refused.length < most; block++) {
    const bytes = Buffer.alloc(lengthOf(block), 0xee);
    try {
      await reader.read(bytes, block * blockBytes);
      expectContent(reader, content, block, bytes);
    } catch (error) {
      const { point } = reader.point;
      expect(damageOf(error).details).toMatchObject({ disk: diskName, point, block, offset: block * blockBytes });
      refused.push(block);
    }
  }
  expect(refused).not.toEqual([]);
  return refused;
}

const zeros = Buffer.alloc(blockBytes);

function expectContent({ point }: PointReader, content: Content, first: number, bytes: Buffer): void {
  for (let at = 0, block = first; at < bytes.length; at += blockBytes, block++) {
    const found = bytes.subarray(at, at + blockBytes);
    if (!found.equals(content.get(block) ?? zeros.subarray(0, found.length)))
      throw new Error(`point ${point.point} is wrong in block ${block}`);
  }
}

function isZero(bytes: Buffer | undefined): boolean {
  return bytes === undefined || bytes.equals(zeros.subarray(0, bytes.length));
}

// What may be found --------------------------------------------------------------------------------------------------

/** Throws unless all that is lost may be by this flip. */
export function expectFound(large: LargeStore, { path, at }: Flip, found: Found): void {
  const name = path.startsWith(folder) ? path.slice(folder.length + 1) : path;
  if (name === `${storePath}/store.json` || name === "disk.json") {
    expect(found.lost?.message).toContain(path);
    return;
  }
  expect(found.lost).toBeUndefined();
  const record = /^points\/(\d{10})\.json$/.exec(name);
  if (record !== null) {
    const sequence = Number(record[1]);
    expect(found.unreadable).toEqual([sequence]);
    // Older points cannot be reached past it.
    expectLost(found, path, (point) => point <= sequence);
    return;
  }
  expect(found.unreadable).toEqual([]);
  const log = /^points\/(\d{10})(?:\.\d+)?\.undo$/.exec(name);
  if (log !== null) {
    expectLogFlip(large, { path, at }, Number(log[1]), found);
    return;
  }
  switch (name) {
    case "replica.raw": {
      const block = Math.floor(at / blockBytes);
      const part = 1 << (Math.floor(at / partBytes) % 4);
      expectRefused(found, (point) => {
        const zero = isZero(large.contents.get(point)?.get(block));
        return zero || (keptSince(large, point, block) & part) !== 0 ? [] : [block];
      });
      return;
    }
    case "digests": {
      const block = Math.floor(at / digestWidth);
      const isUnused = block >= blocks || isEmptyPage(large, block);
      for (const [point, outcome] of found.points) {
        if ("lost" in outcome) throw outcome.lost;
        const { refused } = outcome;
        // Logs name zeros ahead, more than was asked for.
        if (isUnused || keptSince(large, point, block) > 0) expect(refused).toEqual([]);
        else if (isZero(large.contents.get(point)?.get(block))) expect([[], [block]]).toContainEqual(refused);
        else expect(refused).toEqual([block]);
      }
      return;
    }
    case "replica.vhdx":
      expectVhdxFlip(path, found);
      return;
    case "pages":
    case "session.json":
    case "suspect.json":
    case "keep.json":
    case "apply.lock":
      expectRefused(found, () => []);
      return;
    default:
      throw new Error(`what is ${path}?`);
  }
}

function expectRefused({ points: all }: Found, refused: (point: number) => readonly number[]): void {
  const outcome = new Map([...all].map(([point, each]) => [point, "lost" in each ? "lost" : each.refused]));
  expect(outcome).toEqual(new Map(points.map((point) => [point, refused(point)])));
}

/** The points that must be lost are, with an error that names the file; all others are whole. */
function expectLost(found: Found, path: string, isLost: (point: number) => boolean): void {
  for (const [point, outcome] of found.points) {
    expect("lost" in outcome, `point ${point}`).toBe(isLost(point));
    if ("lost" in outcome) expect(outcome.lost.message).toContain(path);
    else expect(outcome.refused).toEqual([]);
  }
}

/** Parts of a block that were overwritten since the point. */
function keptSince({ changed }: LargeStore, point: number, block: number): number {
  return changed.slice(point - 1).reduce((mask, masks) => mask | (masks.get(block) ?? 0), 0);
}

/** Whether the table has nothing but zeros where it has the block. */
function isEmptyPage({ contents }: LargeStore, block: number): boolean {
  const per = blocksPerPage("sha256");
  const page = Math.floor(block / per);
  return ![...(contents.get(last) ?? [])].some(([each, bytes]) => Math.floor(each / per) === page && !isZero(bytes));
}

function expectLogFlip(
  large: LargeStore,
  { path, at }: { readonly path: string; readonly at: number },
  sequence: number,
  found: Found,
): void {
  const place = placeOf(large.files.get(path) ?? Buffer.alloc(0), at);
  if (place.kind === "header") {
    expectLost(found, path, (point) => point <= sequence);
    return;
  }
  for (const [point, outcome] of found.points) {
    if ("lost" in outcome) throw outcome.lost;
    if (point > sequence || !["content", "entries"].includes(place.kind)) expect(outcome.refused).toEqual([]);
    else if (place.kind === "content") {
      // Of the point itself all of it comes first; an older one may have the parts from an older log.
      if (point === sequence) expect(outcome.refused).toEqual([place.block]);
      else expect([[], [place.block]]).toContainEqual(outcome.refused);
    } else if (sequence < last)
      // A closed log's index has them as well.
      expect(outcome.refused).toEqual([]);
    // Of the open one it is not known what was lost.
    else if (point === last) expect(outcome.refused).not.toEqual([]);
  }
}

function placeOf(log: Uint8Array, at: number): UndoPlace {
  return spansOf(log).find(({ start, end }) => at >= start && at < end)?.place ?? { kind: "padding" };
}

/** Where a block lies in the file is not known here: one block may be refused, or no point can be read, with an error that names the file. */
function expectVhdxFlip(path: string, { points: all }: Found): void {
  const refused = new Set<number>();
  for (const outcome of all.values()) {
    if ("lost" in outcome) expect(outcome.lost.message).toContain(path);
    else for (const block of outcome.refused) refused.add(block);
  }
  // An entry of the table of blocks stands for 32 MiB.
  expect(refused.size).toBeLessThanOrEqual((32 * MIB) / blockBytes);
}

// Where bits are flipped ---------------------------------------------------------------------------------------------

export interface Aim {
  /** The file and the kind of place in it. */
  readonly what: string;
  readonly flip: Flip;
}

/** Some bits of each kind of place of each file; `each`: how many. */
export function* drawAims(large: LargeStore, each: number): Generator<Aim> {
  for (const [path, bytes] of large.files) {
    const name = path.slice(path.lastIndexOf("/") + 1);
    for (const [kind, ranges] of regionsOf(large, path, bytes)) {
      for (let count = 0; count < each; count++) {
        const [start, end] = ranges[Math.floor(large.chance() * ranges.length)] ?? [0, bytes.length];
        const at = start + Math.floor(large.chance() * (end - start));
        yield { what: `${name}: ${kind}`, flip: { path, at, bit: Math.floor(large.chance() * 8) } };
      }
    }
  }
}

type Ranges = readonly (readonly [start: number, end: number])[];

function regionsOf(large: LargeStore, path: string, bytes: Uint8Array): ReadonlyMap<string, Ranges> {
  if (path.endsWith(".undo")) return regionsOfLog(bytes);
  const all: Ranges = [[0, bytes.length]];
  const used = [...(large.contents.get(last) ?? [])].flatMap(([block, content]) => (isZero(content) ? [] : [block]));
  const at = (width: number): Ranges =>
    used.map((block) => [block * width, Math.min((block + 1) * width, bytes.length)]);
  if (path.endsWith("/replica.raw"))
    return new Map([
      ["blocks", at(blockBytes)],
      ["anywhere", all],
    ]);
  if (path.endsWith("/digests"))
    return new Map([
      ["blocks", at(digestWidth)],
      ["anywhere", all],
    ]);
  if (path.endsWith("/replica.vhdx")) return regionsOfVhdx(bytes);
  return new Map([["all", all]]);
}

function regionsOfLog(bytes: Uint8Array): ReadonlyMap<string, Ranges> {
  const regions = new Map<string, [number, number][]>();
  const add = (kind: string, start: number, end: number): void => {
    if (end === start) return;
    const ranges = regions.get(kind);
    if (ranges === undefined) regions.set(kind, [[start, end]]);
    else ranges.push([start, end]);
  };
  let before = 0;
  for (const { start, end, place } of spansOf(bytes)) {
    add("padding", before, start);
    add(place.kind, start, end);
    before = end;
  }
  return regions;
}

/** What the file has besides content, and blocks of content. */
function regionsOfVhdx(bytes: Uint8Array): ReadonlyMap<string, Ranges> {
  const regions = new Map<string, Ranges>();
  for (const [name, [at, length]] of Object.entries(structures)) regions.set(name, [[at, at + length]]);
  const content: [number, number][] = [];
  for (let at = 4 * MIB; at < bytes.length; at += blockBytes) {
    const piece = bytes.subarray(at, at + blockBytes);
    if (zeros.compare(piece, 0, piece.length, 0, piece.length) !== 0) content.push([at, at + piece.length]);
  }
  regions.set("content", content);
  return regions;
}
