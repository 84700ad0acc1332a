/** The image of an adoption: found, claimed, and free to become a replica. */
import { createHash } from "node:crypto";
import { basename, dirname, join } from "node:path";
import { isDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import type { DigestKind } from "../base/units.ts";
import { formatAdvice, formatTitle } from "../image/detect.ts";
import { openImage } from "../image/open-image.ts";
import type { FileLock, FileStat, Storage } from "../storage/seam.ts";
import { pathsOf, readRecord } from "./disk-record.ts";
import { inFile } from "./file-error.ts";
import { type DiskPaths, diskPaths, storePaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints } from "./points/point.ts";

/** `source` of the point an adoption makes: no sender has it, so the first send of the disk is compared by a sample. */
export const ADOPTED_SOURCE = "adopted";

export interface ImageToAdopt {
  /** Path of a file; in the store's own calls absolute. */
  readonly image: string;
  /** Certificate name the disk will belong to. */
  readonly owner: string;
  /** Default 64 KiB. */
  readonly blockBytes?: number | undefined;
  /** Default `xxh64`. */
  readonly digestKind?: DigestKind | undefined;
  readonly label?: string | undefined;
  /** Take the bytes for a raw disk's whatever they look like. */
  readonly format?: "raw" | undefined;
  /** Give the image a place in the store, on the same file system, and take its name away. */
  readonly move?: boolean | undefined;
}

/** The file, under the name it has without symbolic links. */
export interface FoundImage {
  readonly path: string;
  readonly stat: FileStat;
}

/** What it is, that it can be read, and where it really lies. */
export async function findImage({ storage, clock }: StoreParts, { image, format }: ImageToAdopt): Promise<FoundImage> {
  const named = await inFile("image-unreadable", `looking for ${image}`, () => storage.stat(image));
  if (named?.kind === "device") {
    throw new ReplicationError(
      "target-unsuitable",
      `${image} is a block device, and only image files can be adopted: send it, or copy it into a file first`,
      { details: { file: image } },
    );
  }
  // What it is and whether it can be read.
  const opened = await openImage(image, { storage, clock, format });
  await opened.reader.close();
  if (opened.format !== "raw") {
    throw new ReplicationError(
      "image-format-unsupported",
      `${opened.path} is ${formatTitle(opened.format)}, and replicas are raw images. ${formatAdvice(opened.format, opened.path)}, and adopt that`,
      { details: { file: opened.path, format: opened.format } },
    );
  }
  const real = await inFile("image-unreadable", `looking for ${image}`, async () => storage.realPath?.(opened.path));
  const path = real ?? opened.path;
  const stat = await inFile("image-unreadable", `looking for ${path}`, () => storage.stat(path));
  if (stat === undefined || `file:${stat.device}:${stat.inode}` !== opened.identity) throw imageChanged(path);
  return { path, stat };
}

/** Keeps this user's other processes from adopting the same image under another name. Undefined: there are no such locks here. */
export async function claimImage(storage: Storage, { path, stat }: FoundImage): Promise<FileLock | undefined> {
  if (!storage.capabilities.locks || storage.lockName === undefined) return undefined;
  const { lockName } = storage;
  const name = createHash("sha256").update(`adopt ${stat.device} ${stat.inode}`).digest("hex");
  const lock = await inFile("locks-unsupported", `locking ${path} in the folder for temporary files`, () =>
    lockName(name),
  );
  if (lock !== undefined) return lock;
  throw new ReplicationError("image-busy", `${path} is being adopted by another process of this user`);
}

/** No disk but `mine` has the image, and it does not lie where a new disk would clear it away. */
export async function checkFree(store: StoreParts, image: FoundImage, mine: string | undefined): Promise<void> {
  const { storage, path } = store;
  const names = await inFile("store-damaged", "listing the store's disks", () => storage.list(storePaths(path).disks));
  const home = await inFile("image-unreadable", `looking for ${image.path}`, () => storage.stat(dirname(image.path)));
  for (const other of names ?? []) {
    if (other === mine || !isDiskName(other)) continue;
    const paths = diskPaths(path, other);
    const directory = await inFile("store-damaged", `looking for ${paths.directory}`, () =>
      storage.stat(paths.directory),
    );
    if (home !== undefined && isSame(directory, home)) {
      throw new ReplicationError(
        "target-unsuitable",
        `${image.path} lies in the store, in the folder of disk ${other}: move it out of the store first`,
        { details: { file: image.path, disk: other } },
      );
    }
    const record = await readRecord(storage, paths);
    if (record === undefined || !(await isReplica(storage, pathsOf(paths, record), image))) continue;
    throw new ReplicationError("image-in-use", `${image.path} is the replica of disk ${other} of this store already`, {
      details: { file: image.path, disk: other },
    });
  }
}

export async function isReplica(storage: Storage, { replica }: DiskPaths, image: FoundImage): Promise<boolean> {
  const found = await inFile("replica-unreadable", `looking for ${replica}`, () => storage.stat(replica));
  return isSame(found, image.stat);
}

export function isSame(a: FileStat | undefined, b: FileStat): boolean {
  return a !== undefined && a.device === b.device && a.inode === b.inode;
}

/**
 * An image that an earlier call has moved into the store already: its name is gone, and the disk's point tells it. Undefined: no such thing.
 */
export async function findMoved(
  { storage }: StoreParts,
  paths: DiskPaths,
  { image, move }: ImageToAdopt,
): Promise<FoundImage | undefined> {
  if (move !== true) return undefined;
  return inFile("image-unreadable", `looking for ${image}`, async () => {
    if ((await storage.stat(image)) !== undefined) return undefined;
    const record = await readRecord(storage, paths);
    if (record === undefined || record.image !== undefined) return undefined;
    const directory = dirname(image);
    if ((await storage.stat(directory)) === undefined) return undefined;
    const path = join((await storage.realPath?.(directory)) ?? directory, basename(image));
    const { points } = await loadPoints(storage, paths, await listPoints(storage, paths));
    if (!points.some(({ source, sourceName }) => source === ADOPTED_SOURCE && sourceName === path)) return undefined;
    const stat = await storage.stat(paths.replica);
    return stat === undefined ? undefined : { path, stat };
  });
}

/** What an adoption says of an image that did not stay as it was. */
export function imageChanged(path: string, cause?: ReplicationError): ReplicationError {
  return new ReplicationError(
    "image-changed",
    `${path} was changed or replaced while it was adopted: no disk was made. Stop what writes to it, then start again`,
    { cause, details: { file: path, ...cause?.details } },
  );
}
