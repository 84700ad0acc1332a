/** As no-space.slow.ts, at every operation, and at every byte behind which a write is torn in another way. */
import { describe, expect, test } from "vitest";
import { fullAtBytes, fullFromOperations } from "./no-space.ts";

const pageBytes = 4_096;

describe("full from each operation on, until room is made (C-71)", () => {
  for (const format of ["raw", "vhdx"] as const) {
    for (const killed of [false, true]) {
      test(`${format}, ${killed ? "and power is lost" : "in one process"}`, () =>
        fullFromOperations(format, killed, 1));
    }
  }
});

/** The ends of each write and of each of its pages, one byte before and one behind them. */
function tears(writes: readonly number[]): readonly number[] {
  const found = new Set<number>();
  let start = 0;
  for (const bytes of writes) {
    for (let at = 0; at < bytes; at += pageBytes) for (const by of [-1, 0, 1]) found.add(start + at + by);
    start += bytes;
  }
  return [...found].filter((bytes) => bytes >= 0 && bytes < start).sort((a, b) => a - b);
}

describe("full at the ends of writes and pages, and a byte beside them, of two deltas, their commits, a removal and a joining (C-71)", () => {
  test.each(["raw", "vhdx"] as const)("%s", async (format) => {
    expect(await fullAtBytes(format, tears)).toBeGreaterThan(250);
  });
});
