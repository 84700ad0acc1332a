/** What every BlockReader and BlockWriter must do, as suites over a subject. */
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import type { BlockReader, BlockWriter, Extent } from "../../src/image/block-device.ts";

export interface Piece {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

interface Subject {
  readonly name: string;
  readonly sectorBytes: 512 | 4096;
  /** Sizes are multiples of it: 1 where any size goes. */
  readonly sizeUnit: number;
  /** Largest size to try, default 2^41. */
  readonly sizeBytesMax?: number;
  /** Why it cannot run here; undefined: it can. */
  readonly skip?: string | undefined;
}

export interface ReaderSubject extends Subject {
  /** A disk of zeros but for the pieces. */
  open(sizeBytes: number, pieces: readonly Piece[]): Promise<BlockReader>;
  /** After each test: removes what `open` made. The suite has closed the reader. */
  clean(): Promise<void>;
}

export interface WriterSubject extends Subject {
  /** A disk of zeros. */
  create(sizeBytes: number): Promise<BlockWriter>;
  clean(): Promise<void>;
}

const blockBytes = 64 * 1024;

/** Bytes that are never zero, so that a hole cannot pass for them. */
export function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let index = 0; index < length; index++) bytes[index] = 1 + ((seed * 31 + index * 7) % 255);
  return bytes;
}

export async function readRange(reader: BlockReader, offset: number, length: number): Promise<Uint8Array> {
  // Dirty before: a reader that fills less than all shows.
  const target = new Uint8Array(length).fill(0xee);
  await reader.read(target, offset);
  return target;
}

/** The extents of a range, checked to be ascending, contiguous and covering. */
export async function extentsOf(reader: BlockReader, offset: number, length: number): Promise<Extent[]> {
  const extents: Extent[] = [];
  let position = offset;
  for await (const extent of reader.extents(offset, length)) {
    expect(extent.offset).toBe(position);
    expect(extent.length).toBeGreaterThan(0);
    position += extent.length;
    extents.push(extent);
  }
  expect(position).toBe(offset + length);
  return extents;
}

function describeSubject(subject: Subject, kind: string, tests: () => void): void {
  const reason = subject.skip === undefined ? "" : ` (skipped: ${subject.skip})`;
  describe.skipIf(subject.skip !== undefined)(
    `${kind}: ${subject.name}, sectors of ${subject.sectorBytes}${reason}`,
    tests,
  );
}

function sizesOf(subject: Subject): number[] {
  const sizes = [0, 1, 511, 512, 4096, blockBytes, 3 * blockBytes + 512, 5 * blockBytes + 4096, 2 * blockBytes + 777];
  return [...new Set(sizes.map((size) => Math.ceil(size / subject.sizeUnit) * subject.sizeUnit))];
}

