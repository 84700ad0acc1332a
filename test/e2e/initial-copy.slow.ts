/** An initial copy before its end: known as one at any time, whatever the times of its files say, and holes that are punched meanwhile. */
import { closeSync, copyFileSync, mkdirSync, openSync, readdirSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { openNbdWriter } from "../../src/nbd/client.ts";
import { parseNbdUri } from "../../src/nbd/nbd-uri.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { BLOCK, differences, logLines, MIB, noise, PART, readAt, scattered, until, writeAt } from "./content.ts";
import {
  expectDone,
  letGo,
  makeSetting,
  mostLeft,
  putAway,
  restart,
  sendPart,
  type Setting,
  through,
} from "./interrupt.ts";
import {
  type CliProcess,
  cmpFiles,
  finish,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  type Scope,
  startSend,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { Tracker } from "./track/kit.ts";

const disk = "vm";
const storage = createNodeStorage();
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

const replicaOf = ({ receiver }: Setting): string => replicaPath(receiver.storeDir, disk);

async function restore(t: Scope, setting: Setting, point: string, out: string) {
  return await replicate(t, ["restore", "--store", setting.receiver.storeDir, point, out, "--json"]);
}

async function expectState(t: Scope, setting: Setting, facts: object): Promise<void> {
  const { lines, stderr } = await replicate(t, ["disks", "--store", setting.receiver.storeDir, "--json"]);
  expect(lines, stderr).toMatchObject([{ disk, ...facts }]);
}

/** Nobody gets an image of what has arrived so far, and the list says what it is. */
async function expectNoPoint(t: Scope, setting: Setting, state: "receiving" | "interrupted"): Promise<void> {
  await expectState(t, setting, { state, latest: null, points: 0 });
  const folder = join(setting.dir, "out");
  mkdirSync(folder, { recursive: true });
  for (const point of [disk, `${disk}@1`]) {
    const result = await restore(t, setting, point, join(folder, "disk.raw"));
    expect(result.code, result.stdout).toBe(1);
    expect(result.lines.at(-1)).toMatchObject({ event: "error", code: "point-not-found" });
    expect(readdirSync(folder)).toEqual([]);
  }
}

/** The one point there is comes out as the image. */
async function expectRestored(t: Scope, setting: Setting): Promise<void> {
  await expectState(t, setting, { state: "idle", latest: 1, points: 1 });
  const out = join(setting.dir, "restored.raw");
  const result = await restore(t, setting, disk, out);
  expect(result.code, result.stdout + result.stderr).toBe(0);
  expect(cmpFiles(setting.image, out)).toBeUndefined();
}

type Interrupt = (t: Scope, setting: Setting, sender: CliProcess) => Promise<void>;

async function killSender(_t: Scope, setting: Setting, sender: CliProcess): Promise<void> {
  expect(await sender.kill()).toBe("SIGKILL");
  letGo(setting);
  await putAway(setting, disk);
}

async function stopReceiver(t: Scope, setting: Setting, sender: CliProcess): Promise<void> {
  expect(await setting.receiver.stop()).toBe(0);
  await sender.kill();
  letGo(setting);
  await restart(t, setting);
}

async function killBoth(t: Scope, setting: Setting, sender: CliProcess): Promise<void> {
  expect(await setting.receiver.kill()).toBe("SIGKILL");
  await sender.kill();
  letGo(setting);
  await restart(t, setting);
}

test.concurrent("C-77: interrupted at 40 %, and each resume again: no point, nothing to restore, until all of it is there", async (t) => {
  const setting = await makeSetting(t, pki, 32 * MIB, 77);
  let left = setting.imageBytes / BLOCK;
  const interrupts: readonly (readonly [Interrupt, share: number])[] = [
    [killSender, 0.4],
    [stopReceiver, 0.2],
    [killBoth, 0.2],
  ];
  for (const [interrupt, share] of interrupts) {
    // What passes beyond it is held up.
    const sender = await sendPart(t, setting, disk, (share / 0.85) * setting.imageBytes, 0.8);
    await expectNoPoint(t, setting, "receiving");
    await interrupt(t, setting, sender);
    await expectNoPoint(t, setting, "interrupted");
    const { blocks } = differences(setting.image, replicaOf(setting));
    expect(blocks).toBeGreaterThan(0);
    expect(blocks).toBeLessThan(left);
    left = blocks;
  }
  const done = await expectDone(setting, startSend(t, through(setting, disk)), disk);
  expect(done).toMatchObject({ reason: "resume", point: 1 });
  await expectRestored(t, setting);
});

describe("C-76: a replica that was touched into the future while its initial copy was interrupted", () => {
  const cases: readonly (readonly [string, number, Interrupt])[] = [
    ["the sender was killed", 761, killSender],
    ["both ends were killed", 762, killBoth],
  ];
  test.concurrent.each(cases)("%s: the copy goes on to the right content", async (_name, seed, interrupt) => {
    const setting = await makeSetting(suite, pki, 24 * MIB, seed);
    await interrupt(suite, setting, await sendPart(suite, setting, disk, setting.imageBytes, 0.3));
    const future = new Date("2099-01-01T00:00:00Z");
    utimesSync(replicaOf(setting), future, future);
    expect(statSync(replicaOf(setting)).mtime).toEqual(future);
    await expectNoPoint(suite, setting, "interrupted");

    const most = mostLeft(setting, disk, BLOCK);
    const done = await expectDone(setting, startSend(suite, through(setting, disk)), disk);
    expect(done).toMatchObject({ point: 1 });
    expect(done.bytesWire).toBeLessThan(most);
    await expectRestored(suite, setting);
    // Nor are later changes taken for older than the replica.
    writeAt(setting.image, [[5 * MIB, noise(seed, PART)]]);
    const next = await expectDone(setting, startSend(suite, through(setting, disk)), disk);
    expect(next).toMatchObject({ point: 2, bytesChanged: PART });
  });
});

describe("C-100: 500 holes are punched into an image while its initial copy is under way", () => {
  // More than a sender reads ahead.
  const imageBytes = 192 * MIB;
  const heldBytes = 40 * MIB;

  /** Offset and length of holes in what the replica has already, and in what is on its way or not read yet; of parts, of several, and of whole blocks. */
  interface Holes {
    readonly sent: readonly (readonly [offset: number, length: number])[];
    readonly all: readonly (readonly [offset: number, length: number])[];
  }

  /** When the copy stands still. Which parts of the disk came through is as it happens: several pages are under way at a time. */
  async function holesAround(setting: Setting): Promise<Holes> {
    const { image, proxy } = setting;
    await proxy.passedUp(heldBytes);
    const units = Array.from({ length: imageBytes / MIB }, (_, unit) => unit);
    let there: readonly number[] = [];
    await until(() => {
      const differing = new Set(differences(image, replicaOf(setting)).parts.map((offset) => Math.floor(offset / MIB)));
      there = units.filter((unit) => !differing.has(unit));
      return there.length > heldBytes / MIB / 2;
    });
    const missing = units.filter((unit) => !there.includes(unit));
    expect(missing.length).toBeGreaterThanOrEqual((imageBytes - heldBytes) / MIB);
    const lengths = [PART, 3 * PART, 2 * BLOCK];
    const holes = (from: readonly number[], count: number, seed: number): Holes["all"] =>
      scattered(from.length * MIB - 2 * BLOCK, count, seed).map((at, index) => {
        const within = Math.min(at % MIB, MIB - 2 * BLOCK);
        return [(from[Math.floor(at / MIB)] ?? 0) * MIB + within, lengths[index % lengths.length] ?? PART] as const;
      });
    const sent = holes(there, 200, 1);
    return { sent, all: [...sent, ...holes(missing, 300, 2)] };
  }

  /** In this process, at once: a tool for each would keep the proxy waiting that runs beside. */
  function punchAll(image: string, holes: Holes["all"]): void {
    const file = openSync(image, "r+");
    try {
      for (const [offset, length] of holes) expect(storage.lanes.punch(file, offset, length)).toBe(true);
    } finally {
      closeSync(file);
    }
  }

  /** The replica is the image, with zeros in the holes, and nothing went wrong. */
  function expectHoles(setting: Setting, { all }: Holes): void {
    const { image } = setting;
    expect(cmpFiles(image, replicaOf(setting))).toBeUndefined();
    for (const [offset, length] of all) {
      const bytes = readAt(replicaOf(setting), offset, length);
      expect(bytes.equals(Buffer.alloc(length)), `zeros at ${String(offset)}`).toBe(true);
    }
    expect(logLines(setting.receiver.process).filter(({ level }) => Number(level) >= 40)).toEqual([]);
  }

  test("sent with --allow-live: zeros at the end, and no error (C-100)", async (t) => {
    t.skip(!storage.capabilities.punch, "no holes can be made");
    const setting = await makeSetting(t, pki, imageBytes, 1001);
    const { image, proxy } = setting;
    proxy.holdUp(heldBytes);
    const sender = startSend(t, through(setting, disk, "--allow-live"));
    const holes = await holesAround(setting);
    punchAll(image, holes.all);
    proxy.holdUp(undefined);
    const { code, done, stderr } = await finish(sender);
    expect(code, stderr).toBe(0);
    expect(done).toMatchObject({ consistency: "none", point: 1, attempts: 1 });
    // What was sent before is there as it was: the holes did come after it.
    const old = new Set(differences(image, replicaOf(setting)).parts);
    for (const [offset] of holes.sent) expect(old.has(offset)).toBe(true);
    const next = await expectDone(setting, startSend(t, through(setting, disk)), disk);
    expect(next).toMatchObject({ consistency: "crash", point: 2, attempts: 1 });
    expectHoles(setting, holes);
  });

  test("trimmed by the machine whose tracker sends it: the point is as of its cut, the next has the holes (C-100)", async (t) => {
    const setting = await makeSetting(t, pki, imageBytes, 1002);
    const { dir, image, proxy } = setting;
    const before = join(dir, "before.raw");
    copyFileSync(image, before);
    proxy.holdUp(heldBytes);
    const tracker = await Tracker.start(t, {
      ...{ image, socket: join(dir, "vm.sock"), tls: pki.send },
      to: `127.0.0.1:${String(proxy.port)}/${disk}`,
      args: ["--every", "0", "--codec", "none"],
    });
    const holes = await holesAround(setting);
    const machine = await openNbdWriter({ address: parseNbdUri(tracker.uri) });
    t.onTestFinished(() => machine.close());
    // Each is answered while the copy stands still.
    await Promise.all(holes.all.map(([offset, length]) => machine.trim(offset, length)));
    await machine.flush();
    expect(tracker.done).toEqual([]);
    proxy.holdUp(undefined);
    expect(await tracker.firstDone()).toMatchObject({ point: 1, created: true, consistency: "crash" });
    expect(await tracker.nextDone(2)).toMatchObject({ reason: "bitmap" });
    // Before the tracker stops, which may be in the middle of a handshake.
    expectHoles(setting, holes);
    expect(await tracker.child.stop()).toBe(0);
    expect((await restore(t, setting, `${disk}@1`, join(dir, "first.raw"))).code).toBe(0);
    expect(cmpFiles(before, join(dir, "first.raw"))).toBeUndefined();
  });
});
