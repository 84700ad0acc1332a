/** What a report says: why blocks were looked at, and what was counted, over runs and attempts. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { ApplyRequest, JobName } from "../../src/lanes/jobs.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import type { Funnel } from "../../src/replication/report.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { hastyClock, PairKit, type SendOptions } from "./pair-kit.ts";

let kit: PairKit;
/** Thrown by the receiver's next writes, one each. */
const writeErrors: ReplicationError[] = [];
const rejections = watchRejections();

beforeEach(async () => {
  writeErrors.length = 0;
  kit = await PairKit.create({
    receiverLanes: (lanes): Lanes => ({
      ...lanes,
      run: ((name: JobName, request: ApplyRequest) => {
        const error = name === "apply" ? writeErrors.shift() : undefined;
        return error === undefined ? lanes.run(name, request as never) : Promise.reject(error);
      }) as Lanes["run"],
    }),
  });
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

const blockBytes = 16 * KIB;
const sizeBytes = 12 * MIB + 5_000;

async function noiseImage() {
  const image = createMemoryImage(sizeBytes);
  await image.write(randomBytes(sizeBytes), 0);
  return image;
}

/** Ends the connection of the first `places.length` attempts after so many bytes. */
function cuts(...places: readonly number[]): SendOptions {
  return {
    blockBytes,
    codec: "stored",
    onPair: (pair: LinkedPair, attempt: number) => pair.toServer.cutAfter(places[attempt] ?? Number.POSITIVE_INFINITY),
  };
}

/** Each stage is at most the one before it. */
function expectFunnel(funnel: Readonly<Funnel>): void {
  const { sizeBytes: size, changedBlockBytes, changedBytes, shippedBytes } = funnel;
  expect(changedBlockBytes).toBeLessThanOrEqual(size);
  expect(changedBytes).toBeLessThanOrEqual(changedBlockBytes);
  expect(shippedBytes).toBeLessThanOrEqual(changedBytes);
}

describe("the reason", () => {
  test("a delta that an earlier run left half done is a resume; after its commit the next one is a scan", async () => {
    const image = await noiseImage();
    expect(await kit.send(image, { blockBytes })).toMatchObject({ reason: "initial" });
    await image.write(randomBytes(4 * MIB), MIB);
    const stopped = kit.send(image, { ...cuts(2 * MIB), attemptsMax: 1 });
    await expect(stopped).rejects.toMatchObject({ code: "connection-lost" });
    expect(await kit.send(image)).toMatchObject({ reason: "resume", attempts: 1, point: 2 });
    await expectEqual(kit, image);
    expect(await kit.send(image)).toMatchObject({ reason: "scan", point: 3 });
  });

  test("a delta that was refused before anything was written leaves nothing to resume", async () => {
    await kit.send(await noiseImage(), { blockBytes });
    const other = await noiseImage();
    const source = { reader: other, name: "other", identity: "other" };
    await expect(kit.send(other, { source })).rejects.toMatchObject({ code: "another-image" });
    expect(await kit.send(other, { source, adopt: true })).toMatchObject({ reason: "scan" });
  });

  test("attempts of one run keep the reason of the first", async () => {
    const image = await noiseImage();
    expect(await kit.send(image, cuts(2 * MIB, 5 * MIB))).toMatchObject({ reason: "initial", attempts: 3 });
    await image.write(randomBytes(4 * MIB), MIB);
    expect(await kit.send(image, cuts(2 * MIB))).toMatchObject({ reason: "scan", attempts: 2 });
  });

  test("an error that puts the receiver's table in doubt is the reason from then on", async () => {
    const image = await noiseImage();
    writeErrors.push(new ReplicationError("write-failed", "the device failed"));
    expect(await kit.send(image, { blockBytes })).toMatchObject({ reason: "resync:write-failed", attempts: 2 });
    await expectEqual(kit, image);
  });
});

describe("the funnel", () => {
  test("to the byte where the disk ends inside a part", async () => {
    const image = await noiseImage();
    const { funnel } = await kit.send(image, { blockBytes });
    expect(funnel).toMatchObject({ changedBlockBytes: sizeBytes, changedBytes: sizeBytes, shippedBytes: sizeBytes });
    await image.zero(sizeBytes - 5_000, 5_000);
    // The last block has 5000 bytes and the rest of a block before them.
    const tail = sizeBytes % blockBytes;
    await image.zero(sizeBytes - tail, tail);
    const second = await kit.send(image);
    expect(second.funnel).toMatchObject({
      changedBlockBytes: tail,
      changedBytes: tail,
      shippedBytes: 0,
      zeroBlocks: 1,
    });
  });

  test("counts a block once, however many attempts an initial copy takes", async () => {
    const image = await noiseImage();
    const report = await kit.send(image, cuts(1_000_000, 3_000_000, 2_000_000, 4_000_000));
    expect(report.attempts).toBe(5);
    const { funnel } = report;
    expect(funnel).toMatchObject({ changedBlockBytes: sizeBytes, changedBytes: sizeBytes, shippedBytes: sizeBytes });
    // What was on its way when a connection ended was sent again, and that is told here.
    expect(funnel.packedBytes).toBeGreaterThan(sizeBytes);
    expect(funnel.wireBytes).toBeGreaterThan(funnel.packedBytes);
    await expectEqual(kit, image);
  });

  test("counts a block once where the receiver kept nothing of it", async () => {
    const image = await noiseImage();
    // After a failed write nothing since the last sync is believed.
    writeErrors.push(new ReplicationError("write-failed", "the device failed"));
    const { funnel, attempts } = await kit.send(image, { blockBytes });
    expect(attempts).toBe(2);
    expect(funnel).toMatchObject({ changedBlockBytes: sizeBytes, changedBytes: sizeBytes, shippedBytes: sizeBytes });
  });

  test("of a delta with zeros, cut at many places, is the one of the same delta uncut", async () => {
    const image = await noiseImage();
    await kit.send(image, { blockBytes });
    const change = async (round: number): Promise<void> => {
      for (let at = round; at < 700; at += 7) await image.write(randomBytes(5_000), at * blockBytes + 3_000);
      for (let at = round + 3; at < 700; at += 14) await image.zero(at * blockBytes, blockBytes);
    };
    await change(0);
    const whole = (await kit.send(image)).funnel;
    expect(whole.zeroBlocks).toBeGreaterThan(40);
    for (const [round, at] of [40_000, 300_000, 700_000].entries()) {
      await change(round + 1);
      const { funnel, attempts } = await kit.send(image, { ...cuts(at, at * 2), blockBytes: undefined });
      expect(attempts).toBeGreaterThan(1);
      expectFunnel(funnel);
      expect(funnel.changedBytes).toBeLessThan(1.05 * whole.changedBytes);
      expect(funnel.changedBytes).toBeGreaterThan(0.8 * whole.changedBytes);
      await expectEqual(kit, image);
    }
  });

  test("starts over for a disk that was replaced by one of another block size meanwhile", async () => {
    const image = await noiseImage();
    let attempt = 0;
    const connect = async () => {
      const pair = createLinkedPair({ clock: hastyClock });
      if (attempt++ === 0) pair.toServer.cutAfter(6 * MIB);
      else {
        await kit.idle();
        rmSync(join(kit.folder, "store/disks/disk"), { recursive: true });
        const geometry = { sizeBytes, blockBytes: 32 * KIB, digestKind: "xxh64" } as const;
        await kit.store.create("disk", { geometry, owner: "client", sectorBytes: 512 });
      }
      kit.receiver.accept(pair.server);
      return pair.client;
    };
    const report = await kit.send(image, { connect, codec: "stored" });
    expect(report).toMatchObject({ attempts: 2, blockBytes: 32 * KIB });
    expect(report.funnel).toMatchObject({ changedBlockBytes: sizeBytes, changedBytes: sizeBytes });
    expect(report.funnel.packedBytes).toBeGreaterThan(sizeBytes + 4 * MIB);
    await expectEqual(kit, image);
  });
});
