/** Either end killed or stopped in the middle of a copy: nothing is lost, and what arrived does not travel again. */
import { copyFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { BLOCK, logLines, MIB, noise, writeAt } from "./content.ts";
import {
  expectDone,
  killAndLose,
  killDeltas,
  killReceivers,
  killSenders,
  makeSetting,
  mostLeft,
  letGo,
  putAway,
  restart,
  sendPart,
  type Setting,
  through,
} from "./interrupt.ts";
import { finish, makePki, type Pki, type Receiver, startSend, suiteScope, tempDir } from "./kit.ts";

const imageBytes = 24 * MIB;
const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

/** All receivers of a setting, in the order they were started in: the kits put a new one in place of one that was killed. */
function allReceivers(setting: Setting): readonly Receiver[] {
  const all = [setting.receiver];
  const set = (next: Receiver): void => {
    all.push(next);
  };
  Object.defineProperty(setting, "receiver", { get: () => all.at(-1), set });
  return all;
}

/** What a receiver said of tables it could not just go on with. */
function doubts({ process }: Receiver): readonly string[] {
  return logLines(process)
    .filter(({ why }) => why !== undefined)
    .map(({ msg, why }) => `${String(msg)}: ${String(why)}`);
}

/** It found the disk as a kill left it, and did not rebuild the table from the whole replica. */
function expectNoRebuild(receiver: Receiver): void {
  expect(doubts(receiver).join()).toContain("did not end cleanly");
  expect(doubts(receiver).join()).not.toContain("all of it");
}

test.concurrent("kill -9 of the sender at random moments: the next send ships the rest, without a rebuild (C-95)", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 1);
  await killSenders(t, setting, 3);
  expect(doubts(setting.receiver)).toEqual([]);
});

test.concurrent("kill -9 of the receiver at random moments: it restarts on its port and store, the sender goes on by itself, without a rebuild (C-95)", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 2);
  const receivers = allReceivers(setting);
  await killReceivers(t, setting, 3);
  expect(receivers).toHaveLength(4);
  for (const receiver of receivers.slice(1)) expectNoRebuild(receiver);
});

test.concurrent("kill -9 of either end in the middle of a delta: the next send ships the rest, without a rebuild (C-95)", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 3);
  const receivers = allReceivers(setting);
  await killDeltas(t, setting, 2);
  // Of the sender first, then of both.
  expect(receivers.map((receiver) => doubts(receiver).length > 0)).toEqual([false, true]);
  for (const receiver of receivers.slice(1)) expectNoRebuild(receiver);
});

test.concurrent("SIGINT to the sender: exit code 130, and the next send goes on", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 4);
  const sender = await sendPart(t, setting, "vm");
  sender.signal("SIGINT");
  const stopped = await finish(sender);
  letGo(setting);
  expect(stopped.code).toBe(130);
  expect(stopped.error).toMatchObject({ code: "aborted" });
  expect(stopped.done).toBeUndefined();
  await putAway(setting, "vm");
  const most = mostLeft(setting, "vm", BLOCK);
  const done = await expectDone(setting, startSend(t, through(setting, "vm")), "vm");
  expect(done).toMatchObject({ reason: "resume", point: 1, attempts: 1 });
  expect(done.bytesWire).toBeLessThan(most);
});

test.concurrent("C-59: killed at 40 %, and the record of where the copy stood is gone: what arrived is found by comparing", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 7);
  const logged = await killAndLose(t, setting, (diskDir) => rmSync(join(diskDir, "session.json")));
  expect(logged).toMatch(/in doubt: .*did not end cleanly/);
});

test.concurrent("C-59: killed at 40 %, and the log that record speaks of is gone", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 8);
  const logged = await killAndLose(t, setting, (diskDir) => rmSync(join(diskDir, "points/0000000000.undo")));
  expect(logged).toMatch(/in doubt: /);
});

test.concurrent("C-59: killed at 40 %, and the image is another file by then, a little newer", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 9);
  const { dir, image } = setting;
  await killAndLose(t, setting, () => {
    const rotated = join(dir, "rotated.raw");
    renameSync(image, rotated);
    copyFileSync(rotated, image);
    rmSync(rotated);
    // Of what arrived, and of what did not.
    writeAt(
      image,
      [100_000, 20 * MIB].map((at) => [at, noise(at, 5_000)] as const),
    );
  });
});

test.concurrent("SIGINT while the receiver is down: stopped on request, and no word of the connection", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 6);
  expect(await setting.receiver.stop()).toBe(0);
  const sender = startSend(t, through(setting, "vm"));
  await sender.waitForEvent("progress");
  sender.signal("SIGINT");
  const stopped = await finish(sender);
  expect(stopped.code).toBe(130);
  expect(stopped.error).toMatchObject({ code: "aborted", message: "stopped on request; run it again to go on" });
});

test.concurrent("SIGTERM to the receiver in the middle of a copy: a clean stop, no rebuild after it, the sender goes on", async (t) => {
  const setting = await makeSetting(t, pki, imageBytes, 5);
  const sender = await sendPart(t, setting, "vm");
  expect(await setting.receiver.stop()).toBe(0);
  letGo(setting);
  await putAway(setting, "vm");
  const most = mostLeft(setting, "vm", BLOCK);
  const before = setting.proxy.bytes;
  await restart(t, setting);
  const done = await expectDone(setting, sender, "vm");
  expect(done.attempts).toBeGreaterThan(1);
  expect(setting.proxy.bytes - before).toBeLessThan(most);
  expect(setting.receiver.process.stderr).not.toContain("in doubt");
  expect(await setting.receiver.stop()).toBe(0);
});
