/** The server with clients of other makes: nbdinfo, nbdcopy, qemu-img, qemu-io; over an image that is a file, and one that is not. */
import { execFile } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test, type TestContext } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { makeImage, needTools, runTool } from "../e2e/kit.ts";
import { makePki } from "../transport/kit.ts";
import { socketDir } from "./kit.ts";
import { exportFile, type Listening, serve, storage } from "./server-kit.ts";

const run = promisify(execFile);

/** Runs a tool to its end while this process serves; throws what it says when it fails. */
async function tool(name: string, ...args: readonly string[]): Promise<string> {
  return (await run(name, args, { encoding: "utf8", timeout: 120_000, maxBuffer: 64 * MIB })).stdout;
}

const sizeBytes = 16 * MIB + 512;

async function serveFile(
  t: TestContext,
  direct: boolean,
  writable = true,
): Promise<Listening & { readonly raw: string; readonly dir: string }> {
  const dir = socketDir(t);
  const raw = join(dir, "disk.raw");
  makeImage(raw, sizeBytes, 4);
  return { ...(await serve(t, [await exportFile(t, raw, { direct, writable })])), raw, dir };
}

for (const direct of [true, false]) {
  describe(direct ? "a file, at once" : "through the image", () => {
    test("nbdinfo: size, flags, contexts, and the map of the file", async (t) => {
      needTools(t, "nbdinfo");
      const { uri } = await serveFile(t, direct, false);
      const info = JSON.parse(await tool("nbdinfo", "--json", uri)) as {
        readonly exports: readonly Record<string, unknown>[];
      };
      expect(info).toMatchObject({ protocol: "newstyle-fixed", TLS: false, structured: true });
      expect(info.exports[0]).toMatchObject({
        "export-size": sizeBytes,
        is_read_only: true,
        can_multi_conn: true,
        can_flush: true,
        can_df: true,
        can_cache: direct,
        contexts: ["base:allocation"],
        block_size_minimum: 1,
        block_size_maximum: 32 * MIB,
      });
      const map = JSON.parse(await tool("nbdinfo", "--json", "--map", uri)) as readonly {
        readonly offset: number;
        readonly length: number;
        readonly type: number;
      }[];
      expect(map.some(({ type }) => type === 3)).toBe(true);
      expect(map.reduce((sum, { length }) => sum + length, 0)).toBe(sizeBytes);
      const named = await tool("nbdinfo", "--size", uri.replace(":///", ":///disk.raw"));
      expect(Number(named)).toBe(sizeBytes);
      const listed = JSON.parse(await tool("nbdinfo", "--json", "--list", uri)) as {
        readonly exports: readonly Record<string, unknown>[];
      };
      expect(listed.exports.map((each) => each["export-name"])).toEqual(["disk.raw"]);
      await expect(tool("nbdinfo", uri.replace(":///", ":///none"))).rejects.toThrow("No such file");
    });

    test("libnbd: a client has a range read ahead where the export is a file", async (t) => {
      const python = "/usr/bin/python3";
      const libnbd = ["-c", "import nbd"];
      if (runTool(python, libnbd).code !== 0) t.skip("python3-libnbd is not installed");
      const { uri } = await serveFile(t, direct);
      const lines = [
        "import nbd, sys",
        "h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri(sys.argv[1])",
        `assert h.can_cache() == ${direct ? "True" : "False"}`,
        "def refused(offset, count):",
        "  try: h.cache(count, offset)",
        "  except nbd.Error as e: return e.errno == 'EINVAL'",
        direct ? "h.cache(4096, 1 << 20)" : "assert refused(0, 4096)",
        `assert refused(512, ${String(sizeBytes)})`,
        "assert len(h.pread(4096, 1 << 20)) == 4096",
      ];
      await tool(python, "-c", lines.join("\n"), uri);
    });

    test("nbdcopy out and in, with four connections and requests of several sizes", async (t) => {
      needTools(t, "nbdcopy");
      const { uri, raw, dir, log } = await serveFile(t, direct);
      const copy = join(dir, "copy.raw");
      for (const size of ["4096", "262144", "33554432"]) {
        writeFileSync(copy, "");
        await tool("nbdcopy", `--request-size=${size}`, uri, copy);
        expect(readFileSync(copy).equals(readFileSync(raw))).toBe(true);
        const other = join(dir, "other.raw");
        makeImage(other, sizeBytes, Number(size));
        await tool("nbdcopy", "--flush", `--request-size=${size}`, other, uri);
        expect(readFileSync(raw).equals(readFileSync(other))).toBe(true);
      }
      expect(log.lines).toEqual([]);
    });

    test("qemu-img: convert both ways, compare, map; qemu-io: writes, zeroes, discards, flush, FUA", async (t) => {
      needTools(t, "qemu-img", "qemu-io");
      const { uri, raw, dir } = await serveFile(t, direct);
      const qcow2 = join(dir, "a.qcow2");
      await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow2);
      expect(await tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, raw)).toContain("identical");
      expect(await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, raw)).toContain("identical");
      const map = JSON.parse(await tool("qemu-img", "map", "--output=json", "-f", "raw", uri)) as readonly {
        readonly zero: boolean;
        readonly data: boolean;
      }[];
      expect(map.some(({ zero, data }) => zero && !data)).toBe(true);
      const expected = readFileSync(raw);
      expected.fill(0xa1, MIB, MIB + 64 * KIB);
      expected.fill(0xa2, 3 * MIB + 512, 3 * MIB + 1024);
      expected.fill(0, 5 * MIB, 6 * MIB);
      expected.fill(0, 7 * MIB, 8 * MIB);
      expected.fill(0, 9 * MIB, 9 * MIB + 4096);
      const io = [
        "write -P 0xa1 1M 64k",
        "write -f -P 0xa2 3146240 512",
        "write -z 5M 1M",
        "write -z -u 7M 1M",
        "discard 9M 4k",
        "flush",
      ];
      const check = [
        "read -P 0xa1 1M 64k",
        "read -P 0 5M 1M",
        "read -P 0 7M 1M",
        "aio_write -P 0xa1 1M 64k",
        "aio_read 2M 1M",
        "aio_flush",
      ];
      const said = await tool(
        "qemu-io",
        "-f",
        "raw",
        "-d",
        "unmap",
        ...[...io, ...check].flatMap((command) => ["-c", command]),
        uri,
      );
      expect(said).not.toMatch(/fail|error|mismatch/i);
      expect(readFileSync(raw).equals(expected)).toBe(true);
      // What was zeroed with leave to unmap takes no space, what was zeroed without does.
      const file = await storage.open(raw);
      const firstData = [5 * MIB, 7 * MIB].map((offset) => file.nextData(offset)?.start ?? sizeBytes);
      await file.close();
      expect(firstData[0]).toBe(5 * MIB);
      expect(firstData[1]).toBeGreaterThanOrEqual(8 * MIB);
      await tool("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, uri);
      expect(await tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, raw)).toContain("identical");
    });
  });
}

