/** `replicate track`: an image in use over NBD, sent cycle by cycle, through kills of every side. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { BLOCK, makeSparse, MIB, noise, writeAt } from "../content.ts";
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
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";

const suite = suiteScope();
let pki: Pki;
let receiver: Receiver;
let dir: string;

beforeAll(async () => {
  dir = tempDir(suite);
  pki = await makePki(suite, join(dir, "pki"));
  receiver = await startReceiver(suite, { storeDir: join(dir, "store"), tls: pki.recv });
});

interface Tracker {
  readonly child: CliProcess;
  readonly uri: string;
  /** What it said of the image when it began. */
  readonly begun: JsonLine;
}

async function track(t: Scope, name: string, ...args: readonly string[]): Promise<Tracker> {
  const { port } = receiver;
  const to = ["--send", `127.0.0.1:${String(port)}/${name}`, "--tls", pki.send];
  const where = ["--nbd", `unix:${join(dir, `${name}.sock`)}`];
  const child = new CliProcess(t, ["track", imageOf(name), ...where, ...to, "--json", ...args]);
  const begun = await child.waitForEvent("listening");
  return { child, begun, uri: String(begun["uri"]) };
}

const imageOf = (name: string): string => join(dir, `${name}.raw`);

/** Cycles that ended so far. */
function cycles({ child }: Tracker): readonly JsonLine[] {
  return child.lines.filter(({ event }) => event === "done");
}

/** The first cycle that began after it is called. */
async function nextCycle(tracker: Tracker, more = 2): Promise<JsonLine> {
  const before = cycles(tracker).length;
  await tracker.child.waitFor(() => cycles(tracker).length >= before + more);
  return cycles(tracker)[before + more - 1] ?? {};
}

function guest(uri: string, ...commands: readonly string[]): void {
  const { code, stdout, stderr } = runTool("qemu-io", ["-f", "raw", ...commands.flatMap((text) => ["-c", text]), uri]);
  expect(code, stdout + stderr).toBe(0);
}

/** The newest point equals the image, which nobody writes to now. */
async function expectEqual(t: Scope, name: string): Promise<void> {
  const same = await replicate(t, ["compare", imageOf(name), `${receiver.storeDir}/${name}@latest`]);
  expect(same.code, same.stdout + same.stderr).toBe(0);
}

test("a machine writes, points are made, and each delta reads what it wrote; also after a stop and a kill -9", async (t) => {
  needTools(t, "qemu-io");
  makeSparse(imageOf("vm"), 300 * MIB + 512);
  writeAt(imageOf("vm"), [[0, noise(1, 5 * MIB)]]);
  const first = await track(t, "vm", "--every", "0");
  expect(first.begun).toMatchObject({ changes: "scan", reason: "journal-new" });
  await nextCycle(first, 1);
  guest(first.uri, "write -P 7 100M 3M", "write -z 1M 1M", "discard 2M 1M", "flush");
  await nextCycle(first);
  await expectEqual(t, "vm");
  expect(cycles(first).at(-1)).toMatchObject({ reason: "bitmap" });
  expect(await first.child.stop()).toBe(0);

  const second = await track(t, "vm", "--every", "0");
  expect(second.begun).toMatchObject({ changes: "exact" });
  await nextCycle(second, 1);
  expect(cycles(second)[0]).toMatchObject({ reason: "bitmap", bytesRead: 0 });
  guest(second.uri, "write -P 8 200M 64k", "flush");
  await second.child.kill();

  const third = await track(t, "vm", "--every", "0");
  expect(third.begun).toMatchObject({ changes: "exact" });
  await nextCycle(third, 1);
  const report = cycles(third)[0] ?? {};
  expect(report["reason"]).toBe("bitmap");
  // After a kill all that was hot counts: regions of 4 MiB.
  expect(report["bytesRead"]).toBeLessThan(20 * MIB);
  await expectEqual(t, "vm");
  expect(await third.child.stop()).toBe(0);
});

test("without --send it only tracks; a later sender knows what was written meanwhile", async (t) => {
  needTools(t, "nbdcopy", "qemu-io");
  const image = imageOf("later");
  makeSparse(image, 64 * MIB);
  const once = await track(t, "later", "--every", "0");
  await nextCycle(once, 1);
  await once.child.stop();
  const socket = `unix:${join(dir, "later.sock")}`;
  const child = new CliProcess(t, ["track", image, "--nbd", socket, "--json"]);
  const { uri } = await child.waitForEvent("listening");
  const other = join(dir, "other.raw");
  makeSparse(other, 64 * MIB);
  writeAt(other, [[10 * MIB, noise(3, 3 * BLOCK)]]);
  const copied = runTool("nbdcopy", ["--flush", other, String(uri)]);
  expect(copied.code, copied.stderr).toBe(0);
  // Nobody else may track it meanwhile.
  const refused = await replicate(t, ["track", image, "--nbd", `unix:${join(dir, "x.sock")}`, "--json"]);
  expect(refused.code).toBe(1);
  expect(refused.lines.at(-1)).toMatchObject({ event: "error", code: "image-busy" });
  expect(await child.stop()).toBe(0);
  expect(cmpFiles(image, other)).toBeUndefined();
  const again = await track(t, "later", "--every", "0");
  expect(again.begun).toMatchObject({ changes: "exact" });
  await nextCycle(again, 1);
  await expectEqual(t, "later");
  await again.child.stop();
});

