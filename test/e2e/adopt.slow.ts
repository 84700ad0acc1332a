/** An image that the other site has already, adopted as a replica by the command line; then deltas over the network. */
import { existsSync, mkdirSync, readdirSync, statSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { MIB, until } from "./content.ts";
import {
  changeImage,
  CliProcess,
  cmpFiles,
  finish,
  makeImage,
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

const ways: readonly { readonly way: string; readonly options: readonly string[] }[] = [
  { way: "where it lies", options: [] },
  { way: "moved into the store", options: ["--move"] },
];

/** A copy with the holes of the original. */
function copy(from: string, to: string): void {
  const { code, stderr } = runTool("cp", ["--sparse=always", from, to]);
  if (code !== 0) throw new Error(stderr);
}

function paths(dir: string): Record<"image" | "shipped" | "kept" | "store", string> {
  mkdirSync(join(dir, "vms"));
  return {
    image: join(dir, "disk.raw"),
    shipped: join(dir, "vms", "web.raw"),
    kept: join(dir, "kept.raw"),
    store: join(dir, "store"),
  };
}

function adoptArgs(image: string, store: string, ...more: readonly string[]): readonly string[] {
  return ["adopt", image, "--store", store, "--disk", "web", "--owner", "send", "--json", ...more];
}

test.concurrent.for(ways)(
  "adopted $way: the source's changes are sent, point 1 is what was adopted",
  async ({ options }, t) => {
    needTools(t, "cp", "cmp");
    const { image, shipped, kept, store } = paths(tempDir(t));
    makeImage(image, 64 * MIB, 5);
    copy(image, shipped);
    copy(image, kept);
    const adopted = await replicate(t, adoptArgs(shipped, store, "--label", "shipped", ...options));
    expect(adopted.code, adopted.stdout + adopted.stderr).toBe(0);
    const replica = options.length > 0 ? replicaPath(store, "web") : shipped;
    expect(adopted.lines.at(-1)).toMatchObject({
      ...{ event: "done", disk: "web", point: 1, reason: "adopted", created: true, label: "shipped", replica },
    });
    expect([existsSync(shipped), existsSync(replicaPath(store, "web"))]).toEqual(
      options.length > 0 ? [false, true] : [true, false],
    );
    expect(statSync(replica).mode & 0o777).toBe(0o400);
    expect(cmpFiles(kept, replica)).toBeUndefined();
    const again = await replicate(t, adoptArgs(shipped, store, ...options));
    expect(again.lines.at(-1)).toMatchObject({ event: "done", point: 1, created: false });

    changeImage(image, 200, 9);
    const receiver = await startReceiver(t, { storeDir: store, tls: pki.recv });
    const delta = await send(t, { image, port: receiver.port, disk: "web", tls: pki.send });
    expect(delta.done, delta.stderr).toMatchObject({ point: 2, reason: "scan" });
    expect(delta.done?.bytesWire).toBeLessThan(3 * MIB);
    expect(cmpFiles(image, replica)).toBeUndefined();
    const restored = join(store, "..", "restored.raw");
    const ofStore = async (verb: string, ...args: readonly string[]) => {
      const result = await replicate(t, [verb, "--store", store, ...args]);
      expect(result.code, `${verb}: ${result.stdout}${result.stderr}`).toBe(0);
      return result;
    };
    await ofStore("restore", "web@1", restored);
    expect(cmpFiles(kept, restored)).toBeUndefined();
    await ofStore("verify", "--all");
    expect((await ofStore("points", "web", "--json")).lines).toMatchObject([
      { point: 1, label: "shipped" },
      { point: 2 },
    ]);
    expect((await ofStore("disks", "--json")).lines).toMatchObject([
      { disk: "web", state: "idle", points: 2, owner: "send", image: options.length > 0 ? null : shipped },
    ]);
    expect((await ofStore("disks")).stdout.includes(`adopted at ${shipped}`)).toBe(options.length === 0);
    expect((await replicate(t, ["compare", kept, `${store}/web@1`])).code).toBe(0);

    // A receiver that is killed in the middle of a delta: every point is read, the delta is given up, and comes again.
    copy(image, kept);
    changeImage(image, 4_000, 11);
    const sending = startSend(t, { image, port: receiver.port, disk: "web", tls: pki.send, args: ["--rate", "4MiB"] });
    await until(() => cmpFiles(kept, replica) !== undefined);
    await receiver.kill();
    await sending.kill();
    expect((await ofStore("disks", "--json")).lines).toMatchObject([{ state: "interrupted" }]);
    unlinkSync(restored);
    await ofStore("restore", "web@2", restored);
    expect(cmpFiles(kept, restored)).toBeUndefined();
    await ofStore("rollback", "web");
    expect(cmpFiles(kept, replica)).toBeUndefined();
    await ofStore("repair", "web");
    const next = await startReceiver(t, { storeDir: store, tls: pki.recv });
    const last = await finish(startSend(t, { image, port: next.port, disk: "web", tls: pki.send }));
    expect(last.done, last.stderr).toMatchObject({ point: 3 });
    expect(cmpFiles(image, replica)).toBeUndefined();
    await ofStore("verify", "--all");
  },
);

test.concurrent("another image is not taken for it; a missing one is told by its path", async (t) => {
  needTools(t, "cp");
  const { image, shipped, store } = paths(tempDir(t));
  makeImage(image, 16 * MIB, 5);
  makeImage(shipped, 16 * MIB, 6);
  expect((await replicate(t, adoptArgs(shipped, store))).code).toBe(0);
  const receiver = await startReceiver(t, { storeDir: store, tls: pki.recv });
  const refused = await send(t, { image, port: receiver.port, disk: "web", tls: pki.send });
  expect([refused.code, refused.error?.code]).toEqual([4, "another-image"]);
  unlinkSync(shipped);
  const missing = await send(t, { image, port: receiver.port, disk: "web", tls: pki.send });
  expect([missing.code, missing.error?.code, missing.error?.message]).toEqual([
    ...[1, "store-damaged", expect.stringContaining(`${shipped} is missing`)],
  ]);
  const disks = await replicate(t, ["disks", "--store", store, "--json"]);
  expect(disks.lines).toMatchObject([{ state: "damaged", trouble: expect.stringContaining(shipped) }]);
});

test.concurrent.for(ways)(
  "$way, killed or stopped in the middle: no disk and the image as it was; then it is run again",
  async ({ options }, t) => {
    needTools(t, "cp", "cmp");
    const { shipped, kept, store } = paths(tempDir(t));
    makeImage(shipped, 256 * MIB, 7);
    copy(shipped, kept);
    const marker = join(store, "disks/web/adopt.new");
    for (const signal of ["SIGINT", "SIGKILL"] as const) {
      const adopting = new CliProcess(t, adoptArgs(shipped, store, "--lanes", "1", ...options));
      await until(() => adopting.ended || existsSync(marker));
      adopting.signal(signal);
      const code = await adopting.exited;
      // It may have been quicker than the signal.
      if (code === 0) continue;
      expect(code).toBe(signal === "SIGINT" ? 130 : "SIGKILL");
      expect((await replicate(t, ["disks", "--store", store])).stdout).toContain("no disks yet");
      expect(cmpFiles(kept, shipped)).toBeUndefined();
      if (signal === "SIGINT") expect(readdirSync(join(store, "disks/web")).sort()).toEqual(["apply.lock", "points"]);
    }
    const adopted = await replicate(t, adoptArgs(shipped, store, ...options));
    expect(adopted.code, adopted.stdout + adopted.stderr).toBe(0);
    expect(cmpFiles(kept, options.length > 0 ? replicaPath(store, "web") : shipped)).toBeUndefined();
    expect((await replicate(t, ["verify", "--store", store, "web"])).code).toBe(0);
  },
);

test.concurrent("what is no image to adopt is refused, and wrong use is told", async (t) => {
  const dir = tempDir(t);
  const { shipped, store } = paths(dir);
  makeImage(shipped, 2 * MIB, 7);
  for (const args of [
    ["adopt"],
    ["adopt", shipped, "--store", store, "--disk", "web"],
    ["adopt", shipped, "--store", store, "--owner", "send"],
    ["adopt", shipped, "--disk", "web", "--owner", "send"],
    adoptArgs(shipped, store, "--block", "5KiB"),
    adoptArgs(shipped, store, "--digest", "md5"),
    ["adopt", shipped, "--store", store, "--disk", "No Name", "--owner", "send"],
  ]) {
    expect((await replicate(t, args)).code, args.join(" ")).toBe(2);
  }
  const zipped = join(dir, "vms", "web.gz");
  writeFileSync(zipped, Buffer.concat([Buffer.from([0x1f, 0x8b, 8]), Buffer.alloc(2_000)]));
  const format = await replicate(t, adoptArgs(zipped, store));
  expect([format.code, format.lines.at(-1)?.["code"]]).toEqual([1, "image-format-unsupported"]);
  const link = join(dir, "link");
  symlinkSync(shipped, link);
  const adopted = await replicate(t, adoptArgs(link, store));
  expect(adopted.lines.at(-1)).toMatchObject({ created: true, replica: shipped });
  const other = ["adopt", shipped, "--store", store, "--disk", "db", "--owner", "send", "--json"];
  const taken = await replicate(t, other);
  expect([taken.code, taken.lines.at(-1)?.["code"]]).toEqual([4, "image-in-use"]);
  const name = await replicate(t, adoptArgs(zipped, store, "--format", "raw"));
  expect([name.code, name.lines.at(-1)?.["code"]]).toEqual([4, "target-exists"]);
});

test.concurrent("an image QEMU has open is refused until it is closed", async (t) => {
  needTools(t, "qemu-io");
  const { shipped, store } = paths(tempDir(t));
  makeImage(shipped, 2 * MIB, 7);
  const qemu = spawn("qemu-io", ["--format=raw", shipped], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(qemu, "exit");
  t.onTestFinished(() => void qemu.kill());
  qemu.stdin.write("length\n");
  await once(qemu.stdout, "data");
  const refused = await replicate(t, adoptArgs(shipped, store));
  expect([refused.code, refused.lines.at(-1)?.["code"]]).toEqual([4, "image-in-use"]);
  qemu.stdin.end("quit\n");
  await exited;
  expect((await replicate(t, adoptArgs(shipped, store))).code).toBe(0);
});
