/** Block devices end to end, with sectors of 512 and of 4096 bytes: sent, restored to, and tracked. Loop devices; skipped, with the reason, where none can be made. */
import { existsSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { attachLoop, whyNoLoop } from "../storage/scratch.ts";
import { BLOCK, KIB, makeNoise, makeSparse, MIB, noise, PART, readAt, writeAt } from "./content.ts";
import {
  cmpFiles,
  finish,
  makePki,
  needTools,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
  runTool,
  seededRandom,
  send,
  startReceiver,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { startProxy } from "./proxy.ts";
import { Load, Tracker } from "./track/kit.ts";

const suite = suiteScope();
let pki: Pki;
let noLoop: string | undefined;

beforeAll(async () => {
  noLoop = await whyNoLoop();
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

interface World {
  readonly dir: string;
  readonly receiver: Receiver;
  /** A loop device over a file, gone with the test. */
  device(path: string): string;
}

async function world(t: TestContext, sectorBytes: 512 | 4096): Promise<World> {
  if (noLoop !== undefined) t.skip(noLoop);
  const dir = tempDir(t);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  return {
    dir,
    receiver,
    device(path) {
      const loop = attachLoop(path, sectorBytes);
      t.onTestFinished(() => loop.detach());
      return loop.path;
    },
  };
}

for (const sectorBytes of [512, 4096] as const) {
  const sectors = `sectors of ${String(sectorBytes)} bytes`;
  // No whole number of blocks.
  const sizeBytes = 24 * MIB + 3 * 4096;

  test(`a device is sent, what changes on it is sent, and a point is written back to another one: ${sectors} (C-58)`, async (t) => {
    const { dir, receiver, device } = await world(t, sectorBytes);
    const [source, target] = [join(dir, "source.raw"), join(dir, "target.raw")];
    makeNoise(source, sizeBytes, 1);
    const image = device(source);
    const how = { image, port: receiver.port, disk: "vm", tls: pki.send };
    const first = await send(t, how);
    expect(first.code, first.stderr).toBe(0);
    expect(first.done).toMatchObject({ reason: "initial", bytesSize: sizeBytes, point: 1 });
    const replica = replicaPath(receiver.storeDir, "vm");
    expect(cmpFiles(image, replica)).toBeUndefined();

    // In the middle, over the border of two blocks, and the very end.
    writeAt(image, [
      [5 * MIB, noise(2, PART)],
      [9 * BLOCK - PART, noise(3, 2 * PART)],
      [sizeBytes - 512, noise(4, 512)],
    ]);
    const second = await send(t, how);
    expect(second.done).toMatchObject({ reason: "scan", point: 2, bytesChanged: 4 * PART });
    expect(cmpFiles(image, replica)).toBeUndefined();

    // Larger than the disk, and full of something else.
    makeNoise(target, sizeBytes + MIB, 5);
    const out = device(target);
    const restore = ["restore", "--store", receiver.storeDir, "vm@latest", out];
    const refused = await replicate(t, restore);
    expect(refused.code).toBe(4);
    expect(refused.stderr).toContain("is a block device that would be written over");
    expect(cmpFiles(target, out)).toBeUndefined();
    const restored = await replicate(t, [...restore, "--force"]);
    expect(restored.code, restored.stderr).toBe(0);
    expect(readAt(out, 0, sizeBytes).equals(readAt(image, 0, sizeBytes))).toBe(true);
  });

  test(`a device that is written to while it is sent gives no point: ${sectors}`, async (t) => {
    const { dir, receiver, device } = await world(t, sectorBytes);
    const source = join(dir, "source.raw");
    makeNoise(source, sizeBytes, 6);
    const image = device(source);
    const proxy = await startProxy(t, receiver.port);
    proxy.holdUp(3 * MIB);
    const how = { image, port: proxy.port, disk: "vm", tls: pki.send, args: ["--codec", "none"] };
    const sender = startSend(t, how);
    await proxy.passedUp(3 * MIB);
    writeAt(image, [[MIB, noise(7, PART)]]);
    proxy.holdUp(undefined);
    const { code, done, error } = await finish(sender);
    expect(code).toBe(1);
    expect(done).toBeUndefined();
    expect(error).toMatchObject({ code: "image-changed" });
    const again = await send(t, how);
    expect(again.done).toMatchObject({ point: 1 });
    expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  });

  test(`a device is tracked: cycles while a machine writes, after a kill of the tracker too: ${sectors}`, async (t) => {
    needTools(t, "qemu-io");
    const { dir, receiver, device } = await world(t, sectorBytes);
    const source = join(dir, "source.raw");
    makeNoise(source, sizeBytes, 8);
    const image = device(source);
    // Nothing of ours among the devices.
    const beside = await replicate(t, ["track", image, "--nbd", `unix:${join(dir, "vm.sock")}`, "--json"]);
    expect(beside.code).toBe(2);
    expect(beside.lines.at(-1)).toMatchObject({
      code: "usage",
      message: expect.stringContaining("--journal") as unknown,
    });
    expect(existsSync(`${image}.rbj`)).toBe(false);
    const places = ["--journal", join(dir, "vm.rbj"), "--control", join(dir, "vm.rbc")];
    const start = (): Promise<Tracker> =>
      Tracker.start(t, {
        ...{ image, socket: join(dir, "vm.sock"), to: `127.0.0.1:${String(receiver.port)}/vm`, tls: pki.send },
        args: ["--every", "0", ...places],
      });
    const write = async (tracker: Tracker, seed: number): Promise<void> => {
      const load = await Load.start(t, { uri: tracker.uri, random: seededRandom(seed), bytes: 16 * MIB });
      await load.more(300);
      await load.stop();
    };
    const expectEqual = async (tracker: Tracker): Promise<void> => {
      expect(await tracker.nextDone(2)).toMatchObject({ reason: "bitmap" });
      expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
    };
    const tracker = await start();
    expect(tracker.begun[0]).toMatchObject({ changes: "scan", reason: "journal-new" });
    await tracker.firstDone();
    await write(tracker, 9);
    // Less than a sector of the larger kind, and the last bytes.
    const end = String(sizeBytes - 4 * KIB);
    const commands = [
      "-c",
      "write -P 5 1536 512",
      "-c",
      `write -P 6 ${end} 4k`,
      "-c",
      "flush",
      "-c",
      "read -P 5 1536 512",
    ];
    const io = runTool("qemu-io", ["-f", "raw", ...commands, tracker.uri]);
    expect(io.code, io.stdout + io.stderr).toBe(0);
    await expectEqual(tracker);
    expect(readAt(image, 1536, 512).equals(Buffer.alloc(512, 5))).toBe(true);

    await tracker.child.kill();
    const next = await start();
    expect(next.begun[0]).toMatchObject({ changes: "exact", audit: true });
    expect(await next.firstDone()).toMatchObject({ reason: "bitmap" });
    await write(next, 10);
    await expectEqual(next);
    expect(await next.child.stop()).toBe(0);

    // Nothing shows what else wrote to a device: some of what is called clean, which is all of it here, is looked at.
    const last = await start();
    expect(last.begun[0]).toMatchObject({ changes: "exact", audit: true });
    const looked = await last.firstDone();
    expect(looked).toMatchObject({ reason: "bitmap", bytesMissed: 0 });
    expect(Number(looked["bytesAudited"])).toBeGreaterThan(0);
    expect(await last.child.stop()).toBe(0);
  });
}

test("a disk that is no multiple of the device's sectors is refused before the device is written to (C-58)", async (t) => {
  const { dir, receiver, device } = await world(t, 4096);
  const [odd, target] = [join(dir, "odd.raw"), join(dir, "target.raw")];
  makeNoise(odd, 10 * MIB, 11);
  truncateSync(odd, 10 * MIB + 512);
  expect((await send(t, { image: odd, port: receiver.port, disk: "odd", tls: pki.send })).code).toBe(0);
  for (const [bytes, code] of [
    [12 * MIB, "target-unsuitable"],
    [8 * MIB, "target-too-small"],
  ] as const) {
    makeSparse(target, bytes);
    const out = device(target);
    const refused = await replicate(t, ["restore", "--store", receiver.storeDir, "odd", out, "--force", "--json"]);
    expect(refused.code).toBe(1);
    expect(refused.lines.at(-1)).toMatchObject({ event: "error", code });
    expect(readAt(out, 0, bytes).equals(Buffer.alloc(bytes))).toBe(true);
  }
});
