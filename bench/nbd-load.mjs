// What benches of the NBD server share: servers in processes of their own, loads by clients that others use, and comparing servers in turns.
import { execFileSync, spawn } from "node:child_process";
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { median } from "./helpers.mjs";

export const MIB = 2 ** 20;

/**
 * Ours. `cut`: see nbd-serve.mjs.
 * @param {string} image
 * @param {string} socket
 * @param {{ tracked?: boolean }} [how]
 */
export async function startOurs(image, socket, { tracked = false } = {}) {
  const entry = fileURLToPath(new URL("nbd-serve.mjs", import.meta.url));
  const child = spawn(process.execPath, [entry, image, socket, ...(tracked ? ["tracked"] : [])], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  const cut = async () => {
    child.stdin.write("cut\n");
    await lines.next();
  };
  return { socket, pid: child.pid ?? -1, cut, stop: () => void child.kill() };
}

/** @param {string} image @param {string} folder */
export function startQemuNbd(image, folder) {
  const [socket, pidFile] = [join(folder, "qemu"), join(folder, "qemu.pid")];
  execFileSync("qemu-nbd", [
    ...["--fork", "-t", "-e", "16", "-f", "raw", "--cache=writeback", `--pid-file=${pidFile}`],
    ...["-k", socket, image],
  ]);
  const pid = Number(readFileSync(pidFile, "utf8"));
  return { socket, pid, stop: () => void process.kill(pid) };
}

/** @param {string} socket */
export const uri = (socket) => `nbd+unix:///?socket=${socket}`;

/**
 * Requests of one size, each `step` behind the one before, round and round the disk.
 * @param {string} socket
 * @param {{ write?: boolean, count: number, depth: number, bytes: number, step: number }} load
 */
export function stepThrough(socket, { write = false, count, depth, bytes, step }) {
  const shape = ["-c", String(count), "-d", String(depth), "-s", String(bytes), "-S", String(step)];
  execFileSync("qemu-img", ["bench", "-f", "raw", ...(write ? ["-w"] : []), ...shape, uri(socket)], {
    stdio: "ignore",
  });
}

/**
 * Writes of 4 KiB at random places, 16 at a time, the same places for the same seed.
 * @param {string} socket
 * @param {{ count: number, seed: number }} load
 */
export function writeAtRandom(socket, { count, seed }) {
  execFileSync(
    "fio",
    [
      ...["--name=random", "--ioengine=nbd", `--uri=${uri(socket)}`, "--rw=randwrite", "--bs=4k", "--iodepth=16"],
      ...[`--number_ios=${count}`, `--randseed=${seed}`, "--norandommap"],
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
}

/**
 * Servers in turns, so that what else the machine does hits all; the first round warms them up. Returns the seconds of each, a round an entry.
 * @template {string} Name
 * @param {readonly Name[]} names
 * @param {number} rounds
 * @param {(name: Name, round: number) => void | Promise<void>} run
 * @param {(name: Name, round: number) => Promise<void>} [prepare] not measured
 */
export async function inTurns(names, rounds, run, prepare) {
  const seconds = /** @type {Record<Name, number[]>} */ ({});
  for (const name of names) seconds[name] = [];
  for (let round = 0; round <= rounds; round++) {
    for (const name of names) {
      await prepare?.(name, round);
      const start = performance.now();
      await run(name, round);
      if (round > 0) seconds[name].push((performance.now() - start) / 1000);
    }
  }
  return seconds;
}

/** The median of `mine` beside `theirs`, round by round: above 1 is faster. @param {number[]} mine @param {number[]} theirs */
export function rateOf(mine, theirs) {
  return median(mine.map((own, round) => (theirs[round] ?? Number.NaN) / own));
}

/** No zeros and no holes. @param {string} path @param {number} sizeBytes */
export function fillFile(path, sizeBytes) {
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  const bytes = Buffer.alloc(MIB);
  for (let at = 0; at < sizeBytes; at += MIB) writeSync(fd, bytes.fill(1 + ((at / MIB) % 255)), 0, MIB, at);
  closeSync(fd);
}
