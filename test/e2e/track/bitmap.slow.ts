/** Sources whose changes QEMU tracks: its dirty bitmaps, over NBD, from qemu-storage-daemon and from a qcow2 file. */
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { existsSync } from "node:fs";
import { beforeAll, expect, test } from "vitest";
import { KIB, MIB } from "../../../src/base/units.ts";
import { socketDir, startQemuNbd, startServer } from "../../nbd/kit.ts";
import {
  cmpFiles,
  makeImage,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  runTool,
  type Scope,
  send,
  type SendResult,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

function must(name: string, ...args: readonly string[]): void {
  const { code, stdout, stderr } = runTool(name, args);
  expect(code, `${name} ${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
}

function readBytes(result: SendResult): number {
  return Number(result.done?.["bytesRead"]);
}

/** QEMU's monitor: a command at a time, answers in order. */
class Monitor {
  readonly #socket: Socket;
  readonly #lines: AsyncIterator<string>;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  }

  static async open(scope: Scope, path: string): Promise<Monitor> {
    const socket = connect(path);
    scope.onTestFinished(() => void socket.destroy());
    const monitor = new Monitor(socket);
    expect(await monitor.#next()).toHaveProperty("QMP");
    await monitor.run("qmp_capabilities");
    return monitor;
  }

  async run(execute: string, args: object = {}): Promise<void> {
    this.#socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    let answer = await this.#next();
    while (answer["event"] !== undefined) answer = await this.#next();
    expect(answer, `${execute} ${JSON.stringify(args)}`).toHaveProperty("return");
  }

  async #next(): Promise<Record<string, unknown>> {
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error("the monitor ended");
    return JSON.parse(value) as Record<string, unknown>;
  }
}

test("qemu-storage-daemon: increments by its bitmaps read what is dirty and no more, and the replica is equal", async (t) => {
  needTools(t, "qemu-storage-daemon", "qemu-io");
  const dir = socketDir(t);
  const raw = join(dir, "disk.raw");
  makeImage(raw, 64 * MIB, 3);
  const pidFile = join(dir, "pid");
  startServer(
    t,
    [
      ...["qemu-storage-daemon", "--daemonize", "--pidfile", pidFile],
      ...["--blockdev", `file,node-name=disk,filename=${raw},discard=unmap`],
      ...["--nbd-server", `addr.type=unix,addr.path=${dir}/nbd`],
      ...["--export", "nbd,id=guest,node-name=disk,name=guest,writable=on"],
      ...["--chardev", `socket,id=m,path=${dir}/qmp,server=on,wait=off`, "--monitor", "chardev=m"],
    ],
    pidFile,
  );
  const monitor = await Monitor.open(t, `${dir}/qmp`);
  const { port } = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const state = join(dir, "state");
  const guest = (...commands: readonly string[]): void =>
    must("qemu-io", "-f", "raw", ...commands.flatMap((c) => ["-c", c]), `nbd+unix:///guest?socket=${dir}/nbd`);

  /** Sends the disk as it is, nobody writing; `bitmap`: what changed since the cycle before; `audit`: how much else is looked at. */
  const cycle = async (bitmap?: string, audit?: string): Promise<SendResult> => {
    const bitmaps = bitmap === undefined ? {} : { bitmaps: [bitmap] };
    const facts = { type: "nbd", id: "cut", "node-name": "disk", name: "cut", ...bitmaps };
    await monitor.run("block-export-add", facts);
    const result = await send(t, {
      image: `nbd+unix:///cut?socket=${dir}/nbd`,
      ...{ port, disk: "vm", tls: pki.send },
      args: [
        ...["--state", state, ...(bitmap === undefined ? [] : ["--bitmap", bitmap])],
        ...(audit === undefined ? [] : ["--audit", audit]),
      ],
    });
    await monitor.run("block-export-del", { id: "cut", mode: "hard" });
    expect(result.code, result.stderr).toBe(0);
    return result;
  };
  /** The moment of a cut: what is written from now on is in `next`. */
  const turn = async (next: string, last?: string): Promise<void> => {
    const node = "disk";
    const actions = [
      { type: "block-dirty-bitmap-add", data: { node, name: next } },
      ...(last === undefined ? [] : [{ type: "block-dirty-bitmap-disable", data: { node, name: last } }]),
    ];
    await monitor.run("transaction", { actions });
  };

  await turn("b1");
  const first = await cycle();
  expect(first.done).toMatchObject({ reason: "initial", point: 1 });
  for (let round = 1; round <= 3; round++) {
    guest(
      `write -P ${String(round)} ${String(round)}M 64k`,
      `write -P ${String(round + 9)} ${String(20 + round)}000k 4k`,
      "discard 40M 128k",
      "flush",
    );
    await turn(`b${String(round + 1)}`, `b${String(round)}`);
    const audited = round > 1;
    const result = await cycle(`b${String(round)}`, audited ? "1%" : undefined);
    expect(result.done).toMatchObject({ reason: "bitmap", point: round + 1 });
    // A block each for what was written, two for what was discarded; and the share that is audited, in whole pages at most.
    expect(readBytes(result)).toBeLessThanOrEqual(1.5 * 4 * 64 * KIB + (audited ? 8 * MIB : 0));
    expect(Number(result.done?.["bytesChanged"])).toBeGreaterThanOrEqual(64 * KIB + 4 * KIB);
    expect(cmpFiles(raw, replicaPath(join(dir, "store"), "vm"))).toBeUndefined();
    await monitor.run("block-dirty-bitmap-remove", { node: "disk", name: `b${String(round)}` });
  }

  // A bitmap that began too late: what was written before it is missing, and an audit of everything finds it.
  guest("write -P 77 50M 8M", "flush");
  await turn("late", "b4");
  await turn("last", "late");
  await monitor.run("block-export-add", {
    type: "nbd",
    id: "cut",
    "node-name": "disk",
    name: "cut",
    bitmaps: ["late"],
  });
  const how = { image: `nbd+unix:///cut?socket=${dir}/nbd`, port, disk: "vm", tls: pki.send };
  const wrong = await send(t, { ...how, args: ["--state", state, "--bitmap", "late", "--audit", "100%"] });
  expect(wrong.code, JSON.stringify(wrong)).toBe(3);
  expect(wrong.stderr).toContain("blocks had changed that are called clean");
  expect(existsSync(state)).toBe(false);
  const whole = await send(t, { ...how, args: ["--state", state, "--bitmap", "late"] });
  expect(whole.done).toMatchObject({ reason: "scan" });
  expect(cmpFiles(raw, replicaPath(join(dir, "store"), "vm"))).toBeUndefined();

  const none = await send(t, { ...how, args: ["--state", state, "--bitmap", "no-such"] });
  expect(none).toMatchObject({ code: 1, error: { code: "image-not-found" } });
});

test("a qcow2 file with persistent bitmaps, served by qemu-nbd; one that was not begun anew is a superset", async (t) => {
  needTools(t, "qemu-nbd", "qemu-img", "qemu-io");
  const dir = socketDir(t);
  const image = join(dir, "disk.qcow2");
  must("qemu-img", "create", "-f", "qcow2", image, "32M");
  must("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 8M", image);
  const { port } = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const state = join(dir, "state");
  const sendWith = async (bitmap?: string): Promise<SendResult> => {
    const place = `driver=qcow2,force-share=on,file.driver=file,file.filename=${image}`;
    const wanted = bitmap === undefined ? [] : [`--bitmap=${bitmap}`];
    const { uri } = startQemuNbd(t, "--read-only", ...wanted, "--image-opts", place);
    const args = ["--state", state, ...(bitmap === undefined ? [] : ["--bitmap", bitmap])];
    return await send(t, { image: uri, port, disk: "vm", tls: pki.send, args });
  };
  expect((await sendWith()).done).toMatchObject({ reason: "initial", point: 1 });
  must("qemu-img", "bitmap", "--add", "-f", "qcow2", image, "since");
  must("qemu-io", "-f", "qcow2", "-c", "write -P 6 1M 64k", "-c", "write -z 4M 64k", image);
  const next = await sendWith("since");
  expect(next.done).toMatchObject({ reason: "bitmap", point: 2 });
  expect(readBytes(next)).toBeLessThan(MIB);
  must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, join(dir, "expected.raw"));
  expect(cmpFiles(join(dir, "expected.raw"), replicaPath(join(dir, "store"), "vm"))).toBeUndefined();
  // The bitmap was not begun anew: a superset, which costs reading and nothing on the wire.
  must("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", image);
  const again = await sendWith("since");
  expect(again.done).toMatchObject({ reason: "bitmap", point: 3 });
  expect(Number(again.done?.["bytesChanged"])).toBe(64 * KIB);
  must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, join(dir, "expected.raw"));
  expect(cmpFiles(join(dir, "expected.raw"), replicaPath(join(dir, "store"), "vm"))).toBeUndefined();
});

test("what is wrong with the options is said before anything is sent", async (t) => {
  const dir = socketDir(t);
  const how = { image: join(dir, "disk.raw"), port: 1, disk: "vm", tls: pki.send };
  makeImage(how.image, MIB);
  const failed = async (...options: readonly string[]): Promise<string> => {
    const result = await send(t, { ...how, args: options });
    expect(result.code).toBe(2);
    return `${result.stderr}${JSON.stringify(result.error)}`;
  };
  expect(await failed("--bitmap", "b")).toContain("--bitmap goes with --state");
  expect(await failed("--state", "s", "--audit", "1%")).toContain("--audit goes with --bitmap");
  expect(await failed("--state", "s", "--bitmap", "b")).toContain("only NBD servers have dirty bitmaps");
});
