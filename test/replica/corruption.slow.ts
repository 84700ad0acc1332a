/** A store in which one bit is not what it was. Many more bits: corruption.long.ts. */
import { beforeAll, describe, expect, test } from "vitest";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { verifyStoredPoint } from "../../src/replica/verify-point.ts";
import { randomBytes } from "../random.ts";
import {
  type Flip,
  flipsOf,
  indexAndHead,
  look,
  makeSmallStore,
  type SmallStore,
  tryFlips,
  tryGoingOn,
  tryJoining,
  trySuspicion,
} from "./corruption.ts";
import { applyBytes, readPoint, withPoint } from "./part-writes.ts";
import { placesOf } from "./undo-places.ts";
import {
  blockBytes,
  commitFacts,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";

/** About `count` bytes of a file, the same distance apart; of a log half of them in what is neither content nor padding. */
function* some(path: string, bytes: Uint8Array, count: number): Generator<Flip> {
  const placeOf = path.endsWith(".undo") ? placesOf(bytes) : undefined;
  const isHead = (at: number): boolean => !["content", "padding"].includes(placeOf?.(at).kind ?? "padding");
  const all = Array.from(bytes.keys());
  const heads = all.filter(isHead);
  const chosen = new Set([...spread(all, count), ...spread(heads, count)]);
  yield* flipsOf(path, bytes, (at) => (chosen.has(at) ? "one" : "none"));
}

function spread(offsets: readonly number[], count: number): readonly number[] {
  const step = Math.max(1, offsets.length / count);
  return offsets.filter((_unused, index) => Math.floor(index / step) !== Math.floor((index - 1) / step));
}

for (const open of [false, true]) {
  describe(open ? "a flipped bit, with a delta laid aside" : "a flipped bit, with nothing under way", () => {
    let small: SmallStore;
    beforeAll(async () => {
      small = await makeSmallStore(open);
      const good = { refused: [] };
      expect(await look(small.machine)).toEqual({ lost: undefined, unreadable: [], points: [good, good, good] });
    });

    test("costs the blocks it is in, or an error names the file; all else reads as it did", async () => {
      const names = [...small.files.keys()].map((path) => path.slice(path.lastIndexOf("/") + 1));
      const logs = open ? ["0000000003.undo"] : [];
      expect(names).toEqual(
        expect.arrayContaining(["store.json", "disk.json", "replica.raw", "digests", "pages", ...logs]),
      );
      expect(names.includes("session.json") && names.includes("apply.lock")).toBe(open);
      let tried = 0;
      for (const [path, bytes] of small.files) tried += await tryFlips(small, some(path, bytes, 12));
      expect(tried).toBeGreaterThan(120);
    });

    test("never gets into the next point: the session goes on, or is refused", async () => {
      let refused = 0;
      let committed = 0;
      for (const [path, bytes] of small.files) {
        const counts = await tryGoingOn(open, some(path, bytes, 2));
        refused += counts["refused"] ?? 0;
        committed += counts["committed"] ?? 0;
      }
      expect(refused).toBeGreaterThan(5);
      expect(committed).toBeGreaterThan(refused);
    });
  });
}

test.each([false, true])(
  "a flipped bit in what is on record of changes (found: %s) does not lessen the doubt",
  async (found) => {
    expect(await trySuspicion(found, "one")).toBeGreaterThan(100);
  },
);

test("a flipped bit in logs that are joined stays where it is", async () => {
  const counts = await tryJoining((path, bytes) => Array.from(some(path, bytes, 9), (one) => [one]));
  expect(counts.joined).toBeGreaterThan(15);
  expect(counts.left).toBeGreaterThan(8);
});

test("a log that has lost entries is not joined", async () => {
  const counts = await tryJoining(indexAndHead);
  expect(counts).toEqual({ joined: 0, left: expect.any(Number) });
  expect(counts.left).toBeGreaterThan(10);
});

test("a flipped bit under a block that a delta then overwrites: the older point reports it, and the newer one is right", async () => {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  const first = randomBytes(4 * blockBytes);
  await store.create(diskName, { geometry: geometry(first.length), owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  const commit = async (content: Buffer): Promise<void> => {
    await writer.begin();
    await applyBytes(writer, process.lanes, content);
    await writer.commit(commitFacts("c"));
  };
  await commit(first);
  const replica = `${storePath}/disks/${diskName}/replica.raw`;
  const at = 2 * blockBytes + 5000;
  machine.poke(replica, Uint8Array.of((first[at] ?? 0) ^ 4), at);

  // Another part of the block, then all of it.
  const second = Buffer.from(first);
  second.set(randomBytes(10), 2 * blockBytes + 9000);
  second.set(randomBytes(10), 77);
  await commit(second);
  const third = Buffer.from(second);
  third.set(randomBytes(blockBytes), 2 * blockBytes);
  await commit(third);
  await writer.release();

  expect((await readPoint(store, 2)).equals(second)).toBe(true);
  expect((await readPoint(store, 3)).equals(third)).toBe(true);
  await withPoint(store, 1, async (reader) => {
    const block = Buffer.alloc(blockBytes);
    for (const offset of [0, blockBytes, 3 * blockBytes]) {
      await reader.read(block, offset);
      expect(block.equals(first.subarray(offset, offset + blockBytes))).toBe(true);
    }
    await expect(reader.read(block, 2 * blockBytes)).rejects.toMatchObject({
      code: "store-damaged",
      details: { disk: diskName, point: 1, block: 2, offset: 2 * blockBytes },
    });
  });
  const report = await verifyStoredPoint(store, diskName, 1, {
    from: 0,
    pace: () => Promise.resolve(),
    signal: undefined,
    onProgress: () => undefined,
  });
  expect(report).toMatchObject({
    good: false,
    damagedBytes: blockBytes,
    damaged: [{ offset: 2 * blockBytes, length: blockBytes, goodPoint: 3, sameContent: false }],
  });
});
