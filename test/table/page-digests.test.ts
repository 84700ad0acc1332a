import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import { GIB, type Geometry, KIB, pageCount, TIB } from "../../src/base/units.ts";
import { createPageDigests, pageDigest } from "../../src/table/digest-table.ts";
import { SparsePageDigests } from "../../src/table/page-digests.ts";

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

function filled(count: number, width: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, block) => Buffer.alloc(width, block + 1)));
}

// Computed with another program from the formula in docs/formats.md.
describe("roots that never change", () => {
  test("1 TiB of zeros at the defaults", () => {
    const pages = createPageDigests({ sizeBytes: TIB, blockBytes: 64 * KIB, digestKind: "xxh64" });
    expect(hex(pages.root())).toBe("eba0d6eb962b684d06493a2be31eae008e287ca19dca466036514a3dc6416c08");
  });

  test("64 TiB of zeros at the defaults", () => {
    const pages = createPageDigests({ sizeBytes: 64 * TIB, blockBytes: 64 * KIB, digestKind: "xxh64" });
    expect(hex(pages.root())).toBe("c8ad35b074e87e5b1b9544db322b28fff303f077cc4cba1aab946f2f4620162f");
  });

  test("four sha256 blocks of 16 KiB, the last of one byte", () => {
    const pages = createPageDigests({ sizeBytes: 48 * KIB + 1, blockBytes: 16 * KIB, digestKind: "sha256" });
    pages.set(0, pageDigest(filled(4, 16)));
    expect(hex(pages.get(0))).toBe("f72afff37b8a613ce42487d17a405bdbf0eae1692ec8e6ae4cbf996071388789");
    expect(hex(pages.root())).toBe("e73e1aa7318c231c4896711ad18350835b351e46d18376e52387a0ea3aeec10c");
  });

  test("a page of zero blocks before one block", () => {
    const pages = createPageDigests({ sizeBytes: 513 * 64 * KIB, blockBytes: 64 * KIB, digestKind: "xxh64" });
    pages.set(1, pageDigest(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)));
    expect(hex(pages.root())).toBe("7badd226bfb633c379cc16ed29a40fa9bad81bbd4ff9f841322d0ed19ea8e7c2");
  });
});

test("size, block size and kind are part of the root", () => {
  const base: Geometry = { sizeBytes: 64 * KIB, blockBytes: 16 * KIB, digestKind: "xxh64" };
  const roots = [
    base,
    { ...base, sizeBytes: 64 * KIB - 1 },
    { ...base, blockBytes: 32 * KIB },
    { ...base, digestKind: "sha256" as const },
  ].map((geometry) => hex(createPageDigests(geometry).root()));
  expect(new Set(roots).size).toBe(4);
});

test("blocks that do not exist count as zero in a page digest", () => {
  const digests = filled(3, 8);
  const whole = Buffer.alloc(4096);
  whole.set(digests);
  expect(hex(pageDigest(digests))).toBe(createHash("sha256").update(whole).digest("hex"));
  expect(hex(pageDigest(new Uint8Array(24)))).toBe("00".repeat(32));
});

test("a page digest set back to zero leaves the root of an empty disk", () => {
  const geometry: Geometry = { sizeBytes: TIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
  const pages = createPageDigests(geometry);
  const empty = hex(pages.root());
  pages.set(31_000, pageDigest(filled(1, 8)));
  expect(hex(pages.root())).not.toBe(empty);
  expect(pages.isZero(31_000)).toBe(false);
  pages.set(31_000, new Uint8Array(32));
  expect(hex(pages.root())).toBe(empty);
});

test("a page beyond the disk is a wrong call", () => {
  const pages = createPageDigests({ sizeBytes: 64 * KIB, blockBytes: 64 * KIB, digestKind: "xxh64" });
  expect(() => pages.get(1)).toThrow(InvariantError);
  expect(() => {
    pages.set(0, new Uint8Array(31));
  }).toThrow(InvariantError);
});

test("a disk that shrinks forgets the pages behind its end, in whole chunks and within one", () => {
  const geometry: Geometry = { sizeBytes: 60 * GIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
  for (const keptPages of [1, 511, 512, 513, 1_100]) {
    const pages = new SparsePageDigests(geometry);
    for (let page = 0; page < pageCount(geometry); page += 7) pages.set(page, pageDigest(filled(1, 8)));
    const smaller = { ...geometry, sizeBytes: keptPages * 512 * geometry.blockBytes };
    pages.resize(smaller);
    const fresh = createPageDigests(smaller);
    for (let page = 0; page < keptPages; page += 7) fresh.set(page, pageDigest(filled(1, 8)));
    expect(hex(pages.root())).toBe(hex(fresh.root()));
    pages.resize(geometry);
    const grown = createPageDigests(geometry);
    for (let page = 0; page < keptPages; page += 7) grown.set(page, pageDigest(filled(1, 8)));
    expect(hex(pages.root())).toBe(hex(grown.root()));
    expect([...pages.nonZeroPages()]).toEqual(
      Array.from({ length: Math.ceil(keptPages / 7) }, (_, index) => index * 7),
    );
  }
});
