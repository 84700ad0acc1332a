/**
 * Where each page of bits lies. A page has two places: a checkpoint writes the one that the header in force does not name, so that what it
 * names stays whole until the next header is durable.
 */
import { crc32 } from "node:zlib";

export class PageDirectory {
  /** 0: the page was never written, and has no bits. */
  #generations: Float64Array;
  #checksums: Uint32Array;
  #slots: Uint8Array;

  constructor(pages: number) {
    this.#generations = new Float64Array(pages);
    this.#checksums = new Uint32Array(pages);
    this.#slots = new Uint8Array(pages);
  }

  get pages(): number {
    return this.#slots.length;
  }

  /** The place a checkpoint of this generation writes the page to. */
  slotToWrite(page: number, generation: number): number {
    const slot = this.#slots[page] ?? 0;
    return this.#generations[page] === generation || this.#generations[page] === 0 ? slot : 1 - slot;
  }

  set(page: number, slot: number, { generation, checksum }: { generation: number; checksum: number }): void {
    this.#generations[page] = generation;
    this.#checksums[page] = checksum;
    this.#slots[page] = slot;
  }

  /** Over number, generation and checksum of each page that was written: a page that is missing, or an older one, is noticed. */
  checksum(): number {
    const entry = Buffer.alloc(16);
    let sum = 0;
    for (let page = 0; page < this.pages; page++) {
      const generation = this.#generations[page] ?? 0;
      if (generation === 0) continue;
      entry.writeUInt32LE(page, 0);
      entry.writeUInt32LE(this.#checksums[page] ?? 0, 4);
      entry.writeBigUInt64LE(BigInt(generation), 8);
      sum = crc32(entry, sum);
    }
    return sum;
  }

  resize(pages: number): void {
    const [generations, checksums, slots] = [this.#generations, this.#checksums, this.#slots];
    const kept = Math.min(pages, slots.length);
    this.#generations = new Float64Array(pages);
    this.#checksums = new Uint32Array(pages);
    this.#slots = new Uint8Array(pages);
    this.#generations.set(generations.subarray(0, kept));
    this.#checksums.set(checksums.subarray(0, kept));
    this.#slots.set(slots.subarray(0, kept));
  }
}
