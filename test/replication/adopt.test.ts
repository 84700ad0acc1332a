/** An image that exists as the replica of a new disk: what it becomes, what is refused, and that all goes on from there. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { systemRandom } from "../../src/base/random.ts";
import { KIB } from "../../src/base/units.ts";
import { createVhdx } from "../../src/image/vhdx/create.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { makeRoom } from "../../src/replication/make-room.ts";
import { methodsOf } from "../replica/point-kit.ts";
import { inspectStoreFile } from "../../src/replica/store.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { decodeRecord, writeRecord } from "../../src/replica/disk-record.ts";
import { encodeState } from "../../src/replica/state-file.ts";
import { verifyStoredPoint } from "../../src/replica/verify-point.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createSimulatedDisk, type Operation, type SimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { randomBytes } from "../random.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  commitFacts,
  expectTableTrue,
  openTestStore,
  rebuild,
  rootOf,
} from "../replica/simulated-store.ts";
import {
  adopt,
  bytesOf,
  content,
  disk,
  expectPointIs,
  folder,
  imagePath,
  machineWithImage,
  movedPath,
  openStoreOn,
  peekImage,
  second,
  shape,
  storePath,
  writeImage,
  writerOf,
} from "./adopt-kit.ts";

async function commitDelta(storage: Storage & { lanes: Storage["lanes"] }, blocks: Blocks): Promise<void> {
  const writer = await writerOf(await openStoreOn(storage));
  try {
    expect(writer.doubt).toBeUndefined();
    await writer.begin();
    await apply(writer, storage.lanes, blocks);
    await writer.commit(commitFacts("c2"));
  } finally {
    await writer.release();
  }
}

function filesOf(machine: SimulatedDisk): readonly string[] {
  return machine.files().filter((path) => path.startsWith(`${folder}/`));
}

describe("an adopted image", () => {
  test("is the replica where it lies, and point 1", async () => {
    const machine = await machineWithImage();
    const progress: number[] = [];
    const reads: number[] = [];
    const storage = machine.start({
      readFault: (path, offset) => {
        if (path === imagePath) reads.push(offset);
        return undefined;
      },
    });
    const adopted = await adopt(storage, { label: "by courier", onProgress: (done) => progress.push(done) });
    expect(adopted).toMatchObject({
      created: true,
      replica: imagePath,
      record: { name: disk, owner: "owner", image: imagePath, sizeBytes: shape.sizeBytes, blockBytes, term: 1 },
      point: { point: 1, source: "adopted", sourceName: imagePath, consistency: "crash", label: "by courier" },
    });
    expect(adopted.point.root).toBe(rootOf(shape, content));
    expect(progress.at(-1)).toBe(shape.sizeBytes);
    // Its two ends are looked at to tell its format; beside that only what is data is read.
    const data = [...content.keys()];
    const ends = [0, shape.sizeBytes - 512];
    expect(reads.filter((offset) => !ends.includes(offset) && !data.includes(Math.floor(offset / blockBytes)))).toEqual(
      [],
    );
    expect(peekImage(machine)?.equals(bytesOf(content, shape))).toBe(true);
    expect((await storage.stat(imagePath))?.mode).toBe(0o400);
    expect(filesOf(machine).map((path) => path.slice(folder.length + 1))).toEqual([
      ...["apply.lock", "chain.lock", "digests", "disk.json", "pages", "points/0000000001.json"],
    ]);
    const store = await openStoreOn(storage);
    await expectPointIs(store, 1, content);
    expect(await store.summary(disk)).toMatchObject({ state: "idle", trouble: undefined, newest: { point: 1 } });
    const writer = await writerOf(store);
    expect(writer.doubt).toBeUndefined();
    expect(writer.replicaPath).toBe(imagePath);
    expectTableTrue(writer, storage.lanes);
    await writer.release();
  });

  test("is moved into the store", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    const adopted = await adopt(storage, { move: true });
    expect(adopted).toMatchObject({ created: true, replica: movedPath, record: { image: undefined } });
    expect(peekImage(machine)).toBeUndefined();
    expect(peekImage(machine, movedPath)?.equals(bytesOf(content, shape))).toBe(true);
    expect(await storage.stat(movedPath)).toMatchObject({ mode: 0o400, links: 1 });
    await expectPointIs(await openStoreOn(storage), 1, content);
    await commitDelta(storage, second);
    await expectPointIs(await openStoreOn(storage), 1, content);
    await expectPointIs(await openStoreOn(storage), 2, second);
  });

  test.each([false, true])("takes deltas, is laid aside, grows and is rolled back; moved: %s", async (move) => {
    const machine = await machineWithImage();
    // Modes count: the receiver makes the image writable for the moment of opening it.
    const storage = machine.start({ root: false });
    const replica = move ? movedPath : imagePath;
    await adopt(storage, { move });
    await commitDelta(storage, second);
    expect(peekImage(machine, replica)?.equals(bytesOf(second, shape))).toBe(true);
    const store = await openStoreOn(storage);
    await expectPointIs(store, 1, content);
    await expectPointIs(store, 2, second);
    const grown = { ...shape, sizeBytes: shape.sizeBytes + 3 * blockBytes };
    let writer = await writerOf(store);
    await writer.begin();
    await apply(writer, storage.lanes, content);
    await writer.suspend(5);
    await writer.release();
    writer = await writerOf(store);
    expect([writer.doubt, writer.resumeBlock]).toEqual([undefined, 5]);
    const reader = await store.openPoint(disk, 2);
    expect(await writer.rollBack(reader)).toBeGreaterThan(0);
    await reader.close();
    expect(peekImage(machine, replica)?.equals(bytesOf(second, shape))).toBe(true);
    await writer.begin();
    await writer.grow(grown.sizeBytes);
    await apply(writer, storage.lanes, new Map([...second, [14, 9]]));
    await writer.commit(commitFacts("c3"));
    await writer.release();
    expect((await storage.stat(replica))?.sizeBytes).toBe(grown.sizeBytes);
    expect((await store.summary(disk))?.record.image).toBe(move ? undefined : imagePath);
    await expectPointIs(store, 1, content);
    await expectPointIs(store, 3, new Map([...second, [14, 9]]), grown);
    const verified = await verifyStoredPoint(store, disk, 1, {
      ...{ from: 0, pace: () => Promise.resolve(), signal: undefined, onProgress: () => undefined },
    });
    expect(verified.good).toBe(true);
  });

  test("of any content, size, block and digest is what it was", async () => {
    const piece = fc.record({ at: fc.nat(400_000), length: fc.integer({ min: 1, max: 70_000 }) });
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 0, max: 450_000 }),
        fc.array(piece, { maxLength: 6 }),
        fc.constantFrom(16_384, 65_536, 1_048_576),
        fc.constantFrom("xxh64" as const, "sha256" as const),
        fc.boolean(),
        async (sizeBytes, pieces, bytes, digestKind, move) => {
          const machine = createSimulatedDisk();
          const storage = machine.start();
          await storage.makeDirectory("/images");
          const file = await storage.open(imagePath, { write: true, create: true });
          await file.truncate(sizeBytes);
          for (const { at, length } of pieces) {
            if (at < sizeBytes) await file.write(randomBytes(Math.min(length, sizeBytes - at)), at);
          }
          await file.close();
          const before = peekImage(machine) ?? Buffer.alloc(1);
          const { replica } = await adopt(storage, { blockBytes: bytes, digestKind, move });
          expect(peekImage(machine, replica)?.equals(before)).toBe(true);
          const store = await openStoreOn(storage);
          const reader = await store.openPoint(disk, 1);
          const found = Buffer.alloc(sizeBytes);
          await reader.read(found, 0);
          await reader.close();
          expect(found.equals(before)).toBe(true);
          const checks = { from: 0, pace: () => Promise.resolve(), signal: undefined, onProgress: () => undefined };
          expect(await verifyStoredPoint(store, disk, 1, checks)).toMatchObject({ good: true, rootMatches: true });
        },
      ),
      { numRuns: 30 },
    );
  });

  test("adopted again is there already; another owner, block or digest, or moving, is refused", async () => {
    const machine = await machineWithImage();
    await adopt(machine.start());
    await commitDelta(machine.start(), second);
    expect(await adopt(machine.start())).toMatchObject({ created: false, point: { point: 1 }, replica: imagePath });
    for (const [options, code] of [
      [{ owner: "other" }, "disk-owned"],
      [{ blockBytes: 2 * blockBytes }, "block-size-differs"],
      [{ digestKind: "xxh64" as const }, "digest-kind-differs"],
      [{ move: true }, "target-exists"],
    ] as const) {
      await expect(adopt(machine.start(), options)).rejects.toMatchObject({ code });
    }
    await expectPointIs(await openStoreOn(machine.start()), 1, content);
  });

  test("moved, and asked for again by the name it had or by its place in the store, stays there", async () => {
    const machine = await machineWithImage();
    await adopt(machine.start(), { move: true });
    expect(await adopt(machine.start(), { move: true })).toMatchObject({ created: false, replica: movedPath });
    await expect(adopt(machine.start(), { move: true, owner: "other" })).rejects.toMatchObject({ code: "disk-owned" });
    for (const options of [{ move: false }, { move: true, image: "/images/none" }, { move: true, name: "db" }]) {
      await expect(adopt(machine.start(), options)).rejects.toMatchObject({ code: "image-not-found" });
    }
    expect(await adopt(machine.start(), { image: movedPath, move: true })).toMatchObject({ created: false });
    const storage = machine.start();
    await storage.link(movedPath, "/images/second-name");
    expect(await adopt(storage, { image: movedPath, move: true })).toMatchObject({ created: false });
    expect(peekImage(machine, movedPath)).toBeDefined();
    expect(await adopt(storage, { image: "/images/second-name", move: true })).toMatchObject({ created: false });
    expect(peekImage(machine, "/images/second-name")).toBeUndefined();
    expect(peekImage(machine, movedPath)).toBeDefined();
  });

  test("moved, and seen under another path that is no other name, stays there", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await adopt(storage, { move: true });
    // As under a mount of the folder, or of the file.
    const real = (path: string): string => (path === "/mounted/web.raw" ? movedPath : path);
    const mounted: Storage = {
      ...wrap(storage),
      stat: (path) => storage.stat(real(path)),
      open: (path, options) => storage.open(real(path), options),
      unlink: (path) => storage.unlink(real(path)),
    };
    await storage.makeDirectory("/mounted");
    expect(await adopt(mounted, { image: "/mounted/web.raw", move: true })).toMatchObject({ created: false });
    expect(peekImage(machine, movedPath)).toBeDefined();
  });

  test("that is missing is a clear error, and nothing is lost when it is back", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await adopt(storage);
    const store = await openStoreOn(storage);
    await storage.rename(imagePath, "/images/elsewhere");
    const error = { code: "store-damaged", message: expect.stringContaining(`${imagePath} is missing`) };
    await expect(store.openWriter(disk, { identity: "owner", instance: "i" })).rejects.toMatchObject(error);
    await expect(store.openPoint(disk, 1)).rejects.toMatchObject(error);
    expect(await store.summary(disk)).toMatchObject({ state: "damaged", trouble: error.message });
    await storage.makeDirectory(imagePath);
    await expect(store.openPoint(disk, 1)).rejects.toMatchObject({ message: expect.stringContaining("not a file") });
    await storage.removeDirectory(imagePath);
    await storage.rename("/images/elsewhere", imagePath);
    await commitDelta(storage, second);
    await expectPointIs(store, 1, content);
  });

  test("on a file system of its own has its reserve there, which no dropped point gives back", async () => {
    const storage = (await machineWithImage()).start();
    await adopt(storage);
    await commitDelta(storage, second);
    const full: Storage = {
      ...methodsOf(storage),
      space: async (path) => ({ ...(await storage.space(path)), ...(path === "/images" ? { freeBytes: KIB } : {}) }),
    };
    const store = await openTestStore(full, storePath, { reserveBytes: 2 * KIB });
    await store.checkReserve();
    const room = { store, log: silentLogger, whenFull: "drop-oldest" } as const;
    await expect(makeRoom(room, disk, false)).rejects.toMatchObject({
      code: "no-space",
      message: expect.stringMatching(/^\/images has 1024 bytes free/) as string,
    });
    expect((await store.points(disk)).points.map(({ point }) => point)).toEqual([1, 2]);
    await makeRoom({ ...room, store: await openStoreOn(storage) }, disk, false);
  });

  test("is digested as it is on disk: what an earlier sync failed to write does not count", async () => {
    const machine = await machineWithImage();
    const writing = machine.start({
      fault: ({ kind }) => (kind === "sync" ? { kind: "errno", errno: "EIO" } : undefined),
    });
    const file = await writing.open(imagePath, { write: true });
    await file.write(Buffer.alloc(512, "lost"), 5 * blockBytes);
    await expect(file.datasync()).rejects.toThrow("EIO");
    await file.close();
    await adopt(machine.start());
    await expectPointIs(await openStoreOn(machine.start()), 1, content);
  });

  test("that somebody wrote to is compared with its table before the next delta", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await adopt(storage);
    const file = await storage.open(imagePath, { write: true });
    await file.write(Buffer.from("mounted"), blockBytes);
    await file.close();
    const store = await openStoreOn(storage);
    const writer = await writerOf(store);
    expect(writer.doubt).toMatchObject({ blocks: "differing" });
    await writer.release();
    const reader = await store.openPoint(disk, 1);
    await expect(reader.read(Buffer.alloc(10), blockBytes)).rejects.toMatchObject({ code: "store-damaged" });
    await reader.read(Buffer.alloc(10), 0);
    await reader.close();
  });

  test("after an unclean end of a delta is read again where the log says so", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await adopt(storage);
    const writer = await writerOf(await openStoreOn(storage));
    await writer.begin();
    await apply(writer, storage.lanes, second);
    storage.kill();
    const next = machine.start();
    const store = await openStoreOn(next);
    await expectPointIs(store, 1, content);
    const again = await writerOf(store);
    expect(again.doubt).toMatchObject({ blocks: "recent" });
    await rebuild(again, next.lanes);
    expectTableTrue(again, next.lanes);
    await again.release();
    await expectPointIs(store, 1, content);
  });
});

describe("refused, with the image as it was and no disk", () => {
  async function refused(
    machine: SimulatedDisk,
    options: Parameters<typeof adopt>[1],
    error: { readonly code: string; readonly text?: string },
  ): Promise<void> {
    const before = peekImage(machine);
    const storage = machine.start();
    const mode = (await storage.stat(imagePath))?.mode;
    await expect(adopt(storage, options)).rejects.toMatchObject({
      code: error.code,
      message: expect.stringContaining(error.text ?? ""),
    });
    expect(peekImage(machine)?.equals(before ?? Buffer.alloc(0))).toBe(before === undefined ? undefined : true);
    expect((await storage.stat(imagePath))?.mode).toBe(mode);
    expect((await storage.stat(imagePath))?.links).toBe(before === undefined ? undefined : 1);
  }

  async function noDisk(machine: SimulatedDisk): Promise<void> {
    expect(await (await openStoreOn(machine.start())).disks()).toEqual([]);
  }

  test("what is not there, is no file or of another format", async () => {
    const machine = await machineWithImage();
    await refused(machine, { image: "/images/none" }, { code: "image-not-found", text: "/images/none" });
    await refused(machine, { image: "/images" }, { code: "image-unreadable", text: "directory" });
    const storage = machine.start();
    const file = await storage.open(imagePath, { write: true });
    await file.write(Buffer.from("QFI\xfb", "latin1"), 0);
    await file.close();
    await refused(machine, {}, { code: "image-format-unsupported", text: "QCOW2" });
    const vhdx = machine.start();
    const made = await vhdx.open("/images/made.vhdx", { write: true, create: true });
    await createVhdx(made, { sizeBytes: 64 * KIB }, systemRandom);
    await made.close();
    await refused(machine, { image: "/images/made.vhdx" }, { code: "image-format-unsupported", text: "a VHDX image" });
    await storage.link(imagePath, "/images/web.vhdx");
    const zeros = createSimulatedDisk();
    await writeImage(zeros.start(), { path: "/images/web.vhdx" });
    await refused(zeros, { image: "/images/web.vhdx" }, { code: "image-format-mismatch" });
    await noDisk(machine);
    await storage.unlink("/images/web.vhdx");
    expect(await adopt(machine.start(), { format: "raw" })).toMatchObject({ created: true });
  });

  test("a block device, by name", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    const device: Storage = {
      ...wrap(storage),
      stat: async (path) => {
        const found = await storage.stat(path);
        return path === imagePath && found !== undefined ? { ...found, kind: "device" } : found;
      },
    };
    await expect(adopt(device)).rejects.toMatchObject({
      code: "target-unsuitable",
      message: expect.stringContaining(imagePath),
    });
    await noDisk(machine);
  });

  test("an image QEMU writes to, or that changes or is replaced while it is read", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    const inUse = { ...wrap(storage), probeImageLock: () => "writer" as const };
    await expect(adopt(inUse)).rejects.toMatchObject({
      code: "image-in-use",
      message: expect.not.stringContaining("--allow"),
    });
    for (const change of [
      async () => {
        const file = await storage.open(imagePath, { write: true });
        await file.write(Buffer.from("x"), 5);
        await file.close();
      },
      () => storage.setMode(imagePath, 0o600),
      async () => {
        await writeImage(storage, { path: "/images/other" });
        await storage.rename("/images/other", imagePath);
      },
    ]) {
      let done = false;
      const changing = machine.start({
        readFault: (path, offset) => {
          // Behind the look at its format.
          if (path === imagePath && offset >= blockBytes && offset < shape.sizeBytes - 512 && !done) {
            done = true;
            void change();
          }
          return undefined;
        },
      });
      await expect(adopt(changing)).rejects.toMatchObject({
        code: "image-changed",
        message: expect.stringContaining(imagePath),
      });
      expect(done).toBe(true);
      await noDisk(machine);
    }
    expect(await adopt(machine.start())).toMatchObject({ created: true });
  });

  test("a disk that is there, and an image another disk has", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await writeImage(storage, { path: "/images/other.raw" });
    await adopt(storage);
    await refused(machine, { image: "/images/other.raw" }, { code: "target-exists", text: "web" });
    await refused(machine, { name: "db" }, { code: "image-in-use", text: "web" });
    await refused(machine, { name: "db", move: true }, { code: "image-in-use", text: "web" });
    expect(await adopt(storage, { image: "/images/other.raw", name: "db", move: true })).toMatchObject({
      created: true,
    });
    const inside = `${storePath}/disks/db/replica.raw`;
    await refused(machine, { image: inside, name: "third" }, { code: "target-unsuitable", text: "db" });
    await storage.link(inside, "/images/alias");
    await refused(machine, { image: "/images/alias", name: "third" }, { code: "image-in-use", text: "db" });
    expect(await (await openStoreOn(storage)).disks()).toEqual(["db", "web"]);
    await expectPointIs(await openStoreOn(storage), 1, content);
  });

  test("an image in the folder of a disk that is not there: making one would clear it away", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await openStoreOn(storage);
    await storage.makeDirectory(folder);
    await storage.link(imagePath, movedPath);
    await storage.unlink(imagePath);
    for (const move of [false, true]) {
      await refused(machine, { image: movedPath, move }, { code: "target-unsuitable", text: movedPath });
      await refused(machine, { image: movedPath, name: "db", move }, { code: "target-unsuitable", text: movedPath });
    }
    expect(peekImage(machine, movedPath)?.equals(bytesOf(content, shape))).toBe(true);
  });

  test("one that cannot be made a replica, or cannot be moved", async () => {
    const machine = await machineWithImage();
    const failing = (kind: Operation["kind"], errno: string) =>
      machine.start({
        fault: (operation) => (operation.kind === kind ? { kind: "errno", errno } : undefined),
      });
    for (const errno of ["EPERM", "EROFS"]) {
      await expect(adopt(failing("set-mode", errno))).rejects.toMatchObject({ code: "target-unsuitable" });
    }
    for (const errno of ["EXDEV", "EPERM", "ENOTSUP"]) {
      await expect(adopt(failing("link", errno), { move: true })).rejects.toMatchObject({
        code: "target-unsuitable",
        message: expect.stringContaining("--move"),
      });
    }
    await noDisk(machine);
    expect(filesOf(machine).map((path) => path.slice(folder.length + 1))).toEqual(["apply.lock"]);
    expect(await adopt(machine.start(), { move: true })).toMatchObject({ created: true });
  });

  test("stopped in the middle", async () => {
    const machine = await machineWithImage();
    for (const move of [false, true]) {
      const stop = new AbortController();
      await refused(machine, { move, signal: stop.signal, onProgress: () => stop.abort() }, { code: "aborted" });
      await noDisk(machine);
      expect(filesOf(machine).map((path) => path.slice(folder.length + 1))).toEqual(["apply.lock"]);
    }
    await refused(machine, { signal: AbortSignal.abort() }, { code: "aborted" });
  });

  test("while another process makes the disk, or adopts the image", async () => {
    const machine = await machineWithImage();
    const storage = machine.start();
    await openStoreOn(storage);
    await storage.makeDirectory(`${folder}/points`);
    const lock = await storage.lock(`${folder}/apply.lock`, "exclusive");
    await refused(machine, {}, { code: "disk-busy" });
    await lock?.release();
    const busy = { ...wrap(storage), lockName: () => Promise.resolve(undefined) };
    await expect(adopt(busy)).rejects.toMatchObject({ code: "image-busy" });
    await noDisk(machine);
  });

  test("a read that fails names the image", async () => {
    const machine = await machineWithImage();
    const readFault = (path: string, offset: number) =>
      path === imagePath && offset === 9 * blockBytes ? "EIO" : undefined;
    await expect(adopt(machine.start({ readFault }))).rejects.toMatchObject({
      code: "image-unreadable",
      message: expect.stringContaining(imagePath),
    });
    await noDisk(machine);
  });

  test("what is left of an image that has no other name is not removed", async () => {
    const machine = await machineWithImage();
    const fault = ({ kind }: Operation) => (kind === "rename" ? { kind: "kill" as const } : undefined);
    const process = machine.start();
    await openStoreOn(process);
    process.kill();
    await expect(adopt(machine.start({ fault }), { move: true })).rejects.toThrow();
    const storage = machine.start();
    await storage.unlink(imagePath);
    const facts = { geometry: shape, owner: "owner", sectorBytes: 512 };
    const left = { code: "store-damaged", message: expect.stringContaining(movedPath) };
    await expect((await openStoreOn(storage)).create(disk, facts)).rejects.toMatchObject(left);
    await writeImage(storage, { path: "/images/other.raw" });
    await expect(adopt(storage, { image: "/images/other.raw" })).rejects.toMatchObject(left);
    expect(peekImage(machine, movedPath)?.equals(bytesOf(content, shape))).toBe(true);
    await storage.rename(movedPath, imagePath);
    expect(await adopt(storage, { move: true })).toMatchObject({ created: true });
  });
});

/** Methods of a class are not enumerable. */
function wrap(storage: Storage): Storage {
  return {
    ...{ capabilities: storage.capabilities, lanes: storage.lanes },
    open: (...args) => storage.open(...args),
    rename: (...args) => storage.rename(...args),
    link: (...args) => storage.link(...args),
    unlink: (...args) => storage.unlink(...args),
    makeDirectory: (...args) => storage.makeDirectory(...args),
    removeDirectory: (...args) => storage.removeDirectory(...args),
    list: (...args) => storage.list(...args),
    syncDirectory: (...args) => storage.syncDirectory(...args),
    stat: (...args) => storage.stat(...args),
    setMode: (...args) => storage.setMode(...args),
    space: (...args) => storage.space(...args),
    lock: (...args) => storage.lock(...args),
  };
}

