import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../../src/base/errors.ts";
import { limits } from "../../../src/base/limits.ts";
import type { UndoHeader } from "../../../src/replica/undo/entry.ts";
import {
  batchKinds,
  decodeBatchHeader,
  decodeUndoHeader,
  encodeBatchHeader,
  encodeFooter,
  encodeUndoHeader,
  entryFlags,
  entryHeadBytes,
  UNDO_BATCH_BYTES_MAX,
  UNDO_HEADS_BYTES_MAX,
} from "../../../src/replica/undo/format.ts";
import { writeHeads } from "../../../src/replica/undo/entry-list.ts";
import { header, keyOf, LogBuilder, MemoryFile, openReader, path, readAll } from "./kit.ts";

const shapes: readonly UndoHeader[] = [16_384, 65_536, 1_048_576].flatMap((blockBytes) =>
  (["xxh64", "sha256"] as const).map((digestKind) => ({
    id: Uint8Array.of(8, 7, 6, 5, 4, 3, 2, 1),
    sequence: 4_294_967_297,
    blockBytes,
    digestKind,
    sizeBytes: limits.diskBytesMax - 512,
  })),
);

test.each(shapes)("a header of $digestKind and blocks of $blockBytes bytes is read as it was written", (shape) => {
  const bytes = encodeUndoHeader(shape);
  expect(bytes.length).toBe(64);
  expect(decodeUndoHeader(path, Buffer.concat([bytes, Buffer.from("more")]))).toEqual(shape);
});

test("every flipped bit of a header is found, and every cut", () => {
  const bytes = encodeUndoHeader(header);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Uint8Array.from(bytes);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    expect(() => decodeUndoHeader(path, flipped)).toThrow(ReplicationError);
  }
  for (let length = 0; length < bytes.length; length++) {
    expect(() => decodeUndoHeader(path, bytes.subarray(0, length))).toThrow(/less than its header/);
  }
});

test("another version is refused by name", () => {
  const bytes = Uint8Array.from(encodeUndoHeader(header));
  bytes[8] = 2;
  expect(() => decodeUndoHeader(path, bytes)).toThrow(
    expect.objectContaining({
      code: "store-version-unsupported",
      message: expect.stringContaining(`${path} has version 2`),
    }),
  );
});

test.each(shapes)("entries of $digestKind and blocks of $blockBytes bytes are read as they were written", (shape) => {
  const { blockBytes, digestKind } = shape;
  const last = blockBytes / 4096 - 1;
  const part = new Uint8Array(4096).map((_, index) => index * 7);
  const log = new LogBuilder(shape);
  log.entries([
    { block: 1, digest: 9, parts: [0, last], content: Buffer.concat([part, part]) },
    { block: 2, run: 200, digest: 0 },
    { block: limits.diskBytesMax / blockBytes - 1, digest: 255, content: new Uint8Array(blockBytes).fill(3) },
    { block: 1, parts: [1], damaged: true, content: part },
    { block: 1, parts: [] },
  ]);
  expect(entryHeadBytes(log.header)).toBe(24 + (digestKind === "xxh64" ? 8 : 16) + Math.ceil(blockBytes / 32_768));
  const check = (found: ReturnType<typeof readAll>): void => {
    const known = [...log.known].sort((a, b) => a.entry.block - b.entry.block);
    expect(found.map(({ entry }) => keyOf(entry))).toEqual(known.map(({ entry }) => keyOf(entry)));
    const same = found.map(({ content }, at) => content instanceof Uint8Array && known[at]?.content.equals(content));
    expect(same).toEqual(known.map(() => true));
  };
  check(readAll(openReader(new MemoryFile(log.bytes))));
  log.index();
  check(readAll(openReader(new MemoryFile(log.bytes))));
  const closed = log.footer();
  check(readAll(openReader(new MemoryFile(log.bytes), { closed })));
});

