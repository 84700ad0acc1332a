/** Any sequence of changes and sends, over connections that break: the replica is the image, and points are counted right. */
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { CodecName } from "../../src/codec/compression.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
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

const anyChange = fc.record({
  at: fc.double({ min: 0, max: 0.9999, noNaN: true }),
  length: fc.oneof(fc.integer({ min: 1, max: 5_000 }), fc.integer({ min: 1, max: 1_500_000 })),
  fill: fc.constantFrom("zero", "text", "noise"),
  seed: fc.nat(),
});

const anySend = fc.record({
  cuts: fc.array(fc.record({ toServer: fc.boolean(), bytes: fc.nat(400_000) }), { maxLength: 3 }),
  codec: fc.constantFrom<CodecName | "auto">("auto", "stored", "lz4", "deflate"),
  connections: fc.integer({ min: 1, max: 3 }),
  skipEmpty: fc.boolean(),
  rate: fc.constantFrom(undefined, 10 * MIB),
});

const anyDisk = fc.record({
  sizeBytes: fc.oneof(fc.constantFrom(0, 1, 4_096, 16 * KIB, 64 * KIB + 1), fc.integer({ min: 1, max: 12 * MIB })),
  blockBytes: fc.constantFrom(16 * KIB, 64 * KIB, 256 * KIB, MIB),
  digestKind: fc.constantFrom("xxh64" as const, "sha256" as const),
});

function contentFor(fill: string, length: number, seed: number): Buffer {
  if (fill === "text") return Buffer.alloc(length, `content number ${seed}, again and again. `);
  const bytes = Buffer.alloc(length);
  let state = (seed | 1) >>> 0;
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

test("any disk, any changes, any losses", { timeout: 120_000 }, async () => {
  let number = 0;
  await fc.assert(
    fc.asyncProperty(
      anyDisk,
      fc.array(fc.record({ changes: fc.array(anyChange, { maxLength: 5 }), send: anySend }), {
        minLength: 1,
        maxLength: 5,
      }),
      async ({ sizeBytes, blockBytes, digestKind }, rounds) => {
        const disk = `disk-${number++}`;
        const image = createMemoryImage(sizeBytes);
        let point = 0;
        let root = "";
        for (const { changes, send } of rounds) {
          for (const { at, length, fill, seed } of changes) {
            const offset = Math.floor(at * sizeBytes);
            const bytes = Math.min(length, sizeBytes - offset);
            if (fill === "zero") await image.zero(offset, bytes);
            else await image.write(contentFor(fill, bytes, seed), offset);
          }
          const { cuts, ...options } = send;
          let made = 0;
          const report = await kit.send(image, {
            disk,
            ...(point === 0 ? { blockBytes, digestKind } : {}),
            ...options,
            attemptsMax: 30,
            onPair: (pair) => {
              const cut = cuts[made++];
              if (cut !== undefined) (cut.toServer ? pair.toServer : pair.toClient).cutAfter(cut.bytes);
            },
          });
          await expectEqual(kit, image, disk);
          // A point is made unless nothing changed and nobody wants one for that.
          const made2 = report.root !== root || !send.skipEmpty || point === 0;
          if (made2) expect(report.point).toBe(point + 1);
          else expect(report.point - point).toBeLessThanOrEqual(1);
          if (!report.created) expect(report.point).toBe(point);
          ({ point, root } = report);
          if (cuts.length === 0) expect(report.attempts).toBe(1);
          expect(report.blockBytes).toBe(blockBytes);
          const newest = (await kit.store.summary(disk))?.newest;
          expect(newest).toMatchObject({ point, root, sizeBytes });
        }
      },
    ),
    { numRuns: 40 },
  );
});
