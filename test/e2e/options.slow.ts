/** Options of `send` over TLS from the command line: what they promise is seen at the receiver and on the wire. */
import { readFileSync, writeFileSync } from "node:fs";
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeNoise, MIB, writeAt } from "./content.ts";
import {
  cmpFiles,
  makePki,
  type Pki,
  replicaPath,
  replicate,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";
import { startProxy } from "./proxy.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

function fingerprintOf(folder: string): string {
  return new X509Certificate(readFileSync(join(folder, "cert.pem"))).fingerprint256;
}

test.concurrent("block, digest, codec and connections of a new disk; later they are the disk's", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeNoise(image, 12 * MIB, 1);
  const storeDir = join(dir, "store");
  const receiver = await startReceiver(t, { storeDir, tls: pki.recv });
  const proxy = await startProxy(t, receiver.port);
  const sending = { image, port: proxy.port, disk: "vm", tls: pki.send };
  const args = ["--block", "128KiB", "--digest", "sha256", "--codec", "deflate", "--connections", "3"];
  const first = await send(t, { ...sending, args });
  expect([first.code, first.done?.point]).toEqual([0, 1]);
  expect(proxy.connections).toBe(3);
  expect(cmpFiles(image, replicaPath(storeDir, "vm"))).toBeUndefined();
  const record = await replicate(t, ["inspect", join(storeDir, "disks/vm/disk.json"), "--json"]);
  expect(record.lines).toMatchObject([{ blockBytes: 128 * 1024, digestKind: "sha256" }]);

  writeAt(image, [[5 * MIB, Buffer.alloc(4096, 1)]]);
  const delta = await send(t, { ...sending, args: ["--connections", "2"] });
  expect([delta.code, delta.done?.point]).toEqual([0, 2]);
  expect(proxy.connections).toBe(5);
  expect(cmpFiles(image, replicaPath(storeDir, "vm"))).toBeUndefined();
  for (const [options, code] of [
    [["--block", "64KiB"], "block-size-differs"],
    [["--digest", "xxh64"], "digest-kind-differs"],
  ] as const) {
    const refused = await send(t, { ...sending, args: options });
    expect([refused.code, refused.error?.code]).toEqual([4, code]);
  }
});

test.concurrent("a pinned fingerprint: the receiver's is accepted, another one is not, whatever its authority", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeNoise(image, MIB, 2);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const sending = { image, port: receiver.port, disk: "vm", tls: pki.send };
  const wrong = await send(t, { ...sending, args: ["--fingerprint", fingerprintOf(pki.send)] });
  expect([wrong.code, wrong.error?.code]).toEqual([1, "certificate-wrong-fingerprint"]);
  expect((await replicate(t, ["disks", "--store", receiver.storeDir, "--json"])).lines).toEqual([]);
  const right = await send(t, { ...sending, args: ["--fingerprint", fingerprintOf(pki.recv)] });
  expect(right.code).toBe(0);
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();
});

test.concurrent("on a slow link the codec is chosen that makes less of it; what cannot be made less goes as it is", async (t) => {
  const dir = tempDir(t);
  const text = join(dir, "text.raw");
  const source = readFileSync(join(import.meta.dirname, "kit.ts"));
  writeFileSync(text, Buffer.alloc(16 * MIB, source));
  const noisy = join(dir, "noise.raw");
  makeNoise(noisy, 4 * MIB, 3);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const proxy = await startProxy(t, receiver.port, { throttleBytesPerSecond: 2 * MIB });
  for (const [image, disk, least, most] of [
    [text, "text", 0, 0.6],
    [noisy, "noise", 1, 1.02],
  ] as const) {
    const { code, done } = await send(t, { image, port: proxy.port, disk, tls: pki.send });
    expect(code).toBe(0);
    const share = (done?.bytesWire ?? 0) / (disk === "text" ? 16 * MIB : 4 * MIB);
    expect(share).toBeGreaterThan(least);
    expect(share).toBeLessThan(most);
    expect(cmpFiles(image, replicaPath(receiver.storeDir, disk))).toBeUndefined();
  }
});

test.concurrent("what one certificate may take: another disk, and more bytes, are refused by name; what it has is served", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeNoise(image, 2 * MIB, 1);
  const receiver = await startReceiver(t, {
    storeDir: join(dir, "store"),
    tls: pki.recv,
    args: ["--limit-disks", "2", "--limit-size", "5MiB", "--limit-sessions", "3"],
  });
  const sending = { port: receiver.port, tls: pki.send };
  expect((await send(t, { ...sending, image, disk: "one" })).done?.point).toBe(1);
  const large = join(dir, "large.raw");
  makeNoise(large, 4 * MIB, 2);
  const tooLarge = await send(t, { ...sending, image: large, disk: "two" });
  expect([tooLarge.code, tooLarge.error?.code]).toEqual([1, "limit-exceeded"]);
  expect((await send(t, { ...sending, image, disk: "two" })).done?.point).toBe(1);
  const tooMany = await send(t, { ...sending, image, disk: "three" });
  expect([tooMany.code, tooMany.error?.code]).toEqual([1, "limit-exceeded"]);
  writeAt(image, [[MIB, Buffer.alloc(4096, 1)]]);
  expect((await send(t, { ...sending, image, disk: "one" })).done?.point).toBe(2);
});
