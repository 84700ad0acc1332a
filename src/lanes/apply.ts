/** The receiver's jobs: apply, old parts, clear, sync. */
import { addPart, countParts, forEachRun, forEachRunAcross, isFullMask } from "../base/part-mask.ts";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { KIB, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import { PART_DIGEST_BYTES } from "../codec/digest-sizes.ts";
import { type Digester } from "../codec/digest.ts";
import {
  type ApplyRequest,
  type ApplyResult,
  applyState,
  type ClearRequest,
  type OldPartsRequest,
  type OldPartsResult,
  type ReceivedFrame,
  type SyncRequest,
} from "./jobs.ts";
import { DIRECT_BYTES } from "../storage/seam.ts";
import { KernelFrame } from "./kernel-frame.ts";
import type { Lane } from "./lane.ts";
import { fileOffset, readPadded, stretchEnd } from "./replica-blocks.ts";
import { areaA, areaB } from "./slot-layout.ts";

/** Read and digested at a time: it stays in the core's own cache in between. */
const readBytes = 256 * KIB;

/** Longest single write: larger ones cost more than twice as much in a new file (measured; the kernel zeroes large folios first). */
const writeBytesMax = 256 * KIB;

/**
 * Runs at least this long go to the device at once, past the page cache where that can be had: it would cost memory, a copy and the kernel's
 * own writing for content that nobody reads soon. Scattered parts are left to the kernel, which joins neighbours better than we could.
 */
const longRunBytes = 256 * KIB;

/**
 * Applies a data frame. Order for each block that `save` has not looked at: old content (where parts go over content) → patch → digest of the
 * whole new block; then all are written whose digest came out. The old content is not digested here: wrong old parts make a wrong
 * whole.
 */
export function apply(lane: Lane, request: ApplyRequest): ApplyResult {
  const raw = unpack(lane, request.slot, request, areaA);
  checkEnd(request, raw);
  const states = request.checked ?? new Uint8Array(request.blocks.length).fill(applyState.unchecked);
  if (states.includes(applyState.unchecked)) {
    checkWithoutOld(lane, request, raw, states);
    checkOverOld(lane, request, raw, states);
  }
  const writer = new RunWriter(lane, request);
  writeFrame(writer, request, raw, states);
  if (request.writeback !== undefined) {
    lane.storage.startWriteback(request.fd, request.writeback.offset, request.writeback.length);
  }
  return { states, writtenBytes: writer.bytes, cachedBytes: writer.cachedBytes };
}

/**
 * Behind the end of the disk there are zeros. A digest over anything else would come out here, and be that of no block a replica can hold: what lies
 * behind the end is not written. Throws `message-malformed`.
 */
function checkEnd({ disk, sizeBytes, blockBytes, blocks, masks }: ApplyRequest, raw: Uint8Array): void {
  const block = blocks.at(-1);
  if (block === undefined || (block + 1) * blockBytes <= sizeBytes) return;
  const mask = masks.subarray(-maskBytes(blockBytes));
  const content = raw.subarray(raw.length - countParts(mask) * PART_BYTES);
  const end = Math.max(0, sizeBytes - block * blockBytes);
  forEachRun(mask, (first, count, before) => {
    const behind = Math.max(0, end - first * PART_BYTES);
    if (
      isZero(
        content.subarray(
          Math.min(before * PART_BYTES + behind, (before + count) * PART_BYTES),
          (before + count) * PART_BYTES,
        ),
      )
    )
      return;
    throw new ReplicationError(
      "message-malformed",
      `data for disk ${disk}: block ${block} has content behind the end of the disk, which has ${sizeBytes} bytes`,
    );
  });
}

/** Blocks that come whole, and parts over zeros: nothing has to be read for them. */
function checkWithoutOld(lane: Lane, request: ApplyRequest, raw: Uint8Array, states: Uint8Array): void {
  const { blockBytes, blocks, masks, base, digests } = request;
  const digester = lane.digester(request.digestKind);
  const frame = digester.ofParts ? KernelFrame.over(lane, blocks.length, blockBytes) : undefined;
  if (frame === undefined) return;
  const width = digester.digestBytes;
  const perMask = maskBytes(blockBytes);
  const zeros = digester.zeroParts.subarray(0, partsPerBlock(blockBytes) * PART_DIGEST_BYTES);
  frame.states.set(states);
  for (let index = 0; index < blocks.length; index++) {
    if (states[index] !== applyState.unchecked) continue;
    const overZeros = isZero(base.subarray(index * width, (index + 1) * width));
    if (overZeros || isFullMask(masks.subarray(index * perMask, (index + 1) * perMask), blockBytes)) {
      frame.want(index, zeros);
    }
  }
  frame.change(masks, raw, digests);
  states.set(frame.states);
}

/** Those not looked at yet, each alone: parts over content, and everything where there is no kernel. */
function checkOverOld(lane: Lane, request: ApplyRequest, raw: Uint8Array, states: Uint8Array): void {
  const { blockBytes, blocks, masks } = request;
  const digester = lane.digester(request.digestKind);
  const width = digester.digestBytes;
  const found = new Uint8Array(width);
  const perMask = maskBytes(blockBytes);
  let rawAt = 0;
  for (let index = 0; index < blocks.length; index++) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const content = raw.subarray(rawAt, rawAt + countParts(mask) * PART_BYTES);
    rawAt += content.length;
    if (states[index] !== applyState.unchecked) continue;
    let whole: Uint8Array | undefined = content;
    if (!isFullMask(mask, blockBytes)) {
      whole = lane.scratch.subarray(0, blockBytes);
      if (isZero(request.base.subarray(index * width, (index + 1) * width))) lane.zero(whole);
      else if (!readPadded(lane, request, index, whole)) whole = undefined;
      if (whole !== undefined) overlay(lane, whole, mask, content);
    }
    states[index] = checkNew(digester, whole, request.digests.subarray(index * width, (index + 1) * width), found);
  }
}

