/** Points served over NBD, read by clients that others made. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { BLOCK, makeSparse, MIB, noise, writeAt } from "./content.ts";
import {
  CliProcess,
  cmpFiles,
  makePki,
  needTools,
  type Pki,
  type Receiver,
  replicate,
  runTool,
  type Scope,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;
let receiver: Receiver;
let dir: string;
const image = (): string => join(dir, "disk.raw");
const copy = (point: number): string => join(dir, `copy-${String(point)}.raw`);

beforeAll(async () => {
  dir = tempDir(suite);
  pki = await makePki(suite, join(dir, "pki"));
  receiver = await startReceiver(suite, { storeDir: join(dir, "store"), tls: pki.recv, args: ["--keep", "last=1"] });
  makeSparse(image(), 40 * MIB + 512);
  for (const point of [1, 2]) {
    writeAt(image(), [[point * 5 * MIB, noise(point, 3 * BLOCK + 700)]]);
    runTool("cp", [image(), copy(point)]);
    if (point === 1)
      expect((await send(suite, { image: image(), port: receiver.port, disk: "vm", tls: pki.send })).code).toBe(0);
  }
});

async function serve(t: Scope, name: string, ...args: readonly string[]) {
  const child = new CliProcess(t, ["export", "--store", receiver.storeDir, name, "--json", ...args]);
  const { uri, point } = await child.waitForEvent("listening");
  if (typeof uri !== "string") throw new Error(child.text);
  return { child, uri, point };
}

test("a point is what it was, to any client, while newer ones come; it stays while it is served and goes then", async (t) => {
  needTools(t, "nbdcopy", "nbdinfo", "qemu-img");
  const socket = join(dir, "p.sock");
  const { child, uri, point } = await serve(t, "vm", "--nbd", `unix:${socket}`);
  expect(point).toBe(1);
  expect(statSync(socket).mode & 0o777).toBe(0o600);
  const target = { image: image(), port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, target)).done?.point).toBe(2);
  const points = async (): Promise<unknown[]> =>
    (await replicate(t, ["points", "--store", receiver.storeDir, "vm", "--json"])).lines.map((line) => line["point"]);
  // The policy keeps the newest alone.
  expect(await points()).toEqual([1, 2]);
  const out = join(dir, "out.raw");
  expect(runTool("nbdcopy", [uri, out]).code).toBe(0);
  expect(cmpFiles(copy(1), out)).toBeUndefined();
  const compared = runTool("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, copy(1)]);
  expect(compared.code, compared.stdout + compared.stderr).toBe(0);
  const info = runTool("nbdinfo", [uri]).stdout;
  expect(info).toMatch(/is_read_only: true/);
  expect(info).toMatch(/description: point 1 of vm/);
  // Our own client too, and the empty name.
  const same = await replicate(t, ["compare", `nbd+unix:///?socket=${socket}`, copy(1)]);
  expect(same.code, same.stderr).toBe(0);
  // Nobody writes to it.
  expect(runTool("qemu-io", ["-f", "raw", "-c", "write 0 512", uri]).code).not.toBe(0);
  expect(await child.stop()).toBe(0);
  expect(existsSync(socket)).toBe(false);
  const pruned = await replicate(t, ["prune", "--store", receiver.storeDir, "vm"]);
  expect(pruned.code, pruned.stderr).toBe(0);
  expect(await points()).toEqual([2]);
});

test("over TCP with certificates on both sides; without them on this machine only", async (t) => {
  const { uri } = await serve(t, "vm@latest", "--nbd", "127.0.0.1:0", "--tls", pki.recv);
  expect(uri).toMatch(/^nbds:\/\/127\.0\.0\.1:\d+\/vm$/);
  const same = await replicate(t, ["compare", uri, copy(2), "--nbd-tls", pki.send]);
  expect(same.code, same.stdout + same.stderr).toBe(0);
  const bare = await replicate(t, ["compare", uri.replace("nbds:", "nbd:"), copy(2)]);
  expect(bare.code).toBe(1);
  const open = await replicate(t, ["export", "--store", receiver.storeDir, "vm", "--nbd", "0.0.0.0:0"]);
  expect(open.code).toBe(2);
  expect(open.stderr).toMatch(/--tls DIR\/NAME/);
  for (const [name, code] of [
    ["gone", 1],
    ["vm@77", 1],
  ] as const) {
    const missing = await replicate(t, ["export", "--store", receiver.storeDir, name, "--nbd", "127.0.0.1:0"]);
    expect(missing.code, name).toBe(code);
  }
});
