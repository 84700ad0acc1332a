/** `replicate track` and what went wrong elsewhere: images touched, cut and lengthened behind its back, journals lost, full disks, cycles that were stopped. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { journalBytesMax } from "../../../src/track/journal/format.ts";
import { BLOCK, differences, digestBytes, KIB, makeNoise, makeSparse, MIB, noise, until, writeAt } from "../content.ts";
import {
  CliProcess,
  cmpFiles,
  type JsonLine,
  makePki,
  needTools,
  type Pki,
  type Receiver,
  replicate,
  runTool,
  type Scope,
  seededRandom,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";
import { startProxy } from "../proxy.ts";
import { Load } from "./kit.ts";

const suite = suiteScope();
let pki: Pki;
let receiver: Receiver;
let dir: string;

beforeAll(async () => {
  dir = tempDir(suite);
  pki = await makePki(suite, join(dir, "pki"));
  receiver = await startReceiver(suite, { storeDir: join(dir, "store"), tls: pki.recv });
});

const imageOf = (name: string): string => join(dir, `${name}.raw`);

interface Tracker {
  readonly child: CliProcess;
  readonly uri: string;
  /** What it said of the image when it began. */
  readonly begun: JsonLine;
}

async function track(
  t: Scope,
  name: string,
  { port = receiver.port, args = [] }: { readonly port?: number; readonly args?: readonly string[] } = {},
): Promise<Tracker> {
  const to = ["--send", `127.0.0.1:${String(port)}/${name}`, "--tls", pki.send, "--every", "0"];
  const where = ["--nbd", `unix:${join(dir, `${name}.sock`)}`];
  const child = new CliProcess(t, ["track", imageOf(name), ...where, ...to, "--json", ...args]);
  const begun = await child.waitForEvent("listening");
  return { child, begun, uri: String(begun["uri"]) };
}

function done({ child }: Tracker): readonly JsonLine[] {
  return child.lines.filter(({ event }) => event === "done");
}

/** The end of the first cycle that began after it is called; `count` 1: of the one under way. */
async function nextCycle(tracker: Tracker, count = 2): Promise<JsonLine> {
  const before = done(tracker).length;
  await tracker.child.waitFor(() => done(tracker).length >= before + count);
  return done(tracker)[before + count - 1] ?? {};
}

/** One run of the tracker: its first cycles. */
async function run(
  t: Scope,
  name: string,
  cycles = 1,
): Promise<{ readonly begun: JsonLine; readonly done: readonly JsonLine[] }> {
  const tracker = await track(t, name);
  await nextCycle(tracker, cycles);
  expect(await tracker.child.stop()).toBe(0);
  return { begun: tracker.begun, done: done(tracker).slice(0, cycles) };
}

function guest(uri: string, commands: readonly string[]): void {
  const { code, stdout, stderr } = runTool("qemu-io", ["-f", "raw", uri], { input: `${commands.join("\n")}\nq\n` });
  expect(code, stdout + stderr).toBe(0);
  expect(stdout + stderr).not.toMatch(/failed|error/i);
}

/** The newest point equals the image, which nobody writes to now. */
async function expectEqual(t: Scope, name: string): Promise<void> {
  const same = await replicate(t, ["compare", imageOf(name), `${receiver.storeDir}/${name}@latest`]);
  expect(same.code, same.stdout + same.stderr).toBe(0);
}

async function expectPoint(t: Scope, name: string, point: number, content: string): Promise<void> {
  const restored = join(dir, `${name}-${String(point)}.restored`);
  const result = await replicate(t, ["restore", "--store", receiver.storeDir, `${name}@${String(point)}`, restored]);
  expect(result.code, result.stdout + result.stderr).toBe(0);
  expect(cmpFiles(restored, content)).toBeUndefined();
}

