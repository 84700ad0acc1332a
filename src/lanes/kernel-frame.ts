/** The blocks of a data frame beside digests of parts they have, looked at in one call of the kernel: for each block alone JavaScript costs more than digesting. */
import { invariant } from "../base/errors.ts";
import { maskBytes, partsPerBlock } from "../base/units.ts";
import { PART_DIGEST_BYTES } from "../codec/digest-sizes.ts";
import type { DigestKernel } from "../codec/digest-kernel.ts";
import type { Lane } from "./lane.ts";

/** State of a block that is to be looked at. */
const wanted = 255;

export class KernelFrame {
  readonly #kernel: DigestKernel;
  readonly #lane: Lane;
  readonly #count: number;
  readonly #parts: number;
  /** Part digests of the blocks as they are: the caller fills in those of {@link want}ed ones. */
  readonly known: Uint8Array;
  /** An `applyState` a block. */
  readonly states: Uint8Array;
  readonly #masks: Uint8Array;
  readonly #digests: Uint8Array;
  readonly #temp: Uint8Array;

  private constructor(lane: Lane, kernel: DigestKernel, count: number, blockBytes: number) {
    this.#lane = lane;
    this.#kernel = kernel;
    this.#count = count;
    this.#parts = partsPerBlock(blockBytes);
    let end = 0;
    const take = (bytes: number): Uint8Array => lane.secondScratch.subarray(end, (end += bytes));
    this.#temp = take(this.#parts * PART_DIGEST_BYTES);
    this.known = take(count * this.#parts * PART_DIGEST_BYTES);
    this.#digests = take(count * 8);
    this.#masks = take(count * maskBytes(blockBytes));
    this.states = take(count);
    invariant(end <= lane.secondScratch.length, "what is known of a frame fits a block");
  }

  /** For `count` blocks; takes the lane's second scratch. Undefined: this lane has no kernel. */
  static over(lane: Lane, count: number, blockBytes: number): KernelFrame | undefined {
    return lane.kernel === undefined ? undefined : new KernelFrame(lane, lane.kernel, count, blockBytes);
  }

  want(index: number, known: Uint8Array): void {
    this.states[index] = wanted;
    this.known.set(known, index * this.#parts * PART_DIGEST_BYTES);
  }

  /**
   * Gives each wanted block the state `written` when it gets its digest by the parts in `masks` becoming `content` (one behind the other, in the memory of
   * the slots), else `mismatch`.
   */
  change(masks: Uint8Array, content: Uint8Array, digests: Uint8Array): void {
    this.#masks.set(masks);
    this.#digests.set(digests);
    this.#kernel.change(
      this.#count,
      this.#parts,
      this.#masks.byteOffset,
      content.byteOffset,
      this.known.byteOffset,
      this.#digests.byteOffset,
      this.states.byteOffset,
      this.#lane.zeroPart,
      this.#temp.byteOffset,
    );
  }

  /** Whether the parts in `masks` of the first `count` blocks, one behind the other in `content`, are as {@link known} says. */
  isAsKnown(masks: Uint8Array, count: number, content: Uint8Array): boolean {
    this.#masks.set(masks);
    const places = [this.#masks.byteOffset, content.byteOffset, this.known.byteOffset] as const;
    return this.#kernel.verify(count, this.#parts, ...places) === 1;
  }
}
