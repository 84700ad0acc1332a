/** Journals that are damaged, cut, old, or of something else: everything is compared, once, with one reason. */
import { describe, expect, test } from "vitest";
import { blockBytes, journalPath, regionBytes, World } from "./journal-world.ts";
import { journalBytesMax, LOG_BYTES_DEFAULT } from "../../src/track/journal/format.ts";
import type { JournalMode } from "../../src/track/belief.ts";
import { KIB, TIB } from "../../src/base/units.ts";

/** A journal with a base, bits in pages, and batches in its log; then the process ends. */
async function lived(options: { readonly closed?: boolean; readonly mode?: JournalMode } = {}): Promise<World> {
  const world = new World(options.mode === undefined ? {} : { mode: options.mode });
  await world.makeImage();
  await world.open();
  await world.cycle();
  await world.write(0, regionBytes);
  await world.cycle();
  for (const region of [2, 3, 4, 5]) await world.write(region * regionBytes);
  await world.pass(12);
  if (options.closed === true) await world.close();
  else world.crash();
  return world;
}

async function replace(world: World, bytes: Uint8Array): Promise<void> {
  const process = world.disk.start();
  const file = await process.open(journalPath, { write: true, truncate: true });
  await file.write(bytes, 0);
  await file.datasync();
  process.kill();
}

/** After a scan: a cycle, and the next journal is believed. */
async function expectOneScan(world: World, reason: string, words: RegExp): Promise<void> {
  const belief = await world.openAndCheck();
  expect(belief).toMatchObject({ kind: "scan", reason });
  if (belief.kind === "scan") expect(belief.words).toMatch(words);
  await world.write(3 * blockBytes);
  await world.cycle();
  await world.write(5 * blockBytes);
  world.crash();
  expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
}

describe("a file that is not whole", () => {
  test("missing", async () => {
    const world = await lived();
    await world.disk.start().unlink(journalPath);
    await expectOneScan(world, "journal-new", /there is no journal/);
  });

  test.each([0, 100, 4_096, 8_192, 50_000])("cut to %i bytes", async (length) => {
    const world = await lived();
    const bytes = world.disk.peek(journalPath) ?? new Uint8Array();
    await replace(world, bytes.subarray(0, length));
    await expectOneScan(world, "journal-damaged", /is damaged: /);
  });

  test("cut to half", async () => {
    const world = await lived();
    const bytes = world.disk.peek(journalPath) ?? new Uint8Array();
    await replace(world, bytes.subarray(0, bytes.length >> 1));
    await expectOneScan(world, "journal-damaged", /is damaged: /);
  });

  test("zeros of the same length, and text", async () => {
    const world = await lived();
    await replace(world, new Uint8Array(60_000));
    await expectOneScan(world, "journal-damaged", /it has no header/);
    world.crash();
    await replace(world, Buffer.alloc(60_000, "not a journal "));
    await expectOneScan(world, "journal-damaged", /it has no header/);
  });

  test("another version", async () => {
    const world = await lived();
    const bytes = world.disk.peek(journalPath) ?? new Uint8Array();
    const { crc32 } = await import("node:zlib");
    for (const at of [0, 4_096]) {
      bytes[at + 8] = 9;
      const view = Buffer.from(bytes.buffer, bytes.byteOffset + at, 4_096);
      view.writeUInt32LE(crc32(view.subarray(16), crc32(view.subarray(0, 12))), 12);
    }
    await replace(world, bytes);
    await expectOneScan(world, "journal-version", /version 9; this program reads version 1/);
  });

  test.each([false, true])("a flipped byte, wherever it lies, never costs a bit (closed: %s)", async (closed) => {
    const world = await lived({ closed });
    const whole = world.disk.peek(journalPath) ?? new Uint8Array();
    const used = [...whole.keys()].filter((at) => whole[at] !== 0);
    let scans = 0;
    for (let index = 0; index < used.length; index += 7) {
      const at = used[index] ?? 0;
      const bytes = new Uint8Array(whole);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (at % 8));
      await replace(world, bytes);
      const belief = await world.openAndCheck();
      if (belief.kind === "scan") {
        scans++;
        expect(["journal-damaged", "image-changed-later"]).toContain(belief.reason);
      }
      world.crash();
    }
    // What is left over from before counts for nothing, and the heartbeat has a twin.
    expect(scans).toBeGreaterThan(closed ? 0 : 10);
  });

  test("a flipped byte in a batch that others follow, without a heartbeat that counted it", async () => {
    const world = new World();
    await world.makeImage();
    await world.open();
    await world.cycle();
    for (const region of [2, 3, 4]) await world.write(region * regionBytes);
    world.crash();
    world.disk.poke(journalPath, Uint8Array.of(77), 16_384 + 36);
    await expectOneScan(world, "journal-damaged", /batch 1 of its log is damaged, and a later one is there/);
  });

  test("it cannot be read", async () => {
    const world = await lived();
    const process = world.disk.start({ readFault: (path) => (path === journalPath ? "EIO" : undefined) });
    const { readJournal } = await import("../../src/track/journal/load.ts");
    const reading = await readJournal(await process.open(journalPath));
    expect(reading).toMatchObject({ bad: { reason: "journal-unreadable" } });
  });
});

