import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../../src/base/errors.ts";
import { describeUndoLog } from "../../../src/replica/undo/describe.ts";
import { readUndoBatches, scanUndoLog, type UndoScan } from "../../../src/replica/undo/scan.ts";
import { warmLog } from "../../../src/replica/undo/warm.ts";
import { randomBytes } from "../../random.ts";
import { header, keyOf, LogBuilder, MemoryFile, path } from "./kit.ts";

function logOf(bytes: Uint8Array): { path: string; lanes: MemoryFile["lanes"]; fd: number } {
  return { path, lanes: new MemoryFile(bytes).lanes, fd: 3 };
}

function one(block: number): { block: number; digest: number; parts: number[]; content: Uint8Array }[] {
  return [{ block, digest: 1, parts: [0], content: randomBytes(4096) }];
}

function keysFrom(scan: UndoScan, from: number): string[] {
  const keys: string[] = [];
  readUndoBatches(scan, from, ({ entries, count }) => {
    const before = keys.length;
    for (const entry of entries) keys.push(keyOf(entry));
    expect(keys.length - before).toBe(count);
  });
  return keys;
}

function harm(bytes: Uint8Array, at: number): Uint8Array {
  const copy = Uint8Array.from(bytes);
  copy[at] = (copy[at] ?? 0) ^ 4;
  return copy;
}

test("a log without batches", () => {
  const scan = scanUndoLog(logOf(new LogBuilder().bytes.subarray(0, 64)));
  expect(scan).toMatchObject({ header, goodEnd: 4096, checkpoint: 0, footerOffset: undefined, damage: [], runs: [] });
});

test("the last checkpoint is in force, and entries are given from an offset on, in the order they were written", () => {
  const log = new LogBuilder().entries([
    { block: 9, digest: 1, damaged: true, content: randomBytes(16_384) },
    { block: 3, run: 5, digest: 0 },
  ]);
  const second = log.end;
  log.checkpoint(second).entries(one(4)).index().entries(one(2));
  const scan = scanUndoLog(logOf(log.bytes));
  expect(scan).toMatchObject({
    goodEnd: log.end,
    checkpoint: second,
    runs: log.runs,
    indexedTo: log.batches.at(-1),
    totals: { entries: 4, parts: 4 + 5 * 4 + 2, damagedEntries: 1, batchesEnd: log.end },
  });
  const all = log.known.map(({ entry }) => keyOf(entry));
  expect(keysFrom(scan, 0)).toEqual(all);
  expect(keysFrom(scan, second)).toEqual(all.slice(2));
  expect(keysFrom(scan, scan.indexedTo)).toEqual(all.slice(3));
  log.checkpoint(0);
  expect(scanUndoLog(logOf(log.bytes)).checkpoint).toBe(0);
});

test("a footer without a successor is part of the tail", () => {
  const log = new LogBuilder().entries(one(1));
  const { footerOffset } = log.footer();
  expect(scanUndoLog(logOf(log.bytes))).toMatchObject({ goodEnd: footerOffset, footerOffset });
  // Torn itself: the same.
  expect(scanUndoLog(logOf(log.bytes.subarray(0, footerOffset + 70))).goodEnd).toBe(footerOffset);
});

describe("contents nothing proves to have been durable are read", () => {
  test("a batch whose content is torn is the end, with what follows it", () => {
    const log = new LogBuilder().entries(one(1));
    const second = log.end;
    log.entries(one(2), second);
    const third = log.end;
    log.entries(one(3), second).checkpoint(third, second);
    const scan = scanUndoLog(logOf(harm(log.bytes, second + 200)));
    expect(scan).toMatchObject({ goodEnd: second, checkpoint: 0, damage: [], totals: { entries: 1 } });
    // Once a later batch says that it was durable, its content is a matter for readers.
    log.entries(one(4), third);
    expect(scanUndoLog(logOf(harm(log.bytes, second + 200)))).toMatchObject({ goodEnd: log.end, damage: [] });
  });

  test("a page of an index run too", () => {
    const log = new LogBuilder().entries(one(1));
    const run = log.end;
    log.index(run);
    const torn = harm(log.bytes, run + 4096 + 20);
    expect(scanUndoLog(logOf(torn))).toMatchObject({ goodEnd: run, runs: [], indexedTo: 4096 });
  });
});

describe("damage is skipped, and nothing is cut", () => {
  test.each([
    ["header", 3],
    ["heads", 66],
  ])("of a %s", (_, within) => {
    const log = new LogBuilder().entries(one(1));
    const second = log.end;
    log.entries(one(2));
    const third = log.end;
    log.entries(one(3)).entries(one(4));
    const scan = scanUndoLog(logOf(harm(log.bytes, second + within)));
    expect(scan).toMatchObject({ goodEnd: log.end, damage: [{ offset: second, length: third - second }] });
    expect(keysFrom(scan, 0)).toEqual([0, 2, 3].map((index) => keyOf(log.known[index]?.entry ?? never())));
  });

  test("of an index run: told apart, since the batches have what it held", () => {
    const log = new LogBuilder().entries(one(1));
    const run = log.end;
    log.index();
    const behind = log.end;
    log.entries(one(2)).entries(one(3));
    const scan = scanUndoLog(logOf(harm(log.bytes, run + 66)));
    expect(scan).toMatchObject({ goodEnd: log.end, damage: [], runs: log.runs, indexDamage: [{ offset: run }] });
    expect(scan.indexedTo).toBe(behind);
  });

  test("and what a torn batch says of others counts", () => {
    const log = new LogBuilder().entries(one(1), 0);
    const second = log.end;
    log.entries(one(2), 0);
    const third = log.end;
    log.entries(one(3), 0);
    const last = log.end;
    log.entries(one(4));
    // Heads of the second, header of the third; the last is cut, and only its header says that both were durable.
    const bytes = harm(harm(log.bytes, second + 66), third + 3).subarray(0, last + 200);
    const damage = [second, third].map((offset) => ({ offset, length: third - second }));
    expect(scanUndoLog(logOf(bytes))).toMatchObject({ goodEnd: last, damage });
  });

  test("and a torn end behind it is cut all the same", () => {
    const log = new LogBuilder().entries(one(1));
    const second = log.end;
    log.entries(one(2)).entries(one(3));
    const last = log.end;
    log.entries(one(4));
    const bytes = harm(log.bytes, second + 3).subarray(0, log.end - 5000);
    expect(scanUndoLog(logOf(bytes))).toMatchObject({ goodEnd: last, damage: [{ offset: second }] });
  });
});

