/** A store on a simulated disk, and the blocks of one replica as a model. */
import { punchBlock, readBlock, writeBlock } from "./in-replica.ts";
import { createHash, hash } from "node:crypto";
import { toReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { Random } from "../../src/base/random.ts";
import { blockCount, blockLength, type Geometry, KIB, PART_BYTES, pageCount } from "../../src/base/units.ts";
import { countParts } from "../../src/base/part-mask.ts";
import { createBufferPool } from "../../src/base/buffer-pool.ts";
import { createLane } from "../../src/lanes/lane.ts";
import { createInlineLanes } from "../../src/lanes/inline-lanes.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import { laneRoomBytes, slotBytes } from "../../src/lanes/slot-layout.ts";
import { KnownParts } from "../../src/replication/known-parts.ts";
import { OldContent } from "../../src/replication/old-content.ts";
import { rebuildTable } from "../../src/replication/rebuild.ts";
import type { LaneStorage, Storage } from "../../src/storage/seam.ts";
import { createPageDigests, type DigestTable, pageDigest } from "../../src/table/digest-table.ts";
import type { SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import {
  type DiskWriter,
  openStore,
  type Point,
  type PointReader,
  type Store,
  type StoreOptions,
} from "../../src/replica/store.ts";

export const storePath = "/store";
export const diskName = "vm1.sda";
export const blockBytes = 16 * KIB;
export const holder = { identity: "sender", instance: "i1" };
const width = 16;

/** Of a simulated machine: what the times of its files are made of. Else each look at it takes a millisecond. */
export function createTestClock(storage?: Storage): Clock {
  let own = 1_700_000_000_000;
  const machine = storage as Partial<SimulatedProcess> | undefined;
  const now = (): number => machine?.nowMillis?.() ?? own++;
  return {
    now,
    monotonic: now,
    sleep: () => Promise.resolve(),
    every: () => () => undefined,
  };
}

export function createTestRandom(seed = 0): Random {
  let count = 0;
  const bytes = (length: number): Uint8Array =>
    createHash("sha256").update(`${seed} ${count++}`).digest().subarray(0, length);
  return {
    uuid: () => `00000000-0000-4000-8000-${Buffer.from(bytes(6)).toString("hex")}`,
    bytes,
  };
}

/** A number from 0 to 1 after another, the same for the same seed. */
export function createChance(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function openTestStore(
  storage: Storage,
  path = storePath,
  more: Pick<StoreOptions, "keep" | "reserveBytes" | "newDisks"> = {},
): Promise<Store> {
  return openStore({
    path,
    storage,
    clock: createTestClock(storage),
    random: createTestRandom(),
    log: silentLogger,
    create: true,
    host: "receiver1",
    pid: 4711,
    reserveBytes: 0,
    ...more,
  });
}

export async function openWriter(store: Store, name = diskName): Promise<DiskWriter> {
  const result = await store.openWriter(name, holder);
  if (result.kind !== "open") throw new Error("the disk is busy");
  return result.writer;
}

export function geometry(sizeBytes: number): Geometry {
  return { sizeBytes, blockBytes, digestKind: "sha256" };
}

/** Content of a disk: a number for each block that is not zero. */
export type Blocks = ReadonlyMap<number, number>;

export function blockContent(value: number): Buffer {
  const content = Buffer.alloc(blockBytes, `block ${value} `);
  if (value === 0) content.fill(0);
  return content;
}

const zeroBlock = Buffer.alloc(blockBytes);

export function digestOf(content: Uint8Array): Buffer {
  const padded = content.length === blockBytes ? content : Buffer.concat([content, zeroBlock.subarray(content.length)]);
  if (zeroBlock.equals(padded)) return Buffer.alloc(width);
  return hash("sha256", padded, "buffer").subarray(0, width);
}

/** Root of a disk with this content, computed from scratch. */
export function rootOf(disk: Geometry, blocks: Blocks): string {
  const pages = createPageDigests(disk);
  const perPage = 4096 / width;
  for (const page of new Set([...blocks.keys()].map((block) => Math.floor(block / perPage)))) {
    const digests = Buffer.alloc(4096);
    for (const [block, value] of blocks) {
      if (Math.floor(block / perPage) !== page) continue;
      const content = blockContent(value).subarray(0, blockLength(disk, block));
      digests.set(digestOf(content), (block % perPage) * width);
    }
    pages.set(page, pageDigest(digests));
  }
  return Buffer.from(pages.root()).toString("hex");
}

export const pool = createBufferPool({ slotBytes, slotCount: 8, extraBytes: laneRoomBytes });
const lane = await createLane({ memory: pool.memory, roomAt: pool.extraAt, storage: {} as LaneStorage });
const keepers = new WeakMap<DiskWriter, OldContent>();

export function lanesOver(storage: LaneStorage): Lanes {
  return createInlineLanes({ ...lane, storage });
}

function keeperOf(writer: DiskWriter, storage: LaneStorage): OldContent {
  let keeper = keepers.get(writer);
  if (keeper === undefined) {
    const signal = new AbortController().signal;
    const lanes = lanesOver(storage);
    keeper = new OldContent({
      ...{ disk: diskName, writer, lanes, pool, log: silentLogger, signal, isSettled: () => true },
      clock: { sleep: () => Promise.resolve() },
    });
    keepers.set(writer, keeper);
  }
  return keeper;
}

/**
 * Keeps what one block holds, then writes it as a lane does, to the replica and then to the table; a failure poisons, as the receiver does it.
 */
export async function putBlock(writer: DiskWriter, lanes: LaneStorage, block: number, value: number): Promise<void> {
  try {
    await keeperOf(writer, lanes).keepWhole([block], Uint8Array.from(writer.table.get(block)));
    await writeValue(writer, lanes, block, value);
  } catch (error) {
    writer.poison();
    throw toReplicationError(error, "write-failed");
  }
}

/** Keeps what is cut off, then cuts, as the receiver does it; a failure poisons. */
export async function shrinkTo(writer: DiskWriter, lanes: LaneStorage, sizeBytes: number): Promise<void> {
  try {
    const first = Math.floor(sizeBytes / blockBytes);
    await keeperOf(writer, lanes).keepTail(first, (page) => Promise.resolve(writer.table.page(page)));
    await writer.shrink(sizeBytes);
  } catch (error) {
    writer.poison();
    throw toReplicationError(error, "write-failed");
  }
}

/** Keeps parts of one block; `mask`: a bit a part. */
export async function keepParts(
  writer: DiskWriter,
  lanes: LaneStorage,
  block: number,
  mask: number,
  base: Uint8Array,
): Promise<void> {
  await keepPartsOf(writer, lanes, [{ block, mask, base }]);
}

/** Keeps parts of blocks that one frame overwrites, with one sync. */
export async function keepPartsOf(
  writer: DiskWriter,
  lanes: LaneStorage,
  kept: readonly { readonly block: number; readonly mask: number; readonly base: Uint8Array }[],
): Promise<void> {
  const slot = await pool.acquire();
  try {
    const masks = Uint8Array.from(kept, ({ mask }) => mask);
    const blocks = kept.map(({ block }) => block);
    const rawBytes = countParts(masks) * PART_BYTES;
    const frame = { payloadBytes: rawBytes, codec: "stored", rawBytes, blocks } as const;
    await keeperOf(writer, lanes).keep(
      { ...frame, masks, digests: new Uint8Array(8 * blocks.length) },
      Buffer.concat(kept.map(({ base }) => base)),
      slot,
      new KnownParts(blockBytes),
    );
  } finally {
    slot.release();
  }
}

async function writeValue(writer: DiskWriter, lanes: LaneStorage, block: number, value: number): Promise<void> {
  const disk = writer.table.geometry;
  const content = blockContent(value).subarray(0, blockLength(disk, block));
  if (value === 0) {
    punchBlock(writer, lanes, block, content.length);
    writer.table.clear(block, 1);
    return;
  }
  await writeBlock(writer, lanes, block, [{ within: 0, bytes: content }]);
  writer.table.set(block, 1, digestOf(content));
}

/** Makes the replica hold `blocks`: what the table says differs is written. */
export async function apply(writer: DiskWriter, lanes: LaneStorage, blocks: Blocks): Promise<void> {
  const disk = writer.table.geometry;
  for (let block = 0; block < blockCount(disk); block++) {
    const value = blocks.get(block) ?? 0;
    const zero = writer.table.isZero(block);
    if (value === 0 && zero) continue;
    const digest = digestOf(blockContent(value).subarray(0, blockLength(disk, block)));
    if (digest.compare(writer.table.get(block)) !== 0) await putBlock(writer, lanes, block, value);
  }
}

/** Blocks of the replica that may hold data. */
function* dataBlocks(writer: DiskWriter): Generator<number> {
  let next = 0;
  for (let data = writer.nextData(0); data !== undefined; data = writer.nextData(data.end)) {
    for (let block = Math.floor(data.start / blockBytes); block * blockBytes < data.end; block++) {
      if (block >= next) yield block;
      next = block + 1;
    }
  }
}

/** A block of the replica, until the next one is read. */
const replicaBlock = Buffer.alloc(blockBytes);

function digestReplica(writer: DiskWriter, lanes: LaneStorage, block: number): Buffer {
  const content = replicaBlock.subarray(0, blockLength(writer.table.geometry, block));
  if (readBlock(writer, lanes, block, content) !== content.length) {
    throw new Error(`the replica ends before the end of block ${block}`);
  }
  return digestOf(content);
}

/** Makes a table in doubt true again, as the receiver does. */
export async function rebuild(writer: DiskWriter, lanes: LaneStorage): Promise<void> {
  const { doubt, logged, table } = writer;
  const recent = doubt?.blocks === "recent" ? logged : undefined;
  const slot = await pool.acquire();
  try {
    const how = {
      ...{ disk: diskName, geometry: table.geometry, table, slots: [slot] },
      runs: (offset: number, length: number) => writer.runs(offset, length),
      nextData: (offset: number) => writer.nextData(offset),
      lanes: lanesOver(lanes),
      signal: new AbortController().signal,
      inDoubt: recent === undefined ? undefined : (block: number) => recent.isRecent(block),
    };
    await rebuildTable(how, 0, pageCount(table.geometry));
  } finally {
    slot.release();
  }
  await writer.settleDoubt();
}

/** Blocks of which the table says that they are not zero. */
export function nonZeroBlocks(table: DigestTable): number {
  let found = 0;
  for (let block = 0; block < blockCount(table.geometry); block++) found += Number(!table.isZero(block));
  return found;
}

/** Every block of the table is the digest of that block of the replica. */
export function expectTableTrue(writer: DiskWriter, lanes: LaneStorage): void {
  const data = new Set(dataBlocks(writer));
  for (let block = 0; block < blockCount(writer.table.geometry); block++) {
    const zero = writer.table.isZero(block);
    if (zero && !data.has(block)) continue;
    if (digestReplica(writer, lanes, block).compare(writer.table.get(block)) !== 0) {
      throw new Error(`the table is wrong about block ${block}`);
    }
  }
}

export function commitFacts(cycle: string): Omit<Parameters<DiskWriter["commit"]>[0], never> {
  return { time: 1_700_000_000_000, label: undefined, consistency: "crash", cycle, source: "s1", sourceName: "disk" };
}

export function describePoint(point: Point | undefined): string {
  return point === undefined ? "none" : `${point.point} ${point.cycle}`;
}

/** A point reads as these blocks, byte for byte. */
export async function expectPoint(store: Store, point: number, disk: Geometry, blocks: Blocks): Promise<void> {
  const reader = await store.openPoint(diskName, point);
  try {
    await expectReader(reader, disk, blocks);
  } finally {
    await reader.close();
  }
}

export async function expectReader(reader: PointReader, disk: Geometry, blocks: Blocks): Promise<void> {
  const { point } = reader.point;
  if (reader.sizeBytes !== disk.sizeBytes) {
    throw new Error(`point ${point} has ${reader.sizeBytes} bytes and not ${disk.sizeBytes}`);
  }
  const found = Buffer.alloc(blockBytes);
  const seen = new Set<number>();
  for await (const { kind, offset, length } of reader.extents(0, disk.sizeBytes)) {
    if (kind !== "data") continue;
    for (let block = Math.floor(offset / blockBytes); block * blockBytes < offset + length; block++) {
      const size = blockLength(disk, block);
      await reader.read(found.subarray(0, size), block * blockBytes);
      const wanted = blockContent(blocks.get(block) ?? 0).subarray(0, size);
      if (!wanted.equals(found.subarray(0, size))) throw new Error(`point ${point} is wrong in block ${block}`);
      seen.add(block);
    }
  }
  // What is no data reads as zeros.
  for (const block of blocks.keys()) if (!seen.has(block)) throw new Error(`point ${point} lost block ${block}`);
}
