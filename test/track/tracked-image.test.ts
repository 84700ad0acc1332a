import { expect, test } from "vitest";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { systemClock } from "../../src/base/clock.ts";
import { holdRuns } from "../../src/image/held-runs.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { DirtyBitmap } from "../../src/track/dirty-bitmap.ts";
import { cutImages, type ImageCut, type TrackedImage } from "../../src/track/tracked-image.ts";
import { blockBytes, createTracked, type SlowImage, type TrackedWorld } from "./tracked-kit.ts";
import { createTurns, type Turns } from "./turns.ts";

const sizeBytes = 12 * blockBytes + 1_536;

interface Cut {
  readonly cut: ImageCut;
  readonly asItWas: Uint8Array;
}

/** As {@link cutImages} does it, with a copy of the disk at that very moment. */
async function cutNow({ tracked, image }: TrackedWorld, freeze: "dirty" | "all"): Promise<Cut> {
  await tracked.stop();
  const cut = tracked.freeze(freeze);
  const asItWas = image.bytes.slice();
  tracked.go();
  return { cut, asItWas };
}

function randomRange(turns: Turns): { readonly offset: number; readonly length: number } {
  const length = 512 * (1 + turns.pick(turns.pick(3) === 0 ? 96 : 9));
  const offset = 512 * turns.pick(Math.floor((sizeBytes - length) / 512) + 1);
  return { offset, length };
}

/** A guest: writes, zeros, and writes past the object as a server does. */
async function guest(tracked: TrackedImage, image: SlowImage, turns: Turns, writes: number): Promise<void> {
  for (let nth = 0; nth < writes; nth++) {
    const { offset, length } = randomRange(turns);
    const kind = turns.pick(5);
    if (kind === 0) await tracked.zero(offset, length);
    else {
      const bytes = new Uint8Array(length).fill(1 + turns.pick(255));
      if (kind === 1 && tracked.mayWriteNow(offset, length)) image.bytes.set(bytes, offset);
      else await tracked.write(bytes, offset);
    }
    if (turns.pick(3) === 0) await turns.wait();
  }
}

/** Reads the view in the ways there are, and compares. */
async function reader({ cut, asItWas }: Cut, image: SlowImage, turns: Turns, reads: number): Promise<void> {
  const { view } = cut;
  for (let nth = 0; nth < reads; nth++) {
    const { offset, length } = randomRange(turns);
    const expected = asItWas.subarray(offset, offset + length);
    if (turns.pick(4) === 0) {
      for await (const { kind, offset: from, length: count } of view.extents(offset, length)) {
        if (kind === "data") continue;
        const bytes = asItWas.subarray(from, from + count);
        expect(frozenBytes(cut, bytes, from).every((byte) => byte === 0)).toBe(true);
      }
      continue;
    }
    const target = new Uint8Array(length);
    const held = holdRuns(view, offset, length);
    if (held.runs === undefined) await view.read(target, offset);
    else {
      await turns.wait();
      await image.readByLane(target, offset);
    }
    held.release();
    expect(Buffer.compare(frozenBytes(cut, target, offset), frozenBytes(cut, expected, offset))).toBe(0);
  }
}

/** What lies in blocks the cut does not freeze is left out. */
function frozenBytes({ view }: ImageCut, bytes: Uint8Array, offset: number): Uint8Array {
  const kept = bytes.slice();
  for (let at = 0; at < kept.length; at++) {
    if (!view.frozen.has(Math.floor((offset + at) / blockBytes))) kept[at] = 0;
  }
  return kept;
}

