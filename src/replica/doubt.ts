/** Whether the table can be believed, from what the holder of `apply.lock` finds. Doubt means: blocks are digested anew from the replica. */
import type { Fingerprint, SessionRecord } from "./session-record.ts";

export interface DiskFindings {
  /** Why the table's files cannot be used, in words; undefined: they have their lengths and were read. */
  readonly tableTrouble: string | undefined;
  /** Root over the page digests on disk, hex; undefined with trouble. */
  readonly tableRoot: string | undefined;
  /** Root of the newest point, or of an empty disk when there is none. Hex. */
  readonly committedRoot: string;
  /** Sequence of the newest point; 0: none. */
  readonly newest: number;
  /** Whether a delta over the newest point was begun; `named`: its log tells which blocks it may have changed since the table was synced. */
  readonly openLog: "none" | "named" | "unknown";
  readonly session: SessionRecord | undefined;
  /** Why the replica is being compared with its table since an earlier session; undefined: it is not. */
  readonly suspicion: string | undefined;
  readonly replica: Fingerprint;
  /** Of the disk, as the replica's file has it. */
  readonly replicaBytes: number;
  /** mtime of the replica in nanoseconds since 1970, and what it was when the newest point was committed (undefined: not known). */
  readonly replicaModified: bigint;
  readonly committedModified: bigint | undefined;
  /** The replica's size by `disk.json`. */
  readonly sizeBytes: number;
}

/** Doubt in words. */
export interface Doubt {
  readonly why: string;
  /**
   * `recent`: only of blocks the open log names since its last checkpoint; `all`: of every block, and the table is worth nothing; `differing`: the table
   * says what should be there, and the replica may differ.
   */
  readonly blocks: "recent" | "all" | "differing";
}

/** Undefined: the table says what the replica holds. Pure. */
export function findDoubt(found: DiskFindings): Doubt | undefined {
  if (found.tableTrouble !== undefined) return ofAll(found.tableTrouble);
  const doubt = found.openLog === "none" ? findIdleDoubt(found) : findOpenLogDoubt(found);
  if (doubt?.blocks === "all") return doubt;
  if (found.replicaBytes !== found.sizeBytes) {
    const why = `the replica has ${found.replicaBytes} bytes and not the ${found.sizeBytes} on record`;
    return doubt?.blocks === "recent" ? ofAll(why) : differing(why);
  }
  // Since then nothing was written but what the comparison entered in the table: it finds all of that again.
  if (found.suspicion !== undefined) return differing(found.suspicion);
  return doubt;
}

function ofAll(why: string): Doubt {
  return { why, blocks: "all" };
}

/** The table is proven by its root. To digest the replica instead would call good whatever lies there. */
function differing(why: string): Doubt {
  return { why, blocks: "differing" };
}

function findIdleDoubt(found: DiskFindings): Doubt | undefined {
  if (found.tableRoot !== found.committedRoot) {
    return ofAll(
      found.newest === 0
        ? "the table is not that of an empty disk, and nothing was begun"
        : `the table is not that of point ${found.newest}, and nothing was begun since`,
    );
  }
  // Only a later time counts: a loss of power may take it back, and a copy may keep it.
  if (found.committedModified !== undefined && found.replicaModified > found.committedModified) {
    return differing(`somebody wrote to the replica after point ${found.newest}`);
  }
  return undefined;
}

function findOpenLogDoubt(found: DiskFindings): Doubt | undefined {
  const { session, replica } = found;
  if (session === undefined || session.undo !== found.newest) {
    return { why: "the last session did not end cleanly", blocks: found.openLog === "named" ? "recent" : "all" };
  }
  if (session.root !== found.tableRoot) return ofAll("the table is not the one the last session left");
  if (session.replica.inode !== replica.inode) return differing("the replica is not the file the last session left");
  if (session.replica.sizeBytes !== replica.sizeBytes || session.replica.changedNanos !== replica.changedNanos) {
    return differing("the replica was touched after the last session left it");
  }
  return undefined;
}
