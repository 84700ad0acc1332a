/**
 * Three deltas, one point removed and its log joined, a delta taken back, a point restored, every point read all along ("points"): at every operation, until
 * it runs through, there is a crash, and at every operation a failure: each in all its ways in their turn. Of the other lives a part, spread evenly over
 * operations and ways; crash.long.ts tries everything.
 */
import { crashTests, numberOf } from "./crash-kit.ts";

/** It should have no divisor in common with the number of ways (10). */
const every = 97;

crashTests({
  chosen: (life, at, way) => (life === "points" ? at % way.of === way.index : numberOf(at, way) % every === 0),
  whole: (life) => life === "points",
});
