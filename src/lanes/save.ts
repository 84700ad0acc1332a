/** The receiver's jobs for old content: read it before it is overwritten, append it to an undo log. */
import { countParts, forEachRun, isFullMask } from "../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { digestBytes, maskBytes, PART_BYTES } from "../base/units.ts";
import { invariant } from "../base/errors.ts";
import type { Digester } from "../codec/digest.ts";
import { checkNew, overlay, readOld, unpack, writing } from "./apply.ts";
import { applyState, type AppendRequest, type ReceivedFrame, type SaveRequest, type SaveResult } from "./jobs.ts";
import { DIRECT_BYTES } from "../storage/seam.ts";
import type { Lane } from "./lane.ts";
import { areaA, areaABytes } from "./slot-layout.ts";

/** Content at least this long is given to the device at once: its sync follows. */
const longAppendBytes = 64 * 1024;

export function save(lane: Lane, request: SaveRequest): SaveResult {
  const { blockBytes, blocks, masks, base, frame } = request;
  const area = lane.slot(request.slot).subarray(request.contentAt, request.contentAt + areaABytes);
  const width = digestBytes(request.digestKind);
  const perMask = maskBytes(blockBytes);
  const damaged = new Uint8Array(blocks.length);
  const packed = new Uint8Array(blocks.length);
  const contentBytes = new Uint32Array(blocks.length);
  const checksums = new Uint32Array(blocks.length);
  const lz4 = request.codec === "lz4" ? lane.codecs.get("lz4") : undefined;
  const check = frame === undefined ? undefined : new FrameCheck(lane, request, frame);
  const number = Buffer.alloc(8);
  let end = 0;
  for (const [index, block] of blocks.entries()) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const rawBytes = countParts(mask) * PART_BYTES;
    const content = lane.scratch.subarray(0, blockBytes);
    const found = readOld(lane, request, block, base.subarray(index * width, (index + 1) * width), content);
    // What a failed read leaves is not to be taken for the old content of another block.
    if (found === "unreadable") content.fill(0);
    if (found !== "good") damaged[index] = 1;
    const target = area.subarray(end, end + rawBytes);
    // A frame that was decompressed lies in area A: no part of it before its block's old content, but perhaps under it.
    const place = check?.inAreaA === true ? lane.secondScratch.subarray(0, rawBytes) : target;
    gather(content, mask, place);
    check?.next(block, found === "unreadable" ? undefined : content);
    if (place !== target) target.set(place);
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
  return { damaged, contentBytes, packed, checksums, checked: check?.states ?? new Uint8Array(0) };
}

/** Goes through a frame beside the blocks whose old content is read, and tells of each whether it becomes what its digest says. */
class FrameCheck {
  readonly states: Uint8Array;
  /** The frame lies in area A now; else in area B. */
  readonly inAreaA: boolean;
  readonly #frame: ReceivedFrame;
  readonly #raw: Uint8Array;
  readonly #digester: Digester;
  readonly #found: Uint8Array;
  readonly #blockBytes: number;
  #index = 0;
  #rawAt = 0;

  constructor(lane: Lane, { slot, blockBytes, digestKind }: SaveRequest, frame: ReceivedFrame) {
    this.#frame = frame;
    this.#blockBytes = blockBytes;
    this.inAreaA = frame.codec !== "stored";
    // Behind any place the old content may begin at, so that it never overtakes.
    this.#raw = unpack(lane, slot, frame, areaA + DIRECT_BYTES);
    this.#digester = lane.digester(digestKind);
    this.#found = new Uint8Array(digestBytes(digestKind));
    this.states = new Uint8Array(frame.blocks.length).fill(applyState.unchecked);
  }

  /** Blocks in the order of the frame. `old`: the block as it is, which is changed; undefined: it cannot be read. */
  next(block: number, old: Uint8Array | undefined): void {
    const { blocks, masks, digests } = this.#frame;
    const perMask = maskBytes(this.#blockBytes);
    for (; this.#index < blocks.length; this.#index++) {
      const index = this.#index;
      const mask = masks.subarray(index * perMask, (index + 1) * perMask);
      const content = this.#raw.subarray(this.#rawAt, this.#rawAt + countParts(mask) * PART_BYTES);
      this.#rawAt += content.length;
      if (blocks[index] !== block) continue;
      const full = isFullMask(mask, this.#blockBytes);
      if (!full && old !== undefined) overlay(old, mask, content);
      const width = this.#found.length;
      const digest = digests.subarray(index * width, (index + 1) * width);
      this.states[index] = checkNew(this.#digester, full ? content : old, digest, this.#found);
      this.#index++;
      return;
    }
    invariant(false, "a block whose old content is kept is one of the frame");
  }
}

function gather(block: Uint8Array, mask: Uint8Array, target: Uint8Array): void {
  forEachRun(mask, (first, count, before) => {
    target.set(block.subarray(first * PART_BYTES, (first + count) * PART_BYTES), before * PART_BYTES);
  });
}

export function append(lane: Lane, request: AppendRequest): null {
  const { path, fd, offset, head, contentAt, contentBytes } = request;
  const slot = lane.slot(request.slot);
  writing(path, offset, () => {
    if (appendDirect(lane, request)) return;
    // The head last: who reads the log meanwhile takes a batch with a good head for a whole one.
    if (contentBytes > 0) {
      lane.storage.write(fd, slot.subarray(contentAt, contentAt + contentBytes), offset + head.length);
    }
    lane.storage.write(fd, head, offset);
  });
  if (contentBytes >= longAppendBytes) lane.storage.startWriteback(fd, offset, head.length + contentBytes);
  return null;
}

/**
 * Past the page cache: old content is hardly ever read, and the sync that follows has nothing left to write. Whole pages, so zeros fill up the
 * last one; those with the head last.
 */
function appendDirect(
  lane: Lane,
  { slot: index, directFd, offset, head, contentAt, contentBytes }: AppendRequest,
): boolean {
  const start = contentAt - head.length;
  const { writeDirect } = lane.storage;
  if (directFd === undefined || writeDirect === undefined || contentBytes < longAppendBytes) return false;
  if (start < 0 || start % DIRECT_BYTES !== 0 || offset % DIRECT_BYTES !== 0) return false;
  const slot = lane.slot(index);
  const end = contentAt + contentBytes;
  const padded = wholePages(end);
  slot.fill(0, end, padded);
  slot.set(head, start);
  const behind = wholePages(contentAt);
  return (
    (behind >= padded || writeDirect(directFd, slot.subarray(behind, padded), offset + behind - start)) &&
    writeDirect(directFd, slot.subarray(start, behind), offset)
  );
}

function wholePages(bytes: number): number {
  return Math.ceil(bytes / DIRECT_BYTES) * DIRECT_BYTES;
}