describe("disk.json with an image", () => {
  const record = {
    ...{ id: "00000000-0000-4000-8000-000000000001", name: disk, term: 1, sectorBytes: 512 },
    ...{ sizeBytes: 1_073_742_336, blockBytes: 65_536, digestKind: "xxh64" as const },
    ...{ generation: "00000000-0000-4000-8000-000000000002", owner: "CN=owner", image: "/vms/web.raw" },
  };
  const fixture = join(import.meta.dirname, "../../fixtures/store/v1-adopted/disk.json");

  test("is written byte for byte, read, and told by inspect", async () => {
    const machine = createSimulatedDisk();
    const storage = machine.start();
    const paths = diskPaths(storePath, disk);
    await storage.makeDirectory(paths.directory);
    await writeRecord(storage, paths, record);
    const written = Buffer.from(machine.peek(paths.record) ?? []);
    if (process.env["UPDATE_GOLDEN"] === "1") {
      mkdirSync(join(fixture, ".."), { recursive: true });
      writeFileSync(fixture, written);
    }
    expect(written.equals(readFileSync(fixture))).toBe(true);
    expect(decodeRecord("disk.json", written)).toEqual(record);
    expect(await inspectStoreFile(storage, paths.record)).toMatchObject({
      kind: "disk",
      facts: { image: "/vms/web.raw" },
    });
  });

  test.each(["vms/web.raw", "", "../web.raw", "/vms/\0web.raw"])("%j is no place for one", (image) => {
    const bytes = encodeState({ format: "replicate disk", version: 1 }, { ...record, image });
    expect(() => decodeRecord("disk.json", bytes)).toThrow(/disk\.json is damaged: "image"/);
  });
});
