// `npm run check`: everything that can be said about the sources without running them. Runs all steps, then says which failed.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { root } from "./run.mjs";

const bin = join(root, "node_modules", ".bin");
/** @type {[string, string, string[]][]} */
const steps = [
  ["lint config up to date", process.execPath, ["scripts/make-lint-config.mjs", "--check"]],
  ["lint (oxlint)", join(bin, "oxlint"), ["--deny-warnings"]],
  ["format (biome)", join(bin, "biome"), ["format"]],
  ["types of src", join(bin, "tsc"), ["-p", ".", "--noEmit"]],
  ["types of test and bench", join(bin, "tsc"), ["-p", "test"]],
  ["types of scripts", join(bin, "tsc"), ["-p", "scripts"]],
];

const failed = [];
for (const [name, command, args] of steps) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error !== undefined) console.error(`${name}: ${error.message}`);
  console.log(`${status === 0 ? "ok    " : "FAILED"} ${name}`);
  if (status !== 0) failed.push(name);
}
if (failed.length > 0) {
  console.error(`check failed: ${failed.join(", ")}`);
  process.exit(1);
}
