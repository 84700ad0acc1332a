/**
 * What it costs to open any of 50 points of 1 TiB, and to read a block of it: bytes that are read, and not times or memory of this machine, which
 * bench/open-points.mjs measures. All that is kept of a point comes out of what was read, so few bytes are little memory as well.
 */
import { beforeAll, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { DiskWriter, PointReader, Store } from "../../src/replica/store.ts";
import type { Storage, StorageFile } from "../../src/storage/seam.ts";
import { createSimulatedDisk, type SimulatedDisk, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import { writeBlock } from "./in-replica.ts";
import { overriding } from "./overriding.ts";
import { partBytes } from "./part-writes.ts";
import {
  blockBytes,
  commitFacts,
  createChance,
  digestOf,
  diskName,
  geometry,
  keepPartsOf,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";

const sizeBytes = 2 ** 40;
const pointCount = 50;
/** One part of each of so many blocks, scattered over the disk, has content; each delta changes some of them. */
const placeCount = 3_000;
const changesEach = 1_000;
const frameBlocks = 32;

/** What is promised of memory; what is read of a point stays far below it. */
const promisedBytes = 64 * MIB;

const pageBytes = 4 * KIB;
/** Table pages are read some at a time, and a block is read from the replica. */
const windowBytes = 128 * KIB;

interface Place {
  readonly block: number;
  readonly part: number;
  /** Content by the point that it came with. */
  readonly contents: Map<number, Buffer>;
}

const chance = createChance(50);
const places: readonly Place[] = Array.from({ length: placeCount }, (_unused, nth) => {
  const apart = Math.floor(sizeBytes / blockBytes / placeCount);
  return {
    block: nth * apart + Math.floor(chance() * apart),
    part: Math.floor((chance() * blockBytes) / partBytes),
    contents: new Map(),
  };
});

function contentAt({ contents, part }: Place, point: number): Buffer {
  const content = Buffer.alloc(blockBytes);
  const last = [...contents.keys()].filter((made) => made <= point).at(-1);
  content.set(contents.get(last ?? 0) ?? Buffer.alloc(0), part * partBytes);
  return content;
}

async function makePoints(process: SimulatedProcess): Promise<void> {
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: geometry(sizeBytes), owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  for (let point = 1; point <= pointCount; point++) {
    await writer.begin();
    const changed = places.filter(() => point === 1 || chance() < changesEach / placeCount);
    for (let first = 0; first < changed.length; first += frameBlocks)
      await change(writer, process, point, changed.slice(first, first + frameBlocks));
    await writer.commit(commitFacts(`c${point}`));
  }
  await writer.release();
}

/** As one frame of a delta does it. */
async function change(
  writer: DiskWriter,
  { lanes }: SimulatedProcess,
  point: number,
  changed: readonly Place[],
): Promise<void> {
  const { table } = writer;
  const kept = changed.map(({ block, part }) => ({ block, mask: 1 << part, base: Uint8Array.from(table.get(block)) }));
  await keepPartsOf(writer, lanes, kept);
  for (const place of changed) {
    const { block, part, contents } = place;
    const bytes = randomBytes(partBytes);
    contents.set(point, bytes);
    await writeBlock(writer, lanes, block, [{ within: part * partBytes, bytes }]);
    table.set(block, 1, digestOf(contentAt(place, point)));
  }
}

/** Reads of both faces count, by what was asked for: a page cache gives no more. */
function counting(storage: Storage, count: (bytes: number) => void): Storage {
  const { lanes } = storage;
  return overriding(storage, {
    lanes: overriding(lanes, {
      read: (fd, target, offset) => {
        count(target.length);
        return lanes.read(fd, target, offset);
      },
    }),
    open: async (path, options) => {
      const file: StorageFile = await storage.open(path, options);
      return overriding(file, {
        read: (target, offset) => {
          count(target.length);
          return file.read(target, offset);
        },
      });
    },
  });
}

describe("50 points of 1 TiB", () => {
  let machine: SimulatedDisk;

  beforeAll(async () => {
    machine = createSimulatedDisk();
    const process = machine.start();
    await makePoints(process);
    process.kill();
  });

  /** As a process that is new, which has nothing in memory. */
  async function withFresh(work: (store: Store, readBytes: () => number) => Promise<void>): Promise<void> {
    let bytes = 0;
    const process = machine.start();
    const store = await openTestStore(
      counting(process, (count) => (bytes += count)),
      storePath,
    );
    const readBytes = (): number => {
      const all = bytes;
      bytes = 0;
      return all;
    };
    readBytes();
    await work(store, readBytes);
    process.kill();
  }

  async function expectBlock(reader: PointReader, block: number, wanted: Buffer): Promise<void> {
    const found = Buffer.alloc(blockBytes, 0xee);
    await reader.read(found, block * blockBytes);
    expect(found.equals(wanted), `point ${reader.point.point}, block ${block}`).toBe(true);
  }

  test("opening any of them reads a page of each log at most, and a block two more; far below what is promised", async () => {
    for (let point = 1; point <= pointCount; point++) {
      await withFresh(async (store, readBytes) => {
        const records = pointCount - point + 1;
        const reader = await store.openPoint(diskName, point);
        const opening = readBytes();
        expect(opening, `opening point ${point}`).toBeLessThan(records * pageBytes + 2 * pageBytes);
        const { block, ...place } = places[(point * 101) % placeCount] ?? { block: 0, part: 0, contents: new Map() };
        await expectBlock(reader, block, contentAt({ block, ...place }, point));
        await expectBlock(reader, block + 1, Buffer.alloc(blockBytes));
        const reading = readBytes();
        expect(reading, `two blocks of point ${point}`).toBeLessThan(2 * records * 2 * pageBytes + 2 * windowBytes);
        expect(opening + reading).toBeLessThan(promisedBytes);
        await reader.close();
      });
    }
  });
});
