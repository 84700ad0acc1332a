/** Puts parts together into the payload of one data frame. */
import { forEachRun, isFullMask } from "../base/part-mask.ts";
import { invariant } from "../base/errors.ts";
import { PART_BYTES } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import type { PackResult, Shipment } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { areaA, areaABytes, areaB, areaBBytes } from "./slot-layout.ts";

/**
 * Collects parts in area A of a slot, in order. The source of a part may itself lie in area A, at or behind the place it moves to.
 */
export class Shipper {
  readonly #lane: Lane;
  readonly #slot: Uint8Array;
  readonly #blockBytes: number;
  readonly #picked: number[] = [];
  readonly #masks: number[] = [];
  readonly #digests: Uint8Array[] = [];
  #raw = 0;

  constructor(lane: Lane, slot: Uint8Array, blockBytes: number) {
    this.#lane = lane;
    this.#slot = slot;
    this.#blockBytes = blockBytes;
  }

  /** Bytes of the parts so far. */
  get rawBytes(): number {
    return this.#raw;
  }

  /** Adds the parts of `block` that `mask` names. */
  add(index: number, block: Uint8Array, mask: Uint8Array, digest: Uint8Array): void {
    this.#picked.push(index);
    for (const byte of mask) this.#masks.push(byte);
    this.#digests.push(digest);
    if (isFullMask(mask, this.#blockBytes)) this.#move(block);
    else {
      forEachRun(mask, (first, count) => {
        this.#move(block.subarray(first * PART_BYTES, (first + count) * PART_BYTES));
      });
    }
  }

  #move(source: Uint8Array): void {
    const target = areaA + this.#raw;
    invariant(target + source.length <= areaA + areaABytes, "a shipment fits its slot");
    if (source.byteOffset !== this.#slot.byteOffset + target || source.buffer !== this.#slot.buffer) {
      this.#lane.copy(this.#slot.subarray(target, target + source.length), source);
    }
    this.#raw += source.length;
  }

  /** Compresses; undefined when nothing was added. */
  finish(codec: CodecName): Shipment | undefined {
    if (this.#picked.length === 0) return undefined;
    return {
      picked: this.#picked,
      masks: Uint8Array.from(this.#masks),
      digests: Buffer.concat(this.#digests),
      rawBytes: this.#raw,
      ...packRaw(this.#lane, this.#slot, this.#raw, codec),
    };
  }
}

/** Compresses the first `rawBytes` of area A into area B; what does not get smaller stays where it is. */
export function packRaw(lane: Lane, slot: Uint8Array, rawBytes: number, codec: CodecName): PackResult {
  const stored = { codec: "stored", payloadOffset: areaA, payloadBytes: rawBytes } as const;
  if (codec === "stored") return stored;
  const raw = slot.subarray(areaA, areaA + rawBytes);
  const payloadBytes = lane.codecs.get(codec).compress(raw, slot.subarray(areaB, areaB + areaBBytes));
  return payloadBytes > 0 ? { codec, payloadOffset: areaB, payloadBytes } : stored;
}
