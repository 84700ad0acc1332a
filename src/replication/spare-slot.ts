/**
 * Memory of a session for work that no frame brings its own for: from the pool while that has some, else one slot that the session keeps back, in turns. So it never
 * waits for another session, which may be waiting itself: slots are given back when a session ends, and none would.
 */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import { Gate } from "../base/gate.ts";

export class SpareSlot implements Pick<BufferPool, "acquire"> {
  readonly #pool: Pick<BufferPool, "tryAcquire">;
  readonly #kept: Slot;
  readonly #turn = new Gate(1);

  /** `kept`: stays the caller's, who gives it back when nobody works any more. */
  constructor(pool: Pick<BufferPool, "tryAcquire">, kept: Slot) {
    this.#pool = pool;
    this.#kept = kept;
  }

  /** Rejects with the signal's reason. Who has one must not ask for another. */
  async acquire(signal?: AbortSignal): Promise<Slot> {
    const free = this.#pool.tryAcquire();
    if (free !== undefined) return free;
    await this.#turn.enter(signal);
    const { index, bytes } = this.#kept;
    return { index, bytes, release: () => this.#turn.leave() };
  }
}
