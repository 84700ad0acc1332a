/** Reads runs of files in a lane. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { FileRun } from "../image/block-device.ts";
import type { Lane } from "./lane.ts";

/**
 * Fills `target` from `runs`, which cover at least its length. A short read is `image-truncated`, never zeros; a failed one
 * `image-unreadable` with file and offset.
 */
export function readRuns(
  lane: Lane,
  runs: readonly FileRun[],
  target: Uint8Array,
  options: { readonly file: string; readonly dropCache: boolean },
): void {
  let filled = 0;
  for (const run of runs) {
    const length = Math.min(run.length, target.length - filled);
    if (length <= 0) break;
    const piece = target.subarray(filled, filled + length);
    if (run.kind === "zero") piece.fill(0);
    else readRun(lane, run.fd, run.offset, piece, options);
    filled += length;
  }
  if (filled < target.length) {
    throw new ReplicationError(
      "image-truncated",
      `${options.file}: the image ends ${target.length - filled} bytes early`,
    );
  }
}

function readRun(
  lane: Lane,
  fd: number,
  offset: number,
  target: Uint8Array,
  options: { readonly file: string; readonly dropCache: boolean },
): void {
  const { storage } = lane;
  const drop = options.dropCache && storage.isCached?.(fd, offset) === false;
  let count: number;
  try {
    count = storage.read(fd, target, offset);
  } catch (error) {
    throw new ReplicationError(
      "image-unreadable",
      `${options.file}: reading ${target.length} bytes at offset ${offset} failed (${errnoOf(error) ?? String(error)})`,
      { cause: error, details: { offset, errno: errnoOf(error) ?? null } },
    );
  }
  if (count < target.length) {
    throw new ReplicationError(
      "image-truncated",
      `${options.file}: the file ends at ${offset + count}, ${target.length - count} bytes before what was to be read; it was cut short or is being changed`,
      { details: { offset: offset + count } },
    );
  }
  if (drop) storage.dropCache(fd, offset, target.length);
}
