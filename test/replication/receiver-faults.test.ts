/** What the receiver makes of its own failures: doubt is kept, points are not lost, and the sender gives up in time. */
import { readFileSync, readlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Slot } from "../../src/base/buffer-pool.ts";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import type { Logger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { openImage } from "../../src/image/open-image.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { SaveRequest, JobName } from "../../src/lanes/jobs.ts";
import { repair } from "../../src/library/points.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { contentOf, expectEqual, watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

type Around = (name: JobName, request: unknown, run: () => Promise<unknown>) => Promise<unknown>;

let kit: PairKit;
/** What the receiver's next jobs meet. */
let around: Around = (_name, _request, run) => run();
/** What the receiver says that is no warning. */
let onInfo: (text: string) => void = () => undefined;
const warnings: { readonly fields: object; readonly text: string }[] = [];
const rejections = watchRejections();

beforeEach(async () => {
  around = (_name, _request, run) => run();
  onInfo = () => undefined;
  warnings.length = 0;
  const log: Logger = {
    info: (_fields: object, text: string) => onInfo(text),
    warn: (fields: object, text: string) => void warnings.push({ fields, text }),
    error: () => {},
    debug: () => {},
  };
  kit = await PairKit.create({
    receiverLog: log,
    receiverLanes: (lanes): Lanes => ({
      ...lanes,
      run: ((name: JobName, request: never) => around(name, request, () => lanes.run(name, request))) as Lanes["run"],
    }),
  });
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

describe("a write that fails", () => {
  test("after the connection was lost: the block is in doubt all the same", async () => {
    const image = createMemoryImage(MIB);
    const first = randomBytes(MIB);
    await image.write(first, 0);
    await kit.send(image);

    // The second send: the connection ends while a block is being written, and then that write fails half way.
    await image.write(randomBytes(64 * KIB), 0);
    let pair: LinkedPair | undefined;
    around = async (name, request, run) => {
      if (name !== "apply") return await run();
      pair?.toServer.cutAfter(0);
      for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
      const { fd } = request as SaveRequest;
      kit.receiving.storage.lanes.write(fd, randomBytes(4_096), 0);
      throw new ReplicationError("write-failed", "the device failed");
    };
    const attempt = kit.send(image, { attemptsMax: 1, onPair: (made) => void (pair = made) });
    await expect(attempt).rejects.toMatchObject({ code: "connection-lost" });

    // The source goes back to what the table says: a table that is believed would send nothing.
    around = (_name, _request, run) => run();
    await image.write(first, 0);
    await kit.send(image);
    await expectEqual(kit, image);
  });

  test("at one place whenever it is tried: the sender gives up", async () => {
    const image = createMemoryImage(4 * MIB);
    await image.write(randomBytes(4 * MIB), 0);
    let tries = 0;
    around = async (name, request, run) => {
      if (name !== "apply" || !(request as SaveRequest).blocks.includes(20)) return await run();
      // Ends the test where the sender would go on for ever.
      throw ++tries > 20 ? new ReplicationError("usage", "still trying") : new ReplicationError("write-failed", "EIO");
    };
    await expect(kit.send(image, { attemptsMax: 4 })).rejects.toMatchObject({ code: "write-failed" });
    expect(tries).toBe(4);
  });
});

function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: as the system says`), { code });
}

test("a session whose memory is all there is keeps what zeros overwrite, and waits for no other session to end", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await image.zero(MIB, 5 * MIB);
  const { pool } = kit.receiving;
  const taken: Slot[] = [];
  onInfo = (text) => {
    if (text !== "session open") return;
    for (let slot = pool.tryAcquire(); slot !== undefined; slot = pool.tryAcquire()) taken.push(slot);
  };
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  expect(taken.length).toBeGreaterThan(0);
  for (const slot of taken) slot.release();
  await expectEqual(kit, image);
  const reader = await kit.store.openPoint("disk", 1);
  await reader.read(Buffer.alloc(MIB), 2 * MIB);
  await reader.close();
});

test("a page of the digest table that rotted is mended by who needs it, and nothing else is in doubt afterwards", async () => {
  const image = createMemoryImage(12 * MIB);
  await image.write(randomBytes(12 * MIB), 0);
  await kit.send(image, { blockBytes: 16 * KIB });
  await kit.idle();
  flipDigest(100);
  await image.write(randomBytes(100), MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 16 * KIB } });
  await expectEqual(kit, image);
  expect(warnings.map(({ text }) => text).join("\n")).toMatch(/page 0 of "digests".*reading its blocks/);
  // Of both pages, without anybody who writes to the disk.
  const reader = await kit.store.openPoint("disk", 1);
  for (const offset of [0, 10 * MIB]) await reader.read(Buffer.alloc(10), offset);
  await reader.close();
  const opened = await kit.store.openWriter("disk", { identity: "test", instance: "test" });
  if (opened.kind === "busy") throw new Error("nobody writes to it");
  expect(opened.writer.doubt).toBeUndefined();
  await opened.writer.release();
});

/** As rot does. */
function flipDigest(at: number): void {
  const path = join(kit.folder, "store/disks/disk/digests");
  const digests = readFileSync(path);
  digests[at] = (digests[at] ?? 0) ^ 1;
  writeFileSync(path, digests);
}

test("a damaged page of the table that lies behind the end of a disk that became smaller is no damage any more", async () => {
  const image = createMemoryImage(24 * MIB);
  await image.write(randomBytes(24 * MIB), 0);
  await kit.send(image, { blockBytes: 16 * KIB });
  await kit.idle();
  flipDigest(2 * 4_096 + 100);
  const smaller = createMemoryImage(7 * MIB);
  await smaller.write(randomBytes(MIB), MIB);
  expect(await kit.send(smaller, { allowShrink: true })).toMatchObject({ point: 2 });
  await expectEqual(kit, smaller);
});

test("a page that is mended while the replica is compared: the delta begins after it", async () => {
  const image = createMemoryImage(12 * MIB);
  await image.write(randomBytes(12 * MIB), 0);
  await kit.send(image, { blockBytes: 16 * KIB });
  await kit.idle();
  flipDigest(100);
  const later = new Date(Date.now() + 10_000);
  utimesSync(join(kit.folder, "store/disks/disk/replica.raw"), later, later);
  await image.write(randomBytes(100), MIB);
  await image.zero(10 * MIB, MIB);
  expect(await kit.send(image)).toMatchObject({ point: 2 });
  await expectEqual(kit, image);
});

test("a device that cannot be read at all is not put down as lost content", async () => {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 16 * KIB });
  await kit.idle();
  const replica = join(kit.folder, "store/disks/disk/replica.raw");
  const { lanes } = kit.receiving.storage;
  const { read } = lanes;
  Object.assign(lanes, {
    read: (fd: number, target: Uint8Array, offset: number) => {
      if (readlinkSync(`/proc/self/fd/${fd}`) === replica) throw systemError("EIO");
      return read(fd, target, offset);
    },
  });
  const repairing = repair(kit.store, "disk", { engine: kit.receiving });
  await expect(repairing).rejects.toMatchObject({ code: "image-unreadable" });
  Object.assign(lanes, { read });
  const reader = await kit.store.openPoint("disk", 1);
  await reader.read(Buffer.alloc(8 * MIB), 0);
  await reader.close();
});

describe("a sector of the replica that the device has lost", () => {
  const bad = 2 * MIB + 4 * KIB;
  const badBlock = Math.floor(bad / (64 * KIB));
  let replica = "";

  /** Until it is written anew, as with a device that has spare sectors. */
  function loseSector(): void {
    replica = join(kit.folder, "store/disks/disk/replica.raw");
    const { lanes } = kit.receiving.storage;
    const { read, write, writeDirect } = lanes;
    let lost = true;
    const isThere = (fd: number, bytes: Uint8Array, offset: number): boolean =>
      readlinkSync(`/proc/self/fd/${fd}`) === replica && offset <= bad && bad < offset + bytes.length;
    Object.assign(lanes, {
      read: (fd: number, target: Uint8Array, offset: number) => {
        if (lost && isThere(fd, target, offset)) throw systemError("EIO");
        return read(fd, target, offset);
      },
      write: (fd: number, source: Uint8Array, offset: number) => {
        if (isThere(fd, source, offset)) lost = false;
        write(fd, source, offset);
      },
      writeDirect: (fd: number, source: Uint8Array, offset: number) => {
        if (isThere(fd, source, offset)) lost = false;
        return writeDirect?.(fd, source, offset);
      },
    });
  }

  async function expectLostInPoint1(): Promise<void> {
    const reader = await kit.store.openPoint("disk", 1);
    await expect(reader.read(Buffer.alloc(10), bad)).rejects.toMatchObject({ code: "store-damaged" });
    await reader.read(Buffer.alloc(10), bad + 64 * KIB);
    await reader.close();
  }

  test("is found by a repair, and healed by the next delta; the point before says that it has lost it", async () => {
    const image = createMemoryImage(4 * MIB);
    await image.write(randomBytes(4 * MIB), 0);
    await kit.send(image, { blockBytes: 64 * KIB });
    await kit.idle();
    loseSector();
    const { damaged } = await repair(kit.store, "disk", { engine: kit.receiving });
    expect(damaged).toEqual([{ offset: badBlock * 64 * KIB, length: 64 * KIB }]);
    expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
    await expectEqual(kit, image);
    await expectLostInPoint1();
  });

  test("does not keep a disk from its next delta after an unclean end, when it was being written then", async () => {
    const image = createMemoryImage(4 * MIB);
    await image.write(randomBytes(4 * MIB), 0);
    await kit.send(image, { blockBytes: 64 * KIB });
    await image.write(randomBytes(64 * KIB), badBlock * 64 * KIB);
    around = (name, _request, run) =>
      name === "apply" ? Promise.reject(new ReplicationError("write-failed", "the device failed")) : run();
    await expect(kit.send(image, { attemptsMax: 1 })).rejects.toMatchObject({ code: "write-failed" });
    await kit.idle();
    around = (_name, _request, run) => run();
    loseSector();
    expect(await kit.send(image)).toMatchObject({ point: 2 });
    await expectEqual(kit, image);
  });
});

describe("the cause is told on both sides, with file and offset (C-55)", () => {
  test("a source that cannot be read at 60 %", async () => {
    const path = join(kit.folder, "source.raw");
    writeFileSync(path, randomBytes(10 * MIB));
    const { storage } = kit.sending;
    const { reader } = await openImage(path, { storage });
    const { read } = storage.lanes;
    Object.assign(storage.lanes, {
      read: (fd: number, target: Uint8Array, offset: number) => {
        if (offset + target.length > 6 * MIB) throw systemError("EIO");
        return read(fd, target, offset);
      },
    });
    const told = { code: "image-unreadable", message: expect.stringMatching(/EIO/) as string };
    await expect(kit.send(reader, { attemptsMax: 3 })).rejects.toMatchObject({
      ...told,
      details: { errno: "EIO", offset: expect.any(Number) as number },
    });
    await kit.idle();
    await reader.close();
    expect(warnings.map(({ text }) => text).join("\n")).toMatch(/the sender gave up.*EIO/);
  });

  test("a receiver whose disk is full at 40 %", async () => {
    const image = createMemoryImage(10 * MIB);
    await image.write(randomBytes(10 * MIB), 0);
    const { lanes } = kit.receiving.storage;
    const { write, writeDirect } = lanes;
    const full = (offset: number): void => {
      if (offset >= 4 * MIB) throw systemError("ENOSPC");
    };
    Object.assign(lanes, {
      write: (fd: number, source: Uint8Array, offset: number) => {
        full(offset);
        write(fd, source, offset);
      },
      writeDirect: (fd: number, source: Uint8Array, offset: number) => {
        full(offset);
        return writeDirect?.(fd, source, offset) ?? false;
      },
    });
    await expect(kit.send(image, { attemptsMax: 3 })).rejects.toMatchObject({
      code: "no-space",
      message: expect.stringMatching(/disk disk: the replica: no space left at offset \d+/) as string,
      remote: true,
    });
    await kit.idle();
    expect(warnings).toContainEqual({
      fields: expect.objectContaining({ code: "no-space" }) as object,
      text: expect.stringMatching(/disk disk: the replica: no space left at offset \d+/) as string,
    });
  });
});

describe("skipEmpty", () => {
  test("what an interrupted send applied is a change, though nothing is left to be sent", async () => {
    const image = createMemoryImage(2 * MIB);
    await image.write(randomBytes(2 * MIB), 0);
    const first = await kit.send(image);
    await image.write(randomBytes(100_000), 300_000);

    // Everything is applied, then the connection ends before the commit.
    let commits = 0;
    let pair: LinkedPair | undefined;
    const guard = {
      begin: () => Promise.resolve(),
      async check() {
        for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
        if (commits++ === 0) pair?.toServer.cutAfter(0);
        for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
      },
    };
    const report = await kit.send(image, {
      skipEmpty: true,
      source: { reader: image, name: "image", identity: "image-1", guard },
      onPair: (made) => void (pair = made),
    });
    expect(commits).toBe(2);
    await expectEqual(kit, image);
    expect(report).toMatchObject({ attempts: 2, point: 2, created: true });
    expect(report.root).not.toBe(first.root);
  });
});

test("a block whose old content changed since its parts were compared is asked for again, and the log says so", async () => {
  const image = createMemoryImage(MIB);
  await image.write(randomBytes(MIB), 0);
  await kit.send(image);
  // Two blocks differ; the second is changed behind our back between the answer about its parts and keeping them.
  const content = await contentOf(image);
  for (const block of [2, 5]) {
    content.fill(block, block * 64 * KIB + 4_096, block * 64 * KIB + 8_192);
    await image.write(content.subarray(block * 64 * KIB, (block + 1) * 64 * KIB), block * 64 * KIB);
  }
  let done = false;
  around = async (name, request, run) => {
    if (name === "save" && !done) {
      done = true;
      const { fd, blocks } = request as SaveRequest;
      expect(blocks).toEqual([2, 5]);
      kit.receiving.storage.lanes.write(fd, randomBytes(12_288), 5 * 64 * KIB + 4_096);
    }
    return await run();
  };
  const report = await kit.send(image);
  expect(report).toMatchObject({ attempts: 1, funnel: { repeatedBlocks: 1 } });
  await expectEqual(kit, image);
  const asked = warnings.filter(({ text }) => text.includes("asking for them whole"));
  expect(asked.map(({ fields }) => fields)).toMatchObject([{ blocks: 1 }]);
});

test("work at the receiver that takes ten minutes: both ends hear from each other all along (C-98)", async () => {
  const clock = createFakeClock();
  let begun = false;
  let release = (): void => {};
  const released = new Promise<void>((resolve) => (release = resolve));
  const slow = await PairKit.create({
    receiver: { clock },
    receiverLanes: (lanes): Lanes => ({
      ...lanes,
      run: (async (name: JobName, request: never) => {
        if (name === "apply") {
          begun = true;
          await released;
        }
        return await lanes.run(name, request);
      }) as Lanes["run"],
    }),
  });
  const image = createMemoryImage(MIB);
  await image.write(randomBytes(MIB), 0);
  const heard = { byClient: 0, byServer: 0 };
  const sending = slow.send(image, {
    clock,
    connect: () => {
      const pair = createLinkedPair({ clock });
      for (const [link, count] of [
        [pair.client, "byServer"],
        [pair.server, "byClient"],
      ] as const) {
        const send = link.send.bind(link);
        link.send = (message, payload) => {
          if (message.type === "heartbeat") heard[count]++;
          return send(message, payload);
        };
      }
      slow.receiver.accept(pair.server);
      return Promise.resolve(pair.client);
    },
  });
  while (!begun) {
    clock.advance(1);
    await new Promise((resolve) => setImmediate(resolve));
  }
  for (let second = 0; second < 600; second++) {
    clock.advance(1_000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  release();
  let over = false;
  const report = sending.finally(() => {
    over = true;
  });
  while (!over) {
    clock.advance(1);
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(await report).toMatchObject({ point: 1, attempts: 1 });
  const beats = 600_000 / limits.heartbeatMillis;
  expect(heard.byClient).toBeGreaterThan(beats * 0.9);
  expect(heard.byServer).toBeGreaterThan(beats * 0.9);
  expect(await slow.close()).toBe(true);
});
