/** `track --nbd-tls`: an image served to other machines, to clients that others made; and what is not served to them. */
import { X509Certificate } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { makeNoise, MIB, waitForLog } from "../content.ts";
import {
  CliProcess,
  cmpFiles,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  runTool,
  startReceiver,
  suiteScope,
  tempDir,
  type ToolResult,
} from "../kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

/** Certificates under the names by which QEMU and libnbd look for a client's. */
function clientFolder(dir: string, from: string): string {
  mkdirSync(dir);
  for (const [theirs, ours] of [
    ["ca-cert", "ca"],
    ["client-cert", "cert"],
    ["client-key", "key"],
  ] as const) {
    copyFileSync(join(from, `${ours}.pem`), join(dir, `${theirs}.pem`));
  }
  return dir;
}

test("over TCP with certificates: QEMU and libnbd read and write, what they wrote is sent, and nobody else gets in", async (t) => {
  needTools(t, "qemu-img", "qemu-io", "nbdinfo");
  const dir = tempDir(t);
  const image = join(dir, "vm.raw");
  makeNoise(image, 8 * MIB, 1);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const sends = ["--send", `127.0.0.1:${String(receiver.port)}/vm`, "--tls", pki.send, "--every", "0"];
  const served = ["--nbd", "127.0.0.1:0", "--nbd-tls", pki.recv];
  const tracker = new CliProcess(t, ["track", image, ...served, ...sends, "--json"]);
  const uri = String((await tracker.waitForEvent("listening"))["uri"]);
  expect(uri).toMatch(/^nbds:\/\/127\.0\.0\.1:\d+\/vm\.raw$/);
  const { port } = new URL(uri);
  await tracker.waitForEvent("done");

  const certificates = clientFolder(join(dir, "client"), pki.send);
  const infoOf = (folder: string): ToolResult => runTool("nbdinfo", [`${uri}?tls-certificates=${folder}`]);
  const info = infoOf(certificates);
  expect(info.code, info.stderr).toBe(0);
  expect(info.stdout).toMatch(/protocol: newstyle-fixed with TLS/);
  expect(info.stdout).toMatch(/is_read_only: false/);
  expect(info.stdout).toMatch(new RegExp(`export-size: ${String(8 * MIB)}`));

  const qemu = (tool: string, words: readonly string[], folder = certificates): ToolResult => {
    const object = `tls-creds-x509,id=creds,endpoint=client,dir=${folder}`;
    const [verb, ...rest] = words;
    const place = `driver=nbd,host=127.0.0.1,port=${port},export=vm.raw,tls-creds=creds`;
    return runTool(tool, [
      ...(tool === "qemu-img" ? [verb ?? ""] : []),
      "--object",
      object,
      "--image-opts",
      ...rest,
      place,
    ]);
  };
  const written = qemu("qemu-io", ["", "-c", "write -P 7 3M 128k", "-c", "write -z 5M 64k", "-c", "flush"]);
  expect(written.code, written.stdout + written.stderr).toBe(0);
  const converted = qemu("qemu-img", ["info"]);
  expect(converted.code, converted.stdout + converted.stderr).toBe(0);
  const read = qemu("qemu-io", ["", "-c", "read -P 7 3M 128k", "-c", "read -P 0 5M 64k"]);
  expect(read.code, read.stdout + read.stderr).toBe(0);
  expect(read.stdout).not.toMatch(/verification failed/);
  const cycles = (): number => tracker.lines.filter(({ event }) => event === "done").length;
  const before = cycles();
  await tracker.waitFor(() => cycles() >= before + 3);
  expect(cmpFiles(image, replicaPath(receiver.storeDir, "vm"))).toBeUndefined();

  // No TLS, certificates of another authority, and none.
  const plain = runTool("qemu-img", ["info", "-f", "raw", uri.replace("nbds:", "nbd:")]);
  expect(plain.code).not.toBe(0);
  const other = await makePki(t, join(dir, "other"));
  const foreign = join(dir, "foreign");
  clientFolder(foreign, other.send);
  // They trust this server: it is the server that does not know them.
  copyFileSync(join(pki.send, "ca.pem"), join(foreign, "ca-cert.pem"));
  const nobody = join(dir, "nobody");
  mkdirSync(nobody);
  copyFileSync(join(pki.send, "ca.pem"), join(nobody, "ca-cert.pem"));
  for (const folder of [foreign, nobody]) {
    expect(infoOf(folder).code, folder).not.toBe(0);
    expect(qemu("qemu-io", ["", "-c", "write -P 9 0 64k"], folder).code, folder).not.toBe(0);
  }
  expect(infoOf(certificates).code).toBe(0);
  expect(await tracker.stop()).toBe(0);
});

test("an address that other machines reach is not served without certificates", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "vm.raw");
  makeNoise(image, MIB, 1);
  for (const address of ["0.0.0.0:0", "[::]:0"]) {
    const refused = await replicate(t, ["track", image, "--nbd", address]);
    expect(refused.code, address).toBe(2);
    expect(refused.stderr).toMatch(/must show certificates: give .*--nbd-tls/);
  }
  expect(existsSync(`${image}.rbc`)).toBe(false);
  const tracker = new CliProcess(t, ["track", image, "--nbd", "0.0.0.0:0", "--nbd-tls", pki.recv, "--json"]);
  expect((await tracker.waitForEvent("listening"))["uri"]).toMatch(/^nbds:/);
  expect(await tracker.stop()).toBe(0);
});

test("a certificate renewed on disk while a tracker sends: its next connections use it (C-89)", async (t) => {
  const dir = tempDir(t);
  const own = await makePki(t, join(dir, "pki"));
  const image = join(dir, "vm.raw");
  makeNoise(image, MIB, 2);
  const receiver = await startReceiver(t, {
    storeDir: join(dir, "store"),
    tls: own.recv,
    args: ["--log-level", "info"],
  });
  const sends = ["--send", `127.0.0.1:${String(receiver.port)}/vm`, "--tls", own.send, "--every", "1s"];
  const where = ["--nbd", `unix:${join(dir, "vm.sock")}`];
  const tracker = new CliProcess(t, ["track", image, ...where, ...sends, "--json", "--log-level", "info"]);
  await tracker.waitForEvent("done");
  expect((await replicate(t, ["pki", "issue", own.dir, "send", "--renew"])).code).toBe(0);
  const renewed = await waitForLog(tracker, {}, /certificate renewed/);
  const now = new X509Certificate(readFileSync(join(own.send, "cert.pem"))).fingerprint256;
  expect(renewed["fingerprint"]).toBe(now);
  const before = tracker.lines.filter(({ event }) => event === "done").length;
  await tracker.waitFor(() => tracker.lines.filter(({ event }) => event === "done").length >= before + 2);
  expect(await tracker.stop()).toBe(0);
});
