/** The patch job: which parts of a block differ from what the receiver holds. */
import { digestBytes, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import type { Digester } from "../codec/digest.ts";
import { blockState, type PatchRequest, type PatchResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { readRuns } from "./reading.ts";
import { addPart, countParts, fullMask, hasPart, Shipper } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

export function patch(lane: Lane, request: PatchRequest): PatchResult {
  const { blockBytes, blocks } = request;
  const slot = lane.slot(request.slot);
  const digester = lane.digester(request.digestKind);
  const width = digestBytes(request.digestKind);
  const digests = new Uint8Array(blocks.length * width);
  const states = new Uint8Array(blocks.length);
  const shipper = new Shipper(slot, blockBytes);
  const parts = new DataView(request.parts.buffer, request.parts.byteOffset, request.parts.byteLength);
  const whole = fullMask(blockBytes);
  let partsAt = 0;
  let consumed = 0;
  while (consumed < blocks.length && shipper.hasRoom) {
    const index = consumed++;
    const block = blockContent(lane, request, index, slot);
    const zero = digester.digest(block, digests, index * width);
    const digest = digests.subarray(index * width, (index + 1) * width);
    const known = hasPart(request.known, index);
    const from = partsAt;
    if (known) partsAt += partsPerBlock(blockBytes) * 4;
    if (Buffer.compare(digest, request.base.subarray(index * width, (index + 1) * width)) === 0) {
      states[index] = blockState.same;
    } else if (zero) {
      states[index] = blockState.zero;
    } else {
      states[index] = blockState.shipped;
      const mask = known ? differingParts(digester, block, parts, from, blockBytes) : whole;
      // No part differs by its 32 bits although the block does: a collision, so the block goes whole.
      shipper.add(index, block, countParts(mask) === 0 ? whole : mask, digest);
    }
  }
  return {
    consumed,
    digests: digests.subarray(0, consumed * width),
    states: states.subarray(0, consumed),
    shipment: shipper.finish(lane, request.codec),
  };
}

function blockContent(lane: Lane, request: PatchRequest, index: number, slot: Uint8Array): Uint8Array {
  const { blockBytes } = request;
  if (request.runs === undefined) {
    return slot.subarray(areaA + index * blockBytes, areaA + (index + 1) * blockBytes);
  }
  const length = Math.min(blockBytes, request.sizeBytes - (request.blocks[index] ?? 0) * blockBytes);
  const block = lane.scratch.subarray(0, blockBytes);
  readRuns(lane, request.runs[index] ?? [], block.subarray(0, length), { file: request.file, dropCache: false });
  block.fill(0, length);
  return block;
}

function differingParts(
  digester: Digester,
  block: Uint8Array,
  parts: DataView,
  from: number,
  blockBytes: number,
): Uint8Array {
  const mask = new Uint8Array(maskBytes(blockBytes));
  for (let part = 0; part < partsPerBlock(blockBytes); part++) {
    const mine = digester.part(block.subarray(part * PART_BYTES, (part + 1) * PART_BYTES));
    if (mine !== parts.getUint32(from + part * 4, true)) addPart(mask, part);
  }
  return mask;
}
