// `npm run bench:tracked`: whether a delta by bitmap costs what changed, and not what the disk measures. The same number of blocks is changed, scattered over a large
// sparse disk and packed into a small one, and both are sent in turn: to a receiver in a process of its own, until its point is made and its file system is synced.
// Once 4 KiB of each block are written, as a guest does, and once all of it. Options: --large 1TiB --small 1GiB --places 16000 --written 4KiB,64KiB --rounds 3
// --dir FOLDER (default: the temporary folder; about 8 GiB) --keep (the figures go to bench/results). Prints medians and ratios.
import { randomFillSync } from "node:crypto";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  cpuSecondsOf,
  issueCertificates,
  keepResults,
  median,
  parseSize,
  root,
  startReceiver,
  syncFileSystem,
} from "./helpers.mjs";

const { createEngine } = await import(join(root, "dist/replication/engine.js"));
const { createTrackedSender, openTracked } = await import(join(root, "dist/library/tracking.js"));
const { loadCredentials } = await import(join(root, "dist/transport/credentials.js"));

const { values } = parseArgs({
  options: {
    large: { type: "string", default: "1TiB" },
    small: { type: "string", default: "1GiB" },
    places: { type: "string", default: "16000" },
    written: { type: "string", default: "4KiB,64KiB" },
    rounds: { type: "string", default: "3" },
    dir: { type: "string", default: tmpdir() },
    keep: { type: "boolean", default: false },
  },
});
const blockBytes = 65_536;
const placesCount = Number(values.places);
const rounds = Number(values.rounds);
const folder = mkdtempSync(join(values.dir, "replicate-bench-"));
const tls = join(folder, "pki");
const store = join(folder, "store");
/** Writes under way: those to new regions of the journal share its syncs. */
const writesTogether = 64;

/** @typedef {{ disk: "large" | "small", written: string, seconds: number, senderCpu: number, receiverCpu: number, readBytes: number, dirtyBytes: number, wireBytes: number }} Sample */

/** @param {"large" | "small"} name @param {any} engine @param {any} receiver */
async function openDisk(name, engine, receiver) {
  const path = join(folder, `${name}.raw`);
  const sizeBytes = parseSize(values[name]);
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  const tracked = await openTracked(path, { engine, format: "raw" });
  const sender = createTrackedSender({ engine, receiver, tracked, disk: name, codec: "lz4" });
  return { name, path, sizeBytes, tracked, sender };
}

/** @typedef {Awaited<ReturnType<typeof openDisk>>} Disk */

/** The places of a disk, one block each: as far apart as they can be. @param {number} sizeBytes */
function placesOf(sizeBytes) {
  const blocks = sizeBytes / blockBytes;
  if (blocks < placesCount) throw new Error("there are more places than the disk has blocks");
  return Array.from({ length: placesCount }, (_unused, nth) => Math.floor((nth * blocks) / placesCount) * blockBytes);
}

/** Half of each 4 KiB shrinks: neither zeros nor noise. @param {Disk} disk @param {number} bytes */
async function writePlaces({ sizeBytes, tracked }, bytes) {
  const waiting = placesOf(sizeBytes);
  const write = async () => {
    const piece = Buffer.alloc(bytes);
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      for (let part = 0; part < bytes; part += 4096) randomFillSync(piece, part, 2048);
      await tracked.image.write(piece, at);
    }
  };
  await Promise.all(Array.from({ length: writesTogether }, write));
  await tracked.image.flush();
}

/** @param {Disk} disk @param {number} receiverPid @param {string} written @returns {Promise<Sample>} */
async function measureCycle({ name, sender, tracked }, receiverPid, written) {
  syncFileSystem(folder);
  const dirtyBytes = tracked.image.journal.dirty.count * blockBytes;
  const before = { cpu: process.cpuUsage(), receiver: cpuSecondsOf(receiverPid) };
  const start = performance.now();
  const [report] = await sender.cycle();
  syncFileSystem(store);
  const seconds = (performance.now() - start) / 1000;
  const cpu = process.cpuUsage(before.cpu);
  if (report.reason !== "bitmap") throw new Error(`${name}: not by bitmap: ${report.reason}`);
  return {
    disk: name,
    written,
    seconds,
    senderCpu: (cpu.user + cpu.system) / 1e6,
    receiverCpu: cpuSecondsOf(receiverPid) - before.receiver,
    readBytes: report.funnel.readBytes,
    dirtyBytes,
    wireBytes: report.funnel.wireBytes,
  };
}

