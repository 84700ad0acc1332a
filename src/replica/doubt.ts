/** Whether the table can be believed, from what the holder of `apply.lock` finds. Doubt means: blocks are digested anew from the replica. */
import { behindWhat, type BootNow, type Heartbeat } from "../base/heartbeat.ts";
import type { Fingerprint, SessionRecord } from "./session-record.ts";
import type { Suspicion } from "./suspicion.ts";

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
  /** The replica is being compared with its table since an earlier session; undefined: it is not. */
  readonly suspicion: Suspicion | undefined;
  readonly replica: Fingerprint;
  /** Of the disk, as the replica's file has it. */
  readonly replicaBytes: number;
  /** mtime of the replica in nanoseconds since 1970, and what it and ctime were when the newest point was committed (undefined: not known). */
  readonly replicaModified: bigint;
  readonly committedModified: bigint | undefined;
  readonly committedChanged: bigint | undefined;
  /** Of who wrote to the disk last; undefined: not known. */
  readonly heartbeat: Heartbeat | undefined;
  /** Undefined: not known here. */
  readonly boot: BootNow | undefined;
  readonly nowMillis: number;
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
  /** Of `differing`: blocks the open log names since its last checkpoint are in doubt as with `recent`, and digested anew before the others are compared. */
  readonly interrupted?: true | undefined;
  /** An earlier session has found that somebody else wrote to the replica, and no person has decided. */
  readonly found?: true | undefined;
  /** What a person wants to be with what somebody else wrote. */
  readonly wish?: "keep" | "give-up" | undefined;
}

/** Undefined: the table says what the replica holds. Pure. */
export function findDoubt(found: DiskFindings): Doubt | undefined {
  const doubt = findAnyDoubt(found);
  return doubt !== undefined && found.suspicion?.found === true ? { ...doubt, found: true } : doubt;
}

function findAnyDoubt(found: DiskFindings): Doubt | undefined {
  if (found.tableTrouble !== undefined) return ofAll(found.tableTrouble);
  const doubt = found.openLog === "none" ? findIdleDoubt(found) : findOpenLogDoubt(found);
  if (doubt?.blocks === "all") return doubt;
  if (found.replicaBytes !== found.sizeBytes) {
    return differing(`the replica has ${found.replicaBytes} bytes and not the ${found.sizeBytes} on record`, doubt);
  }
  // What the comparison has entered in the table since is found again.
  if (found.suspicion !== undefined) return differing(found.suspicion.why, doubt);
  return doubt;
}

function ofAll(why: string): Doubt {
  return { why, blocks: "all" };
}

/** The table is proven by its root. To digest the replica instead would call good whatever lies there. */
function differing(why: string, besides?: Doubt): Doubt {
  const interrupted = besides?.blocks === "recent" || besides?.interrupted === true;
  return interrupted ? { why, blocks: "differing", interrupted } : { why, blocks: "differing" };
}

function findIdleDoubt(found: DiskFindings): Doubt | undefined {
  if (found.tableRoot !== found.committedRoot) {
    return ofAll(
      found.newest === 0
        ? "the table is not that of an empty disk, and nothing was begun"
        : `the table is not that of point ${found.newest}, and nothing was begun since`,
    );
  }
  // Only a later time counts: a loss of power may take it back. Who copies a file, or puts one back, can set its mtime and not its ctime.
  const { committedChanged, committedModified } = found;
  const touched =
    committedChanged === undefined
      ? committedModified !== undefined && found.replicaModified > committedModified
      : BigInt(found.replica.changedNanos) > committedChanged;
  return touched ? differing(`the replica was touched after point ${found.newest}`) : undefined;
}

function findOpenLogDoubt(found: DiskFindings): Doubt | undefined {
  const { session, replica } = found;
  if (session === undefined || session.undo !== found.newest) {
    const why = "the last session did not end cleanly";
    if (found.openLog !== "named") return ofAll(why);
    const recent: Doubt = { why, blocks: "recent" };
    const touched = whyTouchedSince(found);
    return touched === undefined ? recent : differing(`${why}, and ${touched}`, recent);
  }
  if (session.root !== found.tableRoot) return ofAll("the table is not the one the last session left");
  if (session.replica.inode !== replica.inode) return differing("the replica is not the file the last session left");
  if (session.replica.sizeBytes !== replica.sizeBytes || session.replica.changedNanos !== replica.changedNanos) {
    return differing("the replica was touched after the last session left it");
  }
  return undefined;
}

/** After an unclean end: what speaks for somebody having written to the replica behind its writer; undefined: nothing. */
function whyTouchedSince({ heartbeat, boot, nowMillis, replica }: DiskFindings): string | undefined {
  if (heartbeat === undefined) return "it is not known until when it wrote to the replica";
  if (nowMillis < heartbeat.millis) {
    return `the clock shows ${timeOf(nowMillis)}, and it was alive at ${timeOf(heartbeat.millis)}: no times can be compared`;
  }
  if (!wasTouchedSince({ heartbeat, boot, replica })) return undefined;
  return `the replica was touched at ${timeOf(millisOf(replica))}, after its last heartbeat at ${timeOf(heartbeat.millis)}`;
}

/** True: somebody has touched the replica after its last heartbeat. False: nothing shows that. */
export function wasTouchedSince({
  heartbeat,
  boot,
  replica,
}: Pick<DiskFindings, "heartbeat" | "boot" | "replica">): boolean {
  return heartbeat !== undefined && behindWhat(millisOf(replica), heartbeat, boot) !== undefined;
}

function millisOf({ changedNanos }: Fingerprint): number {
  return Number(changedNanos) / 1e6;
}

function timeOf(millis: number): string {
  const date = new Date(millis);
  return Number.isNaN(date.getTime()) ? `${millis} ms` : date.toISOString();
}
