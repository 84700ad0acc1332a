// A process that is new and opens one point: `node bench/open-one-point.mjs HOW STORE DISK POINT OFFSET`. HOW: `bare` does nothing, `library` opens the store alone,
// `point` opens the point and then reads one block at the offset. Says what it took as a line of JSON, processor time of both together, memory as the most it ever had (VmHWM).
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const [how = "", path = "", disk = "", point = "", offset = ""] = process.argv.slice(2);
// Not from helpers.mjs: what that loads is no part of an empty process.
const dist = fileURLToPath(new URL("../dist", import.meta.url));

async function openStoreAlone() {
  /** @type {typeof import("../src/index.ts")} */
  const { createEngine, openStore } = await import(join(dist, "index.js"));
  const { storage, clock, random, log, host } = await createEngine({ lanes: 0 });
  return openStore({ path, storage, clock, random, log, host });
}

async function openPoint() {
  const store = await openStoreAlone();
  const before = process.cpuUsage();
  const start = performance.now();
  const reader = await store.openPoint(disk, Number(point));
  const opened = performance.now();
  await reader.read(new Uint8Array(reader.disk.blockBytes), Number(offset));
  const read = performance.now();
  const { user, system } = process.cpuUsage(before);
  return {
    openSeconds: (opened - start) / 1000,
    readSeconds: (read - opened) / 1000,
    cpuSeconds: (user + system) / 1e6,
  };
}

/** @type {Awaited<ReturnType<typeof openPoint>> | undefined} */
let times;
if (how === "library") await openStoreAlone();
if (how === "point") times = await openPoint();
const peakKib = /^VmHWM:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
console.log(JSON.stringify({ ...times, peakBytes: Number(peakKib) * 1024 }));
process.exit();
