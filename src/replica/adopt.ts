/**
 * Makes an image that exists the replica of a new disk, so that what it holds is not sent again: where it lies, or moved into the store. Its content is
 * read and never changed.
 *
 * Order: `apply.lock` → leftovers of an interrupted try removed → `adopt.new`, durable → (moved: `replica.raw` made a second name of the image) → *the image
 * is watched, synced, its page cache dropped, and read* → table written and synced → nobody has changed the image meanwhile → point 1, durable → the
 * directory that names the image synced → `disk.json`, which is the adoption → `adopt.new` unlinked, directory synced → mode 0400 → (moved: the first name
 * unlinked, its directory synced).
 *
 * A crash before disk.json leaves no disk, the image under its name, and leftovers that the next adoption or create removes. After it the disk is there;
 * what is missing of the rest is done by the same call made again. At no moment has the image no name.
 */
import { basename, dirname } from "node:path";
import { errnoOf, invariant, ReplicationError } from "../base/errors.ts";
import { BLOCK_BYTES_DEFAULT, type Geometry, isBlockSize } from "../base/units.ts";
import { createImageGuard, type ImageGuard } from "../image/guard.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";
import type { DigestTable } from "../table/digest-table.ts";
import {
  ADOPTED_SOURCE,
  checkFree,
  claimImage,
  findImage,
  findMoved,
  type FoundImage,
  imageChanged,
  type ImageToAdopt,
  isReplica,
  isSame,
} from "./adopt-image.ts";
import { lockNewDisk, removeLeftovers } from "./create-disk.ts";
import { type DiskRecord, pathsOf, readRecord, writeRecord } from "./disk-record.ts";
import { inFile } from "./file-error.ts";
import { type DiskPaths, diskPaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints, type Point, writePoint } from "./points/point.ts";
import { REPLICA_MODE } from "./replica-file.ts";
import { syncDirectory } from "./state-file.ts";
import { hexOf, TableFiles } from "./table-files.ts";

export type { ImageToAdopt };

/** An image open for reading, and the table that is to say what it holds. */
export interface TableToFill {
  /** Absolute path. */
  readonly image: string;
  readonly geometry: Geometry;
  /** All zero. */
  readonly table: DigestTable;
  readonly fd: number;
  nextData(offset: number): { readonly start: number; readonly end: number } | undefined;
}

export interface Adopted {
  readonly record: DiskRecord;
  readonly point: Point;
  /** Path of the replica. */
  readonly replica: string;
  /** False: this image was the disk's replica already. */
  readonly created: boolean;
}

/**
 * `fill` digests the image's data into the table. Order, and what a crash leaves: see above. After an error there is no disk, unless the error came behind
 * disk.json: then the call made again ends it. Throws `image-not-found`, `image-unreadable`, `image-format-unsupported`, `image-format-mismatch`, `image-in-use`
 * (QEMU writes to it, or another disk of the store has it), `image-busy` (it is being adopted), `image-changed`, `target-unsuitable` (no file, or one that cannot be
 * made a replica), `target-exists` (the disk is there with another replica), `disk-owned`, `block-size-differs`, `digest-kind-differs` (it is there with this image, but
 * otherwise), `disk-busy`, `limit-exceeded`, `store-damaged`, `no-space`, `write-failed`, `sync-failed`, and what `fill` throws.
 */
export async function adoptImage(
  store: StoreParts,
  name: string,
  facts: ImageToAdopt,
  fill: (work: TableToFill) => Promise<void>,
): Promise<Adopted> {
  const { storage } = store;
  const paths = diskPaths(store.path, name);
  invariant(facts.blockBytes === undefined || isBlockSize(facts.blockBytes), "a disk has a block size");
  const image = (await findMoved(store, paths, facts)) ?? (await findImage(store, facts));
  const claim = await claimImage(storage, image);
  try {
    // Looked at before anything is made.
    const before = await readRecord(storage, paths);
    if (before !== undefined) await checkAdopted(storage, { paths, record: before, image, facts });
    await checkFree(store, image, before === undefined ? undefined : name);
    const lock = await lockNewDisk(store, name);
    try {
      const record = await readRecord(storage, paths);
      if (record !== undefined) return await finishEarlier(store, { paths, record, image, facts });
      return await adoptLocked(store, { name, paths, image, facts, fill });
    } finally {
      await lock.release();
    }
  } finally {
    await claim?.release();
  }
}

