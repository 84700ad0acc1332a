/** Locks by name: nothing stays behind, and still never two hold one. */
import { execFileSync, spawn } from "node:child_process";
import * as fs from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type LinuxCalls, loadLinuxCalls } from "../../src/storage/linux.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "./scratch.ts";

const linux = loadLinuxCalls();
const noLocks = linux.flock === undefined ? "no flock here" : undefined;
const why = (reason: string | undefined): string => (reason === undefined ? "" : ` (skipped: ${reason})`);
const root = join(import.meta.dirname, "../..");

let scratch: Scratch;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(() => scratch.remove());

function storageWith(calls: Partial<LinuxCalls> = {}) {
  const storage = createNodeStorage({ linux: { ...linux, ...calls }, temporary: scratch.path });
  return { take: async (name: string) => storage.lockName?.(name), flock: linux.flock! };
}

/** The folder of this user's locks, and the one file in it. */
const folder = (): string => join(scratch.path, `replicate-${linux.userId?.() ?? -1}`);
const file = (): string => join(folder(), "name");

describe.skipIf(noLocks !== undefined)(`locks by name${why(noLocks)}`, () => {
  test("one holder at a time, other names beside it, and nothing is left", async () => {
    const { take } = storageWith();
    const first = await take("name");
    expect(first).toBeDefined();
    expect(fs.statSync(folder()).mode & 0o777).toBe(0o700);
    expect(await take("name")).toBeUndefined();
    const other = await take("other");
    expect(other).toBeDefined();
    await Promise.all([first?.release(), first?.release()]);
    expect(fs.readdirSync(folder())).toEqual(["other"]);
    const second = await take("name");
    expect(second).toBeDefined();
    // Released long ago: nothing happens to the next holder's file.
    await first?.release();
    expect(await take("name")).toBeUndefined();
    await second?.release();
    await other?.release();
    expect(fs.readdirSync(folder())).toEqual([]);
  });

  test("the file of a holder that was killed is taken over", async () => {
    fs.mkdirSync(folder(), { mode: 0o700 });
    fs.writeFileSync(file(), "");
    const lock = await storageWith().take("name");
    expect(lock).toBeDefined();
    await lock?.release();
    expect(fs.readdirSync(folder())).toEqual([]);
  });

  describe("a holder that goes between our opening and our locking of its file", () => {
    /** Takes the lock while `between` happens before the first lock call. */
    async function takeWhile(between: () => void) {
      let calls = 0;
      const flock: LinuxCalls["flock"] = (fd, operation) => {
        if (operation === "exclusive" && calls++ === 0) between();
        return linux.flock!(fd, operation);
      };
      return { lock: await storageWith({ flock }).take("name"), calls: () => calls };
    }

    function holdByHand(): number {
      fs.mkdirSync(folder(), { mode: 0o700, recursive: true });
      const fd = fs.openSync(file(), "a+");
      expect(linux.flock!(fd, "exclusive")).toBe(0);
      return fd;
    }

    test("leaves an unlinked file: another is made and locked", async () => {
      const holder = holdByHand();
      const { lock, calls } = await takeWhile(() => {
        fs.unlinkSync(file());
        linux.flock!(holder, "unlock");
        fs.closeSync(holder);
      });
      expect(calls()).toBe(2);
      expect(lock).toBeDefined();
      expect(await storageWith().take("name")).toBeUndefined();
      await lock?.release();
    });

    test("and the next holder is there already: the lock is not ours", async () => {
      const holder = holdByHand();
      let next = -1;
      const { lock } = await takeWhile(() => {
        fs.unlinkSync(file());
        linux.flock!(holder, "unlock");
        fs.closeSync(holder);
        next = holdByHand();
      });
      expect(lock).toBeUndefined();
      // Its file is untouched: still the one that is locked.
      expect(fs.fstatSync(next).ino).toBe(fs.statSync(file()).ino);
      fs.closeSync(next);
    });
  });

  test("a file that a cleaner removed is not the next holder's to lose", async () => {
    const { take } = storageWith();
    const first = await take("name");
    fs.unlinkSync(file());
    const second = await take("name");
    expect(second).toBeDefined();
    await first?.release();
    expect(await take("name")).toBeUndefined();
    await second?.release();
  });

  test("a file that cannot be removed does not keep the lock", async () => {
    const { take } = storageWith();
    const lock = await take("name");
    fs.renameSync(folder(), `${folder()}-away`);
    fs.writeFileSync(folder(), "");
    await lock?.release();
    fs.unlinkSync(folder());
    fs.renameSync(`${folder()}-away`, folder());
    expect(fs.readdirSync(folder())).toEqual(["name"]);
    const next = await take("name");
    expect(next).toBeDefined();
    await next?.release();
  });

  test("many in one process: never two at a time", async () => {
    const { take } = storageWith();
    let holders = 0;
    let turns = 0;
    const work = async (): Promise<void> => {
      for (let round = 0; round < 150; round++) {
        const lock = await take("name");
        if (lock === undefined) continue;
        expect(++holders).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        turns++;
        holders--;
        await lock.release();
      }
    };
    await Promise.all([work(), work(), work(), work(), work(), work()]);
    expect(turns).toBeGreaterThan(100);
    expect(fs.readdirSync(folder())).toEqual([]);
  });

  test("several processes: never two at a time", async () => {
    const script = `
      import { mkdirSync, rmdirSync } from "node:fs";
      const [, storageModule, temporary, held] = process.argv;
      const { createNodeStorage } = await import(storageModule);
      const storage = createNodeStorage({ temporary });
      let turns = 0;
      while (turns < 100) {
        const lock = await storage.lockName("name");
        if (lock === undefined) continue;
        mkdirSync(held); // fails when another is in
        rmdirSync(held);
        turns++;
        await lock.release();
      }
      process.stdout.write(String(turns));
    `;
    const args = [join(root, "dist/storage/node-storage.js"), scratch.path, scratch.file("held")];
    const runs = Array.from({ length: 3 }, async () => {
      const child = spawn(process.execPath, ["--input-type=module", "--eval", script, ...args]);
      let text = "";
      for (const stream of [child.stdout, child.stderr])
        stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
      await new Promise((resolve) => child.once("close", resolve));
      return text;
    });
    expect(await Promise.all(runs)).toEqual(["100", "100", "100"]);
    expect(fs.readdirSync(folder())).toEqual([]);
  });

  test("a folder that others can write to, or another user's, or a link, is not used", async () => {
    const { take } = storageWith();
    const refused = { code: "EACCES", path: folder() };
    fs.mkdirSync(folder());
    fs.chmodSync(folder(), 0o777);
    await expect(take("name")).rejects.toMatchObject(refused);
    fs.rmdirSync(folder());
    fs.mkdirSync(scratch.file("elsewhere"), { mode: 0o700 });
    fs.symlinkSync("elsewhere", folder());
    await expect(take("name")).rejects.toMatchObject(refused);
    const me = linux.userId?.() ?? 0;
    fs.mkdirSync(join(scratch.path, `replicate-${me + 1}`), { mode: 0o700 });
    await expect(storageWith({ userId: () => me + 1 }).take("name")).rejects.toMatchObject({ code: "EACCES" });
  });

  test("where there are no locks it says so", async () => {
    const noLock = -constants.errno.ENOLCK;
    await expect(storageWith({ flock: () => noLock }).take("name")).rejects.toMatchObject({ code: "ENOTSUP" });
    await expect(storageWith({ userId: undefined }).take("name")).rejects.toMatchObject({ code: "ENOTSUP" });
  });

  test("the user is the one files belong to", () => {
    fs.writeFileSync(scratch.file("mine"), "");
    expect(linux.userId?.()).toBe(fs.statSync(scratch.file("mine")).uid);
    expect(String(linux.userId?.())).toBe(execFileSync("id", ["-u"], { encoding: "utf8" }).trim());
  });
});
