/** Several disks of one machine, cut together: sent, listed, restored and pruned from the command line. */
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { makeNoise, MIB, noise, writeAt } from "./content.ts";
import { cmpFiles, makePki, type Pki, type Receiver, replicate, startReceiver, suiteScope, tempDir } from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

interface Setting {
  readonly receiver: Receiver;
  readonly dir: string;
  readonly images: Readonly<Record<"root" | "data", string>>;
}

async function start(t: TestContext, args: readonly string[] = []): Promise<Setting> {
  const dir = tempDir(t);
  const images = { root: join(dir, "root.raw"), data: join(dir, "data.raw") };
  makeNoise(images.root, 3 * MIB, 1);
  makeNoise(images.data, 5 * MIB, 2);
  return { dir, images, receiver: await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv, args }) };
}

function sendMachine(t: TestContext, { receiver, images }: Setting, ...more: string[]) {
  const disks = Object.entries(images).flatMap(([name, image]) => ["--disk", `${name}=${image}`]);
  const place = `127.0.0.1:${receiver.port}`;
  return replicate(t, ["send", "web", place, ...disks, "--tls", pki.send, "--json", ...more]);
}

async function pointsOf(t: TestContext, { receiver }: Setting, disk: string) {
  const listed = await replicate(t, ["points", "--store", receiver.storeDir, disk, "--json"]);
  expect(listed.code).toBe(0);
  return listed.lines;
}

test("both disks get their point of one cut, and half a cut is only taken by its number", async (t) => {
  const setting = await start(t);
  const { receiver, dir, images } = setting;
  const store = ["--store", receiver.storeDir];
  const sent = await sendMachine(t, setting, "--label", "monday");
  expect(sent.code, sent.stderr).toBe(0);
  const { cut, points } = sent.lines.at(-1) ?? {};
  expect(sent.lines.at(-1)).toMatchObject({ event: "machine", machine: "web" });
  expect(points).toEqual({ "web.root": 1, "web.data": 1 });
  for (const disk of ["web.root", "web.data"]) {
    expect(await pointsOf(t, setting, disk)).toMatchObject([{ point: 1, label: "monday", cut, cutComplete: true }]);
  }

  // A point of one disk alone is newer; the cut stays what all of them can be taken from.
  const copies = Object.entries(images).map(([name, image]) => {
    const copy = join(dir, `${name}.copy`);
    copyFileSync(image, copy);
    return [name, copy] as const;
  });
  writeAt(images.root, [[100_000, noise(9, 5_000)]]);
  const alone = await replicate(t, ["send", images.root, `127.0.0.1:${receiver.port}/web.root`, "--tls", pki.send]);
  expect(alone.code, alone.stderr).toBe(0);
  const table = await replicate(t, ["points", ...store, "web.root"]);
  expect(table.stdout).toMatch(/CUT WITH/);
  expect(table.stdout).toMatch(/web\.data@1/);
  for (const [name, copy] of copies) {
    const out = join(dir, `${name}.restored`);
    const restored = await replicate(t, ["restore", ...store, `web.${name}@1`, out]);
    expect(restored.code, restored.stderr).toBe(0);
    expect(cmpFiles(out, copy)).toBeUndefined();
  }

  // Half of a cut is taken by its number only: here the other disk is gone.
  rmSync(join(receiver.storeDir, "disks/web.data"), { recursive: true });
  const half = await replicate(t, ["points", ...store, "web.root"]);
  expect(half.stdout).toMatch(/INCOMPLETE: no point of web\.data/);
  const newest = await replicate(t, ["restore", ...store, "web.root", join(dir, "newest")]);
  expect(newest.code, newest.stderr).toBe(0);
  expect(cmpFiles(join(dir, "newest"), images.root)).toBeUndefined();
  const monday = await replicate(t, ["restore", ...store, "web.root@monday", join(dir, "monday")]);
  expect(monday.code).toBe(1);
  expect(monday.stderr).toMatch(/no point with the label/);
  const byNumber = await replicate(t, ["restore", ...store, "web.root@1", join(dir, "by-number")]);
  expect(byNumber.code, byNumber.stderr).toBe(0);
});

test("policies keep and drop the points of a cut together", async (t) => {
  const setting = await start(t, ["--keep", "last=2"]);
  const { images, receiver } = setting;
  for (let round = 0; round < 4; round++) {
    writeAt(images.data, [[round * 50_000, noise(20 + round, 5_000)]]);
    const sent = await sendMachine(t, setting);
    expect(sent.code, sent.stderr).toBe(0);
  }
  // What the disk committed first could not drop before the other had its point, the next prune does.
  for (const disk of ["web.root", "web.data"]) {
    const pruned = await replicate(t, ["prune", "--store", receiver.storeDir, disk]);
    expect(pruned.code, pruned.stderr).toBe(0);
  }
  for (const disk of ["web.root", "web.data"]) {
    expect((await pointsOf(t, setting, disk)).map(({ point }) => point)).toEqual([3, 4]);
  }
});

test("wrong usage is said before anything is read", async (t) => {
  const usage = async (...args: string[]): Promise<string> => {
    const result = await replicate(t, ["send", ...args, "--tls", pki.send]);
    expect(result.code).toBe(2);
    return result.stderr;
  };
  const place = "127.0.0.1:1";
  expect(await usage("web", place, "--disk", "root")).toMatch(/is not NAME=IMAGE/);
  expect(await usage("web", place, "--disk", "a=x", "--disk", "a=y")).toMatch(/same name/);
  expect(await usage("Web", place, "--disk", "a=x")).toMatch(/cannot be the name of a disk/);
  expect(await usage("web", place, "--disk", "a=x", "--skip-empty")).toMatch(/does not go with --disk/);
  expect(await usage("web", place, "--disk", "a=x", "--to-dir", "y")).toMatch(/does not go with --disk/);
});
