import { expect, test } from "vitest";
import { needTools } from "./kit.ts";
import { killWriter } from "./vhdx-kill.ts";

const seed = Number(process.env["REPLICATE_KILL_SEED"] ?? Date.now() % 100_000);

test(`a writer of a VHDX is killed at 200 random moments, seed ${String(seed)}`, async (t) => {
  needTools(t, "qemu-img");
  // In some of them between the header that names the log and the one that does not.
  expect(await killWriter(t, 200, seed)).toBeGreaterThan(2);
});
