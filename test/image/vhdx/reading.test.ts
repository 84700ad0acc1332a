/** What a VHDX file may look like and still be read, and what is damage: files made for each case. */
import { mkdir } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import type { ReplicationError } from "../../../src/base/errors.ts";
import { KIB, MIB, TIB } from "../../../src/base/units.ts";
import { openVhdx } from "../../../src/image/vhdx/open.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import type { Storage } from "../../../src/storage/seam.ts";
import { createScratch } from "../../storage/scratch.ts";
import { extentsOf, pattern, readRange } from "../conformance.ts";
import { bytesOf } from "../pieces.ts";
import {
  type BuiltVhdx,
  blockState,
  buildVhdx,
  guids,
  headerBytes,
  logEntry,
  memoryStorage,
  metadataRegion,
  openBytes,
  parentLocator,
  places,
  regionTable,
  sealed,
  type VhdxPlan,
  writeVhdx,
} from "./kit.ts";

const content = pattern(10_000, 3);
const simple: VhdxPlan = { sizeBytes: 4 * MIB, pieces: [{ offset: MIB + 500, bytes: content }] };

async function contentOf(bytes: Uint8Array, others: Readonly<Record<string, Uint8Array>> = {}): Promise<Uint8Array> {
  const { reader } = await openBytes(bytes, others);
  const all = await readRange(reader, 0, reader.sizeBytes);
  await reader.close();
  return all;
}

function expected(plan: VhdxPlan): Uint8Array {
  const all = new Uint8Array(plan.sizeBytes);
  for (const { offset, bytes } of plan.pieces ?? []) all.set(bytes, offset);
  return all;
}

async function expectContent(bytes: Uint8Array, plan: VhdxPlan): Promise<void> {
  expect(Buffer.compare(await contentOf(bytes), expected(plan))).toBe(0);
}

const failure = (bytes: Uint8Array, others?: Readonly<Record<string, Uint8Array>>) =>
  contentOf(bytes, others).then(
    () => expect.unreachable("it was read"),
    (error: unknown) => error as { readonly code: string; readonly message: string },
  );

function changed(bytes: Buffer, change: (copy: Buffer) => void): Buffer {
  const copy = Buffer.from(bytes);
  change(copy);
  return copy;
}

function setEntry(copy: Buffer, built: BuiltVhdx, block: number, state: number, at = 0): void {
  copy.writeBigUInt64LE(BigInt(at) | BigInt(state), built.entryOf(block));
}

const [header1, header2] = places.headers;

describe("headers", () => {
  const bytes = bytesOf(buildVhdx(simple));
  const withHeaders = (one: Buffer, two: Buffer): Buffer =>
    changed(bytes, (copy) => {
      one.copy(copy, header1);
      two.copy(copy, header2);
    });

  test("C-01 two equal ones are one; two that differ under one number are damage", async () => {
    const same = sealed(headerBytes(1n, {}));
    await expectContent(withHeaders(same, same), simple);
    const other = sealed(headerBytes(1n, { dataGuid: guids.log }));
    const error = await failure(withHeaders(same, other));
    expect(error).toMatchObject({ code: "image-damaged" });
    expect(error.message).toContain(String(header1));
    expect(error.message).toContain(String(header2));
  });

  test.each([
    [0xffff_ffff_ffff_ffffn, 0xffff_ffff_ffff_fffen],
    [0x20_0000_0000_0001n, 0x20_0000_0000_0000n],
  ])("C-10 the greater sequence number counts: %d over %d", async (greater, smaller) => {
    const wrong = { dataGuid: guids.data, log: [] };
    const pairs: [bigint, bigint][] = [
      [greater, smaller],
      [smaller, greater],
    ];
    for (const [one, two] of pairs) {
      // The one that must not be used names a log that is not there.
      const file = withHeaders(
        sealed(headerBytes(one, one === greater ? {} : wrong)),
        sealed(headerBytes(two, two === greater ? {} : wrong)),
      );
      await expectContent(file, simple);
    }
  });

  test("C-20 one damaged copy of header or region table does no harm and is told, two do", async () => {
    const zeroed = (...at: readonly number[]): Buffer =>
      changed(bytes, (copy) => {
        for (const place of at) copy.fill(0, place, place + 4 * KIB);
      });
    const remarksOf = async (file: Buffer): Promise<readonly string[]> => {
      await expectContent(file, simple);
      const { files } = await openBytes(file);
      return files[0]?.facts.remarks ?? [];
    };
    expect(await remarksOf(bytes)).toEqual([]);
    expect(await remarksOf(zeroed(header1))).toEqual(["header 1: signature missing, header 2 used"]);
    expect(await remarksOf(zeroed(header2))).toEqual(["header 2: signature missing, header 1 used"]);
    expect(await remarksOf(changed(bytes, (copy) => copy.writeUInt8(1, header2 + 100)))).toEqual([
      "header 2: checksum wrong, header 1 used",
    ]);
    expect(await remarksOf(zeroed(places.regionTables[0]))).toEqual([
      "region table 1: signature missing, the other one used",
    ]);
    expect(await failure(zeroed(header1, header2))).toMatchObject({
      code: "image-damaged",
      message: expect.stringMatching(/neither header.*65536.*131072/),
    });
    expect(await failure(zeroed(...places.regionTables))).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("neither region table"),
    });
    await expectContent(
      changed(bytes, (copy) => copy.fill(0xff, 8, 520)),
      simple,
    );
  });

  test("a newer version of the format is refused, not read", async () => {
    const newer = headerBytes(9n, {});
    newer.writeUInt16LE(2, 66);
    expect(await failure(withHeaders(sealed(newer), sealed(headerBytes(8n, {}))))).toMatchObject({
      code: "image-format-unsupported",
      message: expect.stringContaining("version 2"),
    });
  });
});

