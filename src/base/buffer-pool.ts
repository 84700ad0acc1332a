/**
 * The one pool of block memory of a process: slots of shared memory that sockets, files and lanes use in place.
 * Limits replace back-pressure code: who has no slot waits, and nothing else on the data path allocates.
 */
import { ReplicationError, invariant } from "./errors.ts";
import { allocateShared, type SharedMemory } from "./shared-memory.ts";

/** A slot on loan. `bytes` may be used by main thread, sockets, files and lanes until `release`. */
export interface Slot {
  /** Position in the pool, for lanes: they see the same memory by this number. */
  readonly index: number;
  readonly bytes: Uint8Array;
  /** Gives the slot back. Exactly once. */
  release(): void;
}

export interface BufferPool {
  readonly slotBytes: number;
  readonly slotCount: number;
  /** Slots not on loan. */
  readonly free: number;
  /** The memory behind all slots, slot i at `i * slotBytes`; handed to worker lanes. */
  readonly memory: SharedMemory;
  /** Where in `memory` the extra bytes begin that were asked for, on a page. */
  readonly extraAt: number;
  /** A slot at once, or undefined. */
  tryAcquire(): Slot | undefined;
  /** A slot, in the order of asking. Rejects with `aborted` when the signal fires. */
  acquire(signal?: AbortSignal): Promise<Slot>;
}

interface Waiter {
  readonly resolve: (slot: Slot) => void;
  readonly reject: (error: unknown) => void;
  readonly forget: () => void;
}

/** `slotBytes` × `slotCount` bytes of shared memory, with `extraBytes` behind them; touched by the system only as they are used. */
export function createBufferPool(options: {
  readonly slotBytes: number;
  readonly slotCount: number;
  readonly extraBytes?: number;
}): BufferPool {
  const { slotBytes, slotCount } = options;
  invariant(slotBytes > 0 && slotCount > 0, "a pool has slots");
  const extraAt = Math.ceil((slotBytes * slotCount) / 4096) * 4096;
  const memory = allocateShared(extraAt + (options.extraBytes ?? 0));
  // A stack: the slot used last is the one whose pages are warm.
  const freeIndexes: number[] = [];
  for (let index = slotCount - 1; index >= 0; index--) freeIndexes.push(index);
  const waiters: Waiter[] = [];

  const lend = (index: number): Slot => {
    let out = true;
    return {
      index,
      bytes: new Uint8Array(memory.buffer, index * slotBytes, slotBytes),
      release() {
        invariant(out, "a slot is released once");
        out = false;
        const waiter = waiters.shift();
        if (waiter === undefined) {
          freeIndexes.push(index);
          return;
        }
        waiter.forget();
        waiter.resolve(lend(index));
      },
    };
  };

  const tryAcquire = (): Slot | undefined => {
    const index = freeIndexes.pop();
    return index === undefined ? undefined : lend(index);
  };

  return {
    slotBytes,
    slotCount,
    memory,
    extraAt,
    get free() {
      return freeIndexes.length;
    },
    tryAcquire,
    acquire(signal) {
      if (signal?.aborted === true) return Promise.reject(aborted(signal));
      const slot = tryAcquire();
      if (slot !== undefined) return Promise.resolve(slot);
      return new Promise((resolve, reject) => {
        const onAbort = (): void => {
          const position = waiters.indexOf(waiter);
          if (position >= 0) waiters.splice(position, 1);
          reject(aborted(signal));
        };
        const waiter: Waiter = {
          resolve,
          reject,
          forget: () => signal?.removeEventListener("abort", onAbort),
        };
        signal?.addEventListener("abort", onAbort, { once: true });
        waiters.push(waiter);
      });
    },
  };
}

function aborted(signal: AbortSignal | undefined): unknown {
  return signal?.reason instanceof ReplicationError
    ? signal.reason
    : new ReplicationError("aborted", "stopped on request");
}
