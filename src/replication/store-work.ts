/** Work on a disk of a store without a sender: giving up an interrupted delta, and finding what has rotted. */
import type { BufferPool } from "../base/buffer-pool.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { DiskWriter, Store } from "../replica/store.ts";
import { SessionDisk } from "./receiver-disk.ts";

export interface StoreWorkOptions {
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly log: Logger;
  readonly clock: Pick<Clock, "sleep">;
  readonly signal?: AbortSignal | undefined;
  /** Who is told to others while the disk is held. */
  readonly identity: string;
  /** Bytes of the disk that were read again. */
  readonly onProgress?: ((bytes: number) => void) | undefined;
}

export interface RollBackReport {
  readonly point: number;
  /** Blocks that were put back; 0, and the same size before and after: the replica was the point already. */
  readonly blocks: number;
  /** Of the disk, before and after. */
  readonly sizeBefore: number;
  readonly sizeBytes: number;
}

/**
 * A table in doubt is made true first. Throws `replica-changed` where somebody else wrote to the replica, `disk-busy` naming who holds the disk, `disk-not-found`, `point-not-found` when there is no point yet,
 * `store-damaged` where old content cannot be told, `root-mismatch`, `aborted`, and those of a write. Interrupted, it is begun again.
 */
export async function rollBackDisk(store: Store, name: string, options: StoreWorkOptions): Promise<RollBackReport> {
  return withWriter(store, name, options, async (writer, disk) => {
    await disk.rebuild();
    const { newest } = writer;
    if (newest === undefined) throw new ReplicationError("point-not-found", `disk ${name} has no points yet`);
    const { point } = newest;
    const sizeBefore = writer.record.sizeBytes;
    if (writer.logged === undefined) return { point, blocks: 0, sizeBefore, sizeBytes: sizeBefore };
    const reader = await store.openPoint(name, point);
    try {
      const blocks = await writer.rollBack(reader, options.signal);
      return { point, blocks, sizeBefore, sizeBytes: writer.record.sizeBytes };
    } finally {
      await reader.close();
    }
  });
}

export interface RepairReport {
  /** Ranges of the replica that are not what the table said. The next delta sends them; points that need their old content say so. */
  readonly damaged: readonly { readonly offset: number; readonly length: number }[];
  /** The point that was made of what somebody else has changed. */
  readonly kept?: number | undefined;
}

/** Of the point that {@link repairDisk} makes. */
export interface KeptChanges {
  readonly label: string;
  /** Of the cycle, which is no sender's. */
  readonly cycle: string;
  /** Milliseconds since 1970. */
  readonly time: number;
  /** Who wants it kept. */
  readonly owner: string;
}

/**
 * Reads the whole replica and marks what has rotted, or was written by somebody else, so that the next delta from the source heals it. `keep`: what the replica holds becomes
 * a point before, held; none is made where nothing differs. Throws as {@link rollBackDisk}. Interrupted, what was found so far stays marked, and with `keep` nothing
 * overwrites it.
 */
export async function repairDisk(
  store: Store,
  name: string,
  { keep, ...options }: StoreWorkOptions & { readonly keep?: KeptChanges | undefined },
): Promise<RepairReport> {
  return withWriter(store, name, { ...options, mayCut: keep === undefined }, async (writer, disk) => {
    const { blockBytes, sizeBytes } = writer.record;
    const damaged = (await disk.repair(keep === undefined ? "give-up" : "keep")).map(({ first, end }) => {
      const offset = first * blockBytes;
      return { offset, length: Math.min(end * blockBytes, sizeBytes) - offset };
    });
    if (keep === undefined || !writer.hasForeignChanges) return { damaged };
    const { cycle, label, time, owner } = keep;
    // As of the point it stands on: the sender is to find a state of its own disk.
    const { source = "changed", sourceName = "somebody else" } = writer.newest ?? {};
    const hold = { owner, until: undefined };
    const { point } = await writer.commit({ cycle, label, time, consistency: "none", source, sourceName, hold });
    return { damaged, kept: point };
  });
}

async function withWriter<T>(
  store: Store,
  name: string,
  options: StoreWorkOptions & { readonly mayCut?: boolean },
  work: (writer: DiskWriter, disk: SessionDisk) => Promise<T>,
): Promise<T> {
  const { identity, lanes, pool, log, clock, signal = new AbortController().signal, mayCut } = options;
  const opened = await store.openWriter(name, { identity, instance: "store verb", mayCut });
  if (opened.kind === "busy") {
    const { holder } = opened;
    const who =
      holder === undefined ? "another process" : `${holder.identity} (process ${holder.pid} on ${holder.host})`;
    throw new ReplicationError("disk-busy", `disk ${name} is being written by ${who}; stop it, then start again`);
  }
  const { writer } = opened;
  try {
    const slots = [await pool.acquire(signal)];
    while (slots.length < 4) {
      const more = pool.tryAcquire();
      if (more === undefined) break;
      slots.push(more);
    }
    try {
      const disk = new SessionDisk({
        ...{ name, writer, lanes, log, clock, slots, pool, signal },
        onProgress: options.onProgress ?? ((): void => {}),
      });
      return await work(writer, disk);
    } finally {
      for (const slot of slots) slot.release();
    }
  } finally {
    await writer.release();
  }
}
