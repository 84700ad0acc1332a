import fc from "fast-check";
import { expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import { KIB, TIB } from "../../src/base/units.ts";
import { DirtyBitmap } from "../../src/track/dirty-bitmap.ts";

const blockBytes = 16 * KIB;

function blocksOf(bits: DirtyBitmap): number[] {
  return [...bits.ranges()].flatMap(({ first, count }) => Array.from({ length: count }, (_, at) => first + at));
}

test("agrees with a Set of blocks", () => {
  const bytesMax = 200 * blockBytes;
  const number = fc.oneof(
    fc.nat(bytesMax),
    fc.nat(200).map((block) => block * blockBytes),
  );
  const step = fc.tuple(fc.constantFrom("bytes", "clear", "resize", "or", "bits", "all"), number, number);
  fc.assert(
    fc.property(number, fc.array(step, { maxLength: 20 }), (sizeBytes, steps) => {
      const bits = new DirtyBitmap({ sizeBytes, blockBytes });
      let size = sizeBytes;
      let model = new Set<number>();
      const touch = (into: Set<number>, offset: number, length: number): void => {
        for (let at = offset; at < Math.min(offset + length, size); at++) {
          into.add(Math.floor(at / blockBytes));
          at = (Math.floor(at / blockBytes) + 1) * blockBytes - 1;
        }
      };
      for (const [kind, one, other] of steps) {
        const length = other % (20 * blockBytes);
        if (kind === "bytes") {
          bits.setBytes(one, length);
          touch(model, one, length);
        } else if (kind === "clear") {
          const block = Math.floor(one / blockBytes);
          expect(bits.clear(block)).toBe(model.delete(block));
        } else if (kind === "resize") {
          const before = size;
          size = one;
          bits.resize(one);
          model = new Set([...model].filter((block) => block * blockBytes < size));
          touch(model, before, Math.max(0, size - before));
        } else if (kind === "or") {
          const more = new DirtyBitmap({ sizeBytes: bytesMax, blockBytes });
          more.setBytes(one, length);
          bits.or(more);
          touch(model, one, length);
        } else if (kind === "bits") {
          const copy = new DirtyBitmap({ sizeBytes: size, blockBytes });
          const bytes = new Uint8Array(Math.ceil(bits.blocks / 8) + 3);
          bits.readBits(bytes, 0);
          copy.orBits(bytes, 0);
          expect(blocksOf(copy)).toEqual(blocksOf(bits));
        } else {
          bits.setAll();
          touch(model, 0, size);
        }
        expect(bits.count).toBe(model.size);
        const wanted = new Set<number>();
        touch(wanted, one, length);
        expect(bits.covers(one, length)).toBe([...wanted].every((block) => model.has(block)));
      }
      expect(blocksOf(bits)).toEqual([...model].sort((a, b) => a - b));
      for (let block = 0; block < bits.blocks; block++) expect(bits.has(block)).toBe(model.has(block));
    }),
  );
});

test("runs are cut off where one begins to look", () => {
  const bits = new DirtyBitmap({ sizeBytes: 100 * blockBytes, blockBytes });
  bits.setBytes(10 * blockBytes, 20 * blockBytes);
  expect(bits.next(0)).toEqual({ first: 10, count: 20 });
  expect(bits.next(15)).toEqual({ first: 15, count: 15 });
  expect(bits.next(30)).toBeUndefined();
});

test("a frozen bitmap does not change, a copy of it does", () => {
  const bits = new DirtyBitmap({ sizeBytes: 10 * blockBytes, blockBytes });
  bits.set(3);
  bits.freeze();
  expect(() => bits.set(4)).toThrow(InvariantError);
  expect(() => {
    bits.resize(0);
  }).toThrow(InvariantError);
  const copy = bits.clone();
  copy.set(4);
  expect(blocksOf(copy)).toEqual([3, 4]);
  expect(blocksOf(bits)).toEqual([3]);
});

test("the largest disk", () => {
  const bits = new DirtyBitmap({ sizeBytes: 64 * TIB, blockBytes });
  bits.setBytes(64 * TIB - 1, 1);
  expect(bits.next(0)).toEqual({ first: 2 ** 32 - 1, count: 1 });
  bits.setAll();
  expect(bits.count).toBe(2 ** 32);
  expect(bits.next(2 ** 31)).toEqual({ first: 2 ** 31, count: 2 ** 31 });
});
