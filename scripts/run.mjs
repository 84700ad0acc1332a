// What the other scripts share: the root of the checkout, and running a tool from node_modules.
import { spawnSync } from "node:child_process";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

/**
 * Runs a command in the root with node_modules/.bin first in the path; ends this process when it fails.
 * @param {string} command
 * @param {string[]} args
 */
export function run(command, args) {
  const bin = join(root, "node_modules", ".bin");
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: "inherit",
    shell: process.platform === "win32",
    env: { ...process.env, PATH: `${bin}${delimiter}${process.env["PATH"] ?? ""}` },
  });
  if (error !== undefined) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}
