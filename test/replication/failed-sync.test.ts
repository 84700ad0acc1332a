/** C-97: a sync at the commit that failed once. No point is made on the strength of a second one: what the device has lost is sent again. */
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { randomBytes } from "../random.ts";
import { overriding } from "../replica/overriding.ts";
import { contentOf, expectEqual, watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

const blockBytes = 64 * KIB;
const rejections = watchRejections();
let kit: PairKit;
/** End of the path of the file whose next sync fails, from the next sync of the replica on: only a commit does that, and it does it first. */
let failing: string | undefined;
let isCommit = false;
/** What becomes of its content then. */
let onFailure: () => void = () => undefined;

afterEach(async () => {
  failing = undefined;
  isCommit = false;
  onFailure = () => undefined;
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

function failingOnce(storage: Storage): Storage {
  return overriding(storage, {
    async open(path, options) {
      const file = await storage.open(path, options);
      return overriding(file, {
        datasync() {
          isCommit ||= failing !== undefined && path.endsWith("/replica.raw");
          if (failing === undefined || !isCommit || !path.endsWith(failing)) return file.datasync();
          failing = undefined;
          onFailure();
          return Promise.reject(Object.assign(new Error("EIO: as the system says"), { code: "EIO" }));
        },
      });
    },
  });
}

interface Started {
  readonly image: ReturnType<typeof createMemoryImage>;
  readonly before: Buffer;
}

/** A disk with a point, and an image that has changed in three blocks, six parts. */
async function start(): Promise<Started> {
  kit = await PairKit.create({ receiverStorage: failingOnce });
  const image = createMemoryImage(4 * MIB);
  await image.write(randomBytes(4 * MIB), 0);
  await kit.send(image, { blockBytes });
  await kit.idle();
  const before = await contentOf(image);
  for (const block of [3, 20, 41]) await image.write(randomBytes(8 * KIB), block * blockBytes + 4 * KIB);
  return { image, before };
}

const changed = { changedBlockBytes: 3 * blockBytes, changedBytes: 24 * KIB, shippedBytes: 24 * KIB };

/** As a kernel that drops the pages it could not write: reads show what the device has, and the next sync has nothing to do. */
function loseWrites(before: Buffer): void {
  const path = join(kit.folder, "store/disks/disk/replica.raw");
  const fd = openSync(path, "r+");
  const found = Buffer.alloc(blockBytes);
  let lost = 0;
  for (let at = 0; at < before.length; at += blockBytes) {
    const was = before.subarray(at, at + blockBytes);
    readSync(fd, found, 0, blockBytes, at);
    if (found.equals(was)) continue;
    writeSync(fd, was, 0, blockBytes, at);
    lost++;
  }
  closeSync(fd);
  expect(lost, "all was written when it was to be synced").toBe(3);
}

async function expectPoint1(before: Buffer): Promise<void> {
  const reader = await kit.store.openPoint("disk", 1);
  const found = Buffer.alloc(reader.sizeBytes);
  await reader.read(found, 0);
  await reader.close();
  expect(found.equals(before)).toBe(true);
}

async function pointNumbers(): Promise<readonly number[]> {
  return (await kit.store.points("disk")).points.map(({ point }) => point);
}

test("of the replica: the send fails, and the next one ships the same parts again", async () => {
  const { image, before } = await start();
  failing = "/replica.raw";
  onFailure = () => loseWrites(before);
  await expect(kit.send(image, { attemptsMax: 1 })).rejects.toMatchObject({
    code: "sync-failed",
    remote: true,
  });
  await kit.idle();
  expect(await pointNumbers()).toEqual([1]);
  await expectPoint1(before);
  expect(await kit.send(image)).toMatchObject({ point: 2, created: true, attempts: 1, funnel: changed });
  await kit.idle();
  await expectEqual(kit, image);
  await expectPoint1(before);
});

test("of the replica: a sender that tries again by itself ships them twice, and once is told", async () => {
  const { image, before } = await start();
  failing = "/replica.raw";
  onFailure = () => loseWrites(before);
  const report = await kit.send(image, { codec: "stored" });
  expect(report).toMatchObject({ point: 2, created: true, attempts: 2, reason: "resync:sync-failed", funnel: changed });
  expect(report.funnel.packedBytes).toBeGreaterThanOrEqual(2 * changed.shippedBytes);
  await kit.idle();
  expect(await pointNumbers()).toEqual([1, 2]);
  await expectEqual(kit, image);
  await expectPoint1(before);
});

test.each(["/digests", "/pages", "/0000000001.undo", "/0000000002.json.new"])(
  "of %s: the send fails, and the next one makes the point",
  async (file) => {
    const { image, before } = await start();
    failing = file;
    await expect(kit.send(image, { attemptsMax: 1 })).rejects.toMatchObject({
      code: "sync-failed",
      remote: true,
    });
    expect(failing).toBeUndefined();
    await kit.idle();
    expect(await pointNumbers()).toEqual([1]);
    await expectPoint1(before);
    expect(await kit.send(image)).toMatchObject({ point: 2, created: true, attempts: 1 });
    await kit.idle();
    await expectEqual(kit, image);
    await expectPoint1(before);
  },
);
