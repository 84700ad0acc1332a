/** The same kills as in vhdx-replica.slow.ts, many more. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makePki, type Pki, suiteScope, tempDir } from "./kit.ts";
import { killVhdxReplica } from "./vhdx-replica.ts";

/** In the name of the test, so that a failure tells it. */
const seed = Date.now() & 0xffff;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test(`200 kills of a receiver with a VHDX replica, seed ${String(seed)}`, async (t) => {
  const counts = await killVhdxReplica(t, pki, { kills: 200, seed });
  process.stdout.write(`${JSON.stringify(counts)}\n`);
  expect(counts.restored).toBeGreaterThan(50);
});
