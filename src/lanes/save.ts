/** The receiver's jobs for old content: read it before it is overwritten, append it to an undo log. */
import { countParts, hasPart, isFullMask } from "../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { digestBytes, maskBytes, PART_BYTES } from "../base/units.ts";
import { readOld, writing } from "./apply.ts";
import type { AppendRequest, SaveRequest, SaveResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { areaA, areaABytes } from "./slot-layout.ts";

/** Bytes appended at least this long are handed to the device at once: their sync follows. */
const writebackBytesMin = 64 * 1024;

export function save(lane: Lane, request: SaveRequest): SaveResult {
  const { blockBytes, blocks, masks, base } = request;
  const area = lane.slot(request.slot).subarray(areaA, areaA + areaABytes);
  const width = digestBytes(request.digestKind);
  const perMask = maskBytes(blockBytes);
  const damaged = new Uint8Array(blocks.length);
  const packed = new Uint8Array(blocks.length);
  const contentBytes = new Uint32Array(blocks.length);
  const checksums = new Uint32Array(blocks.length);
  const lz4 = request.codec === "lz4" ? lane.codecs.get("lz4") : undefined;
  const number = Buffer.alloc(8);
  let end = 0;
  for (const [index, block] of blocks.entries()) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const rawBytes = countParts(mask) * PART_BYTES;
    const whole = isFullMask(mask, blockBytes);
    const target = area.subarray(end, end + rawBytes);
    const content = whole ? target : lane.scratch.subarray(0, blockBytes);
    // What a failed read leaves is not to be taken for the old content of another block.
    content.fill(0);
    if (!readOld(lane, request, block, base.subarray(index * width, (index + 1) * width), content)) damaged[index] = 1;
    if (!whole) gather(content, mask, target);
    let kept = rawBytes;
    if (lz4 !== undefined) {
      const room = lane.scratch.subarray(0, rawBytes - 1);
      const shrunk = lz4.compress(target, room);
      if (shrunk > 0) {
        target.set(room.subarray(0, shrunk));
        packed[index] = 1;
        kept = shrunk;
      }
    }
    number.writeBigUInt64LE(BigInt(block));
    contentBytes[index] = kept;
    checksums[index] = crc32(target.subarray(0, kept), crc32(number, request.seed));
    end += kept;
  }
  return { damaged, contentBytes, packed, checksums };
}

function gather(block: Uint8Array, mask: Uint8Array, target: Uint8Array): void {
  let at = 0;
  for (let part = 0; at < target.length; part++) {
    if (!hasPart(mask, part)) continue;
    target.set(block.subarray(part * PART_BYTES, (part + 1) * PART_BYTES), at);
    at += PART_BYTES;
  }
}

export function append(lane: Lane, request: AppendRequest): null {
  const { path, fd, offset, head, contentBytes } = request;
  writing(path, offset, () => {
    // The head last: who reads the log meanwhile takes a batch with a good head for a whole one.
    if (contentBytes > 0) {
      const content = lane.slot(request.slot).subarray(areaA, areaA + contentBytes);
      lane.storage.write(fd, content, offset + head.length);
    }
    lane.storage.write(fd, head, offset);
  });
  if (contentBytes >= writebackBytesMin) lane.storage.startWriteback(fd, offset, head.length + contentBytes);
  return null;
}
