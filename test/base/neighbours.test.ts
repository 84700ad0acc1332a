import { expect, test } from "vitest";
import { neighboursEnd } from "../../src/base/neighbours.ts";

test("neighbours end at a gap, at the end, and at the most there may be", () => {
  const blocks = [3, 4, 5, 9, 11, 12];
  expect([0, 1, 3, 4, 5].map((start) => neighboursEnd(blocks, start))).toEqual([3, 3, 4, 6, 6]);
  expect([1, 2, 3, 4].map((most) => neighboursEnd(blocks, 0, most))).toEqual([1, 2, 3, 3]);
});
