/** Cycles of a tracked image: what they read, what the receiver has afterwards, and what happens when something comes in between. */
import { cpSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { loadKnownState } from "../../src/track/known-state.ts";
import { randomBytes } from "../random.ts";
import { watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";
import { filled, sizeBytes, statePath, Tracker } from "./tracker-kit.ts";

let kit: PairKit;
/** Of the receiver. */
const warnings: string[] = [];
const rejections = watchRejections();

beforeEach(async () => {
  warnings.length = 0;
  kit = await PairKit.create({ receiverLog: { ...silentLogger, warn: (_fields, text) => void warnings.push(text) } });
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

describe("a delta reads what changed and nothing else", () => {
  test.each([16 * KIB, 64 * KIB, MIB])("journal blocks of %d bytes", async (blockBytes) => {
    const tracker = new Tracker(kit);
    await tracker.start(blockBytes);
    for (const at of [0, 40, 99]) await tracker.write(at * MIB, MIB);
    await tracker.cycle();
    await tracker.write(MIB - 5, 10);
    await tracker.image.zero(40 * MIB, 200 * KIB);
    await tracker.write(sizeBytes - 700, 700);
    await tracker.write(70 * MIB, 5_000);
    const report = await tracker.cycle();
    expect(report).toMatchObject({ reason: "bitmap", point: 2 });
    // A block is read once.
    expect(report.funnel.readBytes).toBeLessThan(6 * Math.max(blockBytes, 64 * KIB) + 200 * KIB);
    await tracker.expectReplica();
    const nothing = await tracker.cycle();
    expect(nothing.funnel).toMatchObject({ readBytes: 0, changedBytes: 0 });
    await tracker.expectReplica();
    await tracker.stop();
  });

  test("also after a restart, and when the process ended between commit and retire", async () => {
    const tracker = await filled(kit);
    await tracker.write(3 * MIB, 100_000);
    await tracker.stop();
    expect(await tracker.start()).toBe("exact");
    const report = await tracker.cycle();
    expect(report.reason).toBe("bitmap");
    expect(report.funnel.readBytes).toBeLessThan(MIB);
    await tracker.expectReplica();
    // The point is made, and the process dies before it can say so in its journal.
    await tracker.write(50 * MIB, 100_000);
    const { retire } = tracker.image.journal;
    tracker.image.journal.retire = () => Promise.reject(new Error("killed"));
    await expect(tracker.cycle()).rejects.toThrow("killed");
    tracker.image.journal.retire = retire;
    await tracker.stop();
    expect(await tracker.start()).toBe("exact");
    await tracker.write(60 * MIB, 100_000);
    const next = await tracker.cycle();
    expect(next.reason).toBe("bitmap");
    expect(next.funnel.readBytes).toBeLessThan(MIB);
    await tracker.expectReplica();
    await tracker.stop();
  });
});

test("blocks of the receiver that are larger than the journal's are sent as they were, clean parts of them included", async () => {
  const tracker = new Tracker(kit);
  tracker.blockBytes = MIB;
  await tracker.start();
  await tracker.write(0, 8 * MIB);
  await tracker.cycle();
  await tracker.write(3 * MIB + 128 * KIB, 4_096);
  await tracker.write(sizeBytes - 700, 700);
  const asItWas = new Uint8Array(sizeBytes);
  tracker.onPair = async () => {
    // The cut is made, and nothing of it was read yet: clean blocks of the journal in the MiB that is dirty, before and behind.
    await tracker.memory.read(asItWas, 0);
    await tracker.write(3 * MIB, 4_096);
    await tracker.write(4 * MIB - 4_096, 4_096);
    await tracker.write(sizeBytes - 1_536, 512);
  };
  const report = await tracker.cycle();
  expect(report).toMatchObject({ reason: "bitmap", point: 2 });
  await kit.idle();
  expect(Buffer.compare(kit.replica(), asItWas)).toBe(0);
  tracker.onPair = () => undefined;
  await tracker.cycle();
  await tracker.expectReplica();
  await tracker.stop();
});

test("a link that breaks in the middle of a delta: the same cut goes on, and nothing but dirty blocks is read", async () => {
  const tracker = await filled(kit);
  for (let at = 0; at < 90; at += 3) await tracker.write(at * MIB + 4_096, 100_000);
  let links = 0;
  tracker.onPair = (pair) => {
    if (++links < 4) pair.toServer.cutAfter(700_000 * links);
  };
  const report = await tracker.cycle();
  expect(report.reason).toBe("bitmap");
  expect(report.attempts).toBeGreaterThan(1);
  expect(report.funnel.readBytes).toBeLessThan(30 * 3 * 64 * KIB * 4);
  await tracker.expectReplica();
  await tracker.stop();
});

test("a delta that was given up half way, and more writes: the next cycle puts it right", async () => {
  const tracker = await filled(kit);
  for (let at = 0; at < 90; at += 3) await tracker.write(at * MIB, 100_000);
  const stop = new AbortController();
  tracker.onPair = (pair) => {
    pair.toServer.cutAfter(1_500_000);
    stop.abort();
  };
  await expect(tracker.cycle(stop.signal)).rejects.toMatchObject({ code: "aborted" });
  tracker.onPair = () => undefined;
  await tracker.write(20 * MIB, 100_000);
  await tracker.cycle();
  await tracker.expectReplica();
  const after = await tracker.cycle();
  expect(after.funnel.readBytes).toBe(0);
  await tracker.stop();
});

test("a receiver that has another state than it was left with is compared, once", async () => {
  const tracker = await filled(kit);
  const other = createMemoryImage(sizeBytes);
  await other.write(randomBytes(2 * MIB), 40 * MIB + 100);
  await kit.send(other, { source: { reader: other, name: "vm", identity: "vm-1" } });
  await kit.idle();
  await tracker.write(5 * MIB, 4_096);
  const report = await tracker.cycle();
  expect(report.reason).toBe("resync:base-mismatch");
  await tracker.expectReplica();
  await tracker.write(6 * MIB, 4_096);
  expect((await tracker.cycle()).reason).toBe("bitmap");
  await tracker.expectReplica();
  await tracker.stop();
});

test("a store copied back to an older state, between two cycles: compared at both ends, once, and only what it has lost is sent again", async () => {
  const tracker = await filled(kit);
  const disk = join(kit.folder, "store/disks/disk");
  const kept = join(kit.folder, "kept");
  cpSync(disk, kept, { recursive: true, preserveTimestamps: true });
  await tracker.write(40 * MIB, 128 * KIB);
  await tracker.write(70 * MIB, 64 * KIB);
  expect(await tracker.cycle()).toMatchObject({ reason: "bitmap", point: 2 });
  await kit.idle();
  rmSync(disk, { recursive: true });
  renameSync(kept, disk);
  await tracker.write(5 * MIB, 4 * KIB);
  warnings.length = 0;
  const report = await tracker.cycle();
  // Point 2 again: the store has never heard of the sender's base.
  expect(report).toMatchObject({ reason: "resync:base-mismatch", point: 2, created: true, attempts: 1 });
  expect(warnings).toEqual([
    "comparing the replica with its table",
    expect.stringMatching(/does not have the state its changes are known from.*make another cut, of all of it/),
  ]);
  // What the replica lost with point 2, and what was written since: 128 KiB and 64 KiB, and 4 KiB in a block of its own.
  const { funnel } = report;
  expect(funnel).toMatchObject({ changedBlockBytes: 4 * 64 * KIB, changedBytes: 196 * KIB, shippedBytes: 196 * KIB });
  // It has 3 MiB and more. Only the page of 8 MiB in which the receiver has something else is read, and what was written; blocks that differ once more to be sent.
  expect(funnel.readBytes).toBeLessThan(1.5 * MIB);
  await tracker.expectReplica();
  expect((await kit.store.points("disk")).points.map(({ point }) => point)).toEqual([1, 2]);

  await tracker.write(5 * MIB, 4 * KIB);
  warnings.length = 0;
  const next = await tracker.cycle();
  expect(next).toMatchObject({ reason: "bitmap", point: 3, funnel: { readBytes: 64 * KIB, changedBytes: 4 * KIB } });
  expect(warnings).toEqual([]);
  await tracker.expectReplica();
  await tracker.stop();
});

test("an image that is rolled back together with its journal is sent: what it becomes has another name than what it was", async () => {
  const tracker = await filled(kit);
  await tracker.stop();
  const image = new Uint8Array(sizeBytes);
  await tracker.memory.read(image, 0);
  const files = tracker.disk.files().map((path) => ({ path, bytes: tracker.disk.peek(path) ?? new Uint8Array() }));
  const cycles = [];
  for (let life = 0; life < 3; life++) {
    await tracker.memory.write(image, 0);
    const storage = tracker.disk.start();
    for (const { path, bytes } of files) {
      const file = await storage.open(path, { write: true, create: true, truncate: true });
      await file.write(bytes, 0);
      await file.close();
    }
    expect(await tracker.start()).toBe("exact");
    // Not written to, in one life.
    if (life > 0) await tracker.write((3 + life) * MIB, 100_000);
    expect(await tracker.cycle()).toMatchObject({ created: true, point: 2 + life });
    cycles.push(tracker.image.journal.base);
    await tracker.expectReplica();
    await tracker.stop();
  }
  expect(new Set(cycles).size).toBe(3);
});

test("what another sender left half applied is found, though no point tells of it", async () => {
  const tracker = await filled(kit);
  const other = createMemoryImage(sizeBytes);
  await other.write(randomBytes(20 * MIB), 30 * MIB);
  const onPair = (pair: LinkedPair): void => pair.toServer.cutAfter(8_000_000);
  await expect(kit.send(other, { adopt: true, onPair, attemptsMax: 1 })).rejects.toMatchObject({
    code: "connection-lost",
  });
  await kit.idle();
  await tracker.write(5 * MIB, 4_096);
  await tracker.cycle();
  await tracker.expectReplica();
  await tracker.stop();
});

test("without its known state all is compared; a state that is damaged is none", async () => {
  const tracker = await filled(kit);
  await tracker.stop();
  const bytes = tracker.disk.peek(statePath);
  if (bytes === undefined) throw new Error("the state is saved");
  for (const at of [0, 9, 13, 20, 25, 29, 40, 600, bytes.length - 1]) {
    tracker.disk.poke(statePath, Uint8Array.of((bytes[at] ?? 0) ^ 0x10), at);
    expect(await loadKnownState(tracker.disk.start(), statePath), `byte ${at}`).toBeUndefined();
    tracker.disk.poke(statePath, Uint8Array.of(bytes[at] ?? 0), at);
  }
  expect((await loadKnownState(tracker.disk.start(), statePath))?.pages.root()).toBeDefined();
  tracker.disk.poke(statePath, Uint8Array.of(1), 700);
  await tracker.start();
  await tracker.write(5 * MIB, 4_096);
  const report = await tracker.cycle();
  expect(report).toMatchObject({ reason: "scan", point: 2 });
  await tracker.expectReplica();
  await tracker.stop();
});

test("a cut that is lost makes no point, and its changes are in the next", async () => {
  const tracker = await filled(kit);
  await tracker.stop();
  await tracker.start(64 * KIB, 0);
  await tracker.write(5 * MIB, 3 * MIB);
  let writing: Promise<void> | undefined;
  tracker.onPair = () => {
    // The guest needs a block that was not sent yet, and there is nowhere to keep what it held.
    writing = tracker.write(7 * MIB, 4_096);
  };
  await expect(tracker.cycle()).rejects.toMatchObject({ code: "cut-abandoned" });
  await writing;
  tracker.onPair = () => undefined;
  await tracker.cycle();
  await tracker.expectReplica();
  await tracker.stop();
});

test.each(["by the same process", "by the next process"])(
  "an audit looks at blocks called clean; what was written past the tracker is sent, and then all is compared %s",
  async (by) => {
    const tracker = await filled(kit);
    tracker.auditShare = 1;
    await tracker.stop();
    await tracker.start();
    const honest = await tracker.cycle();
    expect(honest.audit?.bytes).toBeGreaterThan(20 * MIB);
    expect(honest.audit?.missedBytes).toBe(0);
    for (let at = 0; at < 100; at += 2) await tracker.memory.write(randomBytes(512), at * MIB);
    const shocked = await tracker.cycle();
    expect(shocked.audit?.missedBytes).toBe(50 * 64 * KIB);
    if (by === "by the next process") {
      await tracker.stop();
      expect(await tracker.start()).toBe("exact");
    }
    // What the audit would not find.
    await tracker.memory.write(randomBytes(512), 51 * MIB);
    const whole = await tracker.cycle();
    expect(whole).toMatchObject({ reason: "scan", audit: undefined });
    await tracker.expectReplica();
    expect((await tracker.cycle()).audit?.missedBytes).toBe(0);
    await tracker.stop();
  },
);

test("an audit that missed is not forgotten either when the process ends before it can say so", async () => {
  const tracker = await filled(kit);
  tracker.auditShare = 1;
  await tracker.stop();
  await tracker.start();
  await tracker.memory.write(randomBytes(512), 40 * MIB);
  const { flush } = tracker.memory;
  // The point is made.
  tracker.memory.flush = () => Promise.reject(new Error("killed"));
  await expect(tracker.cycle()).rejects.toThrow("killed");
  tracker.memory.flush = flush;
  await tracker.stop();
  await tracker.memory.write(randomBytes(512), 41 * MIB);
  tracker.auditShare = 0;
  expect(await tracker.start()).toBe("exact");
  expect(await tracker.cycle()).toMatchObject({ reason: "scan", point: 3 });
  await tracker.expectReplica();
  await tracker.stop();
});

test("an audit that missed is not forgotten with a send that fails", async () => {
  const tracker = await filled(kit);
  tracker.auditShare = 1;
  await tracker.stop();
  await tracker.start();
  await tracker.memory.write(randomBytes(512), 0);
  await tracker.write(99 * MIB, 4_096);
  tracker.onPair = ({ client }) => {
    const send = client.send.bind(client);
    client.send = (message, payload) => {
      if (message.type === "commit") throw new ReplicationError("usage", "stopped");
      return send(message, payload);
    };
  };
  await expect(tracker.cycle()).rejects.toMatchObject({ code: "usage" });
  tracker.onPair = () => undefined;
  tracker.auditShare = 0;
  await tracker.stop();
  await tracker.memory.write(randomBytes(512), 41 * MIB);
  expect(await tracker.start()).toBe("exact");
  expect(await tracker.cycle()).toMatchObject({ point: 2, created: true });
  await tracker.expectReplica();
  await tracker.stop();
});

test("where nothing shows writes past the journal a share is audited, until a cut that was audited is a point", async () => {
  const tracker = new Tracker(kit);
  tracker.kind = "device";
  await tracker.start();
  await tracker.write(0, MIB);
  await tracker.cycle();
  expect((await tracker.cycle()).audit, "begun anew").toBeUndefined();
  await tracker.stop();
  expect(await tracker.start()).toBe("exact");
  await tracker.write(5 * MIB, 4_096);
  await expect(tracker.cycle(AbortSignal.abort())).rejects.toMatchObject({ code: "aborted" });
  const report = await tracker.cycle();
  // 64 blocks at least are looked at, those that are dirty or hold nothing among them.
  expect(report).toMatchObject({ reason: "bitmap", audit: { missedBytes: 0 } });
  await tracker.expectReplica();
  expect((await tracker.cycle()).audit).toBeUndefined();
  // More is asked for than that.
  tracker.auditShare = 1;
  await tracker.stop();
  await tracker.start();
  expect((await tracker.cycle()).audit?.bytes).toBeGreaterThan(20 * MIB);
  expect((await tracker.cycle()).audit?.bytes).toBeGreaterThan(20 * MIB);
  await tracker.stop();
});

test("a machine is frozen for its cut and thawed whatever happens; the point says what it is", async () => {
  const tracker = await filled(kit);
  const calls: string[] = [];
  let fails = false;
  tracker.quiescing = {
    async freeze() {
      calls.push("freeze");
      if (fails) throw new Error("no agent");
      await tracker.write(5 * MIB, 512);
    },
    async thaw() {
      calls.push("thaw");
      // The machine goes on only now: this is of the next point.
      void tracker.write(6 * MIB, 512);
    },
  };
  await tracker.stop();
  await tracker.start();
  expect((await tracker.cycle()).consistency).toBe("application");
  fails = true;
  expect((await tracker.cycle()).consistency).toBe("crash");
  expect(calls).toEqual(["freeze", "thaw", "freeze", "thaw"]);
  tracker.quiescing = undefined;
  await tracker.stop();
});
