/** When the next cycle of a disk is due. */
import type { Clock } from "../base/clock.ts";

export interface CyclesOptions {
  readonly clock: Clock;
  /** Between the beginnings of two cycles. 0: the next begins when one has ended. */
  readonly everyMillis: number;
  readonly cycle: (signal: AbortSignal) => Promise<void>;
  /** A cycle failed; the next one is tried when it is due, and not before {@link RETRY_MILLIS} have passed. */
  readonly onFailure: (error: unknown) => void;
  readonly signal: AbortSignal;
}

export const RETRY_MILLIS = 1_000;

/** Runs one cycle at a time, the first at once, until the signal fires. A cycle that took longer than the interval is followed by one, however many were missed. */
export async function runCycles(options: CyclesOptions): Promise<void> {
  const { clock, everyMillis, cycle, onFailure, signal } = options;
  while (!signal.aborted) {
    const beganAt = clock.monotonic();
    let pause = 0;
    try {
      await cycle(signal);
    } catch (error) {
      if (signal.aborted) return;
      onFailure(error);
      pause = RETRY_MILLIS;
    }
    const wait = Math.max(pause, beganAt + everyMillis - clock.monotonic());
    await clock.sleep(Math.max(0, wait), signal).catch(() => undefined);
  }
}
