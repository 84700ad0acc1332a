/** `kill -9` of a receiver in deltas, commits and removals: every point can be read before the sender is back. 100 kills: store-kill.long.ts. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "./kit.ts";
import { killStore } from "./store-kill.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("5 kills, also while points are removed and their logs joined (C-71)", async (t) => {
  const counts = await killStore(t, pki, { kills: 5, seed: 12, keep: 2, bothEnds: true });
  expect(counts.read).toBeGreaterThanOrEqual(10);
});
