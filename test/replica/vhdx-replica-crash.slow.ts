/** The lives of a disk whose replica is a VHDX: a part of their crashes and failures; crash.long.ts tries everything. */
import { MIB } from "../../src/base/units.ts";
import { crashTests, numberOf } from "./crash-kit.ts";

/** It should have no divisor in common with the number of ways (10). */
const every = 61;

crashTests({
  chosen: (_life, at, way) => numberOf(at, way) % every === 0,
  whole: () => false,
  options: { replica: { format: "vhdx", payloadBlockBytes: MIB } },
});