export function readerConformance(subject: ReaderSubject): void {
  describeSubject(subject, "reader", () => {
    let reader: BlockReader | undefined;
    const open = async (sizeBytes: number, pieces: readonly Piece[]): Promise<BlockReader> => {
      reader = await subject.open(sizeBytes, pieces);
      return reader;
    };
    afterEach(async () => {
      await reader?.close();
      reader = undefined;
      await subject.clean();
    });

    test.each(sizesOf(subject))(
      "C-22 a disk of %d bytes has that size and reads to its last byte",
      async (sizeBytes) => {
        const content = pattern(sizeBytes, sizeBytes);
        const disk = await open(sizeBytes, sizeBytes === 0 ? [] : [{ offset: 0, bytes: content }]);
        expect(disk.sizeBytes).toBe(sizeBytes);
        expect(disk.sectorBytes).toBe(subject.sectorBytes);
        expect(Buffer.compare(await readRange(disk, 0, sizeBytes), content)).toBe(0);
        expect(await readRange(disk, sizeBytes, 0)).toHaveLength(0);
        if (sizeBytes > 0) {
          expect(await readRange(disk, sizeBytes - 1, 1)).toEqual(content.subarray(sizeBytes - 1));
        }
        await extentsOf(disk, 0, sizeBytes);
        await expect(disk.read(new Uint8Array(1), sizeBytes)).rejects.toThrow(InvariantError);
        await expect(disk.read(new Uint8Array(2), sizeBytes - 1)).rejects.toThrow(InvariantError);
        await expect(disk.read(new Uint8Array(1), -1)).rejects.toThrow(InvariantError);
        await expect(extentsOf(disk, 0, sizeBytes + 1)).rejects.toThrow(InvariantError);
      },
    );

    test("offsets beyond 2^31, 2^32 and 2^40 are exact", async () => {
      const sizeBytes = subject.sizeBytesMax ?? 2 ** 41;
      const offsets = [2 ** 31, 2 ** 32, 2 ** 40].filter((offset) => offset + 100 <= sizeBytes);
      const pieces = offsets.map((offset, index) => ({ offset: offset - 50, bytes: pattern(100, index + 1) }));
      const disk = await open(sizeBytes, pieces);
      for (const { offset, bytes } of pieces) {
        const around = await readRange(disk, offset - 50, 200);
        expect(around.subarray(0, 50)).toEqual(new Uint8Array(50));
        expect(around.subarray(50, 150)).toEqual(bytes);
        expect(around.subarray(150)).toEqual(new Uint8Array(50));
      }
      const extents = await extentsOf(disk, 0, sizeBytes);
      for (const { offset } of pieces) {
        const holder = extents.find((extent) => offset < extent.offset + extent.length);
        expect(holder?.kind).toBe("data");
      }
    });

    test("extents are cut to the range that was asked for", async () => {
      const disk = await open(8 * blockBytes, [{ offset: 3 * blockBytes, bytes: pattern(2 * blockBytes, 5) }]);
      const inside = await extentsOf(disk, 3 * blockBytes + 100, blockBytes);
      expect(inside.every((extent) => extent.kind === "data")).toBe(true);
      await extentsOf(disk, 100, 4 * blockBytes);
      expect(await extentsOf(disk, 4 * blockBytes, 0)).toEqual([]);
    });

    test("what is not data reads as zeros, and runs lead to the same bytes", async () => {
      const pieces = [0, 5, 6, 11].map((block) => ({ offset: block * blockBytes + 100, bytes: pattern(3000, block) }));
      const disk = await open(12 * blockBytes, pieces);
      for (const extent of await extentsOf(disk, 0, disk.sizeBytes)) {
        if (extent.kind === "data") continue;
        const bytes = await readRange(disk, extent.offset, extent.length);
        expect(bytes.every((byte) => byte === 0)).toBe(true);
      }
      const runs = disk.runs?.(100, disk.sizeBytes - 100);
      const covered = runs?.reduce((sum, run) => sum + run.length, 0) ?? disk.sizeBytes - 100;
      expect(covered).toBe(disk.sizeBytes - 100);
    });

    test("reads into shared memory", async () => {
      const disk = await open(blockBytes, [{ offset: 0, bytes: pattern(blockBytes, 3) }]);
      const target = new Uint8Array(new SharedArrayBuffer(blockBytes + 8), 8, blockBytes);
      await disk.read(target, 0);
      expect(Buffer.compare(target, pattern(blockBytes, 3))).toBe(0);
    });
  });
}

type Operation =
  | { readonly kind: "write"; readonly offset: number; readonly length: number; readonly seed: number }
  | { readonly kind: "zero" | "read"; readonly offset: number; readonly length: number };

function operations(sizeBytes: number): fc.Arbitrary<Operation[]> {
  const unit = fc.constantFrom(1, 512, 4096, blockBytes);
  const range = fc.tuple(fc.nat(sizeBytes), fc.nat(3 * blockBytes), unit).map(([at, long, grain]) => {
    const offset = Math.floor(at / grain) * grain;
    return { offset, length: Math.min(Math.ceil(long / grain) * grain, sizeBytes - offset) };
  });
  const operation = fc
    .tuple(fc.constantFrom("write" as const, "zero" as const, "read" as const), range, fc.nat(200))
    .map(([kind, where, seed]): Operation => (kind === "write" ? { kind, ...where, seed } : { kind, ...where }));
  return fc.array(operation, { minLength: 1, maxLength: 12 });
}

