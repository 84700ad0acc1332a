/** Blocks of a replica by hand, at the places they have in its file: what lanes do for a receiver. */
import type { DiskWriter } from "../../src/replica/store.ts";
import type { LaneStorage } from "../../src/storage/seam.ts";

/** Bytes of the replica's file from the block on, as many as it has; of a block that lies nowhere zeros. */
export function readBlock(writer: DiskWriter, lanes: LaneStorage, block: number, target: Uint8Array): number {
  const [place = block] = writer.places([block]) ?? [];
  if (place >= 0) return lanes.read(writer.replicaFd, target, place * writer.record.blockBytes);
  target.fill(0);
  return target.length;
}

/** Pieces of one block, each behind `within` bytes of it. */
export async function writeBlock(
  writer: DiskWriter,
  lanes: LaneStorage,
  block: number,
  pieces: Iterable<{ readonly within: number; readonly bytes: Uint8Array }>,
): Promise<void> {
  const claimed = writer.claim([block]);
  const [place = block] = claimed === undefined ? [] : await claimed;
  const at = place * writer.record.blockBytes;
  for (const { within, bytes } of pieces) lanes.write(writer.replicaFd, bytes, at + within);
}

export function punchBlock(writer: DiskWriter, lanes: LaneStorage, block: number, length: number): void {
  const [place = block] = writer.places([block]) ?? [];
  if (place >= 0) lanes.punch(writer.replicaFd, place * writer.record.blockBytes, length);
}
