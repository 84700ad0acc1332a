/** The client against servers of other makes: qemu-nbd, nbdkit with its filters, qemu-storage-daemon. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { openNbdReader, openNbdWriter } from "../../src/nbd/client.ts";
import { parseNbdUri } from "../../src/nbd/nbd-uri.ts";
import type { Credentials } from "../../src/transport/credentials.ts";
import { makeImage, needTools, runTool, suiteScope } from "../e2e/kit.ts";
import { extentsOf, readRange, writerConformance } from "../image/conformance.ts";
import { hasCommand } from "../storage/scratch.ts";
import { makePki, type TestPki } from "../transport/kit.ts";
import { killServer, openUri, socketDir, startNbdkit, startQemuNbd, startServer } from "./kit.ts";

const noNbdkit = hasCommand("nbdkit", "--version") ? undefined : "no nbdkit";

for (const [name, unit, sectorBytes, args] of [
  ["nbdkit", 1, 512, ["memory"]],
  ["nbdkit, simple replies", 1, 512, ["--no-sr", "memory"]],
  [
    "nbdkit, blocks of 512",
    512,
    512,
    [
      "--filter=blocksize-policy",
      "memory",
      "blocksize-minimum=512",
      "blocksize-maximum=64k",
      "blocksize-error-policy=error",
    ],
  ],
  [
    "nbdkit, blocks of 4096",
    4096,
    4096,
    ["--filter=blocksize-policy", "memory", "blocksize-minimum=4096", "blocksize-error-policy=error"],
  ],
  [
    "nbdkit, no zeroes, no extents, one after the other",
    1,
    512,
    ["--filter=nozero", "--filter=noextents", "--filter=noparallel", "memory"],
  ],
] as const) {
  let tasks: (() => void | Promise<void>)[] = [];
  writerConformance({
    name,
    sectorBytes,
    sizeUnit: unit,
    // Without zeroes each byte is written; without extents the whole is one.
    sizeBytesMax: 2 ** 41,
    skip: noNbdkit,
    async create(sizeBytes) {
      const scope = { onTestFinished: (task: () => void | Promise<void>) => void tasks.push(task) };
      const { uri } = startNbdkit(scope, ...args, `size=${String(sizeBytes)}`);
      return await openNbdWriter({ address: parseNbdUri(uri) });
    },
    async clean() {
      for (const task of tasks.reverse()) await task();
      tasks = [];
    },
  });
}

describe("qemu-nbd", () => {
  test("a raw file and a qcow2: the content, holes as holes, several connections", async (t) => {
    needTools(t, "qemu-nbd", "qemu-img");
    const dir = socketDir(t);
    const raw = join(dir, "a.raw");
    makeImage(raw, 9 * MIB + 512, 3);
    const content = readFileSync(raw);
    expect(runTool("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, join(dir, "a.qcow2")]).code).toBe(0);
    for (const args of [
      ["-r", "-f", "raw", raw],
      ["-r", "-e", "4", "-f", "qcow2", join(dir, "a.qcow2")],
    ]) {
      const reader = await openUri(startQemuNbd(t, ...args).uri);
      expect(reader.isReadOnly).toBe(true);
      expect(reader.sizeBytes).toBe(content.length);
      expect(Buffer.compare(await readRange(reader, 0, content.length), content)).toBe(0);
      const extents = await extentsOf(reader, 0, reader.sizeBytes);
      expect(extents.some(({ kind }) => kind === "hole")).toBe(true);
      for (const { kind, offset, length } of extents) {
        if (kind !== "data") expect(content.subarray(offset, offset + length).every((byte) => byte === 0)).toBe(true);
      }
      const pieces = await Promise.all(
        Array.from({ length: 64 }, (_, index) => readRange(reader, index * 100_001, 4_097)),
      );
      for (const [index, piece] of pieces.entries()) {
        expect(Buffer.compare(piece, content.subarray(index * 100_001, index * 100_001 + 4_097))).toBe(0);
      }
      await reader.close();
      await expect(openNbdWriter({ address: parseNbdUri(reader.name) })).rejects.toMatchObject({ code: "not-allowed" });
    }
  });

  test("a dirty bitmap of a qcow2 tells what was written since it was made", async (t) => {
    needTools(t, "qemu-nbd", "qemu-img", "qemu-io");
    const image = join(socketDir(t), "a.qcow2");
    const must = (name: string, ...args: readonly string[]): void =>
      expect(runTool(name, args)).toMatchObject({ code: 0 });
    must("qemu-img", "create", "-q", "-f", "qcow2", image, "64M");
    must("qemu-io", "-f", "qcow2", "-c", "write 0 1M", image);
    must("qemu-img", "bitmap", "-f", "qcow2", "--add", "-g", "64k", image, "since");
    must("qemu-io", "-f", "qcow2", "-c", "write 10M 64k", "-c", "write 10304k 64k", "-c", "write 63M 1M", image);
    const { uri } = startQemuNbd(t, "-r", "-f", "qcow2", "-B", "since", image);
    const context = "qemu:dirty-bitmap:since";
    const reader = await openUri(uri, [context, "qemu:dirty-bitmap:none"]);
    expect(reader.contexts).toEqual(["base:allocation", context]);
    const dirty = async (offset: number, length: number): Promise<[number, number][]> => {
      const found: [number, number][] = [];
      for await (const range of reader.dirtyExtents(context, offset, length)) found.push([range.offset, range.length]);
      return found;
    };
    expect(await dirty(0, 64 * MIB)).toEqual([
      [10 * MIB, 128 * KIB],
      [63 * MIB, MIB],
    ]);
    expect(await dirty(10 * MIB + 100, 1000)).toEqual([[10 * MIB + 100, 1000]]);
    expect(await dirty(0, 10 * MIB)).toEqual([]);
    expect((await extentsOf(reader, 0, 2 * MIB)).map(({ kind, length }) => [kind, length])).toEqual([
      ["data", MIB],
      ["hole", MIB],
    ]);
    await reader.close();
  });

  test("a name that is wrong ends with the one there is, and a socket nobody listens on with what to do", async (t) => {
    needTools(t, "qemu-nbd");
    const raw = join(socketDir(t), "a.raw");
    makeImage(raw, MIB);
    const { uri } = startQemuNbd(t, "-r", "-f", "raw", "-x", "disk one", raw);
    await expect(openUri(uri)).rejects.toThrow('it has "disk one"');
    await expect(openUri(uri)).rejects.toMatchObject({ code: "image-not-found" });
    const named = await openUri(uri.replace(":///", ":///disk%20one"));
    expect(named.sizeBytes).toBe(MIB);
    await named.close();
    await expect(openUri(`${uri}.none`)).rejects.toMatchObject({ code: "connect-failed", action: "reconnect" });
    await expect(openUri(`${uri}.none`)).rejects.toThrow("start the server");
  });

  test("a server that is killed: the read in the middle is to be tried again, and works once it is back", async (t) => {
    needTools(t, "qemu-nbd");
    const dir = socketDir(t);
    const raw = join(dir, "a.raw");
    makeImage(raw, MIB);
    const pidFile = join(dir, "pid");
    const command = ["qemu-nbd", "--fork", "-t", "-r", "-f", "raw", `--pid-file=${pidFile}`, "-k", join(dir, "s"), raw];
    startServer(t, command, pidFile);
    const reader = await openUri(`nbd+unix:///?socket=${dir}/s`);
    await readRange(reader, 0, MIB);
    killServer(pidFile);
    let failure: unknown;
    for (let tries = 0; failure === undefined && tries < 1000; tries++) {
      failure = await readRange(reader, 0, 512).then(
        () => undefined,
        (error: unknown) => error,
      );
    }
    expect(failure).toMatchObject({ action: "reconnect" });
    startServer(t, command, pidFile);
    expect(Buffer.compare(await readRange(reader, 0, MIB), readFileSync(raw))).toBe(0);
    await reader.close();
  });
});

describe("nbdkit", () => {
  test("an error of the server is one of this read alone", async (t) => {
    needTools(t, "nbdkit");
    const dir = socketDir(t);
    const { uri } = startNbdkit(
      t,
      "--filter=error",
      "pattern",
      "1M",
      "error-pread=EIO",
      "error-pread-rate=100%",
      `error-pread-file=${dir}/bad`,
    );
    const reader = await openUri(uri);
    const good = await readRange(reader, 8, 16);
    expect(Buffer.from(good).toString("hex")).toBe("00000000000000080000000000000010");
    writeFileSync(join(dir, "bad"), "");
    await expect(readRange(reader, 4096, 512)).rejects.toMatchObject({
      code: "image-unreadable",
      details: { errno: "EIO", offset: 4096 },
    });
    expect(existsSync(join(dir, "bad"))).toBe(true);
    await reader.close();
  });

  test("errors of what writes have codes of their own", async (t) => {
    needTools(t, "nbdkit");
    const open = async (...args: readonly string[]) =>
      openNbdWriter({ address: parseNbdUri(startNbdkit(t, "--filter=error", "memory", "1M", ...args).uri) });
    const full = await open("error-pwrite=ENOSPC", "error-pwrite-rate=100%");
    await expect(full.write(new Uint8Array(512), 0)).rejects.toMatchObject({ code: "no-space" });
    await full.close();
    const zero = await open("error-zero=EINVAL", "error-zero-rate=100%");
    await zero.write(new Uint8Array(4096).fill(1), 0);
    await zero.zero(0, 2048);
    const after = await readRange(zero, 0, 4096);
    expect([after[0], after[2047], after[2048]]).toEqual([0, 0, 1]);
    await zero.trim(0, 4096);
    await zero.writeDurably(new Uint8Array(512).fill(7), 512);
    expect((await readRange(zero, 512, 1))[0]).toBe(7);
    await zero.flush();
    await zero.close();
  });

  test("delayed answers come out of order and are told apart", async (t) => {
    needTools(t, "nbdkit");
    const { uri } = startNbdkit(t, "--filter=delay", "pattern", "16M", "delay-read=5ms");
    const reader = await openUri(uri);
    const reads = await Promise.all(Array.from({ length: 100 }, (_, index) => readRange(reader, index * 8_008, 8)));
    for (const [index, bytes] of reads.entries())
      expect(Buffer.from(bytes).readBigUInt64BE()).toBe(BigInt(index * 8_008));
    await reader.close();
  });

  test("oldstyle is refused", async (t) => {
    needTools(t, "nbdkit");
    await expect(openUri(startNbdkit(t, "-o", "memory", "1M").uri)).rejects.toMatchObject({
      code: "version-unsupported",
    });
  });

  test("the exports of a server are named when the wrong one is asked for", async (t) => {
    needTools(t, "nbdkit");
    const { uri } = startNbdkit(
      t,
      "--filter=exportname",
      "memory",
      "1M",
      "exportname-list=explicit",
      "exportname-strict=true",
      "exportname=a",
      "exportname=b",
    );
    await expect(openUri(uri.replace(":///", ":///c"))).rejects.toThrow('it has "a", "b"');
  });
});

describe("qemu-storage-daemon", () => {
  test("a writable export: written, zeroed, flushed, and read through another connection", async (t) => {
    needTools(t, "qemu-storage-daemon");
    const dir = socketDir(t);
    const raw = join(dir, "a.raw");
    makeImage(raw, 4 * MIB);
    const expected = readFileSync(raw);
    const pidFile = join(dir, "pid");
    const command = [
      ...["qemu-storage-daemon", "--daemonize", "--pidfile", pidFile],
      ...["--blockdev", `file,node-name=f,filename=${raw},discard=unmap`],
      ...["--nbd-server", `addr.type=unix,addr.path=${dir}/s`],
      ...["--export", "nbd,id=e,node-name=f,name=disk,writable=on"],
    ];
    startServer(t, command, pidFile);
    const writer = await openNbdWriter({ address: parseNbdUri(`nbd+unix:///disk?socket=${dir}/s`) });
    const change = (offset: number, bytes: Buffer): Promise<void> => {
      bytes.copy(expected, offset);
      return writer.write(bytes, offset);
    };
    await Promise.all(
      Array.from({ length: 40 }, (_, index) => change(index * 50_001, Buffer.alloc(33_333, index + 1))),
    );
    await writer.zero(1_000_001, 1_500_000);
    expected.fill(0, 1_000_001, 2_500_001);
    await writer.flush();
    expect(readFileSync(raw).equals(expected)).toBe(true);
    const reader = await openUri(`nbd+unix:///disk?socket=${dir}/s`);
    expect(Buffer.compare(await readRange(reader, 0, expected.length), expected)).toBe(0);
    await reader.close();
    await writer.close();
  });
});

describe("TLS", () => {
  const suite = suiteScope();
  let pki: TestPki;
  let client: Credentials;
  let folder: string;
  beforeAll(async () => {
    pki = await makePki();
    client = await pki.node("client");
    await pki.node("server");
    folder = join(socketDir(suite), "tls");
    mkdirSync(folder);
    copyFileSync(join(pki.directory, "server/ca.pem"), join(folder, "ca-cert.pem"));
    copyFileSync(join(pki.directory, "server/cert.pem"), join(folder, "server-cert.pem"));
    copyFileSync(join(pki.directory, "server/key.pem"), join(folder, "server-key.pem"));
  });
  afterAll(() => pki.remove());

  test("nbdkit with certificates on both sides; nbd:// is told to use nbds://, and nbds:// wants certificates", async (t) => {
    needTools(t, "nbdkit");
    const { uri } = startNbdkit(
      t,
      "--tls=require",
      `--tls-certificates=${folder}`,
      "--tls-verify-peer",
      "pattern",
      "8M",
    );
    const address = parseNbdUri(uri.replace("nbd+", "nbds+"));
    const reader = await openNbdReader({ address, credentials: client });
    const bytes = Buffer.from(await readRange(reader, 0, 8 * MIB));
    for (let at = 0; at < bytes.length; at += 65_536) expect(bytes.readBigUInt64BE(at)).toBe(BigInt(at));
    await reader.close();
    await expect(openUri(uri)).rejects.toMatchObject({ code: "tls-failed" });
    await expect(openUri(uri)).rejects.toThrow("nbds://");
    await expect(openNbdReader({ address })).rejects.toMatchObject({ code: "usage" });
  });

  test("a server without TLS, and one of another authority, are not talked to", async (t) => {
    needTools(t, "nbdkit");
    const plain = startNbdkit(t, "pattern", "1M");
    const secured = (uri: string) => ({ address: parseNbdUri(uri.replace("nbd+", "nbds+")), credentials: client });
    await expect(openNbdReader(secured(plain.uri))).rejects.toMatchObject({ code: "tls-failed" });
    const other = await makePki();
    t.onTestFinished(() => other.remove());
    await other.node("server");
    const strange = join(socketDir(t), "tls");
    mkdirSync(strange);
    copyFileSync(join(other.directory, "server/ca.pem"), join(strange, "ca-cert.pem"));
    copyFileSync(join(other.directory, "server/cert.pem"), join(strange, "server-cert.pem"));
    copyFileSync(join(other.directory, "server/key.pem"), join(strange, "server-key.pem"));
    const { uri } = startNbdkit(t, "--tls=require", `--tls-certificates=${strange}`, "pattern", "1M");
    await expect(openNbdReader(secured(uri))).rejects.toMatchObject({ code: "certificate-unknown-authority" });
  });
});