/** Writes the blocks whose state is `written`. */
function writeFrame(writer: RunWriter, request: ApplyRequest, raw: Uint8Array, states: Uint8Array): void {
  const { blockBytes, blocks, masks } = request;
  const perMask = maskBytes(blockBytes);
  let rawAt = 0;
  for (let start = 0; start < blocks.length; ) {
    const offset = (blocks[start] ?? 0) * blockBytes;
    const place = fileOffset(request, start);
    const state = states[start];
    const follows = stretchEnd(request, start);
    let end = start + 1;
    while (end < follows && states[end] === state) end++;
    const ofStretch = masks.subarray(start * perMask, end * perMask);
    const from = rawAt;
    rawAt += countParts(ofStretch) * PART_BYTES;
    start = end;
    if (state !== applyState.written) continue;
    forEachRunAcross(ofStretch, blockBytes, (part, count, before) => {
      const at = from + before * PART_BYTES;
      const within = part * PART_BYTES;
      // Behind the end of the disk a part is padded, or all of a run is: only a sender that means ill sends such a one.
      const length = Math.min(count * PART_BYTES, request.sizeBytes - offset - within);
      if (length > 0) writer.add(place + within, raw.subarray(at, at + length));
    });
  }
  writer.flush();
}

/** The content of a frame: where it came, or decompressed to `place` in the slot. */
export function unpack(lane: Lane, slotIndex: number, frame: ReceivedFrame, place: number): Uint8Array {
  const slot = lane.slot(slotIndex);
  const packed = slot.subarray(areaB, areaB + frame.payloadBytes);
  if (frame.codec === "stored") return packed;
  const raw = slot.subarray(place, place + frame.rawBytes);
  lane.codecs.get(frame.codec).decompress(packed, raw);
  return raw;
}

/** Whether a block as it would become has the digest it is to have; undefined: it cannot be told. `found`: room for a digest. */
export function checkNew(
  digester: Digester,
  whole: Uint8Array | undefined,
  digest: Uint8Array,
  found: Uint8Array,
): number {
  if (whole === undefined) return applyState.damaged;
  digester.digest(whole, found, 0);
  return Buffer.compare(found, digest) === 0 ? applyState.written : applyState.mismatch;
}

/** Puts parts that lie together over their block. */
export function overlay(lane: Lane, block: Uint8Array, mask: Uint8Array, content: Uint8Array): void {
  forEachRun(mask, (first, count, before) => {
    const source = content.subarray(before * PART_BYTES, (before + count) * PART_BYTES);
    lane.copy(block.subarray(first * PART_BYTES, first * PART_BYTES + source.length), source);
  });
}

/** Joins neighbouring pieces of one source array into writes of up to {@link writeBytesMax}. Offsets are those of the file. */
class RunWriter {
  readonly #lane: Lane;
  readonly #request: ApplyRequest;
  #offset = 0;
  #pending: Uint8Array | undefined;
  bytes = 0;
  /** {@link ApplyResult.cachedBytes} */
  cachedBytes = 0;

  constructor(lane: Lane, request: ApplyRequest) {
    this.#lane = lane;
    this.#request = request;
  }

  add(offset: number, piece: Uint8Array): void {
    const pending = this.#pending;
    if (
      pending !== undefined &&
      this.#offset + pending.length === offset &&
      pending.buffer === piece.buffer &&
      pending.byteOffset + pending.length === piece.byteOffset
    ) {
      this.#pending = new Uint8Array(pending.buffer, pending.byteOffset, pending.length + piece.length);
      return;
    }
    this.flush();
    this.#offset = offset;
    this.#pending = piece;
  }

