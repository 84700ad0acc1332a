/** Kernel locks (flock) on files that stay, and by name on files that are there only while the lock is held. */
import * as fs from "node:fs";
import { lstat, mkdir, stat, unlink } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { errnoOf } from "../base/errors.ts";
import type { LinuxCalls } from "./linux.ts";
import type { FileLock } from "./seam.ts";
import { systemError } from "./system-error.ts";

const openDescriptor = promisify(fs.open);
const closeDescriptor = promisify(fs.close);

/** `Storage.lock`. */
export async function lockFile(
  path: string,
  kind: "shared" | "exclusive",
  linux: LinuxCalls,
): Promise<FileLock | undefined> {
  const fd = await openAndLock(path, kind, linux);
  if (fd === undefined) return undefined;
  return lockOf(() => {
    unlock(fd, linux);
    return closeDescriptor(fd);
  });
}

/**
 * `Storage.lockName`. The file is unlinked by who holds its lock, so a lock is only worth something while the path still names the locked
 * file: that is looked at after locking, and who got an unlinked one tries again. The file of a process that was killed stays, unlocked, and
 * is taken over by the next one.
 */
export async function lockName(name: string, parent: string, linux: LinuxCalls): Promise<FileLock | undefined> {
  for (;;) {
    const path = join(await userDirectory(parent, linux), name);
    const fd = await openAndLock(path, "exclusive", linux);
    if (fd === undefined) return undefined;
    let held = false;
    try {
      held = await isNamed(path, fd);
    } finally {
      if (!held) await closeDescriptor(fd);
    }
    if (held) return lockOf(() => removeAndUnlock(path, fd, linux));
  }
}

/** Order: unlinked while locked → unlocked. The other way round the next holder's file could be the one that is unlinked. */
async function removeAndUnlock(path: string, fd: number, linux: LinuxCalls): Promise<void> {
  try {
    // Looked at once more, because cleaners of temporary folders unlink without asking.
    if (await isNamed(path, fd)) await unlink(path);
  } catch {
    // A file that stays is empty, and the next holder's to remove.
  }
  unlock(fd, linux);
  await closeDescriptor(fd);
}

/** Before the descriptor is closed: a child process that is being started holds a copy of it for a moment. */
function unlock(fd: number, linux: LinuxCalls): void {
  linux.flock?.(fd, "unlock");
}

function lockOf(end: () => Promise<void>): FileLock {
  let released: Promise<void> | undefined;
  return {
    release() {
      released ??= end();
      return released;
    },
  };
}

/** Undefined: held by another. */
async function openAndLock(
  path: string,
  kind: "shared" | "exclusive",
  { flock }: LinuxCalls,
): Promise<number | undefined> {
  if (flock === undefined) throw systemError("flock", -constants.errno.ENOTSUP, path);
  const fd = await openForLock(path, kind);
  const result = flock(fd, kind);
  if (result === 0) return fd;
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

/** Whether the path names the open file. */
async function isNamed(path: string, fd: number): Promise<boolean> {
  const mine = fs.fstatSync(fd, { bigint: true });
  try {
    const named = await stat(path, { bigint: true });
    return named.dev === mine.dev && named.ino === mine.ino;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw error;
  }
}

/**
 * The folder for names, made when missing. One for each user, because in a folder of all users a file may not be opened by others, nor
 * removed; and never one that another user made in this user's name, or can write to.
 */
async function userDirectory(parent: string, { userId }: LinuxCalls): Promise<string> {
  if (userId === undefined) throw systemError("getuid", -constants.errno.ENOTSUP, parent);
  const uid = userId();
  const path = join(parent, `replicate-${uid}`);
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
  }
  const found = await lstat(path);
  if (found.isDirectory() && found.uid === uid && (found.mode & 0o022) === 0) return path;
  throw systemError("mkdir", -constants.errno.EACCES, path);
}
