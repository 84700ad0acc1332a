/** Another process reads every point while deltas come and points go. 1,000 deltas: readers.long.ts. */
import { expect, test } from "vitest";
import { MIB } from "./content.ts";
import { readBesideDeltas } from "./readers.ts";

test("every point reads as it was sent, in another process, while 40 deltas come and points are removed", async (t) => {
  const counts = await readBesideDeltas(t, 40);
  expect(counts.passes).toBeGreaterThanOrEqual(8);
  expect(counts.points).toBeGreaterThan(20);
  expect(counts.held).toBeGreaterThan(0);
});

test("the same of a VHDX replica, which grows into new payload blocks", async (t) => {
  const counts = await readBesideDeltas(t, 40, { newDisks: { format: "vhdx", payloadBlockBytes: MIB } });
  expect(counts.passes).toBeGreaterThanOrEqual(8);
  expect(counts.points).toBeGreaterThan(20);
});
