// `npm run sim -- [--seed N] [--count M] [--steps S] [--journal | --tracked]`: random lives of a disk, of a bitmap journal, or of a tracked image with all that
// belongs to it, over simulated storage. A failure names its seed.
import { parseArgs } from "node:util";
import { run } from "./run.mjs";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    count: { type: "string" },
    steps: { type: "string", default: "40" },
    journal: { type: "boolean", default: false },
    tracked: { type: "boolean", default: false },
  },
});
process.env["REPLICATE_SIM_SEED"] = values.seed;
// One seed is for looking at one failure.
process.env["REPLICATE_SIM_COUNT"] = values.count ?? "1";
process.env["REPLICATE_SIM_STEPS"] = values.steps;
const of = values.tracked ? "track/tracked-" : values.journal ? "track/journal-" : "replica/";
run("vitest", ["run", `test/${of}simulation.test.ts`]);
