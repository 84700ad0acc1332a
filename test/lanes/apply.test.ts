/** The receiver's jobs: apply, old parts, clear, sync. */
import fc from "fast-check";
import { beforeEach, describe, expect, test } from "vitest";
import { digestBytes, KIB, MIB, PART_BYTES, partsPerBlock } from "../../src/base/units.ts";
import { type ApplyRequest, type ApplyResult, applyState } from "../../src/lanes/jobs.ts";
import { doJob } from "../../src/lanes/lanes.ts";
import { areaB } from "../../src/lanes/slot-layout.ts";
import {
  anyBlockBytes,
  anyCodec,
  anyDigest,
  anyLength,
  anyPatches,
  blocksOf,
  differingPartsOf,
  digesters,
  digestOf,
  hashOf,
  maskOf,
  memoryFiles,
  memoryLane,
  partsOf,
  patched,
} from "./kit.ts";
import { randomBytes } from "../random.ts";

const files = memoryFiles();
const lane = await memoryLane(files);
const fd = 5;

beforeEach(() => {
  files.failing = {};
  files.canPunch = true;
  files.writes.length = 0;
  files.punched.length = 0;
});

interface Frame {
  readonly blocks: readonly number[];
  /** Parts of each block. */
  readonly parts: readonly (readonly number[])[];
  readonly before: Buffer;
  readonly after: Buffer;
  readonly blockBytes?: number;
  readonly digestKind?: "xxh64" | "sha256";
  readonly codec?: "stored" | "lz4";
}

/** Applies parts of `after` to a replica that holds `before`. */
function apply(frame: Frame, more: Partial<ApplyRequest> = {}, held: Buffer = frame.before): ApplyResult {
  const { blocks, parts, before, after, blockBytes = 64 * KIB, digestKind = "xxh64", codec = "stored" } = frame;
  files.files.set(fd, Buffer.from(held));
  const old = blocksOf(before, blockBytes);
  const now = blocksOf(after, blockBytes);
  const empty = Buffer.alloc(blockBytes);
  const raw = Buffer.concat(
    blocks.flatMap((block, index) =>
      (parts[index] ?? []).map((part) => partsOf(now[block] ?? empty)[part] ?? Buffer.alloc(PART_BYTES)),
    ),
  );
  const slot = lane.slot(0);
  slot.fill(0x99);
  let payloadBytes = codec === "stored" ? 0 : lane.codecs.get(codec).compress(raw, slot.subarray(areaB));
  const used = payloadBytes > 0 ? codec : "stored";
  if (payloadBytes === 0) {
    slot.set(raw, areaB);
    payloadBytes = raw.length;
  }
  return doJob(lane, "apply", {
    slot: 0,
    disk: "disk",
    fd,
    sizeBytes: after.length,
    payloadBytes,
    codec: used,
    rawBytes: raw.length,
    blocks,
    masks: Buffer.concat(parts.map((numbers) => maskOf(numbers, blockBytes))),
    digests: Buffer.concat(blocks.map((block) => digestOf(digestKind, now[block] ?? empty))),
    base: Buffer.concat(blocks.map((block) => digestOf(digestKind, old[block] ?? empty))),
    blockBytes,
    digestKind,
    ...more,
  });
}

const replica = (): Buffer => files.files.get(fd) ?? Buffer.alloc(0);
const everyPart = (blockBytes: number): number[] =>
  Array.from({ length: partsPerBlock(blockBytes) }, (_unused, part) => part);