test("a cut is read as it was, whatever is written meanwhile; what changed since is dirty for the next", async () => {
  let copied = 0;
  for (let seed = 1; seed <= 150; seed++) {
    const turns = createTurns(seed);
    const world = await createTracked(sizeBytes, turns, { spillMemoryBytes: turns.pick(4) * blockBytes });
    const { tracked, image } = world;
    let acknowledged: Uint8Array = new Uint8Array(sizeBytes);
    for (let cycle = 0; cycle < 4; cycle++) {
      const before = guest(tracked, image, turns, 3);
      const cutting = cutNow(world, turns.pick(2) === 0 ? "all" : "dirty");
      await turns.run([before, cutting]);
      const made = await cutting;
      const { cut, asItWas } = made;
      const guests = [1, 2, 3].map(() => guest(tracked, image, turns, 4));
      const readers = [1, 2, 3].map(() => reader(made, image, turns, 4));
      await turns.run([...guests, ...readers]);
      cut.view.check();
      copied += cut.view.copied;
      const retires = turns.pick(3) > 0;
      if (retires) acknowledged = asItWas;
      await turns.run([retires ? cut.retire() : cut.mergeBack(), guest(tracked, image, turns, 3)]);
      for (let block = 0; block * blockBytes < sizeBytes; block++) {
        const [start, end] = [block * blockBytes, (block + 1) * blockBytes];
        if (Buffer.compare(acknowledged.subarray(start, end), image.bytes.subarray(start, end)) === 0) continue;
        expect(tracked.journal.dirty.has(block), `seed ${seed}, cycle ${cycle}, block ${block}`).toBe(true);
      }
    }
    await turns.run([tracked.close()]);
  }
  expect(copied).toBeGreaterThan(1_000);
});

test("two disks are cut at one moment: each write that was acknowledged before is in, none that began later", async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const turns = createTurns(seed);
    const worlds = [await createTracked(sizeBytes, turns), await createTracked(sizeBytes, turns)];
    let stamp = 0;
    let over = false;
    /** Number of the last write that was acknowledged, and where each went. */
    let acknowledged = 0;
    const writer = async (): Promise<void> => {
      while (!over) {
        const value = ++stamp;
        const place = 512 * turns.pick(40);
        const bytes = new Uint8Array(512);
        new DataView(bytes.buffer).setUint32(0, value);
        await worlds[value % 2]?.tracked.write(bytes, place + blockBytes * turns.pick(4));
        acknowledged = value;
        if (turns.pick(2) === 0) await turns.wait();
      }
    };
    const cutter = async (): Promise<void> => {
      for (let nth = 0; nth < 3; nth++) {
        await turns.wait();
        const least = acknowledged;
        const cuts = await cutImages(
          worlds.map(({ tracked }) => tracked),
          { clock: createFakeClock(), freeze: "all" },
        );
        const most = stamp;
        await turns.wait();
        const found = new Set<number>();
        for (const { view } of cuts) {
          const bytes = new Uint8Array(sizeBytes - (sizeBytes % 512));
          await view.read(bytes, 0);
          const words = new DataView(bytes.buffer);
          for (let at = 0; at < bytes.length; at += 512) found.add(words.getUint32(at));
        }
        // One writer, one after the other: the newest in the cut is between, and it is one prefix over both disks.
        const newest = Math.max(...found);
        expect(newest).toBeGreaterThanOrEqual(least);
        expect(newest).toBeLessThanOrEqual(most);
        for (const cut of cuts) await cut.mergeBack();
      }
      over = true;
    };
    await turns.run([writer(), cutter()]);
  }
});

test("a cut whose writers do not end in time is given up, and they go on; nothing of it stays", async () => {
  const turns = createTurns(1);
  const { tracked, image } = await createTracked(sizeBytes, turns);
  let finish = (): void => undefined;
  const stuck = new Promise<void>((resolve) => {
    finish = resolve;
  });
  const write = image.write;
  image.write = async (source, offset) => {
    await stuck;
    await write(source, offset);
  };
  const writing = tracked.write(new Uint8Array(512).fill(7), 0);
  const clock = createFakeClock();
  const cutting = cutImages([tracked], { clock, freeze: "dirty" });
  let waiting = false;
  const later = tracked.write(new Uint8Array(512).fill(8), 1024).then(() => {
    waiting = true;
  });
  expect(tracked.mayWriteNow(0, 512)).toBe(false);
  const refused = expect(cutting).rejects.toMatchObject({ code: "cut-abandoned" });
  clock.advance(1_000);
  await refused;
  expect(waiting).toBe(false);
  finish();
  await turns.run([writing, later]);
  expect(image.bytes[1024]).toBe(8);
  // The next one succeeds.
  const [cut] = await cutImages([tracked], { clock, freeze: "dirty" });
  await cut?.mergeBack();
});