describe("what a writer must not write", () => {
  const shape = header;
  const good = {
    block: 0,
    run: 1,
    flags: entryFlags.digest,
    contentBytes: 4096,
    contentChecksum: 1,
    digest: new Uint8Array(8),
    mask: Uint8Array.of(1),
  };
  const write = (change: object): void => {
    const head = { ...good, ...change } as typeof good;
    writeHeads(new Uint8Array(33), [head], { contentStart: 8_192, contentEnd: 8_192 + head.contentBytes }, shape);
  };

  test("is written when it is right", () => {
    expect(() => write({})).not.toThrow();
    const zeros = { flags: entryFlags.zero + entryFlags.digest, contentBytes: 0, contentChecksum: 0 };
    expect(() => write({ ...zeros, run: 512 })).not.toThrow();
    expect(() => write({ ...zeros, block: 1, run: 512 })).toThrow(InvariantError);
  });

  test.each([
    ["unknown flags", { flags: 17 }],
    ["a run of content", { run: 2 }],
    ["no blocks", { run: 0 }],
    ["a block behind the largest disk", { block: limits.diskBytesMax / shape.blockBytes }],
    ["a digest without its flag", { flags: 0 }],
    ["a flag without a digest", { digest: undefined }],
    ["a digest of another length", { digest: new Uint8Array(16) }],
    ["a part the block does not have", { mask: Uint8Array.of(16) }],
    ["a mask of another length", { mask: new Uint8Array(2) }],
    ["content too short", { contentBytes: 4095 }],
    ["packed content that is not smaller", { flags: entryFlags.digest + entryFlags.lz4 }],
    ["content without parts", { mask: Uint8Array.of(0) }],
    ["zeros with content", { flags: entryFlags.digest + entryFlags.zero }],
  ])("%s", (_, change) => {
    expect(() => write(change)).toThrow(InvariantError);
  });
});

describe("batch headers", () => {
  const fields = {
    id: header.id,
    offset: 8192,
    durable: 4096,
    kind: batchKinds.entries,
    count: 2,
    headsBytes: 66,
    contentBytes: 4096,
    bodyChecksum: 0xfedc_ba98,
  };

  test("are read as they were written", () => {
    const found = decodeBatchHeader(encodeBatchHeader(fields), header, 8192);
    expect(found).toEqual({ ...fields, contentStart: 8192 + 130, contentEnd: 8192 + 130 + 4096, end: 8192 + 8192 });
  });

  test("every flipped bit, cut, other place or other log is found", () => {
    const bytes = encodeBatchHeader(fields);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const flipped = Uint8Array.from(bytes);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(decodeBatchHeader(flipped, header, 8192)).toBeUndefined();
    }
    expect(decodeBatchHeader(bytes.subarray(0, 63), header, 8192)).toBeUndefined();
    expect(decodeBatchHeader(bytes, header, 12_288)).toBeUndefined();
    expect(decodeBatchHeader(bytes, { ...header, id: new Uint8Array(8) }, 8192)).toBeUndefined();
    // The same count of longer heads.
    expect(decodeBatchHeader(bytes, { ...header, digestKind: "sha256" }, 8192)).toBeUndefined();
  });

  test.each([
    ["heads", { headsBytes: UNDO_HEADS_BYTES_MAX, contentBytes: 0 }, { headsBytes: UNDO_HEADS_BYTES_MAX + 1 }],
    ["a batch", { contentBytes: UNDO_BATCH_BYTES_MAX - 64 - 66 }, { contentBytes: UNDO_BATCH_BYTES_MAX - 64 - 66 + 1 }],
    ["what is durable", { durable: 8192 }, { durable: 8193 }],
    ["entries", { count: 1 }, { count: 0 }],
  ])("%s: the largest is written, one more is not", (_, most, more) => {
    expect(() => encodeBatchHeader({ ...fields, ...most })).not.toThrow();
    expect(() => encodeBatchHeader({ ...fields, ...more })).toThrow(InvariantError);
  });
});

test("a footer whose runs overlap is not written", () => {
  const totals = { entries: 1, parts: 1, damagedEntries: 0, batchesEnd: 65_536 };
  const run = { offset: 8192, pages: 2, count: 1 };
  const next = (offset: number) => () => encodeFooter(header.id, 65_536, 0, totals, [run, { ...run, offset }]);
  expect(next(8192 + 3 * 4096)).not.toThrow();
  expect(next(8192 + 2 * 4096)).toThrow(InvariantError);
});

/** 4096 times "a". */
const packedLetters = Buffer.from(`1f610100${"ff".repeat(15)}f650${"61".repeat(5)}`, "hex");

/** The log docs/formats.md shows. */
function exampleLog(): LogBuilder {
  const log = new LogBuilder({
    id: Buffer.from("0123456789abcdef", "hex"),
    sequence: 7,
    blockBytes: 16_384,
    digestKind: "xxh64",
    sizeBytes: 1_000_000,
  });
  log.entries([
    { block: 5, digest: 0xd5, parts: [2], content: new Uint8Array(4096).fill(0x61), packed: packedLetters },
    { block: 2, run: 3, digest: 0 },
  ]);
  log.checkpoint().index().footer();
  return log;
}

