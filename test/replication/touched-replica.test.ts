/** A replica that somebody wrote to beside the store: it is compared with its table, what differs is lost, and the next delta heals it. */
import { closeSync, existsSync, openSync, readFileSync, utimesSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { repair } from "../../src/library/points.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  await kit.close();
});

function replicaPath(): string {
  return join(kit.folder, "store/disks/disk/replica.raw");
}

/** As somebody does who mounts the replica. */
function mountReplica(offsets: readonly number[]): void {
  const fd = openSync(replicaPath(), "r+");
  for (const offset of offsets) writeSync(fd, Buffer.from("mounted"), 0, 7, offset);
  closeSync(fd);
  // As if it had been written to a moment later: file systems keep coarse times.
  const later = new Date(Date.now() + 10_000);
  utimesSync(replicaPath(), later, later);
}

async function expectReplicaIs(image: BlockReader): Promise<void> {
  await kit.idle();
  const content = Buffer.alloc(image.sizeBytes);
  await image.read(content, 0);
  expect(content.equals(readFileSync(replicaPath()))).toBe(true);
}

/** Point 1 says that it has lost these blocks, and has the one behind each. */
async function expectLost(offsets: readonly number[], blockBytes: number): Promise<void> {
  const reader = await kit.store.openPoint("disk", 1);
  for (const offset of offsets) {
    await expect(reader.read(Buffer.alloc(10), offset)).rejects.toMatchObject({ code: "store-damaged" });
    await reader.read(Buffer.alloc(10), offset + blockBytes);
  }
  await reader.close();
}

test("a comparison that was cut short is made again, and heals what it had not come to", async () => {
  const blockBytes = 16 * KIB;
  const image = createMemoryImage(24 * MIB);
  await image.write(randomBytes(24 * MIB), 0);
  await kit.send(image, { blockBytes });
  await kit.idle();
  mountReplica([2 * MIB, 20 * MIB]);
  const stopped = new AbortController();
  // Behind the first of three table pages, in which there was a difference.
  const onProgress = (): void => stopped.abort(new ReplicationError("aborted", "enough"));
  const repairing = repair(kit.store, "disk", { engine: kit.receiving, signal: stopped.signal, onProgress });
  await expect(repairing).rejects.toMatchObject({ code: "aborted" });
  expect(existsSync(join(kit.folder, "store/disks/disk/suspect.json"))).toBe(true);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 2 * blockBytes } });
  await expectReplicaIs(image);
  await expectLost([2 * MIB, 20 * MIB], blockBytes);
  expect(existsSync(join(kit.folder, "store/disks/disk/suspect.json"))).toBe(false);
});

test("a replica that somebody wrote to while a delta was laid aside is compared: what was written is nobody's content", async () => {
  const blockBytes = 64 * KIB;
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes });
  await image.write(randomBytes(8 * MIB), 0);
  const cut = kit.send(image, { attemptsMax: 1, codec: "stored", onPair: (pair) => pair.toServer.cutAfter(3 * MIB) });
  await expect(cut).rejects.toMatchObject({ code: "connection-lost" });
  await kit.idle();
  mountReplica([6 * MIB]);
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectReplicaIs(image);
  await expectLost([6 * MIB], blockBytes);
});

test("a replica that somebody wrote to is compared before the next delta, and healed by it", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await kit.idle();
  mountReplica([2 * MIB]);
  const report = await kit.send(image);
  expect(report).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  await expectReplicaIs(image);
  // Only looked at, it is compared once and believed again.
  const again = new Date(Date.now() + 20_000);
  utimesSync(replicaPath(), again, again);
  expect((await kit.send(image, { skipEmpty: true })).created).toBe(false);
  await kit.idle();
  expect((await kit.store.summary("disk"))?.state).toBe("idle");
});
