/** An initial copy over a portable disk, by the command line; then deltas over the network. */
import { chmodSync, copyFileSync, existsSync, readdirSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { MIB, until } from "./content.ts";
import {
  changeImage,
  CliProcess,
  cmpFiles,
  makeImage,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

test.concurrent("64 MiB in files, applied, already there; the next send is a delta", async (t) => {
  const dir = tempDir(t);
  const [image, usb, store] = ["disk.raw", "usb", "store"].map((name) => join(dir, name)) as [string, string, string];
  makeImage(image, 64 * MIB, 5);
  // The host means nothing, so that a command that is there needs one option more.
  const made = await replicate(t, [
    "send",
    image,
    "nowhere.example:1/vm",
    "--to-dir",
    usb,
    "--label",
    "seed",
    "--json",
  ]);
  expect(made.code, made.stdout + made.stderr).toBe(0);
  expect(made.lines.at(-1)).toMatchObject({ event: "done", point: null, created: false, disk: "vm", directory: usb });
  const again = await replicate(t, ["send", image, "vm", "--to-dir", usb, "--json"]);
  expect([again.code, again.lines.at(-1)?.["code"]]).toEqual([4, "target-exists"]);

  const args = ["recv", "--store", store, "--from-dir", usb, "--owner", "send", "--json"];
  const applied = await replicate(t, args);
  expect(applied.code, applied.stdout + applied.stderr).toBe(0);
  const root = made.lines.at(-1)?.["root"];
  expect(applied.lines.at(-1)).toMatchObject({ event: "done", disk: "vm", point: 1, created: true, root });
  expect(cmpFiles(image, replicaPath(store, "vm"))).toBeUndefined();
  const twice = await replicate(t, args);
  expect(twice.code).toBe(0);
  expect(twice.lines.at(-1)).toMatchObject({ created: false, point: 1, cycle: applied.lines.at(-1)?.["cycle"] });
  const points = await replicate(t, ["points", "--store", store, "vm", "--json"]);
  expect(points.lines).toMatchObject([{ point: 1, label: "seed", root }]);

  changeImage(image, 200, 9);
  const receiver = await startReceiver(t, { storeDir: store, tls: pki.recv });
  const delta = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(delta.done, delta.stderr).toMatchObject({ point: 2, reason: "scan" });
  expect(delta.done?.bytesWire).toBeLessThan(3 * MIB);
  expect(cmpFiles(image, replicaPath(store, "vm"))).toBeUndefined();
  const stale = await replicate(t, args);
  expect(stale.lines.at(-1)).toMatchObject({ created: false, point: 1 });
});

test.concurrent("killed in the middle, either end; run again, each goes on", async (t) => {
  const dir = tempDir(t);
  const [image, usb, store] = ["disk.raw", "usb", "store"].map((name) => join(dir, name)) as [string, string, string];
  makeImage(image, 96 * MIB, 6);
  const parts = (): readonly string[] => (existsSync(usb) ? readdirSync(usb) : []);
  const size = (name: string): number => statSync(join(usb, name), { throwIfNoEntry: false })?.size ?? 0;
  const sending = new CliProcess(t, ["send", image, "vm", "--to-dir", usb, "--rate", "16MiB"]);
  await until(() => parts().some((name) => size(name) > 4 * MIB));
  await sending.kill();
  const left = parts();
  const recv = ["recv", "--store", store, "--from-dir", usb, "--owner", "send", "--json"];
  const incomplete = await replicate(t, recv);
  expect([incomplete.code, incomplete.lines.at(-1)?.["code"]]).toEqual([1, "seed-not-found"]);
  const stopped = new CliProcess(t, ["send", image, "vm", "--to-dir", usb, "--rate", "16MiB", "--json"]);
  await until(() => parts().some((name) => !left.includes(name) && size(name) > 4 * MIB));
  stopped.signal("SIGINT");
  expect(await stopped.exited).toBe(130);
  expect(parts()).toEqual([]);
  expect((await replicate(t, ["send", image, "vm", "--to-dir", usb])).code).toBe(0);

  const replica = replicaPath(store, "vm");
  const applying = new CliProcess(t, recv);
  await until(() => applying.ended || (existsSync(replica) && statSync(replica).blocks > 8_192));
  await applying.kill();
  const resumed = await replicate(t, recv);
  expect(resumed.code, resumed.stdout + resumed.stderr).toBe(0);
  expect(resumed.lines.at(-1)).toMatchObject({ event: "done", point: 1 });
  expect(cmpFiles(image, replica)).toBeUndefined();
});

test.concurrent("wrong use is told; damage names the file and gives 3", async (t) => {
  const dir = tempDir(t);
  const [image, usb, store] = ["disk.raw", "usb", "store"].map((name) => join(dir, name)) as [string, string, string];
  makeImage(image, 2 * MIB, 7);
  for (const args of [
    ["send", image, "host:1/vm", "--tls", pki.send, "--force"],
    ["send", image, "NO", "--to-dir", usb],
    ["recv", "--store", store, "--from-dir", usb],
    ["recv", "--store", store, "--from-dir", usb, "--owner", "send", "--listen", "127.0.0.1:0"],
  ]) {
    expect((await replicate(t, args)).code, args.join(" ")).toBe(2);
  }
  expect((await replicate(t, ["send", image, "vm", "--to-dir", usb])).code).toBe(0);
  const part = join(usb, readdirSync(usb).find((name) => name.endsWith(".frames")) ?? "");
  const copy = join(dir, "copy");
  copyFileSync(part, copy);
  chmodSync(part, 0o600);
  truncateSync(part, statSync(part).size - 1);
  const damaged = await replicate(t, ["recv", "--store", store, "--from-dir", usb, "--owner", "send"]);
  expect([damaged.code, damaged.stderr]).toEqual([3, expect.stringContaining(part)]);
  copyFileSync(copy, part);
  expect((await replicate(t, ["recv", "--store", store, "--from-dir", usb, "--owner", "send"])).code).toBe(0);
});
