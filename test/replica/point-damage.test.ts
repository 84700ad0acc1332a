/** A point is served as it was, or not at all, whatever is damaged in the store. */
import { readFileSync, statSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { PointReader } from "../../src/replica/store.ts";
import type { KitOptions, SendOptions } from "../replication/pair-kit.ts";
import {
  changed,
  Changing,
  expectExtents,
  flip,
  hookedLanes,
  imageOf,
  logName,
  makePoints,
  PointKit,
  readDamaged,
} from "./point-kit.ts";

let kit: PointKit;
const readers: PointReader[] = [];

async function start(options: SendOptions = {}, kitOptions: KitOptions = {}): Promise<void> {
  kit = await PointKit.create(options, kitOptions);
}

async function open(point: number | "newest"): Promise<PointReader> {
  const reader = await kit.open(point);
  readers.push(reader);
  return reader;
}

afterEach(async () => {
  for (const reader of readers.splice(0)) await reader.close();
  expect(await kit.close(), "every slot is back").toBe(true);
});

test("a flipped bit in the replica", async () => {
  await start({ blockBytes: 16 * KIB });
  await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
  // The newest point has it from the replica; it was written over in the last two deltas.
  const at = 9 * 16 * KIB + 5;
  await changed(kit, "replica.raw", flip(at), async () => {
    const newest = await open(6);
    expect(await readDamaged(newest, kit.content(6))).toEqual([9]);
    await expect(newest.read(Buffer.alloc(10), at)).rejects.toMatchObject({
      code: "store-damaged",
      details: { disk: "disk", point: 6, block: 9, offset: 9 * 16 * KIB },
    });
    await expectExtents(newest, kit.content(6));
    await kit.expectPoint(5);
  });
  await kit.expectAll();
});

test("flipped bits anywhere: an error, or what was sent", async () => {
  await start({ blockBytes: 16 * KIB });
  await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
  const files = ["replica.raw", "digests", "pages", ...[1, 3, 5].map((point) => logName(point))];
  let refused = 0;
  for (const file of files) {
    const size = statSync(kit.path(file)).size;
    for (let turn = 0; turn < 10; turn++) {
      const at = Math.floor(Changing.chance() * size);
      const point = 1 + (turn % 6);
      await changed(kit, file, flip(at), async () => {
        refused += await refusedOf(point);
      });
    }
  }
  expect(refused).toBeGreaterThan(0);
  await kit.expectAll();
});

test("every page of a log lost", async () => {
  await start({ blockBytes: 16 * KIB });
  await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
  const log = logName(2);
  const pages = statSync(kit.path(log)).size / 4096;
  const refused: number[] = [];
  for (let page = 0; page < pages; page++) {
    const lose = (bytes: Buffer): Buffer => bytes.fill(0, page * 4096, (page + 1) * 4096);
    await changed(kit, log, lose, async () => {
      refused.push(await refusedOf(2));
      // Points behind it need nothing of it.
      await kit.expectPoint(3);
    });
  }
  expect(refused.some((count) => count > 0 && count < Number.POSITIVE_INFINITY)).toBe(true);
});

test("an interrupted delta with a damaged batch", async () => {
  let stop = false;
  const controller = new AbortController();
  const hook = (job: string, when: string): Promise<void> => {
    if (stop && job === "apply" && when === "after") controller.abort();
    return Promise.resolve();
  };
  await start({ blockBytes: 16 * KIB }, { receiverLanes: hookedLanes(hook) });
  const disk = new Changing(4 * MIB).write(0, 4 * MIB);
  await kit.commit(disk.content);
  stop = true;
  disk.write(0, 4 * MIB);
  await expect(kit.pair.sendUntil(controller.signal, await imageOf(disk.content))).rejects.toBeInstanceOf(Error);
  await kit.pair.idle();
  await kit.expectPoint("newest", 1);
  const size = statSync(kit.logPath(1)).size;
  const counts: number[] = [];
  for (let turn = 0; turn < 12; turn++) {
    const at = Math.floor((turn / 12) * size) + 40 * (turn % 2);
    await changed(kit, logName(1), flip(at), async () => {
      counts.push(await refusedOf(1));
    });
  }
  expect(Math.max(...counts.filter(Number.isFinite))).toBeGreaterThan(0);
});

test("a table that lost a page, its checksums or everything", async () => {
  await start({ blockBytes: 16 * KIB });
  await makePoints(kit, 16 * KIB * 18 + 700, 16 * KIB);
  const zero = (bytes: Buffer): Buffer => bytes.fill(0);
  await changed(kit, "digests", zero, async () => {
    // Zeros that are zeros, and what logs have, are still told.
    const refused = await refusedOf(6);
    expect(refused).toBeGreaterThan(0);
    expect(refused).toBeLessThan(25);
    await expectExtents(await open(6), kit.content(6));
  });
  await changed(kit, "pages", zero, () => kit.expectPoint(6).then(() => undefined));
  const cut = (): Buffer => Buffer.alloc(0);
  await changed(kit, "pages", cut, async () => {
    const reader = await open(6);
    await expect(reader.read(Buffer.alloc(100), 9 * 16 * KIB)).rejects.toMatchObject({ code: "store-damaged" });
    // All of it is in the logs.
    const old = await open(1);
    const block = Buffer.alloc(16 * KIB);
    await old.read(block, 9 * 16 * KIB);
    expect(block.equals(kit.content(1).subarray(9 * 16 * KIB, 10 * 16 * KIB))).toBe(true);
  });
});

test("what lies in a page of zero blocks means nothing", async () => {
  await start({ blockBytes: 16 * KIB });
  const disk = new Changing(9 * MIB).write(0, MIB);
  await kit.commit(disk.content);
  await kit.commit(disk.write(MIB, 100).content);
  const scribble = (bytes: Buffer): Buffer => bytes.fill(0x5a, 4096);
  await changed(kit, "digests", scribble, () => kit.expectAll());
});

test("pages of the table written before their checksums, as in a long delta", async () => {
  let stop = false;
  const controller = new AbortController();
  const hook = (job: string, when: string): Promise<void> => {
    if (stop && job === "apply" && when === "after") controller.abort();
    return Promise.resolve();
  };
  await start({ blockBytes: 16 * KIB }, { receiverLanes: hookedLanes(hook) });
  const disk = new Changing(6 * MIB).write(0, 3 * MIB);
  await kit.commit(disk.content);
  const before = readFileSync(kit.path("pages"));
  stop = true;
  disk.zero(0, 16 * KIB).write(16 * KIB, 2 * MIB);
  await expect(kit.pair.sendUntil(controller.signal, await imageOf(disk.content))).rejects.toBeInstanceOf(Error);
  await kit.pair.idle();
  expect(readFileSync(kit.path("pages")).equals(before)).toBe(false);
  await changed(
    kit,
    "pages",
    () => before,
    async () => {
      await kit.expectPoint(1);
      const reader = await open(1);
      const kinds: string[] = [];
      for await (const { kind } of reader.extents(0, reader.sizeBytes)) kinds.push(kind);
      // The log proves the page, so its zeros count.
      expect(kinds).toEqual(["data", "zero"]);
    },
  );
});

/** Blocks of a point that are refused; infinite: all of it. */
async function refusedOf(point: number): Promise<number> {
  let reader: PointReader;
  try {
    reader = await kit.open(point);
  } catch (error) {
    expect(error).toMatchObject({ code: expect.stringMatching(/^store-(damaged|version-unsupported)$/) });
    return Number.POSITIVE_INFINITY;
  }
  try {
    return (await readDamaged(reader, kit.content(point))).length;
  } finally {
    await reader.close();
  }
}
