/**
 * Three deltas, one point removed and its log joined, a delta taken back, a point restored, every point read all along ("points"): at every operation, until
 * it runs through, there is a crash, and at every operation a failure: each in all its ways in their turn. Of the other lives a part, spread evenly over
 * operations and ways; crash.long.ts tries everything.
 */
import { describe, expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { crashTests, numberOf } from "./crash-kit.ts";
import { recoveries } from "./crash-recoveries.ts";
import { crashAt, ends, failAt, operationsOf } from "./crash-scenario.ts";

/** It should have no divisor in common with the number of ways (11). */
const every = 97;

crashTests({
  chosen: (life, at, way) => (life === "points" ? at % way.of === way.index : numberOf(at, way) % every === 0),
  whole: (life) => life === "points",
});

/** Page digests that are missing are those of zeros: their length must not be there before them. */
describe("a table built anew, when power is lost or the disk fails while its page digests are written", () => {
  test.each(["raw", "vhdx"] as const)("%s", async (format) => {
    const options = { twice: true, replica: { format, payloadBlockBytes: MIB } } as const;
    const half = ends["power lost, half survives"];
    if (half === undefined) throw new Error("such an end is known");
    const steps = await operationsOf(recoveries, options);
    const settling = steps.filter(({ doing, path }) => doing === "rebuild" && path.endsWith("/pages"));
    expect(settling.length).toBeGreaterThan(10);
    for (const { index } of settling) {
      for (let nth = 0; nth < 8; nth++) {
        expect(await crashAt(recoveries, half(index, index + 1_009 * nth), options)).toBe("crashed");
      }
      await failAt(recoveries, index, "EIO", options);
    }
  });
});
