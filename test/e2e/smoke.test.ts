/** The built command, as a user runs it, once through: certificates, initial copy, delta, nothing to do, and the exit codes. */
import { copyFileSync, mkdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import {
  changeImage,
  cmpFiles,
  fsck,
  makeExt4,
  makeImage,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const verbs = [
  ...["pki", "recv", "send", "track", "adopt", "disks", "points", "restore", "export", "verify", "prune", "keep"],
  ...["hold", "release", "compact", "repair", "rollback", "compare", "inspect"],
];
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test("initial copy, delta, nothing to do", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  // Not a multiple of the block, so that the last one is short.
  makeImage(image, (8 << 20) + 5 * 4096);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const target = { image, port: receiver.port, disk: "vm1", tls: pki.send };
  const replica = replicaPath(receiver.storeDir, "vm1");

  const initial = await send(t, target);
  expect(initial.error).toBeUndefined();
  expect(initial.code).toBe(0);
  expect(initial.done).toMatchObject({ disk: "vm1", reason: "initial" });
  expect(cmpFiles(image, replica)).toBeUndefined();

  changeImage(image, 20, 42);
  const delta = await send(t, target);
  expect(delta.code, delta.stderr).toBe(0);
  expect(delta.done).toMatchObject({ reason: "scan", bytesChanged: 20 * 4096 });
  expect(delta.done?.point).toBe((initial.done?.point ?? 0) + 1);
  expect(delta.done?.root).not.toBe(initial.done?.root);
  expect(delta.done?.bytesWire).toBeLessThan(initial.done?.bytesWire ?? 0);
  expect(cmpFiles(image, replica)).toBeUndefined();

  const same = await send(t, target);
  expect(same.code, same.stderr).toBe(0);
  expect(same.done).toMatchObject({ bytesChanged: 0, root: delta.done?.root });

  const points = receiver.lines.filter((line) => line.event === "point" && line["disk"] === "vm1");
  expect(points.map((line) => line["point"])).toEqual([initial, delta, same].map(({ done }) => done?.point));
  expect(await receiver.stop()).toBe(0);

  const disks = await replicate(t, ["disks", "--store", receiver.storeDir, "--json"]);
  expect(disks.code, disks.stderr).toBe(0);
  expect(disks.lines).toMatchObject([{ disk: "vm1", sizeBytes: (8 << 20) + 5 * 4096 }]);
});

test("a file system arrives whole, and zeros take no space", async (t) => {
  needTools(t, "mke2fs", "e2fsck");
  const dir = tempDir(t);
  const tree = join(dir, "tree");
  mkdirSync(tree);
  for (let file = 0; file < 50; file++) writeFileSync(join(tree, `file-${String(file)}`), "text ".repeat(file * 100));
  const image = join(dir, "disk.ext4");
  makeExt4(image, 64, tree);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "fs", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  const replica = replicaPath(receiver.storeDir, "fs");
  expect(cmpFiles(image, replica)).toBeUndefined();
  expect(fsck(replica)).toMatchObject({ clean: true });
  expect(result.done?.bytesWire).toBeLessThan(16 << 20);
});

describe("exit codes", () => {
  test("2: a flag that does not exist, a verb that does not exist, a value missing", async (t) => {
    for (const args of [["send", "--no-such-flag"], ["no-such-verb"], ["recv"], ["send", "image-only"]]) {
      const { code, stderr } = await replicate(t, args);
      expect(code, args.join(" ")).toBe(2);
      expect(stderr).not.toMatch(/\n\s+at /);
    }
  });

  test("1: an image that does not exist is named", async (t) => {
    const dir = tempDir(t);
    const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
    const image = join(dir, "missing.raw");
    const result = await send(t, { image, port: receiver.port, disk: "vm1", tls: pki.send });
    expect(result.code).toBe(1);
    expect(result.error).toMatchObject({ code: "image-not-found", action: "never" });
    expect(result.error?.message).toContain("missing.raw");
  });

  test("3: compare finds what differs; 0: nothing does", async (t) => {
    const dir = tempDir(t);
    const [a, b] = [join(dir, "a.raw"), join(dir, "b.raw")];
    makeImage(a, 1 << 20);
    copyFileSync(a, b);
    expect((await replicate(t, ["compare", a, b])).code).toBe(0);
    changeImage(b, 1, 3);
    expect((await replicate(t, ["compare", a, b])).code).toBe(3);
  });

  test("4: a source that shrank is refused and the replica kept", async (t) => {
    const dir = tempDir(t);
    const image = join(dir, "disk.raw");
    makeImage(image, 2 << 20);
    copyFileSync(image, join(dir, "before.raw"));
    const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
    const target = { image, port: receiver.port, disk: "vm1", tls: pki.send };
    expect((await send(t, target)).code).toBe(0);
    truncateSync(image, 1 << 20);
    const refused = await send(t, target);
    expect(refused.code).toBe(4);
    expect(refused.error).toMatchObject({ code: "size-shrunk" });
    expect(cmpFiles(join(dir, "before.raw"), replicaPath(receiver.storeDir, "vm1"))).toBeUndefined();
  });

  test("1: a sender of another authority gets nowhere", async (t) => {
    const dir = tempDir(t);
    const other = await makePki(t, join(dir, "other"));
    const image = join(dir, "disk.raw");
    makeImage(image, 1 << 20);
    const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
    const result = await send(t, { image, port: receiver.port, disk: "vm1", tls: other.send });
    expect(result.code).toBe(1);
    expect(result.error?.action).toBe("never");
    rmSync(other.dir, { recursive: true });
  });
});

describe("help", () => {
  test("replicate --help names every verb", async (t) => {
    const { code, stdout } = await replicate(t, ["--help"]);
    expect(code).toBe(0);
    const listed = [...stdout.matchAll(/^ {2}(\w+) {2,}\S/gm)].map(([, verb]) => verb);
    expect(new Set(listed)).toEqual(new Set(verbs));
  });

  test.each(verbs)("%s --help has an example, and a line for every option", async (verb) => {
    const { code, stdout } = await replicate(suite, [verb, "--help"]);
    expect(code).toBe(0);
    const [usage = "", examples = ""] = stdout.split(/^Examples?:$/m);
    expect(examples).toMatch(new RegExp(`^ {2}(sudo )?replicate ${verb} `, "m"));
    const named = new Set(usage.split("\n\n")[0]?.match(/--[a-z][a-z-]+/g));
    const explained = new Set(
      [...usage.matchAll(/^ {2}--.*?(?= {2}|$)/gm)].flatMap(([words]) => words.match(/--[a-z][a-z-]+/g) ?? []),
    );
    expect([...named].filter((option) => !explained.has(option))).toEqual([]);
  });

  test("--version is the package's", async (t) => {
    const { code, stdout } = await replicate(t, ["--version"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/\d+\.\d+\.\d+/);
  });
});
