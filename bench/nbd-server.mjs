// Our NBD server beside qemu-nbd, on the same file and by the same clients: `npm run bench:nbd`. Prints ratios; the file lies in the page cache.
import { execFileSync, spawn } from "node:child_process";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(fileURLToPath(new URL(".", import.meta.url)), "..");
const MIB = 2 ** 20;
const sizeBytes = 512 * MIB;
const rounds = 5;

/**
 * The server in a process of its own, as it will run.
 * @param {string} path
 * @param {string} socket
 */
async function serve(path, socket) {
  const { createRawWriter } = await import(join(root, "dist/image/raw.js"));
  const { listenNbd } = await import(join(root, "dist/nbd/server.js"));
  const { createNodeStorage } = await import(join(root, "dist/storage/node-storage.js"));
  const { systemClock } = await import(join(root, "dist/base/clock.js"));
  const { systemRandom } = await import(join(root, "dist/base/random.js"));
  const { silentLogger } = await import(join(root, "dist/base/logger.js"));
  const storage = createNodeStorage();
  const file = await storage.open(path, { write: true });
  const image = createRawWriter(file, storage, { sizeBytes });
  const exports = [{ name: "disk", image, writable: true, file: { fd: file.fd, lanes: storage.lanes } }];
  const place = /** @type {const} */ ({ kind: "unix", path: socket });
  await listenNbd({ place, exports, storage, clock: systemClock, random: systemRandom, log: silentLogger });
  console.log("ready");
}

async function main() {
  const folder = mkdtempSync(join(tmpdir(), "nbd-bench-"));
  const image = join(folder, "disk.raw");
  /** @type {(() => void)[]} */
  const stops = [];
  try {
    fill(image);
    const sockets = { ours: join(folder, "ours"), qemu: join(folder, "qemu") };
    const child = spawn(process.execPath, [fileURLToPath(import.meta.url), "serve", image, sockets.ours], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    stops.push(() => child.kill());
    await new Promise((resolve) => child.stdout.once("data", resolve));
    const pidFile = join(folder, "pid");
    execFileSync("qemu-nbd", [
      ...["--fork", "-t", "-e", "16", "-f", "raw", "--cache=writeback", `--pid-file=${pidFile}`],
      ...["-k", sockets.qemu, image],
    ]);
    stops.push(() => process.kill(Number(readFileSync(pidFile, "utf8"))));
    for (const [name, run] of Object.entries(cases)) compare(name, run, sockets);
  } finally {
    for (const stop of stops) stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** @param {string} socket */
const uri = (socket) => `nbd+unix:///?socket=${socket}`;
// A step that is no power of two: each request lies elsewhere, the whole disk is visited.
const scattered = ["-S", String(37 * MIB + 4096)];
/** @type {(socket: string, ...args: string[]) => void} */
const bench = (socket, ...args) =>
  execFileSync("qemu-img", ["bench", "-f", "raw", ...args, uri(socket)], { stdio: "ignore" });

/** @type {Record<string, (socket: string) => void>} */
const cases = {
  "read 4 KiB scattered, depth 16": (socket) => bench(socket, "-c", "60000", "-d", "16", "-s", "4096", ...scattered),
  "write 4 KiB scattered, depth 16": (socket) =>
    bench(socket, "-w", "-c", "60000", "-d", "16", "-s", "4096", ...scattered),
  "read 1 MiB in order, depth 4": (socket) =>
    bench(socket, "-c", "2000", "-d", "4", "-s", String(MIB), "-S", String(MIB)),
  "write 1 MiB in order, depth 4": (socket) =>
    bench(socket, "-w", "-c", "1500", "-d", "4", "-s", String(MIB), "-S", String(MIB)),
  "nbdcopy to nowhere, 4 connections": (socket) =>
    execFileSync("nbdcopy", ["--request-size=1048576", uri(socket), "null:"]),
};

/**
 * Both in turns, so that what else the machine does hits both; the median of the ratios.
 * @param {string} name
 * @param {(socket: string) => void} run
 * @param {{ ours: string, qemu: string }} sockets
 */
function compare(name, run, sockets) {
  /** @type {number[]} */
  const ratios = [];
  /** @type {{ ours: number[], qemu: number[] }} */
  const times = { ours: [], qemu: [] };
  for (let round = 0; round <= rounds; round++) {
    const took = { ours: 0, qemu: 0 };
    for (const who of /** @type {const} */ (["ours", "qemu"])) {
      const start = performance.now();
      run(sockets[who]);
      took[who] = performance.now() - start;
    }
    // The first warms both up.
    if (round === 0) continue;
    ratios.push(took.qemu / took.ours);
    times.ours.push(took.ours);
    times.qemu.push(took.qemu);
  }
  /** @param {"ours" | "qemu"} who */
  const seconds = (who) => (median(times[who]) / 1000).toFixed(2);
  console.log(
    `${name.padEnd(36)} ${median(ratios).toFixed(2)} of qemu-nbd (${seconds("ours")} s, ${seconds("qemu")} s)`,
  );
}

/** @param {number[]} values */
function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** @param {string} path */
function fill(path) {
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  const bytes = Buffer.alloc(MIB);
  for (let at = 0; at < sizeBytes; at += MIB) writeSync(fd, bytes.fill(1 + ((at / MIB) % 255)), 0, MIB, at);
  closeSync(fd);
}

if (process.argv[2] === "serve") await serve(process.argv[3] ?? "", process.argv[4] ?? "");
else await main();
