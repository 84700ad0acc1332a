/** The same kills as in kill.slow.ts, many more. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "../kit.ts";
import { type Killed, killTracked } from "./kill.ts";
import { killSends } from "./kill-send.ts";

/** In the names of the tests, so that a failure tells it; `REPLICATE_TEST_SEED` repeats it. */
const seed = Number(process.env["REPLICATE_TEST_SEED"]) || Date.now() & 0xffff;
const kills = 50;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

for (const killed of ["tracker", "receiver", "both"] as const satisfies readonly Killed[]) {
  test(`kill -9 of ${killed} under load, ${String(kills)} times, seed ${String(seed)}`, async (t) => {
    const counts = await killTracked(t, pki, { killed, kills, seed });
    process.stdout.write(`${killed}: ${JSON.stringify(counts)}\n`);
    expect(counts.kills).toBe(kills);
  });
}

test(`kill -9 of a send that has its cut from a tracker, ${String(kills)} times, seed ${String(seed)}`, async (t) => {
  const counts = await killSends(t, pki, { kills, seed });
  process.stdout.write(`send: ${JSON.stringify(counts)}\n`);
  expect(counts.kills).toBe(kills);
  expect(counts.unheard).toBeGreaterThan(0);
});
