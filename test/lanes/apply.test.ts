/** The receiver's jobs: apply, old parts, clear, sync. */
import fc from "fast-check";
import { beforeEach, describe, expect, test } from "vitest";
import { digestBytes, type DigestKind, KIB, MIB, PART_BYTES, partsPerBlock } from "../../src/base/units.ts";
import { isZero } from "../../src/base/zero.ts";
import { PART_DIGEST_BYTES } from "../../src/codec/digest-sizes.ts";
import {
  type ApplyRequest,
  type ApplyResult,
  applyState,
  type AppendRequest,
  type SaveResult,
} from "../../src/lanes/jobs.ts";
import { DIRECT_BYTES } from "../../src/storage/seam.ts";
import { doJob } from "../../src/lanes/do-job.ts";
import { areaA, areaB, oldContentAt } from "../../src/lanes/slot-layout.ts";
import {
  anyBlockBytes,
  anyCodec,
  anyDigest,
  anyLength,
  anyPatches,
  blocksOf,
  differingPartsOf,
  digestOf,
  digesters,
  hashOf,
  maskOf,
  memoryFiles,
  memoryLane,
  partDigestsOf,
  partsOf,
  patched,
  plainLane,
} from "./kit.ts";
import { randomBytes } from "../random.ts";

const files = memoryFiles();
const withKernel = await memoryLane(files);
const withoutKernel = await plainLane(files);
let lane = withKernel;
const fd = 5;