test("C-25: an image that was lengthened, then cut, between two runs: compared once, and older points keep their size", async (t) => {
  const image = imageOf("resized");
  makeNoise(image, 24 * MIB, 25);
  await run(t, "resized");
  const before = join(dir, "resized-before.raw");
  writeFileSync(before, readFileSync(image));

  truncateSync(image, 40 * MIB);
  writeAt(image, [[30 * MIB, noise(251, MIB)]]);
  const grown = await run(t, "resized", 2);
  expect(grown.begun).toMatchObject({ changes: "scan", reason: "disk-size-differs" });
  expect(grown.done[0]).toMatchObject({ reason: "scan" });
  expect(grown.done[1]).toMatchObject({ reason: "bitmap", bytesRead: 0 });
  await expectEqual(t, "resized");
  const points = (await replicate(t, ["points", "--store", receiver.storeDir, "resized", "--json"])).lines;
  const newest = Number(points.filter(({ point }) => point !== undefined).at(-1)?.["point"]);
  const long = join(dir, "resized-long.raw");
  writeFileSync(long, readFileSync(image));

  truncateSync(image, 16 * MIB);
  const refusing = await track(t, "resized");
  expect(refusing.begun).toMatchObject({ changes: "scan", reason: "disk-size-differs" });
  await refusing.child.waitFor(() => refusing.child.stderr.includes("size-shrunk"));
  expect(done(refusing)).toEqual([]);
  expect(await refusing.child.stop()).toBe(0);
  const leave = await track(t, "resized", { args: ["--allow-shrink"] });
  expect(await nextCycle(leave, 1)).toMatchObject({ reason: "scan" });
  expect(await nextCycle(leave)).toMatchObject({ reason: "bitmap", bytesRead: 0 });
  expect(await leave.child.stop()).toBe(0);
  await expectEqual(t, "resized");
  await expectPoint(t, "resized", 1, before);
  await expectPoint(t, "resized", newest, long);
});

test("C-25: an image that is lengthened while it is tracked is sent as it was opened, and whole from the next start on", async (t) => {
  needTools(t, "qemu-io");
  const image = imageOf("longer");
  makeNoise(image, 8 * MIB, 26);
  const tracker = await track(t, "longer");
  await nextCycle(tracker, 1);
  truncateSync(image, 12 * MIB);
  writeAt(image, [[9 * MIB, noise(261, MIB)]]);
  guest(tracker.uri, ["write -P 7 1M 64k", "flush"]);
  expect(await nextCycle(tracker)).toMatchObject({ reason: "bitmap" });
  expect(await tracker.child.stop()).toBe(0);
  const next = await run(t, "longer");
  expect(next.begun).toMatchObject({ changes: "scan", reason: "disk-size-differs" });
  await expectEqual(t, "longer");
});

describe("C-28, C-32: a journal that a crash left", () => {
  const damages: Readonly<Record<string, (bytes: Buffer) => Buffer>> = {
    "cut to half": (bytes) => bytes.subarray(0, bytes.length >> 1),
    "cut to nothing": (bytes) => bytes.subarray(0, 0),
    "with a flipped byte": (bytes) => {
      // In the header in force: the older of the two must not be taken for it.
      for (const at of [40, 4_136]) bytes[at] = (bytes[at] ?? 0) ^ 1;
      return bytes;
    },
  };
  for (const [name, damage] of Object.entries(damages)) {
    test(`${name}: one comparison and then deltas, without anybody's help`, async (t) => {
      needTools(t, "qemu-io");
      const disk = `damaged-${name.replaceAll(" ", "-")}`;
      makeNoise(imageOf(disk), 8 * MIB, 28);
      const first = await track(t, disk);
      await nextCycle(first, 1);
      guest(first.uri, ["write -P 7 1M 64k", "flush"]);
      await first.child.kill();
      const journal = `${imageOf(disk)}.rbj`;
      writeFileSync(journal, damage(readFileSync(journal)));
      const second = await track(t, disk);
      expect(second.begun).toMatchObject({ changes: "scan", reason: "journal-damaged" });
      expect(String(second.begun["words"])).toMatch(/is damaged: /);
      await nextCycle(second, 1);
      for (let cycle = 0; cycle < 4; cycle++) {
        guest(second.uri, [`write -P ${String(cycle + 1)} ${String(cycle)}M 64k`, "flush"]);
        await nextCycle(second);
      }
      expect(await second.child.stop()).toBe(0);
      const [compared, ...deltas] = done(second);
      // Compared, and not copied.
      expect(compared).toMatchObject({ reason: "scan", bytesRead: expect.any(Number) });
      expect(Number(compared?.["bytesWire"])).toBeLessThan(MIB);
      expect(deltas.length).toBeGreaterThanOrEqual(4);
      for (const delta of deltas) {
        expect(delta).toMatchObject({ reason: "bitmap" });
        expect(delta["bytesRead"]).toBeLessThan(MIB);
      }
      await expectEqual(t, disk);
    });
  }
});

