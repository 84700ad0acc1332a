/**
 * The replica file. Its mode is 0400: nobody but the holder of `apply.lock` writes it, and who mounts it by mistake gets it read-only.
 * The mode counts when a file is opened and not after, so an owner who is not root makes it writable for the moment of opening only.
 */
import { dirname } from "node:path";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";
import { fileError, inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { damaged } from "./state-file.ts";

export const REPLICA_MODE = 0o400;

export interface OpenReplica {
  readonly file: StorageFile;
  /** As it was found, before its mode was touched. */
  readonly found: FileStat;
  /** True when its mode was changed, and with it its ctime. */
  readonly modeChanged: boolean;
}

/** Opens the replica for writing and leaves it with {@link REPLICA_MODE}. Throws `store-damaged` when it is missing, `replica-unreadable`. */
export async function openReplica(storage: Storage, paths: DiskPaths): Promise<OpenReplica> {
  const path = paths.replica;
  const found = await findReplica(storage, paths);
  return inFile("replica-unreadable", `opening ${path}`, async () => {
    let modeChanged = found.mode !== REPLICA_MODE;
    let file: StorageFile;
    try {
      file = await storage.open(path, { write: true, direct: true });
    } catch (error) {
      if (errnoOf(error) !== "EACCES" && errnoOf(error) !== "EPERM") throw error;
      modeChanged = true;
      await storage.setMode(path, 0o600);
      file = await storage.open(path, { write: true, direct: true });
    }
    try {
      if (modeChanged) await storage.setMode(path, REPLICA_MODE);
    } catch (error) {
      await file.close();
      throw error;
    }
    return { file, found, modeChanged };
  });
}

/** Opens the replica for reading. Throws `store-damaged` when it is missing or cannot be opened. */
export async function openReplicaToRead(storage: Storage, paths: DiskPaths): Promise<StorageFile> {
  await findReplica(storage, paths);
  return inFile("store-damaged", `opening ${paths.replica}`, () => storage.open(paths.replica));
}

/**
 * Asked before it is opened: opening a pipe would wait for its writer. Throws `store-damaged` when it is missing or no file,
 * `replica-unreadable` when that cannot be told.
 */
export async function findReplica(storage: Storage, paths: DiskPaths): Promise<FileStat> {
  const path = paths.replica;
  const found = await inFile("replica-unreadable", `looking for ${path}`, () => storage.stat(path));
  if (found === undefined) throw replicaMissing(paths);
  if (found.kind !== "file") throw damaged(path, "it is not a file");
  return found;
}

function replicaMissing({ directory, replica }: DiskPaths): ReplicationError {
  if (dirname(replica) === directory) return damaged(replica, "it is missing");
  return new ReplicationError(
    "store-damaged",
    `${replica} is missing, the image that ${directory} has adopted where it lies: mount its file system, or put the file back`,
    { details: { file: replica } },
  );
}

/** Refuses a size the file system cannot hold. Throws `target-too-small` with both numbers. */
export async function checkFits(storage: Storage, directory: string, disk: string, sizeBytes: number): Promise<void> {
  const { fileBytesMax } = await inFile("write-failed", `asking the room in ${directory}`, () =>
    storage.space(directory),
  );
  if (fileBytesMax !== undefined && sizeBytes > fileBytesMax) throw tooSmall(directory, disk, sizeBytes, fileBytesMax);
}

/** What a failed change of a replica's length means. */
export function sizeError(error: unknown, directory: string, disk: string, sizeBytes: number): Error {
  if (errnoOf(error) === "EFBIG") return tooSmall(directory, disk, sizeBytes, undefined, error);
  return fileError(error, "write-failed", `disk ${disk}: giving the replica ${sizeBytes} bytes`);
}

function tooSmall(
  directory: string,
  disk: string,
  sizeBytes: number,
  fileBytesMax: number | undefined,
  cause?: unknown,
): ReplicationError {
  const room = fileBytesMax === undefined ? "less" : `${fileBytesMax}`;
  return new ReplicationError(
    "target-too-small",
    `disk ${disk} has ${sizeBytes} bytes; the file system of ${directory} holds files of at most ${room} bytes. ` +
      "Put the store on a file system for larger files (XFS, ext4 with 4 KiB blocks)",
    { cause, details: { sizeBytes, fileBytesMax: fileBytesMax ?? null } },
  );
}
