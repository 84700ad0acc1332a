/** Makes a new disk. With disk.json, written last, it exists. */
import { basename } from "node:path";
import { invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { type Geometry, isBlockSize } from "../base/units.ts";
import type { FileLock, Storage, StorageFile } from "../storage/seam.ts";
import { tableFileBytes } from "../table/digest-table.ts";
import { type DiskRecord, readRecord, writeRecord } from "./disk-record.ts";
import { fileError, inFile } from "./file-error.ts";
import { type DiskPaths, diskPaths, storePaths } from "./layout.ts";
import type { NewDisks, StoreParts } from "./open-disk.ts";
import { checkFits, checkWholeSectors, REPLICA_MODE, sizeError } from "./replica-file.ts";
import { damaged, newName, syncDirectory } from "./state-file.ts";
import { makeVhdxReplica, payloadBlockBytesDefault } from "./vhdx-replica.ts";

export interface NewDisk {
  readonly geometry: Geometry;
  readonly owner: string;
  readonly sectorBytes: number;
  /** What its replica is; default what the store was opened with. */
  readonly replica?: NewDisks | undefined;
}

/**
 * Order: room asked → directories, durable → `apply.lock` taken → leftovers of an interrupted try removed → replica and table files, synced →
 * disk.json, whose sync of the directory makes their names durable too. A crash before disk.json leaves no disk, and files that the next create removes. A disk that exists
 * already stays as it is, and no error is made of it: two senders may meet here, and `openWriter` tells them apart.
 */
export async function createDisk(store: StoreParts, name: string, facts: NewDisk): Promise<void> {
  const { storage, random } = store;
  const { geometry } = facts;
  const paths = diskPaths(store.path, name);
  invariant(isBlockSize(geometry.blockBytes), "a disk has a block size that is a power of two from 16 KiB to 1 MiB");
  invariant(facts.sectorBytes === 512 || facts.sectorBytes === 4096, "a disk has sectors of 512 or 4096 bytes");
  invariant(Number.isSafeInteger(geometry.sizeBytes) && geometry.sizeBytes >= 0, "a disk has a size");
  if (geometry.sizeBytes > limits.diskBytesMax) {
    throw new ReplicationError(
      "limit-exceeded",
      `disk ${name} has ${geometry.sizeBytes} bytes; the largest disk is one of ${limits.diskBytesMax} bytes`,
      { details: { sizeBytes: geometry.sizeBytes, sizeBytesMax: limits.diskBytesMax } },
    );
  }
  const { format = "raw", payloadBlockBytes = payloadBlockBytesDefault } = facts.replica ?? store.newDisks ?? {};
  checkWholeSectors(name, { format, sectorBytes: facts.sectorBytes }, geometry.sizeBytes);
  await checkFits(storage, store.path, name, geometry.sizeBytes);
  const lock = await lockNewDisk(store, name);
  try {
    if ((await readRecord(storage, paths)) !== undefined) return;
    await removeLeftovers(storage, paths);
    try {
      const vhdx = format === "vhdx" ? { payloadBlockBytes, sectorBytes: facts.sectorBytes } : undefined;
      await makeFiles(store, paths, { name, geometry, vhdx });
    } catch (error) {
      await removeAgain(storage, paths);
      throw error;
    }
    const record: DiskRecord = {
      id: random.uuid(),
      name,
      ...geometry,
      ...(format === "vhdx" ? { format } : {}),
      generation: random.uuid(),
      term: 1,
      owner: facts.owner,
      sectorBytes: facts.sectorBytes,
    };
    await writeRecord(storage, paths, record);
  } finally {
    await lock.release();
  }
}

/**
 * Before a disk is made: its directories, durable, and `apply.lock`, which the caller releases. Whether there is such a disk is to be looked at then.
 * Throws `disk-busy`, `locks-unsupported`, `no-space`, `write-failed`, `sync-failed`.
 */
export async function lockNewDisk({ storage, locks, path }: StoreParts, name: string): Promise<FileLock> {
  const paths = diskPaths(path, name);
  await inFile("write-failed", `making ${paths.points}`, async () => {
    await storage.makeDirectory(paths.directory);
    await storage.makeDirectory(paths.points);
  });
  await syncDirectory(storage, storePaths(path).disks);
  const lock = await locks.exclusive(paths.applyLock);
  if (lock !== undefined) return lock;
  throw new ReplicationError(
    "disk-busy",
    `disk ${name} is being made by another process; start again when it has ended`,
  );
}

/**
 * Files without disk.json: of a create or an adoption that did not end. An adoption has a point before it has disk.json, and says so by
 * `adopt.new`; other points never are leftovers: then disk.json was lost, and the rest is worth keeping.
 *
 * Order: the adoption's point → `points` synced → the other files → `adopt.new`. A crash in between leaves leftovers.
 */
export async function removeLeftovers(storage: Storage, paths: DiskPaths): Promise<void> {
  const points = (await inFile("store-damaged", `listing ${paths.points}`, () => storage.list(paths.points))) ?? [];
  const adoption = await inFile("store-damaged", `looking for ${paths.adoption}`, () => storage.stat(paths.adoption));
  const first = [paths.point(1), newName(paths.point(1))];
  const known = adoption === undefined ? [] : first.map((path) => basename(path));
  if (points.some((name) => !known.includes(name))) {
    throw damaged(paths.record, "it is missing, but the disk has points");
  }
  if (adoption !== undefined) await checkOtherName(storage, paths);
  await inFile("write-failed", `removing leftovers in ${paths.directory}`, async () => {
    if (points.length > 0) {
      for (const path of first) await storage.unlink(path);
      await syncDirectory(storage, paths.points);
    }
    await removeFiles(storage, paths);
    await storage.unlink(paths.adoption);
  });
}

/** An adoption gives the image a second name, and takes the first one only when disk.json is there: unless somebody else took it. */
async function checkOtherName(storage: Storage, { replica }: DiskPaths): Promise<void> {
  const found = await inFile("store-damaged", `looking for ${replica}`, () => storage.stat(replica));
  if (found === undefined || found.links > 1) return;
  throw new ReplicationError(
    "store-damaged",
    `${replica} is the only name left of an image whose adoption was interrupted: move it out of the store, then start again`,
    { details: { file: replica } },
  );
}

async function removeFiles(storage: Storage, paths: DiskPaths): Promise<void> {
  const { replica, vhdx, digests, pages, session, record } = paths;
  for (const path of [replica, vhdx, digests, pages, session, newName(session), newName(record)])
    await storage.unlink(path);
}

async function makeFiles(
  { storage, random }: StoreParts,
  paths: DiskPaths,
  {
    name,
    geometry,
    vhdx,
  }: {
    readonly name: string;
    readonly geometry: Geometry;
    readonly vhdx: { readonly payloadBlockBytes: number; readonly sectorBytes: number } | undefined;
  },
): Promise<void> {
  const table = tableFileBytes(geometry);
  const { sizeBytes } = geometry;
  try {
    if (vhdx === undefined) await makeFile(storage, paths.replica, REPLICA_MODE, (file) => file.truncate(sizeBytes));
    else {
      const make = (file: StorageFile): Promise<void> => makeVhdxReplica(file, { ...vhdx, sizeBytes }, random);
      await makeFile(storage, paths.vhdx, REPLICA_MODE, make);
    }
  } catch (error) {
    throw sizeError(error, paths.directory, name, geometry.sizeBytes);
  }
  await inFile("write-failed", `disk ${name}: making its table`, async () => {
    await makeFile(storage, paths.digests, 0o600, (file) => file.truncate(table.digests));
    await makeFile(storage, paths.pages, 0o600, (file) => file.truncate(table.pages));
  });
}

/** `fill`: what it holds. Durable when it resolves. */
async function makeFile(
  storage: Storage,
  path: string,
  mode: number,
  fill: (file: StorageFile) => Promise<void>,
): Promise<void> {
  const file = await storage.open(path, { write: true, exclusive: true, mode });
  try {
    await fill(file);
    try {
      await file.datasync();
    } catch (error) {
      throw fileError(error, "sync-failed", `syncing ${path}`);
    }
  } finally {
    await file.close();
  }
}

/** After a failure: what was made takes space, and the next try removes what is left now. */
async function removeAgain(storage: Storage, paths: DiskPaths): Promise<void> {
  try {
    await removeFiles(storage, paths);
  } catch {
    // The first failure is the one to tell; without disk.json nothing of this counts.
  }
}
