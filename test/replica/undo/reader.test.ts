import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../../src/base/errors.ts";
import {
  batchKinds,
  bodyChecksum,
  decodeBatchHeader,
  encodeBatchHeader,
  writeBatchHeader,
} from "../../../src/replica/undo/format.ts";
import type { ClosedLog } from "../../../src/replica/undo/entry.ts";
import { scanUndoLog } from "../../../src/replica/undo/scan.ts";
import { randomBytes } from "../../random.ts";
import { header, keyOf, LogBuilder, MemoryFile, openReader, pack, path, readAll, readEntries } from "./kit.ts";

function keys(found: readonly { readonly entry: Parameters<typeof keyOf>[0] }[]): string[] {
  return found.map(({ entry }) => keyOf(entry));
}

/** `count` blocks, one entry each, from `first`. */
function blocks(first: number, count: number): { block: number; digest: number }[] {
  return Array.from({ length: count }, (_, index) => ({ block: first + index, digest: 7 }));
}

describe("lookups", () => {
  test("entries come by block and then as they were written, over index runs and the newest batches", () => {
    const log = new LogBuilder();
    log.entries([
      { block: 9, digest: 1, parts: [1], content: randomBytes(4096) },
      { block: 8, digest: 2 },
    ]);
    log.index();
    log.entries([
      { block: 9, parts: [0], content: randomBytes(4096) },
      { block: 511, digest: 3 },
    ]);
    log.entries([
      { block: 9, parts: [2] },
      { block: 512, digest: 3 },
    ]);
    const reader = openReader(new MemoryFile(log.bytes));
    expect(reader.entries(0, 512).map(({ block, mask }) => [block, mask[0]])).toEqual([
      [8, 15],
      [9, 2],
      [9, 1],
      [9, 4],
      [511, 15],
    ]);
    expect(reader.entries(10, 501)).toEqual([]);
    expect([0, 8, 9, 10, 512, 513].map((block) => reader.nextBlock(block))).toEqual([8, 8, 9, 511, 512, undefined]);
    expect(() => reader.entries(511, 2)).toThrow(InvariantError);
  });

  test("a run is found from each of its blocks", () => {
    const log = new LogBuilder().entries([{ block: 100, run: 50, digest: 0 }]);
    for (const indexed of [false, true]) {
      if (indexed) log.index();
      const reader = openReader(new MemoryFile(log.bytes));
      expect([99, 100, 149, 150].map((block) => reader.entries(block, 1).length)).toEqual([0, 1, 1, 0]);
      expect([99, 100, 149, 150].map((block) => reader.nextBlock(block))).toEqual([100, 100, 149, undefined]);
    }
  });

  test("a log without entries has none", () => {
    const log = new LogBuilder();
    const check = (closed?: ClosedLog): void => {
      const reader = openReader(new MemoryFile(log.bytes), closed === undefined ? {} : { closed });
      expect(reader).toMatchObject({ path, header, closed: closed !== undefined, sizeBytes: log.end, damage: [] });
      expect(reader.nextBlock(0)).toBeUndefined();
      expect(reader.entries(0, 512)).toEqual([]);
    };
    check();
    check(log.footer());
  });

  test("an indexed log is looked up in few reads", () => {
    const log = new LogBuilder();
    for (let first = 0; first < 40_000; first += 2000) log.entries(blocks(first, 2000));
    log.index();
    const file = new MemoryFile(log.bytes);
    const reader = openReader(file);
    file.reads = 0;
    expect(reader.entries(20_480, 512)).toHaveLength(512);
    // 99 entries a page; the fences are known from opening.
    expect(file.reads).toBe(7);
    expect(reader.entries(20_480, 512)).toHaveLength(512);
    expect(file.reads).toBe(7);
  });
});

