import fc from "fast-check";
import { expect, test } from "vitest";
import type { BlockReader, Extent } from "../../src/image/block-device.ts";
import { blocksOutside, cutRanges, DataCursor } from "../../src/replication/data-cursor.ts";

/** Extents of any length, cut where one asks. */
function reader(lengths: readonly { readonly kind: Extent["kind"]; readonly length: number }[]): BlockReader & {
  readonly open: number;
} {
  const sizeBytes = lengths.reduce((sum, { length }) => sum + length, 0);
  let open = 0;
  return {
    sizeBytes,
    sectorBytes: 512,
    get open() {
      return open;
    },
    read: () => Promise.reject(new Error("nothing is read")),
    async *extents(offset, length) {
      open++;
      try {
        let at = 0;
        for (const extent of lengths) {
          const start = Math.max(at, offset);
          const end = Math.min(at + extent.length, offset + length);
          at += extent.length;
          if (end > start) yield { kind: extent.kind, offset: start, length: end - start };
        }
      } finally {
        open--;
      }
    },
    close: () => Promise.resolve(),
  };
}

const anyExtents = fc.array(
  fc.record({
    kind: fc.constantFrom("data" as const, "zero" as const, "hole" as const),
    length: fc.integer({ min: 1, max: 40 }),
  }),
  { maxLength: 30 },
);
const blockBytes = 8;

test("ranges hold exactly the blocks with any byte of data, whatever the steps", async () => {
  await fc.assert(
    fc.asyncProperty(anyExtents, fc.array(fc.integer({ min: 1, max: 12 })), fc.nat(5), async (extents, steps, from) => {
      const image = reader(extents);
      const blocks = Math.ceil(image.sizeBytes / blockBytes);
      const fromBlock = Math.min(from, blocks);
      const dataBytes = extents.flatMap(({ kind, length }) => Array.from({ length }, () => kind === "data"));
      const cursor = new DataCursor(image, { blockBytes, fromBlock });
      const found: number[] = [];
      let first = fromBlock;
      for (let step = 0; first < blocks; step++) {
        const end = Math.min(blocks, first + (steps[step % Math.max(1, steps.length)] ?? 3));
        const ranges = await cursor.ranges(first, end);
        for (const [index, range] of ranges.entries()) {
          expect(range.first).toBeGreaterThanOrEqual(index === 0 ? first : (ranges[index - 1]?.end ?? 0) + 1);
          expect(range.end).toBeGreaterThan(range.first);
          expect(range.end).toBeLessThanOrEqual(end);
          for (let block = range.first; block < range.end; block++) found.push(block);
        }
        const within = found.filter((block) => block >= first);
        expect(blocksOutside(first, end - first, ranges)).toEqual(
          Array.from({ length: end - first }, (_unused, index) => first + index).filter(
            (block) => !within.includes(block),
          ),
        );
        first = end;
      }
      await cursor.close();
      expect(image.open).toBe(0);
      const expected = Array.from({ length: blocks }, (_unused, block) => block).filter(
        (block) => block >= fromBlock && dataBytes.slice(block * blockBytes, (block + 1) * blockBytes).includes(true),
      );
      expect(found).toEqual(expected);
      expect(cursor.dataBytes).toBe(dataBytes.slice(fromBlock * blockBytes).filter(Boolean).length);
    }),
    { numRuns: 300 },
  );
});

test("a cursor does not go back", async () => {
  const cursor = new DataCursor(reader([{ kind: "data", length: 100 }]), { blockBytes, fromBlock: 0 });
  await cursor.ranges(0, 5);
  await expect(cursor.ranges(4, 6)).rejects.toThrow("forward");
});

test("ranges are cut at the same places, wherever they begin", () => {
  expect(
    cutRanges(
      [
        { first: 3, end: 9 },
        { first: 12, end: 13 },
      ],
      4,
    ),
  ).toEqual([
    { first: 3, end: 4 },
    { first: 4, end: 8 },
    { first: 8, end: 9 },
    { first: 12, end: 13 },
  ]);
});
