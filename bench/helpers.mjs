// What several benches need: the built command, a receiver in a process of its own, CPU time of processes, medians, files of results.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));
export const cli = join(root, "dist/cli/main.js");
const ticksPerSecond = 100;

/** @param {string} text */
export function parseSize(text) {
  const [, number, unit = ""] = /^(\d+)(KiB|MiB|GiB|TiB)?$/.exec(text) ?? [];
  if (number === undefined) throw new Error(`not a size: ${text}`);
  return Number(number) * 1024 ** ["", "KiB", "MiB", "GiB", "TiB"].indexOf(unit);
}

/** @param {number[]} numbers */
export function median(numbers) {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? Number.NaN;
}

/** Runs the command to its end; throws what it says when it fails. @param {string[]} args */
export function replicate(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: "utf8",
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`replicate ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** An authority with certificates for a receiver and a sender of this machine. @param {string} folder */
export function issueCertificates(folder) {
  replicate("pki", "init", folder);
  replicate("pki", "issue", folder, "recv", "--host", "127.0.0.1");
  replicate("pki", "issue", folder, "send");
}

/** @param {{ store: string, tls: string, more?: string[], nodeArgs?: string[] }} options */
export async function startReceiver({ store, tls, more = [], nodeArgs = [] }) {
  const args = ["recv", "--store", store, "--listen", "127.0.0.1:0", "--tls", join(tls, "recv"), "--json", ...more];
  const child = spawn(process.execPath, [...nodeArgs, cli, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  /** @type {number} */
  const port = await new Promise((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`the receiver ended with ${String(code)}`)));
    createInterface({ input: child.stdout }).on("line", (line) => {
      const event = JSON.parse(line);
      if (event.event === "listening") resolve(event.port);
    });
  });
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
  };
  return { pid: child.pid ?? -1, port, stop };
}

/** CPU seconds of a running process so far, all threads; 0 where that cannot be told. @param {number} pid */
export function cpuSecondsOf(pid) {
  const path = `/proc/${pid}/stat`;
  if (!existsSync(path)) return 0;
  // The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field.
  const fields = readFileSync(path, "utf8").split(") ").at(-1)?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

/** Until what was written to the file system of `path` is on the disk. @param {string} path */
export function syncFileSystem(path) {
  const { status, stderr } = spawnSync("sync", ["-f", path], { encoding: "utf8" });
  if (status !== 0) throw new Error(`sync -f ${path}: ${stderr}`);
}

/** Writes `bench/results/<kind>-<date>-<commit>.json`, with what the machine is. @param {string} kind @param {object} figures */
export function keepResults(kind, figures) {
  /** @param {string[]} args */
  const git = (...args) => spawnSync("git", args, { cwd: root, encoding: "utf8" }).stdout?.trim() ?? "";
  const date = new Date().toISOString();
  const changed = git("status", "--porcelain", "--untracked-files=no", "--", "src") === "" ? "" : "-changed";
  const commit = `${git("rev-parse", "--short", "HEAD") || "nocommit"}${changed}`;
  const machine = { cores: cpus().length, model: cpus()[0]?.model ?? "unknown" };
  const folder = join(root, "bench/results");
  mkdirSync(folder, { recursive: true });
  const name = `${kind}-${date.slice(0, 19).replaceAll(":", "")}-${commit}.json`;
  const facts = { kind, date, commit, node: process.version, machine, ...figures };
  writeFileSync(join(folder, name), `${JSON.stringify(facts, undefined, 1)}\n`);
  console.log(`bench/results/${name}`);
}
