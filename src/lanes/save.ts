/** The receiver's jobs for old content: read it before it is overwritten, append it to an undo log. */
import { countParts, forEachRun, isFullMask } from "../base/part-mask.ts";
import { crc32 } from "node:zlib";
import { digestBytes, maskBytes, PART_BYTES } from "../base/units.ts";
import { invariant } from "../base/errors.ts";
import { type Digester, isZero, PART_DIGEST_BYTES } from "../codec/digest.ts";
import { checkNew, checkParts, overlay, readOld, readPadded, unpack, writing } from "./apply.ts";
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
  const numberBytes = new Uint8Array(8);
  const number = new DataView(numberBytes.buffer);
  let end = 0;
  const perKnown = (blockBytes / PART_BYTES) * PART_DIGEST_BYTES;
  for (const [index, block] of blocks.entries()) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const rawBytes = countParts(mask) * PART_BYTES;
    const target = area.subarray(end, end + rawBytes);
    const known = request.known?.subarray(index * perKnown, (index + 1) * perKnown);
    const content = lane.scratch.subarray(0, blockBytes);
    if (known !== undefined && !isZero(known) && readParts(lane, request, block, mask, known, content)) {
      // The frame may lie where the old content goes, and is looked at before.
      check?.nextOf(block, known);
      lane.copy(target, content.subarray(0, rawBytes));
    } else {
      const found = readOld(lane, request, block, base.subarray(index * width, (index + 1) * width), content);
      // What a failed read leaves is not to be taken for the old content of another block.
      if (found === "unreadable") lane.zero(content);
      if (found !== "good") damaged[index] = 1;
      // A frame that was decompressed lies in area A: no part of it before its block's old content, but perhaps under it.
      const place = check?.inAreaA === true ? lane.secondScratch.subarray(0, rawBytes) : target;
      gather(lane, content, mask, place);
      check?.next(block, found === "unreadable" ? undefined : content);
      if (place !== target) lane.copy(target, place);
    }
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
    number.setBigUint64(0, BigInt(block), true);
    contentBytes[index] = kept;
    checksums[index] = crc32(target.subarray(0, kept), crc32(numberBytes, request.seed));
    end += kept;
  }
  return { damaged, contentBytes, packed, checksums, checked: check?.states ?? new Uint8Array(0) };
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
    this.#find(block, (mask, content, digest) => {
      const full = isFullMask(mask, this.#blockBytes);
      if (!full && old !== undefined) overlay(this.#lane, old, mask, content);
      return checkNew(this.#digester, full ? content : old, digest, this.#found);
    });
  }

  /** The same with the digests of the parts it has, which are changed. */
  nextOf(block: number, old: Uint8Array): void {
    this.#find(block, (mask, content, digest) => checkParts(this.#digester, old, mask, content, digest));
  }

  #find(block: number, check: (mask: Uint8Array, content: Uint8Array, digest: Uint8Array) => number): void {
    const { blocks, masks, digests } = this.#frame;
    const perMask = maskBytes(this.#blockBytes);
    for (; this.#index < blocks.length; this.#index++) {
      const index = this.#index;
      const mask = masks.subarray(index * perMask, (index + 1) * perMask);
      const content = this.#raw.subarray(this.#rawAt, this.#rawAt + countParts(mask) * PART_BYTES);
      this.#rawAt += content.length;
      if (blocks[index] !== block) continue;
      const width = this.#found.length;
      this.states[index] = check(mask, content, digests.subarray(index * width, (index + 1) * width));
      this.#index++;
      return;
    }
    invariant(false, "a block whose old content is kept is one of the frame");
  }
}

/**
 * Reads only the parts in `mask`, one behind the other, padded with zeros; false when they cannot be read or are not what `known` says: then the block
 * is to be read as a whole.
 */
function readParts(
  lane: Lane,
  request: SaveRequest,
  block: number,
  mask: Uint8Array,
  known: Uint8Array,
  target: Uint8Array,
): boolean {
  const wanted = new Uint8Array(countParts(mask) * PART_DIGEST_BYTES);
  let readable = true;
  forEachRun(mask, (first, count, before) => {
    wanted.set(
      known.subarray(first * PART_DIGEST_BYTES, (first + count) * PART_DIGEST_BYTES),
      before * PART_DIGEST_BYTES,
    );
    const offset = block * request.blockBytes + first * PART_BYTES;
    const piece = target.subarray(before * PART_BYTES, (before + count) * PART_BYTES);
    readable &&= readPadded(lane, request, offset, piece);
  });
  if (!readable) return false;
  const found = new Uint8Array(wanted.length);
  lane
    .digester(request.digestKind)
    .parts(target.subarray(0, (wanted.length / PART_DIGEST_BYTES) * PART_BYTES), found, 0);
  return Buffer.compare(found, wanted) === 0;
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