describe("apply", () => {
  test("any change over any content: the replica becomes the new content, and only what was sent is written", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, codec: anyCodec, length: anyLength }),
        fc.record({ before: anyPatches, change: anyPatches }),
        fc.infiniteStream(fc.boolean()),
        ({ blockBytes, digestKind, codec, length }, patches, wholes) => {
          files.writes.length = 0;
          const before = patched(Buffer.alloc(length), patches.before);
          const after = patched(before, patches.change);
          const now = blocksOf(after, blockBytes);
          const was = blocksOf(before, blockBytes);
          const blocks: number[] = [];
          const parts: number[][] = [];
          for (const [block, content] of now.entries()) {
            const differing = differingPartsOf(was[block] ?? content, content);
            if (differing.length === 0) continue;
            blocks.push(block);
            parts.push(wholes.next().value === true ? everyPart(blockBytes) : differing);
          }
          if (blocks.length === 0) return;
          const result = apply({ blocks, parts, before, after, blockBytes, digestKind, codec });
          expect([...result.states]).toEqual(blocks.map(() => applyState.written));
          expect(hashOf(replica())).toBe(hashOf(after));
          // Nothing behind the end of the disk, no piece too long, and nothing but the parts.
          const written = files.writes.reduce((sum, write) => sum + write.length, 0);
          expect(written).toBe(result.writtenBytes);
          const sent = new Set(
            blocks.flatMap((block, index) => (parts[index] ?? []).map((part) => `${block}:${part}`)),
          );
          for (const write of files.writes) {
            expect(write.length).toBeLessThanOrEqual(256 * KIB);
            expect(write.offset + write.length).toBeLessThanOrEqual(length);
            for (let at = write.offset; at < write.offset + write.length; at += PART_BYTES) {
              const block = Math.floor(at / blockBytes);
              expect(sent.has(`${block}:${Math.floor((at - block * blockBytes) / PART_BYTES)}`)).toBe(true);
            }
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("a digest that does not come out: mismatch, nothing of that block is written, its neighbours are", () => {
    const before = randomBytes(256 * KIB);
    const after = randomBytes(256 * KIB);
    const digests = Buffer.concat(blocksOf(after, 64 * KIB).map((block) => digestOf("xxh64", block)));
    digests[8] = (digests[8] ?? 0) ^ 1;
    const parts = [0, 1, 2, 3].map((block) => (block % 2 === 0 ? everyPart(64 * KIB) : [3, 4]));
    for (const block of [2, 3]) before.copy(after, block * 64 * KIB, block * 64 * KIB, (block + 1) * 64 * KIB);
    const result = apply({ blocks: [0, 1], parts, before, after }, { digests: digests.subarray(0, 16) });
    expect([...result.states]).toEqual([applyState.written, applyState.mismatch]);
    expect(result.writtenBytes).toBe(64 * KIB);
    expect(
      replica()
        .subarray(64 * KIB)
        .equals(before.subarray(64 * KIB)),
    ).toBe(true);
    expect(
      replica()
        .subarray(0, 64 * KIB)
        .equals(after.subarray(0, 64 * KIB)),
    ).toBe(true);
  });

  test("old content that is not what the table says: the whole does not come out, and is not written; a whole block heals it", () => {
    const before = randomBytes(128 * KIB);
    const after = Buffer.from(before);
    after.fill(1, 64 * KIB, 64 * KIB + 4_096);
    const held = Buffer.from(before);
    held[100_000] = (held[100_000] ?? 0) ^ 1;
    const frame = { blocks: [1], before, after };
    expect([...apply({ ...frame, parts: [[0]] }, {}, held).states]).toEqual([applyState.mismatch]);
    expect(files.writes).toEqual([]);
    expect(replica().equals(held)).toBe(true);
    expect([...apply({ ...frame, parts: [everyPart(64 * KIB)] }, {}, held).states]).toEqual([applyState.written]);
    expect(replica().equals(after)).toBe(true);
  });

  test("old content that cannot be read: damaged, for that block alone", () => {
    const before = randomBytes(128 * KIB);
    const after = Buffer.from(before);
    after.fill(1, 0, 4_096);
    files.failing = { read: "EIO" };
    expect([...apply({ blocks: [0], parts: [[0]], before, after }).states]).toEqual([applyState.damaged]);
    expect(files.writes).toEqual([]);
  });

  test("over zeros nothing is read", () => {
    files.failing = { read: "EIO" };
    const before = Buffer.alloc(128 * KIB);
    const after = patched(before, [{ at: 0.6, length: 100, fill: 9, noise: false }]);
    const part = Math.floor((Math.floor(0.6 * 128 * KIB) - 64 * KIB) / PART_BYTES);
    expect([...apply({ blocks: [1], parts: [[part]], before, after }).states]).toEqual([applyState.written]);
    expect(replica().equals(after)).toBe(true);
  });

  test.each([
    ["ENOSPC", "no-space"],
    ["EDQUOT", "no-space"],
    ["EIO", "write-failed"],
    ["EFBIG", "write-failed"],
  ])("%s gives %s, with the offset", (errno, code) => {
    const before = Buffer.alloc(128 * KIB);
    files.failing = { write: errno };
    expect(() => apply({ blocks: [1], parts: [everyPart(64 * KIB)], before, after: randomBytes(128 * KIB) })).toThrow(
      expect.objectContaining({
        code,
        message: expect.stringContaining("disk disk") as string,
        details: expect.objectContaining({ offset: 64 * KIB }) as object,
      }),
    );
  });

  test("a payload that does not decompress: codec-damaged, nothing is written", () => {
    const before = Buffer.alloc(64 * KIB);
    expect(() =>
      apply(
        { blocks: [0], parts: [everyPart(64 * KIB)], before, after: randomBytes(64 * KIB) },
        { codec: "lz4", payloadBytes: 500 },
      ),
    ).toThrow(expect.objectContaining({ code: "codec-damaged" }));
    expect(files.writes).toEqual([]);
  });
});

describe("old parts", () => {
  test("digests of the parts of every block that is as the table says", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, length: anyLength, patches: anyPatches }),
        fc.infiniteStream(fc.constantFrom(true, true, false)),
        ({ blockBytes, digestKind, length, patches }, asSaid) => {
          const disk = patched(Buffer.alloc(length), patches);
          files.files.set(fd, disk);
          const blocks = blocksOf(disk, blockBytes);
          const good = blocks.map(() => asSaid.next().value as boolean);
          const base = Buffer.concat(
            blocks.map((block, index) =>
              good[index] === true ? digestOf(digestKind, block) : randomBytes(digestBytes(digestKind)),
            ),
          );
          const numbers = blocks.map((_block, index) => index);
          const answer = doJob(lane, "oldParts", {
            disk: "disk",
            fd,
            sizeBytes: length,
            blocks: numbers,
            base,
            blockBytes,
            digestKind,
          });
          expect(answer.known.length).toBe(Math.ceil(blocks.length / 8));
          const known = numbers.filter((index) => ((answer.known[index >> 3] ?? 0) & (1 << (index & 7))) !== 0);
          expect(known).toEqual(numbers.filter((index) => good[index]));
          const expected = known.flatMap((index) => partsOf(blocks[index] ?? Buffer.alloc(0)));
          expect(answer.parts.length).toBe(expected.length * 4);
          const parts = Buffer.from(answer.parts);
          expect(expected.map((_part, index) => parts.readUInt32LE(index * 4))).toEqual(
            expected.map((part) => digesters.xxh64.part(part)),
          );
        },
      ),
      { numRuns: 40 },
    );
  });

  test("a block that cannot be read is not known, and no failure", () => {
    files.files.set(fd, Buffer.alloc(64 * KIB, 1));
    files.failing = { read: "EIO" };
    const request = { disk: "disk", fd, sizeBytes: 64 * KIB, blocks: [0], base: randomBytes(8) };
    const answer = doJob(lane, "oldParts", { ...request, blockBytes: 64 * KIB, digestKind: "xxh64" });
    expect([...answer.known]).toEqual([0]);
    expect(answer.parts.length).toBe(0);
  });
});