test("C-29: what was written while nobody tracked is found, though the time of the last change was set back", async (t) => {
  const image = imageOf("behind");
  makeNoise(image, 8 * MIB, 29);
  await run(t, "behind");
  const { atime, mtime } = statSync(image);
  writeAt(image, [[3 * MIB, noise(291, 4 * KIB)]]);
  utimesSync(image, atime, mtime);
  expect(statSync(image).mtimeMs).toBeCloseTo(mtime.getTime(), 0);
  const { begun, done: cycles } = await run(t, "behind");
  expect(begun).toMatchObject({ changes: "scan", reason: "image-changed" });
  expect(cycles[0]).toMatchObject({ reason: "scan" });
  await expectEqual(t, "behind");
});

describe("C-28, C-31: a cycle that is stopped half way leaves nothing that is in the way of the next", () => {
  for (const share of [0.1, 0.5, 0.9]) {
    test(`at ${String(share * 100)} %: SIGINT, SIGKILL, a delta, a comparison`, async (t) => {
      const disk = `stopped-${String(share * 100)}`;
      const image = imageOf(disk);
      const bytes = 8 * MIB;
      const proxy = await startProxy(t, receiver.port);
      for (const [nth, signal] of (["SIGINT", "SIGKILL"] as const).entries()) {
        makeNoise(image, bytes, 31 + nth);
        const { child } = await track(t, disk, { port: proxy.port, args: ["--codec", "none"] });
        const to = proxy.bytesUp + share * bytes;
        proxy.holdUp(to);
        await proxy.passedUp(to);
        child.signal(signal);
        expect(await child.exited).toBe(signal === "SIGINT" ? 0 : signal);
        proxy.holdUp(undefined);
        proxy.cut();
      }
      const { done: cycles } = await run(t, disk, 2);
      expect(cycles[1]).toMatchObject({ reason: "bitmap" });
      await expectEqual(t, disk);
      // Asked to look at everything.
      rmSync(`${image}.rbj`);
      const whole = await run(t, disk);
      expect(whole.begun).toMatchObject({ changes: "scan", reason: "journal-new" });
      expect(whole.done[0]).toMatchObject({ reason: "scan" });
      await expectEqual(t, disk);
      for (const left of [`${image}.rbj.spill`, `${image}.rbk.next.new`, join(dir, `${disk}.sock`)]) {
        expect(statSync(left, { throwIfNoEntry: false }), left).toBeUndefined();
      }
    });
  }
});

test("C-59: a first copy is killed at 40 %, and the journal goes before the next: what arrived is found, the rest is sent", async (t) => {
  const image = imageOf("forgotten");
  const bytes = 24 * MIB;
  makeNoise(image, bytes, 59);
  const proxy = await startProxy(t, receiver.port);
  const { child } = await track(t, "forgotten", { port: proxy.port, args: ["--codec", "none"] });
  const to = proxy.bytesUp + 0.4 * bytes;
  proxy.holdUp(to);
  await proxy.passedUp(to);
  expect(await child.kill()).toBe("SIGKILL");
  proxy.holdUp(undefined);
  proxy.cut();
  const diskDir = join(receiver.storeDir, "disks/forgotten");
  await until(() => existsSync(join(diskDir, "session.json")));
  const left = differences(image, join(diskDir, "replica.raw"));
  expect(left.blocks).toBeLessThan(bytes / BLOCK);
  // The epoch the cycle was cut in, and what the image looked like then.
  for (const name of readdirSync(dir)) if (/^forgotten\.raw\.rb[jk]/.test(name)) rmSync(join(dir, name));
  const { begun, done: cycles } = await run(t, "forgotten", 2);
  expect(begun).toMatchObject({ changes: "scan", reason: "journal-new" });
  expect(cycles).toMatchObject([{ point: 1 }, { point: 2, reason: "bitmap" }]);
  expect(Number(cycles[0]?.["bytesWire"])).toBeLessThan(left.blocks * BLOCK * 1.05 + digestBytes(left));
  await expectEqual(t, "forgotten");
});

