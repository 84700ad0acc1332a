/** Joins undo logs in the background, one disk at a time, after sessions: it costs reading and writing, and never a sender's time. */
import type { Clock } from "../base/clock.ts";
import { toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Store } from "../replica/store.ts";

/** Between two looks at the same disk: a look reads the indexes of all its logs. */
export const housekeepingMillis = 600_000;

export class Housekeeping {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #lookedAt = new Map<string, number>();
  #last: Promise<void> = Promise.resolve();

  constructor(store: Store, clock: Clock, log: Logger) {
    this.#store = store;
    this.#clock = clock;
    this.#log = log;
  }

  /** A session on this disk has ended. */
  after(disk: string): void {
    const now = this.#clock.monotonic();
    const before = this.#lookedAt.get(disk);
    if (this.#stop.signal.aborted || (before !== undefined && now - before < housekeepingMillis)) return;
    this.#lookedAt.set(disk, now);
    this.#last = this.#last.then(() => this.#compact(disk));
  }

  /** Stops at the next step and waits for it. Nothing is lost: what was joined stays, the rest is joined another time. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#last;
  }

  async #compact(disk: string): Promise<void> {
    if (this.#stop.signal.aborted) return;
    try {
      for (const { point, bytesBefore, bytesAfter } of await this.#store.compact(disk, this.#stop.signal)) {
        this.#log.info({ disk, point, bytesBefore, bytesAfter }, "undo logs joined");
      }
    } catch (error) {
      const { code, message } = toReplicationError(error);
      // A session that was refused before there was a disk.
      if (code === "disk-not-found") this.#lookedAt.delete(disk);
      else if (code !== "aborted") this.#log.warn({ disk, code }, `joining undo logs: ${message}`);
    }
  }
}
