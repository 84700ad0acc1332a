/** A clock that stands still until it is told to go on. */
import type { Clock } from "../base/clock.ts";
import { invariant } from "../base/errors.ts";

export interface FakeClock extends Clock {
  /** Sleepers and repeating tasks that wait for time to pass. */
  readonly waiting: number;
  /** Milliseconds (monotonic) at which the next of them is due, or undefined. */
  readonly nextAt: number | undefined;
  /**
   * Lets `millis` pass. What is due runs in the order of time, what is due at the same time in the order of asking; what a task itself asks
   * for runs as well when it is due within `millis`. Promise jobs run after the return, not between.
   */
  advance(millis: number): void;
  /** Like `advance`, but promise jobs (a bounded chain of them) run before each step, so that what they ask for is seen. */
  run(millis: number): Promise<void>;
  /** Moves the wall clock alone, as an administrator or NTP does. */
  shiftWall(millis: number): void;
}

interface Timer {
  at: number;
  readonly order: number;
  /** Undefined: once. */
  readonly every: number | undefined;
  readonly fire: () => void;
}

/** Promise jobs let through before time goes on in {@link FakeClock.run}. */
const jobsPerStep = 100;

/** `now`: wall clock at the start, milliseconds since 1970 UTC; default 2025-01-01T00:00:00Z. */
export function createFakeClock(options: { readonly now?: number } = {}): FakeClock {
  let wallOffset = options.now ?? Date.UTC(2025, 0, 1);
  let monotonic = 0;
  let orders = 0;
  const timers = new Set<Timer>();

  const add = (millis: number, every: number | undefined, fire: () => void): Timer => {
    const timer = { at: monotonic + Math.max(0, millis), order: orders++, every, fire };
    timers.add(timer);
    return timer;
  };
  const next = (): Timer | undefined => earliest(timers);
  const fireNext = (end: number): boolean => {
    const timer = next();
    if (timer === undefined || timer.at > end) return false;
    monotonic = Math.max(monotonic, timer.at);
    if (timer.every === undefined) timers.delete(timer);
    else timer.at += timer.every;
    timer.fire();
    return true;
  };
  const settle = async (): Promise<void> => {
    for (let job = 0; job < jobsPerStep; job++) await Promise.resolve();
  };

  return {
    now: () => wallOffset + monotonic,
    monotonic: () => monotonic,
    sleep(millis, signal) {
      return new Promise((resolve, reject) => {
        if (signal?.aborted === true) {
          reject(signal.reason);
          return;
        }
        const onAbort = (): void => {
          timers.delete(timer);
          reject(signal?.reason);
        };
        const timer = add(millis, undefined, () => {
          signal?.removeEventListener("abort", onAbort);
          resolve();
        });
        signal?.addEventListener("abort", onAbort, { once: true });
      });
    },
    every(millis, task) {
      invariant(millis > 0, "a repeating task repeats after some time");
      const timer = add(millis, millis, task);
      return () => {
        timers.delete(timer);
      };
    },
    get waiting() {
      return timers.size;
    },
    get nextAt() {
      return next()?.at;
    },
    advance(millis) {
      const end = monotonic + millis;
      while (fireNext(end));
      monotonic = end;
    },
    async run(millis) {
      const end = monotonic + millis;
      do await settle();
      while (fireNext(end));
      monotonic = end;
      await settle();
    },
    shiftWall(millis) {
      wallOffset += millis;
    },
  };
}

/** The timer that fires next; of equal times the one set first. */
function earliest(timers: Iterable<Timer>): Timer | undefined {
  let first: Timer | undefined;
  for (const timer of timers) {
    if (first === undefined || timer.at < first.at || (timer.at === first.at && timer.order < first.order)) {
      first = timer;
    }
  }
  return first;
}
