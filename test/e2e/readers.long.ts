/** The same as in readers.test.ts, for long. */
import { expect, test } from "vitest";
import { readBesideDeltas } from "./readers.ts";

test("every point reads as it was sent, in another process, while 1,000 deltas come and points are removed", async (t) => {
  const counts = await readBesideDeltas(t, 1_000);
  expect(counts.passes).toBeGreaterThanOrEqual(200);
  expect(counts.points).toBeGreaterThan(500);
  expect(counts.held).toBeGreaterThan(20);
  process.stdout.write(`${JSON.stringify(counts)}\n`);
});
