/** Which blocks are looked at although they are called clean. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { KIB } from "../../src/base/units.ts";
import { chooseAudit } from "../../src/track/audit.ts";
import { type BlockRange, DirtyBitmap } from "../../src/track/dirty-bitmap.ts";
import { createTestRandom } from "../replica/simulated-store.ts";

const blockBytes = 64 * KIB;

function bitmapOf(blocks: number, ranges: readonly BlockRange[]): DirtyBitmap {
  const bitmap = new DirtyBitmap({ sizeBytes: blocks * blockBytes, blockBytes });
  for (const { first, count } of ranges)
    if (first < blocks) bitmap.setRange({ first, count: Math.min(count, blocks - first) });
  return bitmap;
}

function cleanAmong(audited: DirtyBitmap, dirty: DirtyBitmap): number {
  let count = 0;
  for (let block = 0; block < dirty.blocks; block++) if (audited.has(block) && !dirty.has(block)) count++;
  return count;
}

test("whatever is dirty, a clean block is among those that are chosen; of a disk that is all dirty none are", () => {
  const range = fc.record({ first: fc.nat(400), count: fc.integer({ min: 1, max: 300 }) });
  const share = fc.double({ min: 0.000_1, max: 1, noNaN: true });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 500 }), fc.array(range), share, fc.nat(), (blocks, ranges, wanted, seed) => {
      const dirty = bitmapOf(blocks, ranges);
      const audited = chooseAudit(dirty, wanted, createTestRandom(seed));
      if (dirty.count === blocks) expect(audited).toBeUndefined();
      else if (audited === undefined) expect.unreachable("there is a clean block");
      else {
        expect(cleanAmong(audited, dirty)).toBeGreaterThan(0);
        if (wanted === 1) expect(audited.count).toBe(blocks);
        // Runs are rounded up to whole ones.
        expect(audited.count).toBeLessThanOrEqual(Math.max(64, Math.ceil((blocks * wanted) / 64) * 64));
      }
    }),
  );
});

test("no share, or no disk: none", () => {
  expect(chooseAudit(bitmapOf(100, []), 0, createTestRandom(1))).toBeUndefined();
  expect(chooseAudit(bitmapOf(0, []), 0.5, createTestRandom(1))).toBeUndefined();
});

test("every part of a disk is chosen some time", () => {
  const dirty = bitmapOf(10_000, [{ first: 3_000, count: 2_000 }]);
  const seen = bitmapOf(10_000, []);
  for (let seed = 0; seed < 2_000; seed++) {
    const audited = chooseAudit(dirty, 0.01, createTestRandom(seed));
    for (const range of audited?.ranges() ?? []) seen.setRange(range);
  }
  expect(cleanAmong(seen, dirty)).toBe(8_000);
});
