// `npm run bench`: the built command over loopback TLS, next to plain tools doing the same work in the same run.
// Options: --size 1GiB (bytes of data in the image) --rounds 5 --dir FOLDER (default: the temporary folder) --no-reference --label TEXT
// Prints medians. Every round does everything once, so that a slow minute of the machine hits all variants alike.
import { spawn, spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:net";
import { cpus, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const cli = join(root, "dist/cli/main.js");
const env = { ...process.env, PATH: [process.env["PATH"] ?? "", "/usr/sbin", "/sbin"].join(delimiter) };
const ticksPerSecond = 100;
const mib = 1 << 20;
const pieceBytes = 4096;

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "1GiB" },
    rounds: { type: "string", default: "5" },
    dir: { type: "string", default: tmpdir() },
    reference: { type: "boolean", default: true },
    label: { type: "string", default: "" },
  },
  allowNegative: true,
});
const rounds = Number(values.rounds);
const dataBytes = parseSize(values.size);
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const image = join(folder, "image.raw");
const tls = join(folder, "pki");

/** @typedef {{ variant: string, workload: string, wall: number, durable: number, cpuSend: number | null, cpuRecv: number | null, rssSend: number | null, rssRecv: number | null, wire: number | null }} Sample */

/** @param {string} text */
function parseSize(text) {
  const match = /^(\d+)(KiB|MiB|GiB)?$/.exec(text);
  if (match === null) throw new Error(`not a size: ${text}`);
  return Number(match[1]) * { "": 1, KiB: 1024, MiB: mib, GiB: 1024 * mib }[/** @type {"KiB"} */ (match[2] ?? "")];
}

/** @param {string} name */
const hasTool = (name) => env.PATH.split(delimiter).some((path) => existsSync(join(path, name)));

const seconds = () => performance.now() / 1000;

// The image ---------------------------------------------------------------------------------------------------------

/**
 * xorshift32.
 * @param {number} seed
 */
function random(seed) {
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return state;
  };
}

/**
 * One MiB: a quarter of all is random, the rest phrases with a random word in between (lz4 makes it about half).
 * @param {Uint32Array} words
 * @param {() => number} next
 * @param {Uint32Array} phrases
 */
function fill(words, next, phrases) {
  if (next() % 4 === 0) {
    for (let at = 0; at < words.length; at++) words[at] = next();
    return;
  }
  for (let at = 0; at < words.length; at += 8) {
    const phrase = (next() & 1023) * 7;
    words[at] = next();
    for (let word = 0; word < 7; word++) words[at + 1 + word] = phrases[phrase + word] ?? 0;
  }
}

/** Runs of 8 MiB of data, each followed by 2 MiB of hole. Returns the offsets of the data, per MiB. */
function makeImage() {
  const next = random(1);
  const phrases = Uint32Array.from({ length: 1024 * 7 }, next);
  const words = new Uint32Array(mib / 4);
  const offsets = [];
  const fd = openSync(image, "w");
  const count = Math.ceil(dataBytes / mib);
  for (let index = 0; index < count; index++) {
    const offset = (index + Math.floor(index / 8) * 2) * mib;
    fill(words, next, phrases);
    writeSync(fd, words, 0, mib, offset);
    offsets.push(offset);
  }
  ftruncateSync(fd, (offsets.at(-1) ?? 0) + 3 * mib);
  fsyncSync(fd);
  closeSync(fd);
  return offsets;
}

/**
 * Changes a share of the data in scattered pieces of 4 KiB.
 * @param {number[]} offsets
 * @param {number} share
 * @param {number} seed
 */
function changeImage(offsets, share, seed) {
  const next = random(seed);
  const perMib = mib / pieceBytes;
  const pieces = offsets.length * perMib;
  const wanted = Math.round(pieces * share);
  const chosen = new Set();
  while (chosen.size < wanted) chosen.add(next() % pieces);
  const fd = openSync(image, "r+");
  const bytes = Buffer.alloc(pieceBytes);
  for (const piece of chosen) {
    const offset = (offsets[Math.floor(piece / perMib)] ?? 0) + (piece % perMib) * pieceBytes;
    readSync(fd, bytes, 0, pieceBytes, offset);
    for (let at = 0; at < pieceBytes; at += 32) bytes.writeUInt32LE(next(), at);
    writeSync(fd, bytes, 0, pieceBytes, offset);
  }
  fsyncSync(fd);
  closeSync(fd);
}