/** Its fields: offset, bytes, meaning. Everything else is zero. */
const exampleBytes: readonly (readonly [number, string, string])[] = [
  [0x0000, "72 70 6c 75 6e 64 6f 0a", "magic"],
  [0x0008, "01 00", "version 1"],
  [0x000a, "01 00", "digest kind 1, xxh64 · reserved"],
  [0x000c, "f0 08 15 42", "checksum 0x421508f0"],
  [0x0010, "01 23 45 67 89 ab cd ef", "id"],
  [0x0018, "07 00 00 00 00 00 00 00", "sequence 7"],
  [0x0020, "00 40 00 00 00 00 00 00", "block bytes 16,384 · reserved"],
  [0x0028, "40 42 0f 00 00 00 00 00", "size 1,000,000 · 16 reserved bytes follow"],
  [0x1000, "72 70 6c 75 62 74 63 68", "magic: first batch"],
  [0x1008, "01 23 45 67 89 ab cd ef", "log id"],
  [0x1010, "00 10 00 00 00 00 00 00", "offset 4,096"],
  [0x1018, "00 10 00 00 00 00 00 00", "durable 4,096"],
  [0x1020, "01 00 00 00 00 00 00 00", "kind 1, entries · reserved"],
  [0x1028, "02 00 00 00", "count 2"],
  [0x102c, "42 00 00 00", "heads bytes 66"],
  [0x1030, "1a 00 00 00 00 00 00 00", "content bytes 26"],
  [0x1038, "62 76 17 97", "body checksum 0x97177662"],
  [0x103c, "79 29 f1 f7", "checksum 0xf7f12979"],
  [0x1040, "05 00 00 00 00 00 00 00", "block 5"],
  [0x1048, "01 00 00 00", "run 1"],
  [0x104c, "09 00 00 00", "flags: digest, lz4 · reserved"],
  [0x1050, "1a 00 00 00", "content bytes 26"],
  [0x1054, "a2 94 25 3b", "content checksum 0x3b2594a2"],
  [0x1058, "d5 d5 d5 d5 d5 d5 d5 d5", "digest"],
  [0x1060, "04", "mask: part 2"],
  [0x1061, "02 00 00 00 00 00 00 00", "block 2"],
  [0x1069, "03 00 00 00", "run 3"],
  [0x106d, "03 00 00 00", "flags: digest, zero · reserved"],
  [0x1071, "00 00 00 00", "content bytes 0"],
  [0x1075, "00 00 00 00", "content checksum: none"],
  [0x1079, "00 00 00 00 00 00 00 00", "digest of a zero block"],
  [0x1081, "0f", "mask: all 4 parts"],
  [
    0x1082,
    "1f 61 01 00 ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff f6 50 61 61 61 61 61",
    'content of block 5, part 2: 4096 times "a", lz4',
  ],
  [0x2000, "72 70 6c 75 62 74 63 68", "magic: second batch"],
  [0x2008, "01 23 45 67 89 ab cd ef", "log id"],
  [0x2010, "00 20 00 00 00 00 00 00", "offset 8,192"],
  [0x2018, "00 20 00 00 00 00 00 00", "durable 8,192"],
  [0x2020, "02 00 00 00 00 00 00 00", "kind 2, checkpoint · reserved"],
  [0x2028, "01 00 00 00", "count 1"],
  [0x202c, "08 00 00 00", "heads bytes 8"],
  [0x2030, "00 00 00 00 00 00 00 00", "content bytes 0"],
  [0x2038, "73 51 b0 e5", "body checksum 0xe5b05173"],
  [0x203c, "b8 34 da 19", "checksum 0x19da34b8"],
  [0x2040, "00 20 00 00 00 00 00 00", "below 8,192"],
  [0x3000, "72 70 6c 75 62 74 63 68", "magic: third batch"],
  [0x3008, "01 23 45 67 89 ab cd ef", "log id"],
  [0x3010, "00 30 00 00 00 00 00 00", "offset 12,288"],
  [0x3018, "00 30 00 00 00 00 00 00", "durable 12,288"],
  [0x3020, "03 00 00 00 00 00 00 00", "kind 3, index run · reserved"],
  [0x3028, "02 00 00 00", "count 2"],
  [0x302c, "08 00 00 00", "heads bytes 8"],
  [0x3030, "00 10 00 00 00 00 00 00", "content bytes 4,096"],
  [0x3038, "92 6f 28 68", "body checksum 0x68286f92"],
  [0x303c, "91 6f 74 96", "checksum 0x96746f91"],
  [0x3040, "02 00 00 00 00 00 00 00", "first block of page 0: 2"],
  [0x4000, "79 6f 5c 92", "page 0: checksum 0x925c6f79"],
  [0x4004, "02 00 00 00", "count 2 · reserved"],
  [0x4008, "02 00 00 00 00 00 00 00", "block 2"],
  [0x4010, "03 00 00 00", "run 3"],
  [0x4014, "03 00 00 00", "flags: digest, zero · reserved"],
  [0x4018, "00 00 00 00", "content bytes 0"],
  [0x401c, "00 00 00 00", "content checksum: none"],
  [0x4020, "00 00 00 00 00 00 00 00", "content offset: none"],
  [0x4028, "00 00 00 00 00 00 00 00", "digest of a zero block"],
  [0x4030, "0f", "mask: all 4 parts"],
  [0x4031, "05 00 00 00 00 00 00 00", "block 5"],
  [0x4039, "01 00 00 00", "run 1"],
  [0x403d, "09 00 00 00", "flags: digest, lz4 · reserved"],
  [0x4041, "1a 00 00 00", "content bytes 26"],
  [0x4045, "a2 94 25 3b", "content checksum 0x3b2594a2"],
  [0x4049, "82 10 00 00 00 00 00 00", "content offset 4,226"],
  [0x4051, "d5 d5 d5 d5 d5 d5 d5 d5", "digest"],
  [0x4059, "04", "mask: part 2"],
  [0x5000, "72 70 6c 75 62 74 63 68", "magic: last batch"],
  [0x5008, "01 23 45 67 89 ab cd ef", "log id"],
  [0x5010, "00 50 00 00 00 00 00 00", "offset 20,480"],
  [0x5018, "00 50 00 00 00 00 00 00", "durable 20,480"],
  [0x5020, "04 00 00 00 00 00 00 00", "kind 4, footer · reserved"],
  [0x5028, "01 00 00 00", "count 1"],
  [0x502c, "30 00 00 00", "heads bytes 48"],
  [0x5030, "00 00 00 00 00 00 00 00", "content bytes 0"],
  [0x5038, "f6 47 8c 37", "body checksum 0x378c47f6"],
  [0x503c, "26 02 55 93", "checksum 0x93550226"],
  [0x5040, "02 00 00 00 00 00 00 00", "entries 2"],
  [0x5048, "0d 00 00 00 00 00 00 00", "parts 13"],
  [0x5050, "00 00 00 00 00 00 00 00", "damaged entries 0"],
  [0x5058, "00 50 00 00 00 00 00 00", "batches end 20,480"],
  [0x5060, "00 30 00 00 00 00 00 00", "index run at 12,288"],
  [0x5068, "01 00 00 00", "pages 1"],
  [0x506c, "02 00 00 00", "entries 2"],
];