test("a log that changes under a scan is an error", () => {
  const log = new LogBuilder().entries(one(1)).entries(one(2));
  const file = new MemoryFile(log.bytes);
  const scan = scanUndoLog({ path, lanes: file.lanes, fd: 3 });
  file.bytes = harm(log.bytes, 4096 + 66);
  expect(() => keysFrom(scan, 0)).toThrow(ReplicationError);
  file.bytes = harm(log.bytes, 4096 + 3);
  expect(() => keysFrom(scan, 0)).toThrow(ReplicationError);
});

describe("facts", () => {
  const log = new LogBuilder().entries([
    { block: 9, digest: 1, damaged: true, parts: [1, 2], content: randomBytes(8192) },
    { block: 3, run: 5, digest: 0 },
    { block: 9, parts: [] },
  ]);
  log.checkpoint(4096).index().entries(one(5));
  const openBytes = log.bytes;
  const closed = log.footer();

  test("of a good log", () => {
    const sums = { entries: 4, zeroEntries: 1, damagedEntries: 1, emptyEntries: 1, parts: 23, contentBytes: 12_288 };
    const batches = { entries: 2, checkpoint: 1, index: 1, footer: 0 };
    const open = describeUndoLog(logOf(openBytes), { contents: true });
    expect(open).toEqual({
      header,
      endBytes: closed.footerOffset,
      batches,
      ...sums,
      checkpoint: 4096,
      trouble: [],
      troubleCount: 0,
    });
    const whole = describeUndoLog(logOf(log.bytes), { closed, contents: true });
    expect(whole).toMatchObject({ ...sums, batches: { ...batches, footer: 1 }, trouble: [] });
  });

  test.each([
    ["a header", 4096 + 3, "cannot be read"],
    ["heads", 4096 + 66, "heads do not match"],
    ["content", 4096 + 500, "content of block 9"],
    ["fences", (log.runs[0]?.offset ?? 0) + 66, "heads do not match"],
    ["a page", (log.runs[0]?.offset ?? 0) + 4096 + 66, "page 0 of the index run"],
    ["the footer", closed.footerOffset + 66, "the footer is not the one"],
  ])("name the offset of %s that is harmed", (_, at, what) => {
    const { trouble } = describeUndoLog(logOf(harm(log.bytes, at)), { closed, contents: true });
    const found = trouble.find((each) => each.what.includes(what));
    expect(found?.offset).toBeLessThanOrEqual(at);
    expect((found?.offset ?? 0) + (found?.length ?? 0)).toBeGreaterThan(at);
  });

  test("name a torn end", () => {
    const torn = Buffer.concat([openBytes, Buffer.alloc(100, 1)]);
    expect(describeUndoLog(logOf(torn)).trouble).toMatchObject([{ offset: openBytes.length }]);
  });

  test("are bounded where everything is wrong", () => {
    const many = new LogBuilder();
    for (let block = 0; block < 150; block++) many.entries([{ block, digest: 1 }]);
    const bytes = Uint8Array.from(many.bytes);
    for (let at = 4096; at < bytes.length; at += 4096) bytes[at + 70] = 0xff;
    const facts = describeUndoLog(logOf(bytes));
    expect(facts.trouble).toHaveLength(100);
    expect(facts.troubleCount).toBe(150);
  });
});

function never(): never {
  throw new Error("no such entry");
}

test("what was warmed is all that a scan of a log reads in which everything was durable", async () => {
  const log = new LogBuilder();
  for (let first = 0; first < 900; first += 300) {
    log.entries(
      Array.from({ length: 300 }, (_, nth) => ({ block: first + nth, digest: 1, content: randomBytes(16_384) })),
    );
    log.index();
  }
  log.checkpoint();
  const pages = new Set<number>();
  const { lanes } = new MemoryFile(log.bytes);
  const read = (target: Uint8Array, offset: number): number => {
    for (let at = offset - (offset % 4096); at < offset + target.length; at += 4096) pages.add(at);
    return lanes.read(3, target, offset);
  };
  await warmLog({ path, read: async (target, offset) => read(target, offset) }, log.bytes.length);
  const warm = new Set(pages);
  scanUndoLog({ path, lanes: { ...lanes, read: (_fd, target, offset) => read(target, offset) }, fd: 3 });
  expect([...pages].filter((page) => !warm.has(page) && page < log.bytes.length)).toEqual([]);
  expect(warm.size * 4096).toBeLessThan(log.bytes.length / 50);
});
