/** What NBD servers export as a source: sent, resumed, compared; and the commands that a refused image prints. */
import { type ChildProcess, spawn } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test, type TestContext } from "vitest";
import { formatNbdUri } from "../../src/nbd/nbd-uri.ts";
import { killServer, openUri, socketDir, startNbdkit, startQemuNbd, startServer } from "../nbd/kit.ts";
import { MIB } from "./content.ts";
import {
  changeImage,
  cliPath,
  finish,
  makeImage,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  root,
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

function must(name: string, ...args: readonly string[]): void {
  const { code, stdout, stderr } = runTool(name, args);
  expect(code, `${name} ${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
}

/** Runs a command of the shell that stays in the foreground, and ends it with the test. */
function startShell(t: TestContext, command: string): ChildProcess {
  const child = spawn("sh", ["-c", `exec ${command}`], { stdio: ["ignore", "ignore", "inherit"] });
  t.onTestFinished(() => void child.kill());
  return child;
}

/** Resolves when somebody serves at `uri`. */
async function served(uri: string, child: ChildProcess): Promise<void> {
  while (child.exitCode === null) {
    try {
      await (await openUri(uri)).close();
      return;
    } catch (error) {
      expect(error).toMatchObject({ code: "connect-failed" });
    }
  }
  throw new Error(`the server ended with ${String(child.exitCode)}`);
}

const formats = [
  { format: "qcow2", options: [], deltas: true },
  { format: "vmdk", options: [], deltas: true },
  { format: "vmdk", options: ["-o", "subformat=streamOptimized"], deltas: false },
  { format: "vdi", options: [], deltas: false },
];

for (const { format, options, deltas } of formats) {
  test(`a ${format} ${options.join(" ")} is refused with two commands, which send it as they are printed`, async (t) => {
    needTools(t, "qemu-nbd", "qemu-img", "qemu-io", "sh");
    const dir = socketDir(t);
    // A blank and a quote: the commands are for a shell.
    const folder = join(dir, "it's a");
    mkdirSync(folder);
    const raw = join(dir, "source.raw");
    const expected = join(dir, "expected.raw");
    const image = join(folder, `disk.${format}`);
    makeImage(raw, 24 * MIB, 5);
    must("qemu-img", "convert", "-f", "raw", "-O", format, ...options, raw, image);
    const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
    const refused = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
    expect(refused.code).toBe(1);
    expect(refused.error).toMatchObject({ code: "image-format-unsupported", action: "never" });
    const { error } = refused;
    const command = (name: string): string => new RegExp(`^  (${name} .*)$`, "m").exec(error?.message ?? "")?.[1] ?? "";
    const serve = command("qemu-nbd");
    expect(serve).toContain(`-r -t -f ${format} -k `);
    const sending = command("replicate send")
      .replace(/^replicate/, `"${process.execPath}" "${cliPath}"`)
      .replace("HOST:PORT/DISK", `127.0.0.1:${String(receiver.port)}/vm`)
      .replace("DIR/NAME", pki.send);
    const place = { kind: "unix", path: `${image}.sock` } as const;
    const uri = formatNbdUri({ tls: false, place, exportName: "" });
    const transfer = async (): Promise<void> => {
      const server = startShell(t, serve);
      await served(uri, server);
      const result = runTool("sh", ["-c", sending]);
      expect(result.code, `${sending}\n${result.stderr}`).toBe(0);
      // The image may be written by others again once the server is gone.
      const ended = new Promise((resolve) => server.once("close", resolve));
      server.kill();
      await ended;
      must("qemu-img", "convert", "-f", format, "-O", "raw", image, expected);
      expect(readFileSync(replicaPath(receiver.storeDir, "vm")).equals(readFileSync(expected))).toBe(true);
    };
    await transfer();
    expect(readFileSync(expected).equals(readFileSync(raw))).toBe(true);
    if (!deltas) return;
    must("qemu-io", "-f", format, "-c", "write -P 0xb1 1M 8k", "-c", "write -z 4M 1M", image);
    await transfer();
  });
}

test("an NBD source: initial copy, delta, compare; a hole is not read, and its identity is its address", async (t) => {
  needTools(t, "qemu-nbd");
  const dir = socketDir(t);
  const raw = join(dir, "a.raw");
  makeImage(raw, 32 * MIB + 512, 6);
  const { uri } = startQemuNbd(t, "-r", "-f", "raw", raw);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const target = { port: receiver.port, disk: "vm", tls: pki.send };
  const initial = await send(t, { ...target, image: uri });
  expect(initial.code, initial.stderr).toBe(0);
  expect(initial.done).toMatchObject({ reason: "initial", bytesScanned: 32 * MIB + 512 });
  expect(initial.done?.bytesRead).toBeLessThan(26 * MIB);
  expect(initial.stderr).toBe("");
  const replica = replicaPath(receiver.storeDir, "vm");
  expect(readFileSync(replica).equals(readFileSync(raw))).toBe(true);
  changeImage(raw, 20, 7);
  // Written in another way it is the same export.
  const delta = await send(t, { ...target, image: uri.replace(":///", "://") });
  expect(delta.code, delta.stderr).toBe(0);
  expect(delta.done).toMatchObject({ reason: "scan" });
  expect(delta.done?.bytesChanged).toBeLessThanOrEqual(20 * 4096);
  expect(readFileSync(replica).equals(readFileSync(raw))).toBe(true);
  const equal = await replicate(t, ["compare", uri, `${receiver.storeDir}/vm@latest`]);
  expect(equal, equal.stderr).toMatchObject({ code: 0 });
  changeImage(raw, 1, 8);
  expect((await replicate(t, ["compare", replica, uri])).code).toBe(3);
});

test("an export that others may write to is sent with a warning, unless the user said so", async (t) => {
  needTools(t, "nbdkit");
  const { uri } = startNbdkit(t, "memory", "1M");
  const dir = tempDir(t);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const target = { image: uri, port: receiver.port, disk: "vm", tls: pki.send };
  const warned = await send(t, target);
  expect(warned.code, warned.stderr).toBe(0);
  expect(warned.stderr).toContain("lets clients write");
  expect((await send(t, { ...target, args: ["--allow-live"] })).stderr).toBe("");
});

test("C-42 a server that dies in the middle: the send goes on with the next one at the same address", async (t) => {
  needTools(t, "nbdkit");
  const dir = socketDir(t);
  const raw = join(dir, "a.raw");
  makeImage(raw, 48 * MIB, 9);
  const pidFile = join(dir, "pid");
  const slow = ["--filter=rate", "file", raw, "rate=20M"];
  const command = ["nbdkit", "-r", "-U", join(dir, "s"), "-P", pidFile];
  startServer(t, [...command, ...slow], pidFile);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const image = `nbd+unix:///?socket=${dir}/s`;
  const child = startSend(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  await child.waitFor(() => child.lines.some((line) => Number(line["bytesScanned"] ?? 0) > MIB));
  killServer(pidFile);
  rmSync(join(dir, "s"));
  startServer(t, [...command, "file", raw], pidFile);
  const result = await finish(child);
  expect(result.code, result.stderr).toBe(0);
  expect(result.done?.attempts).toBeGreaterThan(1);
  expect(readFileSync(replicaPath(receiver.storeDir, "vm")).equals(readFileSync(raw))).toBe(true);
});

test("nbds: certificates are those of --tls, or of --nbd-tls; two disks of a machine may come from servers", async (t) => {
  needTools(t, "nbdkit");
  const dir = socketDir(t);
  const tls = join(dir, "tls");
  mkdirSync(tls);
  expect((await replicate(t, ["pki", "issue", pki.dir, "nbd", "--host", "localhost"])).code).toBe(0);
  for (const [from, to] of [
    ["ca", "ca-cert"],
    ["cert", "server-cert"],
    ["key", "server-key"],
  ] as const) {
    copyFileSync(join(pki.dir, "nbd", `${from}.pem`), join(tls, `${to}.pem`));
  }
  const { uri } = startNbdkit(
    t,
    "--tls=require",
    "--tls-verify-peer",
    `--tls-certificates=${tls}`,
    "-r",
    "pattern",
    "4M",
  );
  const image = uri.replace("nbd+", "nbds+");
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const result = await send(t, { image, port: receiver.port, disk: "vm", tls: pki.send });
  expect(result.code, result.stderr).toBe(0);
  expect(statSync(replicaPath(receiver.storeDir, "vm")).size).toBe(4 * MIB);
  const compared = await replicate(t, ["compare", image, `${receiver.storeDir}/vm@latest`, "--nbd-tls", pki.send]);
  expect(compared, compared.stderr).toMatchObject({ code: 0 });
  const without = await replicate(t, ["compare", image, image]);
  expect(without.code).toBe(2);
  expect(without.stderr).toContain("TLS needs certificates");
  const machine = ["send", "m", `127.0.0.1:${String(receiver.port)}`, "--disk", `a=${image}`, "--disk", `b=${image}`];
  const both = await replicate(t, [...machine, "--tls", pki.send, "--nbd-tls", pki.recv]);
  expect(both.code, both.stderr).toBe(0);
});

test("what is wrong with an address is said before anything is sent", async (t) => {
  const receiver = "127.0.0.1:1/vm";
  const failing = async (image: string) => replicate(t, ["send", image, receiver, "--tls", pki.send, "--json"]);
  for (const [image, code, says] of [
    ["nbd+unix:///x", "usage", "needs its socket"],
    ["nbd://user:secret@host/x", "usage", "certificates"],
    [`nbd+unix:///?socket=${root}/none`, "connect-failed", "start the server"],
    ["iscsi://host/x", "image-format-unsupported", "iscsi"],
  ] as const) {
    const { lines, stdout } = await failing(image);
    expect(lines.at(-1)).toMatchObject({ event: "error", code, message: expect.stringContaining(says) as string });
    expect(stdout).not.toContain("secret");
  }
});