test("old content that cannot be kept ends the cut and never the guest", async () => {
  const turns = createTurns(1);
  for (const openSpill of [undefined, () => Promise.reject(Object.assign(new Error("full"), { code: "ENOSPC" }))]) {
    const { tracked, image } = await createTracked(sizeBytes, turns, { spillMemoryBytes: blockBytes, openSpill });
    const [cut] = await cutImages([tracked], { clock: systemClock, freeze: "all" });
    if (cut === undefined) throw new Error("a cut");
    const first = tracked.write(new Uint8Array(512).fill(1), 0);
    await turns.run([first]);
    cut.view.check();
    // A reader holds the block the next one is for: it is not waited for any more once the cut is lost.
    const release = cut.view.hold(5 * blockBytes, 512);
    const held = tracked.write(new Uint8Array(512).fill(2), 5 * blockBytes);
    await turns.run([tracked.write(new Uint8Array(512).fill(3), 2 * blockBytes), held]);
    expect(image.bytes[5 * blockBytes]).toBe(2);
    expect(image.bytes[2 * blockBytes]).toBe(3);
    expect(() => cut.view.check()).toThrowError(expect.objectContaining({ code: "cut-abandoned" }));
    await expect(cut.view.read(new Uint8Array(512), 0)).rejects.toMatchObject({ code: "cut-abandoned" });
    release();
    await cut.mergeBack();
    expect(tracked.journal.dirty.has(0)).toBe(true);
  }
});

test("the spill file is bounded, and what lies in it is read back", async () => {
  const turns = createTurns(3);
  const { tracked, image } = await createTracked(sizeBytes, turns, {
    spillMemoryBytes: blockBytes,
    spillBytesMax: 2 * blockBytes,
  });
  image.bytes.fill(9);
  const [cut] = await cutImages([tracked], { clock: systemClock, freeze: "all" });
  if (cut === undefined) throw new Error("a cut");
  for (const block of [0, 4, 8])
    await turns.run([tracked.write(new Uint8Array(blockBytes).fill(1), block * blockBytes)]);
  const target = new Uint8Array(9 * blockBytes);
  await turns.run([cut.view.read(target, 0)]);
  expect(target.every((byte) => byte === 9)).toBe(true);
  await turns.run([tracked.write(new Uint8Array(512), 10 * blockBytes)]);
  expect(() => cut.view.check()).toThrowError(/more blocks/);
});

test("a cut that is lost gives the room of its spill file back, once nobody copies or reads; whoever has it still", async () => {
  const turns = createTurns(7);
  const fates: (() => void)[] = [];
  const held = (): Promise<void> => new Promise((resolve) => fates.push(resolve));
  let open = 0;
  let reading = 0;
  const storage = createSimulatedDisk().start();
  const { tracked } = await createTracked(sizeBytes, turns, {
    spillMemoryBytes: 0,
    spillBytesMax: 2 * blockBytes,
    async openSpill() {
      const file = await storage.open("/spill", { write: true, create: true });
      open++;
      const close = async (): Promise<void> => {
        open = 0;
        expect(reading).toBe(0);
      };
      const read = async (target: Uint8Array, offset: number): Promise<number> => {
        reading++;
        await held();
        reading--;
        return await file.read(target, offset);
      };
      return {
        ...file,
        path: file.path,
        fd: file.fd,
        write: (source, offset) => file.write(source, offset),
        read,
        close,
      };
    },
  });
  const [cut] = await cutImages([tracked], { clock: systemClock, freeze: "all" });
  if (cut === undefined) throw new Error("a cut");
  for (const block of [0, 1]) await turns.run([tracked.write(new Uint8Array(512), block * blockBytes)]);
  const read = cut.view.read(new Uint8Array(512), 0);
  const refused = expect(read).rejects.toMatchObject({ code: "cut-abandoned" });
  while (reading === 0) await Promise.resolve();
  expect(open).toBe(1);
  await turns.run([tracked.write(new Uint8Array(512), 2 * blockBytes)]);
  expect(() => cut.view.check()).toThrow();
  expect(open).toBe(1);
  for (const end of fates) end();
  await refused;
  expect(open).toBe(0);
  await cut.mergeBack();
});

