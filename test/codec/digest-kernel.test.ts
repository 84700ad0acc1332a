/** Digests in place equal those that are not, and the module is what its text says. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import wabt from "wabt";
import { allocateShared } from "../../src/base/shared-memory.ts";
import { KIB, MIB, PART_BYTES } from "../../src/base/units.ts";
import { digestRoomBytes, PART_DIGEST_BYTES } from "../../src/codec/digest-sizes.ts";
import { createDigester, writeDigest } from "../../src/codec/digest.ts";
import { createPartHasher } from "../../src/codec/part-hasher.ts";
import { createDigestKernel, kernelModule } from "../../src/codec/digest-kernel.ts";
import { randomBytes } from "../random.ts";
import { expectBlocks } from "./expect-blocks.ts";
import { contentWithZeroDigest, referenceDigest, referenceXxh64 } from "./xxh64-reference.ts";

const roomAt = 3 * MIB;
const memory = allocateShared(roomAt + digestRoomBytes);
const bytes = new Uint8Array(memory.buffer);

function kernel(): ReturnType<typeof createDigestKernel> {
  if (memory.wasm === undefined) throw new Error("no shared memory of WebAssembly here");
  return createDigestKernel(memory.wasm);
}

test("the module is its text, assembled", async () => {
  const text = readFileSync(new URL("../../src/codec/digest-kernel.wat", import.meta.url), "utf8");
  const parsed = (await wabt()).parseWat("digest-kernel.wat", text, { threads: true, bulk_memory: true });
  expect(Buffer.from(parsed.toBinary({}).buffer).toString("base64")).toBe(kernelModule);
});

test("property: xxh64 of any stripes at any place equals the reference, and nothing is written", () => {
  const { xxh64 } = kernel();
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 1_000 }),
      fc
        .integer({ min: 1, max: 12 })
        .chain((stripes) => fc.uint8Array({ minLength: stripes * 32, maxLength: stripes * 32 })),
      (at, content) => {
        bytes.fill(0xaa, 0, 2_000).set(content, at);
        expect(BigInt.asUintN(64, xxh64(at, content.length))).toBe(referenceXxh64(content));
        expect(bytes.subarray(0, at).every((byte) => byte === 0xaa)).toBe(true);
        expect(bytes.subarray(at, at + content.length)).toEqual(content);
      },
    ),
    { numRuns: 300 },
  );
});

test("copies and zeros stay within their bounds, and copies may overlap", () => {
  const { copy, zero } = kernel();
  const content = randomBytes(300);
  for (const to of [60, 100, 130]) {
    bytes.fill(0xaa, 0, 1_000).set(content, 100);
    copy(to, 100, content.length);
    expect(bytes.subarray(to, to + 300)).toEqual(new Uint8Array(content));
    expect(bytes[Math.min(to, 100) - 1]).toBe(0xaa);
    expect(bytes[Math.max(to, 100) + 300]).toBe(0xaa);
  }
  bytes.fill(0xaa, 0, 1_000);
  zero(10, 50);
  expect(bytes.subarray(9, 61)).toEqual(Uint8Array.of(0xaa, ...new Uint8Array(50), 0xaa));
});

test("property: blocks of which parts change get the digests they say, and what is there is as it is known to be, or not", async () => {
  const { change, verify } = kernel();
  const digester = await createDigester("xxh64");
  const zeroPart = Buffer.from(digester.zeroParts).readBigInt64LE();
  const fill = fc.constantFrom(0, 0, 1, 2);
  fc.assert(
    fc.property(
      fc.constantFrom(4, 16),
      fc.array(fc.record({ skip: fc.boolean(), wrong: fc.boolean(), rotten: fc.boolean() }), {
        minLength: 1,
        maxLength: 3,
      }),
      fc.infiniteStream(fc.tuple(fill, fill, fc.boolean())),
      (parts, blocks, dice) => {
        const perMask = Math.ceil(parts / 8);
        const count = blocks.length;
        const known = Buffer.alloc(count * parts * PART_DIGEST_BYTES);
        const masks = Buffer.alloc(count * perMask);
        const digests = Buffer.alloc(count * 8);
        const changed: Buffer[] = [];
        const old: Buffer[] = [];
        for (const [block, { wrong, rotten }] of blocks.entries()) {
          const now: Buffer[] = [];
          for (let part = 0; part < parts; part++) {
            const [was, becomes, named] = dice.next().value ?? [0, 0, false];
            const before = Buffer.alloc(PART_BYTES, was);
            digester.parts(before, known, (block * parts + part) * PART_DIGEST_BYTES);
            const after = named ? Buffer.alloc(PART_BYTES, becomes) : before;
            now.push(after);
            if (!named) continue;
            masks[block * perMask + (part >> 3)] = (masks[block * perMask + (part >> 3)] ?? 0) | (1 << (part & 7));
            changed.push(after);
            old.push(rotten ? Buffer.alloc(PART_BYTES, was + 1) : before);
          }
          digester.digest(Buffer.concat(now), digests, block * 8);
          if (wrong) digests[block * 8 + 7] = (digests[block * 8 + 7] ?? 0) ^ 1;
        }
        const states = Uint8Array.from(blocks, ({ skip }) => (skip ? 3 : 255));
        let end = 0;
        const place = (content: Uint8Array): number => {
          bytes.set(content, end);
          end += content.length;
          return end - content.length;
        };
        const [knownAt, masksAt, digestsAt, statesAt] = [known, masks, digests, states].map(place) as [
          number,
          number,
          number,
          number,
        ];
        const temp = place(new Uint8Array(parts * PART_DIGEST_BYTES));
        const contentAt = place(Buffer.concat(changed));
        change(count, parts, masksAt, contentAt, knownAt, digestsAt, statesAt, zeroPart, temp);
        const found = [...bytes.subarray(statesAt, statesAt + count)];
        expect(found).toEqual(blocks.map(({ skip, wrong }) => (skip ? 3 : wrong ? 1 : 0)));
        expect(Buffer.from(bytes.subarray(knownAt, knownAt + known.length)).equals(known)).toBe(true);
        const oldAt = place(Buffer.concat(old));
        const sound = blocks.every(
          ({ rotten }, block) =>
            !rotten || masks.subarray(block * perMask, (block + 1) * perMask).every((byte) => byte === 0),
        );
        expect(verify(count, parts, masksAt, oldAt, knownAt)).toBe(sound ? 1 : 0);
      },
    ),
    { numRuns: 200 },
  );
});

describe("a digester with a room", async () => {
  const inPlace = await createDigester("xxh64", { memory, at: roomAt });
  const copying = await createDigester("xxh64");

  /** The same bytes at `at` in the memory, and elsewhere. */
  function both(content: Uint8Array, at: number): { readonly inside: Buffer; readonly outside: Uint8Array } {
    bytes.set(content, at);
    return { inside: Buffer.from(memory.buffer, at, content.length), outside: Uint8Array.from(content) };
  }

  test.each([16 * KIB, 64 * KIB, MIB])("blocks and parts of %i bytes, wherever they lie", (size) => {
    for (const at of [0, 4_096, 4_099, roomAt - size]) {
      const content = randomBytes(size);
      content.fill(0, PART_BYTES, 2 * PART_BYTES);
      const { inside, outside } = both(content, at);
      const targets = [Buffer.alloc(24, 0xee), Buffer.alloc(24, 0xee)] as const;
      expect(inPlace.digest(inside, targets[0], 8)).toBe(false);
      expect(copying.digest(outside, targets[1], 8)).toBe(false);
      expect(targets[0]).toEqual(targets[1]);
      expect(targets[0].readBigUInt64BE(8)).toBe(referenceDigest(content));
      const partBytes = (size / PART_BYTES) * PART_DIGEST_BYTES;
      const parts = [Buffer.alloc(partBytes + 8, 0xee), Buffer.alloc(partBytes + 8, 0xee)] as const;
      inPlace.parts(inside, parts[0], 4);
      copying.parts(outside, parts[1], 4);
      expect(parts[0]).toEqual(parts[1]);
      // Content of its own outside the memory goes the other way.
      inPlace.parts(outside, parts[0], 4);
      expect(parts[0]).toEqual(parts[1]);
      expect(inside.equals(content)).toBe(true);
      expectBlocks(inPlace, inside, size);
      if (size < MIB)
        expectBlocks(inPlace, both(Buffer.concat([content, new Uint8Array(size), content]), 0).inside, size);
    }
  });

  test("zeros, digests of parts that give zero, and others", async () => {
    const target = new Uint8Array(8).fill(0xee);
    expect(inPlace.digest(both(new Uint8Array(64 * KIB), 0).inside, target, 0)).toBe(true);
    expect(target).toEqual(new Uint8Array(8));
    const hasher = await createPartHasher({ memory, at: roomAt });
    writeDigest(hasher.xxh64(contentWithZeroDigest()), target, 0);
    expect(Buffer.from(target).toString("hex")).toBe("0000000000000001");
    const parts = randomBytes(4 * PART_DIGEST_BYTES);
    writeDigest(hasher.xxh64(both(parts, 0).inside), target, 0);
    expect(Buffer.from(target).readBigUInt64BE()).toBe(referenceXxh64(parts));
  });

  test("memory that WebAssembly cannot have: the same digests", async () => {
    const plain = { buffer: new SharedArrayBuffer(MIB), wasm: undefined };
    const digester = await createDigester("xxh64", { memory: plain, at: MIB - digestRoomBytes });
    const content = Buffer.from(plain.buffer, 0, 64 * KIB);
    content.set(randomBytes(64 * KIB));
    const target = Buffer.alloc(8);
    digester.digest(content, target, 0);
    expect(target.readBigUInt64BE()).toBe(referenceDigest(content));
    const parts = [Buffer.alloc(128), Buffer.alloc(128)] as const;
    digester.parts(content, parts[0], 0);
    copying.parts(Uint8Array.from(content), parts[1], 0);
    expect(parts[0]).toEqual(parts[1]);
  });
});
