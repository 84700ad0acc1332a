/**
 * A replica that somebody wrote to beside the store: it is compared with its table, and where it differs nothing overwrites it until a person has decided. Given up, what differs is lost, and
 * the next delta heals it; or it becomes a point before.
 */
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
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader, BlockWriter, FileRun } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { repair, rollBack } from "../../src/library/points.ts";
import { randomBytes } from "../random.ts";
import { overriding } from "../replica/overriding.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;
const warnings: string[] = [];
/** Set: writing to the replica fails with it, and has written. */
let broken: ReplicationError | undefined;

beforeEach(async () => {
  warnings.length = 0;
  broken = undefined;
  kit = await PairKit.create({
    receiverLog: {
      ...silentLogger,
      warn: (_fields, text) => warnings.push(text),
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

/** The sender is told, and told again without a second comparison; the replica stays as it is. */
async function expectRefused(image: BlockReader, message = /somebody else has changed the replica/): Promise<void> {
  await kit.idle();
  const before = readFileSync(replicaPath());
  for (const comparisons of [1, 0]) {
    warnings.length = 0;
    const text: unknown = expect.stringMatching(comparisons === 1 ? message : /somebody else has changed the replica/);
    await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed", remote: true, message: text });
    await kit.idle();
    expect(warnings.filter((text) => text === "comparing the replica with its table")).toHaveLength(comparisons);
    expect((await kit.store.summary("disk"))?.state).toBe("changed");
  }
  expect(readFileSync(replicaPath()).equals(before)).toBe(true);
}

/** Returns the bytes that differed. */
async function giveUp(): Promise<number> {
  const { damaged } = await repair(kit.store, "disk", { engine: kit.receiving });
  expect(existsSync(join(kit.folder, "store/disks/disk/suspect.json"))).toBe(false);
  return damaged.reduce((sum, { length }) => sum + length, 0);
}

async function keepChanges(): Promise<number | undefined> {
  return (await repair(kit.store, "disk", { engine: kit.receiving, keepChanges: { label: "theirs" } })).kept;
}

async function expectPointIs(point: number, content: Uint8Array): Promise<void> {
  const reader = await kit.store.openPoint("disk", point);
  const found = Buffer.alloc(reader.sizeBytes);
  await reader.read(found, 0);
  await reader.close();
  expect(found.equals(content)).toBe(true);
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
  // Only a repair that came to its end gives anything up.
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  expect(await giveUp()).toBe(blockBytes);
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
  await expectRefused(image);
  await giveUp();
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectReplicaIs(image);
  await expectLost([6 * MIB], blockBytes);
});

test("a replica that somebody wrote to is compared before the next delta, and healed by it once the changes are given up", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await kit.idle();
  mountReplica([2 * MIB]);
  await expectRefused(image);
  await giveUp();
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
  await expectRefused(image);
  // Of the block at 2 MiB the log had what changed before: it is no difference, and nothing of it is lost.
  expect(await giveUp()).toBe(64 * KIB);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 2 * 64 * KIB } });
  await expectReplicaIs(image);
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
  await expectRefused(image);
  await giveUp();
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  await expectReplicaIs(image);
  await expectLost([6 * MIB], 64 * KIB);
});

test("after an unclean end, a replica that somebody has cut gets its length back and is compared", async () => {
  const image = await imageSent();
  await failDelta(image);
  truncateSync(replicaPath(), 4 * MIB);
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  expect(await giveUp()).toBe(4 * MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 4 * MIB } });
  await expectReplicaIs(image);
  await expectLost([7 * MIB], -4 * MIB);
});

