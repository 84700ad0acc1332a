/** Tasks that go on one at a time, in an order a seed decides: every interleaving there is can happen, and happens again. */
export interface Turns {
  /** Resolves when it is this task's turn. */
  wait(): Promise<void>;
  /** From 0 to `below` - 1. */
  pick(below: number): number;
  /** Gives turns until all tasks have ended; throws the first failure. */
  run(tasks: readonly Promise<unknown>[]): Promise<void>;
}

/** Promise jobs between two turns: more than any chain of awaits that waits for nothing. */
const jobsBetween = 60;

export function createTurns(seed: number): Turns {
  let state = (seed * 0x9e3779b1) >>> 0 || 1;
  const waiting: (() => void)[] = [];
  const pick = (below: number): number => {
    // xorshift32
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
  return {
    wait: () => new Promise((resolve) => waiting.push(resolve)),
    pick,
    async run(tasks) {
      let left = tasks.length;
      let failed: { readonly error: unknown } | undefined;
      for (const task of tasks) {
        task
          .catch((error: unknown) => {
            failed ??= { error };
          })
          .finally(() => left--);
      }
      while (left > 0 && failed === undefined) {
        for (let job = 0; job < jobsBetween; job++) await Promise.resolve();
        const [next] = waiting.splice(pick(Math.max(1, waiting.length)), 1);
        if (next !== undefined) next();
        else if (left > 0) await new Promise((resolve) => setImmediate(resolve));
      }
      if (failed !== undefined) throw failed.error;
    },
  };
}
