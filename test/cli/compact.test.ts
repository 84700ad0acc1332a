/** The verbs compact and rollback on a store that a receiver made. */
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { compactVerb } from "../../src/cli/compact.ts";
import { repairVerb } from "../../src/cli/repair.ts";
import { rollbackVerb } from "../../src/cli/rollback.ts";
import type { CliIo, Verb } from "../../src/cli/verb.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "../replication/pair-kit.ts";

let kit: PairKit;
let folder: string;

beforeEach(async () => {
  kit = await PairKit.create();
  folder = mkdtempSync(join(tmpdir(), "replicate-cli-"));
});

afterEach(async () => {
  await kit.close();
  rmSync(folder, { recursive: true });
});

async function run(verb: Verb, args: readonly string[]): Promise<{ readonly code: number; readonly lines: unknown[] }> {
  let text = "";
  const io: CliIo = {
    out: (piece: string) => {
      text += piece;
    },
    err: () => undefined,
    env: {},
    signal: new AbortController().signal,
  } as unknown as CliIo;
  const code = await verb.run([...args, "--store", join(kit.folder, "store"), "--json"], io);
  return { code, lines: text.split("\n").flatMap((line) => (line === "" ? [] : [JSON.parse(line) as unknown])) };
}

function logBytes(): number {
  const points = join(kit.folder, "store/disks/disk/points");
  const logs = readdirSync(points).filter((name) => name.endsWith(".undo"));
  return logs.reduce((sum, name) => sum + statSync(join(points, name)).size, 0);
}

test("compact gives back what removed points left, and says how much", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image);
  for (let round = 0; round < 6; round++) {
    await image.write(randomBytes(MIB), MIB);
    await kit.send(image);
  }
  await kit.store.hold("disk", 1, { owner: "test", until: undefined });
  await kit.store.prune("disk", { keep: "last=1" });
  const before = logBytes();
  expect(before).toBeGreaterThan(5 * MIB);
  const { code, lines } = await run(compactVerb, ["disk"]);
  expect(code).toBe(0);
  expect(lines).toMatchObject([{ event: "joined", disk: "disk", point: 1 }]);
  expect(logBytes()).toBeLessThan(1.1 * MIB);
  expect((await run(compactVerb, [])).lines).toEqual([]);
});

test("repair finds what rotted; the next send heals it; the older point says what it lost", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await image.write(randomBytes(64 * KIB), MIB);
  await kit.send(image);
  // A session is over only a little after its sender was told.
  await kit.idle();
  expect(await run(repairVerb, ["disk"])).toMatchObject({ code: 0, lines: [{ damaged: [] }] });
  const replica = join(kit.folder, "store/disks/disk/replica.raw");
  const fd = openSync(replica, "r+");
  for (const at of [3 * MIB + 70_000, 5 * MIB, 5 * MIB + 64 * KIB]) writeSync(fd, Buffer.from("rot"), 0, 3, at);
  closeSync(fd);
  const damaged = [
    { offset: 3 * MIB + 64 * KIB, length: 64 * KIB },
    { offset: 5 * MIB, length: 128 * KIB },
  ];
  expect(await run(repairVerb, ["disk"])).toMatchObject({ code: 3, lines: [{ event: "done", damaged }] });
  const report = await kit.send(image);
  await kit.idle();
  expect(report.funnel.changedBlockBytes).toBe(192 * KIB);
  const content = Buffer.alloc(8 * MIB);
  await image.read(content, 0);
  expect(content.equals(readFileSync(replica))).toBe(true);
  expect(await run(repairVerb, ["disk"])).toMatchObject({ code: 0 });
  // What the rot took was not to be had any more.
  const reader = await kit.store.openPoint("disk", 1);
  await expect(reader.read(Buffer.alloc(10), 5 * MIB)).rejects.toMatchObject({ code: "store-damaged" });
  await reader.read(Buffer.alloc(64 * KIB), MIB);
  await reader.close();
});

test("rollback makes the replica's file the newest point", async () => {
  const image = createMemoryImage(8 * MIB);
  const first = randomBytes(8 * MIB);
  await image.write(first, 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await image.write(randomBytes(8 * MIB), 0);
  const cut = kit.send(image, { attemptsMax: 1, codec: "stored", onPair: (pair) => pair.toServer.cutAfter(5 * MIB) });
  await expect(cut).rejects.toMatchObject({ code: "connection-lost" });
  await kit.idle();
  const replica = join(kit.folder, "store/disks/disk/replica.raw");
  expect(first.equals(readFileSync(replica))).toBe(false);
  const { code, lines } = await run(rollbackVerb, ["disk"]);
  expect({ code, lines }).toMatchObject({ code: 0, lines: [{ event: "done", disk: "disk", point: 1 }] });
  expect(first.equals(readFileSync(replica))).toBe(true);
  expect((await run(rollbackVerb, ["disk"])).lines).toMatchObject([{ blocks: 0 }]);
  // The delta goes on as if it had only begun.
  await kit.send(image);
  await expect(run(rollbackVerb, ["other"])).rejects.toMatchObject({ code: "disk-not-found" });
});

test("rollback tells the size it put back", async () => {
  const image = createMemoryImage(MIB);
  await kit.send(image, { blockBytes: 64 * KIB });
  const longer = createMemoryImage(6 * MIB);
  await longer.write(randomBytes(4 * MIB), 2 * MIB);
  const cut = kit.send(longer, { attemptsMax: 1, codec: "stored", onPair: (pair) => pair.toServer.cutAfter(3 * MIB) });
  await expect(cut).rejects.toMatchObject({ code: "connection-lost" });
  await kit.idle();
  const { lines } = await run(rollbackVerb, ["disk"]);
  expect(lines).toMatchObject([{ point: 1, sizeBefore: 6 * MIB, sizeBytes: MIB }]);
});
