/** Points of a machine that writes at full speed to two disks are that machine at one moment, and at the right one. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "../kit.ts";
import { stampSlowDevices, stampTracker } from "./stamps.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("two disks of a machine, cut while every block is stamped: no acknowledged write is missing, none comes too early", async (t) => {
  const counts = await stampTracker(t, pki, { cycles: 8, seed: 1 });
  expect(counts.cycles).toBeGreaterThanOrEqual(8);
  // Or nothing was at stake.
  expect(counts.underWay).toBeGreaterThan(100);
});

test("the same on slow devices, where a cut has to wait for writes under way", async (t) => {
  const counts = await stampSlowDevices(t, pki, { cycles: 12, seed: 2 });
  expect(counts).toMatchObject({ cycles: 13, failed: 0 });
  expect(counts.underWay).toBeGreaterThan(100);
});
