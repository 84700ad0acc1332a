/** `kill -9` of a tracker, of its receiver and of both while a machine writes: what changed is known afterwards, and sent. */
import { rmSync, statSync, writeFileSync } from "node:fs";
import { uptime } from "node:os";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeNoise, MIB, until } from "../content.ts";
import {
  cmpFiles,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  runTool,
  seededRandom,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";
import { Load, Tracker } from "./kit.ts";
import { killTracked } from "./kill.ts";
import { killSends } from "./kill-send.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test.concurrent("kill -9 of the tracker under load: the next cycle reads what changed, and the replica is the image", async (t) => {
  const { kills, requests } = await killTracked(t, pki, { killed: "tracker", kills: 3, seed: 1 });
  expect(kills).toBe(3);
  expect(requests).toBeGreaterThan(0);
});

test.concurrent("kill -9 of the receiver under load: the machine notices nothing, and what changed meanwhile is sent", async (t) => {
  expect((await killTracked(t, pki, { killed: "receiver", kills: 2, seed: 2 })).kills).toBe(2);
});

test.concurrent("kill -9 of both under load", async (t) => {
  expect((await killTracked(t, pki, { killed: "both", kills: 1, seed: 3 })).kills).toBe(1);
});

test.concurrent("kill -9 of a send that has its cut from a tracker: the machine notices nothing, and the next send knows what changed", async (t) => {
  expect((await killSends(t, pki, { kills: 3, seed: 4 })).kills).toBe(3);
});

/** A program that runs a command as if the machine had been started `ageSeconds` ago, with an id of that start. */
function otherBoot(dir: string, id: string, ageSeconds: number): readonly string[] {
  const file = join(dir, `boot-${id}`);
  writeFileSync(file, `${id}0000000-0000-4000-8000-000000000000\n`);
  const offset = String(ageSeconds - Math.floor(uptime()));
  const script = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"';
  return ["unshare", "--mount", "--time", "--boottime", offset, "--kill-child", "sh", "-c", script, "sh", file];
}

test("after a kill and another boot: believed, unless the image was written to since or the journal does not survive that", async (t) => {
  const dir = tempDir(t);
  needTools(t, "unshare", "mount");
  const [program = "", ...words] = otherBoot(dir, "1", 0);
  if (runTool(program, [...words, "true"]).code !== 0)
    t.skip("another boot takes namespaces, which this user may not make");
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const image = join(dir, "vm.raw");
  makeNoise(image, 8 * MIB, 5);
  const start = (boot?: readonly string[], ...args: string[]): Promise<Tracker> =>
    Tracker.start(t, {
      ...{ image, socket: join(dir, "vm.sock"), to: `127.0.0.1:${String(receiver.port)}/vm`, tls: pki.send },
      args: ["--every", "0", ...args],
      under: boot,
    });
  /** A machine writes, and the tracker is killed before or after it has sent that. */
  const writeAndKill = async (tracker: Tracker): Promise<void> => {
    await tracker.firstDone();
    const load = await Load.start(t, { uri: tracker.uri, random: seededRandom(6), bytes: 4 * MIB });
    await load.more(20);
    await load.stop();
    await tracker.child.kill();
  };
  const expectSame = async (tracker: Tracker): Promise<void> => {
    await tracker.nextDone(2);
    expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  };
  await writeAndKill(await start());
  // The boot begins with the last whole second.
  await until(() => Date.now() - 1_000 * (uptime() % 1) > statSync(image).ctimeMs + 100);
  const second = await start(otherBoot(dir, "2", 0));
  expect(second.begun[0]).toMatchObject({ changes: "exact" });
  expect(await second.firstDone()).toMatchObject({ reason: "bitmap" });
  await expectSame(second);
  await writeAndKill(second);

  // The machine had been started when somebody wrote past the tracker.
  const third = await start(otherBoot(dir, "3", 60));
  expect(third.begun[0]).toMatchObject({ changes: "scan", reason: "image-changed-later" });
  expect(await third.firstDone()).toMatchObject({ reason: "scan" });
  await expectSame(third);
  await third.child.kill();

  rmSync(`${image}.rbj`);
  await writeAndKill(await start(undefined, "--journal-sync", "process"));
  const same = await start(undefined, "--journal-sync", "process");
  expect(same.begun[0]).toMatchObject({ changes: "exact" });
  await writeAndKill(same);
  await until(() => Date.now() - 1_000 * (uptime() % 1) > statSync(image).ctimeMs + 100);
  const last = await start(otherBoot(dir, "4", 0), "--journal-sync", "process");
  expect(last.begun[0]).toMatchObject({ changes: "scan", reason: "other-boot" });
  await expectSame(last);
});
