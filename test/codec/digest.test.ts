import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import { KIB, MIB, PART_BYTES } from "../../src/base/units.ts";
import { isZero } from "../../src/base/zero.ts";
import { PART_DIGEST_BYTES } from "../../src/codec/digest-sizes.ts";
import { createDigester, writeDigest } from "../../src/codec/digest.ts";
import { createPartHasher } from "../../src/codec/part-hasher.ts";
import { expectBlocks } from "./expect-blocks.ts";
import { contentWithZeroDigest, referenceDigest, referenceXxh64 } from "./xxh64-reference.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const text = (value: string): Uint8Array => Buffer.from(value, "utf8");

/** A view in the middle of shared memory whose other bytes are not zero. */
function sharedView(length: number, offset = 3): Uint8Array {
  const memory = new Uint8Array(new SharedArrayBuffer(length + offset + 8)).fill(0xff);
  return memory.subarray(offset, offset + length).fill(0);
}

describe("zero test", () => {
  test("no bytes, and zeros of every short length, are zero", () => {
    for (let length = 0; length <= 300; length++) expect(isZero(sharedView(length, length % 11))).toBe(true);
  });

  test.each([4 * KIB, 64 * KIB])("one byte at any position of %i bytes is seen", (size) => {
    const block = sharedView(size);
    const missed: number[] = [];
    for (let position = 0; position < size; position++) {
      block[position] = 1 << (position & 7);
      if (isZero(block)) missed.push(position);
      block[position] = 0;
    }
    expect(missed).toEqual([]);
    expect(isZero(block)).toBe(true);
  });

  test("one byte around every 4096 edge, and at the ends, of 1 MiB is seen", () => {
    const block = sharedView(MIB);
    const missed: number[] = [];
    for (let edge = 0; edge <= MIB; edge += 4096) {
      for (const distance of [-9, -8, -7, -1, 0, 1, 7, 8, 9, 2048]) {
        const position = edge + distance;
        if (position < 0 || position >= MIB) continue;
        block[position] = 0x80;
        if (isZero(block)) missed.push(position);
        block[position] = 0;
      }
    }
    expect(missed).toEqual([]);
    expect(isZero(block)).toBe(true);
  });

  test("property: any byte, position, size and alignment", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200_000 }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        fc.integer({ min: 1, max: 255 }),
        fc.integer({ min: 0, max: 70 }),
        (size, share, value, alignment) => {
          const block = sharedView(size, alignment);
          expect(isZero(block)).toBe(true);
          block[Math.floor(share * size)] = value;
          expect(isZero(block)).toBe(false);
        },
      ),
      { numRuns: 500 },
    );
  });

  test("bytes that are equal but not zero are not zero", () => {
    for (const value of [1, 0x80, 0xff]) expect(isZero(new Uint8Array(4096).fill(value))).toBe(false);
  });
});

describe("xxh64", () => {
  test("the digest of a block is that of its parts' digests, big endian, only in its place", async () => {
    const digester = await createDigester("xxh64");
    expect(digester.digestBytes).toBe(8);
    expect(digester.ofParts).toBe(true);
    const block = Buffer.alloc(16 * KIB, text("Nobody inspects the spammish repetition"));
    const target = Buffer.alloc(24, 0xee);
    expect(digester.digest(block, target, 8)).toBe(false);
    expect(target.subarray(8, 16).toString("hex")).toBe(referenceDigest(block).toString(16).padStart(16, "0"));
    expect(target.filter((byte) => byte === 0xee).length).toBeGreaterThanOrEqual(16);
  });

  test("the reference of these tests gives the published values too", () => {
    expect(referenceXxh64(text(""))).toBe(0xef46db3751d8e999n);
    expect(referenceXxh64(text("abc"))).toBe(0x44bc2cf5ad770999n);
    expect(referenceXxh64(text("Nobody inspects the spammish repetition"))).toBe(0xfbcea83c8a378bf1n);
  });

  test("property: equals the reference for any parts, and is the same from their digests", async () => {
    const hasher = await createPartHasher(undefined);
    const digester = await createDigester("xxh64");
    const target = Buffer.alloc(16);
    fc.assert(
      fc.property(fc.array(fc.constantFrom(0, 0, 1, 2, 0xff), { minLength: 4, maxLength: 4 }), (fills) => {
        const block = Buffer.concat(fills.map((fill) => Buffer.alloc(PART_BYTES, fill)));
        const zero = digester.digest(block, target, 0);
        expect(zero).toBe(fills.every((fill) => fill === 0));
        expect(target.readBigUInt64BE()).toBe(referenceDigest(block));
        const parts = Buffer.alloc(fills.length * PART_DIGEST_BYTES);
        digester.parts(block, parts, 0);
        if (zero) target.fill(0, 8);
        else writeDigest(hasher.xxh64(parts), target, 8);
        expect(target.readBigUInt64BE(8)).toBe(referenceDigest(block));
      }),
      { numRuns: 100 },
    );
  });

  test("blocks of all sizes, in any order, in shared memory", async () => {
    const digester = await createDigester("xxh64");
    const target = Buffer.alloc(8);
    for (const size of [16 * KIB, MIB, 64 * KIB, 16 * KIB]) {
      const block = sharedView(size);
      for (let position = 0; position < size; position++) block[position] = (position * 2_654_435_761) >>> 24;
      expect(digester.digest(block, target, 0)).toBe(false);
      expect(target.readBigUInt64BE()).toBe(referenceDigest(block));
    }
  });

  test("a digest that comes out zero is written as 1", async () => {
    const parts = contentWithZeroDigest();
    expect(referenceXxh64(parts)).toBe(0n);
    const target = new Uint8Array(8).fill(0xee);
    writeDigest((await createPartHasher(undefined)).xxh64(parts), target, 0);
    expect(hex(target)).toBe("0000000000000001");
  });

  test("the parts of zeros are told from others", async () => {
    const digester = await createDigester("xxh64");
    const part = Buffer.alloc(PART_DIGEST_BYTES);
    part.writeBigUInt64LE(referenceXxh64(new Uint8Array(PART_BYTES)));
    expect(Buffer.from(digester.zeroParts)).toEqual(Buffer.alloc((MIB / PART_BYTES) * PART_DIGEST_BYTES, part));
    const target = new Uint8Array(8);
    digester.digest(new Uint8Array(16 * KIB), target, 0);
    expect(hex(target)).toBe("0".repeat(16));
  });
});

