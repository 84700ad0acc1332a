/** {@link LaneStorage} over node:fs and {@link LinuxCalls}. */
import { fdatasyncSync, readSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { errnoOf, invariant } from "../base/errors.ts";
import { GIB } from "../base/units.ts";
import { type LinuxCalls, loadLinuxCalls } from "./linux.ts";
import type { LaneStorage } from "./seam.ts";
import { systemError } from "./system-error.ts";

/** Longest single request: the kernel and Node refuse or cut requests near 2 GiB. */
export const requestBytesMax = GIB;

const pageBytes = 4096;

/** `linux` is asked for at the first call that needs it: a lane that only reads and writes never loads it. */
export function createNodeLanes(linux: () => LinuxCalls): LaneStorage {
  return {
    read: readFully,
    write: writeFully,
    writeDirect,
    punch: (fd, offset, length) => punch(linux(), { fd, offset, length }),
    datasync: fdatasyncSync,
    // To the kernel a length of 0 means "to the end of the file" in all three.
    startWriteback(fd, offset, length) {
      if (length > 0) linux().writeback?.(fd, offset, length);
    },
    dropCache(fd, offset, length) {
      if (length > 0) linux().advise?.(fd, offset, length, "dontneed");
    },
    readAhead(fd, offset, length) {
      if (length > 0) linux().advise?.(fd, offset, length, "willneed");
    },
    stopReadAhead(fd) {
      linux().advise?.(fd, 0, 0, "random");
    },
    isCached(fd, offset, length = pageBytes) {
      const pages = linux().cachedPages?.(fd, offset, Math.max(length, 1)) ?? -1;
      return pages < 0 ? undefined : pages > 0;
    },
  };
}

/** The positional face alone, for a worker thread; loads nothing until a hint or a hole asks for it. */
export function nodeLaneStorage(): LaneStorage {
  return createNodeLanes(lazily(loadLinuxCalls));
}

export function lazily<T extends object>(make: () => T): () => T {
  let made: T | undefined;
  return () => {
    made ??= make();
    return made;
  };
}

function readFully(fd: number, target: Uint8Array, offset: number): number {
  let done = 0;
  while (done < target.length) {
    const count = readSync(fd, target, done, Math.min(target.length - done, requestBytesMax), offset + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}

function writeFully(fd: number, source: Uint8Array, offset: number): void {
  let done = 0;
  while (done < source.length) {
    const count = writeSync(fd, source, done, Math.min(source.length - done, requestBytesMax), offset + done);
    if (count === 0) throw systemError("write", -constants.errno.EIO);
    done += count;
  }
}

function writeDirect(directFd: number, source: Uint8Array, offset: number): boolean {
  try {
    writeFully(directFd, source, offset);
    return true;
  } catch (error) {
    if (errnoOf(error) === "EINVAL") return false;
    throw error;
  }
}

function punch(linux: LinuxCalls, range: { fd: number; offset: number; length: number }): boolean {
  invariant(range.offset >= 0 && range.length >= 0, "a range to punch lies in the file");
  if (range.length === 0) return true;
  if (linux.punch === undefined) return false;
  const result = linux.punch(range.fd, range.offset, range.length);
  if (result === 0) return true;
  const { EOPNOTSUPP, EINVAL, ENODEV, ENOSYS } = constants.errno;
  // EINVAL: a device wants whole sectors. The others: file system or device cannot.
  if ([EOPNOTSUPP, EINVAL, ENODEV, ENOSYS].includes(-result)) return false;
  throw systemError("fallocate", result);
}
