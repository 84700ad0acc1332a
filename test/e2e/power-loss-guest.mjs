// @ts-check
/**
 * What a guest of power-loss.long.ts runs: `node power-loss-guest.mjs DIST STORE ARGUMENT...`. Reads every point of every disk, before any sender can come;
 * writes what it found as JSON lines, `{"event":"point-read"}` for each point and `{"event":"checked"}`; holds a point; then becomes `replicate recv
 * ARGUMENT...`. In one process, because starting a second one takes long in an emulated machine.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** @typedef {import("../../src/index.ts")} Library */

const [dist = "", directory = "", ...recvArguments] = process.argv.slice(2);
/** @type {Library} */
const { createEngine, openStore, ReplicationError, verifyPoint } = await import(
  pathToFileURL(join(dist, "index.js")).href
);

const pieceBytes = 1 << 20;
const owner = "test";

/** @param {object} event */
function say(event) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

/** @param {unknown} error */
function troubleOf(error) {
  return error instanceof ReplicationError ? `${error.code}: ${error.message}` : String(error);
}

/**
 * @param {import("../../src/index.ts").Store} store
 * @param {import("../../src/index.ts").Engine} engine
 * @param {string} disk
 * @param {number} point
 */
async function readPoint(store, engine, disk, point) {
  const { good, rootMatches } = await verifyPoint(store, { engine, disk, point });
  const reader = await store.openPoint(disk, point);
  const hash = createHash("sha256");
  const bytes = Buffer.alloc(pieceBytes);
  for (let at = 0; at < reader.sizeBytes; at += pieceBytes) {
    const piece = bytes.subarray(0, Math.min(pieceBytes, reader.sizeBytes - at));
    await reader.read(piece, at);
    hash.update(piece);
  }
  await reader.close();
  return { good: good && rootMatches, sha256: hash.digest("hex") };
}

/**
 * Holds the oldest point for eight others: those behind it are removed meanwhile, and it takes over their logs, which are joined.
 *
 * @param {import("../../src/index.ts").Store} store
 * @param {string} disk
 */
async function holdOldest(store, disk) {
  const { points } = await store.points(disk);
  const newest = points.at(-1)?.point ?? 0;
  let held = points.find(({ hold }) => hold !== undefined)?.point;
  if (held !== undefined && held < newest - 8) {
    await store.release(disk, held, owner);
    held = undefined;
  }
  if (held === undefined && points[0] !== undefined) {
    held = points[0].point;
    await store.hold(disk, held, { owner, until: undefined });
  }
  say({ event: "held", disk, point: held });
}

async function checkStore() {
  const engine = await createEngine({ lanes: 0 });
  const { storage, clock, random, log, host } = engine;
  try {
    const store = await openStore({ path: directory, storage, clock, random, log, host });
    for (const disk of await store.disks()) {
      const { points, unreadable } = await store.points(disk);
      for (const { point, message } of unreadable)
        say({ event: "point-read", disk, point, good: false, trouble: message });
      for (const { point, label, root } of points) {
        const read = await readPoint(store, engine, disk, point).catch((/** @type {unknown} */ error) => ({
          good: false,
          trouble: troubleOf(error),
        }));
        say({ event: "point-read", disk, point, label, root, ...read });
      }
      await holdOldest(store, disk);
    }
    await store.close();
  } finally {
    await engine.close();
  }
}

const trouble = await checkStore().then(
  () => undefined,
  (/** @type {unknown} */ error) => troubleOf(error),
);
say({ event: "checked", trouble });
const command = join(dist, "cli/main.js");
process.argv = [process.execPath, command, "recv", "--store", directory, ...recvArguments];
await import(pathToFileURL(command).href);
