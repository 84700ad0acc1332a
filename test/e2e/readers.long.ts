/** The same as in readers.slow.ts, for long. */
import { expect, test } from "vitest";
import { MIB } from "./content.ts";
import { readBesideDeltas } from "./readers.ts";

test("every point reads as it was sent, in another process, while 1,000 deltas come and points are removed", async (t) => {
  const counts = await readBesideDeltas(t, 1_000);
  expect(counts.passes).toBeGreaterThanOrEqual(200);
  expect(counts.points).toBeGreaterThan(500);
  expect(counts.held).toBeGreaterThan(20);
  process.stdout.write(`${JSON.stringify(counts)}\n`);
});

test("the same of a VHDX replica, 500 deltas", async (t) => {
  const counts = await readBesideDeltas(t, 500, { newDisks: { format: "vhdx", payloadBlockBytes: MIB } });
  expect(counts.passes).toBeGreaterThanOrEqual(100);
  expect(counts.points).toBeGreaterThan(250);
  process.stdout.write(`${JSON.stringify(counts)}\n`);
});
