/** The same as in stamps.slow.ts, for longer. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "../kit.ts";
import { stampSlowDevices, type StampCounts, stampTracker } from "./stamps.ts";

/** In the names of the tests, so that a failure tells it; `REPLICATE_TEST_SEED` repeats it. */
const seed = Number(process.env["REPLICATE_TEST_SEED"]) || Date.now() & 0xffff;
const cycles = 60;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

function tell(what: string, counts: StampCounts): void {
  process.stdout.write(`${what}: ${JSON.stringify(counts)}\n`);
  expect(counts.cycles).toBeGreaterThanOrEqual(cycles);
  expect(counts.underWay).toBeGreaterThan(cycles);
}

test(`stamps on two exports of a tracker, ${String(cycles)} cycles, seed ${String(seed)}`, async (t) => {
  tell("tracker", await stampTracker(t, pki, { cycles, seed }));
});

test(`stamps on slow devices, ${String(cycles)} cycles, seed ${String(seed)}`, async (t) => {
  tell("slow devices", await stampSlowDevices(t, pki, { cycles, seed }));
});
