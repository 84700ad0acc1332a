/**
 * When all of a disk's digest table is read and checked: in the first session of a process, and then every hour. Every session would cost a machine that is replicated each
 * second 128 MiB of reading for each TiB. What a session needs of the table is checked as it is read anyway, and mended.
 */
import type { Clock } from "../base/clock.ts";

export const tableCheckMillis = 3_600_000;

export class TableChecks {
  readonly #clock: Clock;
  readonly #doneAt = new Map<string, number>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  isDue(disk: string): boolean {
    const before = this.#doneAt.get(disk);
    return before === undefined || this.#clock.monotonic() - before >= tableCheckMillis;
  }

  done(disk: string): void {
    this.#doneAt.set(disk, this.#clock.monotonic());
  }
}
