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
