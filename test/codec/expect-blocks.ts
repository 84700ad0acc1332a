/** What `Digester.blocks` says of some blocks, beside what the digester and we say of each alone. */
import { expect } from "vitest";
import { maskBytes, PART_BYTES } from "../../src/base/units.ts";
import { PART_DIGEST_BYTES } from "../../src/codec/digest-sizes.ts";
import { type Digester } from "../../src/codec/digest.ts";
import { referenceXxh64 } from "./xxh64-reference.ts";

export function expectBlocks(digester: Digester, content: Uint8Array, blockBytes: number): void {
  const found = digester.blocks(content, blockBytes);
  // Views that the next call may overwrite.
  const digests = Buffer.from(Uint8Array.from(found.digests));
  const masks = Uint8Array.from(found.masks);
  const wide = Buffer.from(Uint8Array.from(found.wide));
  const low = Buffer.from(Uint8Array.from(found.low));
  const count = content.length / blockBytes;
  const perBlock = blockBytes / PART_BYTES;
  const parts = Array.from({ length: count * perBlock }, (_unused, part) =>
    content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES),
  );
  const expected = Buffer.alloc(count * digester.digestBytes);
  for (let block = 0; block < count; block++) {
    const bytes = Uint8Array.from(content.subarray(block * blockBytes, (block + 1) * blockBytes));
    digester.digest(bytes, expected, block * digester.digestBytes);
  }
  expect(digests.toString("hex")).toBe(expected.toString("hex"));
  const named = parts.flatMap((_part, part) => {
    const byte = masks[Math.floor(part / perBlock) * maskBytes(blockBytes) + ((part % perBlock) >> 3)] ?? 0;
    return (byte & (1 << ((part % perBlock) & 7))) === 0 ? [] : [part];
  });
  expect(named).toEqual(parts.flatMap((part, index) => (part.some((byte) => byte !== 0) ? [index] : [])));
  expect(masks.length).toBe(count * maskBytes(blockBytes));
  const digestsOfParts = parts.map((part) => referenceXxh64(part));
  expect(parts.map((_part, index) => wide.readBigUInt64LE(index * PART_DIGEST_BYTES))).toEqual(digestsOfParts);
  expect(parts.map((_part, index) => low.readUInt32LE(index * 4))).toEqual(
    digestsOfParts.map((each) => Number(each & 0xffff_ffffn)),
  );
}
