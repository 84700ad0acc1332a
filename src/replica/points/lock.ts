/** What keeps a point from being removed while it is read: a shared lock on `points/<sequence>.lock`. */
import { errnoOf, ReplicationError } from "../../base/errors.ts";
import type { FileLock } from "../../storage/seam.ts";
import { fileError } from "../file-error.ts";
import type { DiskPaths } from "../layout.ts";
import type { StoreParts } from "../open-disk.ts";

/** Who removes a point holds its lock until the point is gone; who looks at it holds it for a moment. */
const lockTries = 500;
const waitMillis = 20;

/**
 * The lock is made when missing and stays; on a file system that is mounted read-only there is none and none is needed. Order: locked → looked whether the path still names the locked file → looked whether the point is still
 * there. Undefined: the point is gone. Throws `disk-busy` when another keeps the lock, `locks-unsupported`.
 */
export async function lockPoint(
  { storage, locks, clock }: StoreParts,
  paths: DiskPaths,
  sequence: number,
): Promise<FileLock | undefined> {
  const path = paths.pointLock(sequence);
  const record = paths.point(sequence);
  for (let tries = 0; tries < lockTries; tries++) {
    // First, because a lock of a point that is gone would leave a file behind.
    if ((await storage.stat(record)) === undefined) return undefined;
    // Where nothing can be written nothing can be removed either.
    const nothing = { release: () => Promise.resolve() };
    if (!(await makeLockFile())) return nothing;
    const before = await storage.stat(path);
    const lock = await sharedLock();
    if (lock === "read-only") return nothing;
    if (lock === undefined) {
      await clock.sleep(waitMillis);
      continue;
    }
    let kept = false;
    try {
      const after = await storage.stat(path);
      // The inode of an open file is not given to another one: the same before and after is the one that is locked.
      const linked =
        before !== undefined && after !== undefined && before.inode === after.inode && before.device === after.device;
      if (!linked) continue;
      kept = (await storage.stat(record)) !== undefined;
      return kept ? lock : undefined;
    } finally {
      if (!kept) await lock.release();
    }
  }
  throw new ReplicationError(
    "disk-busy",
    `${path} stayed locked; see which process holds it (fuser), then start again`,
  );

  async function sharedLock(): Promise<FileLock | "read-only" | undefined> {
    try {
      return await locks.shared(path);
    } catch (error) {
      const cause = error instanceof ReplicationError ? error.cause : error;
      if (errnoOf(cause) === "EROFS") return "read-only";
      throw error;
    }
  }

  /** False: the file system is mounted read-only. */
  async function makeLockFile(): Promise<boolean> {
    try {
      if ((await storage.stat(path)) !== undefined) return true;
      const file = await storage.open(path, { write: true, create: true, mode: 0o600 });
      await file.close();
      return true;
    } catch (error) {
      if (errnoOf(error) === "EROFS") return false;
      throw fileError(error, "write-failed", `making ${path}`);
    }
  }
}
