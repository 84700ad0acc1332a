import { describe, expect, test } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { DiskLocks } from "../../src/replica/disk-lock.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import type { StoreParts } from "../../src/replica/open-disk.ts";
import { lockPoint } from "../../src/replica/points/lock.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { methodsOf } from "./point-kit.ts";
import { createTestClock, createTestRandom } from "./simulated-store.ts";

const paths = diskPaths("/store", "vm1");
const lockPath = paths.pointLock(7);

async function touch(storage: Storage, path: string): Promise<void> {
  const file = await storage.open(path, { write: true, create: true });
  await file.close();
}

async function start(options: { readonly locks?: boolean } = {}): Promise<Storage> {
  const storage = createSimulatedDisk().start(options);
  await storage.makeDirectory(paths.points);
  await touch(storage, paths.point(7));
  return storage;
}

function partsOf(storage: Storage, singleProcess = false): StoreParts {
  const clock = createTestClock();
  const random = createTestRandom();
  const locks = new DiskLocks(storage, clock, singleProcess);
  const retention = (): never => {
    throw new Error("no policy is asked for");
  };
  return { path: "/store", storage, clock, random, log: silentLogger, locks, host: "h", pid: 1, retention };
}

/** `step` is called before each look for the path. */
function whenStat(storage: Storage, path: string, step: (look: number) => Promise<void>): Storage {
  let looks = 0;
  return {
    ...methodsOf(storage),
    async stat(asked) {
      if (asked === path) await step(looks++);
      return storage.stat(asked);
    },
  };
}

test("where nothing can be written there is no lock, and the point is read all the same", async () => {
  const storage = await start();
  const readOnly: Storage = {
    ...methodsOf(storage),
    open(path, options) {
      if (options?.write !== true) return storage.open(path, options);
      return Promise.reject(Object.assign(new Error("read-only file system"), { code: "EROFS" }));
    },
    lock: () => Promise.reject(Object.assign(new Error("read-only file system"), { code: "EROFS" })),
  };
  const lock = await lockPoint(partsOf(readOnly), paths, 7);
  await lock?.release();
  expect(lock).toBeDefined();
  expect(await lockPoint(partsOf(readOnly), paths, 8)).toBeUndefined();
});

describe("the lock of a point", () => {
  test("is made when missing, shared, and keeps a remover out", async () => {
    const storage = await start();
    const parts = partsOf(storage);
    const first = await lockPoint(parts, paths, 7);
    const second = await lockPoint(parts, paths, 7);
    expect(await parts.locks.exclusive(lockPath)).toBeUndefined();
    await first?.release();
    expect(await parts.locks.exclusive(lockPath)).toBeUndefined();
    await second?.release();
    expect(await parts.locks.exclusive(lockPath)).toBeDefined();
  });

  test("nothing is made for a point that is not there", async () => {
    const storage = await start();
    expect(await lockPoint(partsOf(storage), paths, 8)).toBeUndefined();
    expect(await storage.list(paths.points)).toEqual(["0000000007.json"]);
  });

  test("a point removed while it was being locked", async () => {
    const storage = await start();
    const removing = whenStat(storage, lockPath, async (look) => {
      // The last look comes after locking.
      if (look === 2) await storage.unlink(paths.point(7));
    });
    expect(await lockPoint(partsOf(removing), paths, 7)).toBeUndefined();
    expect(await storage.lock(lockPath, "exclusive"), "given up again").toBeDefined();
  });

  test("a lock file that was replaced while it was being locked", async () => {
    const storage = await start();
    const replacing = whenStat(storage, lockPath, async (look) => {
      if (look !== 2) return;
      await storage.unlink(lockPath);
      await touch(storage, lockPath);
    });
    const lock = await lockPoint(partsOf(replacing), paths, 7);
    expect(await storage.lock(lockPath, "exclusive")).toBeUndefined();
    await lock?.release();
    expect(await storage.lock(lockPath, "exclusive")).toBeDefined();
  });

  test("a remover that takes long is waited for, and told of in the end", async () => {
    const storage = await start();
    const held = await storage.lock(lockPath, "exclusive");
    await expect(lockPoint(partsOf(storage), paths, 7)).rejects.toMatchObject({ code: "disk-busy" });
    let looks = 0;
    const slow = whenStat(storage, paths.point(7), async () => {
      if (++looks === 5) await held?.release();
    });
    expect(await lockPoint(partsOf(slow), paths, 7)).toBeDefined();
  });

  test("without kernel locks: refused, or shared within the process", async () => {
    const storage = await start({ locks: false });
    await expect(lockPoint(partsOf(storage), paths, 7)).rejects.toMatchObject({ code: "locks-unsupported" });
    const parts = partsOf(storage, true);
    const first = await lockPoint(parts, paths, 7);
    const second = await lockPoint(parts, paths, 7);
    await first?.release();
    await first?.release();
    expect(await parts.locks.exclusive(lockPath)).toBeUndefined();
    await second?.release();
    const exclusive = await parts.locks.exclusive(lockPath);
    expect(exclusive).toBeDefined();
    expect(await parts.locks.shared(lockPath)).toBeUndefined();
    await exclusive?.release();
    expect(await parts.locks.shared(lockPath)).toBeDefined();
  });
});
