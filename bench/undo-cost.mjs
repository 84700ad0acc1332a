// `npm run bench:undo`: what keeping old content costs a delta. The same delta (5 % of the 4 KiB parts of an image, scattered) goes to a receiver as
// it is and to one that keeps nothing, in turn. Options: --size 4GiB --rounds 3 --share 0.05 --dir FOLDER --keep (the figures go to
// bench/results). Prints medians and their ratio.
import { spawn, spawnSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { closeSync, fsyncSync, mkdtempSync, openSync, readdirSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { keepResults } from "./helpers.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const cli = join(root, "dist/cli/main.js");
const noUndo = join(root, "bench/no-undo.mjs");
const { values } = parseArgs({
  options: {
    size: { type: "string", default: "4GiB" },
    rounds: { type: "string", default: "3" },
    share: { type: "string", default: "0.05" },
    dir: { type: "string", default: tmpdir() },
    keep: { type: "boolean", default: false },
  },
});
const sizeBytes = Number(/^(\d+)GiB$/.exec(values.size)?.[1] ?? "4") * 2 ** 30;
const share = Number(values.share);
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const image = join(folder, "image.raw");
const tls = join(folder, "pki");

/** @param {string[]} args */
function replicate(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: "utf8",
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`replicate ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** Half of each piece shrinks: neither zeros nor noise. */
function makeImage() {
  const fd = openSync(image, "w");
  const piece = Buffer.alloc(2 ** 20);
  for (let at = 0; at < sizeBytes; at += piece.length) {
    for (let part = 0; part < piece.length; part += 4096) randomFillSync(piece, part, 2048);
    writeSync(fd, piece, 0, piece.length, at);
  }
  fsyncSync(fd);
  closeSync(fd);
}

/** The same parts in every round, with other content. */
function changeImage() {
  const fd = openSync(image, "r+");
  const part = Buffer.alloc(4096);
  const parts = sizeBytes / 4096;
  const count = Math.floor(parts * share);
  for (let change = 0; change < count; change++) {
    randomFillSync(part, 0, 2048);
    // A multiplier coprime to any number of parts that is a power of two walks over all of them.
    writeSync(fd, part, 0, 4096, ((change * 2654435761) % parts) * 4096);
  }
  fsyncSync(fd);
  closeSync(fd);
  return count * 4096;
}

/** @param {boolean} undo @param {string} store */
async function delta(undo, store) {
  const args = [...(undo ? [] : ["--import", noUndo]), cli];
  const recv = spawn(
    process.execPath,
    [
      ...args,
      "recv",
      "--store",
      store,
      "--listen",
      "127.0.0.1:0",
      "--tls",
      join(tls, "recv"),
      "--keep",
      "all",
      "--json",
    ],
    { stdio: ["ignore", "pipe", "ignore"] },
  );
  const [line] = await new Promise((resolve) => {
    createInterface({ input: recv.stdout }).once("line", (text) => resolve([text]));
  });
  const { port } = JSON.parse(line);
  const start = performance.now();
  const out = replicate("send", image, `127.0.0.1:${port}/disk`, "--tls", join(tls, "send"), "--json");
  const seconds = (performance.now() - start) / 1000;
  const ended = new Promise((resolve) => recv.once("exit", resolve));
  recv.kill("SIGTERM");
  await ended;
  const done = JSON.parse(out.trim().split("\n").at(-1) ?? "{}");
  const points = join(store, "disks/disk/points");
  const logs = readdirSync(points).filter((name) => name.endsWith(".undo"));
  return {
    seconds,
    changed: done.bytesChanged,
    undoBytes: Math.max(0, ...logs.map((name) => statSync(join(points, name)).size)),
  };
}

/** @param {number[]} numbers */
const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? 0;

try {
  replicate("pki", "init", tls);
  replicate("pki", "issue", tls, "recv", "--host", "127.0.0.1");
  replicate("pki", "issue", tls, "send");
  makeImage();
  const store = join(folder, "store");
  await delta(true, store);
  /** @type {Record<string, number[]>} */
  const seconds = { kept: [], none: [] };
  let undoShare = 0;
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const mode of /** @type {const} */ (["kept", "none"])) {
      const changed = changeImage();
      const found = await delta(mode === "kept", store);
      seconds[mode]?.push(found.seconds);
      if (mode === "kept") undoShare = Math.max(undoShare, found.undoBytes / changed);
      console.log(`${mode}  ${found.seconds.toFixed(2)} s  ${(found.changed / 2 ** 20).toFixed(0)} MiB changed`);
    }
  }
  const [kept, none] = [median(seconds["kept"] ?? []), median(seconds["none"] ?? [])];
  console.log(
    `medians: ${kept.toFixed(2)} s with old content kept, ${none.toFixed(2)} s without: ${(kept / none).toFixed(2)} x`,
  );
  console.log(`largest undo log: ${undoShare.toFixed(2)} x the changed parts`);
  if (values.keep)
    keepResults("undo-cost", {
      ...{ sizeBytes, rounds: Number(values.rounds), share },
      summary: { keptSeconds: kept, noneSeconds: none, ratio: kept / none, undoShare },
      seconds,
    });
} finally {
  rmSync(folder, { recursive: true });
}