describe("clear", () => {
  const ranges = [
    { offset: 0, length: 64 * KIB },
    { offset: MIB, length: 2 * MIB + 100 },
  ];

  test.each([true, false])("ranges become zero, and nothing else does (punching: %s)", (canPunch) => {
    files.canPunch = canPunch;
    const content = randomBytes(3 * MIB + 100);
    files.files.set(fd, Buffer.from(content));
    // What a job before left in the scratch memory is not written.
    lane.scratch.fill(0xaa);
    doJob(lane, "clear", { disk: "disk", fd, ranges });
    for (const { offset, length } of ranges) content.fill(0, offset, offset + length);
    expect(hashOf(replica())).toBe(hashOf(content));
    expect(files.punched).toEqual(canPunch ? ranges : []);
    if (canPunch) expect(files.writes).toEqual([]);
  });

  test.each([
    ["punch", "EIO", "write-failed"],
    ["punch", "ENOSPC", "no-space"],
    ["write", "ENOSPC", "no-space"],
  ] as const)("a failed %s (%s): %s", (kind, errno, code) => {
    files.canPunch = kind === "punch";
    files.failing = { [kind]: errno };
    files.files.set(fd, Buffer.alloc(4 * MIB));
    expect(() => doJob(lane, "clear", { disk: "disk", fd, ranges })).toThrow(expect.objectContaining({ code }));
  });
});

test("a failed sync is sync-failed, whatever the errno", () => {
  files.failing = { datasync: "ENOSPC" };
  expect(() => doJob(lane, "sync", { disk: "disk", fd })).toThrow(expect.objectContaining({ code: "sync-failed" }));
});
