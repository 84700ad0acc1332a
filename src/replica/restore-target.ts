/** Where a point is restored to: a new file that gets its name when it is complete, or a block device. */
import { dirname, resolve } from "node:path";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { BlockWriter } from "../image/block-device.ts";
import { createRawWriter, sizeRawTarget } from "../image/raw.ts";
import { createVhdx } from "../image/vhdx/create.ts";
import { openVhdxWriter } from "../image/vhdx/writer.ts";
import type { FileLock, FileStat, Storage, StorageFile } from "../storage/seam.ts";
import { fileError, inFile } from "./file-error.ts";
import { storePaths } from "./layout.ts";

export interface RestoreTarget {
  readonly writer: BlockWriter;
  /** It may hold other content. */
  readonly clear: boolean;
  /** Makes durable what was written; of a file under its name. */
  finish(): Promise<void>;
  /** Closes it, and removes what {@link finish} has not completed. Idempotent. */
  close(): Promise<void>;
}

export interface TargetOptions {
  readonly storage: Storage;
  readonly sizeBytes: number;
  /** Of it, what will be written. */
  readonly dataBytes: number;
  /** Replace a file that exists, write over a device. */
  readonly overwrite: boolean;
  /** A dynamic VHDX of such sectors, in a file; undefined: raw. */
  readonly vhdx?: { readonly sectorBytes: 512 | 4096; readonly random: Random } | undefined;
}

/**
 * A file is written as `PATH.part`. Errors: `target-exists` without `overwrite`, also for a block device; `target-unsuitable`,
 * `target-too-small`, `no-space`, `image-in-use` for a device that is mounted or held, `image-busy` while another process restores to the
 * same path, `write-failed`.
 */
export async function openRestoreTarget(path: string, options: TargetOptions): Promise<RestoreTarget> {
  const { storage, overwrite } = options;
  const absolute = resolve(path);
  const found = await statOf(storage, absolute);
  if (found !== undefined && found.kind !== "file" && found.kind !== "device") {
    const kind = found.kind === "directory" ? "a directory" : "neither a file nor a block device";
    throw new ReplicationError("target-unsuitable", `${absolute} is ${kind}: name a new file or a block device`);
  }
  await checkOutsideStore(storage, absolute);
  checkShape(absolute, found, options);
  if (found !== undefined && !overwrite) {
    throw exists(absolute, found.kind === "device" ? "is a block device that would be written over" : "exists");
  }
  return found?.kind === "device" ? openDevice(absolute, options) : openPart(absolute, options);
}

/** What can be told before anything is made. */
function checkShape(path: string, found: FileStat | undefined, { vhdx, sizeBytes }: TargetOptions): void {
  if (vhdx === undefined) return;
  if (found?.kind === "device") {
    throw new ReplicationError("target-unsuitable", `${path} is a block device: only raw images are written to one`);
  }
  const { sectorBytes } = vhdx;
  if (sizeBytes % sectorBytes === 0) return;
  throw new ReplicationError(
    "target-unsuitable",
    `a VHDX image has whole sectors of ${sectorBytes} bytes, and the disk's ${sizeBytes} bytes are no multiple of it: restore it as a raw image`,
  );
}

function exists(path: string, what: string): ReplicationError {
  return new ReplicationError("target-exists", `${path} ${what}: name another target, or say --force to replace it`, {
    details: { file: path },
  });
}

/** A replica, or another file of a store, must not be replaced by what is restored from it. */
async function checkOutsideStore(storage: Storage, path: string): Promise<void> {
  // By `..` and not by name, so that a link into a store is seen through.
  for (let directory = dirname(path), before = ""; ; directory = `${directory}/..`) {
    const here = await statOf(storage, directory);
    if (here === undefined) {
      throw new ReplicationError("target-unsuitable", `${dirname(path)} does not exist: make it first`);
    }
    const identity = `${here.device}:${here.inode}`;
    if (identity === before) return;
    before = identity;
    const { record, disks } = storePaths("");
    // Not joined: that would take `LINK/..` for the folder the link lies in.
    if ((await statOf(storage, `${directory}/${record}`)) === undefined) continue;
    if ((await statOf(storage, `${directory}/${disks}`)) === undefined) continue;
    throw new ReplicationError("target-unsuitable", `${path} lies within a store: restore to another place`);
  }
}

function statOf(storage: Storage, path: string): Promise<FileStat | undefined> {
  return inFile("write-failed", `looking at ${path}`, () => storage.stat(path));
}

