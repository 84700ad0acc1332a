/** Recovery points from the command line: listed, restored, verified, held and pruned beside a receiver, and after it was killed. */
import { chmodSync, closeSync, copyFileSync, existsSync, openSync, readdirSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { allocated, BLOCK, makeNoise, MIB, noise, PART, readAt, scattered, waitForLog, writeAt } from "./content.ts";
import { changeQuarter, expectDone, letGo, makeSetting, restart, sendPart, through } from "./interrupt.ts";
import {
  CliProcess,
  type CliResult,
  cmpFiles,
  fsck,
  hasTool,
  makeExt4,
  makePki,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
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

/** Runs a verb on the receiver's store with `--json`. */
function onStore(t: TestContext, receiver: Receiver, verb: string, ...args: string[]): Promise<CliResult> {
  return replicate(t, [verb, "--store", receiver.storeDir, ...args, "--json"]);
}

async function expectOk(running: Promise<CliResult>): Promise<CliResult> {
  const result = await running;
  expect(result.code, result.stdout + result.stderr).toBe(0);
  return result;
}

/** A disk of 48 MiB with a file system where it can be made, sent three times; the copies are what was sent. */
async function sendThree(
  t: TestContext,
  args: readonly string[],
): Promise<{
  readonly receiver: Receiver;
  readonly dir: string;
  readonly image: string;
  readonly copies: readonly string[];
}> {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  if (hasTool("mke2fs")) makeExt4(image, 48, join(import.meta.dirname, "../../src"));
  else makeNoise(image, 8 * MIB, 1);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv, args });
  const copies: string[] = [];
  for (let version = 1; version <= 3; version++) {
    if (version > 1) {
      const places = scattered(statSync(image).size, 60, version);
      // Half noise, half zeros.
      writeAt(
        image,
        places.map(
          (offset, index) => [offset, index % 2 === 0 ? noise(offset + version, PART) : Buffer.alloc(PART)] as const,
        ),
      );
    }
    const copy = join(dir, `copy-${String(version)}.raw`);
    copyFileSync(image, copy);
    copies.push(copy);
    const label = ["--label", `v${String(version)}`];
    const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send, args: label });
    expect(result.done, result.stderr).toMatchObject({ point: version });
  }
  return { receiver, dir, image, copies };
}

