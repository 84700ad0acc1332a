/** Time as a parameter: nothing below the command line reads the system's clock by itself. */

export interface Clock {
  /** Wall clock, milliseconds since 1970 UTC. A label only: may jump. */
  now(): number;
  /** Milliseconds from an arbitrary start; never goes back. */
  monotonic(): number;
  /** Resolves after `millis`; rejects with the signal's reason when aborted. */
  sleep(millis: number, signal?: AbortSignal): Promise<void>;
  /** Calls `task` every `millis` until the returned function is called. Never keeps the process alive. */
  every(millis: number, task: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  sleep(millis, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(signal.reason);
        return;
      }
      const onAbort = (): void => {
        clearTimeout(timer);
        reject(signal?.reason);
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      }, millis);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  },
  every(millis, task) {
    const timer = setInterval(task, millis);
    timer.unref();
    return () => {
      clearInterval(timer);
    };
  },
};