describe("regions and metadata", () => {
  const bytes = bytesOf(buildVhdx(simple));
  const withRegions = (...regions: Parameters<typeof regionTable>[0]): Buffer =>
    changed(bytes, (copy) => {
      const table = regionTable(regions);
      for (const at of places.regionTables) table.copy(copy, at);
    });
  const bat = { guid: guids.bat, offset: places.bat, length: MIB, required: true };
  const meta = { guid: guids.metadata, offset: places.metadata, length: MIB, required: true };

  test("known regions need not be marked as required, unknown ones must not be", async () => {
    await expectContent(withRegions({ ...meta, required: false }, { ...bat, required: false }), simple);
    const unknown = { guid: guids.data, offset: 9 * MIB, length: MIB };
    await expectContent(withRegions(bat, meta, { ...unknown, required: false }), simple);
    expect(await failure(withRegions(bat, meta, { ...unknown, required: true }))).toMatchObject({
      code: "image-format-unsupported",
      message: expect.stringContaining(guids.data),
    });
  });

  test.each([
    ["none", [meta], "BAT 0 times"],
    ["two", [bat, meta, { ...bat, offset: 9 * MIB }], "BAT 2 times"],
    ["in the headers", [{ ...bat, offset: 0 }, meta], "behind the headers"],
    ["not on a MiB", [{ ...bat, offset: places.bat + 4096 }, meta], "whole MiB"],
    ["over the metadata", [{ ...bat, offset: places.metadata }, meta], "over each other"],
    ["over the log", [{ ...bat, offset: places.log }, meta], "over each other"],
    ["of no length", [{ ...bat, length: 0 }, meta], "whole MiB"],
  ])("a BAT that is %s is damage", async (_name, regions, words) => {
    expect(await failure(withRegions(...regions))).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
  });

  const items = (
    changes: Readonly<Record<string, Buffer | undefined>>,
    more: readonly { readonly guid: string; readonly bytes: Buffer }[] = [],
  ): Buffer => {
    const number = (value: number, length: number): Buffer => {
      const made = Buffer.alloc(length);
      made.writeUInt32LE(value);
      return made;
    };
    const normal = {
      [guids.fileParameters]: number(MIB, 8),
      [guids.diskSize]: number(4 * MIB, 8),
      [guids.logicalSector]: number(512, 4),
      [guids.physicalSector]: number(4096, 4),
      ...changes,
    };
    const list = Object.entries(normal).flatMap(([guid, made]) => (made === undefined ? [] : [{ guid, bytes: made }]));
    return changed(bytes, (copy) => {
      copy.fill(0, places.metadata, places.metadata + MIB);
      for (const { offset, bytes: made } of metadataRegion([...list, ...more])) copy.set(made, offset);
    });
  };
  const number = (value: bigint | number, length = 8): Buffer => {
    const made = Buffer.alloc(8);
    made.writeBigUInt64LE(BigInt(value));
    return made.subarray(0, length);
  };

  test.each([
    ["no size", { [guids.diskSize]: undefined }, "the size of the disk is missing"],
    ["no parameters", { [guids.fileParameters]: undefined }, "the file parameters are missing"],
    ["a size of half a sector", { [guids.diskSize]: number(4 * MIB + 256) }, "sectors of 512"],
    ["a size beyond any", { [guids.diskSize]: number(2n ** 63n) }, "a disk of"],
    ["a size above 64 TiB", { [guids.diskSize]: number(64 * TIB + 512) }, "a disk of"],
    ["payload blocks of 3 MiB", { [guids.fileParameters]: number(3 * MIB) }, "payload blocks of 3145728"],
    ["payload blocks of 512 MiB", { [guids.fileParameters]: number(512 * MIB) }, "payload blocks of 536870912"],
    ["payload blocks of nothing", { [guids.fileParameters]: number(0) }, "payload blocks of 0"],
    ["sectors of 520", { [guids.logicalSector]: number(520, 4) }, "logical sectors of 520"],
    ["a short item", { [guids.diskSize]: number(4 * MIB, 4) }, "4 bytes, needed 8"],
    ["a disk its BAT is too short for", { [guids.diskSize]: number(32 * TIB) }, "the BAT has 1048576 bytes"],
    ["a parent, but no locator", { [guids.fileParameters]: number(BigInt(MIB) | (2n << 32n)) }, "parent locator"],
  ])("%s is damage", async (_name, changes, words) => {
    expect(await failure(items(changes))).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
  });

  test("an unknown required item is refused by its name", async () => {
    await expectContent(items({}), simple);
    expect(await failure(items({}, [{ guid: guids.log, bytes: Buffer.alloc(8) }]))).toMatchObject({
      code: "image-format-unsupported",
      message: expect.stringContaining(guids.log),
    });
  });

  test("a disk of nothing, and of one sector", async () => {
    for (const sizeBytes of [0, 512]) {
      const plan = { sizeBytes, pieces: sizeBytes === 0 ? [] : [{ offset: 0, bytes: pattern(512, 1) }] };
      await expectContent(bytesOf(buildVhdx(plan)), plan);
    }
  });
});

