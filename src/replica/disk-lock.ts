/** Locks of a store and the text that says who holds one. The kernel lock decides; the text is for messages. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Clock } from "../base/clock.ts";
import type { Heartbeat } from "../base/heartbeat.ts";
import type { FileLock, Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import { readSmallFile } from "./state-file.ts";

/** Who holds a disk: the text in `apply.lock`. For messages only; the kernel lock decides. */
export interface Holder {
  readonly host: string;
  readonly pid: number;
  /** Milliseconds since 1970 UTC. */
  readonly since: number;
  readonly identity: string;
  readonly instance: string;
  /** Missing: it has not said so yet, and nothing is known of who held the disk before. */
  readonly heartbeat?: Heartbeat | undefined;
}

const holderBytesMax = 4096;
/** A look at who holds a disk takes its lock for a moment; this many tries outlast it. */
const exclusiveTries = 25;
const chainWaitMillis = 20;
const chainTries = 1_500;

export class DiskLocks {
  readonly #storage: Storage;
  readonly #clock: Clock;
  readonly #singleProcess: boolean;
  /**
   * Locks of this process where the file system has none and the user vouches for there being no other process: how many share one, -1 for an
   * exclusive one.
   */
  readonly #own = new Map<string, number>();

  constructor(storage: Storage, clock: Clock, singleProcess: boolean) {
    this.#storage = storage;
    this.#clock = clock;
    this.#singleProcess = singleProcess;
  }

  /** Undefined: another holds it. Throws `locks-unsupported`. */
  async exclusive(path: string): Promise<FileLock | undefined> {
    for (let tries = 1; ; tries++) {
      const lock = await inFile("write-failed", `locking ${path}`, () => this.#take(path, "exclusive"));
      if (lock !== undefined || tries === exclusiveTries) return lock;
    }
  }

  /** Undefined: another holds it exclusively. Throws `locks-unsupported`. */
  shared(path: string): Promise<FileLock | undefined> {
    return inFile("write-failed", `locking ${path}`, () => this.#take(path, "shared"));
  }

  /** Whether somebody holds the lock. Undefined: cannot be told (no right to open the file). */
  async isHeld(path: string): Promise<boolean | undefined> {
    try {
      const lock = await this.#take(path, "shared");
      await lock?.release();
      return lock === undefined;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === "EACCES" || errno === "EROFS" || errno === "EPERM") return undefined;
      throw error;
    }
  }

  /** Runs `change` with `chain.lock`, which is only ever held briefly; waits for it. Throws `disk-busy` after half a minute. */
  async withChainLock<T>(path: string, change: () => Promise<T>): Promise<T> {
    for (let tries = 0; tries < chainTries; tries++) {
      const lock = await inFile("write-failed", `locking ${path}`, () => this.#take(path, "exclusive"));
      if (lock !== undefined) {
        try {
          return await change();
        } finally {
          await lock.release();
        }
      }
      await this.#clock.sleep(chainWaitMillis);
    }
    throw new ReplicationError(
      "disk-busy",
      `${path} stayed locked; see which process holds it (fuser), then start again`,
    );
  }

  async #take(path: string, kind: "shared" | "exclusive"): Promise<FileLock | undefined> {
    try {
      return await this.#storage.lock(path, kind);
    } catch (error) {
      if (errnoOf(error) !== "ENOTSUP") throw error;
      if (!this.#singleProcess) throw locksUnsupported(path);
      return this.#takeOwn(path, kind);
    }
  }

  #takeOwn(path: string, kind: "shared" | "exclusive"): FileLock | undefined {
    const held = this.#own.get(path) ?? 0;
    if (kind === "exclusive" ? held !== 0 : held < 0) return undefined;
    this.#own.set(path, kind === "exclusive" ? -1 : held + 1);
    let released = false;
    return {
      release: () => {
        if (!released) {
          released = true;
          const left = kind === "exclusive" ? 0 : (this.#own.get(path) ?? 1) - 1;
          if (left === 0) this.#own.delete(path);
          else this.#own.set(path, left);
        }
        return Promise.resolve();
      },
    };
  }
}

export function locksUnsupported(path: string): ReplicationError {
  return new ReplicationError(
    "locks-unsupported",
    `${path} lies where files cannot be locked, so two processes could write one disk; put the store on a local file system, ` +
      "or say --single-process and make sure that no second process uses it",
  );
}

/**
 * Written by who has the lock. In one write that fills the file: a process that is killed between two steps would take the heartbeat with it.
 * Undefined: nobody has it, and the disk was left as it should be.
 */
export async function writeHolder(
  storage: Storage,
  path: string,
  holder: Holder | undefined,
  { sync = false }: { readonly sync?: boolean } = {},
): Promise<void> {
  await inFile("write-failed", `writing ${path}`, async () => {
    const file = await storage.open(path, { write: true, create: true, mode: 0o600 });
    try {
      if (holder === undefined) await file.truncate(0);
      else await file.write(Buffer.from(`${JSON.stringify(holder).padEnd(holderBytesMax - 1)}\n`), 0);
      if (sync) await inFile("sync-failed", `syncing ${path}`, () => file.datasync());
    } finally {
      await file.close();
    }
  });
}

/** `undefined`: there is no text, or none that makes sense; it may be half written. */
export async function readHolder(storage: Storage, path: string): Promise<Holder | undefined> {
  const bytes = await readSmallFile(storage, path, holderBytesMax);
  return bytes === undefined ? undefined : parseHolder(Buffer.from(bytes).toString("utf8"));
}

export function parseHolder(text: string): Holder | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // Empty or half written: nothing hangs on it.
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { host, pid, since, identity, instance, heartbeat } = value as Partial<Record<keyof Holder, unknown>>;
  if (typeof host !== "string" || typeof identity !== "string" || typeof instance !== "string") return undefined;
  if (typeof pid !== "number" || typeof since !== "number") return undefined;
  return { host, pid, since, identity, instance, heartbeat: parseHeartbeat(heartbeat) };
}

function parseHeartbeat(value: unknown): Heartbeat | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { millis, bootId } = value as Partial<Record<keyof Heartbeat, unknown>>;
  return Number.isSafeInteger(millis) && typeof bootId === "string" ? { millis: millis as number, bootId } : undefined;
}
