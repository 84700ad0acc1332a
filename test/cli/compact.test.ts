/** The verbs compact and rollback on a store that a receiver made. */
import { mkdtempSync, readFileSync, rmSync, statSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { compactVerb } from "../../src/cli/compact.ts";
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

test("rollback makes the replica's file the newest point", async () => {
  const image = createMemoryImage(8 * MIB);
  const first = randomBytes(8 * MIB);
  await image.write(first, 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await image.write(randomBytes(8 * MIB), 0);
  const cut = kit.send(image, { attemptsMax: 1, codec: "stored", onPair: (pair) => pair.toServer.cutAfter(5 * MIB) });
  await expect(cut).rejects.toMatchObject({ code: "connection-lost" });
  await expect.poll(() => kit.receiver.sessions).toBe(0);
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