beforeEach(() => {
  lane = withKernel;
  files.failing = {};
  files.writeDirect = undefined;
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

/** Puts parts of `after` into the slot, for a replica that holds `before`. */
function land(frame: Frame, more: Partial<ApplyRequest> = {}, held: Buffer = frame.before): ApplyRequest {
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
  const received = {
    payloadBytes,
    codec: used,
    rawBytes: raw.length,
    blocks,
    masks: Buffer.concat(parts.map((numbers) => maskOf(numbers, blockBytes))),
    digests: Buffer.concat(blocks.map((block) => digestOf(digestKind, now[block] ?? empty))),
  };
  return {
    slot: 0,
    disk: "disk",
    fd,
    directFd: undefined,
    sizeBytes: after.length,
    ...received,
    base: Buffer.concat(blocks.map((block) => digestOf(digestKind, old[block] ?? empty))),
    checked: undefined,
    blockBytes,
    digestKind,
    ...more,
  };
}

/** Applies parts of `after` to a replica that holds `before`. */
function apply(frame: Frame, more: Partial<ApplyRequest> = {}, held: Buffer = frame.before): ApplyResult {
  return doJob(lane, "apply", land(frame, more, held));
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
          lane = wholes.next().value === true ? withKernel : withoutKernel;
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
    const parts = [0, 1].map((block) => (block % 2 === 0 ? everyPart(64 * KIB) : [3, 4]));
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

  test("parts of zeros that begin behind the end of the disk: nothing is written there", () => {
    const before = randomBytes(4 * PART_BYTES + 512);
    const behind = everyPart(64 * KIB).slice(5);
    const held = Buffer.concat([before, Buffer.alloc(64 * KIB, 0x7b)]);
    for (const parts of [behind, [1, ...behind]]) {
      const result = apply({ blocks: [0], parts: [parts], before, after: before }, {}, held);
      expect([...result.states]).toEqual([applyState.written]);
      expect(hashOf(replica())).toBe(hashOf(held));
      expect(result.writtenBytes).toBe((parts.length - behind.length) * PART_BYTES);
    }
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

  test("parts lie in the page cache, long runs do not; what lay there is written when that is asked", () => {
    const hints: (readonly [number, number, number])[] = [];
    files.startWriteback = (...hint) => void hints.push(hint);
    const before = Buffer.alloc(512 * KIB);
    const after = randomBytes(512 * KIB);
    after.fill(0, 448 * KIB);
    const parts = [0, 1, 2, 3, 4, 5].map(() => everyPart(64 * KIB));
    const long = apply({ blocks: [0, 1, 2, 3, 4, 5], parts, before, after });
    expect([long.writtenBytes, long.cachedBytes]).toEqual([384 * KIB, 0]);
    expect(hints).toEqual([[fd, 0, 384 * KIB]]);
    hints.length = 0;
    const few = apply({
      blocks: [0],
      parts: [[3]],
      before: after,
      after: Buffer.from(after).fill(7, 12 * KIB, 16 * KIB),
    });
    expect([few.writtenBytes, few.cachedBytes, hints]).toEqual([4 * KIB, 4 * KIB, []]);
    apply(
      { blocks: [0], parts: [[3]], before: after, after: Buffer.from(after).fill(7, 12 * KIB, 16 * KIB) },
      { writeback: { offset: 64 * KIB, length: 5 * KIB } },
    );
    expect(hints).toEqual([[fd, 64 * KIB, 5 * KIB]]);
    files.startWriteback = () => {};
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

/** What the digests of its parts are, as a receiver knows them. */
function knownOf(block: Buffer): Buffer {
  const known = Buffer.alloc((block.length / PART_BYTES) * PART_DIGEST_BYTES);
  digesters.xxh64.parts(block, known, 0);
  return known;
}

function wrongDigest(kind: DigestKind): Buffer {
  return Buffer.alloc(digestBytes(kind), 0x7b);
}

describe("old parts", () => {
  test("digests of the parts of every block, as it lies there", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, length: anyLength, patches: anyPatches }),
        fc.infiniteStream(fc.boolean()),
        ({ blockBytes, digestKind, length, patches }, choices) => {
          const disk = patched(Buffer.alloc(length), patches);
          files.files.set(fd, disk);
          const blocks = blocksOf(disk, blockBytes);
          const numbers = blocks.map((_block, index) => index);
          const sound = blocks.map(() => choices.next().value === true);
          const base = Buffer.concat(
            blocks.map((block, index) =>
              sound[index] === true ? digestOf(digestKind, block) : wrongDigest(digestKind),
            ),
          );
          const shape = { blockBytes, digestKind };
          const request = { disk: "disk", fd, sizeBytes: length, blocks: numbers, base, ...shape };
          const answer = doJob(lane, "oldParts", request);
          expect(answer.known.length).toBe(Math.ceil(blocks.length / 8));
          expect(numbers.filter((index) => ((answer.known[index >> 3] ?? 0) & (1 << (index & 7))) !== 0)).toEqual(
            numbers,
          );
          const expected = blocks.flatMap(partDigestsOf);
          expect(answer.parts.length).toBe(expected.length * 4);
          const parts = Buffer.from(answer.parts);
          expect(expected.map((_part, index) => parts.readUInt32LE(index * 4))).toEqual(expected);
          // What is known of a block whose content is not what the table says would be laundered.
          const known = blocks.map((block, index) =>
            sound[index] === true ? knownOf(block) : Buffer.alloc(knownOf(block).length),
          );
          expect(hashOf(answer.wide)).toBe(hashOf(digestKind === "xxh64" ? Buffer.concat(known) : Buffer.alloc(0)));
        },
      ),
      { numRuns: 40 },
    );
  });

  test("a block that cannot be read is not known, and no failure", () => {
    files.files.set(fd, Buffer.alloc(64 * KIB, 1));
    files.failing = { read: "EIO" };
    const base = wrongDigest("xxh64");
    const shape = { blockBytes: 64 * KIB, digestKind: "xxh64" } as const;
    const answer = doJob(lane, "oldParts", { disk: "disk", fd, sizeBytes: 64 * KIB, blocks: [0], base, ...shape });
    expect([...answer.known]).toEqual([0]);
    expect(answer.parts.length).toBe(0);
    expect(isZero(answer.wide)).toBe(true);
  });
});

describe("save", () => {
  /** The farthest place there is. */
  const contentAt = areaA + DIRECT_BYTES - 1;

  /** What the first `blocks` of the frame hold in these parts, kept before the frame is applied. */
  function save(
    request: ApplyRequest,
    kept: readonly number[],
    parts: readonly (readonly number[])[],
    known?: Buffer,
  ): SaveResult {
    const { blockBytes, digestKind, blocks, base, slot, disk, sizeBytes } = request;
    const { payloadBytes, codec, rawBytes, masks, digests } = request;
    const width = digestBytes(digestKind);
    return doJob(lane, "save", {
      contentAt,
      ...{ slot, disk, fd, sizeBytes, blockBytes, digestKind, seed: 7, codec: "stored" },
      blocks: kept.map((index) => blocks[index] ?? 0),
      masks: Buffer.concat(kept.map((index) => maskOf(parts[index] ?? [], blockBytes))),
      base: Buffer.concat(kept.map((index) => Buffer.from(base.subarray(index * width, (index + 1) * width)))),
      frame: { payloadBytes, codec, rawBytes, blocks, masks, digests },
      known,
    });
  }

  test("any change over any content: what is kept is the old content, and apply does with it what it does alone", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, codec: anyCodec, length: anyLength }),
        fc.record({ before: anyPatches, change: anyPatches }),
        fc.infiniteStream(fc.boolean()),
        ({ blockBytes, digestKind, codec, length }, patches, choices) => {
          const choice = (): boolean => choices.next().value === true;
          lane = choice() ? withKernel : withoutKernel;
          const before = patched(Buffer.alloc(length), patches.before);
          const after = patched(before, patches.change);
          const was = blocksOf(before, blockBytes);
          const blocks: number[] = [];
          const parts: number[][] = [];
          for (const [block, content] of blocksOf(after, blockBytes).entries()) {
            const differing = differingPartsOf(was[block] ?? content, content);
            if (differing.length === 0) continue;
            blocks.push(block);
            parts.push(choice() ? everyPart(blockBytes) : differing);
          }
          if (blocks.length === 0) return;
          const request = land({ blocks, parts, before, after, blockBytes, digestKind, codec });
          // Some have been kept before, or some of their parts.
          const kept = blocks.flatMap((_block, index) => (choice() ? [index] : []));
          const wanted = parts.map((numbers) => numbers.filter((_part, at) => at === 0 || choice()));
          // Of some is known what they hold: then only these parts are read.
          const known = kept.map((index) => knownOf(was[blocks[index] ?? 0] ?? before));
          for (const each of known) if (choice()) each.fill(0);
          const ofParts = digestKind === "xxh64" && choice();
          const result = save(request, kept, wanted, ofParts ? Buffer.concat(known) : undefined);
          expect([...result.damaged]).toEqual(kept.map(() => 0));
          const old = kept.flatMap((index) =>
            (wanted[index] ?? []).map((part) => partsOf(was[blocks[index] ?? 0] ?? before)[part] ?? before),
          );
          const bytes = old.length * PART_BYTES;
          expect(hashOf(lane.slot(0).subarray(contentAt, contentAt + bytes))).toBe(hashOf(Buffer.concat(old)));
          expect(result.contentBytes.reduce((sum, each) => sum + each, 0)).toBe(bytes);
          const states = blocks.map((_block, index) =>
            kept.includes(index) ? applyState.written : applyState.unchecked,
          );
          expect([...result.checked]).toEqual(states);
          // Area A is free again by then.
          lane.slot(0).fill(0xee, areaA, contentAt + MIB);
          const applied = doJob(lane, "apply", { ...request, checked: result.checked });
          expect([...applied.states]).toEqual(blocks.map(() => applyState.written));
          expect(hashOf(replica())).toBe(hashOf(after));
        },
      ),
      { numRuns: 60 },
    );
  });

  test("known parts: the others are not read, and the block comes out as it was known to be", () => {
    const before = randomBytes(64 * KIB);
    const after = Buffer.from(before);
    after.fill(3, 5 * PART_BYTES, 7 * PART_BYTES);
    after.fill(4, 9 * PART_BYTES, 10 * PART_BYTES);
    const request = land({ blocks: [0], parts: [[5, 6, 9]], before, after });
    const reads: (readonly [number, number])[] = [];
    const { read } = files;
    files.read = (from, target, offset) => {
      reads.push([offset, target.length]);
      return read(from, target, offset);
    };
    const result = save(request, [0], [[5, 6, 9]], knownOf(before));
    files.read = read;
    expect(reads).toEqual([
      [5 * PART_BYTES, 2 * PART_BYTES],
      [9 * PART_BYTES, PART_BYTES],
    ]);
    expect([...result.damaged]).toEqual([0]);
    expect([...result.checked]).toEqual([applyState.written]);
  });

  test("known parts that are not what lies there: the block is read as a whole, and the log is told the truth", () => {
    const before = randomBytes(64 * KIB);
    const after = Buffer.from(before);
    after.fill(3, 5 * PART_BYTES, 6 * PART_BYTES);
    const held = Buffer.from(before);
    held[5 * PART_BYTES] = (held[5 * PART_BYTES] ?? 0) ^ 1;
    const request = land({ blocks: [0], parts: [[5]], before, after }, {}, held);
    const result = save(request, [0], [[5]], knownOf(before));
    expect([...result.damaged]).toEqual([1]);
    // The part that rotted is replaced: the block comes out, and may be written.
    expect([...result.checked]).toEqual([applyState.written]);
  });

  test("known parts of which another changed: a frame for other content does not come out", () => {
    const before = randomBytes(64 * KIB);
    const after = Buffer.from(before);
    after.fill(3, 5 * PART_BYTES, 6 * PART_BYTES);
    const other = Buffer.from(before);
    other.fill(9, 0, PART_BYTES);
    const request = land({ blocks: [0], parts: [[5]], before, after });
    expect([...save(request, [0], [[5]], knownOf(other)).checked]).toEqual([applyState.mismatch]);
  });

  test("parts over content that rotted: told by either digest, and the block is not written", () => {
    const before = randomBytes(128 * KIB);
    const after = Buffer.from(before);
    after.fill(3, 5 * PART_BYTES, 6 * PART_BYTES);
    after.fill(3, 64 * KIB, 64 * KIB + PART_BYTES);
    const held = Buffer.from(before);
    held[100] = (held[100] ?? 0) ^ 1;
    const parts = [[5], [0]];
    const request = land({ blocks: [0, 1], parts, before, after }, {}, held);
    const result = save(request, [0, 1], parts);
    expect([...result.damaged]).toEqual([1, 0]);
    expect([...result.checked]).toEqual([applyState.mismatch, applyState.written]);
    const applied = doJob(lane, "apply", { ...request, checked: result.checked });
    expect([...applied.states]).toEqual([applyState.mismatch, applyState.written]);
    expect(files.writes.map((write) => write.offset)).toEqual([64 * KIB]);
  });

  test("content that cannot be read: parts are asked for whole, a whole block replaces it", () => {
    const before = randomBytes(128 * KIB);
    const after = randomBytes(128 * KIB);
    const parts = [[5], everyPart(64 * KIB)];
    const request = land({ blocks: [0, 1], parts, before, after });
    lane.scratch.fill(0xaa);
    files.failing = { read: "EIO" };
    const result = save(request, [0, 1], parts);
    expect([...result.damaged]).toEqual([1, 1]);
    expect([...result.checked]).toEqual([applyState.damaged, applyState.written]);
    // Nothing of another block is taken for it.
    expect(
      lane
        .slot(0)
        .subarray(contentAt, contentAt + PART_BYTES)
        .every((byte) => byte === 0),
    ).toBe(true);
    const applied = doJob(lane, "apply", { ...request, checked: result.checked });
    expect([...applied.states]).toEqual([applyState.damaged, applyState.written]);
    expect(hashOf(replica().subarray(64 * KIB))).toBe(hashOf(after.subarray(64 * KIB)));
  });
});

