/** Which parts of a disk an open undo log holds already, and which blocks it has named since its last checkpoint. Pure. */
import { addPart, countParts, hasPart } from "../../base/part-mask.ts";
import { PagedBits } from "../../base/paged-bits.ts";
import { limits } from "../../base/limits.ts";
import { maskBytes, partsPerBlock } from "../../base/units.ts";

/** What is still to be logged of a block that is about to be overwritten. */
export interface Claim {
  /** Parts; none: the block only has to be named again. */
  readonly mask: Uint8Array;
  /** The log has nothing of the block yet, so its digest belongs into this entry. */
  readonly first: boolean;
}

export class LoggedParts {
  readonly #perBlock: number;
  readonly #maskBytes: number;
  /** Blocks of which every part is logged. */
  readonly #whole: PagedBits;
  /** Blocks with an entry. */
  readonly #named: PagedBits;
  /** Parts of blocks that are not whole. */
  readonly #parts: PagedBits;
  /** Blocks with an entry since the last checkpoint. */
  #recent: PagedBits;

  constructor(blockBytes: number) {
    this.#perBlock = partsPerBlock(blockBytes);
    this.#maskBytes = maskBytes(blockBytes);
    // A disk may grow under an open log: bits cost nothing until they are set.
    const blocks = Math.ceil(limits.diskBytesMax / blockBytes);
    this.#whole = new PagedBits(blocks);
    this.#named = new PagedBits(blocks);
    this.#recent = new PagedBits(blocks);
    this.#parts = new PagedBits(blocks * this.#perBlock);
  }

  /** Whether an overwrite of `block` needs nothing logged at all. */
  isWhole(block: number): boolean {
    return this.#whole.has(block) && this.#recent.has(block);
  }

  /** Whether the log has an entry of `block`. */
  has(block: number): boolean {
    return this.#named.has(block);
  }

  /** Whether the log has an entry of `block` since its last checkpoint. */
  isRecent(block: number): boolean {
    return this.#recent.has(block);
  }

  /** Blocks with an entry since the last checkpoint. */
  get recentCount(): number {
    return this.#recent.count;
  }

  /** Counts the parts of `mask` as logged; undefined: nothing is to be written for them. */
  claim(block: number, mask: Uint8Array): Claim | undefined {
    const first = this.#named.add(block);
    const again = !this.#recent.add(block);
    const missing = new Uint8Array(this.#maskBytes);
    let any = false;
    if (!this.#whole.has(block)) {
      for (let part = 0; part < this.#perBlock; part++) {
        if (!hasPart(mask, part) || !this.#parts.add(block * this.#perBlock + part)) continue;
        addPart(missing, part);
        any = true;
      }
      this.#fold(block);
    }
    if (!any && again) return undefined;
    return { mask: missing, first };
  }

  /** Counts whole blocks as logged. */
  claimWhole(block: number): void {
    this.#named.add(block);
    this.#recent.add(block);
    this.#whole.add(block);
  }

  /** What an entry that lies in the log says. `recent`: behind the checkpoint in force. */
  enter(block: number, mask: Uint8Array, recent: boolean): void {
    this.#named.add(block);
    if (recent) this.#recent.add(block);
    if (this.#whole.has(block)) return;
    const parts = countParts(mask);
    if (parts === this.#perBlock) {
      this.#whole.add(block);
      return;
    }
    if (parts === 0) return;
    for (let part = 0; part < this.#perBlock; part++) {
      if (hasPart(mask, part)) this.#parts.add(block * this.#perBlock + part);
    }
    this.#fold(block);
  }

  /** A checkpoint: from here on blocks are named anew, but for those in `still`. */
  restart(still: Iterable<number>): void {
    this.#recent.clear();
    for (const block of still) this.#recent.add(block);
  }

  /** A block whose parts are all logged takes one bit. */
  #fold(block: number): void {
    const first = block * this.#perBlock;
    for (let part = 0; part < this.#perBlock; part++) if (!this.#parts.has(first + part)) return;
    for (let part = 0; part < this.#perBlock; part++) this.#parts.delete(first + part);
    this.#whole.add(block);
  }
}
