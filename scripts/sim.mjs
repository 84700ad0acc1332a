// `npm run sim -- [--seed N] [--count M] [--steps S]`: random lives of a disk over simulated storage. A failure names its seed.
import { parseArgs } from "node:util";
import { run } from "./run.mjs";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    count: { type: "string" },
    steps: { type: "string", default: "40" },
  },
});
process.env["REPLICATE_SIM_SEED"] = values.seed;
// One seed is for looking at one failure.
process.env["REPLICATE_SIM_COUNT"] = values.count ?? "1";
process.env["REPLICATE_SIM_STEPS"] = values.steps;
run("vitest", ["run", "test/replica/simulation.test.ts"]);
