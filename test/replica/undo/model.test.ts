/** Random logs against a list of what was written: lookups and contents, while the log grows, and when it is closed. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { blocksPerPage, partsPerBlock } from "../../../src/base/units.ts";
import type { UndoHeader } from "../../../src/replica/undo/entry.ts";
import { scanUndoLog } from "../../../src/replica/undo/scan.ts";
import type { UndoLogFile } from "../../../src/replica/undo/reader.ts";
import {
  type EntrySpec,
  header,
  keyOf,
  type Known,
  LogBuilder,
  MemoryFile,
  openReader,
  pack,
  path,
  readAll,
  readEntries,
} from "./kit.ts";

const blocksMax = 3000;

interface Draw {
  readonly block: number;
  readonly run: number;
  readonly parts: number;
  readonly fill: number;
  readonly kind: "zeros" | "stored" | "packed" | "again";
}

type Step =
  | { readonly kind: "entries"; readonly draws: readonly Draw[]; readonly lag: number }
  | { readonly kind: "index" }
  | { readonly kind: "checkpoint" }
  | { readonly kind: "look"; readonly block: number };

const draw: fc.Arbitrary<Draw> = fc.record({
  block: fc.oneof(fc.nat(blocksMax - 1), fc.nat(20), fc.integer({ min: 250, max: 262 })),
  run: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 60 })),
  parts: fc.nat(15),
  fill: fc.nat(255),
  kind: fc.constantFrom("zeros", "stored", "packed", "again"),
});

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("entries" as const),
      draws: fc.array(draw, { minLength: 1, maxLength: 12 }),
      lag: fc.nat(3),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("index" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("checkpoint" as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("look" as const), block: fc.nat(blocksMax) }) },
);

/** An entry a writer may write now: a run only over blocks the log has not named. */
function specOf(drawn: Draw, log: LogBuilder, named: Set<number>): EntrySpec {
  const { blockBytes, digestKind } = log.header;
  const { block, kind, fill } = drawn;
  const perPage = blocksPerPage(digestKind);
  const parts = Array.from({ length: partsPerBlock(blockBytes) }, (_, part) => part).filter(
    (part) => ((drawn.parts >> (part % 4)) & 1) !== 0,
  );
  if (kind === "again" || parts.length === 0) return { block, parts: [], ...firstDigest(block, fill, named) };
  if (kind === "zeros") {
    let run = 1;
    const room = Math.min(drawn.run, perPage - (block % perPage));
    if (!named.has(block)) while (run < room && !named.has(block + run)) run++;
    for (let at = block + 1; at < block + run; at++) named.add(at);
    return { block, run, ...(run > 1 ? {} : { parts }), ...firstDigest(block, 0, named) };
  }
  const content = Buffer.alloc(parts.length * 4096, `${block} ${fill} `);
  const packed = kind === "packed" ? pack(content) : undefined;
  const spec = { block, parts, content, damaged: fill === 7, ...firstDigest(block, fill, named) };
  return packed === undefined ? spec : { ...spec, packed };
}

function firstDigest(block: number, fill: number, named: Set<number>): { digest?: number } {
  if (named.has(block)) return {};
  named.add(block);
  return { digest: fill };
}

function checkAt(reader: UndoLogFile, log: LogBuilder, block: number): void {
  const perPage = blocksPerPage(log.header.digestKind);
  const page = block - (block % perPage);
  const queries = [
    [page, perPage],
    [block, 1],
    [block, page + perPage - block],
  ];
  for (const [first = 0, count = 1] of queries) {
    const found = reader.entries(first, count);
    expect(found.map(keyOf)).toEqual(log.expected(first, count).map(({ entry }) => keyOf(entry)));
  }
  expect(reader.nextBlock(block)).toBe(log.expectedNext(block));
}

function checkAll(reader: UndoLogFile, log: LogBuilder): void {
  const sorted: readonly Known[] = log.expected(0, blocksMax * 2);
  const found = readAll(reader);
  expect(found.map(({ entry }) => keyOf(entry))).toEqual(sorted.map(({ entry }) => keyOf(entry)));
  const same = found.map(({ content }, at) => content instanceof Uint8Array && sorted[at]?.content.equals(content));
  expect(same.filter((equal) => equal !== true)).toEqual([]);
  expect(reader.damage).toEqual([]);
  expect(reader.indexDamage).toEqual([]);
}

function run(shape: UndoHeader, steps: readonly Step[], bounds: { tailBytes: number; windowBytes: number }): void {
  const log = new LogBuilder(shape);
  const named = new Set<number>();
  const file = new MemoryFile(log.bytes);
  const reader = openReader(file, bounds);
  for (const each of steps) {
    switch (each.kind) {
      case "entries": {
        const durable = log.batches.at(-1 - each.lag) ?? 4096;
        log.entries(
          each.draws.map((drawn) => specOf(drawn, log, named)),
          durable,
        );
        break;
      }
      case "index":
        log.index();
        break;
      case "checkpoint":
        log.checkpoint();
        break;
      case "look": {
        const grown = log.bytes.length > file.bytes.length;
        file.bytes = log.bytes;
        expect(reader.refresh()).toBe(grown);
        checkAt(reader, log, each.block);
      }
    }
  }
  file.bytes = log.bytes;
  reader.refresh();
  checkAll(reader, log);
  checkAll(openReader(file, bounds), log);
  const scan = scanUndoLog({ path, lanes: file.lanes, fd: 3 });
  const closed = log.footer();
  expect(scan).toMatchObject({ goodEnd: closed.footerOffset, damage: [], indexDamage: [], runs: log.runs });
  expect(scan.totals.entries).toBe(log.known.length);
  file.bytes = log.bytes;
  checkAll(openReader(file, { ...bounds, closed }), log);
}

const shapes: readonly UndoHeader[] = [
  header,
  { ...header, digestKind: "sha256" },
  { ...header, blockBytes: 65_536, digestKind: "sha256" },
];
const bounds = [
  { tailBytes: 1 << 20, windowBytes: 1 << 20 },
  { tailBytes: 200, windowBytes: 300 },
];

test.each(shapes.flatMap((shape) => bounds.map((bound) => ({ ...shape, ...bound }))))(
  "blocks of $blockBytes bytes, $digestKind, $tailBytes bytes in memory",
  ({ tailBytes, windowBytes, ...shape }) => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 14 }), (steps) => run(shape, steps, { tailBytes, windowBytes })),
      { numRuns: 40 },
    );
  },
);

test("many entries: by index runs, from memory and by scanning alike", () => {
  const log = new LogBuilder();
  // Blocks in an order that spreads each batch over the disk.
  const specs = Array.from({ length: 6000 }, (_, index) => ({ block: (index * 37) % 6007, parts: [], digest: 1 }));
  for (let at = 0; at < specs.length; at += 250) {
    log.entries(specs.slice(at, at + 250));
    if (at % 2000 === 1750 && at < 5000) log.index();
  }
  const expected = log.expected(0, 6007).map(({ entry }) => keyOf(entry));
  const file = new MemoryFile(log.bytes);
  for (const bound of bounds.map(({ tailBytes }) => ({ tailBytes, windowBytes: 50_000 }))) {
    expect(readEntries(openReader(file, bound)).map(({ entry }) => keyOf(entry))).toEqual(expected);
  }
});