// Measuring ---------------------------------------------------------------------------------------------------------

/**
 * CPU seconds of a running process, all threads.
 * @param {number} pid
 */
function cpuOf(pid) {
  const path = `/proc/${pid}/stat`;
  if (!existsSync(path)) return null;
  // The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field.
  const fields = readFileSync(path, "utf8").split(") ").at(-1)?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

/** @param {number} pid */
function peakOf(pid) {
  const path = `/proc/${pid}/status`;
  const kib = existsSync(path) ? /^VmHWM:\s+(\d+)/m.exec(readFileSync(path, "utf8"))?.[1] : undefined;
  return kib === undefined ? null : Number(kib) * 1024;
}

/** @param {number} pid */
function resetPeak(pid) {
  const path = `/proc/${pid}/clear_refs`;
  if (existsSync(path)) writeFileSync(path, "5");
}

/** Seconds until what was written under `path` is on the disk. */
function syncSeconds(/** @type {string} */ path) {
  const start = seconds();
  const { status, stderr } = spawnSync("sync", ["-f", path], { encoding: "utf8" });
  if (status !== 0) throw new Error(`sync -f ${path}: ${stderr}`);
  return seconds() - start;
}

/**
 * Runs a command to its end under time(1) where it is installed; throws when it fails.
 * @param {string[]} words
 */
async function timed(words) {
  const report = join(folder, "time.txt");
  const time = existsSync("/usr/bin/time") ? ["/usr/bin/time", "-f", "%U %S %M", "-o", report] : [];
  const [command = "", ...args] = [...time, ...words];
  const start = seconds();
  const child = spawn(command, args, { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (/** @type {string} */ text) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (/** @type {string} */ text) => {
    stderr += text;
  });
  const code = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  const wall = seconds() - start;
  if (code !== 0) throw new Error(`${words.join(" ")} gave ${String(code)}\n${stdout}\n${stderr}`);
  if (time.length === 0) return { wall, stdout, cpu: null, rss: null };
  const [user = 0, system = 0, kib = 0] =
    readFileSync(report, "utf8").trim().split("\n").at(-1)?.split(" ").map(Number) ?? [];
  return { wall, stdout, cpu: user + system, rss: kib * 1024 };
}

// replicate ---------------------------------------------------------------------------------------------------------

/** @param {string[]} args */
function replicate(args) {
  const { status, stderr } = spawnSync(process.execPath, [cli, ...args], { encoding: "utf8" });
  if (status !== 0) throw new Error(`replicate ${args.join(" ")}: ${stderr}`);
}

/** @param {string} store */
async function startReceiver(store) {
  mkdirSync(store, { recursive: true });
  const args = [
    cli,
    "recv",
    "--store",
    store,
    "--listen",
    "127.0.0.1:0",
    "--tls",
    join(tls, "recv"),
    "--keep",
    "last=2",
    "--json",
    "--log-level",
    "warn",
  ];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
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

/**
 * @param {Awaited<ReturnType<typeof startReceiver>>} receiver
 * @param {string} store
 * @param {string} workload
 * @returns {Promise<Sample>}
 */
async function measureSend(receiver, store, workload) {
  resetPeak(receiver.pid);
  const cpuBefore = cpuOf(receiver.pid);
  const target = `127.0.0.1:${receiver.port}/disk`;
  const { wall, stdout, cpu, rss } = await timed([
    process.execPath,
    cli,
    "send",
    image,
    target,
    "--tls",
    join(tls, "send"),
    "--json",
  ]);
  const cpuAfter = cpuOf(receiver.pid);
  const durable = wall + syncSeconds(store);
  const done = stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line))
    .find((line) => line.event === "done");
  return {
    variant: "replicate",
    workload,
    wall,
    durable,
    cpuSend: cpu,
    cpuRecv: cpuBefore === null || cpuAfter === null ? null : cpuAfter - cpuBefore,
    rssSend: rss,
    rssRecv: peakOf(receiver.pid),
    wire: done.bytesWire,
  };
}

// References --------------------------------------------------------------------------------------------------------

/** @returns {Promise<number>} */
function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

/**
 * The whole image through lz4 and TLS into a file. Sends everything each time; finds no changes.
 * @param {string} workload
 * @returns {Promise<Sample>}
 */
async function lz4Pipe(workload) {
  const port = await freePort();
  const copy = join(folder, "pipe.raw");
  const [cert, key] = [join(tls, "recv/cert.pem"), join(tls, "recv/key.pem")];
  // The server's standard input stays open (tail) so that it waits for the client; it ends with its one connection.
  const script = `
    set -euo pipefail
    { tail -f /dev/null & echo $! > tail.pid; wait; } | openssl s_server -quiet -accept 127.0.0.1:${port} -cert ${cert} -key ${key} -naccept 1 | lz4 -d -q -f --sparse - ${copy} & server=$!
    for try in $(seq 200); do ss -ltn | grep -q '127.0.0.1:${port} ' && break; sleep 0.02; done
    lz4 -1 -q -c image.raw | tee >(wc -c > wire.txt) | openssl s_client -quiet -no_ign_eof -nocommands -connect 127.0.0.1:${port} 2> /dev/null
    while ! [ -s tail.pid ]; do sleep 0.01; done; kill $(cat tail.pid); rm tail.pid
    wait $server || true`;
  const { wall, cpu } = await timed(["bash", "-c", script]);
  const durable = wall + syncSeconds(copy);
  const wire = Number(readFileSync(join(folder, "wire.txt"), "utf8"));
  return {
    variant: "lz4 | TLS",
    workload,
    wall,
    durable,
    cpuSend: cpu,
    cpuRecv: null,
    rssSend: null,
    rssRecv: null,
    wire,
  };
}

/**
 * rsync between two local files, comparing everything: no network, no encryption.
 * @param {string} workload
 * @returns {Promise<Sample>}
 */
async function rsync(workload) {
  const copy = join(folder, "rsync.raw");
  const { wall, cpu, rss, stdout } = await timed([
    "rsync",
    "--inplace",
    "--no-whole-file",
    "-I",
    "--stats",
    image,
    copy,
  ]);
  const durable = wall + syncSeconds(copy);
  const count = (/** @type {string} */ name) =>
    Number((new RegExp(`Total bytes ${name}: ([\\d,]+)`).exec(stdout)?.[1] ?? "0").replaceAll(",", ""));
  return {
    variant: "rsync (local)",
    workload,
    wall,
    durable,
    cpuSend: cpu,
    cpuRecv: null,
    rssSend: rss,
    rssRecv: null,
    wire: count("sent") + count("received"),
  };
}

// Rounds ------------------------------------------------------------------------------------------------------------

/** @type {((workload: string) => Promise<Sample>)[]} */
const references = [];
if (values.reference) {
  if (["lz4", "openssl", "bash", "ss"].every(hasTool)) references.push(lz4Pipe);
  else console.log("lz4 or openssl is not installed: no reference by a pipe");
  if (hasTool("rsync")) references.push(rsync);
  else console.log("rsync is not installed: no reference by rsync");
}

/** @type {[string, number][]} */
const workloads = [
  ["initial", 0],
  ["no change", 0],
  ["1 % changed", 0.01],
  ["20 % changed", 0.2],
];

/**
 * @param {number[]} offsets
 * @param {number} round
 * @returns {Promise<Sample[]>}
 */
async function runRound(offsets, round) {
  const store = join(folder, "store");
  for (const path of [store, join(folder, "rsync.raw"), join(folder, "pipe.raw")])
    rmSync(path, { recursive: true, force: true });
  const receiver = await startReceiver(store);
  const samples = [];
  try {
    for (const [index, [workload, share]] of workloads.entries()) {
      if (share > 0) changeImage(offsets, share, round * 10 + index);
      syncSeconds(folder);
      samples.push(await measureSend(receiver, store, workload));
      for (const reference of references) samples.push(await reference(workload));
    }
  } finally {
    await receiver.stop();
  }
  const { status } = spawnSync("cmp", [image, join(store, "disks/disk/replica.raw")], { stdio: "inherit" });
  if (status !== 0) throw new Error("the replica is not equal to the image");
  if (references.includes(lz4Pipe)) {
    const piped = spawnSync("cmp", [image, join(folder, "pipe.raw")], { encoding: "utf8" });
    if (piped.status !== 0) throw new Error(`the reference pipe lost bytes: ${piped.stdout}${piped.stderr}`);
  }
  return samples;
}

/** @param {(number | null)[]} numbers */
function median(numbers) {
  const sorted = numbers.filter((number) => number !== null).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] ?? null) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

