/** Token bucket: bytes a second for everything that goes through it. */
import type { Clock } from "../base/clock.ts";

export interface RateLimit {
  /** Resolves when `bytes` may be sent. In the order of asking. */
  take(bytes: number, signal: AbortSignal): Promise<void>;
}

/** A quarter of a second of burst, so that short pauses are caught up and long ones are not. */
const burstSeconds = 0.25;

/** `bytesPerSecond` undefined: no limit. */
export function createRateLimit(clock: Clock, bytesPerSecond: number | undefined): RateLimit {
  if (bytesPerSecond === undefined) return { take: () => Promise.resolve() };
  /** When the bytes taken so far will have passed, in milliseconds (monotonic). */
  let clearAt = clock.monotonic() - burstSeconds * 1000;
  return {
    async take(bytes, signal) {
      const now = clock.monotonic();
      clearAt = Math.max(clearAt, now - burstSeconds * 1000) + (bytes / bytesPerSecond) * 1000;
      const wait = clearAt - now;
      if (wait > 0) await clock.sleep(wait, signal);
    },
  };
}