test("a small log is written byte for byte", () => {
  const log = exampleLog();
  const expected = new Uint8Array(24_576);
  for (const [offset, hex] of exampleBytes) expected.set(Buffer.from(hex.replaceAll(" ", ""), "hex"), offset);
  expect(Buffer.from(log.bytes).toString("hex")).toBe(Buffer.from(expected).toString("hex"));
  expect(readAll(openReader(new MemoryFile(expected)))).toHaveLength(2);
});

test("docs/formats.md shows the same log", async () => {
  const text = await readFile(join(import.meta.dirname, "../../../docs/formats.md"), "utf8");
  const lines = [...text.matchAll(/```hex undo-log\n([^`]*)```/g)].flatMap(([, block]) => (block ?? "").split("\n"));
  const shown = new Uint8Array(24_576);
  let count = 0;
  for (const line of lines) {
    const [, offset, hex] = /^([0-9a-f]{4}) {2}((?:[0-9a-f]{2} )*[0-9a-f]{2})/.exec(line) ?? [];
    if (offset === undefined || hex === undefined) continue;
    shown.set(Buffer.from(hex.replaceAll(" ", ""), "hex"), Number.parseInt(offset, 16));
    count++;
  }
  expect(count).toBeGreaterThan(20);
  expect(Buffer.from(shown).equals(exampleLog().bytes)).toBe(true);
});

test("a page of an index run at another place is not taken for one", () => {
  // Two runs with the same entries in the same order: only the offset tells their pages apart.
  const log = new LogBuilder();
  log.entries([{ block: 3, digest: 1 }]).index();
  log.entries([{ block: 3, parts: [] }]).index();
  const [first, second] = log.runs.map((run) => run.offset + 4096);
  const bytes = Uint8Array.from(log.bytes);
  bytes.copyWithin(second ?? 0, first ?? 0, (first ?? 0) + 4096);
  const reader = openReader(new MemoryFile(bytes));
  expect(readAll(reader).map(({ entry }) => keyOf(entry))).toEqual(log.known.map(({ entry }) => keyOf(entry)));
  expect(reader.indexDamage).toEqual([{ offset: second, length: 4096 }]);
});
