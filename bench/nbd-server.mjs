// Our NBD server beside qemu-nbd, on the same file and by the same clients: `npm run bench:nbd`. Prints ratios; the file lies in the page cache.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { median } from "./helpers.mjs";
import { fillFile, inTurns, MIB, rateOf, startOurs, startQemuNbd, stepThrough, uri } from "./nbd-load.mjs";

const sizeBytes = 512 * MIB;
const rounds = 5;

// A step that is no power of two: each request lies elsewhere, the whole disk is visited.
const scattered = { count: 60_000, depth: 16, bytes: 4096, step: 37 * MIB + 4096 };
const ordered = { depth: 4, bytes: MIB, step: MIB };

/** @type {Record<string, (socket: string) => void>} */
const cases = {
  "read 4 KiB scattered, depth 16": (socket) => stepThrough(socket, scattered),
  "write 4 KiB scattered, depth 16": (socket) => stepThrough(socket, { ...scattered, write: true }),
  "read 1 MiB in order, depth 4": (socket) => stepThrough(socket, { ...ordered, count: 2000 }),
  "write 1 MiB in order, depth 4": (socket) => stepThrough(socket, { ...ordered, count: 1500, write: true }),
  "nbdcopy to nowhere, 4 connections": (socket) =>
    execFileSync("nbdcopy", ["--request-size=1048576", uri(socket), "null:"]),
};

const folder = mkdtempSync(join(tmpdir(), "nbd-bench-"));
const image = join(folder, "disk.raw");
/** @type {(() => void)[]} */
const stops = [];
try {
  fillFile(image, sizeBytes);
  const ours = await startOurs(image, join(folder, "ours"));
  stops.push(ours.stop);
  const qemu = startQemuNbd(image, folder);
  stops.push(qemu.stop);
  const sockets = { ours: ours.socket, qemu: qemu.socket };
  for (const [name, run] of Object.entries(cases)) {
    const seconds = await inTurns(/** @type {const} */ (["ours", "qemu"]), rounds, (who) => run(sockets[who]));
    console.log(
      `${name.padEnd(36)} ${rateOf(seconds.ours, seconds.qemu).toFixed(2)} of qemu-nbd (${median(seconds.ours).toFixed(2)} s, ${median(seconds.qemu).toFixed(2)} s)`,
    );
  }
} finally {
  for (const stop of stops) stop();
  rmSync(folder, { recursive: true, force: true });
}
