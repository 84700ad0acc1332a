// `npm run demo`: the product once through on a real file system, each command as a user would type it.
// Exits non-zero when anything is not as expected. Everything happens in a temporary folder that is removed at the end.
import { spawn, spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { root } from "./run.mjs";

const imageMiB = 256;
const folder = mkdtempSync(join(tmpdir(), "replicate-demo-"));
const bin = join(folder, "bin");
mkdirSync(bin);
symlinkSync(join(root, "dist/cli/main.js"), join(bin, "replicate"));
const env = {
  ...process.env,
  PATH: [bin, process.env["PATH"] ?? "", "/usr/sbin", "/sbin"].join(delimiter),
};

/** @type {import("node:child_process").ChildProcess | undefined} */
let receiver;

/** @param {string} text */
const say = (text) => console.log(`\n# ${text}`);

/**
 * @param {boolean} condition
 * @param {string} what
 */
function expect(condition, what) {
  if (!condition) throw new Error(`not as expected: ${what}`);
}

/** @param {string[]} words */
function shown(words) {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word}'`)).join(" ");
}

/**
 * Shows a command and runs it in the demo's folder; throws unless it gives `code`.
 * @param {string[]} words
 * @param {{ code?: number, input?: string, quiet?: boolean }} [options]
 * @returns {Promise<string>} its standard output
 */
async function run(words, { code = 0, input = "", quiet = false } = {}) {
  console.log(`$ ${shown(words)}${input === "" ? "" : " <<< ..."}`);
  const [command = "", ...args] = words;
  const child = spawn(command, args, { cwd: folder, env, stdio: ["pipe", "pipe", "pipe"] });
  let stdout = "";
  let all = "";
  child.stdout.setEncoding("utf8").on("data", (/** @type {string} */ text) => {
    stdout += text;
    all += text;
  });
  child.stderr.setEncoding("utf8").on("data", (/** @type {string} */ text) => {
    all += text;
  });
  // A command that does not read its input may end before it is written; its exit code tells.
  child.stdin.on("error", () => {}).end(input);
  const status = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  if (all !== "" && (!quiet || status !== code)) console.log(all.trimEnd());
  expect(status === code, `${command} gave exit code ${String(status)}, not ${String(code)}`);
  return stdout;
}

/** @param {string} name */
const hasTool = (name) => env.PATH.split(delimiter).some((path) => existsSync(join(path, name)));

/** A tree of real files of a sensible size. */
function tree() {
  const candidates = ["/usr/share/doc", "/usr/share/perl", "/usr/include"].filter((path) => existsSync(path));
  const fits = candidates.find((path) => {
    const used = spawnSync("du", ["-sm", path], { encoding: "utf8" }).stdout;
    return Number.parseInt(used, 10) >= 20 && Number.parseInt(used, 10) <= imageMiB * 0.6;
  });
  return fits ?? join(root, "node_modules/typescript/lib");
}

/**
 * Without mke2fs: the files of a tree, one after the other, in a raw file.
 * @param {string} image
 * @param {string} source
 */
function packFiles(image, source) {
  const fd = openSync(image, "w");
  // What the first file holds must not look like the format of the image.
  let offset = 1 << 20;
  for (const name of readdirSync(source, { recursive: true, encoding: "utf8" }).sort()) {
    const path = join(source, name);
    if (!lstatSync(path).isFile() || offset > imageMiB << 19) continue;
    const bytes = Buffer.alloc(statSync(path).size);
    const from = openSync(path, "r");
    readSync(from, bytes);
    closeSync(from);
    writeSync(fd, bytes, 0, bytes.length, offset);
    offset += Math.ceil(bytes.length / 4096) * 4096;
  }
  closeSync(fd);
  truncateSync(image, imageMiB << 20);
}

/**
 * Overwrites `count` pieces of 4 KiB that hold data, spread over the file, as a database would.
 * @param {string} path
 * @param {number} count
 */
function scatter(path, count) {
  const fd = openSync(path, "r+");
  const pieces = Math.floor(fstatSync(fd).size / 4096);
  const bytes = Buffer.alloc(4096);
  let written = 0;
  // 7919 is prime: the steps visit every piece once.
  for (let step = 1; step <= pieces && written < count; step++) {
    const offset = ((step * 7919) % pieces) * 4096;
    readSync(fd, bytes, 0, bytes.length, offset);
    if (bytes.every((byte) => byte === 0)) continue;
    bytes.writeUInt32LE((bytes.readUInt32LE(2048) ^ step) >>> 0, 2048);
    bytes.writeUInt32LE(step, 2052);
    writeSync(fd, bytes, 0, bytes.length, offset);
    written++;
  }
  closeSync(fd);
  return written;
}

