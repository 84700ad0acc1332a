/** As the test of C-08 in vhdx.slow.ts, with the large images of real tools. */
import { join } from "node:path";
import { test } from "vitest";
import { noSamples, samples } from "../image/vhdx/samples.ts";
import { makePki, tempDir } from "./kit.ts";
import { cycleSamples } from "./samples.ts";

test("large images of Hyper-V and others: a full cycle, after which each is what it was", async (t) => {
  if (noSamples !== undefined) return t.skip(noSamples);
  const pki = await makePki(t, join(tempDir(t), "pki"));
  await cycleSamples(
    t,
    pki,
    samples.filter(({ large }) => large === true),
  );
});
