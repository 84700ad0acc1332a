/** `send --every`: cycles until it is stopped. */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { MIB } from "./content.ts";
import {
  changeImage,
  type CliProcess,
  cmpFiles,
  makeImage,
  makePki,
  type Pki,
  replicaPath,
  replicate,
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

const dones = (child: CliProcess) => child.lines.filter(({ event }) => event === "done");

test("an image is sent again and again, also after the receiver was away; Ctrl-C ends it well", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  const storeDir = join(dir, "store");
  makeImage(image, 8 * MIB);
  const receiver = await startReceiver(t, { storeDir, tls: pki.recv });
  const how = { image, port: receiver.port, disk: "vm", tls: pki.send };
  const sender = startSend(t, { ...how, args: ["--every", "1s", "--skip-empty"] });
  await sender.waitFor(() => dones(sender).length >= 2);
  expect(dones(sender)[0]).toMatchObject({ reason: "initial", point: 1, created: true });
  expect(dones(sender)[1]).toMatchObject({ point: 1, created: false });
  await receiver.kill();
  changeImage(image, 20, 7);
  await sender.waitFor(() => sender.stderr.includes("tried again"));
  await startReceiver(t, { storeDir, tls: pki.recv, port: receiver.port });
  await sender.waitFor(() => dones(sender).some(({ point }) => point === 2));
  sender.signal("SIGINT");
  expect(await sender.exited).toBe(0);
  expect(cmpFiles(image, replicaPath(storeDir, "vm"))).toBeUndefined();
});

test("where a person must decide it ends; what makes no sense is said before anything is sent", async (t) => {
  const dir = tempDir(t);
  const image = join(dir, "disk.raw");
  makeImage(image, 8 * MIB);
  const { port } = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const how = { image, port, disk: "vm", tls: pki.send };
  expect((await send(t, how)).code).toBe(0);
  const other = join(dir, "other.raw");
  makeImage(other, 8 * MIB, 9);
  const refused = await send(t, { ...how, image: other, args: ["--every", "0"] });
  expect(refused).toMatchObject({ code: 4, error: { code: "another-image" } });
  const folder = await replicate(t, ["send", image, "vm", "--to-dir", join(dir, "seed"), "--every", "1s"]);
  expect(folder.code).toBe(2);
  expect(folder.stderr).toContain("--every does not go with --to-dir");
});
