/** Gives up an interrupted delta: the replica's file becomes the newest point again. */
import type { BufferPool } from "../base/buffer-pool.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { DiskWriter, Store } from "../replica/store.ts";
import { SessionDisk } from "./receiver-disk.ts";

export interface RollBackOptions {
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
  /** Who is told to others while the disk is held. */
  readonly identity: string;
}

export interface RollBackReport {
  readonly point: number;
  /** Blocks that were put back; 0: the replica was the point already. */
  readonly blocks: number;
}

/**
 * A table in doubt is made true first. Throws `disk-busy` naming who holds the disk, `disk-not-found`, `point-not-found` when there is no point yet,
 * `store-damaged` where old content cannot be told, `root-mismatch`, `aborted`, and those of a write. Interrupted, it is begun again.
 */
export async function rollBackDisk(store: Store, name: string, options: RollBackOptions): Promise<RollBackReport> {
  const { identity } = options;
  const opened = await store.openWriter(name, { identity, instance: "rollback" });
  if (opened.kind === "busy") {
    const { holder } = opened;
    const who =
      holder === undefined ? "another process" : `${holder.identity} (process ${holder.pid} on ${holder.host})`;
    throw new ReplicationError("disk-busy", `disk ${name} is being written by ${who}; stop it, then start again`);
  }
  const { writer } = opened;
  try {
    await settle(writer, name, options);
    const { newest } = writer;
    if (newest === undefined) throw new ReplicationError("point-not-found", `disk ${name} has no points yet`);
    if (writer.logged === undefined) return { point: newest.point, blocks: 0 };
    const reader = await store.openPoint(name, newest.point);
    try {
      return { point: newest.point, blocks: await writer.rollBack(reader, options.signal) };
    } finally {
      await reader.close();
    }
  } finally {
    await writer.release();
  }
}

async function settle(writer: DiskWriter, name: string, options: RollBackOptions): Promise<void> {
  if (writer.doubt === undefined) return;
  const { lanes, pool, log, signal = new AbortController().signal } = options;
  const slot = await pool.acquire(signal);
  try {
    const disk = new SessionDisk({
      name,
      writer,
      lanes,
      log,
      slots: [slot],
      pool,
      signal,
      onProgress: () => undefined,
    });
    await disk.rebuild();
  } finally {
    slot.release();
  }
}