describe("append", () => {
  const head = randomBytes(300);
  const offset = 5 * DIRECT_BYTES;

  /** What a log holds after old content was appended to it. */
  function append(contentBytes: number, more: Partial<AppendRequest> = {}): { log: Buffer; content: Buffer } {
    const contentAt = oldContentAt(head.length);
    const slot = lane.slot(1).fill(0x77);
    const content = randomBytes(contentBytes);
    slot.set(content, contentAt);
    const log = Buffer.alloc(offset + MIB + 8 * DIRECT_BYTES, 0x55);
    files.files.set(fd, log);
    doJob(lane, "append", { slot: 1, path: "log", fd, directFd: 9, offset, head, contentAt, contentBytes, ...more });
    return { log, content };
  }

  test("long content goes past the page cache in whole pages, those with the head last", () => {
    const offsets: number[] = [];
    files.writeDirect = (to, source, at) => {
      expect(to).toBe(9);
      expect([source.byteOffset, source.length, at].map((each) => each % DIRECT_BYTES)).toEqual([0, 0, 0]);
      offsets.push(at);
      files.files.get(fd)?.set(source, at);
      return true;
    };
    const { log, content } = append(MIB);
    const end = offset + head.length + MIB;
    const padded = Math.ceil(end / DIRECT_BYTES) * DIRECT_BYTES;
    const expected = Buffer.concat([
      Buffer.alloc(offset, 0x55),
      head,
      content,
      Buffer.alloc(padded - end),
      Buffer.alloc(log.length - padded, 0x55),
    ]);
    expect(hashOf(log)).toBe(hashOf(expected));
    expect(offsets).toEqual([offset + DIRECT_BYTES, offset]);
    expect(files.writes).toEqual([]);
  });

  const elsewhere: readonly (readonly [string, number, Partial<AppendRequest>])[] = [
    ["short content", 3 * PART_BYTES, {}],
    ["no descriptor for it", MIB, { directFd: undefined }],
    ["a head that does not begin on a page", MIB, { head: randomBytes(301) }],
    ["a system that refuses", MIB, {}],
  ];
  test.each(elsewhere)("%s: content, then head, through the page cache", (_name, bytes, more) => {
    files.writeDirect = () => false;
    const { log, content } = append(bytes, more);
    const written = more.head ?? head;
    const expected = Buffer.concat([Buffer.alloc(offset, 0x55), written, content]);
    expect(hashOf(log.subarray(0, expected.length))).toBe(hashOf(expected));
    expect(log.subarray(expected.length).every((byte) => byte === 0x55)).toBe(true);
    expect(files.writes.map((write) => write.offset)).toEqual([offset + written.length, offset]);
  });

  test("a head too long for the room in front of it", () => {
    const long = randomBytes(20 * KIB);
    files.writeDirect = () => {
      throw new Error("not in front of the slot");
    };
    append(MIB, { head: long, contentAt: oldContentAt(long.length) });
    expect(files.writes.map((write) => write.offset)).toEqual([offset + long.length, offset]);
  });
});