/** @param {Disk[]} disks @param {number} receiverPid */
async function measureAll(disks, receiverPid) {
  /** @type {Sample[]} */
  const samples = [];
  for (let round = 1; round <= rounds; round++) {
    for (const written of values.written.split(",")) {
      for (const disk of disks) {
        await writePlaces(disk, parseSize(written));
        const sample = await measureCycle(disk, receiverPid, written);
        samples.push(sample);
        const { seconds, senderCpu, receiverCpu, readBytes, dirtyBytes } = sample;
        console.log(
          `${disk.name}, ${written} written of each block: ${seconds.toFixed(2)} s, CPU ${senderCpu.toFixed(2)} s + ${receiverCpu.toFixed(2)} s, read ${(readBytes / dirtyBytes).toFixed(3)} x dirty`,
        );
      }
    }
  }
  return samples;
}

/** Of the places alone: all of a sparse disk is hours of zeros. @param {Disk} disk */
function checkReplica({ name, path, sizeBytes }) {
  const fds = [openSync(path, "r"), openSync(join(store, "disks", name, "replica.raw"), "r")];
  const [mine, theirs] = [Buffer.alloc(blockBytes), Buffer.alloc(blockBytes)];
  for (const at of placesOf(sizeBytes)) {
    for (const [nth, bytes] of [mine, theirs].entries()) readSync(fds[nth] ?? -1, bytes, 0, blockBytes, at);
    if (!mine.equals(theirs)) throw new Error(`${name}: the replica is not equal to the image at ${at}`);
  }
  for (const fd of fds) closeSync(fd);
}

/** @param {Sample[]} samples */
function summarize(samples) {
  return values.written.split(",").map((written) => {
    /** @param {"large" | "small"} name @param {(sample: Sample) => number} take */
    const of = (name, take) =>
      median(samples.filter((sample) => sample.disk === name && sample.written === written).map(take));
    /** @param {Sample} sample */
    const cpu = ({ senderCpu, receiverCpu }) => senderCpu + receiverCpu;
    return {
      written,
      largeSeconds: of("large", ({ seconds }) => seconds),
      smallSeconds: of("small", ({ seconds }) => seconds),
      wallRatio: of("large", ({ seconds }) => seconds) / of("small", ({ seconds }) => seconds),
      cpuRatio: of("large", cpu) / of("small", cpu),
      readRatio: of("large", ({ readBytes, dirtyBytes }) => readBytes / dirtyBytes),
    };
  });
}

const engine = await createEngine({});
issueCertificates(tls);
const receiver = await startReceiver({ store, tls, more: ["--keep", "last=2", "--log-level", "warn"] });
/** @type {Disk[]} */
const disks = [];
try {
  const credentials = await loadCredentials(join(tls, "send"), {});
  const target = { host: "127.0.0.1", port: receiver.port, credentials };
  for (const name of /** @type {const} */ (["large", "small"])) disks.push(await openDisk(name, engine, target));
  for (const disk of disks) {
    await writePlaces(disk, blockBytes);
    await disk.sender.cycle();
  }
  const samples = await measureAll(disks, receiver.pid);
  for (const disk of disks) checkReplica(disk);
  const summary = summarize(samples);
  for (const { written, largeSeconds, smallSeconds, wallRatio, cpuRatio, readRatio } of summary) {
    console.log(
      `medians, ${written} of each of ${placesCount} blocks: ${largeSeconds.toFixed(2)} s of ${values.large}, ${smallSeconds.toFixed(2)} s of ${values.small}: wall ${wallRatio.toFixed(2)} x, CPU ${cpuRatio.toFixed(2)} x; read ${readRatio.toFixed(3)} x the dirty blocks`,
    );
  }
  if (values.keep) {
    keepResults("tracked-delta", {
      ...{ large: values.large, small: values.small, places: placesCount, rounds, summary, samples },
    });
  }
} finally {
  for (const { tracked } of disks) await tracked.close();
  await engine.close();
  await receiver.stop();
  rmSync(folder, { recursive: true });
}