  flush(): void {
    const pending = this.#pending;
    if (pending === undefined) return;
    this.#pending = undefined;
    const { disk, fd } = this.#request;
    const { length } = pending;
    this.bytes += length;
    const direct = length >= longRunBytes ? this.#writeDirect(pending, length) : 0;
    for (let at = direct; at < length; at += writeBytesMax) {
      const piece = pending.subarray(at, Math.min(at + writeBytesMax, length));
      inReplica(disk, this.#offset + at, () => {
        this.#lane.storage.write(fd, piece, this.#offset + at);
      });
    }
    // Where it went to the page cache, the device gets it while the next ones are received: the sync of the commit is shorter.
    if (length - direct >= longRunBytes) this.#lane.storage.startWriteback(fd, this.#offset + direct, length - direct);
    else this.cachedBytes += length - direct;
  }

  /** Writes what is whole units of `pending`, when it can. Returns the bytes written: all but a tail, or none. */
  #writeDirect(pending: Uint8Array, length: number): number {
    const { disk, directFd } = this.#request;
    const bytes = length - (length % DIRECT_BYTES);
    if (directFd === undefined || this.#offset % DIRECT_BYTES !== 0 || pending.byteOffset % DIRECT_BYTES !== 0)
      return 0;
    let written = false;
    inReplica(disk, this.#offset, () => {
      written = this.#lane.storage.writeDirect?.(directFd, pending.subarray(0, bytes), this.#offset) ?? false;
    });
    return written ? bytes : 0;
  }
}

/** What is there, whether the table says so or not: parts that rotted differ from the sender's, which sends them. */
export function oldParts(lane: Lane, request: OldPartsRequest): OldPartsResult {
  const { blockBytes, blocks, base } = request;
  const digester = lane.digester(request.digestKind);
  const width = digester.digestBytes;
  const perLow = partsPerBlock(blockBytes) * 4;
  const perWide = digester.ofParts ? partsPerBlock(blockBytes) * PART_DIGEST_BYTES : 0;
  const known = new Uint8Array(Math.ceil(blocks.length / 8));
  const low = new Uint8Array(blocks.length * perLow);
  const wide = new Uint8Array(blocks.length * perWide);
  let lowEnd = 0;
  const digest = (first: number, content: Uint8Array): void => {
    const found = digester.blocks(content, blockBytes);
    low.set(found.low, lowEnd);
    lowEnd += found.low.length;
    for (let nth = 0; nth < content.length / blockBytes; nth++) {
      const index = first + nth;
      addPart(known, index);
      const isSound = Buffer.compare(
        found.digests.subarray(nth * width, (nth + 1) * width),
        base.subarray(index * width, (index + 1) * width),
      );
      if (isSound === 0) wide.set(found.wide.subarray(nth * perWide, (nth + 1) * perWide), index * perWide);
    }
  };
  for (let first = 0; first < blocks.length; ) {
    const end = stretchEnd(request, first, Math.max(1, readBytes / blockBytes));
    const content = lane.scratch.subarray(0, (end - first) * blockBytes);
    if (readPadded(lane, request, first, content)) digest(first, content);
    else {
      // One at a time: it need not be all of them.
      for (let index = first; index < end; index++) {
        const block = content.subarray(0, blockBytes);
        if (readPadded(lane, request, index, block)) digest(index, block);
      }
    }
    first = end;
  }
  return { known, parts: low.slice(0, lowEnd), wide };
}

export function clear(lane: Lane, request: ClearRequest): null {
  for (const { offset, length } of request.ranges) {
    inReplica(request.disk, offset, () => {
      if (lane.storage.punch(request.fd, offset, length)) return;
      lane.zero(lane.scratch);
      for (let at = 0; at < length; at += lane.scratch.length) {
        lane.storage.write(
          request.fd,
          lane.scratch.subarray(0, Math.min(lane.scratch.length, length - at)),
          offset + at,
        );
      }
    });
  }
  return null;
}

export function sync(lane: Lane, request: SyncRequest): null {
  try {
    lane.storage.datasync(request.fd);
  } catch (error) {
    throw new ReplicationError("sync-failed", `disk ${request.disk}: syncing the replica failed (${String(error)})`, {
      cause: error,
    });
  }
  return null;
}

function inReplica(disk: string, offset: number, write: () => void): void {
  writing(`disk ${disk}: the replica`, offset, write);
}

/** `what` is written at `offset`: errors of the system in our words. Throws `no-space`, `write-failed`. */
export function writing(what: string, offset: number, write: () => void): void {
  try {
    write();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOSPC" || errno === "EDQUOT") {
      throw new ReplicationError("no-space", `${what}: no space left at offset ${offset}`, {
        cause: error,
        details: { offset },
      });
    }
    throw new ReplicationError(
      "write-failed",
      `${what}: writing at offset ${offset} failed (${errno ?? String(error)})`,
      {
        cause: error,
        details: { offset, errno: errno ?? null },
      },
    );
  }
}
