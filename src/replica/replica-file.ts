/**
 * The replica file. Its mode is 0400: nobody but the holder of `apply.lock` writes it, and who mounts it by mistake gets it read-only.
 * The mode counts when a file is opened and not after, so an owner who is not root makes it writable for the moment of opening only.
 */
import { dirname } from "node:path";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";
import { fileError, inFile } from "./file-error.ts";
import type { DiskRecord } from "./disk-record.ts";
import type { DiskPaths } from "./layout.ts";
import { rawReplica } from "./raw-replica.ts";
import type { Replica, ReplicaReader } from "./replica.ts";
import { damaged } from "./state-file.ts";
import { openVhdxReplica, readVhdxReplica } from "./vhdx-replica.ts";

export const REPLICA_MODE = 0o400;

export interface OpenReplica {
  readonly replica: Replica;
  /** As it was found, before its mode was touched. */
  readonly found: FileStat;
  /** True when opening it has changed the file: its mode, and with it its ctime, or what a crash had left in it. */
  readonly changed: boolean;
}

/**
 * Opens the replica for writing and leaves it with {@link REPLICA_MODE}. `paths`: with the replica `record` names. Throws `store-damaged` when it is missing or its
 * tables are damaged, `replica-unreadable`.
 */
export async function openReplica(
  { storage, random }: { readonly storage: Storage; readonly random: Random },
  paths: DiskPaths,
  { format, blockBytes }: Pick<DiskRecord, "format" | "blockBytes">,
): Promise<OpenReplica> {
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
      if (format !== "vhdx") return { replica: rawReplica(file, found.sizeBytes), found, changed: modeChanged };
      const { replica, changed } = await openVhdxReplica(file, { storage, random, blockBytes });
      return { replica, found, changed: modeChanged || changed };
    } catch (error) {
      await file.close();
      throw error;
    }
  });
}

/** Opens the replica for reading. Throws `store-damaged` when it is missing or cannot be opened. */
export async function openReplicaToRead(
  storage: Storage,
  paths: DiskPaths,
  { format }: Pick<DiskRecord, "format">,
): Promise<ReplicaReader> {
  await findReplica(storage, paths);
  return inFile("store-damaged", `opening ${paths.replica}`, async () => {
    const file = await storage.open(paths.replica);
    if (format !== "vhdx") return file;
    try {
      return await readVhdxReplica(file, storage);
    } catch (error) {
      await file.close();
      throw error;
    }
  });
}

/** Throws `target-unsuitable` for a size a VHDX replica cannot have. */
export function checkWholeSectors(
  disk: string,
  { format, sectorBytes }: Pick<DiskRecord, "format" | "sectorBytes">,
  sizeBytes: number,
): void {
  if (format !== "vhdx" || sizeBytes % sectorBytes === 0) return;
  throw new ReplicationError(
    "target-unsuitable",
    `disk ${disk} has ${sizeBytes} bytes, and a VHDX replica has whole sectors of ${sectorBytes} bytes: send it to a receiver that keeps raw replicas (recv --format raw), ` +
      "or make the image a multiple of it",
    { details: { sizeBytes, sectorBytes } },
  );
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
