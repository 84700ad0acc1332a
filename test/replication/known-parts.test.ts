import { expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { KnownParts } from "../../src/replication/known-parts.ts";

const blockBytes = 16 * KIB;
const perBlock = 32;

/** Digests that tell their block. */
function digestsOf(...blocks: readonly number[]): Buffer {
  return Buffer.concat(blocks.map((block) => Buffer.alloc(perBlock, (block % 255) + 1)));
}

test("what was added is known, in any order, until it is forgotten", () => {
  const known = new KnownParts(blockBytes);
  const added = digestsOf(7, 3, 9);
  known.add([7, 3, 9], added);
  added.fill(0);
  expect(known.of([4, 5])).toBeUndefined();
  expect(Buffer.from(known.of([3, 4, 7]) ?? [])).toEqual(
    Buffer.concat([digestsOf(3), Buffer.alloc(perBlock), digestsOf(7)]),
  );
  known.forget([3]);
  expect(known.of([3])).toBeUndefined();
  expect(Buffer.from(known.of([9]) ?? [])).toEqual(digestsOf(9));
  known.clear();
  expect(known.of([7, 9])).toBeUndefined();
});

test("a block that is asked again is known as it was the last time", () => {
  const known = new KnownParts(blockBytes);
  known.add([1], digestsOf(1));
  known.add([1], digestsOf(2));
  expect(Buffer.from(known.of([1]) ?? [])).toEqual(digestsOf(2));
});

test("digests that are none of parts are nothing to keep", () => {
  const known = new KnownParts(blockBytes);
  known.add([1, 2], new Uint8Array(0));
  expect(known.of([1, 2])).toBeUndefined();
});

test("a peer that asks for everything and sends nothing takes 4 MiB: the oldest are dropped", () => {
  const known = new KnownParts(blockBytes);
  const fits = (4 * MIB) / perBlock;
  for (let block = 0; block <= fits; block += 1) known.add([block], digestsOf(block));
  expect(known.of([0])).toBeUndefined();
  expect(Buffer.from(known.of([1]) ?? [])).toEqual(digestsOf(1));
  expect(Buffer.from(known.of([fits]) ?? [])).toEqual(digestsOf(fits));
});
