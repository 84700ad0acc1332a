/** {@link Storage} over node:fs, with the Linux calls where they are to be had. */
import * as fs from "node:fs";
import { chmod, link, mkdir, readdir, readFile, realpath, rename, rmdir, stat, statfs, unlink } from "node:fs/promises";
import { platform, tmpdir, uptime } from "node:os";
import { promisify } from "node:util";
import { errnoOf } from "../base/errors.ts";
import { deviceName, deviceWriteCounter } from "./block-device.ts";
import { lockFile, lockName } from "./file-lock.ts";
import { fileBytesMax } from "./file-system.ts";
import { type LinuxCalls, loadLinuxCalls } from "./linux.ts";
import { NodeFile, toFileStat } from "./node-file.ts";
import { createNodeLanes, lazily } from "./node-lanes.ts";
import type { Boot, Capabilities, FileStat, OpenOptions, Storage, StorageFile } from "./seam.ts";

const openDescriptor = promisify(fs.open);
const closeDescriptor = promisify(fs.close);
const syncDescriptor = promisify(fs.fsync);

/**
 * QEMU's image locks (its block/file-posix.c): byte 100 + n is locked by who uses permission n of an image. 1: write,
 * 3: resize.
 */
const qemuWriterBytes = [101, 103];

/**
 * `linux`: the calls to use instead of the platform's, for tests of what a platform may lack. `temporary`: the folder for locks by name; default
 * the system's for temporary files.
 */
export function createNodeStorage(options: { readonly linux?: LinuxCalls; readonly temporary?: string } = {}): Storage {
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
    realPath: (path) => realpath(path),
    async space(path) {
      const facts = await statfs(path);
      return {
        freeBytes: facts.bavail * facts.bsize,
        fileBytesMax: fileBytesMax(facts.type, facts.bsize),
        totalBytes: facts.blocks * facts.bsize,
      };
    },
    lock: (path, kind) => lockFile(path, kind, linux()),
    lockName: (name) => lockName(name, options.temporary ?? tmpdir(), linux()),
    probeImageLock(file) {
      const { byteLocked } = linux();
      return qemuWriterBytes.some((offset) => byteLocked?.(file.fd, offset) === 1) ? "writer" : undefined;
    },
    async deviceWrites(file) {
      const facts = fs.fstatSync(file.fd, { bigint: true });
      return facts.isBlockDevice() ? deviceWriteCounter(deviceName(facts.rdev)) : undefined;
    },
    boot: thisBoot,
  };
}

/** Nothing else tells boots apart for certain, so that elsewhere none is known. */
async function thisBoot(): Promise<Boot | undefined> {
  try {
    const id = (await readFile("/proc/sys/kernel/random/boot_id", "latin1")).trim();
    return /^[0-9a-f-]{36}$/.test(id) ? { id, ageMillis: uptime() * 1000 } : undefined;
  } catch {
    return undefined;
  }
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
  const directFd = options.direct === true ? await openDirect(path, flags) : undefined;
  const file = new NodeFile(path, fd, { directFd, linux });
  try {
    await file.prepare();
  } catch (error) {
    await file.close();
    throw error;
  }
  return file;
}

/** A second descriptor past the page cache; undefined where the file system or the platform has no such thing. */
async function openDirect(path: string, flags: number): Promise<number | undefined> {
  const { O_DIRECT, O_CREAT, O_EXCL, O_TRUNC } = fs.constants as Partial<typeof fs.constants>;
  if (O_DIRECT === undefined) return undefined;
  try {
    return await openDescriptor(path, (flags & ~((O_CREAT ?? 0) | (O_EXCL ?? 0) | (O_TRUNC ?? 0))) | O_DIRECT);
  } catch {
    return undefined;
  }
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
