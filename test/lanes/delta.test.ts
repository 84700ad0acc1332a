/** The delta job: one reading finds what differs from the receiver's parts, and packs it. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { KIB, MIB, PART_BYTES, partsPerBlock } from "../../src/base/units.ts";
import { doJob } from "../../src/lanes/do-job.ts";
import { blockState, type DeltaRequest, type DeltaResult } from "../../src/lanes/jobs.ts";
import type { Lane } from "../../src/lanes/lane.ts";
import { areaA } from "../../src/lanes/slot-layout.ts";
import {
  anyBlockBytes,
  anyCodec,
  anyDigest,
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
  plainLane,
} from "./kit.ts";

const files = memoryFiles();
const lane = await memoryLane(files);
const plain = await plainLane(files);

/** What the job is to be told of these blocks at the receiver. `unknown`: indexes of blocks it does not know. */
function knownOf(
  old: Buffer,
  { blockBytes, digestKind }: Pick<DeltaRequest, "blockBytes" | "digestKind">,
  unknown: ReadonlySet<number> = new Set(),
): Pick<DeltaRequest, "base" | "known" | "parts"> {
  const blocks = blocksOf(old, blockBytes);
  const parts = Buffer.alloc(blocks.length * partsPerBlock(blockBytes) * 4);
  for (const [nth, digest] of blocks
    .flatMap((block, index) =>
      unknown.has(index) ? Array<number>(partsPerBlock(blockBytes)).fill(0) : partDigestsOf(block),
    )
    .entries()) {
    parts.writeUInt32LE(digest, nth * 4);
  }
  return {
    base: Buffer.concat(blocks.map((block) => digestOf(digestKind, block))),
    known: Uint8Array.from(blocks, (_block, index) => (unknown.has(index) ? 0 : 1)),
    parts,
  };
}

/** Runs jobs until all blocks are through, as their caller does; all that was shipped, and blocks a job. */
function runThrough(
  used: Lane,
  disk: Buffer,
  old: Buffer,
  request: Omit<DeltaRequest, "slot" | "file" | "pieces" | "base" | "known" | "parts">,
  unknown?: ReadonlySet<number>,
) {
  const { blockBytes } = request;
  const all = knownOf(old, request, unknown);
  const width = all.base.length / all.known.length;
  const perBlock = partsPerBlock(blockBytes) * 4;
  const results: DeltaResult[] = [];
  const content: Buffer[] = [];
  files.files.set(3, disk);
  for (let done = 0; done < all.known.length; ) {
    const offset = done * blockBytes;
    const length = disk.length - offset;
    used.slot(1).fill(0xee);
    const result = doJob(used, "delta", {
      ...{ ...request, slot: 1, file: "image", pieces: [{ runs: [{ kind: "file", fd: 3, offset, length }], length }] },
      base: all.base.subarray(done * width),
      known: all.known.subarray(done),
      parts: all.parts.subarray(done * perBlock),
    });
    expect(result.states.length).toBeGreaterThan(0);
    done += result.states.length;
    results.push(result);
    content.push(rawOf(used, result));
  }
  return { results, content: Buffer.concat(content) };
}

function rawOf(from: Lane, { shipment }: DeltaResult): Buffer {
  if (shipment === undefined) return Buffer.alloc(0);
  const packed = from.slot(1).subarray(shipment.payloadOffset, shipment.payloadOffset + shipment.payloadBytes);
  const raw = Buffer.alloc(shipment.rawBytes);
  from.codecs.get(shipment.codec).decompress(packed, raw);
  return raw;
}

/** Parts that are to travel of each block, written down plainly. */
function partsToSend(block: Buffer, was: Buffer, isKnown: boolean): number[] {
  const old = partsOf(was);
  const all = partsOf(block).map((_part, part) => part);
  return isKnown ? all.filter((part) => !partsOf(block)[part]?.equals(old[part] ?? block)) : all;
}

