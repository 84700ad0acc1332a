/** The receiver's jobs: apply, old parts, clear, sync. */
import { addPart, countParts, hasPart, isFullMask } from "../base/part-mask.ts";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { digestBytes, KIB, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import { isZero } from "../codec/digest.ts";
import {
  type ApplyRequest,
  type ApplyResult,
  applyState,
  type BlockShape,
  type ClearRequest,
  type OldPartsRequest,
  type OldPartsResult,
  type SyncRequest,
} from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { areaA, areaB } from "./slot-layout.ts";

/** Longest single write: larger ones cost more than twice as much in a new file (measured; the kernel zeroes large folios first). */
const writeBytesMax = 256 * KIB;

/** Runs at least this long are handed to the device at once. */
const writebackBytesMin = 256 * KIB;

/**
 * Applies a data frame. Order for each block: old content (where parts go over content) → patch → digest of the whole new block → write.
 * A block whose digest does not come out is not written. The old content is not digested here: what was kept of it was checked
 * then, and wrong old parts make a wrong whole.
 */
export function apply(lane: Lane, request: ApplyRequest): ApplyResult {
  const { blockBytes, blocks, masks } = request;
  const slot = lane.slot(request.slot);
  const packed = slot.subarray(areaB, areaB + request.payloadBytes);
  let raw = packed;
  if (request.codec !== "stored") {
    raw = slot.subarray(areaA, areaA + request.rawBytes);
    lane.codecs.get(request.codec).decompress(packed, raw);
  }
  const digester = lane.digester(request.digestKind);
  const width = digestBytes(request.digestKind);
  const found = new Uint8Array(width);
  const states = new Uint8Array(blocks.length);
  const perMask = maskBytes(blockBytes);
  const writer = new RunWriter(lane, request);
  let rawAt = 0;
  for (const [index, block] of blocks.entries()) {
    const mask = masks.subarray(index * perMask, (index + 1) * perMask);
    const content = raw.subarray(rawAt, rawAt + countParts(mask) * PART_BYTES);
    rawAt += content.length;
    const old = request.base.subarray(index * width, (index + 1) * width);
    const full = isFullMask(mask, blockBytes);
    let whole = content;
    if (!full) {
      whole = lane.scratch.subarray(0, blockBytes);
      if (isZero(old)) whole.fill(0);
      else if (!readBlock(lane, request, block, whole)) {
        states[index] = applyState.damaged;
        continue;
      }
      overlay(whole, mask, content);
    }
    digester.digest(whole, found, 0);
    if (Buffer.compare(found, request.digests.subarray(index * width, (index + 1) * width)) !== 0) {
      states[index] = applyState.mismatch;
      continue;
    }
    states[index] = applyState.written;
    if (full) writer.add(block * blockBytes, content);
    else writeParts(writer, block * blockBytes, mask, content);
  }
  writer.flush();
  return { states, writtenBytes: writer.bytes };
}

function overlay(block: Uint8Array, mask: Uint8Array, content: Uint8Array): void {
  let at = 0;
  for (let part = 0; part < block.length / PART_BYTES; part++) {
    if (!hasPart(mask, part)) continue;
    block.set(content.subarray(at, at + PART_BYTES), part * PART_BYTES);
    at += PART_BYTES;
  }
}

function writeParts(writer: RunWriter, offset: number, mask: Uint8Array, content: Uint8Array): void {
  let at = 0;
  for (let part = 0; at < content.length; part++) {
    if (!hasPart(mask, part)) continue;
    writer.add(offset + part * PART_BYTES, content.subarray(at, at + PART_BYTES));
    at += PART_BYTES;
  }
}

/** Reads a block, padded with zeros; false when it cannot be read: the sender sends it whole, and writing it anew may heal it. */
function readBlock(
  lane: Lane,
  request: { readonly blockBytes: number; readonly fd: number; readonly sizeBytes: number },
  block: number,
  target: Uint8Array,
): boolean {
  const offset = block * request.blockBytes;
  const length = Math.min(request.blockBytes, request.sizeBytes - offset);
  try {
    target.fill(0, lane.storage.read(request.fd, target.subarray(0, length), offset));
    return true;
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return false;
  }
}

/** Reads the old block, padded with zeros; false when it cannot be read or does not match its digest. */
export function readOld(
  lane: Lane,
  request: BlockShape & { readonly fd: number; readonly sizeBytes: number; readonly disk: string },
  block: number,
  digest: Uint8Array,
  target: Uint8Array,
): boolean {
  if (!readBlock(lane, request, block, target)) return false;
  const found = new Uint8Array(digest.length);
  lane.digester(request.digestKind).digest(target, found, 0);
  return Buffer.compare(found, digest) === 0;
}

/** Joins neighbouring pieces of one source array into writes of up to {@link writeBytesMax}, and clips them at the end of the disk. */
class RunWriter {
  readonly #lane: Lane;
  readonly #request: ApplyRequest;
  #offset = 0;
  #pending: Uint8Array | undefined;
  bytes = 0;

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
      this.#pending = Buffer.from(pending.buffer, pending.byteOffset, pending.length + piece.length);
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
    const { disk, fd, sizeBytes } = this.#request;
    const length = Math.min(pending.length, sizeBytes - this.#offset);
    for (let at = 0; at < length; at += writeBytesMax) {
      const piece = pending.subarray(at, Math.min(at + writeBytesMax, length));
      inReplica(disk, this.#offset + at, () => {
        this.#lane.storage.write(fd, piece, this.#offset + at);
      });
    }
    this.bytes += length;
    // Long runs go to the device while the next ones are received, so that the sync of the commit is short. Scattered parts are left to
    // the kernel, which joins neighbours better than we could.
    if (length >= writebackBytesMin) this.#lane.storage.startWriteback(fd, this.#offset, length);
  }
}

export function oldParts(lane: Lane, request: OldPartsRequest): OldPartsResult {
  const { blockBytes, blocks } = request;
  const digester = lane.digester(request.digestKind);
  const width = digestBytes(request.digestKind);
  const perBlock = partsPerBlock(blockBytes);
  const known = new Uint8Array(Math.ceil(blocks.length / 8));
  const parts = Buffer.alloc(blocks.length * perBlock * 4);
  const content = lane.scratch.subarray(0, blockBytes);
  let at = 0;
  for (const [index, block] of blocks.entries()) {
    if (!readOld(lane, request, block, request.base.subarray(index * width, (index + 1) * width), content)) continue;
    addPart(known, index);
    for (let part = 0; part < perBlock; part++) {
      parts.writeUInt32LE(digester.part(content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES)), at);
      at += 4;
    }
  }
  return { known, parts: parts.subarray(0, at) };
}

export function clear(lane: Lane, request: ClearRequest): null {
  for (const { offset, length } of request.ranges) {
    inReplica(request.disk, offset, () => {
      if (lane.storage.punch(request.fd, offset, length)) return;
      lane.scratch.fill(0);
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
