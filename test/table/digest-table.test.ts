import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  type Geometry,
  KIB,
  pageBlocks,
  pageCount,
  TIB,
} from "../../src/base/units.ts";
import { createPageDigests, type DigestTable, pageDigest, tableFileBytes } from "../../src/table/digest-table.ts";
import { createTableFiles } from "./memory-lanes.ts";

/** A table as a plain array of entries. */
class Model {
  geometry: Geometry;
  entries: Buffer[];

  constructor(geometry: Geometry) {
    this.geometry = geometry;
    this.entries = [];
    this.resize(geometry.sizeBytes);
  }

  resize(sizeBytes: number): void {
    this.geometry = { ...this.geometry, sizeBytes };
    const width = digestBytes(this.geometry.digestKind);
    const zero = Buffer.alloc(width);
    this.entries = Array.from({ length: blockCount(this.geometry) }, (_, block) => this.entries[block] ?? zero);
  }

  root(): string {
    const pages = createPageDigests(this.geometry);
    for (let page = 0; page < pageCount(this.geometry); page++) {
      const { first, count } = pageBlocks(this.geometry, page);
      pages.set(page, pageDigest(Buffer.concat(this.entries.slice(first, first + count))));
    }
    return hex(pages.root());
  }

  isEmpty(): boolean {
    return this.entries.every((entry) => entry.every((byte) => byte === 0));
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

function expectSame(table: DigestTable, model: Model): void {
  const found: string[] = [];
  for (let page = 0; page < pageCount(model.geometry); page++) {
    const view = table.page(page);
    const width = digestBytes(model.geometry.digestKind);
    for (let at = 0; at < view.length; at += width) found.push(hex(view.subarray(at, at + width)));
  }
  expect(found).toEqual(model.entries.map(hex));
  expect(hex(table.root())).toBe(model.root());
}

const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("set" as const),
      at: fc.double({ min: 0, max: 1, noNaN: true }),
      count: fc.nat(600),
      value: fc.integer({ min: 0, max: 255 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("clear" as const),
      at: fc.double({ min: 0, max: 1, noNaN: true }),
      count: fc.nat(600),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("resize" as const),
      blocks: fc.integer({ min: 1, max: 1_600 }),
      odd: fc.nat(16 * KIB - 1),
      isWritten: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("reopen" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("check" as const) }) },
);

for (const digestKind of ["xxh64", "sha256"] as const) {
  for (const punch of [true, false]) {
    test(`a table is a table: ${digestKind}, ${punch ? "with" : "without"} holes`, () => {
      fc.assert(
        fc.property(fc.array(step, { maxLength: 20 }), fc.integer({ min: 1, max: 4 }), (steps, cachePages) => {
          const start: Geometry = { sizeBytes: 1_200 * 16 * KIB - 7, blockBytes: 16 * KIB, digestKind };
          const files = createTableFiles(start, { punch });
          const model = new Model(start);
          const width = digestBytes(digestKind);
          let table = files.open(start, { cacheBytes: cachePages * 4096 });
          for (const next of steps) {
            const blocks = blockCount(model.geometry);
            switch (next.kind) {
              case "set":
              case "clear": {
                const first = Math.min(blocks - 1, Math.floor(next.at * blocks));
                const count = Math.min(next.count, blocks - first);
                const value = next.kind === "set" ? next.value : 0;
                if (next.kind === "clear") table.clear(first, count);
                else table.set(first, count, Buffer.alloc(count * width, value));
                for (let block = first; block < first + count; block++)
                  model.entries[block] = Buffer.alloc(width, value);
                break;
              }
              case "resize": {
                const sizeBytes = next.blocks * 16 * KIB - next.odd;
                const grows = sizeBytes >= model.geometry.sizeBytes;
                model.resize(sizeBytes);
                if (grows) files.resize(model.geometry);
                table.resize(sizeBytes);
                if (next.isWritten) table.write();
                files.resize(model.geometry);
                break;
              }
              case "reopen":
                table.write();
                table = files.open(model.geometry, { cacheBytes: cachePages * 4096 });
                break;
              case "check":
                expect([...table.check()]).toEqual([]);
                expect(table.isEmpty()).toBe(model.isEmpty());
                break;
            }
          }
          expectSame(table, model);
          expect(table.isEmpty()).toBe(model.isEmpty());
          table.write();
          expectSame(files.open(model.geometry), model);
        }),
        { numRuns: 60 },
      );
    });
  }
}

const geometry: Geometry = { sizeBytes: 2_000 * 64 * KIB, blockBytes: 64 * KIB, digestKind: "xxh64" };

function filledFiles(): ReturnType<typeof createTableFiles> {
  const files = createTableFiles(geometry);
  const table = files.open(geometry);
  for (let block = 0; block < 2_000; block += 3) table.set(block, 1, Buffer.alloc(8, (block % 250) + 1));
  table.write();
  return files;
}

describe("damage", () => {
  test("any flipped byte of a page is found, named, and told to the owner", () => {
    fc.assert(
      fc.property(fc.nat(4 * 4096 - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const files = filledFiles();
        const byte = Buffer.alloc(1);
        files.digests.read(byte, at);
        files.digests.write(Uint8Array.of((byte[0] ?? 0) ^ flip), at);
        const damaged: number[] = [];
        const table = files.open(geometry, { onDamage: (page) => damaged.push(page) });
        const page = Math.floor(at / 4096);
        const error = catchError(() => table.page(page));
        expect(error).toBeInstanceOf(ReplicationError);
        expect(error).toMatchObject({ code: "store-damaged", details: { page } });
        expect(damaged).toEqual([page]);
        expect([...table.check()]).toEqual([page]);
        // Pages beside it are served.
        const other = page === 0 ? 1 : 0;
        expect(table.page(other).length).toBe(4096);
      }),
      { numRuns: 50 },
    );
  });

  test("a flipped byte of a page digest changes the root, and its page is damaged", () => {
    const files = filledFiles();
    const root = hex(files.open(geometry).root());
    files.pages.write(Uint8Array.of(0xff, 0xfe), 32);
    const table = files.open(geometry);
    expect(hex(table.root())).not.toBe(root);
    expect(() => table.page(1)).toThrow(/page 1 .* does not match/);
  });

  test("a page that is short is damaged", () => {
    const files = filledFiles();
    files.digests.truncate(4 * 4096 - 1);
    expect(() => files.open(geometry).page(3)).toThrow(ReplicationError);
  });

  test("page digests that are short are refused at open", () => {
    const files = filledFiles();
    files.pages.truncate(4 * 32 - 1);
    expect(catchError(() => files.open(geometry))).toMatchObject({ code: "store-damaged" });
  });

  test("a damaged page can be replaced as a whole, not in part", () => {
    const files = filledFiles();
    files.digests.write(new Uint8Array(4096), 0);
    const table = files.open(geometry);
    expect(() => {
      table.set(3, 1, Buffer.alloc(8, 1));
    }).toThrow(ReplicationError);
    table.set(0, 512, Buffer.alloc(512 * 8, 9));
    expect(hex(table.get(3))).toBe("09".repeat(8));
  });

  test("what lies in the file under a page of zero blocks means nothing", () => {
    const files = createTableFiles(geometry);
    files.digests.write(Buffer.alloc(4096, 7), 0);
    expect(files.open(geometry).isZero(0)).toBe(true);
  });
});

describe("memory", () => {
  test("the cache keeps to its bound, and changed pages beyond it are written early", () => {
    const files = createTableFiles(geometry);
    const table = files.open(geometry, { cacheBytes: 2 * 4096 });
    for (let page = 0; page < 4; page++) table.set(page * 512, 1, Buffer.alloc(8, 1));
    expect(files.counts.writes).toBe(2);
    // Page digests are not written early: until they are, the table is the one before.
    expect(files.pages.allocatedBytes).toBe(0);
    const reads = files.counts.reads;
    table.get(3 * 512);
    table.get(2 * 512);
    expect(files.counts.reads).toBe(reads);
    table.get(0);
    expect(files.counts.reads).toBe(reads + 1);
    // Page 3 was used longest ago and went.
    table.get(2 * 512);
    expect(files.counts.reads).toBe(reads + 1);
    table.get(3 * 512);
    expect(files.counts.reads).toBe(reads + 2);
  });

  test("a page that becomes zero becomes a hole", () => {
    const files = filledFiles();
    const table = files.open(geometry);
    table.clear(512, 512);
    table.write();
    expect(files.digests.nextData(4096)?.start).toBe(2 * 4096);
    expect(files.digests.sizeBytes).toBe(tableFileBytes(geometry).digests);
  });

  test("64 TiB of zeros are opened, found empty and digested without reading the table", () => {
    const large: Geometry = { sizeBytes: 64 * TIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
    const files = createTableFiles(large);
    const table = files.open(large);
    expect(table.isEmpty()).toBe(true);
    table.set(blockCount(large) - 1, 1, Buffer.alloc(8, 1));
    expect(table.isEmpty()).toBe(false);
    table.write();
    const again = files.open(large);
    expect(hex(again.root())).toBe(hex(table.root()));
    // The last entry of "pages", twice; its chunk; never more than a few.
    expect(files.counts.reads).toBeLessThan(6);
    expect(again.isZero(blockCount(large) - 1)).toBe(false);
    expect(again.isEmpty()).toBe(false);
  });
});

describe("page digests beside the table", () => {
  test("are those of the last change, written or not", () => {
    const files = createTableFiles(geometry);
    const table = files.open(geometry);
    table.set(0, 1, Buffer.alloc(8, 1));
    expect(hex(table.pages.get(0))).toBe(hex(pageDigest(Buffer.alloc(8, 1))));
    expect(table.pages.isZero(0)).toBe(false);
    expect(hex(table.pages.root())).toBe(hex(table.root()));
    table.clear(0, 1);
    expect(table.pages.isZero(0)).toBe(true);
  });

  test("are not to be set", () => {
    const table = createTableFiles(geometry).open(geometry);
    expect(() => {
      table.pages.set(0, new Uint8Array(32));
    }).toThrow(InvariantError);
  });
});

test("wrong calls", () => {
  const table = createTableFiles(geometry).open(geometry);
  expect(() => table.get(2_000)).toThrow(InvariantError);
  expect(() => {
    table.set(1_999, 2, new Uint8Array(16));
  }).toThrow(InvariantError);
  expect(() => {
    table.set(0, 2, new Uint8Array(8));
  }).toThrow(InvariantError);
});

test("a page holds the blocks its digest kind says", () => {
  expect([blocksPerPage("xxh64"), blocksPerPage("sha256")]).toEqual([512, 256]);
  const disk: Geometry = { sizeBytes: 257 * 16 * KIB, blockBytes: 16 * KIB, digestKind: "sha256" };
  const table = createTableFiles(disk).open(disk);
  expect(table.page(0).length).toBe(4096);
  expect(table.page(1).length).toBe(16);
});

test("errors of the files name the table", () => {
  const files = createTableFiles(geometry);
  const full = Object.assign(new Error("full"), { code: "ENOSPC" });
  files.lanes.write = () => {
    throw full;
  };
  const table = files.open(geometry);
  table.set(0, 1, Buffer.alloc(8, 1));
  expect(
    catchError(() => {
      table.write();
    }),
  ).toMatchObject({ code: "no-space", cause: full });
});

function catchError(call: () => unknown): unknown {
  try {
    call();
  } catch (error) {
    return error;
  }
  return undefined;
}

test.each(["xxh64", "sha256"] as const)(
  "what a cut that was not finished left behind the end is forgotten: %s",
  (digestKind) => {
    const large: Geometry = { sizeBytes: 900 * 16 * KIB, blockBytes: 16 * KIB, digestKind };
    const width = digestBytes(digestKind);
    for (const blocks of [0, 1, 100, blocksPerPage(digestKind), 700]) {
      const files = createTableFiles(large);
      const whole = files.open(large);
      whole.set(0, 900, Buffer.alloc(900 * width, 7));
      whole.write();
      const small = { ...large, sizeBytes: blocks * 16 * KIB };
      files.resize(small);
      const model = new Model(large);
      model.entries.fill(Buffer.alloc(width, 7));
      model.resize(small.sizeBytes);
      const table = files.open(small);
      table.forgetTail();
      expect(hex(table.root())).toBe(model.root());
      expect(table.isEmpty()).toBe(blocks === 0);
      table.write();
      expectSame(files.open(small), model);
      // A second time there is nothing to forget, and nothing is written.
      const { writes } = files.counts;
      const again = files.open(small);
      again.forgetTail();
      again.write();
      expect(files.counts.writes).toBe(writes);
    }
  },
);
