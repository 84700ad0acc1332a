/** `kill -9` of a receiver in deltas, commits, removals and joinings: every point can be read before the sender is back. 100 kills: store-kill.long.ts. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "./kit.ts";
import { killStore } from "./store-kill.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("C-71: 5 kills, also while points are removed, and at least one while their logs are joined", async (t) => {
  const counts = await killStore(t, pki, { kills: 5, seed: 12, keep: 2, bothEnds: true, joining: 1 });
  expect(counts.read).toBeGreaterThanOrEqual(10);
  expect(counts.phases.joining).toBeGreaterThan(0);
});