describe("content", () => {
  const letters = Buffer.alloc(8192, "old content ");
  const noise = randomBytes(4096);
  const log = new LogBuilder().entries([
    { block: 1, digest: 1, parts: [0, 3], content: letters, packed: pack(letters) ?? letters },
    { block: 2, digest: 2, parts: [1], content: noise },
    { block: 3, digest: 3 },
    { block: 3, parts: [] },
  ]);

  test("stored, packed and zero is what it was", () => {
    const found = readAll(openReader(new MemoryFile(log.bytes)));
    expect(found.map(({ entry }) => entry.codec)).toEqual(["lz4", "stored", "stored", "stored"]);
    expect(found.map(({ content }) => Buffer.from(content as Uint8Array))).toEqual([
      letters,
      noise,
      Buffer.alloc(16_384),
      Buffer.alloc(0),
    ]);
  });

  test("a target of another length is a wrong call", () => {
    const reader = openReader(new MemoryFile(log.bytes));
    const [entry] = reader.entries(2, 1);
    if (entry === undefined) throw new Error("no entry");
    expect(() => reader.readContent(entry, new Uint8Array(4095))).toThrow(InvariantError);
  });

  test.each([
    ["flipped", (at: number, bytes: Uint8Array) => bytes.fill((bytes[at] ?? 0) ^ 1, at, at + 1)],
    ["cut", (at: number, bytes: Uint8Array) => bytes.subarray(0, at + 1)],
  ])("%s bytes are not served, and the error names file and offset", (_, harm) => {
    const reader = openReader(new MemoryFile(log.bytes));
    for (const block of [1, 2]) {
      const [entry] = reader.entries(block, 1);
      if (entry === undefined) throw new Error("no entry");
      const file = new MemoryFile(log.bytes);
      const opened = openReader(file);
      file.bytes = harm(entry.contentOffset + 5, Uint8Array.from(log.bytes));
      const read = (): void => opened.readContent(entry, new Uint8Array(block === 1 ? 8192 : 4096));
      expect(read).toThrow(
        expect.objectContaining({
          code: "store-damaged",
          message: expect.stringContaining(`${path} is damaged at offset ${entry.contentOffset}`),
        }),
      );
    }
  });

  test("bytes that do not decompress are damage, not a codec's error", () => {
    const bad = Buffer.alloc(100, 0xff);
    const file = new LogBuilder().entries([{ block: 1, digest: 1, parts: [0], content: noise, packed: bad }]);
    const [found] = readAll(openReader(new MemoryFile(file.bytes)));
    expect(found?.content).toMatchObject({ code: "store-damaged" });
  });
});

