/** Stores on file systems that cannot do everything, through FUSE: no holes can be punched, and some have no sparse files. Skipped, with the reason, where there are none. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, type TestContext, test } from "vitest";
import { attachLoop, whyNoLoop } from "../storage/scratch.ts";
import { allocated, GIB, makeSparse, MIB, noise, writeAt } from "./content.ts";
import {
  cmpFiles,
  finish,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  runTool,
  send,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

interface FileSystem {
  readonly name: string;
  readonly make: readonly string[];
  readonly mount: readonly string[];
  /** It wants a device, not a file. */
  readonly onDevice: boolean;
  readonly hasSparseFiles: boolean;
}

const fileSystems: readonly FileSystem[] = [
  { name: "NTFS", make: ["mkfs.ntfs", "-F", "-Q"], mount: ["ntfs-3g"], onDevice: false, hasSparseFiles: true },
  { name: "exFAT", make: ["mkfs.exfat"], mount: ["mount.exfat-fuse"], onDevice: true, hasSparseFiles: false },
];

/** A folder on one of 600 MiB; gone with the test. */
async function mounted(t: TestContext, { make, mount, onDevice }: FileSystem): Promise<string> {
  const [makeTool = "", ...makeArgs] = make;
  const [mountTool = "", ...mountArgs] = mount;
  needTools(t, makeTool, mountTool, "umount");
  if (process.getuid?.() !== 0) t.skip("mounting needs root");
  const dir = tempDir(t);
  const file = join(dir, "volume");
  const point = join(dir, "mounted");
  makeSparse(file, 600 * MIB);
  mkdirSync(point);
  let volume = file;
  if (onDevice) {
    const noLoop = await whyNoLoop();
    if (noLoop !== undefined) t.skip(noLoop);
    const loop = attachLoop(file, 512);
    t.onTestFinished(() => loop.detach());
    volume = loop.path;
  }
  const made = runTool(makeTool, [...makeArgs, volume]);
  expect(made.code, made.stderr).toBe(0);
  const done = runTool(mountTool, [...mountArgs, volume, point]);
  if (done.code !== 0) t.skip(`it cannot be mounted here: ${done.stderr.trim()}`);
  t.onTestFinished(() => {
    const { code, stderr } = runTool("umount", [point]);
    expect(code, stderr).toBe(0);
  });
  return point;
}

describe.each(fileSystems)("C-44 a store on $name", (fileSystem) => {
  test("copy, delta with zeros, points, restore: all as elsewhere; a disk that has no room is refused", async (t) => {
    const point = await mounted(t, fileSystem);
    const dir = tempDir(t);
    const image = join(dir, "disk.raw");
    makeSparse(image, 128 * MIB);
    writeAt(image, [[10 * MIB, noise(1, 20 * MIB)]]);
    const first = join(dir, "first.raw");
    expect(runTool("cp", ["--sparse=always", image, first]).code).toBe(0);

    const receiver = await startReceiver(t, { storeDir: join(point, "store"), tls: pki.recv });
    // Before the folder is unmounted.
    t.onTestFinished(async () => {
      await receiver.stop();
    });
    const replica = replicaPath(receiver.storeDir, "disk");
    const to = { port: receiver.port, tls: pki.send };
    expect(await send(t, { image, disk: "disk", ...to })).toMatchObject({ done: { reason: "initial", point: 1 } });
    expect(cmpFiles(replica, image)).toBeUndefined();
    expect(allocated(replica) < 100 * MIB).toBe(fileSystem.hasSparseFiles);

    // Zeros over content, content over zeros, and the end of the disk.
    writeAt(image, [
      [12 * MIB, Buffer.alloc(5 * MIB)],
      [90 * MIB, noise(2, 5 * MIB)],
      [127 * MIB, noise(3, MIB)],
    ]);
    expect(await send(t, { image, disk: "disk", ...to })).toMatchObject({ done: { reason: "scan", point: 2 } });
    expect(cmpFiles(replica, image)).toBeUndefined();

    if (!fileSystem.hasSparseFiles) {
      const large = join(dir, "large.raw");
      makeSparse(large, 5 * GIB);
      const refused = await finish(startSend(t, { image: large, disk: "large", ...to }));
      expect(refused.code).toBe(1);
      expect(refused.stdout + refused.stderr).toMatch(/no space left/);
    }

    for (const [name, content] of [
      ["disk@1", first],
      ["disk@2", image],
    ] as const) {
      const restored = join(dir, `${name}.restored`);
      const result = await replicate(t, ["restore", "--store", receiver.storeDir, name, restored]);
      expect(result.code, result.stdout + result.stderr).toBe(0);
      expect(cmpFiles(restored, content)).toBeUndefined();
    }
    const verified = await replicate(t, ["verify", "--store", receiver.storeDir, "disk", "--all"]);
    expect(verified.code, verified.stdout + verified.stderr).toBe(0);
  });
});