async function openDevice(path: string, { storage, sizeBytes }: TargetOptions): Promise<RestoreTarget> {
  let file: StorageFile;
  try {
    file = await storage.open(path, { write: true, holdDevice: true });
  } catch (error) {
    if (errnoOf(error) !== "EBUSY") throw fileError(error, "write-failed", `opening ${path}`);
    throw new ReplicationError("image-in-use", `${path} is mounted or held by another program: unmount it first`, {
      cause: error,
    });
  }
  try {
    const writer = explained(
      createRawWriter(file, storage, await sizeRawTarget(file, storage, sizeBytes)),
      path,
      storage,
      undefined,
    );
    return { writer, clear: true, finish: () => writer.flush(), close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Order: lock of the part taken → made with its size → (written) → synced → renamed → directory synced. A crash before the rename leaves
 * PATH as it was, and a part.
 */
async function openPart(path: string, options: TargetOptions): Promise<RestoreTarget> {
  const { storage } = options;
  const part = `${path}.part`;
  await checkRoom(path, options);
  const lock = await lockPart(storage, part, options.overwrite);
  let file: StorageFile | undefined;
  let complete = false;
  let closed = false;
  const close = async (): Promise<void> => {
    if (closed) return;
    closed = true;
    try {
      await file?.close();
      if (!complete) await inFile("write-failed", `removing ${part}`, () => storage.unlink(part));
    } finally {
      await lock?.release();
    }
  };
  try {
    file = await inFile("write-failed", `making ${part}`, () =>
      storage.open(part, { write: true, create: true, truncate: true, mode: 0o600 }),
    );
    const writer = explained(
      await writerOf(file, part, options),
      part,
      storage,
      options.vhdx === undefined ? file.fd : undefined,
    );
    return {
      writer,
      clear: false,
      close,
      async finish() {
        await writer.flush();
        // Somebody else may have made one meanwhile.
        if (!options.overwrite && (await statOf(storage, path)) !== undefined) throw exists(path, "exists");
        await inFile("write-failed", `renaming ${part}`, async () => {
          await storage.rename(part, path);
          complete = true;
          await storage.syncDirectory(dirname(path));
        });
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Of an empty file. */
async function writerOf(file: StorageFile, part: string, options: TargetOptions): Promise<BlockWriter> {
  const { storage, sizeBytes, vhdx } = options;
  return inFile("write-failed", `giving ${part} ${sizeBytes} bytes`, async () => {
    if (vhdx === undefined) return createRawWriter(file, storage, await sizeRawTarget(file, storage, sizeBytes));
    await createVhdx(file, { sizeBytes, sectorBytes: vhdx.sectorBytes }, vhdx.random);
    return openVhdxWriter(file, { storage, random: vhdx.random });
  });
}

async function checkRoom(path: string, { storage, dataBytes }: TargetOptions): Promise<void> {
  const directory = dirname(path);
  const { freeBytes } = await inFile("write-failed", `asking the room in ${directory}`, () => storage.space(directory));
  if (freeBytes >= dataBytes) return;
  throw new ReplicationError(
    "no-space",
    `${directory} has ${freeBytes} bytes free and the point has ${dataBytes} bytes of data; free ${dataBytes - freeBytes} bytes, or restore to another place`,
    { details: { freeBytes, dataBytes } },
  );
}

/** Keeps two restores from writing one part. Undefined: there are no locks here. */
async function lockPart(storage: Storage, part: string, overwrite: boolean): Promise<FileLock | undefined> {
  const busy = new ReplicationError("image-busy", `${part} is being written by another restore`);
  const before = await statOf(storage, part);
  if (before !== undefined && before.kind !== "file") {
    throw new ReplicationError("target-unsuitable", `${part} exists and is not a file: name another target`);
  }
  let lock: FileLock | undefined;
  try {
    lock = await inFile("write-failed", `locking ${part}`, () => storage.lock(part, "exclusive"));
    if (lock === undefined) throw busy;
  } catch (error) {
    const cause = error instanceof Error ? error.cause : undefined;
    if (errnoOf(cause) !== "ENOTSUP" && errnoOf(error) !== "ENOTSUP") throw error;
  }
  if (before !== undefined && !overwrite) {
    await lock?.release();
    throw exists(part, "exists, left by a restore that was killed or made by another program");
  }
  if (before === undefined || lock === undefined) return lock;
  // Another restore may have finished, and renamed the part, between our look and our lock.
  const after = await statOf(storage, part);
  if (after !== undefined && after.inode === before.inode && after.device === before.device) return lock;
  await lock.release();
  throw busy;
}

/** What the system says of a write, in words; and long writes handed to the device early, so that the sync at the end is short. */
function explained(writer: BlockWriter, path: string, storage: Storage, fd: number | undefined): BlockWriter {
  return {
    ...writer,
    async write(source, offset) {
      await inFile("write-failed", `writing ${path} at offset ${offset}`, () => writer.write(source, offset));
      if (fd !== undefined) storage.lanes.startWriteback(fd, offset, source.length);
    },
    zero: (offset, length) =>
      inFile("write-failed", `zeroing ${path} at offset ${offset}`, () => writer.zero(offset, length)),
    flush: () => inFile("sync-failed", `syncing ${path}`, () => writer.flush()),
  };
}
