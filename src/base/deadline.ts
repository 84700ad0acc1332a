/** Work that must be done in time. */
import type { Clock } from "./clock.ts";
import type { ReplicationError } from "./errors.ts";

export interface DeadlineOptions {
  readonly clock: Clock;
  readonly millis: number;
  /** What is said when the time is over. */
  readonly error: () => ReplicationError;
  /** Ends the work as well. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs `work` with a signal that fires with `error` after `millis`, or with the outer signal's reason. The work has to heed it: it is waited for in
 * any case, so that nothing of it goes on behind.
 */
export async function withDeadline<T>(options: DeadlineOptions, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const { clock, millis, error, signal } = options;
  const control = new AbortController();
  const timer = new AbortController();
  const onAbort = (): void => control.abort(signal?.reason);
  if (signal?.aborted === true) onAbort();
  signal?.addEventListener("abort", onAbort, { once: true });
  clock.sleep(millis, timer.signal).then(
    () => control.abort(error()),
    // Aborted below: it was done in time.
    () => undefined,
  );
  try {
    return await work(control.signal);
  } finally {
    timer.abort();
    signal?.removeEventListener("abort", onAbort);
  }
}

/** Throws the reason of a signal that has fired. */
export function throwIfAborted(signal: AbortSignal): void {
  if (signal.aborted) throw signal.reason;
}
