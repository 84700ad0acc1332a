// @ts-check
/**
 * A process that reads every point of a disk again and again: `node read-points.mjs DIST STORE DISK HASHES`. For each point the file HASHES/<point> has
 * the sha256 of what it must read as. Writes a JSON line for each pass; ends when its standard input does, with an exit code of 1 when anything was
 * wrong.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** @typedef {import("../../src/index.ts")} Library */
/** @typedef {import("../../src/index.ts").PointReader} PointReader */
/** @typedef {{ reader: PointReader, hash: import("node:crypto").Hash, half: number, passes: number }} Held */

const [dist = "", directory = "", disk = "", hashes = ""] = process.argv.slice(2);
/** @type {Library} */
const { createEngine, openStore, ReplicationError } = await import(pathToFileURL(join(dist, "index.js")).href);

/** Read by pieces that end nowhere in particular. */
const pieceBytes = 100_003;
/** A point is kept open for this many passes, half of it read before, half of it after. */
const heldPasses = 5;

const engine = await createEngine({ lanes: 0 });
const { storage, clock, random, log, host } = engine;
const store = await openStore({ path: directory, storage, clock, random, log, host });

let ended = false;
process.stdin.on("end", () => {
  ended = true;
});
process.stdin.resume();

const counts = { passes: 0, points: 0, held: 0, gone: 0 };
/** @type {Held | undefined} */
let held;

/** @param {number} point */
function wanted(point) {
  return readFileSync(join(hashes, String(point)), "utf8");
}

/**
 * @param {PointReader} reader
 * @param {import("node:crypto").Hash} hash
 * @param {number} from
 * @param {number} to
 */
async function read(reader, hash, from, to) {
  for (let at = from; at < to; at += pieceBytes) {
    const bytes = Buffer.alloc(Math.min(pieceBytes, to - at));
    await reader.read(bytes, at);
    hash.update(bytes);
  }
}

/** @param {PointReader} reader @param {import("node:crypto").Hash} hash @param {string} how */
function check(reader, hash, how) {
  const { point } = reader.point;
  if (hash.digest("hex") !== wanted(point)) throw new Error(`point ${point} read ${how} is not what was sent`);
}

/** @param {number} point */
async function open(point) {
  try {
    return await store.openPoint(disk, point);
  } catch (error) {
    // Removed since it was listed; the newest one never is.
    if (!(error instanceof ReplicationError) || error.code !== "point-not-found") throw error;
    counts.gone++;
    return undefined;
  }
}

/** @param {number} point */
async function hold(point) {
  const reader = await open(point);
  if (reader === undefined) return;
  const hash = createHash("sha256");
  const half = Math.floor(reader.sizeBytes / 2);
  held = { reader, hash, half, passes: 0 };
  await read(reader, hash, 0, half);
}

async function letGo() {
  if (held === undefined) return;
  const { reader, hash, half } = held;
  held = undefined;
  await read(reader, hash, half, reader.sizeBytes);
  check(reader, hash, "in two halves");
  counts.held++;
  await reader.close();
}

async function pass() {
  const { points, unreadable } = await store.points(disk);
  if (unreadable.length > 0) throw new Error(unreadable[0]?.message);
  for (const { point } of points) {
    const reader = await open(point);
    if (reader === undefined) continue;
    const hash = createHash("sha256");
    await read(reader, hash, 0, reader.sizeBytes);
    check(reader, hash, "at once");
    await reader.close();
    counts.points++;
  }
  const newest = await store.openPoint(disk, "newest");
  if (newest.point.point < (points.at(-1)?.point ?? 0)) throw new Error("the newest point is an older one");
  await newest.close();
  if (held !== undefined && ++held.passes >= heldPasses) await letGo();
  // Alternately the oldest and the newest.
  if (held === undefined) await hold((counts.held % 2 === 0 ? points[0] : points.at(-1))?.point ?? 0);
  counts.passes++;
}

while (!ended) {
  await pass();
  process.stdout.write(`${JSON.stringify(counts)}\n`);
  // Lets the end of the input be noticed.
  await new Promise((resolve) => setImmediate(resolve));
}
await letGo();
process.stdout.write(`${JSON.stringify(counts)}\n`);
await store.close();
await engine.close();
