/** Images adopted on a simulated disk: `/images/web.raw` becomes disk `web` of `/store`. */
import { expect } from "vitest";
import { blockCount, blockLength, type Geometry } from "../../src/base/units.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import { type AdoptOptions, adoptDisk } from "../../src/replication/adopt.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createSimulatedDisk, type SimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { type Blocks, blockBytes, blockContent, geometry, openTestStore, rootOf } from "../replica/simulated-store.ts";
import { engineOn, openSeedStore } from "./seed-kit.ts";

export const imagePath = "/images/web.raw";
export const storePath = "/store";
export const disk = "web";
export const folder = `${storePath}/disks/${disk}`;
export const movedPath = `${folder}/replica.raw`;

/** The last block is a short one. */
export const content: Blocks = new Map([
  [0, 1],
  [1, 2],
  [9, 3],
  [12, 4],
]);
export const shape: Geometry = geometry(12 * blockBytes + 512);
/** What a delta makes of it. */
export const second: Blocks = new Map([
  [0, 1],
  [1, 5],
  [5, 6],
  [12, 4],
]);

export function bytesOf(blocks: Blocks, { sizeBytes }: Geometry): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (const [block, value] of blocks) {
    bytes.set(blockContent(value).subarray(0, blockLength({ ...shape, sizeBytes }, block)), block * blockBytes);
  }
  return bytes;
}

/** A sparse file. `durable`: a loss of power takes nothing of it. */
export async function writeImage(
  storage: Storage,
  options: { readonly path?: string; readonly blocks?: Blocks; readonly durable?: boolean } = {},
): Promise<void> {
  const { path = imagePath, blocks = content, durable = true } = options;
  const directory = path.slice(0, path.lastIndexOf("/"));
  await storage.makeDirectory(directory);
  await storage.syncDirectory("/");
  await storage.unlink(path);
  const file = await storage.open(path, { write: true, create: true, mode: 0o644 });
  await file.truncate(shape.sizeBytes);
  for (const [block, value] of blocks) {
    await file.write(blockContent(value).subarray(0, blockLength(shape, block)), block * blockBytes);
  }
  if (durable) await file.datasync();
  await file.close();
  if (durable) await storage.syncDirectory(directory);
}

export async function machineWithImage(options: Parameters<typeof writeImage>[1] = {}): Promise<SimulatedDisk> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await writeImage(process, options);
  process.kill();
  return machine;
}

/** `replicate adopt` in a process of its own. Every slot is back when it returns. */
export async function adopt(
  storage: Storage,
  options: Partial<AdoptOptions> & { readonly name?: string } = {},
): ReturnType<typeof adoptDisk> {
  const { name = disk, ...rest } = options;
  const engine = await engineOn(storage);
  const { lanes, pool } = engine;
  try {
    const store = await openSeedStore(storage, engine, storePath);
    return await adoptDisk(store, name, {
      ...{ lanes, pool, image: imagePath, owner: "owner", blockBytes, digestKind: "sha256" },
      ...rest,
    });
  } finally {
    await engine.close();
    expect(pool.free).toBe(pool.slotCount);
  }
}

export function openStoreOn(storage: Storage): Promise<Store> {
  return openTestStore(storage, storePath);
}

export async function writerOf(store: Store): Promise<DiskWriter> {
  const opened = await store.openWriter(disk, { identity: "owner", instance: "i1" });
  if (opened.kind !== "open") throw new Error("the disk is busy");
  return opened.writer;
}

/** A point is these blocks, byte for byte, and its record names their root. */
export async function expectPointIs(store: Store, sequence: number, blocks: Blocks, size = shape): Promise<void> {
  const reader = await store.openPoint(disk, sequence);
  try {
    expect(reader.point.root).toBe(rootOf(size, blocks));
    expect(reader.sizeBytes).toBe(size.sizeBytes);
    const found = Buffer.alloc(blockBytes);
    for (let block = 0; block < blockCount(size); block++) {
      const piece = found.subarray(0, blockLength(size, block));
      await reader.read(piece, block * blockBytes);
      const wanted = blockContent(blocks.get(block) ?? 0).subarray(0, piece.length);
      if (!wanted.equals(piece)) throw new Error(`point ${sequence} is wrong in block ${block}`);
    }
  } finally {
    await reader.close();
  }
}

export function peekImage(machine: SimulatedDisk, path = imagePath): Buffer | undefined {
  const bytes = machine.peek(path);
  return bytes === undefined ? undefined : Buffer.from(bytes);
}
