/** A disk of any bytes, changed part by part as a receiver changes it. */
import { punchBlock, readBlock, writeBlock } from "./in-replica.ts";
import { createHash } from "node:crypto";
import { KIB } from "../../src/base/units.ts";
import { fileError } from "../../src/replica/file-error.ts";
import type { DiskWriter, PointReader, Store } from "../../src/replica/store.ts";
import type { LaneStorage } from "../../src/storage/seam.ts";
import { blockBytes, digestOf, diskName, keepParts } from "./simulated-store.ts";

export const partBytes = 4 * KIB;

/** Parts by block, a bit a part. */
export type Masks = Map<number, number>;

export function shaOf(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

/**
 * Makes the disk hold `wanted`, which is as long as the disk: old parts to the undo log, new ones to the replica, digests to the table. A failure poisons.
 * Returns what was kept of each block.
 */
export function applyBytes(writer: DiskWriter, lanes: LaneStorage, wanted: Buffer): Promise<Masks> {
  const all = function* (): Generator<readonly [number, Buffer]> {
    for (let block = 0; block * blockBytes < wanted.length; block++) {
      yield [block, wanted.subarray(block * blockBytes, (block + 1) * blockBytes)];
    }
  };
  return applyBlocks(writer, lanes, all());
}

/** The same for some blocks; others stay as they are. */
export async function applyBlocks(
  writer: DiskWriter,
  lanes: LaneStorage,
  wanted: Iterable<readonly [block: number, bytes: Buffer]>,
): Promise<Masks> {
  const kept: Masks = new Map();
  for (const [block, bytes] of wanted) {
    const digest = digestOf(bytes);
    const base = Buffer.from(writer.table.get(block));
    if (digest.equals(base)) continue;
    try {
      kept.set(block, await putBytes(writer, lanes, { block, bytes, digest, base }));
    } catch (error) {
      writer.poison();
      throw fileError(error, "write-failed", `writing block ${block}`);
    }
  }
  return kept;
}

async function putBytes(
  writer: DiskWriter,
  lanes: LaneStorage,
  change: { readonly block: number; readonly bytes: Buffer; readonly digest: Buffer; readonly base: Buffer },
): Promise<number> {
  const { block, bytes, digest, base } = change;
  const old = Buffer.alloc(bytes.length);
  readBlock(writer, lanes, block, old);
  const zero = digest.every((byte) => byte === 0);
  let mask = 0;
  for (let at = 0, bit = 1; at < bytes.length; at += partBytes, bit <<= 1) {
    const end = Math.min(at + partBytes, bytes.length);
    if (zero || bytes.compare(old, at, end, at, end) !== 0) mask |= bit;
  }
  await keepParts(writer, lanes, block, mask, base);
  if (zero) {
    punchBlock(writer, lanes, block, bytes.length);
    writer.table.clear(block, 1);
    return mask;
  }
  const pieces: { within: number; bytes: Uint8Array }[] = [];
  for (let at = 0, bit = 1; at < bytes.length; at += partBytes, bit <<= 1) {
    if ((mask & bit) !== 0) pieces.push({ within: at, bytes: bytes.subarray(at, at + partBytes) });
  }
  await writeBlock(writer, lanes, block, pieces);
  writer.table.set(block, 1, digest);
  return mask;
}

export async function withPoint<T>(
  store: Store,
  point: number | "newest",
  use: (reader: PointReader) => Promise<T>,
): Promise<T> {
  const reader = await store.openPoint(diskName, point);
  try {
    return await use(reader);
  } finally {
    await reader.close();
  }
}

/** All of a point. */
export function readPoint(store: Store, point: number | "newest"): Promise<Buffer> {
  return withPoint(store, point, async (reader) => {
    const bytes = Buffer.alloc(reader.sizeBytes, 0xee);
    await reader.read(bytes, 0);
    return bytes;
  });
}