describe("a journal that is whole, and not the right one", () => {
  test("an older copy put back", async () => {
    const world = await lived({ closed: true });
    const old = world.disk.peek(journalPath) ?? new Uint8Array();
    await world.openAndCheck();
    await world.write(7 * regionBytes);
    await world.cycle();
    await world.close();
    await replace(world, old);
    await expectOneScan(world, "image-changed", /last changed at/);
  });

  test("an image written to while nobody tracked", async () => {
    const world = await lived({ closed: true });
    const process = world.disk.start();
    const file = await process.open("/images/vm.img", { write: true });
    await file.write(Buffer.alloc(512, 1), 8 * regionBytes);
    process.kill();
    await expectOneScan(world, "image-changed", /last changed at/);
  });

  test("of an image that was replaced by a copy", async () => {
    const world = await lived();
    const process = world.disk.start();
    const copy = await process.open("/images/copy.img", { write: true, create: true });
    await copy.truncate(world.sizeBytes);
    await process.rename("/images/copy.img", "/images/vm.img");
    process.kill();
    await expectOneScan(world, "other-image", /another image/);
  });

  test("of a disk of another size", async () => {
    const world = await lived();
    const process = world.disk.start();
    const file = await process.open("/images/vm.img", { write: true });
    await file.truncate(world.sizeBytes + 4_096);
    process.kill();
    await expectOneScan(world, "disk-size-differs", /of a disk of/);
  });
});

describe("mode process", () => {
  test("survives the end of the process, with one sync a start", async () => {
    const syncs: string[] = [];
    const world = new World({
      mode: "process",
      fault: ({ kind, path }) => {
        if (kind.startsWith("sync")) syncs.push(path);
        return undefined;
      },
    });
    await world.makeImage();
    syncs.length = 0;
    await world.open();
    await world.cycle();
    await world.write(0, regionBytes);
    world.crash();
    expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
    await world.write(2 * regionBytes);
    expect(syncs.filter((path) => path !== "/images/vm.img")).toEqual([journalPath, journalPath]);
    world.crash(() => true);
    expect(await world.openAndCheck()).toMatchObject({ kind: "scan", reason: "other-boot" });
  });

  // The image's time may be lost with the power, and its content not.
  test("a loss of power does not bring back a journal that was closed before its last use", async () => {
    const world = await lived({ closed: true, mode: "process" });
    const process = world.disk.start();
    await (await process.open(journalPath, { write: true })).datasync();
    await process.syncDirectory("/images");
    process.kill();
    expect(await world.openAndCheck()).toMatchObject({ kind: "exact" });
    await world.journal?.mark(7 * regionBytes, 512);
    world.crash(() => false);
    expect(await world.openAndCheck()).toMatchObject({ kind: "scan", reason: "other-boot" });
  });
});

