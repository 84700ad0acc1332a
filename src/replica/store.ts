/**
 * The receiver's store: a directory of disks, each a replica image, its digest table and its points. See design in docs/formats.md.
 *
 * This file is the contract; the replica helper implements it over `storage/` and `table/` (split into store.ts, disk.ts, state-file.ts,
 * point.ts, lock text ... as the nouns ask).
 */
import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { DigestKind, Geometry } from "../base/units.ts";
import type { Storage } from "../storage/seam.ts";
import type { DigestTable } from "../table/digest-table.ts";

/** A committed state one can fail over to. `points/<seq>.json`. */
export interface Point {
  readonly point: number;
  /** Milliseconds since 1970 UTC: a label; order is by `point`. */
  readonly time: number;
  readonly label: string | undefined;
  readonly consistency: "crash" | "application" | "none";
  /** Hex. */
  readonly root: string;
  readonly sizeBytes: number;
  readonly generation: string;
  readonly term: number;
  readonly cycle: string;
  /** Source identity that made it, and its name for people. */
  readonly source: string;
  readonly sourceName: string;
}

/** `disk.json`. */
export interface DiskRecord {
  /** Disk uuid. */
  readonly id: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
  readonly generation: string;
  readonly term: number;
  /** Identity (certificate name) the disk belongs to. */
  readonly owner: string;
  readonly sectorBytes: number;
}

/** Who holds a disk: the text in `apply.lock`. For messages only; the kernel lock decides. */
export interface Holder {
  readonly host: string;
  readonly pid: number;
  /** Milliseconds since 1970 UTC. */
  readonly since: number;
  readonly identity: string;
  readonly instance: string;
}

/** The holder of `apply.lock`: the only one that changes a disk. One at a time, over all processes. */
export interface DiskWriter {
  readonly record: DiskRecord;
  readonly table: DigestTable;
  /** Newest committed point; undefined: none yet (fresh). */
  readonly newest: Point | undefined;
  /** Descriptor of the replica, open read-write, for lanes. */
  readonly replicaFd: number;
  readonly replicaPath: string;
  /** True when the table was missing or doubtful and must be rebuilt before use: by reading the replica (see {@link TableRebuild}). */
  readonly doubtful: boolean;
  /** Why, in words, when doubtful. */
  readonly doubt: string | undefined;
  /** Ends the doubt: the table was re-digested from the replica by the caller (with lanes) and is written and synced here. */
  settleDoubt(): Promise<void>;
  /** Extents of data of the replica file, ascending, for the rebuild: everything else is zero. */
  nextData(offset: number): { readonly start: number; readonly end: number } | undefined;
  /**
   * Before the first overwrite after the newest point: creates `<newest>.undo`, syncs it and its directory, forgets the clean-stop record.
   * Idempotent; must have resolved before any write to the replica or the table.
   */
  begin(): Promise<void>;
  /** Grows the replica (after `begin`) and the table. Throws `no-space` / `target-too-small` naming need and room. */
  grow(sizeBytes: number): Promise<void>;
  /** Every replica write of the cycle has finished: sync replica ∥ write and sync table; then `<seq+1>.json`; resolves when that is durable. */
  commit(facts: {
    readonly time: number;
    readonly label: string | undefined;
    readonly consistency: Point["consistency"];
    readonly cycle: string;
    readonly source: string;
    readonly sourceName: string;
  }): Promise<Point>;
  /** Keeps what was applied for a resume: syncs replica and table and writes the clean-stop record (session.json). Only when no replica write is in flight. */
  suspend(resumeBlock: number): Promise<void>;
  /** Block where a resumed scan may start; 0 when unknown. */
  readonly resumeBlock: number;
  /** After a failed write or sync: nothing written since the last good sync counts; the next open finds the table doubtful. */
  poison(): void;
  /** Closes files and gives up the lock. Idempotent. */
  release(): Promise<void>;
}

export interface DiskSummary {
  readonly record: DiskRecord;
  readonly newest: Point | undefined;
  /** `idle` | `receiving` (apply.lock is held; by whom in `holder`) | `interrupted` (an open delta waits for its sender) | `damaged`. */
  readonly state: "idle" | "receiving" | "interrupted" | "damaged";
  readonly holder: Holder | undefined;
  /** Bytes the replica takes on disk. */
  readonly allocatedBytes: number;
  /** In words, when damaged. */
  readonly trouble: string | undefined;
}

export interface Store {
  readonly path: string;
  readonly id: string;
  /** Names with a disk.json, sorted. */
  disks(): Promise<readonly string[]>;
  /** Without any lock: for `disks` and messages. Undefined: no such disk. */
  summary(name: string): Promise<DiskSummary | undefined>;
  /** A new disk: directories, an empty sparse replica, disk.json last. Throws `target-too-small`, `no-space`, `disk-name-invalid`. */
  create(
    name: string,
    facts: { readonly geometry: Geometry; readonly owner: string; readonly sectorBytes: number },
  ): Promise<void>;
  /**
   * Takes `apply.lock` and opens the disk for writing. Returns the holder when another has it (`busy`).
   * Throws `disk-not-found`, `store-damaged`, `store-version-unsupported`.
   */
  openWriter(
    name: string,
    holder: { readonly identity: string; readonly instance: string },
  ): Promise<
    | { readonly kind: "open"; readonly writer: DiskWriter }
    | { readonly kind: "busy"; readonly holder: Holder | undefined }
  >;
  /** Throws `no-space` when free space is below the reserve. */
  checkReserve(): Promise<void>;
  close(): Promise<void>;
}

export declare function openStore(options: {
  readonly path: string;
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  /** Create the store when the directory is empty or missing. */
  readonly create?: boolean;
  /** Bytes of free space to keep; default limits.reserveBytesDefault, but at most 5 % of the file system. */
  readonly reserveBytes?: number;
  /** Host name for lock texts. */
  readonly host: string;
  /** Works without kernel locks, at the user's word (`--single-process`). */
  readonly singleProcess?: boolean;
}): Promise<Store>;

/** `[a-z0-9][a-z0-9._-]{0,62}`, never a path. Throws `disk-name-invalid` saying what is allowed. */
export declare function checkDiskName(name: string): void;