describe("the BAT", () => {
  test("states that read as zeros, and content, whatever the file is called", async () => {
    const { notPresent, undefined: undef, zero, unmapped } = blockState;
    const states = new Map([notPresent, undef, zero, unmapped].map((state, block) => [block, state]));
    const plan: VhdxPlan = { sizeBytes: 8 * MIB, fixed: true, states, pieces: [{ offset: 5 * MIB, bytes: content }] };
    const bytes = bytesOf(buildVhdx(plan));
    await expectContent(bytes, plan);
    const { reader } = await openBytes(bytes);
    expect(await extentsOf(reader, 0, 8 * MIB)).toEqual([
      { kind: "hole", offset: 0, length: 5 * MIB },
      { kind: "data", offset: 5 * MIB, length: MIB },
      { kind: "hole", offset: 6 * MIB, length: 2 * MIB },
    ]);
  });

  test("C-02 what lies behind the entries that are needed, and entries of bitmaps without a parent, play no part", async () => {
    // 4,096 payload blocks of 1 MiB to a chunk: the entry behind them is one of a bitmap.
    const plan: VhdxPlan = {
      sizeBytes: 4_098 * MIB,
      pieces: [4_095, 4_096, 4_097].map((block) => ({ offset: block * MIB, bytes: pattern(100, block) })),
    };
    const built = buildVhdx(plan);
    const bytes = changed(bytesOf(built), (copy) => {
      copy.writeBigUInt64LE((2n ** 62n) | 6n, built.entryOf(4_095) + 8);
      copy.writeBigUInt64LE(2n, built.entryOf(4_097) + 8);
    });
    const { reader } = await openBytes(bytes);
    for (const { offset, bytes: piece } of plan.pieces ?? []) {
      expect(Buffer.from(await readRange(reader, offset, 100)).equals(piece)).toBe(true);
    }
    expect(await extentsOf(reader, 0, plan.sizeBytes)).toEqual([
      { kind: "hole", offset: 0, length: 4_095 * MIB },
      { kind: "data", offset: 4_095 * MIB, length: 3 * MIB },
    ]);
  });

  test.each([
    ["over the headers", 6, 0, "no room"],
    ["over the log", 6, places.log, "the log"],
    ["over the metadata", 6, places.metadata, "the metadata"],
    ["over the BAT", 6, places.bat, "the BAT"],
    ["beyond any file", 6, 2 ** 53, "no room"],
    ["partly there without a parent", 7, 8 * MIB, "no parent"],
    ["in a state that does not exist", 4, 0, "unknown state 4"],
  ])("a payload block that lies %s is damage when it is read", async (_name, state, at, words) => {
    const built = buildVhdx(simple);
    const bytes = changed(bytesOf(built), (copy) => setEntry(copy, built, 2, state, at));
    const { reader } = await openBytes(bytes);
    await expect(readRange(reader, 2 * MIB, 512)).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
    expect(() => reader.runs?.(2 * MIB, 512)).toThrow(words);
    // The others still read.
    expect(Buffer.from(await readRange(reader, MIB + 500, content.length)).equals(content)).toBe(true);
  });

  test("two blocks at one place, or over each other, are damage; what only looks so is not", async () => {
    const plan: VhdxPlan = {
      sizeBytes: 64 * MIB,
      payloadBlockBytes: 8 * MIB,
      pieces: [0, 1, 2].map((block) => ({ offset: block * 8 * MIB, bytes: pattern(100, block) })),
    };
    const built = buildVhdx(plan);
    const whole = bytesOf(built);
    const first = built.blockPlaces.get(0) ?? 0;
    for (const place of [first, first + MIB, first + 15 * MIB]) {
      const over = changed(whole, (copy) => setEntry(copy, built, 5, blockState.present, place));
      // Wherever it is read: no other entry of the table can say which of the two is right.
      for (const block of [0, 5]) {
        const { reader } = await openBytes(over);
        await expect(readRange(reader, block * 8 * MIB, 512)).rejects.toMatchObject({ code: "image-damaged" });
        await expect(extentsOf(reader, 0, plan.sizeBytes)).rejects.toMatchObject({ code: "image-damaged" });
      }
    }
    // Entries of other states, of bitmaps without a parent, and behind the last one that is needed have no place.
    const harmless = changed(whole, (copy) => {
      setEntry(copy, built, 4, blockState.zero, first);
      setEntry(copy, built, 5, blockState.unmapped, first);
      setEntry(copy, built, 8, blockState.present, first);
      copy.writeBigUInt64LE(BigInt(first) | 6n, built.entryOf(511) + 8);
    });
    await expectContent(harmless, plan);
  });

  test("blocks of one place in pages of the table that lie far from each other", async () => {
    const plan: VhdxPlan = { sizeBytes: 20_480 * MIB, pieces: [{ offset: MIB, bytes: content }] };
    const built = buildVhdx(plan);
    const bytes = changed(bytesOf(built), (copy) =>
      setEntry(copy, built, 17_000, blockState.present, built.blockPlaces.get(1)),
    );
    const { reader } = await openBytes(bytes);
    await expect(extentsOf(reader, 0, plan.sizeBytes)).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("payload block 17000"),
    });
  });

  test("a payload block that begins behind the end of the file is missing, not zeros", async () => {
    const built = buildVhdx(simple);
    for (const place of [built.sizeBytes, 2 ** 45, 2 ** 46]) {
      const bytes = changed(bytesOf(built), (copy) => setEntry(copy, built, 2, blockState.present, place));
      const { reader } = await openBytes(bytes);
      await expect(readRange(reader, 2 * MIB, 512)).rejects.toMatchObject({ code: "image-truncated" });
      expect(reader.runs?.(2 * MIB, 512)).toBeUndefined();
      expect((await extentsOf(reader, 2 * MIB, MIB)).map(({ kind }) => kind)).toEqual(["data"]);
    }
    // More than any file.
    for (const place of [2 ** 47, 2 ** 62, 2 ** 64 - 2 ** 20]) {
      const bytes = changed(bytesOf(built), (copy) => copy.writeBigUInt64LE(BigInt(place) | 6n, built.entryOf(2)));
      const { reader } = await openBytes(bytes);
      await expect(readRange(reader, 2 * MIB, 512)).rejects.toMatchObject({ code: "image-damaged" });
    }
  });

  test("C-19 a file cut short: what is missing is an error with payload block and offset, the rest reads", async () => {
    const plan: VhdxPlan = {
      sizeBytes: 8 * MIB,
      payloadBlockBytes: 2 * MIB,
      pieces: [0, 1, 2, 3].map((block) => ({ offset: block * 2 * MIB, bytes: pattern(2 * MIB, block) })),
    };
    const built = buildVhdx(plan);
    const whole = bytesOf(built);
    for (const missing of [1, MIB, 2 * MIB]) {
      const { reader } = await openBytes(whole.subarray(0, whole.length - missing));
      await expect(readRange(reader, 6 * MIB, 2 * MIB)).rejects.toMatchObject({
        code: "image-truncated",
        message: expect.stringMatching(/payload block 3 at 10485760/),
      });
      expect(reader.runs?.(6 * MIB, 2 * MIB)).toBeUndefined();
      expect(Buffer.compare(await readRange(reader, 0, 6 * MIB), expected(plan).subarray(0, 6 * MIB))).toBe(0);
      // What is missing does not look like a hole.
      expect((await extentsOf(reader, 0, 8 * MIB)).every(({ kind }) => kind === "data")).toBe(true);
    }
  });

  test("C-11 the last payload block is longer than the disk, which ends where it ends", async () => {
    const sizeBytes = 37 * MIB + 512;
    const plan: VhdxPlan = {
      sizeBytes,
      payloadBlockBytes: 32 * MIB,
      pieces: [{ offset: sizeBytes - 512, bytes: Buffer.alloc(512, "TAIL") }],
    };
    const { reader } = await openBytes(bytesOf(buildVhdx(plan)));
    expect(reader.sizeBytes).toBe(sizeBytes);
    expect(Buffer.from(await readRange(reader, sizeBytes - 512, 512)).toString()).toBe("TAIL".repeat(128));
    await expect(readRange(reader, sizeBytes - 512, 1_024)).rejects.toThrow("within the disk");
  });
});

