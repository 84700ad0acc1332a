/** The delta job: blocks that are known to have changed are read once, compared part by part with what the receiver holds, and become one payload. */
import { addDiffering, fullMask } from "../base/part-mask.ts";
import { digestBytes, maskBytes, partsPerBlock } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { BlockDigests } from "../codec/digest.ts";
import { blockState, type DeltaRequest, type DeltaResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { padEnd, RunReader, stepBytes } from "./reading.ts";
import { Shipper } from "./shipping.ts";
import { areaA, areaABytes } from "./slot-layout.ts";

export function delta(lane: Lane, request: DeltaRequest): DeltaResult {
  const { blockBytes } = request;
  const slot = lane.slot(request.slot);
  const digester = lane.digester(request.digestKind);
  const shipper = new Shipper(lane, slot, blockBytes);
  const judge = new DeltaJudge(request, shipper);
  let placed = areaA;
  for (const { runs, length } of request.pieces) {
    const reader = runs === undefined ? undefined : new RunReader(lane, runs, request);
    for (let at = 0; at < length; ) {
      // Behind the parts that are to travel: these move down to them.
      const start = reader === undefined ? placed : areaA + shipper.rawBytes;
      const room = Math.floor((areaA + areaABytes - start) / blockBytes) * blockBytes;
      if (room === 0) return { ...judge.result(), shipment: shipper.finish(request.codec) };
      const bytes = Math.min(Math.max(stepBytes, blockBytes), room, length - at);
      reader?.fill(slot.subarray(start, start + bytes));
      const padded = Math.ceil(bytes / blockBytes) * blockBytes;
      const content = padEnd(lane, slot.subarray(start, start + padded), bytes);
      judge.add(content, digester.blocks(content, blockBytes));
      at += bytes;
      placed += padded;
    }
  }
  return { ...judge.result(), shipment: shipper.finish(request.codec) };
}

/** Tells of each block what is to become of it, and gives the parts that differ to the shipper. */
class DeltaJudge {
  readonly #request: DeltaRequest;
  readonly #shipper: Shipper;
  readonly #width: number;
  readonly #digests: Uint8Array;
  readonly #states: Uint8Array;
  /** Blocks so far. */
  #count = 0;

  constructor(request: DeltaRequest, shipper: Shipper) {
    this.#request = request;
    this.#shipper = shipper;
    this.#width = digestBytes(request.digestKind);
    this.#digests = new Uint8Array(request.base.length);
    this.#states = new Uint8Array(request.base.length / this.#width);
  }

  /** Whole blocks, behind those of the call before. */
  add(content: Uint8Array, found: BlockDigests): void {
    const { base, blockBytes, known, parts } = this.#request;
    const width = this.#width;
    const perLow = partsPerBlock(blockBytes) * 4;
    for (let nth = 0; nth * blockBytes < content.length; nth++) {
      const index = this.#count++;
      const digest = this.#digests.subarray(index * width, (index + 1) * width);
      digest.set(found.digests.subarray(nth * width, (nth + 1) * width));
      if (Buffer.compare(digest, base.subarray(index * width, (index + 1) * width)) === 0) continue;
      this.#states[index] = isZero(digest) ? blockState.zero : blockState.shipped;
      if (isZero(digest)) continue;
      const mask = new Uint8Array(maskBytes(blockBytes));
      const theirs = parts.subarray(index * perLow, (index + 1) * perLow);
      // A block goes whole of which nothing is known, or of which no part differs by its 32 bits although the block does.
      const differing =
        known[index] === 1 && addDiffering(mask, theirs, found.low.subarray(nth * perLow, (nth + 1) * perLow)) > 0;
      const block = content.subarray(nth * blockBytes, (nth + 1) * blockBytes);
      this.#shipper.add(index, block, differing ? mask : fullMask(blockBytes), digest);
    }
  }

  result(): Omit<DeltaResult, "shipment"> {
    return {
      digests: this.#digests.slice(0, this.#count * this.#width),
      states: this.#states.slice(0, this.#count),
    };
  }
}