test("C-34: more is written than the disk has while the receiver is away: the journal stays within its bound, and all is well when it is back", async (t) => {
  needTools(t, "qemu-io");
  const image = imageOf("away");
  const sizeBytes = 16 * MIB;
  makeSparse(image, sizeBytes);
  const proxy = await startProxy(t, receiver.port);
  const tracker = await track(t, "away", { port: proxy.port });
  await nextCycle(tracker, 1);
  proxy.setBlackhole(true);
  proxy.cut();
  const random = seededRandom(34);
  const journal = `${image}.rbj`;
  let written = 0;
  for (let turn = 0; written < sizeBytes * 1.2; turn++) {
    const commands = Array.from({ length: 60 }, () => {
      const length = 4 * KIB * (1 + (random() % 16));
      written += length;
      const offset = (random() % ((sizeBytes - length) / 512)) * 512;
      return `write -q -P ${String(1 + (turn % 250))} ${String(offset)} ${String(length)}`;
    });
    guest(tracker.uri, [...commands, "flush"]);
    expect(statSync(journal).size).toBeLessThanOrEqual(journalBytesMax({ sizeBytes, blockBytes: 64 * KIB }));
  }
  proxy.setBlackhole(false);
  proxy.cut();
  await nextCycle(tracker);
  expect(done(tracker).at(-1)).toMatchObject({ reason: "bitmap" });
  expect(await tracker.child.stop()).toBe(0);
  await expectEqual(t, "away");
});

test("C-83: a link much too slow for what is written: the lag is told, nothing piles up, and it catches up when the load ends", async (t) => {
  const image = imageOf("slow");
  const sizeBytes = 32 * MIB;
  makeSparse(image, sizeBytes);
  const tracker = await track(t, "slow", { args: ["--every", "1s", "--rate", "2MiB"] });
  await nextCycle(tracker, 1);
  const lags = (): readonly JsonLine[] => tracker.child.lines.filter(({ event }) => event === "behind");
  const load = await Load.start(t, { uri: tracker.uri, random: seededRandom(83), bytes: sizeBytes });
  await tracker.child.waitFor(() => lags().length >= 2);
  const [first, second] = lags().map(({ lagSeconds }) => Number(lagSeconds));
  expect(first).toBeGreaterThanOrEqual(2);
  expect(second).toBeGreaterThanOrEqual(2 * (first ?? 0) - 1);
  await load.stop();
  const before = done(tracker).length;
  await tracker.child.waitForEvent("caught-up");
  // Of what is written no more nothing is sent again.
  await nextCycle(tracker);
  expect(done(tracker).at(-1)).toMatchObject({ reason: "bitmap", bytesChanged: 0 });
  const sent = done(tracker).slice(before);
  expect(sent.reduce((sum, { bytesChanged }) => sum + Number(bytesChanged), 0)).toBeLessThanOrEqual(2 * sizeBytes);
  expect(statSync(`${image}.rbj`).size).toBeLessThanOrEqual(journalBytesMax({ sizeBytes, blockBytes: 64 * KIB }));
  expect(await tracker.child.stop()).toBe(0);
  await expectEqual(t, "slow");
});