describe("the log", () => {
  const plan: VhdxPlan = { sizeBytes: 4 * MIB, pieces: [{ offset: MIB, bytes: content }] };
  const built = buildVhdx(plan);
  const fileBytes = built.sizeBytes;
  const place = built.blockPlaces.get(1) ?? 0;
  /** The page of the BAT with one entry, so that block `block` is where block 1 is. */
  const batPage = (block: number): Buffer => {
    const page = Buffer.alloc(4096);
    page.writeBigUInt64LE(BigInt(place) | 6n, built.entryOf(block) - places.bat);
    return page;
  };
  const entry = (sequence: bigint, tail: number, block: number, more: object = {}) => ({
    ...{ sequence, tail, flushed: fileBytes, last: fileBytes },
    sectors: [{ offset: places.bat, bytes: batPage(block) }],
    ...more,
  });
  /** Where the content is after replay: the block. */
  const blockOf = async (bytes: Uint8Array): Promise<number> => {
    const all = await contentOf(bytes);
    const at = Buffer.from(all).indexOf(content);
    return at / MIB;
  };
  const withLog = (log: VhdxPlan["log"]): Buffer =>
    bytesOf(buildVhdx({ ...plan, ...(log === undefined ? {} : { log }) }));

  test("is replayed from the tail of its newest entry, in order, with numbers above 2^53", async () => {
    const sequence = 80_117_443_871_106_387n;
    expect(await blockOf(withLog(undefined))).toBe(1);
    expect(await blockOf(withLog([entry(sequence, 0, 2)]))).toBe(2);
    expect(await blockOf(withLog([entry(sequence, 0, 2), entry(sequence + 1n, 0, 3)]))).toBe(3);
    // An entry without a change, then one that is not needed any more, and would do harm.
    const nothing = { sequence, tail: 0, flushed: MIB, last: MIB };
    const harm = { ...entry(sequence + 1n, 0, 0), zeros: [{ offset: places.metadata, length: 4096 }] };
    const log = [nothing, harm, entry(sequence + 2n, 3 * 4096, 2), entry(sequence + 3n, 3 * 4096, 3)];
    expect(logEntry(nothing).length + logEntry(harm).length).toBe(3 * 4096);
    expect(await blockOf(withLog(log))).toBe(3);
  });

  test("whose newest entry is torn is replayed without it", async () => {
    const log = [entry(5n, 0, 2), entry(6n, 0, 3)];
    const second = places.log + logEntry(entry(5n, 0, 2)).length;
    const bytes = withLog(log);
    for (const at of [second + 5, second + 70, second + 4096, second + 8191, second + 4096 + 2000]) {
      const torn = changed(bytes, (copy) => copy.writeUInt8((copy[at] ?? 0) ^ 0x10, at));
      expect(await blockOf(torn)).toBe(2);
    }
  });

  test("goes round its end", async () => {
    const bytes = withLog([entry(7n, MIB - 8192, 3)]);
    // The entry before it lies at the end of the log; the newest begins it.
    const older = logEntry(entry(6n, MIB - 8192, 2));
    older.copy(bytes, places.log + MIB - 8192);
    expect(await blockOf(bytes)).toBe(3);
    // One entry over the end.
    const over = logEntry(entry(9n, MIB - 4096, 3));
    const round = withLog([]);
    over.copy(round, places.log + MIB - 4096, 0, 4096);
    over.copy(round, places.log, 4096);
    expect(await blockOf(round)).toBe(3);
  });

  test("an entry that does not follow on the one before it begins a sequence of its own", async () => {
    // Its tail is an entry that is there, but from which nothing leads to it.
    expect(await blockOf(withLog([entry(5n, 0, 2), entry(9n, 0, 3)]))).toBe(2);
    const length = logEntry(entry(5n, 0, 2)).length;
    expect(await blockOf(withLog([entry(5n, 0, 2), entry(9n, length, 3)]))).toBe(3);
    // Then the newest of the others counts, and not the one that was named.
    expect(await blockOf(withLog([entry(5n, 0, 2), entry(9n, 0, 3), entry(7n, 2 * length, 0)]))).toBe(0);
  });

  test("that changes a page of the BAT which was never written", async () => {
    const scratch = await createScratch();
    try {
      const storage = createNodeStorage();
      const block = 17_000;
      const other = pattern(10_000, 4);
      const large: VhdxPlan = {
        sizeBytes: 20_480 * MIB,
        pieces: [
          { offset: MIB, bytes: content },
          { offset: 2 * MIB, bytes: other },
        ],
      };
      const first = buildVhdx(large);
      const at = first.entryOf(block);
      // Block 2 moves.
      const [front, page] = [Buffer.alloc(4096), Buffer.alloc(4096)];
      front.writeBigUInt64LE(BigInt(first.blockPlaces.get(1) ?? 0) | 6n, 8);
      page.writeBigUInt64LE(BigInt(first.blockPlaces.get(2) ?? 0) | 6n, at % 4096);
      const sectors = [
        { offset: places.bat, bytes: front },
        { offset: at - (at % 4096), bytes: page },
      ];
      const log = [{ sequence: 5n, tail: 0, flushed: first.sizeBytes, last: first.sizeBytes, sectors }];
      await writeVhdx(scratch.file("disk.vhdx"), { ...large, log });
      const { reader } = await openVhdx(await storage.open(scratch.file("disk.vhdx")), storage);
      const data = (await extentsOf(reader, 0, large.sizeBytes)).filter(({ kind }) => kind === "data");
      expect(data.map(({ offset }) => Math.floor(offset / MIB))).toEqual([1, block]);
      expect(Buffer.from(await readRange(reader, block * MIB, other.length)).equals(other)).toBe(true);
      await reader.close();
    } finally {
      await scratch.remove();
    }
  });

  test("zeros and content of one place: what comes later holds", async () => {
    const zeroed = { zeros: [{ offset: places.bat, length: 8192 }] };
    expect(await blockOf(withLog([entry(5n, 0, 2), { ...entry(6n, 0, 0), ...zeroed, sectors: [] }]))).toBe(-1 / MIB);
    expect(await blockOf(withLog([{ ...entry(5n, 0, 0), ...zeroed, sectors: [] }, entry(6n, 0, 2)]))).toBe(2);
  });

  test("C-07 without one whole entry is an error that says so, and no reading of the file as it is", async () => {
    const bytes = withLog([entry(5n, 0, 2)]);
    const broken = changed(bytes, (copy) => copy.writeUInt8(0xff, places.log + 4096 + 700));
    const error = await failure(broken);
    expect(error).toMatchObject({ code: "image-damaged" });
    expect(error.message).toContain("log present but no valid log sequence");
    expect(error.message).toContain(guids.log);
    expect(error.message).toContain("/images/disk.vhdx");
    expect(error.message).toContain(String(header2));
    expect(error.message).not.toMatch(/EACCES|permission/i);
    // A sequence that does not reach back to the tail of its last entry is none.
    expect(await failure(withLog([entry(5n, 40_960, 2)]))).toMatchObject({ code: "image-damaged" });
  });

  test("C-05 a file shorter than its log says was flushed is refused, at the byte", async () => {
    const flushed = fileBytes - 100;
    const bytes = withLog([entry(5n, 0, 1, { flushed: MIB }), entry(6n, 0, 2, { flushed })]);
    expect(await blockOf(bytes.subarray(0, flushed).fill(0, flushed))).toBe(2);
    expect(await failure(bytes.subarray(0, flushed - 1))).toMatchObject({
      code: "image-damaged",
      message: expect.stringMatching(new RegExp(`had at least ${flushed}`)),
    });
  });

  test("C-05 the newest entry alone says how long the file is: it may have been made shorter since an older one", async () => {
    const longer = { flushed: fileBytes + 8 * MIB, last: fileBytes + 8 * MIB };
    expect(await blockOf(withLog([entry(5n, 0, 1, longer), entry(6n, 0, 2)]))).toBe(2);
    const { files } = await openBytes(withLog([entry(5n, 0, 1, longer), entry(6n, 0, 2)]));
    expect(files[0]?.facts.file.sizeBytes).toBe(fileBytes);
    expect(await failure(withLog([entry(5n, 0, 1), entry(6n, 0, 2, longer)]))).toMatchObject({ code: "image-damaged" });
  });

  test("that changes what lies behind the end of the file makes it longer", async () => {
    const page = Buffer.from(batPage(1));
    page.writeBigUInt64LE(BigInt(fileBytes) | 6n, built.entryOf(3) - places.bat);
    const behind = { offset: fileBytes + 8192, bytes: pattern(4096, 77) };
    const log = [{ ...entry(5n, 0, 1), sectors: [{ offset: places.bat, bytes: page }, behind] }];
    const { reader, files } = await openBytes(withLog(log));
    expect(files[0]?.facts.file.sizeBytes).toBe(fileBytes + 3 * 4096);
    expect(await readRange(reader, 3 * MIB + 8192, 4096)).toEqual(behind.bytes);
    expect(await readRange(reader, 3 * MIB, 8192)).toEqual(new Uint8Array(8192));
    await expect(readRange(reader, 3 * MIB + 3 * 4096, 512)).rejects.toMatchObject({ code: "image-truncated" });
  });

  test("lengths that no file has are damage, or lie behind everything", async () => {
    for (const size of [2 ** 53, 2 ** 63, 2 ** 64 - 4096]) {
      expect(await failure(withLog([entry(5n, 0, 2, { flushed: size })]))).toMatchObject({ code: "image-damaged" });
      expect(await failure(withLog([entry(5n, 0, 2, { last: size })]))).toMatchObject({ code: "image-damaged" });
      // An entry whose descriptor cannot be is none.
      for (const zero of [
        { offset: size, length: 4096 },
        { offset: 8 * MIB, length: size },
      ]) {
        expect(await failure(withLog([entry(5n, 0, 2, { zeros: [zero] })]))).toMatchObject({ code: "image-damaged" });
      }
    }
    const far = { zeros: [{ offset: fileBytes, length: 2 ** 52 }] };
    expect(await blockOf(withLog([entry(5n, 0, 2, far)]))).toBe(2);
  });

  test("zeros over zeros and content, in any order, as a file that they are written to", async () => {
    // Places of a payload block, in sectors.
    const pieces = 40;
    for (let seed = 1; seed <= 30; seed++) {
      let state = seed;
      const next = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
      };
      const right = expected(plan);
      const log: NonNullable<VhdxPlan["log"]>[number][] = [];
      for (let number = 0; number < 6; number++) {
        const start = next(pieces);
        const length = next(6);
        const offset = next(pieces);
        const bytes = pattern(4096, seed * 10 + number);
        const zeros = [{ offset: place + start * 4096, length: length * 4096 }];
        log.push({ ...entry(5n + BigInt(number), 0, 1), sectors: [{ offset: place + offset * 4096, bytes }], zeros });
        right.fill(0, MIB + start * 4096, MIB + (start + length) * 4096);
        right.set(bytes, MIB + offset * 4096);
      }
      expect(Buffer.compare(await contentOf(withLog(log)), right)).toBe(0);
    }
  });

  test("of more changes than anybody makes is refused; one of as many as may be is read in time", async () => {
    const zeros = Array.from({ length: 30_000 }, (_unused, index) => ({
      offset: 8 * MIB + index * 8192,
      length: 4096,
    }));
    const one = (sequence: bigint, count: number) => entry(sequence, 0, 2, { zeros: zeros.slice(0, count) });
    const bytes = (log: NonNullable<VhdxPlan["log"]>): Buffer => {
      const made = Buffer.concat(log.map((each) => logEntry(each)));
      const file = bytesOf(buildVhdx({ ...plan, log: [] }));
      made.copy(file, places.log);
      return file;
    };
    expect(await blockOf(bytes([one(5n, 30_000)]))).toBe(2);
    // All of one entry in a log of 3 MiB, before the metadata.
    const more = await failure(
      (() => {
        const long = logEntry(entry(5n, 0, 2, { zeros: Array.from({ length: 65_536 }, () => zeros[0]) }));
        const file = bytesOf(buildVhdx({ ...plan, log: [] }));
        const moved = Buffer.concat([file, Buffer.alloc(4 * MIB)]);
        long.copy(moved, file.length);
        for (const [index, at] of places.headers.entries()) {
          const header = headerBytes(BigInt(index + 1), { log: [] });
          header.writeUInt32LE(3 * MIB, 68);
          header.writeBigUInt64LE(BigInt(file.length), 72);
          sealed(header).copy(moved, at);
        }
        return moved;
      })(),
    );
    expect(more).toMatchObject({ code: "image-format-unsupported", message: expect.stringContaining("65537 changes") });
  });

  test("that makes the file longer: what it adds reads as zeros", async () => {
    const page = Buffer.from(batPage(1));
    page.writeBigUInt64LE(BigInt(fileBytes) | 6n, built.entryOf(3) - places.bat);
    const log = [{ ...entry(5n, 0, 1, { last: fileBytes + MIB }), sectors: [{ offset: places.bat, bytes: page }] }];
    await expectContent(withLog(log), plan);
    const { reader } = await openBytes(withLog(log));
    expect(reader.runs?.(3 * MIB, 4096)).toBeUndefined();
    expect(reader.runs?.(MIB, 4096)).toHaveLength(1);
  });

  test("may hold metadata and content of the disk, to the byte", async () => {
    const bytes = pattern(4096, 99);
    const log = [{ ...entry(5n, 0, 1), sectors: [{ offset: place + 4096, bytes }] }];
    const all = await contentOf(withLog(log));
    const right = expected(plan);
    right.set(bytes, MIB + 4096);
    expect(Buffer.compare(all, right)).toBe(0);
    const { reader } = await openBytes(withLog(log));
    for (const [offset, length] of [
      [4090, 20],
      [4096, 4],
      [4100, 8],
      [8190, 1],
      [8188, 10],
      [4096 + 100, 50],
    ] as const) {
      expect(await readRange(reader, MIB + offset, length)).toEqual(
        right.subarray(MIB + offset, MIB + offset + length),
      );
    }
    expect(reader.runs?.(MIB + 4096, 4096)).toBeUndefined();
  });

  test.each([
    ["headers", 64 * KIB],
    ["log itself", places.log + 8192],
  ])("that writes to the %s is damage", async (words, offset) => {
    const log = [{ ...entry(5n, 0, 1), sectors: [{ offset, bytes: Buffer.alloc(4096) }] }];
    expect(await failure(withLog(log))).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining(words),
    });
  });

  test("entries over each other are not read without end", async () => {
    // Each 4 KiB begins an entry of half the log, whose checksum is wrong only at the end.
    const bytes = withLog([]);
    const long = logEntry({
      ...entry(5n, 0, 1),
      sectors: Array.from({ length: 120 }, () => ({ offset: places.bat, bytes: Buffer.alloc(4096) })),
    });
    for (let at = 0; at < MIB; at += 4096) {
      const head = Buffer.from(long.subarray(0, 4096));
      head.copy(bytes, places.log + at);
    }
    expect(await failure(bytes)).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("overlap"),
    });
  });
});