describe("cost", () => {
  test("a write into a hot region costs nothing, and concurrent ones share a sync", async () => {
    let syncs = 0;
    const world = new World({
      fault: ({ kind, path }) => {
        if (kind === "sync" && path === journalPath) syncs++;
        return undefined;
      },
    });
    await world.makeImage();
    await world.open();
    await world.cycle();
    syncs = 0;
    // The first is under way when the others come: these share the next.
    await world.write(0, regionBytes, regionBytes + blockBytes, 2 * blockBytes);
    expect(syncs).toBe(1);
    expect(await world.write(3 * blockBytes, regionBytes + 9 * blockBytes)).toBe(true);
    expect(syncs).toBe(1);
    expect(world.journal?.hotRegions).toBe(2);
    const cut = await world.flip();
    syncs = 0;
    expect(await world.write(3 * blockBytes, 11 * blockBytes)).toBe(true);
    await world.retire(cut);
    syncs = 0;
    expect(await world.write(3 * blockBytes, 12 * blockBytes)).toBe(true);
    expect(syncs).toBe(0);
    expect(world.journal?.hotRegions).toBe(2);
  });

  test("the file stays within its bound, and hot regions within theirs", async () => {
    const world = new World();
    await world.makeImage();
    await world.open();
    await world.cycle();
    for (let turn = 0; turn < 300; turn++) {
      await world.write(((turn * 7) % 10) * regionBytes + (turn % 64) * blockBytes);
      expect(world.journal?.hotRegions).toBeLessThanOrEqual(4);
    }
    const bytes = world.disk.peek(journalPath)?.length ?? 0;
    expect(bytes).toBeLessThanOrEqual(journalBytesMax({ sizeBytes: world.sizeBytes, blockBytes }, 32 * KIB));
    // 64 TiB at 64 KiB: twice 128 MiB of bits, and little more.
    const largest = journalBytesMax({ sizeBytes: 64 * TIB, blockBytes });
    expect(largest - LOG_BYTES_DEFAULT).toBeLessThan(2 * 2 ** 27 * 1.01);
  });
});

describe("hot regions", () => {
  test("the region written to last, cooled, is cold", async () => {
    const world = new World();
    await world.makeImage();
    await world.open();
    await world.cycle();
    await world.write(0);
    expect(await world.write(blockBytes)).toBe(true);
    for (const region of [1, 2, 3, 4]) await world.write(region * regionBytes);
    expect(await world.write(2 * blockBytes)).toBe(false);
    world.crash();
    expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
  });
});

describe("a large checkpoint", () => {
  /** More pages than are written in one turn. */
  const sizeBytes = TIB;

  test("marks do not wait for its pages", async () => {
    const order: string[] = [];
    const world = new World({
      sizeBytes,
      fault: ({ kind, path, offset }) => {
        if (kind === "write" && path === journalPath) order.push((offset ?? 0) < 49_152 ? "batch" : "page");
        return undefined;
      },
    });
    await world.makeImage();
    await world.open();
    const cut = await world.flip();
    order.length = 0;
    const retired = world.retire(cut);
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    await world.write(5 * regionBytes);
    expect(order.indexOf("batch")).toBeGreaterThan(0);
    expect(order.indexOf("batch")).toBeLessThan(order.lastIndexOf("page"));
    await retired;
    expect(order.filter((what) => what === "page").length).toBeGreaterThan(512);
    expect(world.journal?.dirty.count).toBe(1);
  });

  test("pages of one that came to no end are not taken for those of the next", async () => {
    let left = Number.POSITIVE_INFINITY;
    const world = new World({
      sizeBytes: 1_500 * regionBytes,
      fault: () => (--left === 0 ? { kind: "kill" } : undefined),
    });
    await world.makeImage();
    await world.open();
    await world.cycle();
    await world.write(1_000 * regionBytes);
    // Now nothing of the second page is hot, nor in the log.
    for (const region of [0, 1, 2, 3]) await world.write(region * regionBytes);
    const cut = await world.flip();
    await world.journal?.checkpoint();
    // The image is synced, both pages are written without the bits of the cut, and no header.
    left = 4;
    await expect(world.retire(cut)).rejects.toThrow("killed");
    left = Number.POSITIVE_INFINITY;
    world.crash();
    expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
    world.crash();
    expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
  });

  test("a crash at any of its steps leaves a journal that is believed, with every bit", async () => {
    let crashes = 0;
    for (let at = 1; at < 560; at += 37) {
      let left = Number.POSITIVE_INFINITY;
      const world = new World({ sizeBytes, fault: () => (--left === 0 ? { kind: "kill" } : undefined) });
      await world.makeImage();
      await world.open();
      await world.cycle();
      await world.write(0, regionBytes, 300 * regionBytes);
      await world.writeRange(20 * regionBytes, TIB - 40 * regionBytes, 5_000_000);
      const cut = await world.flip();
      await world.write(regionBytes + blockBytes);
      left = at;
      const ended = await world.retire(cut).then(
        () => world.write(7 * regionBytes).then(() => false),
        () => true,
      );
      left = Number.POSITIVE_INFINITY;
      if (ended) crashes++;
      world.crash((what) => at % 2 === 0 || what === "time");
      expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
    }
    expect(crashes).toBeGreaterThan(12);
  });
});