describe("sha256", () => {
  test("published value of abc, first 16 bytes", async () => {
    const digester = await createDigester("sha256");
    expect(digester.digestBytes).toBe(16);
    const target = new Uint8Array(20).fill(0xee);
    expect(digester.digest(text("abc"), target, 2)).toBe(false);
    expect(hex(target)).toBe("eeeeba7816bf8f01cfea414140de5dae2223eeee");
  });

  test("property: equals node:crypto, also in shared memory", async () => {
    const digester = await createDigester("sha256");
    const target = new Uint8Array(16);
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 70_000 }), (bytes) => {
        const shared = sharedView(bytes.length);
        shared.set(bytes);
        const zero = digester.digest(shared, target, 0);
        const expected = createHash("sha256").update(bytes).digest("hex").slice(0, 32);
        expect(hex(target)).toBe(zero ? "0".repeat(32) : expected);
      }),
    );
  });
});

describe("both kinds", () => {
  test.each(["xxh64", "sha256"] as const)("%s: a zero block is zero, a last byte changes that", async (kind) => {
    const digester = await createDigester(kind);
    for (const size of [16 * KIB, 64 * KIB, MIB]) {
      const block = sharedView(size);
      const target = new Uint8Array(32).fill(0xee);
      expect(digester.digest(block, target, 4)).toBe(true);
      expect(target.subarray(4, 4 + digester.digestBytes).every((byte) => byte === 0)).toBe(true);
      expect(target.filter((byte) => byte === 0xee)).toHaveLength(32 - digester.digestBytes);
      block[size - 1] = 1;
      expect(digester.digest(block, target, 4)).toBe(false);
      expect(target.subarray(4, 4 + digester.digestBytes).some((byte) => byte !== 0)).toBe(true);
    }
  });

  test.each(["xxh64", "sha256"] as const)("%s: a part's digest is its xxh64", async (kind) => {
    const digester = await createDigester(kind);
    fc.assert(
      fc.property(fc.uint8Array({ minLength: PART_BYTES, maxLength: PART_BYTES }), fc.boolean(), (bytes, zero) => {
        const shared = sharedView(2 * PART_BYTES);
        if (!zero) shared.set(bytes, PART_BYTES);
        const expected = [referenceXxh64(new Uint8Array(PART_BYTES)), referenceXxh64(shared.subarray(PART_BYTES))];
        const wide = Buffer.alloc(24, 0xee);
        digester.parts(shared, wide, 4);
        expect([wide.readBigUInt64LE(4), wide.readBigUInt64LE(12)]).toEqual(expected);
      }),
      { numRuns: 30 },
    );
  });

  test.each(["xxh64", "sha256"] as const)("%s: blocks at once are what they are one by one", async (kind) => {
    const digester = await createDigester(kind);
    const fills = fc.array(fc.constantFrom(0, 0, 1, 0xff), { minLength: 4, maxLength: 32 });
    fc.assert(
      fc.property(fills, fc.constantFrom(16 * KIB, 32 * KIB), (all, blockBytes) => {
        const perBlock = blockBytes / PART_BYTES;
        const count = Math.floor(all.length / perBlock);
        if (count === 0) return;
        // A part that begins like zeros is not one of zeros.
        const parts = all.slice(0, count * perBlock).map((fill) => {
          const part = Buffer.alloc(PART_BYTES);
          part[PART_BYTES - 1] = fill;
          return part;
        });
        const shared = sharedView(count * blockBytes);
        shared.set(Buffer.concat(parts));
        expectBlocks(digester, shared, blockBytes);
      }),
      { numRuns: 20 },
    );
  });

  test("a digest beyond its target and a part of another length are wrong calls", async () => {
    const digester = await createDigester("sha256");
    const block = new Uint8Array(16 * KIB).fill(1);
    expect(() => digester.digest(block, new Uint8Array(16), 1)).toThrow(InvariantError);
    expect(() => digester.digest(block, new Uint8Array(16), -1)).toThrow(InvariantError);
    expect(() => digester.parts(new Uint8Array(PART_BYTES - 1), Buffer.alloc(8), 0)).toThrow(InvariantError);
    expect(() => digester.blocks(new Uint8Array(24 * KIB), 16 * KIB)).toThrow(InvariantError);
    expect(() => digester.blocks(new Uint8Array(2 * MIB), 64 * KIB)).toThrow(InvariantError);
  });

  test("digesters do not share memory", async () => {
    const [one, other] = await Promise.all([createDigester("xxh64"), createDigester("xxh64")]);
    const target = new Uint8Array(16);
    const [first, second] = [Buffer.alloc(16 * KIB, 1), Buffer.alloc(16 * KIB, 2)];
    one.digest(first, target, 0);
    other.digest(second, target, 8);
    const expected = [first, second].map((block) => referenceDigest(block).toString(16).padStart(16, "0"));
    expect(hex(target)).toBe(expected.join(""));
  });
});
