/** `send` of an image that a running tracker serves: by its control socket. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { KIB, MIB } from "../../../src/base/units.ts";
import { openNbdWriter } from "../../../src/nbd/client.ts";
import { parseNbdUri } from "../../../src/nbd/nbd-uri.ts";
import { randomBytes } from "../../random.ts";
import { socketDir } from "../../nbd/kit.ts";
import {
  CliProcess,
  cmpFiles,
  makeImage,
  makePki,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
  type Scope,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "../kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

async function startTracker(scope: Scope, ...args: readonly string[]): Promise<CliProcess> {
  const tracker = new CliProcess(scope, ["track", ...args, "--json"]);
  await tracker.waitForEvent("listening");
  return tracker;
}

async function write(uri: string, ...places: readonly number[]): Promise<void> {
  const writer = await openNbdWriter({ address: parseNbdUri(uri) });
  for (const at of places) await writer.write(randomBytes(64 * KIB), at);
  await writer.flush();
  await writer.close();
}

interface World {
  readonly dir: string;
  readonly image: string;
  readonly uri: string;
  readonly receiver: Receiver;
}

async function world(scope: Scope): Promise<World> {
  const dir = socketDir(scope);
  const image = join(dir, "vm.raw");
  makeImage(image, 32 * MIB);
  const receiver = await startReceiver(scope, { storeDir: join(dir, "store"), tls: pki.recv });
  return { dir, image, receiver, uri: `nbd+unix:///vm.raw?socket=${dir}/nbd` };
}

test("send of a tracked image asks its tracker for a cut: only what changed is read, also by the next tracker", async (t) => {
  const { dir, image, uri, receiver } = await world(t);
  const how = { image, port: receiver.port, disk: "vm", tls: pki.send };
  const expectEqual = (): void => expect(cmpFiles(image, replicaPath(join(dir, "store"), "vm"))).toBeUndefined();
  let tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`, "--audit", "5%");
  expect(statSync(`${image}.rbc`).mode & 0o777).toBe(0o600);
  expect((await send(t, how)).done).toMatchObject({ reason: "initial", point: 1 });
  expectEqual();
  await write(uri, MIB, 9 * MIB);
  const next = await send(t, how);
  expect(next.done).toMatchObject({ reason: "bitmap", point: 2, bytesMissed: 0 });
  // Two blocks, and what is audited.
  expect(next.done?.bytesRead).toBeLessThan(MIB + 8 * MIB);
  expectEqual();

  await tracker.stop();
  expect(existsSync(`${image}.rbc`)).toBe(false);
  tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`);
  await write(uri, 20 * MIB);
  await tracker.kill();
  // Its sockets lie there still, and nobody listens: the image is sent as one that nobody tracks.
  expect(existsSync(`${image}.rbc`)).toBe(true);
  tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`);
  const after = await send(t, how);
  expect(after.done).toMatchObject({ reason: "bitmap", point: 3 });
  expect(after.done?.bytesRead).toBeLessThan(8 * MIB);
  expectEqual();

  // Another disk has not what the tracker knows: a cut of everything, and then the first one again.
  expect((await send(t, { ...how, disk: "other" })).done).toMatchObject({ reason: "initial" });
  expect((await send(t, how)).done).toMatchObject({ reason: "resync:base-mismatch" });
  expect((await send(t, how)).done).toMatchObject({ reason: "bitmap" });
  expectEqual();
  await tracker.stop();
  expect(readdirSync(dir).filter((name) => name.endsWith(".cut"))).toEqual([]);
});

test("a send that is killed leaves every block as dirty as it was, and the tracker free for the next", async (t) => {
  const { dir, image, uri, receiver } = await world(t);
  const how = { image, port: receiver.port, disk: "vm", tls: pki.send };
  const tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`);
  await send(t, how);
  await write(uri, MIB, 3 * MIB);
  // One that asks for a cut and goes away.
  const socket = connect(`${image}.rbc`);
  socket.write('{"do":"cut","whole":[]}\n');
  const [answer] = (await new Promise<Buffer>((resolve) => socket.once("data", resolve))).toString().split("\n");
  expect(JSON.parse(answer ?? "")).toMatchObject({ ok: { consistency: "crash", disks: [{ name: "vm.raw", image }] } });
  const second = send(t, how);
  socket.destroy();
  const result = await second;
  expect(result.done).toMatchObject({ reason: "bitmap", point: 2 });
  expect(result.done?.bytesChanged).toBe(2 * 64 * KIB);
  expect(cmpFiles(image, replicaPath(join(dir, "store"), "vm"))).toBeUndefined();
  await tracker.stop();
});

test("a tracker that sends itself waits for a cut that another has, and stops all the same", async (t) => {
  const { dir, image, uri, receiver } = await world(t);
  const target = `127.0.0.1:${String(receiver.port)}/vm`;
  const sends = ["--send", target, "--tls", pki.send, "--every", "0"];
  const tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`, ...sends);
  await tracker.waitForEvent("done");
  const socket = connect(`${image}.rbc`);
  socket.write('{"do":"cut","whole":[]}\n');
  expect(String(await new Promise((resolve) => socket.once("data", resolve)))).toContain('"ok"');
  await write(uri, MIB);
  const said = tracker.lines.length;
  expect(await tracker.stop()).toBe(0);
  expect(tracker.lines.length).toBe(said);
  socket.destroy();
});

test("what is no question ends its connection, and the tracker goes on", async (t) => {
  const { dir, image, receiver } = await world(t);
  const tracker = await startTracker(t, image, "--nbd", `unix:${dir}/nbd`);
  for (const text of [
    "GET / HTTP/1.1\r\n\r\n",
    "[]\n",
    '{"do":"format"}\n',
    `${"x".repeat(70_000)}`,
    '{"do":"cut"}\n',
  ]) {
    const socket = connect(`${image}.rbc`);
    const ended = new Promise((resolve) => socket.once("close", resolve));
    socket.on("error", () => undefined);
    socket.resume();
    socket.write(text);
    await ended;
  }
  // Said in turn, but of no cut.
  const socket = connect(`${image}.rbc`);
  socket.write('{"do":"check"}\n');
  expect(String(await new Promise((resolve) => socket.once("data", resolve)))).toContain("no cut is open");
  socket.destroy();
  const how = { image, port: receiver.port, disk: "vm", tls: pki.send };
  expect((await send(t, how)).done).toMatchObject({ reason: "initial" });
  await tracker.stop();
});

test("a machine: its disks are cut at one moment, and sent as they are by track itself", async (t) => {
  const { dir, image, receiver } = await world(t);
  const other = join(dir, "data.raw");
  makeImage(other, 16 * MIB, 2);
  const control = `${dir}/ctl`;
  const disks = ["--disk", `sys=${image}`, "--disk", `data=${other}`];
  const tracker = await startTracker(t, "db", ...disks, "--nbd", `unix:${dir}/nbd`, "--control", control);
  const machine = [
    "send",
    "db",
    `127.0.0.1:${String(receiver.port)}`,
    "--control",
    control,
    "--tls",
    pki.send,
    "--json",
  ];
  const first = await replicate(t, machine);
  expect(first.code, first.stderr).toBe(0);
  await write(`nbd+unix:///data?socket=${dir}/nbd`, MIB);
  const second = await replicate(t, machine);
  expect(second.lines.filter(({ event }) => event === "done")).toMatchObject([
    { disk: "db.sys", point: 2, reason: "bitmap", bytesRead: 0 },
    { disk: "db.data", point: 2, reason: "bitmap", bytesChanged: 64 * KIB },
  ]);
  expect(cmpFiles(image, replicaPath(join(dir, "store"), "db.sys"))).toBeUndefined();
  expect(cmpFiles(other, replicaPath(join(dir, "store"), "db.data"))).toBeUndefined();
  const single = await send(t, {
    ...{ image, port: receiver.port, disk: "vm", tls: pki.send },
    args: ["--control", control],
  });
  expect(single.code).toBe(2);
  expect(single.stderr + JSON.stringify(single.error)).toContain("the tracker has 2 disks");
  await tracker.stop();
  const gone = await replicate(t, machine);
  expect(gone.code).toBe(1);
  expect(gone.lines.at(-1)).toMatchObject({ event: "error", code: "connect-failed" });
});
