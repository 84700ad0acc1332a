/** A replica that somebody wrote to beside the store: it is compared with its table, what differs is lost, and the next delta heals it. */
import {
  closeSync,
  cpSync,
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader, BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { repair } from "../../src/library/points.ts";
import { randomBytes } from "../random.ts";
import { overriding } from "../replica/overriding.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;
const warnings: string[] = [];
/** Counts of blocks that were found to differ. */
const found: unknown[] = [];
/** Set: writing to the replica fails with it, and has written. */
let broken: ReplicationError | undefined;

beforeEach(async () => {
  warnings.length = 0;
  found.length = 0;
  broken = undefined;
  kit = await PairKit.create({
    receiverLog: {
      ...silentLogger,
      warn: (_fields, text) => warnings.push(text),
      error: (fields) => "blocks" in fields && found.push(fields.blocks),
    },
    receiverLanes: (lanes) =>
      overriding(lanes, {
        run: (name, request) => {
          const ran = lanes.run(name, request);
          if (name !== "apply" || broken === undefined) return ran;
          const error = broken;
          return ran.then(() => Promise.reject(error));
        },
      }),
  });
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

/** A delta that changes some of the block at 2 MiB ends uncleanly: it is in the log and in the replica, and not in the table. */
async function failDelta(image: BlockWriter): Promise<void> {
  await image.write(randomBytes(4 * KIB), 2 * MIB);
  broken = new ReplicationError("write-failed", "the device failed");
  await expect(kit.send(image, { attemptsMax: 1 })).rejects.toMatchObject({ code: "write-failed" });
  await kit.idle();
  broken = undefined;
}

/** As if its writer had been killed ten seconds ago. */
function ageHeartbeat(): void {
  const path = join(kit.folder, "store/disks/disk/apply.lock");
  const { heartbeat, ...holder } = JSON.parse(readFileSync(path, "utf8")) as { heartbeat: { millis: number } };
  writeFileSync(path, JSON.stringify({ ...holder, heartbeat: { ...heartbeat, millis: heartbeat.millis - 10_000 } }));
}

async function imageSent(): Promise<BlockWriter> {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await kit.idle();
  return image;
}

test("after an unclean end, a replica that nobody else wrote to is not compared", async () => {
  const image = await imageSent();
  await failDelta(image);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 0 } });
  await expectReplicaIs(image);
  expect(warnings).toContain("the digest table is in doubt; reading the replica, 1 blocks the interrupted delta names");
  expect(warnings).not.toContain("comparing the replica with its table");
});

test("after an unclean end, a replica that somebody wrote to later is compared, and what the log names is not lost", async () => {
  const image = await imageSent();
  await failDelta(image);
  ageHeartbeat();
  mountReplica([2 * MIB, 6 * MIB]);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 2 * 64 * KIB } });
  await expectReplicaIs(image);
  expect(warnings).toContain("comparing the replica with its table");
  // Of the block at 2 MiB the log had what changed before: it is no difference, and nothing of it is lost.
  expect(found).toEqual([1]);
  await expectLost([6 * MIB], 64 * KIB);
  const reader = await kit.store.openPoint("disk", 1);
  await reader.read(Buffer.alloc(10), 2 * MIB + 32 * KIB);
  await reader.close();
});

test("what was seen after an unclean end is not forgotten when the comparison is cut short", async () => {
  const image = await imageSent();
  await failDelta(image);
  ageHeartbeat();
  mountReplica([6 * MIB]);
  // Refused before anything is looked at: the next heartbeat hides what this one showed.
  const stopped = AbortSignal.abort(new ReplicationError("aborted", "enough"));
  await expect(repair(kit.store, "disk", { engine: kit.receiving, signal: stopped })).rejects.toThrow("enough");
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  await expectReplicaIs(image);
  await expectLost([6 * MIB], 64 * KIB);
});

test("after an unclean end, a replica that somebody has cut gets its length back and is compared", async () => {
  const image = await imageSent();
  await failDelta(image);
  truncateSync(replicaPath(), 4 * MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 4 * MIB } });
  await expectReplicaIs(image);
  expect(found).toEqual([64]);
  await expectLost([7 * MIB], -4 * MIB);
});

test("a replica whose mtime was put back after a write is compared all the same", async () => {
  const image = await imageSent();
  const { atime, mtime } = statSync(replicaPath());
  mountReplica([4 * MIB]);
  utimesSync(replicaPath(), atime, mtime);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  await expectReplicaIs(image);
  await expectLost([4 * MIB], 64 * KIB);
});

test("an older replica put back with its times is compared", async () => {
  const image = await imageSent();
  const kept = join(kit.folder, "kept.raw");
  cpSync(replicaPath(), kept, { preserveTimestamps: true });
  await image.write(randomBytes(64 * KIB), 4 * MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await kit.idle();
  renameSync(kept, replicaPath());
  expect(await kit.send(image)).toMatchObject({ point: 3, funnel: { changedBlockBytes: 64 * KIB } });
  await expectReplicaIs(image);
});

test("a store copied back to an older state is compared as touched, and the sender goes on from what it holds", async () => {
  const image = await imageSent();
  const disk = join(kit.folder, "store/disks/disk");
  const kept = join(kit.folder, "kept");
  cpSync(disk, kept, { recursive: true, preserveTimestamps: true });
  await image.write(randomBytes(64 * KIB), 4 * MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await kit.idle();
  rmSync(disk, { recursive: true });
  renameSync(kept, disk);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  expect(warnings).toContain("comparing the replica with its table");
  await expectReplicaIs(image);
});
