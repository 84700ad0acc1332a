/** Whose disk it is: two senders, two images, two certificates for one name. */
import { copyFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeNoise, MIB, noise, PART, waitForLog, writeAt } from "./content.ts";
import { expectDone, letGo, makeSetting, putAway, restart, sendPart, type Setting, through } from "./interrupt.ts";
import {
  type CliProcess,
  cmpFiles,
  finish,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  type Scope,
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
  expect((await replicate(suite, ["pki", "issue", pki.dir, "other"])).code).toBe(0);
});

/** Point 1 of disk `vm` comes out as this image. */
async function expectFirst(scope: Scope, storeDir: string, image: string): Promise<void> {
  const out = join(tempDir(scope), "first.raw");
  const { code, stdout, stderr } = await replicate(scope, ["restore", "--store", storeDir, "vm@1", out]);
  expect(code, stdout + stderr).toBe(0);
  expect(cmpFiles(image, out)).toBeUndefined();
}

/** A send to disk `vm` that stays in the middle of its data until the proxy lets it go on. */
async function sendHeld(scope: Scope, setting: Setting, options = through(setting, "vm")): Promise<CliProcess> {
  setting.proxy.holdUp(4 * MIB);
  const sender = startSend(scope, options);
  await setting.proxy.passedUp(4 * MIB);
  return sender;
}

test.concurrent("a second sender for a disk is refused and told who has it; the first goes on (C-82)", async (t) => {
  const setting = await makeSetting(t, pki, 24 * MIB, 1);
  const { receiver, dir } = setting;
  const second = join(dir, "second.raw");
  makeNoise(second, 24 * MIB, 9);
  const first = await sendHeld(t, setting);
  const refused = await send(t, { image: second, port: receiver.port, disk: "vm", tls: pki.send });
  expect(refused.code).toBe(1);
  expect(refused.error).toMatchObject({ code: "disk-busy" });
  expect(refused.error?.message).toMatch(/vm is being written by send from 127\.0\.0\.1:\d+/);
  setting.proxy.holdUp(undefined);
  expect(await expectDone(setting, first, "vm")).toMatchObject({ attempts: 1, point: 1 });
});

test.concurrent("the same image sent twice at a time is refused where it is sent (C-82)", async (t) => {
  const setting = await makeSetting(t, pki, 16 * MIB, 2);
  const temporary = tempDir(t);
  const options = { ...through(setting, "vm"), env: { TMPDIR: temporary } };
  const first = await sendHeld(t, setting, options);
  const second = await send(t, options);
  expect(second.code).toBe(1);
  expect(second.error).toMatchObject({ code: "image-busy" });
  expect(second.error?.message).toContain(setting.image);
  setting.proxy.holdUp(undefined);
  expect(await expectDone(setting, first, "vm")).toMatchObject({ attempts: 1, point: 1 });
  // A folder of this user's locks, with nothing in it.
  expect(readdirSync(temporary, { recursive: true })).toEqual([expect.stringMatching(/^replicate-\d+$/)]);

  // Where the lock cannot be made the image is not sent without it.
  const nowhere = await send(t, { ...options, env: { TMPDIR: join(temporary, "missing") } });
  expect(nowhere.code).toBe(1);
  expect(nowhere.error).toMatchObject({ code: "locks-unsupported" });
  expect(nowhere.error?.message).toContain("TMPDIR");
});

test.concurrent("a sender that died behind a dead link and starts again takes over at once", async (t) => {
  const setting = await makeSetting(t, pki, 16 * MIB, 3);
  const { proxy, receiver } = setting;
  const first = await sendPart(t, setting, "vm");
  // The receiver does not learn that the first one is gone.
  proxy.setBlackhole(true);
  await first.kill();
  const again = startSend(t, { image: setting.image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(await expectDone(setting, again, "vm")).toMatchObject({ reason: "resume", attempts: 1, point: 1 });
  await waitForLog(receiver.process, { code: "superseded", disk: "vm" });
});

test.concurrent("another certificate does not get the disk, before or after the owner's first point", async (t) => {
  const setting = await makeSetting(t, pki, 8 * MIB, 4);
  const { receiver, image } = setting;
  const strange = { image, port: receiver.port, disk: "vm", tls: join(pki.dir, "other") };
  const first = await sendPart(t, setting, "vm");
  await first.kill();
  letGo(setting);
  await putAway(setting, "vm");
  const early = await send(t, strange);
  expect(early.code).toBe(1);
  expect(early.error).toMatchObject({ code: "disk-owned", action: "never" });
  await expectDone(setting, startSend(t, through(setting, "vm")), "vm");
  // Ownership is on disk, not in the receiver's memory.
  await receiver.stop();
  await restart(t, setting);
  const late = await send(t, { ...strange, args: ["--adopt"] });
  expect(late.code).toBe(1);
  expect(late.error).toMatchObject({ code: "disk-owned" });
  expect(late.error?.message).toContain("belongs to send");
  await waitForLog(setting.receiver.process, { code: "disk-owned", peer: "other" });
});

test.concurrent("another image under a used name is refused with exit code 4 and changes nothing; --adopt goes through (C-64)", async (t) => {
  const dir = tempDir(t);
  const [image, another] = [join(dir, "disk.raw"), join(dir, "another.raw")];
  makeNoise(image, 8 * MIB, 5);
  makeNoise(another, 8 * MIB, 6);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const replica = replicaPath(receiver.storeDir, "vm");
  const target = { port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, { ...target, image })).code).toBe(0);

  const refused = await send(t, { ...target, image: another });
  expect(refused.code).toBe(4);
  expect(refused.error).toMatchObject({ code: "another-image", action: "never" });
  expect(refused.error?.message).toContain("--adopt");
  expect(cmpFiles(image, replica)).toBeUndefined();

  const adopted = await send(t, { ...target, image: another, args: ["--adopt"] });
  expect(adopted.code, adopted.stderr).toBe(0);
  expect(adopted.done).toMatchObject({ point: 2 });
  expect(cmpFiles(another, replica)).toBeUndefined();
  await expectFirst(t, receiver.storeDir, image);
  // Adopted for good: no word is needed any more.
  expect((await send(t, { ...target, image: another })).done).toMatchObject({ point: 3, bytesChanged: 0 });
  await expectFirst(t, receiver.storeDir, image);
});

test.concurrent("a restored copy of the image, 1 % different, is compared and 1 % travels (C-64)", async (t) => {
  const dir = tempDir(t);
  const [image, restored] = [join(dir, "disk.raw"), join(dir, "restored.raw")];
  makeNoise(image, 16 * MIB, 7);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const target = { port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, { ...target, image })).code).toBe(0);
  copyFileSync(image, restored);
  const offsets = Array.from({ length: 40 }, (_unused, index) => index * 100 * PART);
  writeAt(
    restored,
    offsets.map((offset) => [offset, noise(offset + 1, PART)] as const),
  );
  const result = await finish(startSend(t, { ...target, image: restored }));
  expect(result.code, result.stderr).toBe(0);
  expect(result.done).toMatchObject({ reason: "scan", bytesChanged: 40 * PART, point: 2 });
  expect(cmpFiles(restored, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  await expectFirst(t, receiver.storeDir, image);
});
