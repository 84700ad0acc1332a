import { expect, test } from "vitest";
import { blocksPerPage, digestBytes, type Geometry, KIB, pageBlocks } from "../../src/base/units.ts";
import { shrunkTable } from "../../src/replication/shrunk-table.ts";
import { createPageDigests, pageDigest } from "../../src/table/digest-table.ts";

const block = 16 * KIB;
const large: Geometry = { sizeBytes: 1_300 * block, blockBytes: block, digestKind: "xxh64" };
const width = digestBytes(large.digestKind);
const perPage = blocksPerPage(large.digestKind);
const table = Buffer.alloc(1_300 * width, 7);

function page(number: number): Buffer {
  const { first, count } = pageBlocks(large, number);
  return table.subarray(first * width, (first + count) * width);
}

test.each([
  [1_300 * block - 1, 1_300],
  [700 * block, 700],
  [699 * block + 1, 700],
  [perPage * block, perPage],
  [1, 1],
])("a disk cut to %i bytes has the table of such a disk", async (sizeBytes, blocks) => {
  const before = Buffer.from(table);
  const last = sizeBytes % block === 0 ? undefined : Buffer.alloc(width, 9);
  const pages = createPageDigests(large);
  for (let number = 0; number < 3; number++) pages.set(number, pageDigest(page(number)));
  const cut = await shrunkTable(
    { ...large, sizeBytes },
    { pages, page: (number) => Promise.resolve(page(number)), lastDigest: () => Promise.resolve(last) },
  );
  const wanted = Buffer.from(table.subarray(0, blocks * width));
  if (last !== undefined) wanted.set(last, (blocks - 1) * width);
  const firstOfLast = Math.floor((blocks - 1) / perPage) * perPage;
  expect(cut.lastPage).toBe(firstOfLast / perPage);
  expect(Buffer.from(cut.digests).equals(wanted.subarray(firstOfLast * width))).toBe(true);
  expect(Buffer.compare(cut.pages.get(cut.lastPage), pageDigest(cut.digests))).toBe(0);
  expect(cut.pages.isZero(cut.lastPage)).toBe(false);
  if (cut.lastPage > 0) expect(Buffer.compare(cut.pages.get(0), pages.get(0))).toBe(0);
  // What is there is only looked at: it is the table's own memory.
  expect(table.equals(before)).toBe(true);
});

test("nothing is left of it, or zeros", async () => {
  const pages = createPageDigests(large);
  pages.set(0, Buffer.alloc(32, 1));
  const facts = {
    pages,
    page: () => Promise.resolve(Buffer.concat([Buffer.alloc(8 * width), Buffer.alloc((perPage - 8) * width, 7)])),
    lastDigest: () => Promise.resolve(undefined),
  };
  expect(await shrunkTable({ ...large, sizeBytes: 0 }, facts)).toMatchObject({ lastPage: -1 });
  expect((await shrunkTable({ ...large, sizeBytes: 8 * block }, facts)).pages.isZero(0)).toBe(true);
});
