/**
 * The heartbeat of who writes to a disk, in the text of `apply.lock`: each second, and durable every ten, from `begin` until replica and table are laid aside or committed. After an
 * unclean end it tells a write of the writer's own from one that somebody else made later: doubt.ts.
 */
import type { Clock } from "../base/clock.ts";
import { HEARTBEAT_MILLIS, HEARTBEAT_SYNC_MILLIS } from "../base/heartbeat.ts";
import type { Storage } from "../storage/seam.ts";
import { type Holder, writeHolder } from "./disk-lock.ts";

export interface HeartbeatParts {
  readonly storage: Storage;
  readonly clock: Clock;
  /** Of `apply.lock`. */
  readonly path: string;
  readonly holder: Holder;
  /** Empty: not known. */
  readonly bootId: string;
}

export class HolderHeartbeat {
  readonly #parts: HeartbeatParts;
  #stop: (() => void) | undefined;
  #beating: Promise<void> = Promise.resolve();
  #isBeating = false;
  #syncedAt = 0;

  constructor(parts: HeartbeatParts) {
    this.#parts = parts;
  }

  /** Durable when it resolves; it goes on until {@link pause}. */
  async start(): Promise<void> {
    this.pause();
    await this.#beating;
    await this.#write(true);
    this.#stop = this.#parts.clock.every(HEARTBEAT_MILLIS, () => {
      // A file system that takes longer than a second for one gets no second one.
      if (!this.#isBeating) this.#beating = this.#beat();
    });
  }

  /** Once, and not durable: what was to be learned from the one before is kept elsewhere. */
  async note(): Promise<void> {
    await this.#write(false);
  }

  pause(): void {
    this.#stop?.();
    this.#stop = undefined;
  }

  /** The last one. `sure`: the table is in no doubt; while there is no {@link start} without its {@link pause} either, nothing need be known of the writer. */
  async end(sure: boolean): Promise<void> {
    const clean = sure && this.#stop === undefined;
    this.pause();
    await this.#beating;
    if (clean) await writeHolder(this.#parts.storage, this.#parts.path, undefined);
    else await this.note();
  }

  async #beat(): Promise<void> {
    this.#isBeating = true;
    try {
      await this.#write(this.#parts.clock.monotonic() - this.#syncedAt >= HEARTBEAT_SYNC_MILLIS);
    } catch {
      // It only costs time: without it the replica is compared after an unclean end.
    }
    this.#isBeating = false;
  }

  async #write(sync: boolean): Promise<void> {
    const { storage, clock, path, holder, bootId } = this.#parts;
    await writeHolder(storage, path, { ...holder, heartbeat: { millis: clock.now(), bootId } }, { sync });
    if (sync) this.#syncedAt = clock.monotonic();
  }
}
