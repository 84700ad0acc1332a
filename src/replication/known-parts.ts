/** Part digests of blocks the sender has asked about: what it sends of them comes soon, and they need not be read as a whole again. */
import { partsPerBlock } from "../base/units.ts";
import { PART_DIGEST_BYTES } from "../codec/digest-sizes.ts";

/** Bytes of digests kept: several times what a sender has open. What is dropped is read again. */
const bytesMax = 4 * 1024 * 1024;

export class KnownParts {
  readonly #perBlock: number;
  readonly #blocksMax: number;
  readonly #digests = new Map<number, Uint8Array>();

  constructor(blockBytes: number) {
    this.#perBlock = partsPerBlock(blockBytes) * PART_DIGEST_BYTES;
    this.#blocksMax = Math.floor(bytesMax / this.#perBlock);
  }

  /** `digests`: of each of `blocks`, zeros where they are not known; copied. Empty: of none. */
  add(blocks: readonly number[], digests: Uint8Array): void {
    if (digests.length === 0) return;
    for (const [index, block] of blocks.entries()) {
      this.#digests.set(block, Uint8Array.from(digests.subarray(index * this.#perBlock, (index + 1) * this.#perBlock)));
    }
    for (const oldest of this.#digests.keys()) {
      if (this.#digests.size <= this.#blocksMax) break;
      this.#digests.delete(oldest);
    }
  }

  /** Of each of `blocks`, zeros where they are not known; undefined when none is. */
  of(blocks: readonly number[]): Uint8Array | undefined {
    let found: Uint8Array | undefined;
    for (const [index, block] of blocks.entries()) {
      const digests = this.#digests.get(block);
      if (digests === undefined) continue;
      found ??= new Uint8Array(blocks.length * this.#perBlock);
      found.set(digests, index * this.#perBlock);
    }
    return found;
  }

  /** The blocks are about to change. */
  forget(blocks: readonly number[]): void {
    for (const block of blocks) this.#digests.delete(block);
  }

  /** The disk gets another size. */
  clear(): void {
    this.#digests.clear();
  }
}