interface Earlier {
  readonly paths: DiskPaths;
  readonly record: DiskRecord;
  readonly image: FoundImage;
  readonly facts: ImageToAdopt;
}

/** The disk that is there has this image and is what was asked for. */
async function checkAdopted(storage: Storage, { paths, record, image, facts }: Earlier): Promise<void> {
  const { name, owner, blockBytes, digestKind } = record;
  if (!(await isReplica(storage, pathsOf(paths, record), image))) {
    throw new ReplicationError(
      "target-exists",
      `disk ${name} is there already, with another replica: choose another name`,
    );
  }
  const is = `disk ${name} has adopted ${image.path} already`;
  if (owner !== facts.owner) {
    throw new ReplicationError("disk-owned", `${is}, for ${owner} and not for ${facts.owner}`, { details: { owner } });
  }
  if (facts.blockBytes !== undefined && facts.blockBytes !== blockBytes) {
    throw new ReplicationError("block-size-differs", `${is}, with blocks of ${blockBytes} bytes`, {
      details: { blockBytes },
    });
  }
  if (facts.digestKind !== undefined && facts.digestKind !== digestKind) {
    throw new ReplicationError("digest-kind-differs", `${is}, with digest ${digestKind}`, { details: { digestKind } });
  }
  if (facts.move !== true || record.image === undefined) return;
  throw new ReplicationError("target-exists", `${is}, where it lies: it cannot be moved any more; leave --move out`);
}

/** What an earlier call was not given the time for. Order: directories synced → as at the end of the adoption. */
async function finishEarlier(store: StoreParts, earlier: Earlier): Promise<Adopted> {
  const { storage } = store;
  const { paths, record } = earlier;
  await checkAdopted(storage, earlier);
  for (const directory of [paths.directory, paths.points]) await syncDirectory(storage, directory);
  const { points } = await loadPoints(storage, paths, await listPoints(storage, paths));
  const point = points.find(({ source }) => source === ADOPTED_SOURCE) ?? points.at(-1);
  if (point === undefined) {
    throw new ReplicationError("target-exists", `disk ${record.name} is there already, and was not adopted`);
  }
  await finish(storage, earlier);
  return { record, point, replica: pathsOf(paths, record).replica, created: false };
}

interface Work {
  readonly name: string;
  readonly paths: DiskPaths;
  readonly image: FoundImage;
  readonly facts: ImageToAdopt;
  readonly fill: (work: TableToFill) => Promise<void>;
}

async function adoptLocked(store: StoreParts, work: Work): Promise<Adopted> {
  const { storage } = store;
  const { paths, image, facts } = work;
  await removeLeftovers(storage, paths);
  let made: { readonly record: DiskRecord; readonly point: Point };
  try {
    made = await prepare(store, work);
  } catch (error) {
    await removeAgain(storage, paths);
    throw error;
  }
  // Not undone when it fails: it may be there all the same.
  await writeRecord(storage, paths, made.record);
  await finish(storage, { paths, record: made.record, image, facts });
  return { ...made, replica: pathsOf(paths, made.record).replica, created: true };
}

