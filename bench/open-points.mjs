// `npm run bench:points`: what it takes to open any of many points of a large sparse disk, and to read one block of it. Each point is opened by processes of their own: one finds
// nothing of the store in the page cache, and the next one what the first has read. The changes of each delta are parts of 4 KiB that are scattered over the disk, and most were written before.
// Options: --size 1TiB --points 50 --places 20000 --changes 4000 --dir FOLDER (default: the temporary folder; about 1.5 GiB) --keep (the figures go to bench/results).
// Prints medians and the most of all points; memory above a process of Node.js that does nothing, and above one that has opened the store and no point.
import { spawnSync } from "node:child_process";
import { randomFillSync, randomInt } from "node:crypto";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { issueCertificates, keepResults, median, parseSize, root, startReceiver, syncFileSystem } from "./helpers.mjs";

const { createEngine } = await import(join(root, "dist/replication/engine.js"));
const { createTrackedSender, openTracked } = await import(join(root, "dist/library/tracking.js"));
const { loadCredentials } = await import(join(root, "dist/transport/credentials.js"));

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "1TiB" },
    points: { type: "string", default: "50" },
    places: { type: "string", default: "20000" },
    changes: { type: "string", default: "4000" },
    dir: { type: "string", default: tmpdir() },
    keep: { type: "boolean", default: false },
  },
});
const partBytes = 4096;
const sizeBytes = parseSize(values.size);
const pointCount = Number(values.points);
const placeCount = Number(values.places);
const changes = Number(values.changes);
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const tls = join(folder, "pki");
const store = join(folder, "store");
const disk = "disk";
const diskFolder = join(store, "disks", disk);
/** Writes under way: those to new regions of the journal share its syncs. */
const writesTogether = 64;

/** @typedef {{ point: number, cache: "cold" | "warm", openSeconds: number, readSeconds: number, cpuSeconds: number, peakBytes: number }} Sample */

const places = Array.from({ length: placeCount }, () => randomInt(sizeBytes / partBytes) * partBytes);

/** Half of each part shrinks: neither zeros nor noise. @param {any} image @param {number} count */
async function writePlaces(image, count) {
  const waiting =
    count === placeCount ? [...places] : Array.from({ length: count }, () => places[randomInt(placeCount)]);
  const write = async () => {
    const part = Buffer.alloc(partBytes);
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      randomFillSync(part, 0, partBytes / 2);
      await image.write(part, at);
    }
  };
  await Promise.all(Array.from({ length: writesTogether }, write));
  await image.flush();
}

/** @param {any} engine */
async function makePoints(engine) {
  issueCertificates(tls);
  const image = join(folder, "image.raw");
  const fd = openSync(image, "w");
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  const { port, stop } = await startReceiver({ store, tls, more: ["--keep", "all", "--log-level", "warn"] });
  const tracked = await openTracked(image, { engine, format: "raw" });
  try {
    const credentials = await loadCredentials(join(tls, "send"), {});
    const receiver = { host: "127.0.0.1", port, credentials };
    const sender = createTrackedSender({ engine, receiver, tracked, disk, codec: "lz4" });
    for (let point = 1; point <= pointCount; point++) {
      await writePlaces(tracked.image, point === 1 ? placeCount : changes);
      await sender.cycle();
    }
  } finally {
    await tracked.close();
    await stop();
  }
}

function filesOfDisk() {
  return readdirSync(diskFolder, { recursive: true, encoding: "utf8" })
    .map((name) => join(diskFolder, name))
    .filter((path) => statSync(path).isFile());
}

/** Everything is on the disk already. @param {any} engine */
function emptyCache({ storage }) {
  for (const path of filesOfDisk()) {
    const fd = openSync(path, "r");
    storage.lanes.dropCache(fd, 0, statSync(path).size);
    closeSync(fd);
  }
}

/** @param {(string | number)[]} args */
function inProcess(...args) {
  const script = join(root, "bench/open-one-point.mjs");
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args.map(String)], { encoding: "utf8" });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

/** @param {"bare" | "library"} how @returns {number} */
function peakWithout(how) {
  return median(Array.from({ length: 5 }, () => inProcess(how, store).peakBytes));
}

const engine = await createEngine({});
try {
  await makePoints(engine);
  syncFileSystem(store);
  const logs = filesOfDisk().filter((path) => path.endsWith(".undo"));
  const logBytes = median(logs.map((path) => statSync(path).size));
  console.log(`${pointCount} points of ${values.size}; an undo log is ${(logBytes / 2 ** 20).toFixed(1)} MiB`);
  const [bare, library] = [peakWithout("bare"), peakWithout("library")];
  /** @type {Sample[]} */
  const samples = [];
  for (let point = 1; point <= pointCount; point++) {
    emptyCache(engine);
    const at = places[randomInt(placeCount)] ?? 0;
    for (const cache of /** @type {const} */ (["cold", "warm"]))
      samples.push({ point, cache, ...inProcess("point", store, disk, point, at) });
  }
  /** @param {string} what @param {string} unit @param {(sample: Sample) => number} take */
  const tell = (what, unit, take) => {
    /** @type {Record<string, { median: number, most: number }>} */
    const found = {};
    for (const cache of ["cold", "warm"]) {
      const numbers = samples.filter((sample) => sample.cache === cache).map(take);
      found[cache] = { median: median(numbers), most: Math.max(...numbers) };
      const { median: middle, most } = found[cache];
      console.log(`${what}, ${cache}: median ${middle.toFixed(1)} ${unit}, at most ${most.toFixed(1)} ${unit}`);
    }
    return found;
  };
  const mib = 2 ** 20;
  const summary = {
    openMillis: tell("open", "ms", ({ openSeconds }) => openSeconds * 1000),
    readMillis: tell("one block", "ms", ({ readSeconds }) => readSeconds * 1000),
    cpuMillis: tell("processor time of both", "ms", ({ cpuSeconds }) => cpuSeconds * 1000),
    aboveBareMib: tell("memory above Node.js", "MiB", ({ peakBytes }) => (peakBytes - bare) / mib),
    aboveStoreMib: tell("memory above a store alone", "MiB", ({ peakBytes }) => (peakBytes - library) / mib),
  };
  if (values.keep)
    keepResults("open-points", {
      size: values.size,
      points: pointCount,
      places: placeCount,
      changes,
      logBytes,
      summary,
      samples,
    });
} finally {
  await engine.close();
  rmSync(folder, { recursive: true });
}