/** @param {Sample[]} samples */
function summarize(samples) {
  const rows = [];
  for (const [workload] of workloads) {
    for (const variant of new Set(samples.map((sample) => sample.variant))) {
      const own = samples.filter((sample) => sample.workload === workload && sample.variant === variant);
      const of = (/** @type {(sample: Sample) => number | null} */ take) => median(own.map(take));
      const durables = own.map((sample) => sample.durable);
      rows.push({
        workload,
        variant,
        wall: of((sample) => sample.wall),
        durable: of((sample) => sample.durable),
        durableMin: Math.min(...durables),
        durableMax: Math.max(...durables),
        cpuSend: of((sample) => sample.cpuSend),
        cpuRecv: of((sample) => sample.cpuRecv),
        rssSend: of((sample) => sample.rssSend),
        rssRecv: of((sample) => sample.rssRecv),
        wire: of((sample) => sample.wire),
      });
    }
  }
  return rows;
}

/** @param {ReturnType<typeof summarize>} rows */
function print(rows) {
  const gib = dataBytes / (1024 * mib);
  const cell = (/** @type {string} */ text, /** @type {number} */ width) => text.padStart(width);
  const fixed = (/** @type {number | null} */ number, digits = 2) => (number === null ? "-" : number.toFixed(digits));
  console.log(
    `${"workload".padEnd(14)}${"variant".padEnd(15)}   wall s   durable s       (range)  CPU-s/GiB send  recv  RSS MiB send  recv   wire MiB  durable vs ours`,
  );
  for (const row of rows) {
    const ours = rows.find((other) => other.variant === "replicate" && other.workload === row.workload);
    const ratio = row.durable !== null && ours?.durable ? row.durable / ours.durable : null;
    const perGib = (/** @type {number | null} */ cpu) => fixed(cpu === null ? null : cpu / gib);
    const inMib = (/** @type {number | null} */ bytes, digits = 0) =>
      fixed(bytes === null ? null : bytes / mib, digits);
    console.log(
      [
        row.workload.padEnd(14),
        row.variant.padEnd(15),
        cell(fixed(row.wall), 9),
        cell(fixed(row.durable), 12),
        cell(`${fixed(row.durableMin)}-${fixed(row.durableMax)}`, 14),
        cell(perGib(row.cpuSend), 16),
        cell(perGib(row.cpuRecv), 6),
        cell(inMib(row.rssSend), 14),
        cell(inMib(row.rssRecv), 6),
        cell(inMib(row.wire, 1), 11),
        cell(row.variant === "replicate" ? "" : `${fixed(ratio)}x`, 17),
      ].join(""),
    );
  }
}

