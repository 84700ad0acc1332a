// `npm run bench:vhdx`: what it costs that a source is a dynamic VHDX. The same disk is copied and scanned from a raw image and from a VHDX, in turn; and an
// empty VHDX of 64 TiB is walked. Options: --size 2GiB --rounds 3 --dir FOLDER. Prints medians and their ratio.
import { spawn, spawnSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const cli = join(root, "dist/cli/main.js");
const { createVhdx } = await import(join(root, "dist/image/vhdx/create.js"));
const { openVhdxWriter } = await import(join(root, "dist/image/vhdx/writer.js"));
const { openImage } = await import(join(root, "dist/image/open-image.js"));
const { createNodeStorage } = await import(join(root, "dist/storage/node-storage.js"));
const { systemRandom: random } = await import(join(root, "dist/base/random.js"));

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "2GiB" },
    rounds: { type: "string", default: "3" },
    dir: { type: "string", default: tmpdir() },
  },
});
const sizeBytes = Number(/^(\d+)GiB$/.exec(values.size)?.[1] ?? "2") * 2 ** 30;
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const tls = join(folder, "pki");
const storage = createNodeStorage();
const images = { raw: join(folder, "disk.raw"), vhdx: join(folder, "disk.vhdx") };

/** @param {string[]} args */
function replicate(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { encoding: "utf8" });
  if (status !== 0) throw new Error(`replicate ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** @param {string} path @param {object} shape */
async function createWriter(path, shape) {
  const file = await storage.open(path, { write: true, create: true });
  await createVhdx(file, shape, random);
  return openVhdxWriter(file, { storage, random });
}

/** The same content in both, half of which shrinks. */
async function makeImages() {
  const raw = await storage.open(images.raw, { write: true, create: true });
  const vhdx = await createWriter(images.vhdx, { sizeBytes });
  const piece = Buffer.alloc(2 ** 20);
  for (let at = 0; at < sizeBytes; at += piece.length) {
    for (let part = 0; part < piece.length; part += 4096) randomFillSync(piece, part, 2048);
    await raw.write(piece, at);
    await vhdx.write(piece, at);
  }
  await raw.datasync();
  await vhdx.flush();
  await raw.close();
  await vhdx.close();
}

/** An initial copy and a scan, into a store of its own. @param {string} image */
async function copyAndScan(image) {
  const store = join(folder, "store");
  const args = ["recv", "--store", store, "--listen", "127.0.0.1:0", "--tls", join(tls, "recv"), "--json"];
  const recv = spawn(process.execPath, [cli, ...args], { stdio: ["ignore", "pipe", "ignore"] });
  const [line] = await new Promise((resolve) => {
    createInterface({ input: recv.stdout }).once("line", (text) => resolve([text]));
  });
  const seconds = ["copy", "scan"].map(() => {
    const start = performance.now();
    replicate("send", image, `127.0.0.1:${JSON.parse(line).port}/disk`, "--tls", join(tls, "send"));
    return (performance.now() - start) / 1000;
  });
  const ended = new Promise((resolve) => recv.once("exit", resolve));
  recv.kill("SIGTERM");
  await ended;
  rmSync(store, { recursive: true });
  return seconds;
}

/** @param {number} payloadBlockBytes */
async function walkEmpty(payloadBlockBytes) {
  const path = join(folder, "empty.vhdx");
  await (await createWriter(path, { sizeBytes: 64 * 2 ** 40, payloadBlockBytes })).close();
  const start = performance.now();
  const { reader } = await openImage(path, { storage, allowLive: true });
  for await (const { kind } of reader.extents(0, reader.sizeBytes)) if (kind === "data") throw new Error("not empty");
  await reader.close();
  rmSync(path);
  return performance.now() - start;
}

/** @param {number[]} numbers */
const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? 0;

try {
  replicate("pki", "init", tls);
  replicate("pki", "issue", tls, "recv", "--host", "127.0.0.1");
  replicate("pki", "issue", tls, "send");
  await makeImages();
  /** @type {Record<string, number[]>} */
  const seconds = { "raw copy": [], "raw scan": [], "vhdx copy": [], "vhdx scan": [] };
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const [format, image] of Object.entries(images)) {
      const [copy = 0, scan = 0] = await copyAndScan(image);
      seconds[`${format} copy`]?.push(copy);
      seconds[`${format} scan`]?.push(scan);
      console.log(`${format}  copy ${copy.toFixed(2)} s  scan ${scan.toFixed(2)} s`);
    }
  }
  for (const what of ["copy", "scan"]) {
    const [raw, vhdx] = [median(seconds[`raw ${what}`] ?? []), median(seconds[`vhdx ${what}`] ?? [])];
    console.log(
      `median ${what}: ${vhdx.toFixed(2)} s from VHDX, ${raw.toFixed(2)} s from raw: ${(vhdx / raw).toFixed(2)} x`,
    );
  }
  for (const mebi of [1, 32]) {
    console.log(
      `empty, 64 TiB in payload blocks of ${mebi} MiB: walked in ${(await walkEmpty(mebi * 2 ** 20)).toFixed(0)} ms`,
    );
  }
} finally {
  rmSync(folder, { recursive: true });
}