test("an image that was touched past the tracker, or whose journal is another one, is compared once", async (t) => {
  const image = imageOf("touched");
  makeSparse(image, 64 * MIB);
  writeAt(image, [[0, noise(4, MIB)]]);
  const cycle = async (): Promise<{ readonly begun: JsonLine; readonly done: JsonLine }> => {
    const tracker = await track(t, "touched", "--every", "0");
    await nextCycle(tracker, 1);
    await tracker.child.stop();
    await expectEqual(t, "touched");
    return { begun: tracker.begun, done: cycles(tracker)[0] ?? {} };
  };
  await cycle();
  const copy = `${image}.rbj-old`;
  copyFileSync(`${image}.rbj`, copy);
  writeAt(image, [[MIB, noise(5, 4_096)]]);
  const touched = await cycle();
  expect(touched.begun).toMatchObject({ changes: "scan", reason: "image-changed" });
  expect(touched.done).toMatchObject({ reason: "scan" });
  expect((await cycle()).begun).toMatchObject({ changes: "exact" });
  copyFileSync(copy, `${image}.rbj`);
  const older = await cycle();
  expect(older.begun).toMatchObject({ changes: "scan", reason: "image-changed" });
  rmSync(`${image}.rbk`);
  const stateless = await cycle();
  expect(stateless.begun).toMatchObject({ changes: "exact" });
  expect(stateless.done).toMatchObject({ reason: "scan" });
  expect((await cycle()).done).toMatchObject({ reason: "bitmap", bytesRead: 0 });
  expect(statSync(`${image}.rbj`).mode & 0o777).toBe(0o600);
});

test("a journal that cannot be made is told, and the image is served all the same", async (t) => {
  makeSparse(imageOf("nowhere"), MIB);
  const tracker = await track(t, "nowhere", "--every", "0", "--journal", join(dir, "missing/vm.rbj"));
  expect(tracker.begun).toMatchObject({ changes: "scan", reason: "journal-write-failed" });
  expect(String(tracker.begun["words"])).toMatch(/missing\/vm\.rbj cannot be made \(ENOENT\)/);
  expect(await tracker.child.stop()).toBe(0);
});

test("a machine of two disks: cut at one moment, frozen for it, audited", async (t) => {
  needTools(t, "qemu-io");
  for (const name of ["sys", "data"]) makeSparse(imageOf(name), 32 * MIB);
  const hooks = join(dir, "hooks.txt");
  const disks = ["sys", "data"].flatMap((name) => ["--disk", `${name}=${imageOf(name)}`]);
  const to = ["--send", `127.0.0.1:${String(receiver.port)}`, "--tls", pki.send, "--every", "0", "--audit", "10%"];
  const quiet = ["--freeze", `echo freeze >> ${hooks}`, "--thaw", `echo thaw >> ${hooks}`];
  const journals = join(dir, "journals");
  mkdirSync(journals);
  const where = ["--nbd", `unix:${join(dir, "pair.sock")}`, "--journal", journals];
  const child = new CliProcess(t, ["track", "pair", ...disks, ...where, ...to, ...quiet, "--json"]);
  await child.waitForEvent("listening");
  const tracker = { child, uri: "", begun: {} };
  await nextCycle(tracker, 2);
  guest(`nbd+unix:///data?socket=${join(dir, "pair.sock")}`, "write -P 7 1M 64k", "flush");
  await nextCycle(tracker, 4);
  expect(cycles(tracker).at(-1)).toMatchObject({ reason: "bitmap", consistency: "application" });
  expect(await child.stop()).toBe(0);
  expect(readdirSync(journals).filter((name) => name.endsWith(".rbj"))).toEqual(["data.rbj", "sys.rbj"]);
  for (const name of ["sys", "data"]) expect(existsSync(`${imageOf(name)}.rbj`)).toBe(false);
  const points = await replicate(t, ["points", "--store", receiver.storeDir, "pair.data", "--json"]);
  expect(points.lines.at(-1)).toMatchObject({ consistency: "application" });
  for (const name of ["sys", "data"]) {
    const same = await replicate(t, ["compare", imageOf(name), `${receiver.storeDir}/pair.${name}@latest`]);
    expect(same.code, same.stdout + same.stderr).toBe(0);
  }
  const calls = readFileSync(hooks, "utf8").trim().split("\n");
  expect(calls.every((call, nth) => call === ["freeze", "thaw"][nth % 2])).toBe(true);
});
