// `npm run sim -- [--seed N] [--count M] [--steps S] [--journal]`: random lives of a disk, or of a bitmap journal, over simulated storage. A failure
// names its seed.
import { parseArgs } from "node:util";
import { run } from "./run.mjs";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    count: { type: "string" },
    steps: { type: "string", default: "40" },
    journal: { type: "boolean", default: false },
  },
});
process.env["REPLICATE_SIM_SEED"] = values.seed;
// One seed is for looking at one failure.
process.env["REPLICATE_SIM_COUNT"] = values.count ?? "1";
process.env["REPLICATE_SIM_STEPS"] = values.steps;
run("vitest", ["run", values.journal ? "test/track/journal-simulation.test.ts" : "test/replica/simulation.test.ts"]);
