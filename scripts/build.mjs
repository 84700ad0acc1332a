// Compiles src to dist, marks the command executable, and removes output whose source is gone.
import { chmodSync, existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { root, run } from "./run.mjs";

run("tsc", ["-p", "."]);

const dist = join(root, "dist");
for (const name of readdirSync(dist, { recursive: true, encoding: "utf8" })) {
  const stem = /^(.*?)\.(?:js|js\.map|d\.ts|d\.ts\.map)$/.exec(name)?.[1];
  if (stem !== undefined && !existsSync(join(root, "src", `${stem}.ts`))) rmSync(join(dist, name));
}
const command = join(dist, "cli/main.js");
if (existsSync(command)) chmodSync(command, 0o755);