test.concurrent("points are listed, restored and verified beside the receiver; a held one outlives prune", async (t) => {
  const { receiver, dir, image, copies } = await sendThree(t, ["--keep", "all"]);
  const listed = await expectOk(onStore(t, receiver, "points", "vm"));
  expect(listed.lines).toMatchObject([
    { point: 1, label: "v1", consistency: "crash", held: null, keptBy: "all" },
    { point: 2, label: "v2" },
    { point: 3, label: "v3", storedBytes: 0, keptBy: "newest" },
  ]);
  for (const [index, copy] of copies.entries()) {
    const out = join(dir, `out-${String(index)}.raw`);
    const name = ["vm@1", "vm@v2", "vm"][index] ?? "";
    const restored = await expectOk(onStore(t, receiver, "restore", name, out));
    expect(restored.lines.at(-1)).toMatchObject({ event: "done", point: index + 1, bytes: statSync(copy).size });
    expect(cmpFiles(copy, out)).toBeUndefined();
    expect(allocated(out)).toBeLessThanOrEqual(allocated(copy) + 64 * BLOCK);
  }
  if (hasTool("e2fsck") && hasTool("mke2fs")) expect(fsck(join(dir, "out-0.raw"))).toMatchObject({ clean: true });
  const refused = await onStore(t, receiver, "restore", "vm@1", join(dir, "out-2.raw"));
  expect([refused.code, refused.lines.at(-1)?.["code"]]).toEqual([4, "target-exists"]);

  const verified = await expectOk(onStore(t, receiver, "verify", "--all"));
  expect(verified.lines.filter(({ event }) => event === "verified").map(({ point, good }) => [point, good])).toEqual([
    [1, true],
    [2, true],
    [3, true],
  ]);

  // A delta meanwhile changes nothing of it.
  writeAt(image, [[5 * MIB, noise(99, MIB)]]);
  const sending = startSend(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  const beside = await expectOk(onStore(t, receiver, "restore", "vm@3", join(dir, "beside.raw")));
  expect(beside.lines.at(-1)).toMatchObject({ point: 3 });
  expect(cmpFiles(copies[2] ?? "", join(dir, "beside.raw"))).toBeUndefined();
  expect(await sending.exited).toBe(0);

  await expectOk(onStore(t, receiver, "hold", "vm@v1", "--owner", "audit"));
  await expectOk(onStore(t, receiver, "prune", "vm", "--keep", "last=1"));
  const left = await expectOk(onStore(t, receiver, "points", "vm"));
  expect(left.lines).toMatchObject([{ point: 1, held: { owner: "audit" } }, { point: 4 }]);
  await expectOk(onStore(t, receiver, "restore", "vm@v1", join(dir, "held.raw")));
  expect(cmpFiles(copies[0] ?? "", join(dir, "held.raw"))).toBeUndefined();
  const gone = await onStore(t, receiver, "restore", "vm@2", join(dir, "gone.raw"));
  expect([gone.code, gone.lines.at(-1)?.["code"]]).toEqual([1, "point-not-found"]);
  expect(readdirSync(dir).filter((name) => name.startsWith("gone"))).toEqual([]);
  await expectOk(onStore(t, receiver, "release", "vm@1", "--owner", "audit"));
  await expectOk(onStore(t, receiver, "prune", "--keep", "last=0"));
  const disks = await expectOk(onStore(t, receiver, "disks"));
  expect(disks.lines).toMatchObject([{ disk: "vm", points: 1, latest: 4, undoBytes: 0 }]);
  // The policy of the receiver is as it was.
  expect((await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send })).done).toMatchObject({ point: 5 });
  expect((await onStore(t, receiver, "points", "vm")).lines).toMatchObject([{ point: 4, keptBy: "all" }, { point: 5 }]);
});

test.concurrent("recv --keep is stored and followed; one that makes no sense is refused", async (t) => {
  const { receiver } = await sendThree(t, ["--keep", "last=2"]);
  expect((await onStore(t, receiver, "points", "vm")).lines).toMatchObject([{ point: 2 }, { point: 3 }]);
  await receiver.stop();
  const wrong = await replicate(t, [
    "recv",
    "--store",
    receiver.storeDir,
    "--listen",
    "127.0.0.1:0",
    "--tls",
    pki.recv,
    "--keep",
    "often",
  ]);
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("often")]);
  const again = await startReceiver(t, { storeDir: receiver.storeDir, tls: pki.recv });
  await waitForLog(again.process, { keep: "last=2" });
});

test.concurrent("the receiver is killed in the middle of a delta: the newest point is restored before the sender is back", async (t) => {
  const setting = await makeSetting(t, pki, 24 * MIB, 21);
  const { dir, image, imageBytes } = setting;
  await expectDone(setting, startSend(t, through(setting, "vm")), "vm");
  const copy = join(dir, "copy.raw");
  copyFileSync(image, copy);
  changeQuarter(setting, 5);
  const sender = await sendPart(t, setting, "vm", imageBytes / 4);
  const out = (name: string): string => join(dir, `${name}.raw`);

  // While it is under way, and after both ends are gone.
  await expectOk(onStore(t, setting.receiver, "restore", "vm", out("during")));
  expect(cmpFiles(copy, out("during"))).toBeUndefined();
  await setting.receiver.kill();
  await sender.kill();
  letGo(setting);
  expect(cmpFiles(copy, replicaPath(setting.receiver.storeDir, "vm"))).not.toBeUndefined();
  expect((await onStore(t, setting.receiver, "disks")).lines).toMatchObject([{ points: 1, state: "interrupted" }]);
  await expectOk(onStore(t, setting.receiver, "restore", "vm", out("killed")));
  expect(cmpFiles(copy, out("killed"))).toBeUndefined();
  await expectOk(onStore(t, setting.receiver, "verify", "vm"));

  // The sender goes on; then there are two points.
  await restart(t, setting);
  expect(await expectDone(setting, startSend(t, through(setting, "vm")), "vm")).toMatchObject({
    reason: "resume",
    point: 2,
  });
  await expectOk(onStore(t, setting.receiver, "restore", "vm@1", out("after")));
  expect(cmpFiles(copy, out("after"))).toBeUndefined();
});

