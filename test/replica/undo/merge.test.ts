/** Several logs as one: of each part the first content, of each block the first digest; long runs of zeros stay runs. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { hasPart } from "../../../src/base/part-mask.ts";
import { blocksPerPage, PART_BYTES, partsPerBlock } from "../../../src/base/units.ts";
import type { UndoLogReader } from "../../../src/replica/undo/entry.ts";
import { countMerge, type MergedBatch, mergeLogs } from "../../../src/replica/undo/merge.ts";
import { type EntrySpec, header, LogBuilder, lz4, MemoryFile, openReader } from "./kit.ts";

const { blockBytes, digestKind } = header;
const perPage = blocksPerPage(digestKind);
const perBlock = partsPerBlock(blockBytes);

function closedReader(log: LogBuilder): UndoLogReader {
  const closed = log.index().footer();
  return openReader(new MemoryFile(log.bytes), { closed });
}

const target = {
  id: header.id,
  blockBytes,
  compressLz4: (source: Uint8Array, into: Uint8Array) => lz4.compress(source, into),
};

function merged(readers: readonly UndoLogReader[]): LogBuilder {
  const log = new LogBuilder();
  for (const { heads, content } of mergeLogs(readers, target) as Iterable<MergedBatch>) {
    let at = 0;
    const specs = heads.map((head): EntrySpec => {
      const stored = content.subarray(at, at + head.contentBytes);
      at += head.contentBytes;
      const parts = Array.from({ length: perBlock }, (_, part) => part).filter((part) => hasPart(head.mask, part));
      const digest = head.digest === undefined ? {} : { digest: head.digest[0] ?? 0 };
      const damaged = (head.flags & 4) !== 0;
      const spec = { block: head.block, run: head.run, parts, damaged, ...digest };
      if (stored.length === 0) return spec;
      const raw = new Uint8Array(parts.length * PART_BYTES);
      if ((head.flags & 8) === 0) return { ...spec, content: stored };
      lz4.decompress(stored, raw);
      return { ...spec, content: raw, packed: stored };
    });
    log.entries(specs);
  }
  return log;
}

/** What is found of each part of the blocks, and the digest of each, by looking through the logs in order. */
function found(readers: readonly UndoLogReader[], blocks: number): readonly string[] {
  return Array.from({ length: blocks }, (_, block) => {
    const parts: string[] = Array.from({ length: perBlock }, () => "-");
    let digest: string | undefined;
    for (const reader of readers) {
      for (const entry of reader.entries(block, 1)) {
        if (digest === undefined && entry.digest !== undefined) digest = Buffer.from(entry.digest).toString("hex");
        const mine = Array.from({ length: perBlock }, (_, part) => part).filter((part) => hasPart(entry.mask, part));
        const content = new Uint8Array(mine.length * PART_BYTES);
        if (!entry.zero && mine.length > 0) reader.readContent(entry, content);
        for (const [index, part] of mine.entries()) {
          if (parts[part] !== "-") continue;
          parts[part] = `${entry.damaged ? "damaged " : ""}${content[index * PART_BYTES] ?? 0}`;
        }
      }
    }
    return `${digest ?? "-"}: ${parts.join(", ")}`;
  });
}

const blocks = 2 * perPage;
const draw = fc.record({
  block: fc.oneof(fc.nat(blocks - 1), fc.integer({ min: perPage - 20, max: perPage + 20 })),
  run: fc.oneof(fc.constant(1), fc.nat(perPage)),
  parts: fc.subarray(
    Array.from({ length: perBlock }, (_, part) => part),
    { minLength: 1 },
  ),
  fill: fc.integer({ min: 1, max: 255 }),
  zero: fc.boolean(),
  damaged: fc.boolean(),
});
type Draw = typeof draw extends fc.Arbitrary<infer T> ? T : never;

/** As a writer writes: the first entry of a block has its digest; a run is of blocks that were not named. */
function logOf(draws: readonly Draw[]): UndoLogReader {
  const log = new LogBuilder();
  const named = new Set<number>();
  for (const { block, run: wanted, parts, fill, zero, damaged } of draws) {
    const isNew = !named.has(block);
    let run = 1;
    const room = Math.min(wanted, perPage - (block % perPage));
    if (zero && isNew) while (run < room && !named.has(block + run)) run++;
    for (let at = block; at < block + run; at++) named.add(at);
    const digest = isNew ? { digest: zero ? 0 : fill } : {};
    // The format allows a run of parts, too.
    if (zero) log.entries([{ block, run, ...(fill % 2 === 0 ? {} : { parts }), ...digest }]);
    else log.entries([{ block, parts, damaged, content: Buffer.alloc(parts.length * PART_BYTES, fill), ...digest }]);
  }
  return closedReader(log);
}

test("whatever the logs: what is found in the one is what is found in them", () => {
  fc.assert(
    fc.property(fc.array(fc.array(draw, { maxLength: 12 }), { minLength: 1, maxLength: 4 }), (drawn) => {
      const readers = drawn.map(logOf);
      const one = merged(readers);
      const before = found(readers, blocks);
      expect(found([closedReader(one)], blocks)).toEqual(before);
      const steps = countMerge(readers);
      let step = steps.next();
      while (step.done !== true) step = steps.next();
      const contents = before.join(" ").match(/[:,] (damaged )?[1-9]\d*/g) ?? [];
      expect(step.value.kept).toBe(contents.length);
      expect(step.value.held).toBeGreaterThanOrEqual(step.value.kept);
    }),
    { numRuns: 60 },
  );
});

test("a tail of zeros stays one entry a table page, and hides what later logs have there", () => {
  const zeros = new LogBuilder();
  zeros.entries(Array.from({ length: 12 }, (_, page) => ({ block: page * perPage, run: perPage, digest: 0 })));
  const later = new LogBuilder();
  for (let block = 0; block < 12 * perPage; block += 37) {
    later.entries([{ block, content: Buffer.alloc(blockBytes, 7), digest: 7 }]);
  }
  const one = merged([closedReader(zeros), closedReader(later)]);
  expect(one.known.map(({ entry: { block, run } }) => [block, run])).toEqual(
    Array.from({ length: 12 }, (_, page) => [page * perPage, perPage]),
  );
  // The other way round they are cut where something comes first.
  const other = merged([closedReader(later), closedReader(zeros)]);
  expect(other.known.length).toBeLessThan(3 * later.known.length + 12);
});
