/** The scan jobs: read, digest, compare; and compress what is new. */
import { digestBytes, maskBytes, partsPerBlock } from "../base/units.ts";
import { invariant } from "../base/errors.ts";
import { isZero } from "../base/zero.ts";
import { type BlockDigests, type Digester } from "../codec/digest.ts";
import {
  type BlockShape,
  blockState,
  type CompareRequest,
  type CompareResult,
  type ScanRequest,
  type ScanResult,
} from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { padEnd, RunReader, stepBytes } from "./reading.ts";
import { Shipper } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

export function scan(lane: Lane, request: ScanRequest): ScanResult {
  const { blockBytes, pieces } = request;
  const slot = lane.slot(request.slot);
  const shipper = new Shipper(lane, slot, blockBytes);
  const judge = new BlockJudge(lane, request, countBlocks(pieces, blockBytes), shipper);
  let start = areaA;
  for (const { runs, length } of pieces) {
    const reader = runs === undefined ? undefined : new RunReader(lane, runs, request);
    forEachStep(length, blockBytes, (at, bytes, padded) => {
      reader?.fill(slot.subarray(start + at, start + at + bytes));
      judge.add(padEnd(lane, slot.subarray(start + at, start + at + padded), bytes));
    });
    start += Math.ceil(length / blockBytes) * blockBytes;
  }
  return { ...judge.result(), shipment: shipper.finish(request.codec) };
}

function countBlocks(pieces: readonly { readonly length: number }[], blockBytes: number): number {
  return pieces.reduce((sum, { length }) => sum + Math.ceil(length / blockBytes), 0);
}

export function compare(lane: Lane, request: CompareRequest): CompareResult {
  const { blockBytes, pieces } = request;
  const judge = new BlockJudge(lane, request, countBlocks(pieces, blockBytes), undefined);
  for (const { runs, length } of pieces) {
    const reader = new RunReader(lane, runs, request);
    forEachStep(length, blockBytes, (_at, bytes, padded) => {
      reader.fill(lane.scratch.subarray(0, bytes));
      judge.add(padEnd(lane, lane.scratch.subarray(0, padded), bytes));
    });
  }
  return judge.result();
}

/** Calls `visit` for one step after the other: where it begins, its bytes, and these with what is missing of the last block. */
function forEachStep(
  length: number,
  blockBytes: number,
  visit: (at: number, bytes: number, padded: number) => void,
): void {
  const step = Math.max(stepBytes, blockBytes);
  for (let at = 0; at < length; at += step) {
    const bytes = Math.min(step, length - at);
    visit(at, bytes, Math.ceil(bytes / blockBytes) * blockBytes);
  }
}

/** Digests blocks, and tells of each what is to become of it. */
class BlockJudge {
  readonly #base: ScanRequest["base"];
  readonly #blockBytes: number;
  readonly #digester: Digester;
  readonly #shipper: Shipper | undefined;
  readonly #digests: Uint8Array;
  readonly #states: Uint8Array;
  readonly #parts: Uint8Array;
  #partsEnd = 0;
  /** Blocks so far. */
  #count = 0;

  /** `shipper`: takes what is new over zero. */
  constructor(
    lane: Lane,
    { base, blockBytes, digestKind }: BlockShape & Pick<ScanRequest, "base">,
    count: number,
    shipper: Shipper | undefined,
  ) {
    this.#base = base;
    this.#blockBytes = blockBytes;
    this.#digester = lane.digester(digestKind);
    this.#shipper = shipper;
    this.#digests = new Uint8Array(count * digestBytes(digestKind));
    this.#states = new Uint8Array(count);
    this.#parts = new Uint8Array(typeof base === "string" ? 0 : count * partsPerBlock(blockBytes) * 4);
  }

  /** Whole blocks, behind those of the call before. */
  add(content: Uint8Array): void {
    const first = this.#count;
    const width = this.#digester.digestBytes;
    const found = this.#digester.blocks(content, this.#blockBytes);
    this.#count += content.length / this.#blockBytes;
    this.#digests.set(found.digests, first * width);
    const base = this.#base;
    if (base === "unknown") this.#states.fill(blockState.digested, first, this.#count);
    else if (base === "zero" || Buffer.compare(baseOf(base, first, this.#count, width), found.digests) !== 0) {
      this.#judge(content, first, found);
    }
  }

  #judge(content: Uint8Array, first: number, found: BlockDigests): void {
    const blockBytes = this.#blockBytes;
    const width = this.#digester.digestBytes;
    const perMask = maskBytes(blockBytes);
    const perLow = partsPerBlock(blockBytes) * 4;
    for (let index = first; index < this.#count; index++) {
      const nth = index - first;
      const digest = this.#digests.subarray(index * width, (index + 1) * width);
      const state = stateOf(this.#base, digest, index);
      this.#states[index] = state;
      if (state === blockState.shipped) {
        invariant(this.#shipper !== undefined, "what is new over zero is shipped");
        const block = content.subarray(nth * blockBytes, (nth + 1) * blockBytes);
        // Over a base of zeros only the parts that are not zero travel, so that a sparse image stays as sparse as it was.
        this.#shipper.add(index, block, found.masks.subarray(nth * perMask, (nth + 1) * perMask), digest);
      } else if (state === blockState.differs) {
        this.#parts.set(found.low.subarray(nth * perLow, (nth + 1) * perLow), this.#partsEnd);
        this.#partsEnd += perLow;
      }
    }
  }

  result(): CompareResult {
    // Its own bytes: what crosses threads is copied with all the memory behind it.
    return { digests: this.#digests, states: this.#states, parts: this.#parts.slice(0, this.#partsEnd) };
  }
}

function baseOf(base: Uint8Array, first: number, end: number, width: number): Uint8Array {
  return base.subarray(first * width, end * width);
}

function stateOf(base: Uint8Array | string, digest: Uint8Array, index: number): number {
  const zero = isZero(digest);
  if (typeof base === "string") return zero ? blockState.same : blockState.shipped;
  const old = baseOf(base, index, index + 1, digest.length);
  if (Buffer.compare(old, digest) === 0) return blockState.same;
  if (zero) return blockState.zero;
  return isZero(old) ? blockState.shipped : blockState.differs;
}
