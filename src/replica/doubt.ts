/** Whether the table can be believed, from what the holder of `apply.lock` finds. Doubt means: build it anew from the replica. */
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
  /** True when a delta over the newest point was begun. */
  readonly openLog: boolean;
  readonly session: SessionRecord | undefined;
  readonly replica: Fingerprint;
  /** The replica's size by `disk.json`. */
  readonly sizeBytes: number;
}

/** The reason in words, or undefined when the table says what the replica holds. Pure. */
export function findDoubt(found: DiskFindings): string | undefined {
  if (found.tableTrouble !== undefined) return found.tableTrouble;
  if (found.replica.sizeBytes !== found.sizeBytes) {
    return `the replica has ${found.replica.sizeBytes} bytes and not the ${found.sizeBytes} on record`;
  }
  if (found.openLog) return findOpenLogDoubt(found);
  if (found.tableRoot !== found.committedRoot) {
    return found.newest === 0
      ? "the table is not that of an empty disk, and nothing was begun"
      : `the table is not that of point ${found.newest}, and nothing was begun since`;
  }
  return undefined;
}

function findOpenLogDoubt(found: DiskFindings): string | undefined {
  const { session, replica } = found;
  if (session === undefined || session.undo !== found.newest) return "the last session did not end cleanly";
  if (session.root !== found.tableRoot) return "the table is not the one the last session left";
  if (session.replica.inode !== replica.inode) return "the replica is not the file the last session left";
  if (session.replica.sizeBytes !== replica.sizeBytes || session.replica.changedNanos !== replica.changedNanos) {
    return "the replica was touched after the last session left it";
  }
  return undefined;
}
