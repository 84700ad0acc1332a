/** Has scattered writes go to the device in stretches while a delta goes on: the sync of its commit is then short. Pure. */

/** Enough for the kernel to join neighbours; a device writes it in the time the next ones come. */
const stretchBytes = 32 * 1024 * 1024;

export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

export class EarlyWriteback {
  #from = Number.POSITIVE_INFINITY;
  #to = 0;
  #bytes = 0;

  /** `bytes` were written between these offsets, and lie in the page cache. */
  wrote(from: number, to: number, bytes: number): void {
    if (bytes === 0) return;
    this.#from = Math.min(this.#from, from);
    this.#to = Math.max(this.#to, to);
    this.#bytes += bytes;
  }

  /** What is to be written now, if anything: it is told once. */
  take(): Stretch | undefined {
    if (this.#bytes < stretchBytes) return undefined;
    const stretch = { offset: this.#from, length: this.#to - this.#from };
    this.#from = Number.POSITIVE_INFINITY;
    this.#to = 0;
    this.#bytes = 0;
    return stretch;
  }
}
