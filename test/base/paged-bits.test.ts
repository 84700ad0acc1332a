import fc from "fast-check";
import { expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import { PagedBits } from "../../src/base/paged-bits.ts";

test("agrees with a Set", () => {
  const size = 100_000;
  // Around the edges of bytes and of pages as often as anywhere.
  const bit = fc.oneof(fc.nat(size - 1), fc.constantFrom(0, 7, 8, 32_767, 32_768, 65_535, 65_536, size - 1));
  const step = fc.tuple(fc.constantFrom("add", "delete", "has") as fc.Arbitrary<"add" | "delete" | "has">, bit);
  fc.assert(
    fc.property(fc.array(step), (steps) => {
      const bits = new PagedBits(size);
      const model = new Set<number>();
      for (const [kind, at] of steps) {
        const had = model.has(at);
        if (kind === "add") {
          expect(bits.add(at)).toBe(!had);
          model.add(at);
        } else if (kind === "delete") {
          expect(bits.delete(at)).toBe(had);
          model.delete(at);
        } else expect(bits.has(at)).toBe(had);
        expect(bits.count).toBe(model.size);
      }
      for (const [, at] of steps) expect(bits.has(at)).toBe(model.has(at));
      bits.clear();
      expect(bits.count).toBe(0);
      for (const at of model) expect(bits.has(at)).toBe(false);
    }),
  );
});

test("block numbers beyond 2^31 are told apart", () => {
  const bits = new PagedBits(2 ** 33);
  bits.add(2 ** 32 + 1);
  expect(bits.has(2 ** 32 + 1)).toBe(true);
  expect(bits.has(1)).toBe(false);
});

test("bits outside the set are refused", () => {
  const bits = new PagedBits(10);
  expect(() => bits.add(10)).toThrow(InvariantError);
  expect(() => bits.add(-1)).toThrow(InvariantError);
  expect(bits.has(10)).toBe(false);
  expect(bits.delete(10)).toBe(false);
  expect(() => new PagedBits(-1)).toThrow(InvariantError);
});

test("ranges, joins, copies and new sizes agree with a Set", () => {
  const size = 100_000;
  const edge = fc.oneof(fc.nat(size), fc.constantFrom(0, 7, 8, 32_767, 32_768, 65_536, 98_304, size));
  const step = fc.tuple(fc.constantFrom("range", "or", "bytes", "resize", "clone", "add", "delete"), edge, edge);
  const modelOf = (bits: PagedBits): number[] => {
    const found: number[] = [];
    for (let at = bits.next(0); at !== undefined; at = bits.next(at + 1)) found.push(at);
    return found;
  };
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
      let bits = new PagedBits(size);
      let model = new Set<number>();
      for (const [kind, one, other] of steps) {
        const from = Math.min(one, other, bits.size);
        const to = Math.min(Math.max(one, other), bits.size);
        if (kind === "range") {
          bits.addRange(from, to - from);
          for (let at = from; at < to; at++) model.add(at);
        } else if (kind === "or") {
          const more = new PagedBits(size);
          more.addRange(Math.min(one, other), Math.abs(one - other));
          bits.or(more);
          for (let at = from; at < to; at++) model.add(at);
        } else if (kind === "bytes") {
          const bytes = new Uint8Array(5);
          const firstByte = from >> 3;
          bits.readBytes(bytes, firstByte);
          for (let at = 0; at < 40; at++) {
            expect(((bytes[at >> 3] ?? 0) >> (at & 7)) & 1).toBe(Number(model.has(firstByte * 8 + at)));
          }
          bytes.fill(0b0101_1010);
          bits.orBytes(bytes, firstByte);
          for (let at = 0; at < 40; at++) {
            if ([1, 3, 4, 6].includes(at & 7) && firstByte * 8 + at < bits.size) model.add(firstByte * 8 + at);
          }
        } else if (kind === "resize") {
          bits.resize(one);
          model = new Set([...model].filter((at) => at < one));
        } else if (kind === "clone") {
          const before = bits;
          bits = before.clone();
          before.addRange(0, before.size);
          before.clear();
        } else if (from < bits.size) {
          if (kind === "add") bits.add(from);
          else bits.delete(from);
          if (kind === "add") model.add(from);
          else model.delete(from);
        }
        expect(bits.count).toBe(model.size);
        const clear = bits.next(from, false);
        let wanted: number | undefined = from;
        while (wanted !== undefined && model.has(wanted)) wanted++;
        if (wanted !== undefined && wanted >= bits.size) wanted = undefined;
        expect(clear).toBe(wanted);
      }
      expect(modelOf(bits)).toEqual([...model].sort((a, b) => a - b));
    }),
    { numRuns: 25 },
  );
});

test("a full set of 2^32 bits costs no memory of its own, and a hole in it a page", () => {
  const bits = new PagedBits(2 ** 32);
  bits.addRange(0, 2 ** 32);
  expect(bits.count).toBe(2 ** 32);
  expect(bits.next(0, false)).toBeUndefined();
  bits.delete(2 ** 31);
  expect(bits.next(0, false)).toBe(2 ** 31);
  const other = new PagedBits(2 ** 32);
  other.addRange(0, 2 ** 32);
  expect(other.count).toBe(2 ** 32);
  expect(other.has(2 ** 31)).toBe(true);
});