describe("delta", () => {
  test("any change of any content: digests, states and parts are what they say, in one job or in many", () => {
    fc.assert(
      fc.property(
        fc.record({ blockBytes: anyBlockBytes, digestKind: anyDigest, codec: anyCodec }),
        fc.record({
          length: fc.oneof(fc.integer({ min: 1, max: 3 * MIB }), fc.constantFrom(64 * KIB, MIB, 2 * MIB, 2 * MIB + 1)),
          change: anyPatches,
          unknownEach: fc.integer({ min: 2, max: 9 }),
        }),
        fc.boolean(),
        ({ blockBytes, digestKind, codec }, { length, change, unknownEach }, usePlain) => {
          // Nothing of zeros at the receiver: that is not for this job.
          const old = Buffer.alloc(length, 7);
          const disk = patched(old, change);
          const blocks = blocksOf(disk, blockBytes);
          const was = blocksOf(old, blockBytes);
          const unknown = new Set(blocks.flatMap((_block, index) => (index % unknownEach === 1 ? [index] : [])));
          const used = usePlain ? plain : lane;
          const { results, content } = runThrough(used, disk, old, { blockBytes, digestKind, codec }, unknown);
          const states = blocks.map((block, index) => {
            if (block.equals(was[index] ?? block)) return blockState.same;
            return block.every((byte) => byte === 0) ? blockState.zero : blockState.shipped;
          });
          expect(results.flatMap((result) => [...result.states])).toEqual(states);
          expect(hashOf(Buffer.concat(results.map(({ digests }) => digests)))).toBe(
            hashOf(Buffer.concat(blocks.map((block) => digestOf(digestKind, block)))),
          );
          const shipped = blocks.flatMap((block, index) =>
            states[index] === blockState.shipped
              ? [{ index, block, parts: partsToSend(block, was[index] ?? block, !unknown.has(index)) }]
              : [],
          );
          let before = 0;
          const picked = results.flatMap(({ states: looked, shipment }) => {
            before += looked.length;
            return (shipment?.picked ?? []).map((nth) => nth + before - looked.length);
          });
          expect(picked).toEqual(shipped.map(({ index }) => index));
          expect(hashOf(Buffer.concat(results.map(({ shipment }) => shipment?.masks ?? new Uint8Array())))).toBe(
            hashOf(Buffer.concat(shipped.map(({ parts }) => maskOf(parts, blockBytes)))),
          );
          expect(hashOf(Buffer.concat(results.map(({ shipment }) => shipment?.digests ?? new Uint8Array())))).toBe(
            hashOf(Buffer.concat(shipped.map(({ block }) => digestOf(digestKind, block)))),
          );
          expect(hashOf(content)).toBe(
            hashOf(
              Buffer.concat(shipped.flatMap(({ block, parts }) => parts.map((part) => partsOf(block)[part] ?? block))),
            ),
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  const shape = { blockBytes: 64 * KIB, digestKind: "xxh64", codec: "stored" } as const;

  test("a job goes on reading as long as there is room for what differs", () => {
    // 4 MiB of which a part of each block differs: one job. All of it differs: what fits the slot.
    const old = Buffer.alloc(4 * MIB, 7);
    const scattered = Buffer.from(old);
    for (let at = 0; at < scattered.length; at += shape.blockBytes) scattered[at + 5 * PART_BYTES] = 8;
    const few = runThrough(lane, scattered, old, shape);
    expect(few.results.map(({ states }) => states.length)).toEqual([64]);
    expect(few.content.length).toBe(64 * PART_BYTES);
    const whole = runThrough(lane, Buffer.alloc(4 * MIB, 8), old, shape);
    expect(whole.results.map(({ states }) => states.length)).toEqual([16, 16, 16, 16]);
  });

  test("content that lies in the slot is judged like content of a file", () => {
    const old = Buffer.alloc(MIB, 7);
    const disk = patched(old, [
      { at: 0.1, length: 9_000, fill: 1, noise: true },
      { at: 0.7, length: 100, fill: 0, noise: false },
    ]);
    const fromFile = runThrough(lane, disk, old, shape);
    lane.slot(0).fill(0xee);
    lane.slot(0).set(disk, areaA);
    const half = MIB / 2;
    const pieces = [
      { runs: undefined, length: half },
      { runs: undefined, length: half },
    ];
    const inPlace = doJob(lane, "delta", { ...shape, ...knownOf(old, shape), slot: 0, file: "image", pieces });
    expect([inPlace]).toEqual(fromFile.results);
    expect(lane.slot(0).subarray(areaA, areaA + fromFile.content.length)).toEqual(Uint8Array.from(fromFile.content));
  });

  test("a block whose parts have the 32 bits of the old ones goes whole", () => {
    const old = Buffer.alloc(128 * KIB, 7);
    const disk = Buffer.alloc(128 * KIB, 8);
    // As if all of them met.
    const { parts } = knownOf(disk, shape);
    const { base, known } = knownOf(old, shape);
    files.files.set(3, disk);
    const { length } = disk;
    const pieces = [{ runs: [{ kind: "file", fd: 3, offset: 0, length } as const], length }];
    const { shipment } = doJob(lane, "delta", { ...shape, base, known, parts, slot: 1, file: "image", pieces });
    expect(shipment?.rawBytes).toBe(128 * KIB);
  });

  test("a file that ends early is no zeros", () => {
    const old = Buffer.alloc(128 * KIB, 7);
    files.files.set(3, Buffer.alloc(100 * KIB, 8));
    const pieces = [{ runs: [{ kind: "file", fd: 3, offset: 0, length: 128 * KIB } as const], length: 128 * KIB }];
    expect(() => doJob(lane, "delta", { ...shape, ...knownOf(old, shape), slot: 1, file: "image", pieces })).toThrow(
      expect.objectContaining({ code: "image-truncated" }),
    );
  });
});
