/** The first copy of a disk that is too large to be cut at once, as processes: it goes in passes while a machine writes, and no old content is kept for it. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeSparse, MIB, noise, until, writeAt } from "../content.ts";
import {
  cmpFiles,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  seededRandom,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";
import { Load, startAgain, Tracker } from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

/** Above what is cut at once. */
const sizeBytes = 1_280 * MIB;
const writtenBytes = 96 * MIB;

test("tracker and receiver are killed in it: it goes on, its point is one moment's, and the next cycle reads what changed", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "vm.raw");
  makeSparse(image, sizeBytes);
  for (let at = 0; at < writtenBytes; at += 32 * MIB) writeAt(image, [[at, noise(1 + at / MIB, 32 * MIB)]]);
  writeAt(image, [[sizeBytes - MIB, noise(3, MIB)]]);
  let receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const to = `127.0.0.1:${String(receiver.port)}/vm`;
  const start = (): Promise<Tracker> =>
    Tracker.start(t, { image, socket: join(dir, "vm.sock"), to, tls: pki.send, args: ["--every", "0"] });
  const startLoad = ({ uri }: Tracker, seed: number): Promise<Load> =>
    Load.start(t, { uri, random: seededRandom(seed), bytes: writtenBytes });
  const isUnderWay = (count: number) => () => receiver.process.stderr.split("session open").length > count;

  // Killed while the first pass is under way.
  const first = await start();
  const firstLoad = await startLoad(first, 7);
  await until(isUnderWay(1));
  await firstLoad.more(20);
  await first.child.kill();
  await firstLoad.lost();
  expect(first.done).toEqual([]);

  const tracker = await start();
  const load = await startLoad(tracker, 8);
  await until(isUnderWay(2));
  await load.more(20);
  await receiver.process.kill();
  receiver = await startAgain(t, receiver, pki);
  const done = await tracker.firstDone();
  expect(done).toMatchObject({ point: 1, created: true });
  expect(Number(done["passes"])).toBeGreaterThanOrEqual(1);
  await load.more(20);
  await load.stop();
  const last = await tracker.nextDone(2);
  expect(last).toMatchObject({ reason: "bitmap" });
  expect(Number(last["bytesRead"])).toBeLessThan(writtenBytes / 2);
  expect(await tracker.child.stop()).toBe(0);
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
  const verified = await replicate(t, ["verify", "--store", receiver.storeDir, "vm"]);
  expect(verified.code, verified.stdout + verified.stderr).toBe(0);
});
