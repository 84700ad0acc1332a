/** The sender's jobs, scan and pack, against the same thing written down plainly. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { digestBytes, KIB, MIB, PART_BYTES, partsPerBlock } from "../../src/base/units.ts";
import type { FileRun } from "../../src/image/block-device.ts";
import { blockState, type ScanRequest, type ScanResult } from "../../src/lanes/jobs.ts";
import type { Lane } from "../../src/lanes/lane.ts";
import { doJob } from "../../src/lanes/do-job.ts";
import { areaA } from "../../src/lanes/slot-layout.ts";
import {
  anyBlockBytes,
  anyCodec,
  anyDigest,
  anyLength,
  anyPatches,
  blocksOf,
  digestOf,
  hashOf,
  maskOf,
  memoryFiles,
  memoryLane,
  partDigestsOf,
  partsOf,
  patched,
} from "./kit.ts";

const files = memoryFiles();
const lane = await memoryLane(files);
const wasm = await memoryLane(files, "wasm");

function request(disk: Buffer, more: Partial<ScanRequest>): ScanRequest {
  return {
    slot: 1,
    file: "image",
    pieces: [{ runs: [{ kind: "file", fd: 3, offset: 0, length: disk.length }], length: disk.length }],
    base: "unknown",
    codec: "stored",
    blockBytes: 64 * KIB,
    digestKind: "xxh64",
    ...more,
  };
}

/** What lies in a shipment, decompressed. */
function rawOf(from: Lane, slot: number, result: ScanResult): Buffer {
  const { shipment } = result;
  if (shipment === undefined) return Buffer.alloc(0);
  const packed = from.slot(slot).subarray(shipment.payloadOffset, shipment.payloadOffset + shipment.payloadBytes);
  const raw = Buffer.alloc(shipment.rawBytes);
  from.codecs.get(shipment.codec).decompress(packed, raw);
  return raw;
}

