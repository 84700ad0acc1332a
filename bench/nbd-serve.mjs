// A server of one raw image in a process of its own, as it will run: `node bench/nbd-serve.mjs IMAGE SOCKET [tracked]`. Says `ready` on standard output. Of a tracked image a line on standard
// input is a cut that is retired at once, as after a cycle: nothing is dirty then, and it says `cut`.
import { join } from "node:path";
import { createInterface } from "node:readline";
import { root } from "./helpers.mjs";

const [path = "", socket = "", how = ""] = process.argv.slice(2);
const place = /** @type {const} */ ({ kind: "unix", path: socket });

async function serveTracked() {
  const { createEngine } = await import(join(root, "dist/replication/engine.js"));
  const { openTracked, serveTracked } = await import(join(root, "dist/library/tracking.js"));
  const { cutImages } = await import(join(root, "dist/track/tracked-image.js"));
  const engine = await createEngine({ lanes: 1 });
  const tracked = await openTracked(path, { engine, format: "raw" });
  await serveTracked(engine, { disks: [{ exportName: "disk", tracked }], place });
  console.log("ready");
  for await (const _line of createInterface({ input: process.stdin })) {
    const [cut] = await cutImages([tracked.image], { clock: engine.clock, freeze: "dirty" });
    await cut.durable;
    await cut.retire();
    console.log("cut");
  }
}

async function serveBare() {
  const { createRawWriter } = await import(join(root, "dist/image/raw.js"));
  const { listenNbd } = await import(join(root, "dist/nbd/server.js"));
  const { createNodeStorage } = await import(join(root, "dist/storage/node-storage.js"));
  const { systemClock } = await import(join(root, "dist/base/clock.js"));
  const { systemRandom } = await import(join(root, "dist/base/random.js"));
  const { silentLogger } = await import(join(root, "dist/base/logger.js"));
  const storage = createNodeStorage();
  const file = await storage.open(path, { write: true });
  const { sizeBytes } = await file.stat();
  const image = createRawWriter(file, storage, { sizeBytes });
  const exports = [{ name: "disk", image, writable: true, file: { fd: file.fd, lanes: storage.lanes } }];
  await listenNbd({ place, exports, storage, clock: systemClock, random: systemRandom, log: silentLogger });
  console.log("ready");
}

await (how === "tracked" ? serveTracked() : serveBare());
