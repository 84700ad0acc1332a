/** Token bucket: bytes a second for everything that goes through it. */
import type { Clock } from "../base/clock.ts";

export interface RateLimit {
  /** Resolves when `bytes` may be sent. In the order of asking. `bytes` is not called where nothing is limited. */
  take(bytes: () => number, signal: AbortSignal): Promise<void>;
  /** Counts what was sent without asking: whoever takes next waits for it. `bytes` as in {@link take}. */
  spent(bytes: () => number): void;
}

/** A quarter of a second of burst, so that short pauses are caught up and long ones are not. */
const burstSeconds = 0.25;

/** `bytesPerSecond` undefined: no limit. */
export function createRateLimit(clock: Clock, bytesPerSecond: number | undefined): RateLimit {
  if (bytesPerSecond === undefined) return { take: () => Promise.resolve(), spent: () => undefined };
  /** When the bytes taken so far will have passed, in milliseconds (monotonic). */
  let clearAt = clock.monotonic() - burstSeconds * 1000;
  /** Milliseconds until they will. */
  const pass = (bytes: number): number => {
    const now = clock.monotonic();
    clearAt = Math.max(clearAt, now - burstSeconds * 1000) + (bytes / bytesPerSecond) * 1000;
    return clearAt - now;
  };
  return {
    async take(count, signal) {
      const bytes = count();
      const wait = pass(bytes);
      if (wait <= 0) return;
      try {
        await clock.sleep(wait, signal);
      } catch (reason) {
        // They were not sent: whoever comes next, of another disk or attempt, does not wait for them.
        clearAt -= (bytes / bytesPerSecond) * 1000;
        throw reason;
      }
    },
    spent: (bytes) => void pass(bytes()),
  };
}