describe("scan", () => {
  test("any content over any base: states, digests, part digests and shipment are what they say", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, codec: anyCodec, length: anyLength }),
        fc.record({ before: anyPatches, change: anyPatches, base: fc.constantFrom("zero", "unknown", "table") }),
        fc.boolean(),
        ({ blockBytes, digestKind, codec, length }, { before, change, base }, useWasm) => {
          const old = patched(Buffer.alloc(length), base === "zero" ? [] : before);
          const disk = patched(old, change);
          files.files.set(3, disk);
          const oldBlocks = blocksOf(old, blockBytes);
          const blocks = blocksOf(disk, blockBytes);
          const table = Buffer.concat(oldBlocks.map((block) => digestOf(digestKind, block)));
          const used = useWasm ? wasm : lane;
          // What a job before left in the slot is nobody's.
          used.slot(1).fill(0xee);
          const given = base === "table" ? table : base === "zero" ? ("zero" as const) : ("unknown" as const);
          const result = doJob(used, "scan", request(disk, { base: given, codec, blockBytes, digestKind }));

          expect(hashOf(result.digests)).toBe(
            hashOf(Buffer.concat(blocks.map((block) => digestOf(digestKind, block)))),
          );
          const states = blocks.map((block, index) => {
            const was = oldBlocks[index] ?? block;
            const zeroNow = block.every((byte) => byte === 0);
            const zeroWas = was.every((byte) => byte === 0);
            if (base === "unknown") return blockState.digested;
            if (block.equals(was)) return blockState.same;
            if (zeroNow) return blockState.zero;
            return zeroWas ? blockState.shipped : blockState.differs;
          });
          expect([...result.states]).toEqual(states);

          const differing = blocks.filter((_block, index) => states[index] === blockState.differs);
          const partDigests = differing.flatMap(partDigestsOf);
          expect(result.parts.length).toBe(partDigests.length * 4);
          const found = Buffer.from(result.parts);
          expect(partDigests.map((_part, index) => found.readUInt32LE(index * 4))).toEqual(partDigests);

          // Shipped: the parts that are not zero, and nothing else.
          const picked = states.flatMap((state, index) => (state === blockState.shipped ? [index] : []));
          expect(result.shipment?.picked ?? []).toEqual(picked);
          const shippedParts = picked.map((index) => {
            const parts = partsOf(blocks[index] ?? Buffer.alloc(0));
            return parts.flatMap((part, number) => (part.every((byte) => byte === 0) ? [] : [number]));
          });
          const content = Buffer.concat(
            picked.flatMap((index, position) =>
              (shippedParts[position] ?? []).map(
                (part) => partsOf(blocks[index] ?? Buffer.alloc(0))[part] ?? Buffer.alloc(0),
              ),
            ),
          );
          const masks = Buffer.concat(shippedParts.map((parts) => maskOf(parts, blockBytes)));
          expect(hashOf(result.shipment?.masks ?? Buffer.alloc(0))).toBe(hashOf(masks));
          expect(hashOf(rawOf(used, 1, result))).toBe(hashOf(content));
          if (result.shipment !== undefined) {
            expect(result.shipment.payloadBytes).toBeLessThanOrEqual(result.shipment.rawBytes);
            expect(result.shipment.digests.length).toBe(picked.length * digestBytes(digestKind));
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test.each([16 * KIB, 64 * KIB, MIB])("C-40 one byte in a zero block of %i, wherever it is, is seen", (blockBytes) => {
    for (const at of [0, 1, 7, 8, blockBytes / 2, blockBytes - 4_097, blockBytes - 4_096, blockBytes - 1]) {
      const disk = Buffer.alloc(blockBytes);
      disk[at] = 1;
      files.files.set(3, disk);
      const result = doJob(lane, "scan", request(disk, { base: "zero", blockBytes }));
      expect([...result.states]).toEqual([blockState.shipped]);
      expect(result.shipment?.rawBytes).toBe(PART_BYTES);
      expect(Buffer.from(result.shipment?.masks ?? []).equals(maskOf([Math.floor(at / PART_BYTES)], blockBytes))).toBe(
        true,
      );
    }
  });

  test("runs of any shape give the same as one run, and as content that lies in the slot already", () => {
    fc.assert(
      fc.property(
        fc.record({ length: anyLength, patches: anyPatches, blockBytes: anyBlockBytes }),
        fc.array(fc.integer({ min: 1, max: 300_000 }), { maxLength: 6 }),
        ({ length, patches, blockBytes }, cuts) => {
          const disk = patched(Buffer.alloc(length), patches);
          // Pieces in reverse order in the file, with gaps; zero pieces as zero runs, with empty runs in between.
          const file = Buffer.alloc(2 * length + cuts.length, 0xdd);
          const runs: FileRun[] = [{ kind: "zero", length: 0 }];
          let at = 0;
          let filePosition = file.length;
          for (const size of [...cuts, length]) {
            const piece = disk.subarray(at, Math.min(length, at + size));
            at += piece.length;
            if (piece.every((byte) => byte === 0)) runs.push({ kind: "zero", length: piece.length });
            else {
              filePosition -= piece.length + (filePosition - piece.length > length ? 1 : 0);
              piece.copy(file, filePosition);
              runs.push({ kind: "file", fd: 4, offset: filePosition, length: piece.length });
            }
          }
          files.files.set(3, disk);
          files.files.set(4, file);
          const one = doJob(lane, "scan", request(disk, { base: "zero", blockBytes }));
          const raw = hashOf(rawOf(lane, 1, one));
          lane.slot(0).fill(0x77);
          const many = doJob(
            lane,
            "scan",
            request(disk, { base: "zero", blockBytes, pieces: [{ runs, length }], slot: 0 }),
          );
          lane.slot(1).fill(0x77);
          lane.slot(1).set(disk, areaA);
          const inPlace = doJob(
            lane,
            "scan",
            request(disk, { base: "zero", blockBytes, pieces: [{ runs: undefined, length }] }),
          );
          for (const other of [many, inPlace]) {
            expect(hashOf(other.digests)).toBe(hashOf(one.digests));
            expect(hashOf(other.states)).toBe(hashOf(one.states));
          }
          expect(hashOf(rawOf(lane, 0, many))).toBe(raw);
          expect(hashOf(rawOf(lane, 1, inPlace))).toBe(raw);
        },
      ),
      { numRuns: 40 },
    );
  });

  test("ranges that lie apart are scanned as if they were one behind the other", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: fc.constantFrom(16 * KIB, 64 * KIB), digestKind: anyDigest, codec: anyCodec }),
        fc.record({ length: anyLength, before: anyPatches, change: anyPatches }),
        fc.record({ base: fc.constantFrom("zero", "unknown", "table"), cut: fc.integer({ min: 1, max: 5 }) }),
        fc.infiniteStream(fc.boolean()),
        ({ blockBytes, digestKind, codec }, { length, before, change }, { base, cut }, dice) => {
          const old = patched(Buffer.alloc(length), base === "zero" ? [] : before);
          const disk = patched(old, change);
          files.files.set(3, disk);
          const step = cut * blockBytes;
          const ranges = Array.from({ length: Math.ceil(length / step) }, (_unused, index) => index * step)
            .map((offset) => ({ offset, length: Math.min(step, length - offset) }))
            .filter(() => dice.next().value === true);
          if (ranges.length === 0) return;
          const joined = Buffer.concat(ranges.map((range) => disk.subarray(range.offset, range.offset + range.length)));
          const blocks = ranges.flatMap((range) =>
            blocksOf(old.subarray(range.offset, range.offset + range.length), blockBytes),
          );
          const table = Buffer.concat(blocks.map((block) => digestOf(digestKind, block)));
          const given = base === "table" ? table : base === "zero" ? ("zero" as const) : ("unknown" as const);
          const how = { base: given, codec, blockBytes, digestKind };
          const pieces = ranges.map((range) => ({
            runs: [{ kind: "file", fd: 3, offset: range.offset, length: range.length } as const],
            length: range.length,
          }));
          lane.slot(0).fill(0x66);
          const apart = doJob(lane, "scan", request(disk, { ...how, pieces, slot: 0 }));
          files.files.set(3, joined);
          const together = doJob(lane, "scan", request(joined, how));
          expect(apart.shipment?.picked ?? []).toEqual(together.shipment?.picked ?? []);
          for (const key of ["digests", "states", "parts"] as const)
            expect(hashOf(apart[key])).toBe(hashOf(together[key]));
          const masks = [apart, together].map(({ shipment }) => hashOf(shipment?.masks ?? Buffer.alloc(0)));
          expect(masks[0]).toBe(masks[1]);
          expect(hashOf(rawOf(lane, 0, apart))).toBe(hashOf(rawOf(lane, 1, together)));
          // Read by somebody else, each range lies at its place already.
          lane.slot(0).fill(0x66);
          let at = areaA;
          for (const range of ranges) {
            lane.slot(0).set(disk.subarray(range.offset, range.offset + range.length), at);
            at += Math.ceil(range.length / blockBytes) * blockBytes;
          }
          const places = ranges.map((range) => ({ runs: undefined, length: range.length }));
          const inPlace = doJob(lane, "scan", request(disk, { ...how, pieces: places, slot: 0 }));
          expect(hashOf(inPlace.digests)).toBe(hashOf(apart.digests));
          expect(hashOf(rawOf(lane, 0, inPlace))).toBe(hashOf(rawOf(lane, 1, together)));
        },
      ),
      { numRuns: 80 },
    );
  });

  test("a file that ends early, or runs that do: image-truncated, with the offset where it ends", () => {
    const disk = Buffer.alloc(128 * KIB, 1);
    files.files.set(3, disk.subarray(0, 100_000));
    expect(() => doJob(lane, "scan", request(disk, {}))).toThrow(
      expect.objectContaining({ code: "image-truncated", details: { offset: 100_000 } }),
    );
    const runs = [{ kind: "file", fd: 3, offset: 0, length: 5_000 }] as const;
    expect(() => doJob(lane, "scan", request(disk, { pieces: [{ runs, length: disk.length }] }))).toThrow(
      expect.objectContaining({ code: "image-truncated" }),
    );
  });

  test("a failed read: image-unreadable, with file, offset and errno", () => {
    files.failing = { read: "EIO" };
    const runs = [{ kind: "file", fd: 3, offset: 4_096, length: 4_096 }] as const;
    try {
      expect(() => doJob(lane, "scan", request(Buffer.alloc(4_096), { pieces: [{ runs, length: 4_096 }] }))).toThrow(
        expect.objectContaining({
          code: "image-unreadable",
          message: expect.stringContaining("image") as string,
          details: { offset: 4_096, errno: "EIO" },
        }),
      );
    } finally {
      files.failing = {};
    }
  });
});

