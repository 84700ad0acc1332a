/** The same kills as in kill.slow.ts, many more. */
import { join } from "node:path";
import { beforeAll, test } from "vitest";
import { MIB } from "./content.ts";
import { killDeltas, killReceivers, killSenders, makeSetting } from "./interrupt.ts";
import { makePki, type Pki, suiteScope, tempDir } from "./kit.ts";

const imageBytes = 96 * MIB;
/** In the names of tests, so that a failure tells it. */
const seed = Date.now() & 0xffff;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test(`kill -9 of the sender at 20 random moments (C-95), seed ${String(seed)}`, async (t) => {
  await killSenders(t, await makeSetting(t, pki, imageBytes, seed), 20);
});

test(`kill -9 of the receiver at 20 random moments (C-95), seed ${String(seed)}`, async (t) => {
  await killReceivers(t, await makeSetting(t, pki, imageBytes, seed), 20);
});

test(`kill -9 of either end in the middle of 20 deltas (C-95), seed ${String(seed)}`, async (t) => {
  await killDeltas(t, await makeSetting(t, pki, imageBytes, seed), 20);
});
