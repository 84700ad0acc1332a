/** The scan job: read, zero?, digest, compare, compress. */
import { addPart } from "../base/part-mask.ts";
import { digestBytes, KIB, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import { isZero } from "../codec/digest.ts";
import { blockState, type ScanRequest, type ScanResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { RunReader } from "./reading.ts";
import { Shipper } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

/** Read and digested at a time: it stays in the core's own cache in between. */
const stepBytes = 256 * KIB;

export function scan(lane: Lane, request: ScanRequest): ScanResult {
  const { blockBytes, base, length } = request;
  const slot = lane.slot(request.slot);
  const count = Math.ceil(length / blockBytes);
  const digester = lane.digester(request.digestKind);
  const width = digestBytes(request.digestKind);
  const digests = new Uint8Array(count * width);
  const states = new Uint8Array(count);
  const perBlock = partsPerBlock(blockBytes) * 4;
  const parts = Buffer.alloc(count * perBlock);
  let partsEnd = 0;
  const shipper = new Shipper(slot, blockBytes);
  const perStep = Math.max(1, stepBytes / blockBytes);
  const reader = request.runs === undefined ? undefined : new RunReader(lane, request.runs, request);
  for (let index = 0; index < count; index++) {
    const at = areaA + index * blockBytes;
    if (index % perStep === 0) {
      const end = Math.min(length, (index + perStep) * blockBytes);
      reader?.fill(slot.subarray(at, areaA + end));
      // The last block of the disk is digested padded with zeros.
      if (end === length) slot.fill(0, areaA + length, areaA + count * blockBytes);
    }
    const block = slot.subarray(at, at + blockBytes);
    const zero = digester.digest(block, digests, index * width);
    const digest = digests.subarray(index * width, (index + 1) * width);
    const state = judge(base, digest, index, zero);
    states[index] = state;
    if (state === blockState.shipped) shipper.add(index, block, nonZeroParts(block, blockBytes), digest);
    else if (state === blockState.differs) {
      digester.parts(block, parts, partsEnd);
      partsEnd += perBlock;
    }
  }
  return {
    digests,
    states,
    // Its own bytes: what crosses threads is copied with all the memory behind it.
    parts: Uint8Array.prototype.slice.call(parts, 0, partsEnd),
    shipment: shipper.finish(lane, request.codec),
  };
}

function judge(base: ScanRequest["base"], digest: Uint8Array, index: number, zero: boolean): number {
  if (base === "unknown") return blockState.digested;
  if (base === "zero") return zero ? blockState.same : blockState.shipped;
  const old = base.subarray(index * digest.length, (index + 1) * digest.length);
  if (Buffer.compare(old, digest) === 0) return blockState.same;
  if (zero) return blockState.zero;
  return isZero(old) ? blockState.shipped : blockState.differs;
}

/** Over a base of zeros only the parts that are not zero travel, so that a sparse image stays as sparse as it was. */
function nonZeroParts(block: Uint8Array, blockBytes: number): Uint8Array {
  const mask = new Uint8Array(maskBytes(blockBytes));
  for (let part = 0; part < partsPerBlock(blockBytes); part++) {
    if (!isZero(block.subarray(part * PART_BYTES, (part + 1) * PART_BYTES))) addPart(mask, part);
  }
  return mask;
}
