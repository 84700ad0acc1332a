/** A disk open for writing, as the layers above see it. */
import type { FileRun } from "../image/block-device.ts";
import type { DigestTable } from "../table/digest-table.ts";
import type { DiskRecord } from "./disk-record.ts";
import type { Doubt } from "./doubt.ts";
import type { Cut, Hold, Point } from "./points/point.ts";
import type { PointReader } from "./points/reader.ts";
import type { LoggedParts } from "./undo/logged.ts";
import type { UndoWriter } from "./undo/writer.ts";

/** What the sender says of the state a commit makes a point of. */
export interface CommitFacts {
  readonly time: number;
  readonly label: string | undefined;
  readonly consistency: Point["consistency"];
  readonly cycle: string;
  readonly source: string;
  readonly sourceName: string;
  /** Where other disks are cut at the same moment. */
  readonly cut?: Cut | undefined;
  /** From the beginning. */
  readonly hold?: Hold | undefined;
}

/**
 * The holder of `apply.lock`: the only one that changes a disk. One at a time, over all processes. Calls are done in the order they
 * are made. After any failure to write or sync the writer is poisoned: every later call throws `sync-failed`.
 */
export interface DiskWriter {
  readonly record: DiskRecord;
  readonly table: DigestTable;
  /** Newest committed point; undefined: none yet (fresh). */
  readonly newest: Point | undefined;
  /** Descriptor of the replica, open read-write, for lanes. */
  readonly replicaFd: number;
  /** The same file past the page cache; see {@link StorageFile.directFd}. */
  readonly replicaDirectFd: number | undefined;
  readonly replicaPath: string;
  /** Where blocks lie in the replica's file: {@link Replica.places}. */
  places(blocks: readonly number[]): readonly number[] | undefined;
  /** The same for blocks that are to be written (after `begin`): {@link Replica.claim}. Throws `no-space`, `write-failed`. */
  claim(blocks: readonly number[]): Promise<readonly number[]> | undefined;
  /** Where a range of the disk lies in the replica's file. */
  runs(offset: number, length: number): readonly FileRun[];
  /**
   * Set while the table is in doubt and must not be used: the caller digests the data of the replica ({@link nextData}) of the blocks in doubt, sets
   * it in the table and calls {@link settleDoubt}. `differing`: the table stays, and what does not match it is first kept as lost. `all`: the table is all zero. `recent`: blocks that {@link logged} calls
   * recent, and every block of their table pages, and of the last one, that do not match their checksum.
   */
  readonly doubt: Doubt | undefined;
  /** What the open undo log holds; undefined: there is none. */
  readonly logged: LoggedParts | undefined;
  /** The open undo log, from `begin` to `commit`. What it has not made durable must not be overwritten. */
  readonly undo: UndoWriter;
  /**
   * Doubts a disk that was in no doubt (`differing`; replica synced, its page cache dropped), and says what a person wants to be with what others wrote: to be
   * kept by a commit, or given up. Not on record before {@link begin}.
   */
  suspect(why: string, wish: "keep" | "give-up"): Promise<void>;
  /** A disk in doubt was found changed by somebody else: durably on record when it resolves. Nothing else is done to it. */
  noteChanges(): Promise<void>;
  /** They are on record. After {@link settleDoubt}: a commit is to keep them. */
  readonly hasForeignChanges: boolean;
  /** Ends the doubt: the table was re-digested from the replica by the caller (with lanes) and is written and synced here. */
  settleDoubt(): Promise<void>;
  /** Extents of data of the replica, ascending, for the rebuild: everything else is zero. */
  nextData(offset: number): { readonly start: number; readonly end: number } | undefined;
  /**
   * Before the first overwrite after the newest point: creates `<newest>.undo` or goes on with it, and forgets the clean-stop record.
   * Idempotent; must have resolved before any write to the replica or the table.
   */
  begin(): Promise<void>;
  /** Grows the replica (after `begin`) and the table. Throws `no-space` / `target-too-small` naming need and room. */
  grow(sizeBytes: number): Promise<void>;
  /** Cuts the replica (after `begin`) and the table. All from the block the new end lies in on is in the undo log, durably. No replica write is in flight. */
  shrink(sizeBytes: number): Promise<void>;
  /** See {@link shrunkDigest}: what {@link shrink} would make of the last block's digest. Changes nothing. */
  shrunkDigest(sizeBytes: number): Promise<Uint8Array | undefined>;
  /** Every replica write of the cycle has finished: see {@link OpenedDisk.commit}. Resolves when the point is durable. */
  commit(facts: CommitFacts): Promise<Point>;
  /**
   * Keeps what was applied for a resume: syncs replica and table and writes the clean-stop record (session.json). Only when no replica
   * write is in flight. Nothing is done when no delta was begun. `begin` comes first again before anything more is written.
   */
  suspend(resumeBlock: number): Promise<void>;
  /**
   * Gives up what was applied of a delta: the replica becomes the newest point again, and is laid aside so. `reader`: of that point. Returns the blocks that
   * were put back. Throws `store-damaged` where old content cannot be told, `root-mismatch`.
   */
  rollBack(reader: PointReader, signal?: AbortSignal): Promise<number>;
  /** Block where a resumed scan may start; 0 when unknown. */
  readonly resumeBlock: number;
  /** After a failed write or sync: nothing written since the last good sync counts; the next open finds the table doubtful. */
  poison(): void;
  /** Closes files and gives up the lock. Idempotent. */
  release(): Promise<void>;
}
