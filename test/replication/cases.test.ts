/** Single cases of a session that need both ends. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

describe("sizes", () => {
  test.each([0, 1, 511, 4_095, 4_096, 4_097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB + 1])(
    "a disk of %i bytes",
    async (size) => {
      const image = createMemoryImage(size);
      if (size > 0) await image.write(randomBytes(size), 0);
      expect(await kit.send(image)).toMatchObject({ point: 1, created: true, reason: "initial" });
      await expectEqual(kit, image);
      if (size > 0) await image.write(randomBytes(1), size - 1);
      expect(await kit.send(image)).toMatchObject({ point: 2, created: true });
      await expectEqual(kit, image);
      if (size > 0) await image.zero(0, size);
      const report = await kit.send(image);
      expect(report.funnel.zeroBlocks).toBe(Math.ceil(size / (64 * KIB)));
      expect(report.funnel.shippedBytes).toBe(0);
      await expectEqual(kit, image);
    },
  );

  test("growth inside the last block, inside the last page, and over pages; content right behind the old end", async () => {
    // 16 KiB blocks: a page is 8 MiB.
    let size = 3 * MIB + 100;
    let image = createMemoryImage(size);
    await image.write(randomBytes(size), 0);
    await kit.send(image, { blockBytes: 16 * KIB });
    for (const more of [50, 5_000, 16 * KIB, 2 * MIB, 20 * MIB]) {
      const larger = createMemoryImage(size + more);
      const content = Buffer.alloc(size);
      await image.read(content, 0);
      await larger.write(content, 0);
      await larger.write(randomBytes(Math.min(more, 30_000)), size);
      if (more > 100_000) await larger.write(randomBytes(700), size + more - 700);
      image = larger;
      size += more;
      const report = await kit.send(image);
      await expectEqual(kit, image);
      expect(report.funnel.shippedBytes).toBeLessThan(60_000);
    }
  });
});

test("what differs by one byte travels as one part, wherever in the block it is (C-40)", async () => {
  const image = createMemoryImage(2 * MIB);
  await image.write(randomBytes(2 * MIB), 0);
  await kit.send(image);
  for (const at of [0, 4_095, 4_096, 64 * KIB - 1, 64 * KIB, MIB - 1, 2 * MIB - 1]) {
    const old = Buffer.alloc(1);
    await image.read(old, at);
    await image.write(Buffer.of((old[0] ?? 0) ^ 0x80), at);
    const { funnel } = await kit.send(image);
    expect(funnel).toMatchObject({ changedBytes: 4_096, shippedBytes: 4_096, changedBlockBytes: 64 * KIB });
    expect(funnel.wireBytes).toBeLessThan(4_096 + 2_000);
    await expectEqual(kit, image);
  }
});

test("each stage of the funnel is at most the one before", async () => {
  const image = createMemoryImage(40 * MIB);
  for (let at = 0; at < 40; at += 3) await image.write(Buffer.alloc(500_000, `part ${at} `), at * MIB);
  const check = async (): Promise<void> => {
    const { funnel } = await kit.send(image);
    expect(funnel.scannedBytes).toBe(funnel.sizeBytes);
    expect(funnel.allocatedBytes).toBeLessThanOrEqual(funnel.sizeBytes);
    expect(funnel.changedBlockBytes).toBeLessThanOrEqual(funnel.sizeBytes);
    expect(funnel.changedBytes).toBeLessThanOrEqual(funnel.changedBlockBytes);
    expect(funnel.shippedBytes).toBeLessThanOrEqual(funnel.changedBytes);
    expect(funnel.packedBytes).toBeLessThanOrEqual(funnel.wireBytes);
  };
  await check();
  for (let at = 0; at < 40; at += 5) await image.write(randomBytes(10_000), at * MIB + 7_777);
  await image.zero(9 * MIB, 500_000);
  await check();
});

test("where most pages differ digests are asked ahead of reading: holes, zeros and parts come out the same", async () => {
  // Twenty pages of 8 MiB, of which every one differs.
  const image = createMemoryImage(160 * MIB);
  for (let page = 0; page < 20; page++) await image.write(randomBytes(10 * 16 * KIB), page * 8 * MIB + MIB);
  await kit.send(image, { blockBytes: 16 * KIB });
  for (let page = 0; page < 20; page++) {
    const start = page * 8 * MIB + MIB;
    await image.write(Buffer.of(1, 2, 3), start);
    await image.zero(start + 3 * 16 * KIB, 2 * 16 * KIB);
    // Zero and no hole.
    await image.write(Buffer.alloc(16 * KIB), start + 6 * 16 * KIB);
    await image.write(randomBytes(4_096), start + 20 * 16 * KIB);
  }
  const report = await kit.send(image);
  expect(report).toMatchObject({ attempts: 1, funnel: { zeroBlocks: 60, shippedBytes: 20 * 2 * 4_096 } });
  await expectEqual(kit, image);
});

test("a resumed initial copy begins where the last one ended, and wraps round", async () => {
  // Five pages of 8 MiB.
  const image = createMemoryImage(40 * MIB);
  for (let at = 0; at < 40; at++) await image.write(randomBytes(300_000), at * MIB);
  const onPair = (pair: LinkedPair): void => {
    pair.toServer.cutAfter(7 * MIB);
  };
  const options = { blockBytes: 16 * KIB, codec: "stored" as const };
  await expect(kit.send(image, { ...options, onPair, attemptsMax: 1 })).rejects.toMatchObject({
    code: "connection-lost",
  });
  // What was passed already changes: a scan that only went on would miss it.
  await image.write(randomBytes(1_000), 0);
  await image.zero(5 * MIB, 300_000);
  const report = await kit.send(image, options);
  expect(report).toMatchObject({ point: 1, reason: "resume" });
  expect(report.funnel.scannedBytes).toBe(40 * MIB);
  expect(report.funnel.shippedBytes).toBeLessThan(6 * MIB);
  await expectEqual(kit, image);
});

test("an image that changed while it was read: nothing is committed, and the next send goes on", async () => {
  const image = createMemoryImage(2 * MIB);
  await image.write(randomBytes(2 * MIB), 0);
  const guard = {
    begin: () => Promise.resolve(),
    check: () => Promise.reject(new ReplicationError("image-changed", "somebody writes to it")),
  };
  const source = { reader: image, name: "image", identity: "image-1", guard };
  await expect(kit.send(image, { source })).rejects.toMatchObject({ code: "image-changed" });
  await kit.idle();
  expect((await kit.store.summary("disk"))?.newest).toBeUndefined();
  const report = await kit.send(image);
  expect(report).toMatchObject({ point: 1, reason: "resume", funnel: { shippedBytes: 0 } });
  await expectEqual(kit, image);
});

test("an image that changes while it is read, with nobody to notice: what is committed is what both ends computed", async () => {
  const image = createMemoryImage(4 * MIB);
  await image.write(randomBytes(4 * MIB), 0);
  await kit.send(image);
  for (let at = 0; at < 4 * MIB; at += 64 * KIB) await image.write(Buffer.of(1, 2, 3), at);
  // Between the first look at a block and the reading of its parts.
  let reads = 0;
  const reader = {
    ...image,
    async read(target: Uint8Array, offset: number) {
      if (++reads === 30) await image.write(randomBytes(4_096), 2 * MIB);
      await image.read(target, offset);
    },
  };
  const report = await kit.send(reader, { attemptsMax: 3 });
  expect(report.point).toBe(2);
  const newest = (await kit.store.summary("disk"))?.newest;
  expect(newest?.root).toBe(report.root);
  // And the next send finds what is left.
  await kit.send(image);
  await expectEqual(kit, image);
});

test("label, consistency and source are kept with the point", async () => {
  const image = createMemoryImage(MIB);
  await kit.send(image, { label: "before the update", consistency: "application" });
  expect((await kit.store.summary("disk"))?.newest).toMatchObject({
    label: "before the update",
    consistency: "application",
    source: "image-1",
    sourceName: "image",
  });
});

test("several disks at a time share pool and receiver", async () => {
  const images = await Promise.all(
    Array.from({ length: 5 }, async (_unused, index) => {
      const image = createMemoryImage(3 * MIB + index);
      await image.write(randomBytes(2 * MIB), index * 1_000);
      return image;
    }),
  );
  const send = (image: (typeof images)[number], index: number): Promise<unknown> =>
    kit.send(image, { disk: `disk-${index}`, instance: `instance-${index}`, attemptsMax: 20 });
  await Promise.all(images.map(send));
  for (const [index, image] of images.entries()) await expectEqual(kit, image, `disk-${index}`);
  await Promise.all(
    images.map(async (image, index) => {
      await image.write(randomBytes(5_000), 1_000_000);
      await send(image, index);
    }),
  );
  for (const [index, image] of images.entries()) await expectEqual(kit, image, `disk-${index}`);
});

test("a disk in use by another sender: disk-busy, not tried again, and the one that has it is not disturbed", async () => {
  const image = createMemoryImage(4 * MIB);
  await image.write(randomBytes(4 * MIB), 0);
  let second: Promise<unknown> | undefined;
  const guard = {
    begin: () => Promise.resolve(),
    async check() {
      second ??= kit.send(createMemoryImage(MIB), { instance: "another" }).catch((error: unknown) => error);
      expect(await second).toMatchObject({ code: "disk-busy", action: "never" });
    },
  };
  const source = { reader: image, name: "image", identity: "image-1", guard };
  expect(await kit.send(image, { source })).toMatchObject({ point: 1, attempts: 1 });
  await expectEqual(kit, image);
});

test("stopping the receiver ends sessions resumably", async () => {
  const image = createMemoryImage(4 * MIB);
  await image.write(randomBytes(4 * MIB), 0);
  const guard = {
    begin: () => Promise.resolve(),
    check: async () => {
      await kit.receiver.close();
    },
  };
  const source = { reader: image, name: "image", identity: "image-1", guard };
  await expect(kit.send(image, { source, attemptsMax: 2 })).rejects.toMatchObject({ code: "receiver-stopping" });
  // Applied and kept, though no point was made.
  expect(await kit.store.summary("disk")).toMatchObject({ state: "interrupted" });
});

test("C-70: 24 points, then 1, then none but the replica, then 24 again, a cycle between: points go, and no cycle is a copy", async () => {
  const image = createMemoryImage(4 * MIB);
  await image.write(randomBytes(4 * MIB), 0);
  expect((await kit.send(image)).funnel.shippedBytes).toBe(4 * MIB);
  const { store, folder } = kit;
  const cycle = async (keep: string, round: number): Promise<readonly number[]> => {
    await store.setPolicy("disk", keep);
    await image.write(randomBytes(8 * KIB), round * 100 * KIB);
    const { funnel, created, reason } = await kit.send(image);
    expect({ created, reason }).toEqual({ created: true, reason: "scan" });
    // The parts that were written, and no more.
    expect(funnel.shippedBytes).toBe(8 * KIB);
    expect(funnel.wireBytes).toBeLessThan(64 * KIB);
    await expectEqual(kit, image);
    await kit.idle();
    return (await store.points("disk")).points.map(({ point }) => point);
  };
  for (let round = 1; round <= 4; round++) await cycle("last=24", round);
  expect(await cycle("last=24", 5)).toEqual([1, 2, 3, 4, 5, 6]);
  expect(await cycle("last=1", 6)).toEqual([7]);
  expect(await cycle("last=0", 7)).toEqual([8]);
  // The replica and its record: no old content is kept.
  const files = readdirSync(join(folder, "store/disks/disk/points")).filter((name) => !name.endsWith(".lock"));
  expect(files).toEqual(["0000000008.json"]);
  expect(await cycle("last=24", 8)).toEqual([8, 9]);
  expect(await cycle("last=24", 9)).toEqual([8, 9, 10]);
});