/** Starts the receiver and resolves with its port. */
function startReceiver() {
  const words = [
    "replicate",
    "recv",
    "--store",
    "store",
    "--listen",
    "127.0.0.1:0",
    "--tls",
    "pki/recv",
    "--json",
    "--log-level",
    "warn",
  ];
  console.log(`$ ${shown(words)} &`);
  const child = spawn(words[0] ?? "", words.slice(1), { cwd: folder, env, stdio: ["ignore", "pipe", "inherit"] });
  receiver = child;
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the receiver ended with ${String(code)}`)));
    createInterface({ input: child.stdout }).on("line", (line) => {
      console.log(line);
      const event = JSON.parse(line);
      if (event.event === "listening") resolve(event.port);
    });
  });
}

/** SIGTERM, and a clean exit. */
async function stopReceiver() {
  const child = receiver;
  if (child === undefined || child.exitCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  expect((await ended) === 0, "the receiver stops with exit code 0");
}

/**
 * Sends, and takes from the printed funnel what the demo checks.
 * @param {string} image
 * @param {number} port
 */
async function send(image, port) {
  const text = await run(["replicate", "send", image, `127.0.0.1:${String(port)}/vm1`, "--tls", "pki/send"]);
  const [, point, reason] = /point (\d+) \((\w+)\)/.exec(text) ?? [];
  expect(point !== undefined, "send names its point");
  return { point: Number(point), reason, changed: sizeIn(text, "in changed parts"), wire: sizeIn(text, "on the wire") };
}

/**
 * The size in bytes on the line of the funnel that starts with `stage`.
 * @param {string} text
 * @param {string} stage
 */
function sizeIn(text, stage) {
  const [, number = "", unit = ""] = new RegExp(`^\\s*${stage}.*?([\\d.]+) (B|KiB|MiB|GiB)`, "m").exec(text) ?? [];
  expect(number !== "", `the funnel has the line "${stage}"`);
  return Number(number) * 1024 ** ["B", "KiB", "MiB", "GiB"].indexOf(unit);
}

/** @param {string} image */
async function verify(image) {
  await run(["replicate", "compare", "store/disks/vm1/replica.raw", image]);
  if (image.endsWith(".ext4") && hasTool("e2fsck")) await run(["e2fsck", "-fn", "store/disks/vm1/replica.raw"]);
}

async function makeImage() {
  const source = tree();
  if (hasTool("mke2fs")) {
    say(`A real file system: ext4, ${String(imageMiB)} MiB, with the files of ${source}`);
    await run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", source, "disk.ext4", `${String(imageMiB)}M`]);
    return "disk.ext4";
  }
  say(`A raw image of ${String(imageMiB)} MiB with the files of ${source} (mke2fs is not installed)`);
  packFiles(join(folder, "disk.raw"), source);
  return "disk.raw";
}

/** @param {string} image */
async function changeImage(image) {
  say("Work goes on: files come and go, blocks are rewritten here and there");
  if (image.endsWith(".ext4") && hasTool("debugfs")) {
    writeFileSync(join(folder, "new-file"), "a line of a new file\n".repeat(50_000));
    await run(["debugfs", "-w", "-f", "-", image], {
      input: "mkdir added\nwrite new-file added/new-file\n",
      quiet: true,
    });
    if (hasTool("e2fsck")) await run(["e2fsck", "-fn", image], { quiet: true });
    return await scatterFileData(image);
  }
  return scatter(join(folder, image), 200);
}

/**
 * Rewrites pieces inside a file of the image, so that the file system stays sound.
 * @param {string} image
 */
async function scatterFileData(image) {
  const blocks = (await run(["debugfs", "-R", "blocks added/new-file", image], { quiet: true }))
    .trim()
    .split(/\s+/)
    .map(Number);
  const fd = openSync(join(folder, image), "r+");
  const chosen = blocks.filter((block, index) => Number.isInteger(block) && index % 10 === 0);
  const blockBytes = Number(
    /Block size:\s+(\d+)/.exec(await run(["dumpe2fs", "-h", image], { quiet: true }))?.[1] ?? 4096,
  );
  for (const block of chosen) writeSync(fd, `rewritten ${String(block)}`, block * blockBytes + 100);
  closeSync(fd);
  return chosen.length;
}

async function demo() {
  console.log(`Everything happens in ${folder}`);
  say("Certificates: an authority, one for each side");
  await run(["replicate", "pki", "init", "pki"]);
  await run(["replicate", "pki", "issue", "pki", "recv", "--host", "127.0.0.1"]);
  await run(["replicate", "pki", "issue", "pki", "send"]);

  const image = await makeImage();

  say("The receiving side");
  const port = await startReceiver();

  say("Initial copy");
  const initial = await send(image, port);
  expect(initial.reason === "initial", "the first transfer is an initial copy");
  await verify(image);

  // Kept aside only to prove later that the first point still is what the disk was.
  await run(["cp", "--sparse=always", image, "first-state"]);
  await changeImage(image);

  say("The delta: only what changed");
  const delta = await send(image, port);
  expect(delta.point === initial.point + 1, "the delta makes the next point");
  expect(delta.changed > 0, "the delta finds the changes");
  expect(delta.wire < initial.wire / 10, "the delta is much smaller than the initial copy");

  say("What is protected");
  await run(["replicate", "disks", "--store", "store"]);

  say("Replica and image, block by block");
  await verify(image);

  say("Recovery points, each readable at any time, and the first one restored");
  await run(["replicate", "points", "--store", "store", "vm1"]);
  await run(["replicate", "restore", "--store", "store", `vm1@${String(initial.point)}`, "restored"]);
  await run(["cmp", "restored", "first-state"]);
  console.log("equal, byte for byte");
  if (image.endsWith(".ext4") && hasTool("e2fsck")) await run(["e2fsck", "-fn", "restored"]);
  await run(["replicate", "verify", "--store", "store", "--all"]);

  say("Stop");
  await stopReceiver();
  await run(["replicate", "compare", "store/disks/vm1/replica.raw", image]);
}

try {
  await demo();
  console.log("\nThe demo went as expected.");
} catch (thrown) {
  console.error(`\nThe demo failed: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
  process.exitCode = 1;
} finally {
  receiver?.removeAllListeners("exit");
  receiver?.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
}