describe("long runs", () => {
  const directFd = 9;
  const long = MIB - 300;
  const frame = (codec: "stored" | "lz4"): Frame => ({
    blocks: Array.from({ length: 16 }, (_unused, block) => block),
    parts: Array.from({ length: 16 }, () => everyPart(64 * KIB)),
    before: Buffer.alloc(long),
    after: Buffer.alloc(long, "some words, again and again "),
    codec,
  });

  test.each(["stored", "lz4"] as const)("%s: go past the page cache in whole units, the rest through it", (codec) => {
    const direct: { offset: number; length: number }[] = [];
    files.writeDirect = (to, source, offset) => {
      expect(to).toBe(directFd);
      expect(source.byteOffset % DIRECT_BYTES).toBe(0);
      direct.push({ offset, length: source.length });
      replica().set(source, offset);
      return true;
    };
    const result = apply(frame(codec), { directFd });
    expect(direct).toEqual([{ offset: 0, length: MIB - DIRECT_BYTES }]);
    expect(files.writes.map(({ offset, length }) => ({ offset, length }))).toEqual([
      { offset: MIB - DIRECT_BYTES, length: DIRECT_BYTES - 300 },
    ]);
    expect(result.writtenBytes).toBe(long);
    expect(hashOf(replica())).toBe(hashOf(frame(codec).after));
  });

  test("where the system refuses, all goes through the page cache, over what may have been written", () => {
    files.writeDirect = (_to, source, offset) => {
      replica().fill(0x55, offset, offset + source.length / 2);
      return false;
    };
    apply(frame("stored"), { directFd });
    expect(hashOf(replica())).toBe(hashOf(frame("stored").after));
  });

  test("a failure of the device is a failure of the write", () => {
    files.writeDirect = () => {
      throw Object.assign(new Error("EIO"), { code: "EIO" });
    };
    expect(() => apply(frame("stored"), { directFd })).toThrow(expect.objectContaining({ code: "write-failed" }));
  });

  test("scattered parts are left to the kernel", () => {
    files.writeDirect = () => {
      throw new Error("not for parts");
    };
    const before = Buffer.alloc(MIB, 1);
    const after = Buffer.from(before);
    after.fill(2, 3 * PART_BYTES, 4 * PART_BYTES);
    apply({ blocks: [0], parts: [[3]], before, after }, { directFd });
    expect(files.writes).toEqual([{ fd, offset: 3 * PART_BYTES, length: PART_BYTES }]);
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