/** Blocks of the cut that are read as they were, after a write to every block: the others show it. */
async function keptBlocks({ cut, asItWas }: Cut, { tracked }: TrackedWorld, turns: Turns): Promise<number[]> {
  const kept: number[] = [];
  for (let at = 0; at < sizeBytes; at += blockBytes) {
    const before = asItWas.subarray(at, at + blockBytes);
    await turns.run([
      tracked.write(
        before.map((byte) => byte ^ 0xff),
        at,
      ),
    ]);
    const bytes = new Uint8Array(before.length);
    await turns.run([cut.view.read(bytes, at)]);
    if (Buffer.compare(bytes, before) === 0) kept.push(at / blockBytes);
  }
  return kept;
}

test.each([
  ["as wide as the journal's, or less", blockBytes / 2, [5, 9, 12], 1],
  ["of four of the journal's", 4 * blockBytes, [4, 5, 6, 7, 8, 9, 10, 11, 12], 4],
  [
    "of eight, the last of which the disk's end cuts short",
    8 * blockBytes,
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    8,
  ],
])("a cut keeps whole blocks of its reader: %s", async (_name, grainBytes, kept, grainBlocks) => {
  const turns = createTurns(5);
  const world = await createTracked(sizeBytes, turns);
  const { tracked, image } = world;
  const [first] = await cutImages([tracked], { clock: systemClock, freeze: "dirty" });
  await turns.run([first?.retire()].filter((task) => task !== undefined));
  await turns.run([
    tracked.write(new Uint8Array(512).fill(1), 5 * blockBytes),
    tracked.write(new Uint8Array(512), sizeBytes - 512),
  ]);
  const audited = new DirtyBitmap({ sizeBytes, blockBytes });
  audited.setRange({ first: 9, count: 1 });
  const [cut] = await cutImages([tracked], {
    ...{ clock: systemClock, freeze: "dirty" },
    ...{ audits: [audited.freeze()], grains: [grainBytes] },
  });
  if (cut === undefined) throw new Error("a cut");
  expect(cut).toMatchObject({ complete: false, grainBytes: grainBlocks * blockBytes });
  expect([...cut.dirty.ranges()].map(({ first: block }) => block)).toEqual([5, 12]);
  expect(await keptBlocks({ cut, asItWas: image.bytes.slice() }, world, turns)).toEqual(kept);
  await cut.mergeBack();
  await turns.run([tracked.close()]);
});

test("a sync that fails beside another fails that one too: nothing is retired, and no guest hears that its data is safe", async () => {
  const turns = createTurns(1);
  const { tracked, image } = await createTracked(sizeBytes, turns);
  // As Linux does it: the failure is told once, and the next sync succeeds.
  let syncs = 0;
  image.flush = async () => {
    const nth = ++syncs;
    await turns.wait();
    if (nth === 1) throw new Error("EIO");
  };
  const [cut] = await cutImages([tracked], { clock: systemClock, freeze: "all" });
  if (cut === undefined) throw new Error("a cut");
  const results = Promise.allSettled([tracked.flush(), cut.retire(), tracked.flush()]);
  await turns.run([results]);
  expect((await results).map(({ status }) => status)).toEqual(["rejected", "rejected", "rejected"]);
  expect(tracked.journal.base).toBeUndefined();
  await cut.mergeBack();
  expect(tracked.journal.dirty.count).toBe(tracked.journal.dirty.blocks);
});