describe("an open log that grows", () => {
  test("shows new batches after refresh, and not before", () => {
    const log = new LogBuilder().entries(blocks(0, 3));
    const file = new MemoryFile(log.bytes);
    const reader = openReader(file);
    expect(reader.refresh()).toBe(false);
    file.bytes = log.entries([{ block: 5, digest: 1 }]).bytes;
    expect(reader.entries(5, 1)).toEqual([]);
    expect(reader.refresh()).toBe(true);
    expect(reader.entries(5, 1)).toHaveLength(1);
    expect(reader.sizeBytes).toBe(log.end);
    file.bytes = log.index().entries([{ block: 6, digest: 1 }]).bytes;
    expect(reader.refresh()).toBe(true);
    expect(keys(readEntries(reader))).toEqual(keys(log.expected(0, 512)));
  });

  test("is cheap to ask when nothing was written", () => {
    const log = new LogBuilder();
    for (let count = 0; count < 100; count++) log.entries(blocks(count, 1));
    const file = new MemoryFile(log.bytes);
    const reader = openReader(file);
    file.reads = 0;
    expect(reader.refresh()).toBe(false);
    expect(file.reads).toBeLessThan(6);
  });

  test("a batch appears when all of it is in the file, byte by byte", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const before = log.end;
    log.entries([{ block: 9, digest: 1, parts: [0], content: randomBytes(4096) }]);
    const file = new MemoryFile(log.bytes.subarray(0, before));
    const reader = openReader(file);
    const contentEnd = before + 64 + 33 + 4096;
    for (let length = before; length < contentEnd; length += 13) {
      file.bytes = log.bytes.subarray(0, length);
      expect(reader.refresh()).toBe(false);
    }
    file.bytes = log.bytes.subarray(0, contentEnd);
    expect(reader.refresh()).toBe(true);
    expect(keys(readEntries(reader))).toEqual(keys(log.expected(0, 512)));
  });

  test("batches that are written out of order appear in order", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const first = log.end;
    log.entries([{ block: 9, digest: 1, parts: [0], content: randomBytes(4096) }], first);
    const second = log.end;
    log.entries(blocks(20, 1), first);
    // The first is a hole yet; nothing says that it was durable.
    const file = new MemoryFile(Uint8Array.from(log.bytes).fill(0, first, second));
    const reader = openReader(file);
    expect(keys(readEntries(reader))).toEqual(keys(log.known.slice(0, 1)));
    expect(reader.refresh()).toBe(false);
    expect(reader.damage).toEqual([]);
    file.bytes = log.bytes;
    expect(reader.refresh()).toBe(true);
    expect(keys(readEntries(reader))).toEqual(keys(log.expected(0, 512)));
    expect(reader.damage).toEqual([]);
  });

  test("a batch that is finished between two looks is no damage", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const second = log.end;
    log.entries(blocks(1, 1), second).entries(blocks(2, 1));
    const file = new MemoryFile(log.bytes);
    let looks = 0;
    const read = (fd: number, target: Uint8Array, offset: number): number => {
      const count = file.lanes.read(fd, target, offset);
      if (offset === second && looks++ === 0) target.fill(0);
      return count;
    };
    const reader = openReader(Object.assign(new MemoryFile(log.bytes), { lanes: { ...file.lanes, read } }));
    expect(keys(readEntries(reader))).toEqual(keys(log.known));
    expect(reader.damage).toEqual([]);
  });

  test("a hole at its end is not searched again and again", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const file = new MemoryFile(Buffer.concat([log.bytes, Buffer.alloc(3_000_000)]));
    const reader = openReader(file);
    file.reads = 0;
    expect(reader.refresh()).toBe(false);
    expect(file.reads).toBeLessThan(6);
    file.bytes = log.entries(blocks(7, 1)).bytes;
    expect(reader.refresh()).toBe(true);
    expect(reader.nextBlock(1)).toBe(7);
  });

  test("a log that was cut and written on is read anew", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const common = log.bytes;
    const cut = new LogBuilder().entries(blocks(0, 1)).entries(blocks(5, 2)).index().entries(blocks(9, 1));
    const file = new MemoryFile(cut.bytes);
    const reader = openReader(file);
    expect(reader.nextBlock(1)).toBe(5);
    file.bytes = common;
    expect(reader.refresh()).toBe(true);
    expect(reader.nextBlock(1)).toBeUndefined();
    file.bytes = log.entries(blocks(6, 1)).entries(blocks(7, 1)).entries(blocks(8, 1)).bytes;
    expect(reader.refresh()).toBe(true);
    expect(keys(readEntries(reader))).toEqual(keys(log.expected(0, 512)));
  });

  test("a footer is no end of it: it may be cut off and another batch take its place", () => {
    const log = new LogBuilder().entries(blocks(0, 1));
    const before = log.bytes;
    const finished = new LogBuilder().entries(blocks(0, 1));
    finished.footer();
    const file = new MemoryFile(finished.bytes);
    const reader = openReader(file);
    expect(reader.sizeBytes).toBe(before.length);
    expect(reader.refresh()).toBe(false);
    file.bytes = log.entries(blocks(3, 1)).bytes;
    expect(reader.refresh()).toBe(true);
    expect(reader.nextBlock(1)).toBe(3);
  });
});

describe("damage or a torn end", () => {
  const harmed = (log: LogBuilder, at: number): Uint8Array => {
    const bytes = Uint8Array.from(log.bytes);
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    return bytes;
  };

  /** Where a batch is harmed: its header, its heads. */
  test.each([5, 70])("at byte %i of a batch: the durable offset of a later one decides", (within) => {
    const build = (durable: (log: LogBuilder, second: number) => number): { log: LogBuilder; second: number } => {
      const log = new LogBuilder().entries(blocks(0, 1));
      const second = log.end;
      log.entries(blocks(1, 1)).entries(blocks(2, 1), second);
      log.entries(blocks(3, 1), durable(log, second));
      return { log, second };
    };
    // Nothing says that the second batch was durable.
    const torn = build((_, second) => second);
    const short = openReader(new MemoryFile(harmed(torn.log, torn.second + within)));
    expect(keys(readEntries(short))).toEqual(keys(torn.log.known.slice(0, 1)));
    expect(short.damage).toEqual([]);
    expect(short.sizeBytes).toBe(torn.second);
    // The last batch says so.
    const damaged = build((log) => log.end - 4096);
    const reader = openReader(new MemoryFile(harmed(damaged.log, damaged.second + within)));
    expect(keys(readEntries(reader))).toEqual(keys([0, 2, 3].flatMap((index) => damaged.log.known[index] ?? [])));
    expect(reader.damage).toEqual([{ offset: damaged.second, length: 4096 }]);
  });

  test("a bad batch that an index run covers is not missed where only its heads are harmed", () => {
    const log = new LogBuilder().entries(blocks(0, 1)).entries(blocks(1, 1)).index().entries(blocks(2, 1));
    const reader = openReader(new MemoryFile(harmed(log, 8192 + 70)));
    expect(keys(readEntries(reader))).toEqual(keys(log.expected(0, 512)));
    expect(reader.damage).toEqual([]);
  });

  test("in a closed log everything was durable", () => {
    const log = new LogBuilder().entries(blocks(0, 1), 0).entries(blocks(1, 1), 0);
    const closed = log.footer();
    const reader = openReader(new MemoryFile(harmed(log, 8192 + 5)), { closed });
    expect(keys(readEntries(reader))).toEqual(keys(log.known.slice(0, 1)));
    expect(reader.damage).toEqual([{ offset: 8192, length: 4096 }]);
  });
});