test.concurrent("a byte of the replica is not what it was: verify names the range, restore refuses; both give 3", async (t) => {
  const { receiver, dir, copies } = await sendThree(t, ["--keep", "all"]);
  const replica = replicaPath(receiver.storeDir, "vm");
  // A block no delta has touched and that is not zero.
  const size = statSync(replica).size;
  const changed = (block: number): boolean => {
    const [first, last] = [copies[0] ?? "", copies[2] ?? ""].map((path) => readAt(path, block * BLOCK, BLOCK));
    return first?.equals(last ?? Buffer.alloc(0)) !== true || first.every((byte) => byte === 0);
  };
  let block = 0;
  while (changed(block) && (block + 1) * BLOCK < size) block++;
  const at = block * BLOCK + 77;
  chmodSync(replica, 0o600);
  const fd = openSync(replica, "r+");
  writeSync(fd, Buffer.from([(readAt(replica, at, 1)[0] ?? 0) ^ 0x20]), 0, 1, at);
  closeSync(fd);

  const verified = await onStore(t, receiver, "verify", "vm");
  expect(verified.code).toBe(3);
  expect(verified.lines.at(-1)).toMatchObject({
    event: "verified",
    point: 3,
    good: false,
    rangesDamaged: 1,
    ranges: [{ offset: block * BLOCK, length: BLOCK, goodPoint: null }],
  });
  const out = join(dir, "out.raw");
  const restored = await onStore(t, receiver, "restore", "vm", out);
  expect(restored.code).toBe(3);
  expect(restored.lines.at(-1)).toMatchObject({
    event: "error",
    code: "store-damaged",
    details: { offset: block * BLOCK },
  });
  expect([existsSync(out), existsSync(`${out}.part`)]).toEqual([false, false]);
});

test.concurrent("verify heeds its rate and SIGINT; exit code 130", async (t) => {
  const setting = await makeSetting(t, pki, 8 * MIB, 23);
  await expectDone(setting, startSend(t, through(setting, "vm")), "vm");
  const args = ["verify", "--store", setting.receiver.storeDir, "--rate", "1KiB", "--json"];
  const verifying = new CliProcess(t, args);
  await verifying.waitForEvent("progress");
  verifying.signal("SIGINT");
  expect(await verifying.exited).toBe(130);
  const stopped = verifying.lines.at(-1);
  expect(stopped).toMatchObject({ event: "error", code: "aborted" });
  const from = /^stopped; of vm@1 nothing damaged up to (\d+): go on from \1/.exec(String(stopped?.["message"]))?.[1];
  expect(Number(from)).toBeLessThan(8 * MIB);
  if (from !== "0") expect(stopped?.["message"]).toContain(`(--from ${from})`);
  const store = ["verify", "--store", setting.receiver.storeDir];
  const rest = await replicate(t, [...store, "vm@1", "--from", String(from), "--json"]);
  expect(rest.code).toBe(0);
  expect(rest.lines.at(-1)).toMatchObject({ good: true, from: Number(from), bytesRead: 8 * MIB - Number(from) });
  const half = await replicate(t, [...store, "vm", "--from", "4MiB"]);
  expect(half.stdout).toContain(`vm@1: good from ${4 * MIB} on; `);
  for (const more of [[], ["vm", "--all"]]) {
    expect((await replicate(t, [...store, ...more, "--from", "4MiB"])).code).toBe(2);
  }
});
