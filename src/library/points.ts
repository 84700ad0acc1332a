/** Work on a store that is not receiving: restore, verify, roll back, repair. */
import { systemRandom } from "../base/random.ts";
import { copyPoint, dataBytesOf } from "../replica/restore-point.ts";
import { LostRanges } from "../replica/damaged-blocks.ts";
import { openRestoreTarget } from "../replica/restore-target.ts";
import type { Point, Store } from "../replica/store.ts";
import { type VerifyReport, verifyStoredPoint } from "../replica/verify-point.ts";
import type { Engine } from "../replication/engine.ts";
import { createRateLimit } from "../replication/rate.ts";
import { repairDisk, type RepairReport, rollBackDisk, type RollBackReport } from "../replication/store-work.ts";

/** What restoring and verifying need of an engine: neither its memory nor its lanes, so `createEngine({ lanes: 0 })` will do. */
type ReadingEngine = Pick<Engine, "storage" | "clock"> & Partial<Pick<Engine, "random">>;

export interface RestoreReport {
  readonly point: Point;
  /** Bytes of data, lost ones among them. */
  readonly writtenBytes: number;
  /** With `salvage`: ranges that are zeros in place of what cannot be told, the first 20, ascending. */
  readonly lost: readonly { readonly offset: number; readonly length: number; readonly reason: string }[];
  readonly lostRanges: number;
  readonly lostBytes: number;
  /**
   * False, with `salvage`: ranges are lost; or none is, each block fits its digest, and not all digests are those the point was committed with, so that
   * some block is not as it was and nobody knows which.
   */
  readonly rootMatches: boolean;
}

/**
 * Writes a recovery point to an image file or a block device, beside whatever is being done to its disk. A file is written under
 * another name (`TARGET.part`), synced and renamed; where the point is zero it is a hole. Of a device what lies behind the disk's size
 * stays. Each block is compared with its digest, and at the end the root of all of them with the point's. Aborting, like any error,
 * leaves no file; a device holds a part.
 *
 * Errors: `disk-not-found`, `point-not-found`; `store-damaged` and `replica-unreadable` for a point that cannot be told for sure; of the
 * target `target-exists` without `overwrite`, `target-unsuitable`, `target-too-small`, `no-space`, `image-in-use`, `image-busy`,
 * `write-failed`, `sync-failed`; `aborted`.
 */
export async function restorePoint(
  store: Store,
  options: {
    readonly engine: ReadingEngine;
    readonly disk: string;
    readonly point: number | "newest";
    /** Path of the file or device. */
    readonly target: string;
    /** Of a file: raw (default), or a dynamic VHDX. */
    readonly format?: "raw" | "vhdx" | undefined;
    /** Replace a file that exists; write over a block device. */
    readonly overwrite?: boolean | undefined;
    /** Write zeros for blocks that cannot be told any more, and say which, and keep what has another root than the point, and say so, where else the restore fails. */
    readonly salvage?: boolean | undefined;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of data written so far, and in all. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<RestoreReport> {
  const { engine, onProgress } = options;
  const reader = await store.openPoint(options.disk, options.point);
  const lost = options.salvage === true ? new LostRanges() : undefined;
  try {
    const dataBytes = await dataBytesOf(reader);
    const target = await openRestoreTarget(options.target, {
      storage: engine.storage,
      sizeBytes: reader.sizeBytes,
      dataBytes,
      overwrite: options.overwrite ?? false,
      vhdx:
        options.format === "vhdx"
          ? { sectorBytes: reader.sectorBytes, random: engine.random ?? systemRandom }
          : undefined,
    });
    let rootMatches = true;
    const onOtherRoot = (): void => {
      rootMatches = false;
    };
    try {
      const writtenBytes = await copyPoint(reader, target.writer, {
        clear: target.clear,
        ...(lost === undefined ? {} : { lost, onOtherRoot }),
        signal: options.signal,
        onProgress: (doneBytes) => onProgress?.(doneBytes, dataBytes),
      });
      await target.finish();
      return {
        point: reader.point,
        writtenBytes,
        lost: lost?.named ?? [],
        lostRanges: lost?.count ?? 0,
        lostBytes: lost?.bytes ?? 0,
        rootMatches: rootMatches && (lost?.count ?? 0) === 0,
      };
    } finally {
      await target.close();
    }
  } finally {
    await reader.close();
  }
}

/**
 * Reads a recovery point again, beside whatever is being done to its disk: every block is compared with its digest, the root of the
 * digests with the point's record. Damage is reported, with the newest other point that has good content for it; it is not thrown. A
 * point whose undo logs or record are damaged cannot be opened: `store-damaged`. Errors besides: `disk-not-found`, `point-not-found`,
 * `aborted`.
 */
export async function verifyPoint(
  store: Store,
  options: {
    readonly engine: ReadingEngine;
    readonly disk: string;
    readonly point: number | "newest";
    /** Offset to begin at, the `offset` in the details of an `aborted` before; default 0. */
    readonly from?: number | undefined;
    /** Bytes read a second, at most; default: no limit. */
    readonly rate?: number | undefined;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of the disk passed so far, and in all. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<VerifyReport> {
  const { signal, onProgress, engine } = options;
  const limit = createRateLimit(engine.clock, options.rate);
  const never = new AbortController().signal;
  return verifyStoredPoint(store, options.disk, options.point, {
    from: options.from ?? 0,
    signal,
    pace: (bytes) => limit.take(() => bytes, signal ?? never),
    onProgress: (doneBytes, totalBytes) => onProgress?.(doneBytes, totalBytes),
  });
}

/**
 * Gives up what an interrupted delta applied: the replica's file becomes the newest point again. Errors: `disk-busy`, `disk-not-found`,
 * `point-not-found`, `replica-changed` (somebody else wrote to the replica: {@link repair} decides), `store-damaged`, `root-mismatch`, `aborted`, and those of a write. Interrupted, it is called again.
 */
export function rollBack(
  store: Store,
  disk: string,
  options: { readonly engine: Engine; readonly signal?: AbortSignal | undefined },
): Promise<RollBackReport> {
  const { lanes, pool, log, clock, host } = options.engine;
  const { signal } = options;
  return rollBackDisk(store, disk, { lanes, pool, log, clock, signal, identity: `rollback on ${host}` });
}

/**
 * Reads the whole replica and marks what is not what the digest table says: the next send heals it, and points that need what is lost say so. Where
 * somebody else wrote to the replica this gives up what was written; with `keepChanges` the replica as it is becomes a point first, held by `repair` until it is
 * released, with that label. Errors as {@link rollBack}, without `replica-changed`; but with `keepChanges` a replica that was made longer is one.
 */
export function repair(
  store: Store,
  disk: string,
  options: {
    readonly engine: Engine;
    readonly signal?: AbortSignal | undefined;
    readonly onProgress?: ((bytes: number) => void) | undefined;
    readonly keepChanges?: { readonly label: string } | undefined;
  },
): Promise<RepairReport> {
  const { lanes, pool, log, host, random, clock } = options.engine;
  const { signal, onProgress, keepChanges } = options;
  const keep = keepChanges && { ...keepChanges, cycle: random.uuid(), time: clock.now(), owner: "repair" };
  const how = { lanes, pool, log, clock, signal, onProgress, keep };
  return repairDisk(store, disk, { ...how, identity: `repair on ${host}` });
}
