import { describe, expect, test } from "vitest";
import { slotsFor } from "../../src/lanes/slot-layout.ts";
import { limits } from "../../src/base/limits.ts";
import {
  BLOCK_BYTES_DEFAULT,
  BLOCK_BYTES_MAX,
  BLOCK_BYTES_MIN,
  blockCount,
  blockLength,
  blocksPerPage,
  EXTENT_BYTES_MAX,
  type Geometry,
  isBlockSize,
  MIB,
  maskBytes,
  PART_BYTES,
  pageBlocks,
  pageCount,
  partsPerBlock,
} from "../../src/base/units.ts";

describe("relations between limits", () => {
  test("a frame holds one extent, however badly it compresses", () => {
    const lz4Worst = EXTENT_BYTES_MAX + Math.ceil(EXTENT_BYTES_MAX / 255) + 16;
    expect(limits.framePayloadBytesMax).toBeGreaterThanOrEqual(lz4Worst);
  });

  test("a frame holds the answer to the largest request", () => {
    const partDigests = limits.blocksPerRequestMax * partsPerBlock(BLOCK_BYTES_MAX) * 4;
    expect(partDigests).toBeLessThanOrEqual(limits.framePayloadBytesMax);
    expect(limits.pagesPerRequestMax * 32).toBeLessThanOrEqual(limits.framePayloadBytesMax);
    expect(limits.errorTextCharsMax * 4).toBeLessThan(limits.frameHeaderBytesMax);
    // A block number takes at most 9 bytes in msgpack.
    expect(limits.blocksPerRequestMax * 9).toBeLessThan(limits.frameHeaderBytesMax);
  });

  test("the credit of a session fits the pool, and keeps frames in flight", () => {
    const slots = slotsFor(limits.poolBytesDefault);
    expect(limits.creditFramesDefault).toBeGreaterThanOrEqual(16);
    expect(limits.creditFramesDefault).toBeLessThanOrEqual(limits.creditFramesMax);
    // A receiver gives a session half of what is free: beside the first there is room for others.
    expect(slots).toBeGreaterThanOrEqual(2 * limits.creditFramesDefault);
  });

  test("a heartbeat may be lost before a peer counts as dead", () => {
    expect(limits.heartbeatMillis * 3).toBeLessThanOrEqual(limits.silenceMillis);
    expect(limits.handshakeMillis).toBeLessThan(limits.silenceMillis);
    expect(limits.stallMillis).toBeGreaterThan(limits.silenceMillis);
  });

  test("block numbers and offsets of the largest disk are exact", () => {
    const geometry: Geometry = { sizeBytes: limits.diskBytesMax, blockBytes: BLOCK_BYTES_MIN, digestKind: "sha256" };
    expect(Number.isSafeInteger(geometry.sizeBytes * 2)).toBe(true);
    expect(blockCount(geometry)).toBe(2 ** 32);
    expect(pageCount(geometry)).toBe(2 ** 24);
  });
});

describe("units", () => {
  test("block sizes are powers of two within their bounds", () => {
    const sizes: number[] = [];
    for (let size = BLOCK_BYTES_MIN; size <= BLOCK_BYTES_MAX; size *= 2) sizes.push(size);
    expect(sizes.every(isBlockSize)).toBe(true);
    expect(sizes).toContain(BLOCK_BYTES_DEFAULT);
    for (const size of [
      0,
      -BLOCK_BYTES_MIN,
      BLOCK_BYTES_MIN / 2,
      BLOCK_BYTES_MAX * 2,
      65_537,
      2 ** 32 + 65_536,
      Number.NaN,
    ]) {
      expect(isBlockSize(size)).toBe(false);
    }
    expect(sizes.every((size) => size % PART_BYTES === 0 && maskBytes(size) * 8 >= partsPerBlock(size))).toBe(true);
  });

  test("blocks and pages cover a disk exactly", () => {
    for (const sizeBytes of [0, 1, 65_535, 65_536, 65_537, 32 * MIB, 32 * MIB + 1, 100 * MIB + 777]) {
      for (const digestKind of ["xxh64", "sha256"] as const) {
        const geometry: Geometry = { sizeBytes, blockBytes: BLOCK_BYTES_DEFAULT, digestKind };
        let bytes = 0;
        let blocks = 0;
        for (let page = 0; page < pageCount(geometry); page++) {
          const { first, count } = pageBlocks(geometry, page);
          expect(first).toBe(blocks);
          expect(count).toBeGreaterThan(0);
          expect(count).toBeLessThanOrEqual(blocksPerPage(digestKind));
          for (let block = first; block < first + count; block++) bytes += blockLength(geometry, block);
          blocks += count;
        }
        expect(blocks).toBe(blockCount(geometry));
        expect(bytes).toBe(sizeBytes);
      }
    }
  });
});
