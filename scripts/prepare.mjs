// Before `npm test` and `npm run demo`: a fresh clone works with no step before it.
// Installs the dependencies when they are missing or older than the lockfile, then builds (incremental: a second when nothing changed).
import { statSync } from "node:fs";
import { join } from "node:path";
import { root, run } from "./run.mjs";

/** @param {string} name */
function modified(name) {
  return statSync(join(root, name), { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

const installed = modified("node_modules/.package-lock.json");
if (installed === 0 || installed < modified("package-lock.json")) {
  console.log("Installing the dependencies (npm ci) ...");
  run("npm", ["ci"]);
}
run(process.execPath, ["scripts/build.mjs"]);