test("an image in memory, the kernel's largest requests and its holes", async (t) => {
  needTools(t, "nbdcopy", "qemu-img");
  const dir = socketDir(t);
  const image = createMemoryImage(sizeBytes);
  const { uri } = await serve(t, [{ name: "memory", image, writable: true }]);
  const raw = join(dir, "a.raw");
  makeImage(raw, sizeBytes, 8);
  await tool("nbdcopy", raw, uri);
  expect(await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, raw)).toContain("identical");
  const copy = join(dir, "b.raw");
  await tool("nbdcopy", uri, copy);
  expect(readFileSync(copy).equals(readFileSync(raw))).toBe(true);
  expect(statSync(copy).blocks).toBeLessThan(sizeBytes / 512);
});

test("TLS: nbdinfo with a certificate is served, without one and in plain it is not", async (t) => {
  needTools(t, "nbdinfo");
  const pki = await makePki();
  t.onTestFinished(() => pki.remove());
  const credentials = await pki.node("server");
  await pki.node("client");
  const tls = join(socketDir(t), "tls");
  mkdirSync(tls);
  for (const [from, to] of [
    ["ca", "ca-cert"],
    ["cert", "client-cert"],
    ["key", "client-key"],
  ] as const) {
    copyFileSync(join(pki.directory, "client", `${from}.pem`), join(tls, `${to}.pem`));
  }
  const { uri, log } = await serve(t, [{ name: "d", image: createMemoryImage(MIB), writable: false }], { credentials });
  const secured = `${uri.replace("nbd+", "nbds+")}&tls-certificates=${tls}`;
  expect(Number(await tool("nbdinfo", "--size", secured))).toBe(MIB);
  expect(log.lines).toEqual([]);
  await expect(tool("nbdinfo", "--size", uri)).rejects.toThrow();
  const bare = join(socketDir(t), "tls");
  mkdirSync(bare);
  copyFileSync(join(tls, "ca-cert.pem"), join(bare, "ca-cert.pem"));
  await expect(tool("nbdinfo", "--size", secured.replace(tls, bare))).rejects.toThrow();
  expect(log.at("warn").some((line) => /certificate/.test(line))).toBe(true);
});