test("a replica whose mtime was put back after a write is compared all the same", async () => {
  const image = await imageSent();
  const { atime, mtime } = statSync(replicaPath());
  mountReplica([4 * MIB]);
  utimesSync(replicaPath(), atime, mtime);
  await expectRefused(image);
  await giveUp();
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
  await expectRefused(image);
  await giveUp();
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

test("C-88: both sides written: refused, nothing is overwritten; what was written at the replica can be kept as a point, and the source goes on", async () => {
  const image = await imageSent();
  const first = readFileSync(replicaPath());
  mountReplica([64, 2 * MIB, 5 * MIB + 3]);
  const theirs = readFileSync(replicaPath());
  await image.write(randomBytes(64 * KIB), 2 * MIB);
  await image.write(randomBytes(64 * KIB), 7 * MIB);
  await expectRefused(image, /somebody else has changed the replica since point 1 \(cycle .*at offset 0 for one/);
  await expect(rollBack(kit.store, "disk", { engine: kit.receiving })).rejects.toMatchObject({
    code: "replica-changed",
  });
  expect(readFileSync(replicaPath()).equals(theirs)).toBe(true);

  expect(await keepChanges()).toBe(2);
  const [, kept] = (await kit.store.points("disk")).points;
  expect(kept).toMatchObject({ point: 2, label: "theirs", consistency: "none", hold: { owner: "repair" } });
  expect((await kit.store.summary("disk"))?.state).toBe("idle");
  await expectPointIs(2, theirs);

  // A base the sender does not know: it compares, and sends what differs.
  expect(await kit.send(image)).toMatchObject({ point: 3, funnel: { changedBlockBytes: 4 * 64 * KIB } });
  await expectReplicaIs(image);
  await expectPointIs(2, theirs);
  // What the replica's writer overwrote was never kept: that, and no more, is lost to the point before.
  await expectLost([0, 2 * MIB, 5 * MIB], 64 * KIB);
  const reader = await kit.store.openPoint("disk", 1);
  const block = Buffer.alloc(64 * KIB);
  await reader.read(block, 7 * MIB);
  await reader.close();
  expect(block.equals(first.subarray(7 * MIB, 7 * MIB + 64 * KIB))).toBe(true);
});

test("keeping changes that was cut short leaves them refused, and is done again", async () => {
  const blockBytes = 16 * KIB;
  const image = createMemoryImage(24 * MIB);
  await image.write(randomBytes(24 * MIB), 0);
  await kit.send(image, { blockBytes });
  await kit.idle();
  mountReplica([2 * MIB, 20 * MIB]);
  const theirs = readFileSync(replicaPath());
  const stopped = new AbortController();
  // Behind the first of three table pages, in which there was a difference.
  const onProgress = (): void => stopped.abort(new ReplicationError("aborted", "enough"));
  const cut = { engine: kit.receiving, signal: stopped.signal, onProgress, keepChanges: { label: "theirs" } };
  await expect(repair(kit.store, "disk", cut)).rejects.toMatchObject({ code: "aborted" });
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  expect(await keepChanges()).toBe(2);
  await expectPointIs(2, theirs);
  expect(await kit.send(image)).toMatchObject({ point: 3, funnel: { changedBlockBytes: 2 * blockBytes } });
  await expectPointIs(2, theirs);
  await expectReplicaIs(image);
});

test("nothing is kept where nothing differs, and half a delta is not what somebody else wrote", async () => {
  const image = await imageSent();
  expect(await keepChanges()).toBeUndefined();
  await image.write(randomBytes(8 * MIB), 0);
  const cut = kit.send(image, { attemptsMax: 1, codec: "stored", onPair: (pair) => pair.toServer.cutAfter(3 * MIB) });
  await expect(cut).rejects.toMatchObject({ code: "connection-lost" });
  await kit.idle();
  const again = new Date(Date.now() + 20_000);
  utimesSync(replicaPath(), again, again);
  expect(await keepChanges()).toBeUndefined();
  expect((await kit.store.points("disk")).points).toHaveLength(1);
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectReplicaIs(image);
});

test("a replica that somebody made longer is not cut before a person has said so", async () => {
  const image = await imageSent();
  truncateSync(replicaPath(), 9 * MIB);
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  await expect(keepChanges()).rejects.toMatchObject({ code: "replica-changed" });
  expect(statSync(replicaPath()).size).toBe(9 * MIB);
  await giveUp();
  expect(statSync(replicaPath()).size).toBe(8 * MIB);
  expect(await kit.send(image, { skipEmpty: true })).toMatchObject({ created: false });
});

test("a record of a suspicion that cannot be read is one of changes that were found", async () => {
  const image = await imageSent();
  const path = join(kit.folder, "store/disks/disk/suspect.json");
  writeFileSync(path, "{");
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  await giveUp();
  expect(await kit.send(image, { skipEmpty: true })).toMatchObject({ created: false });
});

describe("beside a damaged or lost table", () => {
  const disk = (): string => join(kit.folder, "store/disks/disk");

  test("a replica that somebody wrote to is found by its root, and can be kept", async () => {
    const image = await imageSent();
    mountReplica([5 * MIB]);
    const theirs = readFileSync(replicaPath());
    truncateSync(join(disk(), "pages"), 0);
    await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
    await kit.idle();
    expect((await kit.store.summary("disk"))?.state).toBe("changed");
    expect(readFileSync(replicaPath()).equals(theirs)).toBe(true);
    expect(await keepChanges()).toBe(2);
    await expectPointIs(2, theirs);
    expect(await kit.send(image)).toMatchObject({ point: 3 });
    await expectReplicaIs(image);
    await expectPointIs(2, theirs);
  });

  test("so is one whose writes lie behind a page of the table that rotted", async () => {
    const image = await imageSent();
    mountReplica([2 * MIB]);
    rotOf("digests", 100);
    await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
    await kit.idle();
    await giveUp();
    expect(await kit.send(image)).toMatchObject({ point: 2 });
    await expectReplicaIs(image);
  });

  test("nothing is kept where nobody wrote", async () => {
    const image = await imageSent();
    rotOf("digests", 100);
    expect(await keepChanges()).toBeUndefined();
    expect(await kit.send(image, { skipEmpty: true })).toMatchObject({ created: false });
  });

  function rotOf(name: string, offset: number): void {
    const fd = openSync(join(disk(), name), "r+");
    writeSync(fd, Buffer.from("x"), 0, 1, offset);
    closeSync(fd);
  }
});

describe("while somebody still writes", () => {
  async function wideImageSent(): Promise<BlockWriter> {
    const image = createMemoryImage(24 * MIB);
    await image.write(randomBytes(24 * MIB), 0);
    await kit.send(image, { blockBytes: 16 * KIB });
    await kit.idle();
    return image;
  }

  test.each([
    ["kept", { keepChanges: { label: "theirs" } }],
    ["given up", {}],
  ] as const)("changes are not %s: what was read first may be old by now", async (_name, how) => {
    const image = await wideImageSent();
    mountReplica([2 * MIB]);
    let looked = 0;
    const onProgress = (): void => {
      if (looked++ === 0) mountReplica([3 * MIB]);
    };
    const repairing = repair(kit.store, "disk", { engine: kit.receiving, onProgress, ...how });
    await expect(repairing).rejects.toThrow(/was written to while it was being compared/);
    await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
    await kit.idle();
    const theirs = readFileSync(replicaPath());
    expect(await keepChanges()).toBe(2);
    await expectPointIs(2, theirs);
  });

  test("a replica in which nothing differs yet is compared again", async () => {
    const image = await wideImageSent();
    const again = new Date(Date.now() + 20_000);
    utimesSync(replicaPath(), again, again);
    let looked = 0;
    const onProgress = (): void => {
      if (looked++ === 0) mountReplica([3 * MIB]);
    };
    await expect(repair(kit.store, "disk", { engine: kit.receiving, onProgress })).rejects.toThrow(/was written to/);
    await expectRefused(image);
  });
});

test("a repair that was cut short has given nothing up", async () => {
  const image = createMemoryImage(24 * MIB);
  await image.write(randomBytes(24 * MIB), 0);
  await kit.send(image, { blockBytes: 16 * KIB });
  await kit.idle();
  mountReplica([2 * MIB]);
  const theirs = readFileSync(replicaPath());
  const stopped = new AbortController();
  const onProgress = (): void => stopped.abort(new ReplicationError("aborted", "enough"));
  const cut = { engine: kit.receiving, signal: stopped.signal, onProgress };
  await expect(repair(kit.store, "disk", cut)).rejects.toMatchObject({ code: "aborted" });
  expect(await keepChanges()).toBe(2);
  await expectPointIs(2, theirs);
});

test("after an unclean end, a replica that somebody made longer later is not cut", async () => {
  const image = await imageSent();
  await failDelta(image);
  ageHeartbeat();
  truncateSync(replicaPath(), 9 * MIB);
  mountReplica([8 * MIB + 4096]);
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  await expect(keepChanges()).rejects.toThrow(/made the replica longer/);
  expect(statSync(replicaPath()).size).toBe(9 * MIB);
  expect((await kit.store.summary("disk"))?.state).toBe("changed");
  // As the message says: the rest can be kept.
  truncateSync(replicaPath(), 8 * MIB);
  await keepChanges();
  expect(await kit.send(image)).toMatchObject({ created: true });
  await expectReplicaIs(image);
});

test("changes whose point was committed are not asked for again, though their record stayed", async () => {
  const image = await imageSent();
  mountReplica([2 * MIB]);
  await expectRefused(image);
  const path = join(kit.folder, "store/disks/disk/suspect.json");
  const record = readFileSync(path);
  expect(await keepChanges()).toBe(2);
  writeFileSync(path, record);
  expect(await kit.send(image)).toMatchObject({ point: 3 });
  await expectReplicaIs(image);
  expect(existsSync(path)).toBe(false);
});

test("sectors that the device does not give are no changes of somebody's", async () => {
  const image = await imageSent();
  const holdsIt = (run: FileRun): boolean =>
    run.kind === "file" && run.offset <= 3 * MIB && 3 * MIB < run.offset + run.length;
  const lanes = overriding(kit.receiving.lanes, {
    run: (name, request) => {
      const isLost =
        name === "scan" && "pieces" in request && request.pieces.some(({ runs = [] }) => runs.some(holdsIt));
      const lost = new ReplicationError("image-unreadable", "EIO", { details: { errno: "EIO" } });
      return isLost ? Promise.reject(lost) : kit.receiving.lanes.run(name, request);
    },
  });
  const engine = overriding(kit.receiving, { lanes });
  expect(await repair(kit.store, "disk", { engine, keepChanges: { label: "theirs" } })).toEqual({
    damaged: [{ offset: 3 * MIB, length: 64 * KIB }],
  });
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectReplicaIs(image);
});