describe("index runs and footers that are damaged", () => {
  function filled(): LogBuilder {
    const log = new LogBuilder();
    for (let first = 0; first < 3000; first += 300) log.entries(blocks(first, 300));
    log.index();
    for (let first = 3000; first < 6000; first += 300) log.entries(blocks(first, 300));
    return log.index().entries(blocks(6000, 5));
  }

  function build(): { log: LogBuilder; closed: ClosedLog } {
    const log = filled();
    return { log, closed: log.footer() };
  }

  test.each([
    ["header", 5],
    ["fences", 70],
    ["page", 4096 + 4096 * 3 + 9],
  ])("the %s of a run: answers are those of the batches", (_, within) => {
    const { log, closed } = build();
    const [run] = log.runs;
    const bytes = Uint8Array.from(log.bytes);
    const at = (run?.offset ?? 0) + within;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    // A bad header in an open log is a bad batch like any other: what it was cannot be known.
    const open = openReader(new MemoryFile(bytes), { windowBytes: 20_000 });
    expect(keys(readEntries(open))).toEqual(keys(log.known));
    expect(open.damage.length).toBe(within === 5 ? 1 : 0);
    for (const windowBytes of [20_000, 1_000_000]) {
      const reader = openReader(new MemoryFile(bytes), { closed, windowBytes });
      expect(keys(readEntries(reader))).toEqual(keys(log.known));
      expect(reader.damage).toEqual([]);
      expect(reader.indexDamage).toHaveLength(1);
    }
  });

  test("the heads of a run in the middle went bad before the log was closed: its entries are in no other run", () => {
    const log = filled().index().entries(blocks(7000, 300));
    const at = (log.runs[1]?.offset ?? 0) + 70;
    const harmed = (): Uint8Array => Uint8Array.from(log.bytes).fill((log.bytes[at] ?? 0) ^ 1, at, at + 1);
    // As recovery finds it, and the commit writes it down.
    const scan = scanUndoLog({ path, lanes: new MemoryFile(harmed()).lanes, fd: 3 });
    expect(scan.indexDamage).toMatchObject([{ offset: log.runs[1]?.offset }]);
    log.runs.splice(0, log.runs.length, ...scan.runs);
    const closed = log.footer();
    const reader = openReader(new MemoryFile(harmed()), { closed });
    expect(keys(readEntries(reader))).toEqual(keys(log.known));
    expect(reader).toMatchObject({ damage: [], indexDamage: scan.indexDamage });
  });

  test("a page and heads: the entries that are left, and the stretch on record", () => {
    const { log, closed } = build();
    const bytes = Uint8Array.from(log.bytes).fill(
      1,
      (log.runs[0]?.offset ?? 0) + 8192,
      (log.runs[0]?.offset ?? 0) + 8200,
    );
    const second = log.batches[1] ?? 0;
    bytes.fill(1, second + 70, second + 75);
    const reader = openReader(new MemoryFile(bytes), { closed });
    expect(keys(readEntries(reader))).toEqual(keys(log.known.filter(({ offset }) => offset !== second)));
    expect(reader.damage).toEqual([{ offset: second, length: (log.batches[2] ?? 0) - second }]);
  });

  test("a run that lists too little is not believed", () => {
    const log = new LogBuilder().entries(blocks(0, 4));
    const partial = new LogBuilder().entries(blocks(0, 2)).index();
    // The index run of a log with half the entries, in the place of this one's.
    const bytes = Buffer.concat([log.bytes, partial.bytes.subarray(partial.batches[1])]);
    const reader = openReader(new MemoryFile(bytes));
    expect(keys(readEntries(reader))).toEqual(keys(log.known));
    expect(reader.indexDamage).toHaveLength(1);
  });

  test("a page that is not the one its fence announces is not used", () => {
    const log = new LogBuilder().entries(blocks(3, 4)).index();
    const bytes = Uint8Array.from(log.bytes);
    const batch = decodeBatchHeader(bytes.subarray(8192), header, 8192);
    if (batch === undefined) throw new Error("no index run");
    bytes[8192 + 64] = 2;
    const body = bodyChecksum(header.id, bytes.subarray(8192 + 64, 8192 + 72));
    writeBatchHeader(bytes, 8192, { ...batch, bodyChecksum: body });
    const reader = openReader(new MemoryFile(bytes));
    expect(keys(readEntries(reader))).toEqual(keys(log.known));
    expect(reader.indexDamage).toEqual([{ offset: batch.contentStart, length: 4096 }]);
  });

  test("a footer that is missing, harmed or another one: read by batches, on record", () => {
    const { log, closed } = build();
    const at = closed.footerOffset;
    const cases = [
      log.bytes.subarray(0, at),
      log.bytes.subarray(0, at + 64),
      Uint8Array.from(log.bytes).fill(1, at + 70, at + 71),
    ];
    for (const bytes of cases) {
      const reader = openReader(new MemoryFile(bytes), { closed });
      expect(keys(readEntries(reader))).toEqual(keys(log.known));
      expect(reader).toMatchObject({ damage: [], closed: true, sizeBytes: closed.sizeBytes });
      expect(reader.indexDamage).toEqual([{ offset: at, length: closed.sizeBytes - at }]);
    }
    for (const change of [{ footerChecksum: 1 }, { sizeBytes: closed.sizeBytes + 4096 }]) {
      const other = openReader(new MemoryFile(log.bytes), { closed: { ...closed, ...change } });
      expect(keys(readEntries(other))).toEqual(keys(log.known));
      expect(other.indexDamage).toHaveLength(1);
    }
  });

  test("a closed log that ends before its footer is refused, with file and offset", () => {
    const { log, closed } = build();
    const open = (): unknown => openReader(new MemoryFile(log.bytes.subarray(0, 8192)), { closed });
    expect(open).toThrow(
      expect.objectContaining({
        code: "store-damaged",
        message: expect.stringContaining(`${path} is damaged at offset ${closed.footerOffset}`),
      }),
    );
    const wrong = { sizeBytes: 0, footerOffset: 0, footerChecksum: 0 };
    expect(() => openReader(new MemoryFile(log.bytes), { closed: wrong })).toThrow(ReplicationError);
  });
});

