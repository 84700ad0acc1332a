/** Puts parts together into the payload of one data frame. */
import { hasPart } from "../base/part-mask.ts";
import { invariant } from "../base/errors.ts";
import { PART_BYTES, partsPerBlock } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import type { PackResult, Shipment } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { areaA, areaABytes, areaB, areaBBytes } from "./slot-layout.ts";

/**
 * Collects parts in area A of a slot, in order. The source of a part may itself lie in area A, at or behind the place it moves to.
 */
export class Shipper {
  readonly #slot: Uint8Array;
  readonly #blockBytes: number;
  readonly #picked: number[] = [];
  readonly #masks: number[] = [];
  readonly #digests: Uint8Array[] = [];
  #raw = 0;

  constructor(slot: Uint8Array, blockBytes: number) {
    this.#slot = slot;
    this.#blockBytes = blockBytes;
  }

  /** Adds the parts of `block` that `mask` names. */
  add(index: number, block: Uint8Array, mask: Uint8Array, digest: Uint8Array): void {
    this.#picked.push(index);
    for (const byte of mask) this.#masks.push(byte);
    this.#digests.push(digest);
    const parts = partsPerBlock(this.#blockBytes);
    let part = 0;
    while (part < parts) {
      if (!hasPart(mask, part)) {
        part++;
        continue;
      }
      let end = part + 1;
      while (end < parts && hasPart(mask, end)) end++;
      const source = block.subarray(part * PART_BYTES, end * PART_BYTES);
      const target = areaA + this.#raw;
      invariant(target + source.length <= areaA + areaABytes, "a shipment fits its slot");
      if (source.byteOffset !== this.#slot.byteOffset + target || source.buffer !== this.#slot.buffer) {
        this.#slot.set(source, target);
      }
      this.#raw += source.length;
      part = end;
    }
  }

  /** Compresses; undefined when nothing was added. */
  finish(lane: Lane, codec: CodecName): Shipment | undefined {
    if (this.#picked.length === 0) return undefined;
    return {
      picked: this.#picked,
      masks: Uint8Array.from(this.#masks),
      digests: Buffer.concat(this.#digests),
      rawBytes: this.#raw,
      ...packRaw(lane, this.#slot, this.#raw, codec),
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
