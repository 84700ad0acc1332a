/** {@link Storage} over node:fs, with the Linux calls where they are to be had. */
import * as fs from "node:fs";
import { chmod, link, mkdir, readdir, rename, rmdir, stat, statfs, unlink } from "node:fs/promises";
import { constants, platform } from "node:os";
import { promisify } from "node:util";
import { errnoOf } from "../base/errors.ts";
import { deviceName, deviceWriteCounter } from "./block-device.ts";
import { fileBytesMax } from "./file-system.ts";
import { type LinuxCalls, loadLinuxCalls } from "./linux.ts";
import { NodeFile, toFileStat } from "./node-file.ts";
import { createNodeLanes } from "./node-lanes.ts";
import type { Capabilities, FileLock, FileStat, LaneStorage, OpenOptions, Storage, StorageFile } from "./seam.ts";
import { systemError } from "./system-error.ts";

const openDescriptor = promisify(fs.open);
const closeDescriptor = promisify(fs.close);
const syncDescriptor = promisify(fs.fsync);

/**
 * QEMU's image locks (its block/file-posix.c): byte 100 + n is locked by who uses permission n of an image. 1: write,
 * 3: resize.
 */
const qemuWriterBytes = [101, 103];

/** `linux`: the calls to use instead of the platform's, for tests of what a platform may lack. */
export function createNodeStorage(options: { readonly linux?: LinuxCalls } = {}): Storage {
  const linux = lazily(() => options.linux ?? loadLinuxCalls());
  return {
    get capabilities() {
      return capabilitiesOf(linux());
    },
    lanes: createNodeLanes(linux),
    open: (path, openOptions) => openFile(path, openOptions ?? {}, linux()),
    rename,
    link,
    unlink: removeFile,
    async makeDirectory(path) {
      await mkdir(path, { recursive: true, mode: 0o700 });
    },
    removeDirectory: rmdir,
    list,
    syncDirectory,
    stat: (path) => statPath(path, linux()),
    setMode: chmod,
    async space(path) {
      const facts = await statfs(path);
      return {
        freeBytes: facts.bavail * facts.bsize,
        fileBytesMax: fileBytesMax(facts.type, facts.bsize),
        totalBytes: facts.blocks * facts.bsize,
      };
    },
    lock: (path, kind) => lockFile(path, kind, linux()),
    probeImageLock(file) {
      const { byteLocked } = linux();
      return qemuWriterBytes.some((offset) => byteLocked?.(file.fd, offset) === 1) ? "writer" : undefined;
    },
    async deviceWrites(file) {
      const facts = fs.fstatSync(file.fd, { bigint: true });
      return facts.isBlockDevice() ? deviceWriteCounter(deviceName(facts.rdev)) : undefined;
    },
  };
}

/** The positional face alone, for a worker thread; loads nothing until a hint or a hole asks for it. */
export function nodeLaneStorage(): LaneStorage {
  return createNodeLanes(lazily(loadLinuxCalls));
}

function lazily<T extends object>(make: () => T): () => T {
  let made: T | undefined;
  return () => {
    made ??= make();
    return made;
  };
}

function capabilitiesOf(linux: LinuxCalls): Capabilities {
  return {
    holes: linux.seek !== undefined,
    punch: linux.punch !== undefined,
    locks: linux.flock !== undefined,
    hints: linux.advise !== undefined && linux.writeback !== undefined,
    missing: linux.missing,
  };
}

async function openFile(path: string, options: OpenOptions, linux: LinuxCalls): Promise<StorageFile> {
  let flags = options.write === true ? fs.constants.O_RDWR : fs.constants.O_RDONLY;
  if (options.create === true || options.exclusive === true) flags |= fs.constants.O_CREAT;
  // Without O_CREAT the kernel reads O_EXCL on a block device as "held by nobody else".
  if (options.exclusive === true || options.holdDevice === true) flags |= fs.constants.O_EXCL;
  if (options.truncate === true) flags |= fs.constants.O_TRUNC;
  const fd = await openDescriptor(path, flags, options.mode ?? 0o600);
  const file = new NodeFile(path, fd, linux);
  try {
    await file.prepare();
  } catch (error) {
    await file.close();
    throw error;
  }
  return file;
}

async function removeFile(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw error;
  }
}

async function list(path: string): Promise<readonly string[] | undefined> {
  try {
    return (await readdir(path)).sort();
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function syncDirectory(path: string): Promise<void> {
  // Windows has no such call: directories there cannot be opened.
  if (platform() === "win32") return;
  const fd = await openDescriptor(path, fs.constants.O_RDONLY);
  try {
    await syncDescriptor(fd);
  } finally {
    await closeDescriptor(fd);
  }
}

async function statPath(path: string, linux: LinuxCalls): Promise<FileStat | undefined> {
  let stats: fs.BigIntStats;
  try {
    stats = await stat(path, { bigint: true });
  } catch (error) {
    const code = errnoOf(error);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw error;
  }
  return toFileStat(stats, linux, undefined);
}

async function lockFile(path: string, kind: "shared" | "exclusive", linux: LinuxCalls): Promise<FileLock | undefined> {
  const { flock } = linux;
  if (flock === undefined) throw systemError("flock", -constants.errno.ENOTSUP, path);
  const fd = await openForLock(path, kind);
  const result = flock(fd, kind);
  if (result === 0) {
    let released: Promise<void> | undefined;
    return {
      release() {
        // Unlocked first: a child process that is being started holds a copy of the descriptor for a moment.
        if (released === undefined) {
          flock(fd, "unlock");
          released = closeDescriptor(fd);
        }
        return released;
      },
    };
  }
  await closeDescriptor(fd);
  const { EWOULDBLOCK, ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL } = constants.errno;
  if (result === -EWOULDBLOCK) return undefined;
  const unsupported = [ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL].includes(-result);
  throw systemError("flock", unsupported ? -constants.errno.ENOTSUP : result, path);
}

/** Read-write, because a network file system grants an exclusive lock to writers only. */
async function openForLock(path: string, kind: "shared" | "exclusive"): Promise<number> {
  try {
    return await openDescriptor(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
  } catch (error) {
    const code = errnoOf(error);
    if (kind === "exclusive" || (code !== "EROFS" && code !== "EACCES")) throw error;
    // A reader of a store it may not write.
    return openDescriptor(path, fs.constants.O_RDONLY);
  }
}
