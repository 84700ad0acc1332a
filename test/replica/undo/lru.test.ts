import { expect, test } from "vitest";
import { ByteLru } from "../../../src/replica/undo/lru.ts";

test("what was not used for longest goes first, and sizes count", () => {
  const cache = new ByteLru<string, number>(10);
  cache.set("a", 1, 4);
  cache.set("b", 2, 4);
  expect(cache.get("a")).toBe(1);
  cache.set("c", 3, 4);
  expect(["a", "b", "c"].map((key) => cache.get(key))).toEqual([1, undefined, 3]);
  // Replaced, it counts once.
  cache.set("c", 4, 6);
  expect(["a", "c"].map((key) => cache.get(key))).toEqual([1, 4]);
  cache.delete("a");
  cache.set("d", 5, 4);
  expect(["c", "d"].map((key) => cache.get(key))).toEqual([4, 5]);
});

test("one value larger than all is kept until the next", () => {
  const cache = new ByteLru<string, number>(10);
  cache.set("a", 1, 4);
  cache.set("b", 2, 40);
  expect(["a", "b"].map((key) => cache.get(key))).toEqual([undefined, 2]);
  cache.set("c", 3, 1);
  expect(["b", "c"].map((key) => cache.get(key))).toEqual([undefined, 3]);
});
