/** Counted faults: the connection ends, or a byte is changed, at every place of a small delta in turn. */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { LinkedPair } from "../../src/testing/linked-pair.ts";
import { turns } from "./by-hand.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

type Direction = "toServer" | "toClient";

const blockBytes = 16 * KIB;
let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

/** One delta of every kind: parts of blocks, new blocks, blocks that become zero. Never the same twice. */
async function change(image: BlockWriter, round: number): Promise<void> {
  const noise = Buffer.alloc(12_000);
  for (let at = 0; at < noise.length; at++) noise[at] = (round * 31 + at * 7 + (at >> 8)) & 0xff;
  await image.write(noise.subarray(0, 5_000), 3 * blockBytes + 100);
  await image.write(noise, 20 * blockBytes + ((round * 4_096) % blockBytes));
  await image.write(noise.subarray(0, 9_000), (40 + (round % 3)) * blockBytes);
  await image.zero((40 + ((round + 1) % 3)) * blockBytes, blockBytes);
}

async function start(): Promise<BlockWriter> {
  const image = createMemoryImage(MIB + 777);
  await image.write(Buffer.alloc(30 * blockBytes, "what was there before, "), 0);
  await change(image, 0);
  await kit.send(image, { blockBytes });
  return image;
}

/** Bytes that a delta takes in a direction. */
async function wireBytes(image: BlockWriter, direction: Direction): Promise<number> {
  await change(image, 1);
  let pair: LinkedPair | undefined;
  await kit.send(image, { onPair: (made) => void (pair = made) });
  return pair?.[direction].delivered ?? 0;
}

/** Every byte of the beginning and the end, and steps in between. */
function places(bytes: number): number[] {
  const found = new Set<number>();
  for (let at = 0; at < Math.min(bytes, 700); at += 41) found.add(at);
  for (let at = 700; at < bytes; at += Math.ceil(bytes / 24)) found.add(at);
  for (let at = Math.max(0, bytes - 500); at <= bytes + 80; at += 37) found.add(at);
  return [...found];
}

async function pointsNow(): Promise<{ readonly point: number; readonly cycle: string | undefined }> {
  const newest = (await kit.store.summary("disk"))?.newest;
  return { point: newest?.point ?? 0, cycle: newest?.cycle };
}

describe.each<Direction>(["toServer", "toClient"])("the connection ends, bytes %s", (direction) => {
  test("one run makes exactly one point, over as many connections as it takes", { timeout: 60_000 }, async () => {
    const image = await start();
    const total = await wireBytes(image, direction);
    let untouched = 0;
    for (const [round, at] of places(total).entries()) {
      await change(image, round + 2);
      const before = await pointsNow();
      const onPair = (pair: LinkedPair, attempt: number): void => {
        if (attempt === 0) pair[direction].cutAfter(at);
      };
      const report = await kit.send(image, { onPair });
      expect(report.point, `cut at ${at} of ${total}`).toBe(before.point + 1);
      expect((await pointsNow()).point).toBe(before.point + 1);
      await expectEqual(kit, image);
      if (report.attempts === 1) untouched++;
    }
    // The last places lie behind the end.
    expect(untouched).toBeGreaterThan(0);
    expect(untouched).toBeLessThan(places(total).length / 2);
  });

  test("a run that gave up is taken up by the next one", { timeout: 60_000 }, async () => {
    const image = await start();
    const total = await wireBytes(image, direction);
    let failed = 0;
    for (const [round, at] of places(total).entries()) {
      await change(image, round + 2);
      const before = await pointsNow();
      const onPair = (pair: LinkedPair): void => {
        pair[direction].cutAfter(at);
      };
      const outcome = await kit.send(image, { onPair, attemptsMax: 1 }).then(
        (report) => report.point,
        (error: unknown) => error,
      );
      // The receiver may have committed what the sender never heard of; it commits at most that one.
      await kit.idle();
      const between = await pointsNow();
      expect(between.point - before.point).toBeLessThanOrEqual(1);
      if (typeof outcome === "number") expect(outcome).toBe(between.point);
      else {
        failed++;
        expect(outcome).toMatchObject({ name: "ReplicationError", code: "connection-lost" });
      }
      // The image is as it was: whatever the run before had applied is not sent again.
      const report = await kit.send(image);
      expect(report.point).toBe(between.point + 1);
      if (between.point > before.point) expect(report.funnel.shippedBytes).toBe(0);
      await expectEqual(kit, image);
    }
    expect(failed).toBeGreaterThan(10);
  });
});

/**
 * A changed length lets the reader wait for bytes that do not come until heartbeats have filled them up; here nothing beats, so the
 * connection is ended when nothing moves.
 */
async function unlessStuck<T>(run: Promise<T>, pair: () => LinkedPair | undefined): Promise<T> {
  let over = false;
  const ended = run.finally(() => {
    over = true;
  });
  // Thrown by the `await` at the end.
  ended.catch(() => undefined);
  const moved = (): string => `${pair()?.toServer.delivered} ${pair()?.toClient.delivered} ${kit.receiver.sessions}`;
  let still = 0;
  for (let before = moved(); !over; before = moved()) {
    await turns(1);
    still = moved() === before ? still + 1 : 0;
    if (still > 2_000) pair()?.toServer.cutAfter(0);
  }
  return await ended;
}

describe.each<Direction>(["toServer", "toClient"])("a changed byte %s", (direction) => {
  test.each([0x01, 0xff])(
    "exclusive or with %i: an error or a repeat, never other content",
    { timeout: 60_000 },
    async (mask) => {
      const image = await start();
      const total = await wireBytes(image, direction);
      const codes = new Set<string>();
      for (const [round, at] of places(total).entries()) {
        await change(image, round + 2);
        let pair: LinkedPair | undefined;
        const onPair = (made: LinkedPair): void => {
          pair = made;
          made[direction].corruptAt(at, mask);
        };
        try {
          await unlessStuck(kit.send(image, { onPair, attemptsMax: 2 }), () => pair);
        } catch (error) {
          expect(error).toBeInstanceOf(ReplicationError);
          codes.add((error as ReplicationError).code);
          await kit.idle();
          expect((await kit.send(image)).attempts).toBe(1);
        }
        await expectEqual(kit, image);
      }
      expect(codes.size).toBeGreaterThan(0);
      expect(codes).not.toContain("internal");
    },
  );
});

test("several connections, one of which ends", { timeout: 60_000 }, async () => {
  const image = createMemoryImage(3 * MIB);
  for (let round = 0; round < 24; round++) {
    for (let at = 0; at < image.sizeBytes; at += MIB)
      await image.write(Buffer.alloc(MIB, `round ${round} at ${at} `), at);
    let made = 0;
    const onPair = (pair: LinkedPair): void => {
      // The connections of the first attempt are 0 to 3.
      if (made++ !== round % 4) return;
      (round % 2 === 0 ? pair.toServer : pair.toClient).cutAfter(round < 8 ? round * 60 : round * 40_000);
    };
    const report = await kit.send(image, { connections: 4, codec: "stored", onPair });
    expect(report.point).toBe(round + 1);
    await expectEqual(kit, image);
  }
});