/** Everything before disk.json. */
async function prepare(
  store: StoreParts,
  { name, paths, image, facts, fill }: Work,
): Promise<{ readonly record: DiskRecord; readonly point: Point }> {
  const { storage, random } = store;
  const move = facts.move === true;
  const record: DiskRecord = {
    id: random.uuid(),
    name,
    sizeBytes: image.stat.sizeBytes,
    blockBytes: facts.blockBytes ?? BLOCK_BYTES_DEFAULT,
    digestKind: facts.digestKind ?? "xxh64",
    generation: random.uuid(),
    term: 1,
    owner: facts.owner,
    sectorBytes: 512,
    image: move ? undefined : image.path,
  };
  await checkMode(storage, image);
  await writeMarker(storage, paths, image);
  if (move) await nameInStore(storage, paths, image);
  const file = await inFile("image-unreadable", `opening ${image.path}`, () => storage.open(image.path));
  try {
    const point = await digest(store, { paths, image, facts, fill, record, file });
    // The name of an image that was made a moment ago may not be durable yet.
    await syncDirectory(storage, move ? paths.directory : dirname(image.path));
    return { record, point };
  } finally {
    await file.close();
  }
}

/** Durable when it resolves. Its text is for people. */
async function writeMarker(storage: Storage, paths: DiskPaths, { path }: FoundImage): Promise<void> {
  await inFile("write-failed", `writing ${paths.adoption}`, async () => {
    const file = await storage.open(paths.adoption, { write: true, create: true, truncate: true });
    try {
      await file.write(Buffer.from(`${JSON.stringify({ image: path })}\n`), 0);
      await inFile("sync-failed", `syncing ${paths.adoption}`, () => file.datasync());
    } finally {
      await file.close();
    }
  });
  await syncDirectory(storage, paths.directory);
}

/** Before the image is read, so that a place that is no good is told at once. Its first name stays until the disk is there. */
async function nameInStore(storage: Storage, paths: DiskPaths, image: FoundImage): Promise<void> {
  try {
    await storage.link(image.path, paths.replica);
  } catch (error) {
    const errno = errnoOf(error) ?? "";
    if (!["EXDEV", "EPERM", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(errno)) {
      return await inFile("write-failed", `linking ${image.path} to ${paths.replica}`, () => Promise.reject(error));
    }
    throw new ReplicationError(
      "target-unsuitable",
      `${image.path} cannot be moved into ${paths.directory} (${errno}): both must be on one file system that has hard links, and the file ` +
        "must be this user's. Without --move it is adopted where it lies",
      { cause: error, details: { file: image.path, errno } },
    );
  }
  const named = await inFile("write-failed", `looking for ${paths.replica}`, () => storage.stat(paths.replica));
  if (!isSame(named, image.stat)) throw imageChanged(image.path);
}

/** A replica has mode 0400 and is made writable by its owner: whether this user is that is seen by giving it the mode it has. */
async function checkMode(storage: Storage, { path, stat }: FoundImage): Promise<void> {
  try {
    await storage.setMode(path, stat.mode);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno !== "EPERM" && errno !== "EACCES" && errno !== "EROFS") {
      return await inFile("write-failed", `setting the mode of ${path}`, () => Promise.reject(error));
    }
    throw new ReplicationError(
      "target-unsuitable",
      `${path} cannot be made a replica (${errno}): it must belong to the user that receives, on a file system that can be written`,
      { cause: error, details: { file: path, errno } },
    );
  }
}

interface Digesting {
  readonly paths: DiskPaths;
  readonly image: FoundImage;
  readonly facts: ImageToAdopt;
  readonly fill: (work: TableToFill) => Promise<void>;
  readonly record: DiskRecord;
  readonly file: StorageFile;
}

