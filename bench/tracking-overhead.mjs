// `npm run bench:tracking`: what it costs a guest that its writes are tracked, the journal surviving loss of power. The same writes (4 KiB at random places, 16 at a time; the file in the page cache)
// go to a tracked image, to one that is not, and to qemu-nbd, in turn: right after a cut, when every block that is written has to be marked anew, and going on from there.
// Options: --size 4GiB --writes 100000 --rounds 5 --dir FOLDER (default: the temporary folder) --keep (the figures go to bench/results).
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { cpuSecondsOf, keepResults, median, parseSize, syncFileSystem } from "./helpers.mjs";
import { fillFile, inTurns, MIB, rateOf, startOurs, startQemuNbd, stepThrough, writeAtRandom } from "./nbd-load.mjs";

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "4GiB" },
    writes: { type: "string", default: "100000" },
    rounds: { type: "string", default: "5" },
    dir: { type: "string", default: tmpdir() },
    keep: { type: "boolean", default: false },
  },
});
const sizeBytes = parseSize(values.size);
const count = Number(values.writes);
const rounds = Number(values.rounds);
const folder = mkdtempSync(join(values.dir, "nbd-bench-"));
const names = /** @type {const} */ (["tracked", "bare", "qemu"]);
const sequential = { write: true, count: 2000, depth: 4, bytes: MIB, step: MIB };
/** @type {(() => void)[]} */
const stops = [];
try {
  // One file for all, so that its pages are as warm for each.
  const image = join(folder, "disk.raw");
  fillFile(image, sizeBytes);
  const tracked = await startOurs(image, join(folder, "tracked"), { tracked: true });
  stops.push(tracked.stop);
  const bare = await startOurs(image, join(folder, "bare"));
  stops.push(bare.stop);
  const qemu = startQemuNbd(image, folder);
  stops.push(qemu.stop);
  const servers = { tracked, bare, qemu };
  /** @type {Record<string, object>} */
  const figures = {};

  /** @param {string} what @param {Parameters<typeof inTurns<"tracked" | "bare" | "qemu">>[2]} run @param {Parameters<typeof inTurns>[3]} [prepare] */
  const compare = async (what, run, prepare) => {
    const cpu = { tracked: 0, bare: 0, qemu: 0 };
    const seconds = await inTurns(
      names,
      rounds,
      async (name, round) => {
        const before = cpuSecondsOf(servers[name].pid);
        await run(name, round);
        if (round > 0) cpu[name] += cpuSecondsOf(servers[name].pid) - before;
      },
      prepare,
    );
    const trackedOfBare = rateOf(seconds.tracked, seconds.bare);
    const bareOfQemu = rateOf(seconds.bare, seconds.qemu);
    figures[what] = { trackedOfBare, bareOfQemu, seconds, cpu };
    const each = names.map(
      (name) => `${name} ${median(seconds[name]).toFixed(2)} s, CPU ${(cpu[name] / rounds).toFixed(2)} s`,
    );
    console.log(
      `${what}: tracked at ${trackedOfBare.toFixed(3)} of the rate of untracked, untracked at ${bareOfQemu.toFixed(2)} of qemu-nbd (${each.join("; ")})`,
    );
  };

  await compare(
    "4 KiB at random, right after a cut",
    (name, round) => writeAtRandom(servers[name].socket, { count, seed: round + 1 }),
    async (name) => {
      syncFileSystem(folder);
      if (name === "tracked") await tracked.cut();
    },
  );
  await compare(
    "4 KiB at random, going on",
    (name, round) => writeAtRandom(servers[name].socket, { count, seed: 1000 + round }),
    () => Promise.resolve(syncFileSystem(folder)),
  );
  await compare(
    "1 MiB in order",
    (name) => stepThrough(servers[name].socket, sequential),
    () => Promise.resolve(syncFileSystem(folder)),
  );
  if (values.keep) keepResults("tracking-overhead", { size: values.size, writes: count, rounds, figures });
} finally {
  for (const stop of stops) stop();
  rmSync(folder, { recursive: true, force: true });
}
