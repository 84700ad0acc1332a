/** The receiver's jobs for old content: read it before it is overwritten, append it to an undo log. */
import { countParts, forEachRun, forEachRunAcross, isFullMask } from "../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { digestBytes, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import { invariant } from "../base/errors.ts";
import { isZero } from "../base/zero.ts";
import { PART_DIGEST_BYTES } from "../codec/digest-sizes.ts";
import { type Digester } from "../codec/digest.ts";
import { checkNew, overlay, unpack, writing } from "./apply.ts";
import { applyState, type AppendRequest, type ReceivedFrame, type SaveRequest, type SaveResult } from "./jobs.ts";
import { DIRECT_BYTES } from "../storage/seam.ts";
import { KernelFrame } from "./kernel-frame.ts";
import type { Lane } from "./lane.ts";
import { readOld, readPadded, stretchEnd } from "./replica-blocks.ts";
import { areaA, areaABytes } from "./slot-layout.ts";

/** Content at least this long is given to the device at once: its sync follows. */
const longAppendBytes = 64 * 1024;

export function save(lane: Lane, request: SaveRequest): SaveResult {
  return saveKnown(lane, request) ?? saveEach(lane, request);
}

/** All blocks at once, of which only the parts to keep are read. Undefined: not all are as they are known to be; area A may have been used. */
function saveKnown(lane: Lane, request: SaveRequest): SaveResult | undefined {
  const { blockBytes, blocks, masks, known, frame, codec } = request;
  if (known === undefined || frame === undefined || codec !== "stored") return undefined;
  const perBlock = partsPerBlock(blockBytes) * PART_DIGEST_BYTES;
  const room = KernelFrame.over(lane, frame.blocks.length, blockBytes);
  if (room === undefined) return undefined;
  let taken = 0;
  for (const [index, block] of frame.blocks.entries()) {
    room.states[index] = applyState.unchecked;
    if (block !== blocks[taken]) continue;
    const ofBlock = known.subarray(taken * perBlock, (taken + 1) * perBlock);
    if (isZero(ofBlock)) return undefined;
    room.want(index, ofBlock);
    taken++;
  }
  invariant(taken === blocks.length, "a block whose old content is kept is one of the frame");
  // The frame may lie where the old content goes, and is looked at before.
  room.change(frame.masks, unpack(lane, request.slot, frame, areaA + DIRECT_BYTES), frame.digests);
  const checked = Uint8Array.from(room.states);
  const area = lane.slot(request.slot).subarray(request.contentAt, request.contentAt + areaABytes);
  if (!readParts(lane, request, area)) return undefined;
  room.known.set(known);
  if (!room.isAsKnown(masks, blocks.length, area)) return undefined;
  const contentBytes = new Uint32Array(blocks.length);
  const checksums = new Uint32Array(blocks.length);
  const perMask = maskBytes(blockBytes);
  const checksum = contentChecksum(request.seed);
  let end = 0;
  for (const [index, block] of blocks.entries()) {
    const bytes = countParts(masks.subarray(index * perMask, (index + 1) * perMask)) * PART_BYTES;
    contentBytes[index] = bytes;
    checksums[index] = checksum(block, area.subarray(end, end + bytes));
    end += bytes;
  }
  const none = new Uint8Array(blocks.length);
  return { damaged: none, unreadable: 0, contentBytes, packed: none, checksums, checked };
}

/** Reads the parts to keep, one behind the other, padded with zeros; false when they cannot be read. */
function readParts(lane: Lane, request: SaveRequest, target: Uint8Array): boolean {
  const { blockBytes, blocks, masks } = request;
  const perMask = maskBytes(blockBytes);
  let end = 0;
  let readable = true;
  for (let start = 0; start < blocks.length && readable; ) {
    const stop = stretchEnd(request, start);
    const from = start;
    forEachRunAcross(masks.subarray(start * perMask, stop * perMask), blockBytes, (part, count) => {
      const piece = target.subarray(end, end + count * PART_BYTES);
      readable &&= readPadded(lane, request, from, piece, part * PART_BYTES);
      end += piece.length;
    });
    start = stop;
  }
  return readable;
}

/** Each block alone, read as a whole. */
function saveEach(lane: Lane, request: SaveRequest): SaveResult {
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
  const checksum = contentChecksum(request.seed);
  let end = 0;
  let unreadable = 0;
  for (const [index, block] of blocks.entries()) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const rawBytes = countParts(mask) * PART_BYTES;
    const content = lane.scratch.subarray(0, blockBytes);
    const found = readOld(lane, request, index, base.subarray(index * width, (index + 1) * width), content);
    // What a failed read leaves is not to be taken for the old content of another block.
    if (found === "unreadable") {
      lane.zero(content);
      unreadable++;
    }
    if (found !== "good") damaged[index] = 1;
    const target = area.subarray(end, end + rawBytes);
    // A frame that was decompressed lies in area A: no part of it before its block's old content, but perhaps under it.
    const place = check?.inAreaA === true ? lane.secondScratch.subarray(0, rawBytes) : target;
    gather(lane, content, mask, place);
    check?.next(block, found === "unreadable" ? undefined : content);
    if (place !== target) lane.copy(target, place);
    let kept = rawBytes;
    if (lz4 !== undefined) {
      const room = lane.scratch.subarray(0, rawBytes - 1);
      const shrunk = lz4.compress(target, room);
      if (shrunk > 0) {
        lane.copy(target, room.subarray(0, shrunk));
        packed[index] = 1;
        kept = shrunk;
      }
    }
    contentBytes[index] = kept;
    checksums[index] = checksum(block, target.subarray(0, kept));
    end += kept;
  }
  return { damaged, unreadable, contentBytes, packed, checksums, checked: check?.states ?? new Uint8Array(0) };
}

/** See {@link SaveResult.checksums}. */
function contentChecksum(seed: number): (block: number, bytes: Uint8Array) => number {
  const number = new Uint8Array(8);
  const view = new DataView(number.buffer);
  return (block, bytes) => {
    view.setUint32(0, block % 2 ** 32, true);
    view.setUint32(4, Math.floor(block / 2 ** 32), true);
    return crc32(bytes, crc32(number, seed));
  };
}

/** Goes through a frame beside the blocks whose old content is read, and tells of each whether it becomes what its digest says. */
class FrameCheck {
  readonly states: Uint8Array;
  /** The frame lies in area A now; else in area B. */
  readonly inAreaA: boolean;
  readonly #lane: Lane;
  readonly #frame: ReceivedFrame;
  readonly #raw: Uint8Array;
  readonly #digester: Digester;
  readonly #found: Uint8Array;
  readonly #blockBytes: number;
  #index = 0;
  #rawAt = 0;

  constructor(lane: Lane, { slot, blockBytes, digestKind }: SaveRequest, frame: ReceivedFrame) {
    this.#lane = lane;
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
      if (!full && old !== undefined) overlay(this.#lane, old, mask, content);
      const width = this.#found.length;
      const digest = digests.subarray(index * width, (index + 1) * width);
      this.states[index] = checkNew(this.#digester, full ? content : old, digest, this.#found);
      this.#index++;
      return;
    }
    invariant(false, "a block whose old content is kept is one of the frame");
  }
}

function gather(lane: Lane, block: Uint8Array, mask: Uint8Array, target: Uint8Array): void {
  forEachRun(mask, (first, count, before) => {
    const place = target.subarray(before * PART_BYTES, (before + count) * PART_BYTES);
    lane.copy(place, block.subarray(first * PART_BYTES, (first + count) * PART_BYTES));
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
  lane.zero(slot.subarray(end, padded));
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
