/** The same kills as in store-kill.slow.ts, many more. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "./kit.ts";
import { killStore } from "./store-kill.ts";

/** In the name of the test, so that a failure tells it. */
const seed = Date.now() & 0xffff;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test(`100 kills at moments of deltas, commits, removals and joinings, seed ${String(seed)}`, async (t) => {
  const counts = await killStore(t, pki, { kills: 100, keep: 5, seed });
  process.stdout.write(`${JSON.stringify(counts)}\n`);
  // Or the moments were all of one kind.
  for (const phase of ["delta", "commit", "removal", "joining"] as const)
    expect(counts.phases[phase], phase).toBeGreaterThan(5);
  expect(counts.before).toBeGreaterThan(10);
  expect(counts.after).toBeGreaterThan(10);
});