describe("differencing images", () => {
  const sizeBytes = 40 * MIB;
  const base: VhdxPlan = {
    sizeBytes,
    payloadBlockBytes: 2 * MIB,
    pieces: [{ offset: 0, bytes: pattern(sizeBytes, 1) }],
  };
  const parent = bytesOf(buildVhdx(base));
  const locator = { parent_linkage: `{${guids.data}}`, relative_path: ".\\parent.vhdx" };
  const child = (more: Partial<VhdxPlan> = {}): VhdxPlan => ({
    sizeBytes,
    payloadBlockBytes: 32 * MIB,
    dataGuid: "77777777-7777-7777-7777-777777777777",
    parent: locator,
    ...more,
  });
  const at = { "/images/parent.vhdx": parent };

  test("C-17 has-parent wins over the bit of fixed files, and runs cross pages of a bitmap without a seam", async () => {
    const cross = { offset: 32_767 * 512, bytes: pattern(3 * 512, 9) };
    const right = expected(base);
    right.set(cross.bytes, cross.offset);
    for (const fixed of [false, true]) {
      const bytes = bytesOf(buildVhdx(child({ fixed, pieces: [cross] })));
      expect(Buffer.compare(await contentOf(bytes, at), right)).toBe(0);
      const { reader } = await openBytes(bytes, at);
      const own = reader.runs?.(cross.offset - 512, 5 * 512) ?? [];
      expect(own.map(({ length }) => length)).toEqual([512, 1_536, 512]);
    }
  });

  test("states: absent ones are the parent's, zeros are zeros, present ones are whole", async () => {
    const states = new Map<number, number>([[1, blockState.zero]]);
    const plan = child({ payloadBlockBytes: MIB, states, pieces: [{ offset: 2 * MIB, bytes: pattern(512, 4) }] });
    const built = buildVhdx(plan);
    const place = built.blockPlaces.get(2) ?? 0;
    const right = expected(base);
    right.fill(0, MIB, 2 * MIB);
    right.set(pattern(512, 4), 2 * MIB);
    expect(Buffer.compare(await contentOf(bytesOf(built), at), right)).toBe(0);
    // Fully present: its bitmap plays no part.
    const present = changed(bytesOf(built), (copy) => setEntry(copy, built, 2, blockState.present, place));
    right.fill(0, 2 * MIB + 512, 3 * MIB);
    expect(Buffer.compare(await contentOf(present, at), right)).toBe(0);
    const noBitmap = changed(bytesOf(built), (copy) => copy.writeBigUInt64LE(0n, places.bat + 4_096 * 8));
    expect(await failure(noBitmap, at)).toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("sector bitmap 0"),
    });
  });

  test("C-13 a parent that is not there: every path that was tried is named, and the data that is wanted", async () => {
    const lost = child({
      parent: {
        parent_linkage: `{${guids.data.toUpperCase()}}`,
        absolute_win32_path: "C:\\Projects\\vm\\parent.vhdx",
        relative_path: "..\\vm\\parent.vhdx",
      },
    });
    const bytes = bytesOf(buildVhdx(lost));
    const error = await failure(bytes);
    expect(error).toMatchObject({ code: "image-not-found" });
    for (const words of [
      "/vm/parent.vhdx",
      "/images/parent.vhdx",
      "C:\\Projects\\vm\\parent.vhdx",
      guids.data,
      "/images/disk.vhdx",
    ]) {
      expect(error.message).toContain(words);
    }
    expect(await contentOf(bytes, { "/vm/parent.vhdx": parent })).toHaveLength(sizeBytes);
    expect(await contentOf(bytes, at)).toHaveLength(sizeBytes);
  });

  describe("C-13 names of Windows, whatever their case", () => {
    const naming = (path: string): Buffer =>
      bytesOf(buildVhdx(child({ parent: { parent_linkage: `{${guids.data}}`, relative_path: path } })));
    const other = bytesOf(buildVhdx({ ...base, dataGuid: guids.log }));

    test("one file that differs by case is the parent, in folders that do as well", async () => {
      for (const [named, path] of [
        [".\\Parent.VHDX", "/images/parent.vhdx"],
        ["..\\VM Disks\\\u00c4.VHDX", "/vm disks/\u00e4.vhdx"],
        ["C:\\Disks\\PARENT.vhdx", "/images/Parent.vhdx"],
      ] as const) {
        expect(await contentOf(naming(named), { [path]: parent }), path).toHaveLength(sizeBytes);
      }
    });

    test("of two that differ by case neither is taken, unless it has exactly that name", async () => {
      const two = { "/images/parent.vhdx": parent, "/images/PARENT.vhdx": other };
      const error = await failure(naming(".\\Parent.VHDX"), two);
      expect(error).toMatchObject({ code: "image-not-found" });
      for (const words of ["/images/disk.vhdx", "Parent.VHDX", "/images/parent.vhdx", "/images/PARENT.vhdx"]) {
        expect(error.message).toContain(words);
      }
      expect(await contentOf(naming(".\\parent.vhdx"), two)).toHaveLength(sizeBytes);
      expect(await failure(naming(".\\PARENT.vhdx"), two)).toMatchObject({ code: "image-damaged" });
    });

    test("in a real folder", async () => {
      const scratch = await createScratch();
      try {
        const storage = createNodeStorage();
        await mkdir(scratch.file("Disks"));
        await writeVhdx(scratch.file("Disks/parent.vhdx"), base);
        await writeVhdx(
          scratch.file("child.avhdx"),
          child({ parent: { ...locator, relative_path: ".\\DISKS\\Parent.VHDX" } }),
        );
        const { reader, files } = await openVhdx(await storage.open(scratch.file("child.avhdx")), storage);
        expect(files[1]?.file.path).toBe(scratch.file("Disks/parent.vhdx"));
        await reader.close();
      } finally {
        await scratch.remove();
      }
    });
  });

  test("paths that no file can have, or that may not be opened, are errors with names", async () => {
    const scratch = await createScratch();
    try {
      const storage = createNodeStorage();
      const path = scratch.file("child.avhdx");
      await writeVhdx(scratch.file("a.vhdx"), base);
      const long = "x".repeat(20_000);
      for (const relative_path of [long, `.\\${"y\\".repeat(9_000)}z`, "a.vhdx\\b", ".\\", "..", "\ud800", "a\0b"]) {
        await writeVhdx(path, child({ parent: { ...locator, relative_path, absolute_win32_path: long } }));
        const error = await openVhdx(await storage.open(path), storage).then(
          () => expect.unreachable("it was opened"),
          (thrown: unknown) => thrown as ReplicationError,
        );
        expect(error).toMatchObject({ code: "image-not-found" });
        expect(error.message.length).toBeLessThan(4_000);
      }
      await writeVhdx(path, child({ parent: { ...locator, relative_path: "a.vhdx" } }));
      const denied: Storage = {
        ...storage,
        open: (name, options) =>
          name.endsWith("a.vhdx")
            ? Promise.reject(Object.assign(new Error("EACCES"), { code: "EACCES" }))
            : storage.open(name, options),
      };
      await expect(openVhdx(await storage.open(path), denied)).rejects.toMatchObject({
        code: "image-unreadable",
        message: expect.stringMatching(/child\.avhdx.*a\.vhdx.*EACCES/),
      });
    } finally {
      await scratch.remove();
    }
  });

  test("logs of a chain make no more changes together than one may", async () => {
    const zeros = Array.from({ length: 30_000 }, (_unused, index) => ({
      offset: 8 * MIB + index * 8192,
      length: 4096,
    }));
    const log = [{ sequence: 5n, tail: 0, flushed: MIB, last: MIB, zeros }];
    const ids = [guids.log, guids.diskId, guids.data];
    const plans = ids.map((dataGuid, index): VhdxPlan => {
      const parentOf = { parent_linkage: `{${ids[index + 1] ?? ""}}`, relative_path: `d${index + 1}.avhdx` };
      return { sizeBytes: MIB, dataGuid, log, ...(index < 2 ? { parent: parentOf } : {}) };
    });
    const files = plans.map((plan) => bytesOf(buildVhdx(plan)));
    const rest = { "/images/d2.avhdx": files[2] ?? new Uint8Array() };
    expect(
      await failure(files[0] ?? new Uint8Array(), { ...rest, "/images/d1.avhdx": files[1] ?? new Uint8Array() }),
    ).toMatchObject({
      code: "image-format-unsupported",
      message: expect.stringMatching(/90000 changes/),
    });
    expect(await contentOf(files[1] ?? new Uint8Array(), rest)).toHaveLength(MIB);
  });

  test("a parent that was changed since is refused, with both files and both GUIDs", async () => {
    const other = bytesOf(buildVhdx({ ...base, dataGuid: guids.log }));
    const error = await failure(bytesOf(buildVhdx(child())), { "/images/parent.vhdx": other });
    expect(error).toMatchObject({ code: "image-damaged" });
    for (const words of ["/images/disk.vhdx", "/images/parent.vhdx", guids.data, guids.log]) {
      expect(error.message).toContain(words);
    }
    const second = child({
      parent: {
        parent_linkage: `{${guids.fileParameters}}`,
        parent_linkage2: `{${guids.data}}`,
        relative_path: "parent.vhdx",
      },
    });
    expect(await contentOf(bytesOf(buildVhdx(second)), at)).toHaveLength(sizeBytes);
  });

  test("C-14 a parent of another size is refused, with both sizes", async () => {
    const larger = bytesOf(buildVhdx({ ...base, sizeBytes: 48 * MIB, pieces: [] }));
    const error = await failure(bytesOf(buildVhdx(child())), { "/images/parent.vhdx": larger });
    expect(error).toMatchObject({ code: "image-format-unsupported" });
    expect(error.message).toContain(String(sizeBytes));
    expect(error.message).toContain(String(48 * MIB));
  });

  test("a circle is refused, and every file is closed again", async () => {
    const one = { ...child(), dataGuid: guids.data, parent: { ...locator, relative_path: ".\\disk.vhdx" } };
    const files = new Map([["/images/disk.vhdx", bytesOf(buildVhdx(one))]]);
    const storage = memoryStorage(files);
    await expect(openVhdx(await storage.open("/images/disk.vhdx"), storage)).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("builds upon it in turn"),
    });
    expect(storage.opened()).toBe(0);
  });

  test("a chain of more files than anybody has is refused", async () => {
    const files = new Map<string, Uint8Array>();
    for (let index = 0; index <= 64; index++) {
      const plan: VhdxPlan = { sizeBytes: MIB, parent: { ...locator, relative_path: `d${index + 1}.avhdx` } };
      files.set(index === 0 ? "/images/disk.vhdx" : `/images/d${index}.avhdx`, bytesOf(buildVhdx(plan)));
    }
    const storage = memoryStorage(files);
    await expect(openVhdx(await storage.open("/images/disk.vhdx"), storage)).rejects.toMatchObject({
      code: "limit-exceeded",
    });
    expect(storage.opened()).toBe(0);
  });

  test.each([
    ["of an unknown kind", (bytes: Buffer) => bytes.fill(1, 0, 16), "unknown kind"],
    ["with more entries than it has room for", (bytes: Buffer) => bytes.writeUInt16LE(60, 18), "60 entries"],
    ["with an entry far outside", (bytes: Buffer) => bytes.writeUInt32LE(0xffff_fff0, 24), "outside of it"],
    ["cut short", (bytes: Buffer) => bytes.subarray(0, 10), "cut short"],
    ["without a linkage", () => parentLocator({ relative_path: "x" }), "parent_linkage"],
  ])("a parent locator %s is damage", async (_name, change, words) => {
    const built = buildVhdx(child());
    const whole = parentLocator(locator);
    const result = change(whole);
    const made = Buffer.isBuffer(result) ? result : whole;
    const bytes = changed(bytesOf(built), (copy) => {
      const table = places.metadata + 32 + 4 * 32;
      const itemAt = places.metadata + copy.readUInt32LE(table + 16);
      copy.writeUInt32LE(made.length, table + 20);
      made.copy(copy, itemAt);
    });
    expect(await failure(bytes, at)).toMatchObject({ code: "image-damaged", message: expect.stringContaining(words) });
  });
});
