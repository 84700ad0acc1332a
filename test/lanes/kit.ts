/** A lane over files in memory, with faults on demand; and the same jobs written down plainly, to compare with. */
import { createHash } from "node:crypto";
import fc from "fast-check";
import { digestBytes, type DigestKind, KIB, maskBytes, MIB, PART_BYTES } from "../../src/base/units.ts";
import { createBufferPool } from "../../src/base/buffer-pool.ts";
import { PART_DIGEST_BYTES } from "../../src/codec/digest-sizes.ts";
import { createDigester, type Digester } from "../../src/codec/digest.ts";
import { createLane, type Lane } from "../../src/lanes/lane.ts";
import { laneRoomBytes, slotBytes } from "../../src/lanes/slot-layout.ts";
import type { LaneStorage } from "../../src/storage/seam.ts";

export interface MemoryFiles extends Omit<LaneStorage, "writeDirect"> {
  readonly files: Map<number, Buffer>;
  /** Writes, in order: where and how long. */
  readonly writes: { readonly fd: number; readonly offset: number; readonly length: number }[];
  readonly punched: { readonly offset: number; readonly length: number }[];
  /** An errno for the next calls of this kind. */
  failing: Partial<Record<"read" | "write" | "punch" | "datasync", string>>;
  canPunch: boolean;
  writeDirect: LaneStorage["writeDirect"] | undefined;
}

export function memoryFiles(): MemoryFiles {
  const files = new Map<number, Buffer>();
  const content = (fd: number): Buffer => files.get(fd) ?? Buffer.alloc(0);
  const check = (kind: keyof MemoryFiles["failing"]): void => {
    const errno = made.failing[kind];
    if (errno !== undefined) throw Object.assign(new Error(errno), { code: errno });
  };
  const made: MemoryFiles = {
    files,
    writes: [],
    punched: [],
    failing: {},
    canPunch: true,
    writeDirect: undefined,
    read(fd, target, offset) {
      check("read");
      const piece = content(fd).subarray(offset, offset + target.length);
      target.set(piece);
      return piece.length;
    },
    write(fd, source, offset) {
      check("write");
      made.writes.push({ fd, offset, length: source.length });
      if (offset + source.length > content(fd).length) throw Object.assign(new Error("EFBIG"), { code: "EFBIG" });
      content(fd).set(source, offset);
    },
    punch(fd, offset, length) {
      check("punch");
      if (!made.canPunch) return false;
      made.punched.push({ offset, length });
      content(fd).fill(0, offset, offset + length);
      return true;
    },
    datasync: () => {
      check("datasync");
    },
    startWriteback: () => {},
    dropCache: () => {},
    readAhead: () => {},
  };
  return made;
}

export const slotCount = 2;

export async function memoryLane(storage: MemoryFiles | LaneStorage, lz4?: "wasm"): Promise<Lane> {
  const { memory, extraAt: roomAt } = createBufferPool({ slotBytes, slotCount, extraBytes: laneRoomBytes });
  return await createLane({ memory, roomAt, storage: storage as LaneStorage, lz4 });
}

/** The same over memory that WebAssembly cannot have. */
export async function plainLane(storage: MemoryFiles): Promise<Lane> {
  const roomAt = slotCount * slotBytes;
  const memory = { buffer: new SharedArrayBuffer(roomAt + laneRoomBytes), wasm: undefined };
  return await createLane({ memory, roomAt, storage: storage as LaneStorage });
}

/** Digesters for expectations, apart from the lane's. */
export const digesters: Readonly<Record<DigestKind, Digester>> = {
  xxh64: await createDigester("xxh64"),
  sha256: await createDigester("sha256"),
};

/** Part digests of a block, as numbers. */
export function partDigestsOf(block: Buffer): number[] {
  const digests = Buffer.alloc((block.length / PART_BYTES) * PART_DIGEST_BYTES);
  digesters.xxh64.parts(block, digests, 0);
  return partsOf(block).map((_part, index) => digests.readUInt32LE(index * PART_DIGEST_BYTES));
}

export function digestOf(kind: DigestKind, block: Uint8Array): Buffer {
  const digest = Buffer.alloc(digestBytes(kind));
  digesters[kind].digest(block, digest, 0);
  return digest;
}

/** Blocks of a disk, the last one padded. */
export function blocksOf(disk: Buffer, blockBytes: number): Buffer[] {
  const blocks: Buffer[] = [];
  for (let at = 0; at < disk.length; at += blockBytes) {
    const block = Buffer.alloc(blockBytes);
    disk.copy(block, 0, at, Math.min(disk.length, at + blockBytes));
    blocks.push(block);
  }
  return blocks;
}

export function partsOf(block: Buffer): Buffer[] {
  const parts: Buffer[] = [];
  for (let at = 0; at < block.length; at += PART_BYTES) parts.push(block.subarray(at, at + PART_BYTES));
  return parts;
}

export function maskOf(parts: readonly number[], blockBytes: number): Buffer {
  const mask = Buffer.alloc(maskBytes(blockBytes));
  for (const part of parts) mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part & 7));
  return mask;
}

/** Numbers of the parts in which two blocks differ. */
export function differingPartsOf(before: Buffer, after: Buffer): number[] {
  const old = partsOf(before);
  return partsOf(after).flatMap((part, index) => (part.equals(old[index] ?? part) ? [] : [index]));
}

export function hashOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

// Arbitraries -------------------------------------------------------------------------------------------------------

export const anyBlockBytes: fc.Arbitrary<number> = fc.constantFrom(16 * KIB, 64 * KIB, MIB);
export const anyDigest: fc.Arbitrary<DigestKind> = fc.constantFrom("xxh64", "sha256");
export const anyCodec: fc.Arbitrary<"stored" | "lz4"> = fc.constantFrom("stored", "lz4");
/** An extent: at most 1 MiB, often with an end that fits nothing. */
export const anyLength: fc.Arbitrary<number> = fc.oneof(
  fc.constantFrom(1, 4_095, 4_096, 4_097, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB),
  fc.integer({ min: 1, max: MIB }),
);

export interface Patch {
  readonly at: number;
  readonly length: number;
  readonly fill: number;
  readonly noise: boolean;
}

/** Stretches of content, by share of the disk. `fill` 0 without noise: zeros. */
export const anyPatches: fc.Arbitrary<readonly Patch[]> = fc.array(
  fc.record({
    at: fc.double({ min: 0, max: 0.999, noNaN: true }),
    length: fc.oneof(fc.integer({ min: 1, max: 9_000 }), fc.integer({ min: 1, max: 400_000 })),
    fill: fc.constantFrom(0, 0, 1, 0x5a, 255),
    noise: fc.boolean(),
  }),
  { maxLength: 6 },
);

export function patched(disk: Buffer, patches: readonly Patch[]): Buffer {
  const changed = Buffer.from(disk);
  for (const { at, length, fill, noise } of patches) {
    const start = Math.floor(at * changed.length);
    const end = Math.min(changed.length, start + length);
    let state = (start * 2_654_435_761 + length) >>> 0;
    for (let index = start; index < end; index++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      changed[index] = noise && fill !== 0 ? state >>> 24 : fill;
    }
  }
  return changed;
}