/** @param {string[]} args */
const git = (args) => spawnSync("git", args, { cwd: root, encoding: "utf8" }).stdout?.trim() || "unknown";

async function main() {
  if (!existsSync(cli)) throw new Error("dist/cli/main.js is missing: npm run build");
  replicate(["pki", "init", tls]);
  replicate(["pki", "issue", tls, "recv", "--host", "127.0.0.1"]);
  replicate(["pki", "issue", tls, "send"]);
  const offsets = makeImage();
  const facts = {
    date: new Date().toISOString(),
    node: process.version,
    commit: git(["rev-parse", "--short", "HEAD"]),
    dirty: git(["status", "--porcelain", "--", "src"]) !== "unknown",
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    dataBytes,
    rounds,
    label: values.label,
  };
  console.log(
    `${facts.cpu}, ${facts.cores} cores, Node ${facts.node}, commit ${facts.commit}${facts.dirty ? " (changed)" : ""}`,
  );
  console.log(
    `image: ${dataBytes / mib} MiB of data in cache; median of ${rounds} rounds; durable = wall + sync of the target; CPU of a pipe: both ends`,
  );
  const samples = [];
  for (let round = 1; round <= rounds; round++) {
    samples.push(...(await runRound(offsets, round)));
    console.log(`round ${round} of ${rounds}`);
  }
  const summary = summarize(samples);
  print(summary);
  const results = join(root, "bench/results");
  mkdirSync(results, { recursive: true });
  const name = `end-to-end-${facts.date.slice(0, 19).replaceAll(":", "")}-${facts.commit}.json`;
  writeFileSync(join(results, name), `${JSON.stringify({ ...facts, summary, samples }, null, 1)}\n`);
  console.log(`bench/results/${name}`);
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
