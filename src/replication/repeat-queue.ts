import { ReplicationError } from "../base/errors.ts";

/** Blocks the receiver wants whole, served one request after the other. */
export class RepeatQueue {
  handler: ((blocks: readonly number[]) => Promise<void>) | undefined;
  #chain: Promise<void> = Promise.resolve();
  #arrived: (() => void) | undefined;
  /** Requests that arrived so far. */
  count = 0;

  push(blocks: readonly number[]): void {
    const { handler } = this;
    if (handler === undefined)
      throw new ReplicationError("protocol-violation", "the receiver asks for blocks before any was sent");
    this.#chain = this.#chain.then(() => handler(blocks));
    this.#chain.catch(() => {
      // Seen by `settled`, which the commit awaits; the session's own failure is reported there too.
    });
    this.count++;
    this.#arrived?.();
  }

  /** Resolves when all asked so far were sent. */
  settled(): Promise<void> {
    return this.#chain;
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
