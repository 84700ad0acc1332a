/** Copies that are killed, and what the next one may cost; the same in both tiers, with other numbers. */
import { copyFileSync, existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { allocated, BLOCK, differences, digestBytes, makeNoise, noise, PART, until, writeAt } from "./content.ts";
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

/** Options of a send through the proxy. */
export function through(setting: Setting, disk: string, ...args: string[]): SendOptions {
  const { image, proxy, pki } = setting;
  return { image, port: proxy.port, disk, tls: pki.send, args: ["--codec", "none", ...args] };
}

/**
 * Starts a send and resolves in the middle of it, when a share of `bytes` has passed, by default a random one of 20 to 80 %, and something has come
 * into the replica. It is under way then, and cannot end before the proxy lets the rest pass ({@link letGo}).
 */
export async function sendPart(
  scope: Scope,
  setting: Setting,
  disk: string,
  bytes = setting.imageBytes,
  share = 0.2 + (0.6 * (setting.random() % 1_000)) / 1_000,
): Promise<CliProcess> {
  const { proxy } = setting;
  const replica = replicaPath(setting.receiver.storeDir, disk);
  const touched = (): bigint => statSync(replica, { bigint: true, throwIfNoEntry: false })?.mtimeNs ?? 0n;
  const before = touched();
  const start = proxy.bytesUp;
  proxy.holdUp(start + 0.85 * bytes);
  const sender = startSend(scope, through(setting, disk));
  await proxy.passedUp(start + share * bytes);
  // What has passed may wait in front of a busy receiver.
  if (before === 0n) await until(() => allocated(replica) > 0);
  else await until(() => touched() !== before);
  expect(sender.ended).toBe(false);
  return sender;
}

/** Ends the connections of before, and lets those to come pass everything. */
export function letGo(setting: Setting): void {
  setting.proxy.cut();
  setting.proxy.holdUp(undefined);
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
    letGo(setting);
    await putAway(setting, disk);
    const most = mostLeft(setting, disk, BLOCK);
    const done = await expectDone(setting, startSend(scope, through(setting, disk)), disk);
    expect(done).toMatchObject({ reason: "resume", point: 1 });
    expect(done.bytesWire).toBeLessThan(most);
  }
}

/**
 * kill -9 of the sender at 40 % of an initial copy; then `lose` takes away what the next send could go on from: it compares, and ships the rest. Returns
 * what the receiver logged of that.
 */
export async function killAndLose(scope: Scope, setting: Setting, lose: (diskDir: string) => void): Promise<string> {
  const disk = "vm";
  const sender = await sendPart(scope, setting, disk, setting.imageBytes, 0.4);
  expect(await sender.kill()).toBe("SIGKILL");
  letGo(setting);
  await putAway(setting, disk);
  const diskDir = join(setting.receiver.storeDir, "disks", disk);
  const logged = setting.receiver.process.stderr.length;
  lose(diskDir);
  const most = mostLeft(setting, disk, BLOCK);
  const done = await expectDone(setting, startSend(scope, through(setting, disk)), disk);
  expect(done).toMatchObject({ point: 1, attempts: 1 });
  expect(done.bytesWire).toBeLessThan(most);
  // Nothing of the first try is left to be in the way of later ones.
  expect(readdirSync(diskDir).filter((name) => /session|suspect|\.new$/.test(name))).toEqual([]);
  expect(readdirSync(join(diskDir, "points")).filter((name) => !name.endsWith(".lock"))).toEqual(["0000000001.json"]);
  return setting.receiver.process.stderr.slice(logged);
}

/** kill -9 of the receiver and an immediate restart, `rounds` times; the sender, still there, finishes by itself. */
export async function killReceivers(scope: Scope, setting: Setting, rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const disk = `receiver-${String(round)}`;
    const sender = await sendPart(scope, setting, disk);
    await setting.receiver.kill();
    letGo(setting);
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
  await expectDone(setting, startSend(scope, through(setting, disk)), disk);
  const original = join(setting.dir, "original.raw");
  copyFileSync(setting.image, original);
  for (let round = 0; round < rounds; round++) {
    changeQuarter(setting, round + 1);
    const sender = await sendPart(scope, setting, disk, setting.imageBytes / 4);
    let most: number;
    if (round % 2 === 0) {
      await sender.kill();
      letGo(setting);
      await putAway(setting, disk);
      most = mostLeft(setting, disk, PART);
    } else {
      await setting.receiver.kill();
      await sender.kill();
      letGo(setting);
      most = mostLeft(setting, disk, PART);
      await restart(scope, setting);
    }
    const done = await expectDone(setting, startSend(scope, through(setting, disk)), disk);
    expect(done).toMatchObject({ reason: "resume", point: round + 2 });
    expect(done.bytesWire).toBeLessThan(most);
  }
}