test("what the device refuses is an error, not an end", () => {
  const log = new LogBuilder().entries(blocks(0, 1)).entries(blocks(1, 1));
  const file = new MemoryFile(log.bytes);
  const lanes = {
    ...file.lanes,
    read: (fd: number, target: Uint8Array, offset: number): number => {
      if (offset >= 8192) throw Object.assign(new Error("EIO"), { code: "EIO" });
      return file.lanes.read(fd, target, offset);
    },
  };
  expect(() => openReader(Object.assign(new MemoryFile(log.bytes), { lanes }))).toThrow(
    expect.objectContaining({ code: "store-damaged", message: expect.stringContaining("EIO") }),
  );
});

test("a batch header within a content is no batch", () => {
  // Content that holds the header of another place of this very log.
  const log = new LogBuilder();
  const inner = Buffer.alloc(4096);
  const fields = {
    id: header.id,
    offset: 4096,
    durable: 0,
    count: 1,
    headsBytes: 33,
    contentBytes: 0,
    bodyChecksum: 0,
  };
  inner.set(encodeBatchHeader({ ...fields, kind: batchKinds.entries }), 4096 - 97);
  log.entries([{ block: 1, digest: 1, parts: [0], content: inner }]);
  expect(decodeBatchHeader(log.bytes.subarray(8192), header, 8192)).toBeUndefined();
  const bytes = Uint8Array.from(log.bytes).fill(0, 4096, 4100);
  expect(readAll(openReader(new MemoryFile(bytes)))).toEqual([]);
});