describe("a failure", () => {
  test("is told once, and the guest goes on; the next open begins a new journal", async () => {
    let fails = false;
    const world = new World({
      fault: ({ kind, path }) =>
        fails && kind !== "unlink" && path === journalPath ? { kind: "errno", errno: "ENOSPC" } : undefined,
    });
    await world.makeImage();
    await world.open();
    await world.cycle();
    fails = true;
    await world.write(0, regionBytes);
    await world.write(2 * regionBytes);
    expect(world.journal?.failure).toMatchObject({ reason: "journal-write-failed" });
    expect(world.journal?.failure?.words).toMatch(/cannot be written \(ENOSPC\): everything is compared/);
    expect(world.journal?.dirty.count).toBe(world.journal?.dirty.blocks);
    // All that can be done is to take the file away.
    expect(world.disk.peek(journalPath)).toBeUndefined();
    // In memory it goes on: everything, then what is written since.
    const cut = await world.flip();
    await world.write(5 * regionBytes);
    await world.journal?.retire(cut);
    expect(world.journal?.dirty.count).toBe(1);
    fails = false;
    world.crash(() => true);
    await expectOneScan(world, "journal-new", /there is no journal/);
  });

  test("at the very start is told as well", async () => {
    const world = new World({
      fault: ({ path }) => (path === journalPath ? { kind: "errno", errno: "EIO" } : undefined),
    });
    await world.makeImage();
    await world.open();
    expect(world.journal?.failure).toMatchObject({ kind: "scan", reason: "journal-write-failed" });
    await world.write(0);
    await world.cycle();
    expect(world.journal?.failure).toMatchObject({ reason: "journal-write-failed" });
    await world.close();
    expect(world.disk.peek(journalPath)).toBeUndefined();
  });

  describe.each(["in use", "at the very start"])("%s, of a file system that has room again", (when) => {
    /** Whose journal failed, and is written to by chance. */
    async function failed(): Promise<{ readonly world: World; readonly facts: { fails: boolean } }> {
      const facts = { fails: when === "at the very start" };
      const world = new World({
        fault: ({ path }) => (facts.fails && path === journalPath ? { kind: "errno", errno: "ENOSPC" } : undefined),
      });
      await world.makeImage();
      await world.open();
      if (!facts.fails) await world.cycle();
      facts.fails = true;
      await world.write(0, 4 * regionBytes);
      expect(world.journal?.failure).toMatchObject({ reason: "journal-write-failed" });
      // Of what came before nothing is known.
      expect(world.journal?.base).toBeUndefined();
      return { world, facts };
    }

    test.each([
      ["the process is killed", async (world: World) => world.crash()],
      ["power is lost", async (world: World) => world.crash(() => false)],
      ["the tracker is stopped", async (world: World) => await world.close()],
    ])("with the next cycle the journal is kept again: then %s", async (_what, end) => {
      const { world, facts } = await failed();
      facts.fails = false;
      await world.cycle();
      expect(world.journal?.failure).toBeUndefined();
      await world.write(2 * regionBytes, 9 * regionBytes);
      await world.pass(3);
      await end(world);
      expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
      expect(world.journal?.base).toBe(world.retired);
      expect(world.journal?.dirty.count).toBeLessThan(world.journal?.dirty.blocks ?? 0);
    });

    test("what is written while the file is begun anew is in it", async () => {
      const { world, facts } = await failed();
      const cycle = await world.flip();
      facts.fails = false;
      const retired = world.retire(cycle);
      const offsets = [1, 3, 5, 7].map((region) => region * regionBytes);
      for (const offset of offsets) await world.write(offset);
      await retired;
      expect(world.journal?.failure).toBeUndefined();
      world.crash(() => true);
      expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
    });

    test("with the stop of the tracker, when it was not before", async () => {
      const { world, facts } = await failed();
      await world.cycle();
      expect(world.journal?.failure).toBeDefined();
      facts.fails = false;
      const base = world.journal?.base;
      await world.close();
      expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
      expect(world.journal?.base).toBe(base);
    });
  });

  test("it is not begun anew where there is no room for all it may need: what its own end freed is left to others", async () => {
    const room = { freeBytes: 2 ** 40 };
    const facts = { fails: false };
    const paths: string[] = [];
    const world = new World({
      disk: room,
      fault: ({ path, kind }) => {
        paths.push(path);
        return facts.fails && path === journalPath && kind === "write" ? { kind: "errno", errno: "ENOSPC" } : undefined;
      },
    });
    await world.makeImage();
    await world.open();
    await world.cycle();
    facts.fails = true;
    await world.write(0);
    expect(world.journal?.failure).toMatchObject({ reason: "journal-write-failed" });
    facts.fails = false;
    room.freeBytes = 2 * journalBytesMax({ sizeBytes: world.sizeBytes, blockBytes }, 32 * KIB) - 1;
    paths.length = 0;
    for (let cycle = 0; cycle < 3; cycle++) {
      await world.cycle();
      await world.write(regionBytes);
    }
    expect(world.journal?.failure).toBeDefined();
    expect(paths.length).toBeGreaterThan(0);
    expect(paths).not.toContain(journalPath);
    room.freeBytes++;
    await world.cycle();
    expect(world.journal?.failure).toBeUndefined();
    world.crash();
    expect(await world.openAndCheck()).toEqual({ kind: "exact", audit: false });
  });

  test("one that fails again and again is left alone for longer and longer: a failure costs a comparison", async () => {
    const world = new World({
      fault: ({ path, kind, doing }) =>
        path === journalPath && doing === "write" && kind === "write" ? { kind: "errno", errno: "EIO" } : undefined,
    });
    await world.makeImage();
    await world.open();
    const kept: number[] = [];
    for (let cycle = 0; cycle < 100; cycle++) {
      world.doing = "cycle";
      await world.cycle();
      if (world.journal?.failure === undefined) kept.push(cycle);
      world.doing = "write";
      await world.write((cycle % 9) * regionBytes);
    }
    expect(kept).toEqual([0, 1, 3, 7, 15, 31, 63]);
  });

  test.each([
    ["the process is killed", undefined],
    ["power is lost", () => true],
  ])("while a file is begun anew, at each of its operations, and %s: nobody believes it", async (_what, survives) => {
    let fails = false;
    let fuse = 0;
    let struck = 0;
    const world = new World({
      fault: ({ path, kind }) => {
        if (!fails || path !== journalPath || kind === "unlink" || --fuse >= 0) return undefined;
        struck++;
        return { kind: "errno", errno: "EIO" };
      },
    });
    await world.makeImage();
    let tried = 0;
    for (; ; tried++) {
      const at = tried;
      await world.open();
      await world.cycle();
      [fails, fuse] = [true, 0];
      await world.write(at * blockBytes);
      expect(world.journal?.failure).toBeDefined();
      const cycle = await world.flip();
      [fuse, struck] = [at, 0];
      await world.retire(cycle);
      fails = false;
      if (struck === 0) break;
      expect(world.journal?.failure).toMatchObject({ reason: "journal-write-failed" });
      await world.write(at * regionBytes);
      world.crash(survives);
      expect((await world.openAndCheck()).kind).toBe("scan");
      world.crash(() => true);
    }
    expect(tried).toBeGreaterThan(5);
    expect(world.journal?.failure).toBeUndefined();
  });
});
