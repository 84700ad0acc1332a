/** Copies that are killed, and what the next one may cost; the same in both tiers, with other numbers. */
import { copyFileSync, existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { BLOCK, differences, digestBytes, makeNoise, MIB, noise, PART, until, writeAt } from "./content.ts";
import {
  type CliProcess,
  cmpFiles,
  type Done,
  finish,
  type Pki,
  type Receiver,
  replicaPath,
  type Scope,
  seededRandom,
  type SendOptions,
  startReceiver,
  startSend,
  tempDir,
} from "./kit.ts";
import { type Proxy, startProxy } from "./proxy.ts";

export interface Setting {
  readonly dir: string;
  readonly image: string;
  readonly imageBytes: number;
  receiver: Receiver;
  /** In front of the receiver, on the way of every sender: its counter says how far a copy is. */
  readonly proxy: Proxy;
  readonly pki: Pki;
  readonly random: () => number;
}

export async function makeSetting(scope: Scope, pki: Pki, imageBytes: number, seed: number): Promise<Setting> {
  const dir = tempDir(scope);
  const image = join(dir, "disk.raw");
  makeNoise(image, imageBytes, seed);
  const receiver = await startReceiver(scope, { storeDir: join(dir, "store"), tls: pki.recv });
  const proxy = await startProxy(scope, receiver.port);
  return { dir, image, imageBytes, receiver, proxy, pki, random: seededRandom(seed) };
}

/** Options of a send through the proxy; paced, so that an interruption finds it at work. */
export function paced(setting: Setting, disk: string): SendOptions {
  const rate = `${String(Math.ceil(setting.imageBytes / MIB))}MiB`;
  const { image, proxy, pki } = setting;
  return { image, port: proxy.port, disk, tls: pki.send, args: ["--rate", rate, "--codec", "none"] };
}

/** Starts a send and resolves when a random share of the image has passed, 20 to 85 %. */
export async function sendPart(scope: Scope, setting: Setting, disk: string): Promise<CliProcess> {
  const { proxy, imageBytes, random } = setting;
  const target = proxy.bytesUp + Math.floor((0.2 + (0.65 * (random() % 1_000)) / 1_000) * imageBytes);
  const replica = replicaPath(setting.receiver.storeDir, disk);
  const touched = (): number => statSync(replica, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const before = touched();
  const sender = startSend(scope, paced(setting, disk));
  // What has passed may wait in front of a busy receiver: something must be on its way into the replica too.
  await until(() => statSync(replica, { throwIfNoEntry: false }) !== undefined);
  const made = before === 0 ? touched() : before;
  await proxy.passedUp(target);
  await until(() => touched() > made || sender.ended);
  expect(sender.ended).toBe(false);
  return sender;
}

/** Starts the receiver anew on its port and store. */
export async function restart(scope: Scope, setting: Setting): Promise<void> {
  const { port, storeDir } = setting.receiver;
  setting.receiver = await startReceiver(scope, { storeDir, tls: setting.pki.recv, port });
}

/** Resolves when the receiver has put the disk away after a session that ended early. */
export async function putAway(setting: Setting, disk: string): Promise<void> {
  await until(() => existsSync(join(setting.receiver.storeDir, "disks", disk, "session.json")));
}

/** Most a copy may cost now, by what replica and image have apart: that, 5 %, and the digests. */
export function mostLeft(setting: Setting, disk: string, unit: number): number {
  const left = differences(setting.image, replicaPath(setting.receiver.storeDir, disk));
  const count = unit === BLOCK ? left.blocks : left.parts.length;
  expect(count).toBeGreaterThan(0);
  expect(count * unit).toBeLessThan(setting.imageBytes);
  return count * unit * 1.05 + digestBytes(left);
}

/** The send ended well, and the replica is the image. */
export async function expectDone(setting: Setting, sender: CliProcess, disk: string): Promise<Done> {
  const { code, done, stderr } = await finish(sender);
  expect(code, stderr).toBe(0);
  expect(cmpFiles(setting.image, replicaPath(setting.receiver.storeDir, disk))).toBeUndefined();
  if (done === undefined) throw new Error("a send that ended well says done");
  return done;
}

/** Bytes of a delta copy: every fourth part of every block. */
export function changeQuarter(setting: Setting, seed: number): void {
  const { image, imageBytes } = setting;
  const pieces = function* () {
    for (let at = (seed % 4) * PART; at < imageBytes; at += 4 * PART)
      yield [at, noise(seed * 7919 + at, PART)] as const;
  };
  writeAt(image, pieces());
}

/** kill -9 of the sender, `rounds` times, each of a copy of its own; then the rest is sent. */
export async function killSenders(scope: Scope, setting: Setting, rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const disk = `sender-${String(round)}`;
    const sender = await sendPart(scope, setting, disk);
    expect(await sender.kill()).toBe("SIGKILL");
    await putAway(setting, disk);
    const most = mostLeft(setting, disk, BLOCK);
    const done = await expectDone(
      setting,
      startSend(scope, { ...paced(setting, disk), args: ["--codec", "none"] }),
      disk,
    );
    expect(done).toMatchObject({ reason: "resume", point: 1 });
    expect(done.bytesWire).toBeLessThan(most);
  }
}

/** kill -9 of the receiver and an immediate restart, `rounds` times; the sender, still there, finishes by itself. */
export async function killReceivers(scope: Scope, setting: Setting, rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const disk = `receiver-${String(round)}`;
    const sender = await sendPart(scope, setting, disk);
    await setting.receiver.kill();
    const most = mostLeft(setting, disk, BLOCK);
    const before = setting.proxy.bytes;
    await restart(scope, setting);
    const done = await expectDone(setting, sender, disk);
    expect(done).toMatchObject({ point: 1 });
    expect(setting.proxy.bytes - before).toBeLessThan(most);
  }
}

/** Kills of both ends, in turn, in the middle of deltas over a committed point. */
export async function killDeltas(scope: Scope, setting: Setting, rounds: number): Promise<void> {
  const disk = "delta";
  await expectDone(setting, startSend(scope, { ...paced(setting, disk), args: [] }), disk);
  const original = join(setting.dir, "original.raw");
  copyFileSync(setting.image, original);
  for (let round = 0; round < rounds; round++) {
    changeQuarter(setting, round + 1);
    const quarter = { ...setting, imageBytes: setting.imageBytes / 4 };
    const sender = await sendPart(scope, quarter, disk);
    let most: number;
    if (round % 2 === 0) {
      await sender.kill();
      await putAway(setting, disk);
      most = mostLeft(setting, disk, PART);
    } else {
      await setting.receiver.kill();
      await sender.kill();
      most = mostLeft(setting, disk, PART);
      await restart(scope, setting);
    }
    const done = await expectDone(setting, startSend(scope, { ...paced(setting, disk), args: [] }), disk);
    expect(done).toMatchObject({ reason: "scan", point: round + 2 });
    expect(done.bytesWire).toBeLessThan(most);
  }
}
