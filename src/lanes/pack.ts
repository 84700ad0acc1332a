/** The pack job: parts that were found to differ become one payload. */
import { forEachRunAcross } from "../base/part-mask.ts";
import { invariant } from "../base/errors.ts";
import { maskBytes, PART_BYTES } from "../base/units.ts";
import type { BlockStretch, PackRequest, PackResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { RunReader } from "./reading.ts";
import { packRaw } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

export function pack(lane: Lane, request: PackRequest): PackResult {
  const { blockBytes, stretches, masks, rawBytes } = request;
  const slot = lane.slot(request.slot);
  if (stretches !== undefined) {
    const target = slot.subarray(areaA, areaA + rawBytes);
    const perMask = maskBytes(blockBytes);
    let end = 0;
    let block = 0;
    for (const stretch of stretches) {
      const ofStretch = masks.subarray(block * perMask, (block + stretch.blocks) * perMask);
      end += readParts(lane, request, stretch, ofStretch, target.subarray(end));
      block += stretch.blocks;
    }
    invariant(end === rawBytes, "a payload has the parts of its masks");
  }
  return packRaw(lane, slot, rawBytes, request.codec);
}

/** Reads the parts one behind the other, padded with zeros at the end of the disk. Returns their bytes. */
function readParts(
  lane: Lane,
  { blockBytes, file }: PackRequest,
  { length, runs }: BlockStretch,
  masks: Uint8Array,
  target: Uint8Array,
): number {
  const reader = new RunReader(lane, runs, { file });
  let position = 0;
  let end = 0;
  forEachRunAcross(masks, blockBytes, (first, count) => {
    const offset = first * PART_BYTES;
    const piece = target.subarray(end, end + count * PART_BYTES);
    const bytes = Math.max(0, Math.min(piece.length, length - offset));
    reader.skip(offset - position);
    reader.fill(piece.subarray(0, bytes));
    if (bytes < piece.length) lane.zero(piece.subarray(bytes));
    position = offset + bytes;
    end += piece.length;
  });
  return end;
}
