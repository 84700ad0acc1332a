/** The export of `replicate track` with clients that others made, while cycle after cycle is made of it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { MIB } from "../content.ts";
import {
  cmpFiles,
  makeImage,
  makePki,
  needTools,
  type Pki,
  type Receiver,
  replicaPath,
  runTool,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";
import { Tracker } from "./kit.ts";

const sizeBytes = 48 * MIB + 512;
const suite = suiteScope();
let pki: Pki;
let receiver: Receiver;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
  receiver = await startReceiver(suite, {
    storeDir: join(tempDir(suite), "store"),
    tls: pki.recv,
    args: ["--keep", "last=3"],
  });
});

interface Tracked {
  readonly tracker: Tracker;
  readonly dir: string;
  readonly image: string;
  readonly uri: string;
}

async function startTracked(t: TestContext, disk: string): Promise<Tracked> {
  const dir = tempDir(t);
  const image = join(dir, `${disk}.raw`);
  makeImage(image, sizeBytes, 11);
  const tracker = await Tracker.start(t, {
    ...{ image, socket: join(dir, "s"), to: `127.0.0.1:${String(receiver.port)}/${disk}`, tls: pki.send },
    args: ["--every", "0"],
  });
  await tracker.firstDone();
  return { tracker, dir, image, uri: tracker.uri };
}

function tool(name: string, ...args: readonly string[]): string {
  const { code, stdout, stderr } = runTool(name, args);
  expect(code, `${name} ${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
  return stdout;
}

/** The point of a cycle that begins now has what the image has; it was a delta. */
async function expectSent({ tracker, image }: Tracked, disk: string): Promise<void> {
  expect(await tracker.nextDone(2)).toMatchObject({ reason: "bitmap" });
  expect(cmpFiles(image, replicaPath(receiver.storeDir, disk))).toBeUndefined();
}

test("nbdinfo: what is told of the export, by its name and without", async (t) => {
  needTools(t, "nbdinfo", "qemu-img");
  const { tracker, uri, image } = await startTracked(t, "info");
  const info = JSON.parse(tool("nbdinfo", "--json", uri)) as { readonly exports: readonly Record<string, unknown>[] };
  expect(info).toMatchObject({ protocol: "newstyle-fixed", structured: true });
  expect(info.exports[0]).toMatchObject({
    "export-size": sizeBytes,
    is_read_only: false,
    can_flush: true,
    can_fua: true,
    can_trim: true,
    can_zero: true,
    can_multi_conn: true,
    contexts: ["base:allocation"],
  });
  expect(Number(tool("nbdinfo", "--size", uri.replace(/\/\/\/[^?]*/, "///")))).toBe(sizeBytes);
  const map = JSON.parse(tool("qemu-img", "map", "--output=json", "-f", "raw", uri)) as readonly unknown[];
  const same = JSON.parse(tool("qemu-img", "map", "--output=json", "-f", "raw", image)) as readonly unknown[];
  const shape = (each: readonly unknown[]): unknown =>
    (each as readonly Record<string, unknown>[]).map(({ start, length, zero, data }) => ({
      start,
      length,
      zero,
      data,
    }));
  expect(shape(map)).toEqual(shape(same));
  expect(await tracker.child.stop()).toBe(0);
});

test("nbdcopy in and out, with several connections and requests of several sizes", async (t) => {
  needTools(t, "nbdcopy");
  const tracked = await startTracked(t, "copied");
  const { dir, image, uri, tracker } = tracked;
  for (const size of ["4096", "262144", "8388608"]) {
    const other = join(dir, "other.raw");
    makeImage(other, sizeBytes, Number(size));
    tool("nbdcopy", "--flush", "--connections=4", `--request-size=${size}`, other, uri);
    expect(cmpFiles(image, other)).toBeUndefined();
    const out = join(dir, "out.raw");
    tool("nbdcopy", "--connections=4", `--request-size=${size}`, uri, out);
    expect(cmpFiles(out, other)).toBeUndefined();
    await expectSent(tracked, "copied");
  }
  expect(tracker.child.stderr).toBe("");
  expect(await tracker.child.stop()).toBe(0);
});

test("qemu-img: convert both ways, compare; qemu-io: writes, zeroes, discards, FUA, and what becomes holes", async (t) => {
  needTools(t, "qemu-img", "qemu-io");
  const tracked = await startTracked(t, "qemu");
  const { dir, image, uri, tracker } = tracked;
  const qcow2 = join(dir, "a.qcow2");
  tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow2);
  expect(tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, uri)).toContain("identical");
  const expected = readFileSync(image);
  expected.fill(0xa1, MIB, 3 * MIB);
  expected.fill(0xa2, 3 * MIB + 512, 3 * MIB + 1_024);
  for (const [from, to] of [
    [5 * MIB, 6 * MIB],
    [7 * MIB, 8 * MIB],
    [9 * MIB, 10 * MIB],
    [40 * MIB + 100 * 512, sizeBytes],
  ] as const) {
    expected.fill(0, from, to);
  }
  const commands = [
    ...["write -P 0xa1 1M 2M", "write -f -P 0xa2 3146240 512", "write -z 5M 1M", "write -z -u 7M 1M", "discard 9M 1M"],
    ...[`write -z -u ${String(40 * MIB + 100 * 512)} ${String(sizeBytes - 40 * MIB - 100 * 512)}`, "flush"],
    ...["read -P 0xa1 1M 2M", "read -P 0 5M 1M", "read -P 0 7M 1M", "read -P 0 9M 1M"],
  ];
  const said = tool("qemu-io", "-f", "raw", "-d", "unmap", ...commands.flatMap((text) => ["-c", text]), uri);
  expect(said).not.toMatch(/fail|error|mismatch/i);
  expect(readFileSync(image).equals(expected)).toBe(true);
  const hole = JSON.parse(
    tool("qemu-img", "map", "--output=json", "-f", "raw", `--start-offset=${String(7 * MIB)}`, "--max-length=1M", uri),
  ) as readonly Record<string, unknown>[];
  expect(hole).toEqual([expect.objectContaining({ zero: true, data: false })]);
  await expectSent(tracked, "qemu");
  tool("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, uri);
  expect(tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, image)).toContain("identical");
  await expectSent(tracked, "qemu");
  expect(tracker.child.stderr).toBe("");
  expect(await tracker.child.stop()).toBe(0);
});
