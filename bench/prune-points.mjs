// `npm run bench:prune`: 3,600 points a second apart, made hours ago, thinned by the default policy: how long `replicate prune` takes as a process of its own, with its syncs, what the store
// holds before and after, and how much more it holds at most in between. The reference: as many files as go, removed by plain calls and synced once.
// Options: --points 3600 --dir FOLDER (default: the temporary folder) --keep (the figures go to bench/results).
import { spawn } from "node:child_process";
import { randomFillSync, randomInt } from "node:crypto";
import { once } from "node:events";
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { parseArgs } from "node:util";
import { cli, issueCertificates, keepResults, replicate, root, startReceiver, syncFileSystem } from "./helpers.mjs";

const { createEngine } = await import(join(root, "dist/replication/engine.js"));
const { systemClock } = await import(join(root, "dist/base/clock.js"));
const { defaultPolicyText } = await import(join(root, "dist/replica/retention/policy.js"));
const { createTrackedSender, openTracked } = await import(join(root, "dist/library/tracking.js"));
const { loadCredentials } = await import(join(root, "dist/transport/credentials.js"));

const { values } = parseArgs({
  options: {
    points: { type: "string", default: "3600" },
    dir: { type: "string", default: tmpdir() },
    keep: { type: "boolean", default: false },
  },
});
const pointCount = Number(values.points);
const partBytes = 4096;
const sizeBytes = 64 * 2 ** 20;
const hour = 3_600_000;
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const tls = join(folder, "pki");
const store = join(folder, "store");
const disk = "disk";
const pointFolder = join(store, "disks", disk, "points");

/** Points are labelled a second apart, five hours ago; the newest one now: of its hour every point would stay. */
let label = Date.now() - 5 * hour - pointCount * 1000;
const clock = { ...systemClock, now: () => label };

/** @param {any} engine */
async function makePoints(engine) {
  issueCertificates(tls);
  const image = join(folder, "image.raw");
  const fd = openSync(image, "w");
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  const { port, stop } = await startReceiver({ store, tls, more: ["--keep", "all", "--log-level", "error"] });
  const tracked = await openTracked(image, { engine, format: "raw" });
  try {
    const credentials = await loadCredentials(join(tls, "send"), {});
    const receiver = { host: "127.0.0.1", port, credentials };
    const sender = createTrackedSender({ engine, receiver, tracked, disk });
    const part = Buffer.alloc(partBytes);
    for (let point = 1; point <= pointCount; point++) {
      label = point === pointCount ? Date.now() : label + 1000;
      randomFillSync(part);
      await tracked.image.write(part, randomInt(sizeBytes / partBytes) * partBytes);
      await tracked.image.flush();
      await sender.cycle();
    }
  } finally {
    await tracked.close();
    await stop();
  }
}

function filesOfPoints() {
  return readdirSync(pointFolder).map((name) => join(pointFolder, name));
}

/** Bytes on disk. */
function storeBytes() {
  return filesOfPoints().reduce((sum, path) => {
    try {
      return sum + statSync(path).blocks * 512;
    } catch {
      // Gone meanwhile.
      return sum;
    }
  }, 0);
}

/** @param {string[]} args */
async function timed(...args) {
  const before = storeBytes();
  let most = before;
  const start = performance.now();
  const child = spawn(process.execPath, [cli, ...args], { stdio: ["ignore", "ignore", "inherit"] });
  const watch = setInterval(() => {
    most = Math.max(most, storeBytes());
  }, 50);
  const [code] = await once(child, "exit");
  clearInterval(watch);
  if (code !== 0) throw new Error(`replicate ${args.join(" ")}: exit ${String(code)}`);
  syncFileSystem(store);
  return { seconds: (performance.now() - start) / 1000, before, after: storeBytes(), more: most - before };
}

/** As many files as went, with as many bytes: made, synced, removed, synced. @param {number} count @param {number} bytes */
function removePlainly(count, bytes) {
  const plain = join(folder, "plain");
  mkdirSync(plain);
  const content = Buffer.alloc(bytes, 1);
  for (let nth = 0; nth < count; nth++) writeFileSync(join(plain, String(nth)), content);
  syncFileSystem(plain);
  const start = performance.now();
  for (let nth = 0; nth < count; nth++) unlinkSync(join(plain, String(nth)));
  syncFileSystem(plain);
  return (performance.now() - start) / 1000;
}

const engine = await createEngine({ clock });
try {
  const begun = performance.now();
  await makePoints(engine);
  syncFileSystem(store);
  const made = filesOfPoints().length;
  console.log(`${pointCount} points, ${made} files, made in ${((performance.now() - begun) / 1000).toFixed(0)} s`);
  const dry = await timed("prune", "--store", store, disk, "--keep", defaultPolicyText, "--dry-run");
  const prune = await timed("prune", "--store", store, disk, "--keep", defaultPolicyText);
  const left = replicate("points", "--store", store, disk, "--json").trim().split("\n").length;
  const gone = made - filesOfPoints().length;
  const reference = removePlainly(Math.max(gone, 1), Math.round((prune.before - prune.after) / Math.max(gone, 1)));
  const mib = 2 ** 20;
  console.log(`dry run: ${dry.seconds.toFixed(2)} s`);
  console.log(
    `prune: ${prune.seconds.toFixed(2)} s, ${left} points stay, ${gone} files go; removing as many plain files ${reference.toFixed(2)} s`,
  );
  console.log(
    `${(prune.before / mib).toFixed(1)} MiB before, ${(prune.after / mib).toFixed(1)} MiB after, at most ${(prune.more / mib).toFixed(2)} MiB more in between`,
  );
  const compact = await timed("compact", "--store", store, disk);
  console.log(
    `compact: ${compact.seconds.toFixed(2)} s, ${(compact.after / mib).toFixed(1)} MiB after, at most ${(compact.more / mib).toFixed(2)} MiB more in between`,
  );
  if (values.keep) keepResults("prune-points", { points: pointCount, left, gone, dry, prune, reference, compact });
} finally {
  await engine.close();
  rmSync(folder, { recursive: true });
}
