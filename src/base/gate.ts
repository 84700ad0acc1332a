/** At most so many at once, in the order of asking. */
import { invariant } from "./errors.ts";

export class Gate {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(places: number) {
    invariant(places >= 1, "a gate has a place");
    this.#free = places;
  }

  /** Resolves when there is a place; the caller gives it back with {@link leave}. */
  enter(): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}

/** Waits for all, then throws the first failure: nothing may still use what the tasks share when the caller goes on. */
export async function settleAll(tasks: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(tasks);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
