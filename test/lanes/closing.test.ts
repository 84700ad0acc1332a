/** The end of worker lanes, seen from a process of its own: node ends with 13 when nothing keeps alive what a program still awaits. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const dist = join(import.meta.dirname, "../../dist/lanes");
const built = existsSync(join(dist, "worker-lanes.js"));

/** Says it is ready, then is long in native code, which nothing interrupts. */
const slowToEnd = `
  import { parentPort } from "node:worker_threads";
  import { pbkdf2Sync } from "node:crypto";
  parentPort.postMessage({ ready: true, lz4: "wasm" });
  pbkdf2Sync("a", "b", 1_000_000, 64, "sha512");
`;

const program = `
  const { createWorkerLanes } = await import(${JSON.stringify(join(dist, "worker-lanes.js"))});
  const { allocateShared } = await import(${JSON.stringify(join(dist, "../base/shared-memory.js"))});
  const { slotBytes } = await import(${JSON.stringify(join(dist, "slot-layout.js"))});
  const entry = new URL("data:text/javascript," + encodeURIComponent(${JSON.stringify(slowToEnd)}));
  const lanes = createWorkerLanes({ count: 1, memory: allocateShared(slotBytes), roomAt: 0, lz4: "wasm", entry });
  // The message that it is ready waits until the lanes are being closed.
  const until = performance.now() + 300;
  while (performance.now() < until);
  await lanes.close();
  console.log("closed");
`;

test.skipIf(!built)("a lane that becomes ready while it is closed is waited for (skipped without a build)", () => {
  const result = spawnSync(process.execPath, ["--input-type=module", "--eval", program], { encoding: "utf8" });
  expect(result.stderr).toBe("");
  expect(result.stdout).toBe("closed\n");
  expect(result.status).toBe(0);
});
