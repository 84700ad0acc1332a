/** At most so many at once; of those that wait, the one of the lowest rank is next, of equals the one that asked first. */
import { invariant } from "./errors.ts";

interface Waiter {
  readonly rank: number;
  readonly go: () => void;
}

export class RankedGate {
  #free: number;
  readonly #waiting: Waiter[] = [];

  constructor(places: number) {
    invariant(places >= 1, "a gate has a place");
    this.#free = places;
  }

  /** Resolves when there is a place; the caller gives it back with {@link leave}. Rejects with the signal's reason, and then there is nothing to give back. */
  enter(rank: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason);
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(signal.reason);
      };
      const waiter = {
        rank,
        go: () => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      this.#waiting.push(waiter);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  leave(): void {
    let next: Waiter | undefined;
    for (const waiter of this.#waiting) if (next === undefined || waiter.rank < next.rank) next = waiter;
    if (next === undefined) {
      this.#free++;
      return;
    }
    this.#waiting.splice(this.#waiting.indexOf(next), 1);
    next.go();
  }
}