async function runAgainstModel(disk: BlockWriter, model: Uint8Array, steps: readonly Operation[]): Promise<void> {
  for (const step of steps) {
    const end = step.offset + step.length;
    if (step.kind === "write") {
      const bytes = pattern(step.length, step.seed);
      await disk.write(bytes, step.offset);
      model.set(bytes, step.offset);
    } else if (step.kind === "zero") {
      await disk.zero(step.offset, step.length);
      model.fill(0, step.offset, end);
    } else {
      const bytes = await readRange(disk, step.offset, step.length);
      expect(Buffer.compare(bytes, model.subarray(step.offset, end))).toBe(0);
    }
  }
  expect(Buffer.compare(await readRange(disk, 0, disk.sizeBytes), model)).toBe(0);
  for (const extent of await extentsOf(disk, 0, disk.sizeBytes)) {
    if (extent.kind === "data") continue;
    const claimed = model.subarray(extent.offset, extent.offset + extent.length);
    expect(claimed.every((byte) => byte === 0)).toBe(true);
  }
}

export function writerConformance(subject: WriterSubject): void {
  readerConformance({
    ...subject,
    async open(sizeBytes, pieces) {
      const disk = await subject.create(sizeBytes);
      for (const piece of pieces) await disk.write(piece.bytes, piece.offset);
      return disk;
    },
  });
  describeSubject(subject, "writer", () => {
    let disk: BlockWriter | undefined;
    const create = async (sizeBytes: number): Promise<BlockWriter> => {
      disk = await subject.create(sizeBytes);
      return disk;
    };
    afterEach(async () => {
      await disk?.close();
      disk = undefined;
      await subject.clean();
    });

    test("any order of writes, zeros and reads agrees with a model", async () => {
      const sizeBytes = Math.ceil((6 * blockBytes + 777) / subject.sizeUnit) * subject.sizeUnit;
      const writer = await create(sizeBytes);
      await fc.assert(
        fc.asyncProperty(operations(sizeBytes), async (steps) => {
          await writer.zero(0, sizeBytes);
          await runAgainstModel(writer, new Uint8Array(sizeBytes), steps);
        }),
        { numRuns: 60 },
      );
    });

    test.each([512 + 1, 4096 + 1, 1024 * 1024 + 512])(
      "C-41 a tail that becomes zero is zero to its last byte (%d)",
      async (wanted) => {
        const sizeBytes = Math.ceil(wanted / subject.sizeUnit) * subject.sizeUnit;
        const writer = await create(sizeBytes);
        await writer.write(new Uint8Array(sizeBytes).fill(0xbb), 0);
        const tail = Math.min(sizeBytes, 1 + (sizeBytes % 4096));
        await writer.zero(sizeBytes - tail, tail);
        await writer.flush();
        const bytes = await readRange(writer, 0, sizeBytes);
        expect(bytes.subarray(0, sizeBytes - tail).every((byte) => byte === 0xbb)).toBe(true);
        expect(bytes.subarray(sizeBytes - tail).every((byte) => byte === 0)).toBe(true);
        await writer.zero(0, sizeBytes);
        expect((await readRange(writer, 0, sizeBytes)).every((byte) => byte === 0)).toBe(true);
      },
    );

    test("C-58 writes smaller than a sector, across sectors", async () => {
      const writer = await create(4 * blockBytes);
      await writer.write(pattern(512, 1), 512);
      await writer.write(pattern(7, 2), 4093);
      await writer.flush();
      const bytes = await readRange(writer, 0, 8192);
      expect(bytes.subarray(512, 1024)).toEqual(pattern(512, 1));
      expect(bytes.subarray(4093, 4100)).toEqual(pattern(7, 2));
      expect(bytes.subarray(1024, 4093).every((byte) => byte === 0)).toBe(true);
    });

    test("calls outside the disk are refused and change nothing", async () => {
      const writer = await create(blockBytes);
      await expect(writer.write(new Uint8Array(2).fill(1), blockBytes - 1)).rejects.toThrow(InvariantError);
      await expect(writer.zero(0, blockBytes + 1)).rejects.toThrow(InvariantError);
      await expect(writer.write(new Uint8Array(1), -1)).rejects.toThrow(InvariantError);
      await expect(writer.write(new Uint8Array(1), 0.5)).rejects.toThrow(InvariantError);
      expect((await readRange(writer, 0, blockBytes)).every((byte) => byte === 0)).toBe(true);
    });
  });
}
