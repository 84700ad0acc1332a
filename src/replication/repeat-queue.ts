import { ReplicationError } from "../base/errors.ts";
import { PagedBits } from "../base/paged-bits.ts";

/**
 * Blocks the receiver wants whole, served one after the other. What waits is a set, not what the requests were: a receiver that asks without giving
 * credit costs one bit a block. The session lets each block through once, and none that lies beyond the disk.
 */
export class RepeatQueue {
  handler: ((blocks: readonly number[]) => Promise<void>) | undefined;
  readonly #waiting = new PagedBits(0);
  /** Blocks are being served. Stays so after a failure: nothing is served from then on. */
  #serving = false;
  #served: Promise<void> = Promise.resolve();
  #arrived: (() => void) | undefined;
  /** Requests that arrived so far. */
  count = 0;

  push(blocks: readonly number[]): void {
    const { handler } = this;
    if (handler === undefined)
      throw new ReplicationError("protocol-violation", "the receiver asks for blocks before any was sent");
    for (const block of blocks) {
      if (block >= this.#waiting.size) this.#waiting.resize(block + 1);
      this.#waiting.add(block);
    }
    if (!this.#serving) {
      this.#served = this.#serve(handler);
      this.#served.catch(() => {
        // Seen by `settled`, which the commit awaits; the session's own failure is reported there too.
      });
    }
    this.count++;
    this.#arrived?.();
  }

  async #serve(handler: (blocks: readonly number[]) => Promise<void>): Promise<void> {
    this.#serving = true;
    for (let from = 0; this.#waiting.count > 0; ) {
      const block = this.#waiting.next(from);
      // Upwards, and round to those that were asked for behind it meanwhile.
      from = block === undefined ? 0 : block + 1;
      if (block === undefined) continue;
      this.#waiting.delete(block);
      await handler([block]);
    }
    this.#waiting.clear();
    this.#serving = false;
  }

  /** Resolves when all asked so far were sent. */
  settled(): Promise<void> {
    return this.#served;
  }

  /** Resolves with undefined when more than `served` requests have arrived. */
  arrival(served: number): Promise<undefined> {
    if (this.count > served) return Promise.resolve(undefined);
    return new Promise((resolve) => {
      this.#arrived = () => {
        resolve(undefined);
      };
    });
  }
}