test("C-35: no room beside the journal: the guest goes on, points are made, it is said once; with room all is as before", async (t) => {
  needTools(t, "qemu-io", "mount", "umount");
  if (process.getuid?.() !== 0) t.skip("only root mounts a small file system");
  const small = tempDir(suite);
  const mounted = runTool("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", small]);
  if (mounted.code !== 0) t.skip(`a tmpfs cannot be mounted here: ${mounted.stderr}`);
  t.onTestFinished(() => void runTool("umount", ["-l", small]));
  makeNoise(imageOf("full"), 16 * MIB, 35);
  const args = ["--journal", join(small, "vm.rbj")];
  const tracker = await track(t, "full", { args });
  await nextCycle(tracker, 1);
  const filler = join(small, "filler");
  for (let free = 1; free > 0; ) {
    const fill = runTool("dd", ["if=/dev/zero", `of=${filler}`, "bs=4k", "oflag=append", "conv=notrunc"]);
    free = fill.code === 0 ? 1 : 0;
  }
  for (let turn = 0; turn < 3; turn++) {
    guest(
      tracker.uri,
      [0, 5, 9, 13].flatMap((at) => [`write -P ${String(turn + 1)} ${String(at)}M 64k`]).concat("flush"),
    );
    await nextCycle(tracker);
  }
  await tracker.child.waitFor(() => /rbj cannot be written \(ENOSPC\)/.test(tracker.child.stderr));
  expect(tracker.child.stderr.match(/rbj cannot be written/g)).toHaveLength(1);
  rmSync(filler);
  // With the next cycle that has something to send.
  guest(tracker.uri, ["write -P 9 3M 64k", "flush"]);
  await tracker.child.waitFor(() => /the journal can be written again/.test(tracker.child.stderr));
  await nextCycle(tracker);
  expect(await tracker.child.stop()).toBe(0);
  await expectEqual(t, "full");
  const again = await track(t, "full", { args });
  expect(again.begun).toMatchObject({ changes: "exact" });
  await nextCycle(again);
  expect(done(again).at(-1)).toMatchObject({ reason: "bitmap", bytesRead: 0 });
  expect(await again.child.stop()).toBe(0);
});

test("C-37: a hole that is made, then filled or not, within a cycle and between two", async (t) => {
  needTools(t, "qemu-io");
  makeSparse(imageOf("holes"), 2 * MIB);
  const tracker = await track(t, "holes");
  guest(tracker.uri, ["write -P 1 128k 128k", "flush"]);
  await nextCycle(tracker);
  const steps = [
    // Between two cycles: a hole where data was, and data behind it.
    ["discard 128k 128k", "write -P 2 384k 128k"],
    ["write -z -u 384k 64k"],
    // Within one: made and filled; filled and made; made, filled in part.
    ["write -P 3 640k 128k"],
    ["discard 640k 128k", "write -P 4 640k 128k"],
    ["write -P 5 896k 128k", "discard 896k 128k"],
    ["write -z -u 640k 128k", "write -P 6 700k 4k", "write -z 452k 7k"],
  ];
  for (const commands of steps) {
    guest(tracker.uri, [...commands, "flush"]);
    expect(await nextCycle(tracker)).toMatchObject({ reason: "bitmap" });
    await expectEqual(t, "holes");
  }
  expect(await tracker.child.stop()).toBe(0);
});

describe("C-94: a point is what its commands made it", () => {
  const commands: Readonly<Record<string, readonly [freeze: string, thaw: string, is: "crash" | "application"]>> = {
    "the freeze fails": ["exit 1", "true", "crash"],
    "the freeze hangs": ["sleep 600", "true", "crash"],
    "the freeze speaks, and succeeds": ["echo careful >&2", "true", "application"],
    "the thaw fails": ["true", "exit 3", "crash"],
    "the thaw hangs": ["true", "sleep 600", "crash"],
  };
  for (const [name, [freeze, thaw, is]] of Object.entries(commands)) {
    test(`${name}: ${is}`, async (t) => {
      const disk = `quiet-${name.replaceAll(/\W+/g, "-")}`;
      makeNoise(imageOf(disk), MIB, 94);
      const calls = join(dir, `${disk}.txt`);
      const limit = freeze.startsWith("sleep") || thaw.startsWith("sleep") ? "1s" : "60s";
      const args = ["--freeze", freeze, "--thaw", `echo thaw >> ${calls}; ${thaw}`, "--freeze-limit", limit];
      const tracker = await track(t, disk, { args });
      // The next is made as well.
      for (let cycle = 0; cycle < 2; cycle++) expect(await nextCycle(tracker, 1)).toMatchObject({ consistency: is });
      expect(await tracker.child.stop()).toBe(0);
      expect(readFileSync(calls, "utf8").split("\n").length).toBeGreaterThan(2);
      const points = await replicate(t, ["points", "--store", receiver.storeDir, disk, "--json"]);
      expect(points.lines.find(({ point }) => point === 1)).toMatchObject({ consistency: is });
      const { stderr } = tracker.child;
      if (is === "crash") expect(stderr).toMatch(/could not be (frozen|thawed).*(ended with|longer than)/);
      else expect(stderr).not.toMatch(/could not be/);
      await expectEqual(t, disk);
    });
  }
});