describe("pack", () => {
  test("parts come out as they are, compressed where that makes them smaller", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, length: anyLength, patches: anyPatches, codec: anyCodec }),
        fc.infiniteStream(fc.integer({ min: 0, max: 3 })),
        fc.boolean(),
        ({ blockBytes, length, patches, codec }, dice, inPlace) => {
          const roll = (): number => dice.next().value ?? 0;
          const disk = patched(Buffer.alloc(length, 3), patches);
          // The bytes lie in the file in another order: a hole between any two blocks.
          const file = Buffer.concat(
            blocksOf(disk, blockBytes).flatMap((block, index) => [
              Buffer.alloc(4_096, 0xdd),
              block.subarray(0, Math.min(blockBytes, length - index * blockBytes)),
            ]),
          );
          files.files.set(3, file);
          const blocks = blocksOf(disk, blockBytes).flatMap((content, block) =>
            roll() === 0 ? [] : [{ block, content }],
          );
          if (blocks.length === 0) return;
          const masks = blocks.map(() => {
            const parts = Array.from({ length: partsPerBlock(blockBytes) }, (_unused, part) => part);
            return parts.filter((part) => part === 0 || roll() !== 0);
          });
          const stretches: { blocks: number; length: number; runs: FileRun[] }[] = [];
          for (const [index, { block }] of blocks.entries()) {
            const bytes = Math.min(blockBytes, length - block * blockBytes);
            const run = { kind: "file", fd: 3, offset: block * (blockBytes + 4_096) + 4_096, length: bytes } as const;
            const last = stretches.at(-1);
            if (last !== undefined && blocks[index - 1]?.block === block - 1) {
              last.blocks++;
              last.length += bytes;
              last.runs.push(run);
            } else stretches.push({ blocks: 1, length: bytes, runs: [run] });
          }
          const parts = blocks.flatMap(({ content }, index) =>
            (masks[index] ?? []).map((part) => content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES)),
          );
          const content = Buffer.concat(parts);
          lane.slot(1).fill(0x33);
          if (inPlace) lane.slot(1).set(content, areaA);
          const packed = doJob(lane, "pack", {
            ...{ slot: 1, file: "image", blockBytes, rawBytes: content.length, codec },
            stretches: inPlace ? undefined : stretches,
            masks: Buffer.concat(masks.map((each) => maskOf(each, blockBytes))),
          });
          const raw = Buffer.alloc(content.length);
          const payload = lane.slot(1).subarray(packed.payloadOffset, packed.payloadOffset + packed.payloadBytes);
          lane.codecs.get(packed.codec).decompress(payload, raw);
          expect(hashOf(raw)).toBe(hashOf(content));
          expect(packed.payloadBytes).toBeLessThanOrEqual(content.length);
          if (codec === "stored") expect(packed.codec).toBe("stored");
        },
      ),
      { numRuns: 60 },
    );
  });

  test("a file that ends early is no zeros", () => {
    files.files.set(3, Buffer.alloc(64 * KIB - 1, 1));
    const runs = [{ kind: "file", fd: 3, offset: 0, length: 64 * KIB } as const];
    const stretches = [{ blocks: 1, length: 64 * KIB, runs }];
    const masks = maskOf([15], 64 * KIB);
    const how = { slot: 1, file: "image", blockBytes: 64 * KIB, rawBytes: PART_BYTES, codec: "stored" } as const;
    expect(() => doJob(lane, "pack", { ...how, stretches, masks })).toThrow(
      expect.objectContaining({ code: "image-truncated" }),
    );
  });
});

