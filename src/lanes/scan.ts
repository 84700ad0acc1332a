/** The scan job: read, zero?, digest, compare, compress. */
import { digestBytes, maskBytes, PART_BYTES, partsPerBlock } from "../base/units.ts";
import { isZero } from "../codec/digest.ts";
import { blockState, type ScanRequest, type ScanResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { readRuns } from "./reading.ts";
import { addPart, Shipper } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

export function scan(lane: Lane, request: ScanRequest): ScanResult {
  const { blockBytes, base, length } = request;
  const slot = lane.slot(request.slot);
  if (request.runs !== undefined) {
    readRuns(lane, request.runs, slot.subarray(areaA, areaA + length), request);
  }
  const count = Math.ceil(length / blockBytes);
  // The last block of the disk is digested padded with zeros.
  slot.fill(0, areaA + length, areaA + count * blockBytes);

  const digester = lane.digester(request.digestKind);
  const width = digestBytes(request.digestKind);
  const digests = new Uint8Array(count * width);
  const states = new Uint8Array(count);
  const shipper = new Shipper(slot, blockBytes);
  for (let index = 0; index < count; index++) {
    const block = slot.subarray(areaA + index * blockBytes, areaA + (index + 1) * blockBytes);
    const zero = digester.digest(block, digests, index * width);
    const digest = digests.subarray(index * width, (index + 1) * width);
    states[index] = judge(base, digest, index, zero);
    if (states[index] === blockState.shipped) shipper.add(index, block, nonZeroParts(block, blockBytes), digest);
  }
  return { digests, states, shipment: shipper.finish(lane, request.codec) };
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
