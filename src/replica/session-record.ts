/**
 * The clean-stop record, `session.json`: what the table and the replica were when a delta was laid aside. It is a hint that is
 * checked, never trusted: a record that is damaged, or says other than what is found, means doubt.
 */
import { ReplicationError } from "../base/errors.ts";
import type { FileStat, Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import {
  decodeState,
  readState,
  type StateContent,
  type StateFormat,
  syncDirectory,
  writeState,
} from "./state-file.ts";

/** What changes whenever somebody writes to the replica. */
export interface Fingerprint {
  readonly sizeBytes: number;
  readonly inode: string;
  /** ctime in nanoseconds since 1970, as decimal text: beyond what a JSON number holds. */
  readonly changedNanos: string;
}

export interface SessionRecord {
  /** Sequence of the undo log that was open. */
  readonly undo: number;
  /** Root of the table, hex. */
  readonly root: string;
  readonly replica: Fingerprint;
  /** Block where a resumed scan may start. */
  readonly resumeBlock: number;
}

export const sessionFormat: StateFormat = { format: "replicate session", version: 1 };

export function fingerprintOf(stat: FileStat): Fingerprint {
  return { sizeBytes: stat.sizeBytes, inode: stat.inode, changedNanos: stat.changedNanos.toString() };
}

export function isSameFile(a: Fingerprint, b: Fingerprint): boolean {
  return a.sizeBytes === b.sizeBytes && a.inode === b.inode && a.changedNanos === b.changedNanos;
}

function parseSession(content: StateContent): SessionRecord {
  return {
    undo: content.integer("undo"),
    root: content.hex("root", 32),
    replica: {
      sizeBytes: content.integer("replicaSizeBytes"),
      inode: content.text("replicaInode"),
      changedNanos: content.text("replicaChangedNanos"),
    },
    resumeBlock: content.integer("resumeBlock"),
  };
}

export function decodeSession(path: string, bytes: Uint8Array): SessionRecord {
  return parseSession(decodeState(path, sessionFormat, bytes));
}

/** Undefined: there is none, or none that can be read. Nothing is lost by that but time. */
export async function readSession(storage: Storage, paths: DiskPaths): Promise<SessionRecord | undefined> {
  try {
    const content = await readState(storage, paths.session, sessionFormat);
    return content === undefined ? undefined : parseSession(content);
  } catch (error) {
    if (error instanceof ReplicationError) return undefined;
    throw error;
  }
}

/** Durable when it resolves. Order and errors: {@link writeState}. */
export async function writeSession(storage: Storage, paths: DiskPaths, session: SessionRecord): Promise<void> {
  await writeState(storage, paths.session, sessionFormat, {
    undo: session.undo,
    root: session.root,
    replicaSizeBytes: session.replica.sizeBytes,
    replicaInode: session.replica.inode,
    replicaChangedNanos: session.replica.changedNanos,
    resumeBlock: session.resumeBlock,
  });
}

/** Durable when it resolves: it must be, before anything changes that the record speaks of. */
export async function removeSession(storage: Storage, paths: DiskPaths): Promise<void> {
  await inFile("write-failed", `removing ${paths.session}`, () => storage.unlink(paths.session));
  await syncDirectory(storage, paths.directory);
}