describe("compare", () => {
  test("any pieces over any base: what scan says of the same blocks", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, length: anyLength }),
        fc.record({
          before: anyPatches,
          change: anyPatches,
          known: fc.boolean(),
          cut: fc.integer({ min: 1, max: 16 }),
        }),
        ({ blockBytes, digestKind, length }, { before, change, known, cut }) => {
          // Nothing of zeros: what is new over them is shipped, which this job does not do.
          const old = patched(Buffer.alloc(length, 7), before).map((byte) => (byte === 0 ? 9 : byte)) as Buffer;
          const disk = patched(old, change);
          files.files.set(3, disk);
          const base = known
            ? Buffer.concat(blocksOf(old, blockBytes).map((block) => digestOf(digestKind, block)))
            : ("unknown" as const);
          const step = cut * blockBytes;
          const pieces = Array.from({ length: Math.ceil(length / step) }, (_unused, index) => {
            const bytes = Math.min(step, length - index * step);
            return { length: bytes, runs: [{ kind: "file", fd: 3, offset: index * step, length: bytes } as const] };
          });
          const shape = { blockBytes, digestKind };
          const scanned = doJob(lane, "scan", request(disk, { base, ...shape }));
          lane.scratch.fill(0xee);
          const compared = doJob(lane, "compare", { file: "image", pieces, base, ...shape });
          expect(scanned.shipment).toBeUndefined();
          expect(hashOf(compared.digests)).toBe(hashOf(scanned.digests));
          expect([...compared.states]).toEqual([...scanned.states]);
          expect(hashOf(compared.parts)).toBe(hashOf(scanned.parts));
        },
      ),
      { numRuns: 60 },
    );
  });
});
