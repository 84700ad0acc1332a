/** When the next cycle of a disk is due, and how far behind the receiver is. */
import type { Clock } from "../base/clock.ts";
import type { RankedGate } from "../base/ranked-gate.ts";

export interface CyclesOptions {
  readonly clock: Clock;
  /** Between the beginnings of two cycles. 0: the next begins when one has ended. */
  readonly everyMillis: number;
  readonly cycle: (signal: AbortSignal) => Promise<void>;
  /** A cycle has ended well. What this throws ends the schedule. */
  readonly onDone?: (() => void) | undefined;
  /** A cycle failed; the next one is tried when it is due, and not before {@link RETRY_MILLIS} have passed. */
  readonly onFailure: (error: unknown) => void;
  /** Cycles fall behind, or have caught up. Never called when {@link everyMillis} is 0. */
  readonly onLag?: ((lag: Lag) => void) | undefined;
  /**
   * Shared with the schedules of others that use the same link: cycles that are due at the same time go one after the other, earliest deadline first. The deadline of a disk is when
   * what the receiver has of it becomes older than its interval.
   */
  readonly turns?: RankedGate | undefined;
  readonly signal: AbortSignal;
}

/** How old what the receiver has is. */
export interface Lag {
  /** `behind`: twice as old as the interval, then told whenever it has doubled. `caught-up`: as old as a cycle in time leaves it. */
  readonly state: "behind" | "caught-up";
  /** Since the cycle began that was sent last; before there is one, since the first began. */
  readonly millis: number;
}

export const RETRY_MILLIS = 1_000;

/** Runs one cycle at a time, the first at once, until the signal fires. A cycle that took longer than the interval is followed by one, however many were missed. */
export async function runCycles(options: CyclesOptions): Promise<void> {
  const { clock, everyMillis, onFailure, signal } = options;
  const watch = new LagWatch(options);
  const unwatch = watch.start();
  try {
    while (!signal.aborted) {
      const dueAt = clock.monotonic();
      let pause = 0;
      let isDone = false;
      try {
        watch.sent(await inTurn(options, watch.deadline));
        isDone = true;
      } catch (error) {
        if (signal.aborted) return;
        watch.failed();
        onFailure(error);
        pause = RETRY_MILLIS;
      }
      if (isDone) options.onDone?.();
      const wait = Math.max(pause, dueAt + everyMillis - clock.monotonic());
      await clock.sleep(Math.max(0, wait), signal).catch(() => undefined);
    }
  } finally {
    unwatch();
  }
}

/** Resolves with the moment the cycle began. */
async function inTurn({ turns, signal, clock, cycle }: CyclesOptions, deadline: number): Promise<number> {
  await turns?.enter(deadline, signal);
  try {
    const beganAt = clock.monotonic();
    await cycle(signal);
    return beganAt;
  } finally {
    turns?.leave();
  }
}

class LagWatch {
  readonly #o: Pick<CyclesOptions, "clock" | "everyMillis" | "onLag">;
  /** What the receiver has is of then. */
  #pointAt: number;
  /** The lag that was told last; 0: none, or it is over. */
  #toldMillis = 0;
  #failedAt = Number.NEGATIVE_INFINITY;

  constructor(options: Pick<CyclesOptions, "clock" | "everyMillis" | "onLag">) {
    this.#o = options;
    this.#pointAt = options.clock.monotonic();
  }

  /** When what the receiver has is older than the interval; after a failure so much later that others come before the next try. */
  get deadline(): number {
    return Math.max(this.#pointAt, this.#failedAt) + this.#o.everyMillis;
  }

  failed(): void {
    this.#failedAt = this.#o.clock.monotonic();
  }

  /** Looks at the lag until the function returned is called. */
  start(): () => void {
    const { clock, everyMillis, onLag } = this.#o;
    if (everyMillis === 0 || onLag === undefined) return () => undefined;
    return clock.every(everyMillis, () => {
      this.#look();
    });
  }

  /** A cycle that began then was sent. */
  sent(beganAt: number): void {
    this.#pointAt = beganAt;
    const millis = this.#o.clock.monotonic() - beganAt;
    if (this.#toldMillis === 0 || millis > this.#o.everyMillis) return;
    this.#toldMillis = 0;
    this.#o.onLag?.({ state: "caught-up", millis });
  }

  #look(): void {
    const millis = this.#o.clock.monotonic() - this.#pointAt;
    if (millis < 2 * Math.max(this.#o.everyMillis, this.#toldMillis)) return;
    this.#toldMillis = millis;
    this.#o.onLag?.({ state: "behind", millis });
  }
}