/** The table and point 1, durable. */
async function digest(store: StoreParts, work: Digesting): Promise<Point> {
  const { storage, clock, random, locks } = store;
  const { paths, image, facts, fill, record, file } = work;
  const { sizeBytes, blockBytes, digestKind } = record;
  const geometry: Geometry = { sizeBytes, blockBytes, digestKind };
  const guard = createImageGuard(file, { storage, clock });
  await watched(image, () => guard.begin());
  // What is digested is what is on disk: see `prepareReading` of open-disk.ts.
  storage.lanes.dropCache(file.fd, 0, sizeBytes);
  const tableFiles = await TableFiles.open(storage, paths, record.name);
  try {
    const table = await tableFiles.empty(geometry, () => undefined);
    const nextData = (offset: number): ReturnType<StorageFile["nextData"]> => file.nextData(offset);
    await fill({ image: image.path, geometry, table, fd: file.fd, nextData });
    await tableFiles.settle(table);
    const { modifiedNanos } = await checkUnchanged(storage, { image, file, guard });
    const point: Point = {
      point: 1,
      time: clock.now(),
      label: facts.label,
      consistency: "crash",
      root: hexOf(table.root()),
      sizeBytes,
      generation: record.generation,
      term: record.term,
      cycle: random.uuid(),
      source: ADOPTED_SOURCE,
      sourceName: image.path,
      replicaModified: modifiedNanos.toString(),
    };
    await locks.withChainLock(paths.chainLock, () => writePoint(storage, paths, point));
    return point;
  } finally {
    await tableFiles.close();
  }
}

/** The file is what it was when it was found, and its path names it. A write from now on has a later mtime than point 1 knows. */
async function checkUnchanged(
  storage: Storage,
  { image, file, guard }: { readonly image: FoundImage; readonly file: StorageFile; readonly guard: ImageGuard },
): Promise<FileStat> {
  const stat = await inFile("image-unreadable", `looking at ${image.path}`, () => file.stat());
  await watched(image, () => guard.check());
  const named = await inFile("image-unreadable", `looking for ${image.path}`, () => storage.stat(image.path));
  if (!isSame(named, stat) || !isSame(stat, image.stat) || stat.sizeBytes !== image.stat.sizeBytes) {
    throw imageChanged(image.path);
  }
  return stat;
}

/** The guard's advice is for a send. */
async function watched(image: FoundImage, call: () => Promise<void>): Promise<void> {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    if (error.code === "image-changed") throw imageChanged(image.path, error);
    if (error.code !== "image-in-use") throw error;
    throw new ReplicationError(
      "image-in-use",
      `${image.path} is open for writing in QEMU, and a replica is written by its receiver only: stop the virtual machine, or adopt a copy`,
      { cause: error, details: error.details },
    );
  }
}

/** Behind disk.json. May be done twice. */
async function finish(storage: Storage, { paths, record, image, facts }: Earlier): Promise<void> {
  const { replica } = pathsOf(paths, record);
  await inFile("write-failed", `removing ${paths.adoption}`, () => storage.unlink(paths.adoption));
  await syncDirectory(storage, paths.directory);
  const found = await inFile("write-failed", `looking for ${replica}`, () => storage.stat(replica));
  if (found !== undefined && found.mode !== REPLICA_MODE) {
    await inFile("write-failed", `setting the mode of ${replica}`, () => storage.setMode(replica, REPLICA_MODE));
  }
  if (facts.move === true && record.image === undefined) await takeName(storage, paths, image);
}

/** The image's first name goes, while it has another one and is not the one in the store under whatever path. */
async function takeName(storage: Storage, paths: DiskPaths, image: FoundImage): Promise<void> {
  const directory = dirname(image.path);
  await inFile("write-failed", `removing ${image.path}`, async () => {
    const found = await storage.stat(image.path);
    if (!isSame(found, image.stat) || (found?.links ?? 0) < 2) return;
    const home = await storage.stat(paths.directory);
    const parent = await storage.stat(directory);
    if (home === undefined || (isSame(parent, home) && basename(image.path) === basename(paths.replica))) return;
    await storage.unlink(image.path);
  });
  await syncDirectory(storage, directory);
}

/** After a failure: without disk.json nothing of this counts, and the next try removes what is left now. */
async function removeAgain(storage: Storage, paths: DiskPaths): Promise<void> {
  try {
    await removeLeftovers(storage, paths);
  } catch {
    // The first failure is the one to tell.
  }
}
