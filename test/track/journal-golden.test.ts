/**
 * Bitmap journals, byte for byte, as docs/formats.md describes them. UPDATE_GOLDEN=1 writes them anew: only for a new version of the format, and then
 * beside the old ones.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { decodeBatch, encodeBatch, type LogRecord } from "../../src/track/journal/batch.ts";
import { describeJournal } from "../../src/track/journal/describe.ts";
import { readJournal } from "../../src/track/journal/load.ts";
import { blockBytes, journalPath, regionBytes, World } from "./journal-world.ts";

const fixtures = join(import.meta.dirname, "../../fixtures/journal/v1");
const root = join(import.meta.dirname, "../..");
const files = ["open.rbj", "closed.rbj"] as const;

async function make(name: (typeof files)[number]): Promise<Uint8Array> {
  const world = new World({ sizeBytes: 5 * regionBytes + 512, logBytes: 64 * 1024 });
  await world.makeImage();
  await world.open();
  await world.cycle();
  await world.write(0, regionBytes + 3 * blockBytes);
  const cut = await world.flip();
  await world.write(blockBytes, 2 * regionBytes, 3 * regionBytes, 4 * regionBytes);
  if (name === "closed.rbj") {
    world.mergeBack(cut);
    await world.close();
  } else {
    await world.write(5 * regionBytes);
    await world.writeRange(0, 4 * regionBytes, 64);
    await world.pass(2);
  }
  return world.disk.peek(journalPath) ?? new Uint8Array();
}

describe("files of version 1", () => {
  test.each(files)("%s is written byte for byte", async (name) => {
    const path = join(fixtures, name);
    const written = await make(name);
    if (process.env["UPDATE_GOLDEN"] === "1") {
      await mkdir(fixtures, { recursive: true });
      await writeFile(path, written);
    }
    expect(Buffer.from(written).equals(await readFile(path))).toBe(true);
  });

  test("are read", async () => {
    const storage = createNodeStorage();
    const read = async (name: string) => {
      const file = await storage.open(join(fixtures, name));
      const reading = await readJournal(file);
      await file.close();
      if ("bad" in reading) throw new Error(reading.bad.words);
      return reading.loaded;
    };
    const open = await read("open.rbj");
    expect(open.header).toMatchObject({ mode: "power", closed: false, blockBytes, base: 1, pending: 0 });
    expect([open.epoch, open.pending, open.remarks]).toEqual([3, 2, []]);
    expect([...open.hot].sort((a, b) => a - b)).toEqual([2, 3, 4, 5]);
    // Regions 0 to 3 by a range; 4 and 5, of which there is one block, because they are hot.
    expect([...open.bits.ranges()]).toEqual([{ first: 0, count: 5 * 64 + 1 }]);
    const closed = await read("closed.rbj");
    expect(closed.header).toMatchObject({ closed: true, base: 1, pending: 2, hot: [] });
    expect(closed.batches).toBe(0);
    expect([...closed.bits.ranges()].map(({ first, count }) => [first, count])).toEqual([
      [0, 2],
      [67, 1],
      [128, 1],
      [192, 1],
      [256, 1],
    ]);
  });

  test("are described", async () => {
    const storage = createNodeStorage();
    const open = await describeJournal(storage, join(fixtures, "open.rbj"));
    expect(open).toMatchObject({ kind: "bitmap journal", trouble: undefined });
    expect(open?.facts).toMatchObject({
      closed: false,
      dirtyBlocks: 321,
      hotRegions: 4,
      heartbeat: "2023-11-14T22:14:22.000Z",
    });
    expect(await describeJournal(storage, join(root, "package.json"))).toBeUndefined();
  });

  test("the example in docs/formats.md is the first batch of the fixture", async () => {
    const text = await readFile(join(root, "docs/formats.md"), "utf8");
    const example = /```hex journal\n([^`]*)```/.exec(text)?.[1] ?? "";
    const bytes = example
      .split("\n")
      .map((line) => /^[0-9a-f]{4} {2}((?:[0-9a-f]{2} )*[0-9a-f]{2})/.exec(line)?.[1] ?? "")
      .join(" ")
      .replaceAll(" ", "");
    expect(bytes.length).toBe(2 * 48);
    const file = await readFile(join(fixtures, "open.rbj"));
    expect(bytes).toBe(file.subarray(16_384, 16_384 + 48).toString("hex"));
  });
});

describe("batches", () => {
  const place = { logId: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8), generation: 7, number: 3 };
  const records: readonly LogRecord[] = [
    { kind: "flip", epoch: 2 ** 40 },
    { kind: "hot", region: 2 ** 24 - 1 },
    { kind: "cool", region: 5, bits: Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 128) },
    { kind: "range", blocks: { first: 2 ** 33, count: 12 } },
  ];

  test("are read as they were written", () => {
    expect(decodeBatch(encodeBatch(place, records), blockBytes)).toEqual({ ...place, bytes: 4_096, records });
    const many = Array.from({ length: 1_000 }, (_, region): LogRecord => ({ kind: "hot", region }));
    expect(decodeBatch(encodeBatch(place, many), blockBytes)).toEqual({ ...place, bytes: 8_192, records: many });
  });

  test("any flipped bit is noticed", () => {
    const bytes = encodeBatch(place, records);
    for (let at = 0; at < 32 + 16 + 8 + 16 + 24; at++) {
      for (let bit = 0; bit < 8; bit++) {
        const other = new Uint8Array(bytes);
        other[at] = (other[at] ?? 0) ^ (1 << bit);
        expect(decodeBatch(other, blockBytes)).toBeUndefined();
      }
    }
    expect(decodeBatch(bytes.subarray(0, 90), blockBytes)).toBeUndefined();
  });
});
