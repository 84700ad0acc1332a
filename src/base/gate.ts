/** At most so many at once, in the order of asking. */
import { invariant } from "./errors.ts";

export class Gate {
  #free: number;
  readonly #waiting = new Set<() => void>();

  constructor(places: number) {
    invariant(places >= 1, "a gate has a place");
    this.#free = places;
  }

  /** So many wait for a place. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** Resolves when there is a place; the caller gives it back with {@link leave}. Rejects with the signal's reason, and then there is nothing to give back. */
  enter(signal?: AbortSignal): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.delete(go);
        reject(signal?.reason);
      };
      const go = (): void => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      };
      if (signal?.aborted === true) reject(signal.reason);
      else {
        this.#waiting.add(go);
        signal?.addEventListener("abort", onAbort, { once: true });
      }
    });
  }

  leave(): void {
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#free++;
      return;
    }
    this.#waiting.delete(next);
    next();
  }
}

/** Waits for all, then throws the first failure: nothing may still use what the tasks share when the caller goes on. */
export async function settleAll(tasks: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(tasks);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
