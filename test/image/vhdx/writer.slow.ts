/** Writing VHDX files: like any other writer; whole after a crash at any operation; as others read them. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync, truncateSync } from "node:fs";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemRandom } from "../../../src/base/random.ts";
import { MIB, TIB } from "../../../src/base/units.ts";
import type { BlockWriter } from "../../../src/image/block-device.ts";
import { createVhdx, type VhdxShape } from "../../../src/image/vhdx/create.ts";
import { openVhdx, readVhdxFacts } from "../../../src/image/vhdx/open.ts";
import { VhdxPlaces } from "../../../src/image/vhdx/places.ts";
import { openVhdxWriter } from "../../../src/image/vhdx/writer.ts";
import type { Storage, StorageFile } from "../../../src/storage/seam.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import type { Operation, ProcessOptions } from "../../../src/testing/simulated-faults.ts";
import {
  createSimulatedDisk,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../../src/testing/simulated-storage.ts";
import { createScratch, hasCommand, type Scratch } from "../../storage/scratch.ts";
import { extentsOf, pattern, readRange, writerConformance } from "../conformance.ts";
import { type BuiltVhdx, buildVhdx, guids, places, regionTable, type VhdxPlan, writeVhdx } from "./kit.ts";
import { askLibvhdi, noLibvhdi } from "./libvhdi.ts";

const storage = createNodeStorage();
const random = systemRandom;

async function make(where: Storage, path: string, shape: VhdxShape): Promise<BlockWriter> {
  const file = await where.open(path, { write: true, exclusive: true });
  await createVhdx(file, shape, random);
  await file.datasync();
  return openVhdxWriter(file, { storage: where, random });
}

for (const sectorBytes of [512, 4096] as const) {
  for (const [name, more] of [
    ["payload blocks of 1 MiB", { payloadBlockBytes: MIB }],
    ["payload blocks of 32 MiB", {}],
    ["fixed", { fixed: true, payloadBlockBytes: 256 * MIB }],
  ] as const) {
    let scratch: Scratch | undefined;
    writerConformance({
      name: `VHDX, ${name}`,
      sectorBytes,
      sizeUnit: sectorBytes,
      async create(sizeBytes) {
        scratch = await createScratch();
        return make(storage, scratch.file("disk.vhdx"), { sizeBytes, sectorBytes, ...more });
      },
      async clean() {
        await scratch?.remove();
      },
    });
  }
}

interface Step {
  readonly kind: "write" | "zero" | "flush" | "reopen" | "read";
  readonly sector: number;
  readonly sectors: number;
  readonly seed: number;
}

/** Mostly around the ends of payload blocks, where what is written is of two of them. */
function steps(sectorBytes: number, sizeBytes: number, payloadBlockBytes: number): fc.Arbitrary<Step[]> {
  const sectors = sizeBytes / sectorBytes;
  const edge = fc
    .tuple(fc.nat(Math.ceil(sizeBytes / payloadBlockBytes)), fc.integer({ min: -12, max: 12 }))
    .map(([block, by]) => Math.min(sectors - 1, Math.max(0, (block * payloadBlockBytes) / sectorBytes + by)));
  const kind = fc.constantFrom("write", "write", "zero", "flush", "reopen", "read");
  const sector = fc.oneof(edge, fc.nat(sectors - 1));
  const length = fc.oneof(fc.integer({ min: 1, max: 24 }), fc.integer({ min: 1, max: sectors }));
  const step = fc.tuple(kind, sector, length, fc.nat(200)).map(
    ([what, first, count, seed]): Step => ({
      ...{ kind: what as Step["kind"], sector: first, seed },
      // Content is short, zeros may be of everything.
      sectors: Math.min(what === "zero" ? count : Math.min(count, 64), sectors - first),
    }),
  );
  return fc.array(step, { minLength: 1, maxLength: 20 });
}

describe.each([512, 4096] as const)("sectors of %d bytes", (sectorBytes) => {
  test.each([
    { name: "payload blocks of 1 MiB", more: { payloadBlockBytes: MIB } },
    { name: "payload blocks of 2 MiB, fixed", more: { payloadBlockBytes: 2 * MIB, fixed: true } },
  ])("any order of write, zero, flush, reopen and read is as in memory: $name", async ({ more }) => {
    const sizeBytes = 5 * MIB + 3 * sectorBytes;
    const { payloadBlockBytes } = more;
    const scratch = await createScratch();
    try {
      let made = 0;
      await fc.assert(
        fc.asyncProperty(steps(sectorBytes, sizeBytes, payloadBlockBytes), async (all) => {
          const file = scratch.file(`disk-${made++}.vhdx`);
          let disk = await make(storage, file, { sizeBytes, sectorBytes, ...more });
          const right = new Uint8Array(sizeBytes);
          const reopen = async (): Promise<void> => {
            await disk.flush();
            await disk.close();
            // As others read it, and then again to write.
            const { reader, files } = await openVhdx(await storage.open(file), storage);
            expect(files[0]?.facts).toMatchObject({ overlay: undefined, remarks: [] });
            expect(Buffer.compare(await readRange(reader, 0, sizeBytes), right)).toBe(0);
            await reader.close();
            disk = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
          };
          for (const { kind, sector, sectors, seed } of all) {
            const [offset, length] = [sector * sectorBytes, sectors * sectorBytes];
            if (kind === "write") {
              await disk.write(pattern(length, seed), offset);
              right.set(pattern(length, seed), offset);
            } else if (kind === "zero") {
              await disk.zero(offset, length);
              right.fill(0, offset, offset + length);
            } else if (kind === "flush") await disk.flush();
            else if (kind === "reopen") await reopen();
            else {
              const found = await readRange(disk, offset, length);
              expect(Buffer.compare(found, right.subarray(offset, offset + length))).toBe(0);
            }
          }
          await reopen();
          expect(Buffer.compare(await readRange(disk, 0, sizeBytes), right)).toBe(0);
          await disk.close();
          await storage.unlink(file);
        }),
        { numRuns: 40, seed: sectorBytes },
      );
    } finally {
      await scratch.remove();
    }
  });
});

const path = "/disk.vhdx";
const blockBytes = 32 * MIB;
/** A sector: what survives of writes is whole sectors. */
const unit = 512;
const perBlock = blockBytes / unit;
const shape: VhdxShape = { sizeBytes: 5 * blockBytes };

/** What each unit of the disk may hold: what it had at the last flush, or anything it was given since. */
class Model {
  readonly #values = new Map<number, Set<number>>();
  readonly #last = new Map<number, number>();

  set(at: number, value: number): void {
    const values = this.#values.get(at) ?? new Set([0]);
    values.add(value);
    this.#values.set(at, values);
    this.#last.set(at, value);
  }

  flushed(): void {
    for (const [at, value] of this.#last) this.#values.set(at, new Set([value]));
  }

  async check(disk: { read(target: Uint8Array, offset: number): Promise<void> }): Promise<void> {
    const bytes = new Uint8Array(unit);
    for (const [at, values] of this.#values) {
      await disk.read(bytes, at * unit);
      const found = bytes[0] ?? 0;
      if (!values.has(found)) throw new Error(`unit ${at} has ${found}, and may have ${[...values].join(" or ")}`);
      if (!bytes.every((byte) => byte === found)) throw new Error(`unit ${at} is mixed`);
      // What was found once is what it is from now on.
      this.#values.set(at, new Set([found]));
      this.#last.set(at, found);
    }
  }
}

const units = [0, 7, 100, perBlock, perBlock + 1, 3 * perBlock + 5];

/** A life of a disk: new payload blocks, content over content, zeros, three flushes. */
async function live(where: Storage, model: Model): Promise<void> {
  const file = await where.open(path, { write: true });
  const disk = await openVhdxWriter(file, { storage: where, random });
  let value = 0;
  const write = async (at: number): Promise<void> => {
    value++;
    model.set(at, value);
    await disk.write(new Uint8Array(unit).fill(value), at * unit);
  };
  const zero = async (at: number): Promise<void> => {
    model.set(at, 0);
    await disk.zero(at * unit, unit);
  };
  const flush = async (): Promise<void> => {
    await disk.flush();
    model.flushed();
  };
  await write(0);
  await write(7);
  await flush();
  await write(0);
  await write(perBlock);
  await zero(7);
  await flush();
  await write(perBlock + 1);
  await write(3 * perBlock + 5);
  await zero(0);
  await flush();
  await write(100);
  await write(2 * perBlock);
  await disk.close();
}

async function prepared(): Promise<SimulatedDisk> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await (await make(process, path, shape)).close();
  await process.syncDirectory("/");
  process.kill();
  return machine;
}

const losses: Readonly<Record<string, ((seed: number) => () => boolean) | undefined>> = {
  "kill of the process": undefined,
  "loss of all that was not synced": () => () => false,
  "loss of nothing": () => () => true,
  "loss of some": (seed) => {
    let state = seed * 2_654_435_761 + 1;
    return () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state > 2 ** 31;
    };
  },
};

/** Crashes, opens the file read-only, then for writing, and compares. */
async function crash(fault: NonNullable<ProcessOptions["fault"]>, loss: string, seed: number): Promise<boolean> {
  const machine = await prepared();
  const process = machine.start({ fault });
  const model = new Model();
  let ended = false;
  try {
    await live(process, model);
    ended = true;
  } catch (error) {
    if (!process.dead) throw error;
  }
  process.kill();
  const survives = losses[loss];
  if (survives !== undefined) machine.losePower(survives(seed));
  const reading = machine.start();
  const read = await openVhdx(await reading.open(path), reading);
  await model.check(read.reader);
  await read.reader.close();
  const writing = machine.start();
  const disk = await openVhdxWriter(await writing.open(path, { write: true }), { storage: writing, random });
  await model.check(disk);
  for (const at of units) {
    await disk.write(new Uint8Array(unit).fill(200), at * unit);
    model.set(at, 200);
  }
  await disk.flush();
  model.flushed();
  await model.check(disk);
  await disk.close();
  machine.losePower(() => false);
  const again = machine.start();
  const last = await openVhdx(await again.open(path), again);
  await model.check(last.reader);
  const facts = last.files[0]?.facts;
  expect(facts?.overlay).toBeUndefined();
  expect(facts?.remarks).toEqual([]);
  return ended;
}

describe("a crash at every operation", () => {
  test.each(Object.keys(losses))("%s", async (loss) => {
    let at = 0;
    for (; ; at++) {
      const now = at;
      const ended = await crash(({ index }) => (index === now ? { kind: "kill" } : undefined), loss, at).catch(
        (error: unknown) => {
          throw new Error(`operation ${now}`, { cause: error });
        },
      );
      if (ended) break;
    }
    expect(at).toBeGreaterThan(30);
  });

  test("each sync is needed: without it some crash is not survived", async () => {
    const machine = await prepared();
    const syncs: number[] = [];
    await live(
      machine.start({
        fault({ index, kind }: Operation) {
          if (kind === "sync") syncs.push(index);
          return undefined;
        },
      }),
      new Model(),
    );
    // The first one is of the header with the new GUIDs; content is safe without it. Of the four of a flush those around the table keep a sector of it that is torn
    // within, which no sector of this disk is. Content before the table, and the end of a log before the next one begins, matter here.
    const ofFlushes = syncs.slice(1);
    expect(ofFlushes).toHaveLength(12);
    const needed = ofFlushes.filter((_sync, index) => index % 4 === 0 || (index % 4 === 3 && index < 11));
    for (const sync of needed) {
      let caught = false;
      for (let at = sync + 1; at < sync + 12 && !caught; at++) {
        for (let seed = 0; seed < 12 && !caught; seed++) {
          const fault = ({ index }: Operation) =>
            index === sync ? ({ kind: "skip" } as const) : index === at ? ({ kind: "kill" } as const) : undefined;
          caught = await crash(
            fault,
            seed === 0 ? "loss of all that was not synced" : "loss of some",
            seed * 31 + at,
          ).then(
            () => false,
            () => true,
          );
        }
      }
      expect(`sync ${sync} ${caught ? "is needed" : "is not"}`).toBe(`sync ${sync} is needed`);
    }
  });

  test("a header that may not be there is the last that is written: the other one is all there is", async () => {
    for (const kind of ["write", "sync"] as const) {
      const machine = await prepared();
      let failed = false;
      const process = machine.start({
        fault(operation) {
          if (failed || operation.kind !== kind) return undefined;
          failed = true;
          return { kind: "errno", errno: "EIO" };
        },
      });
      const disk = await openVhdxWriter(await process.open(path, { write: true }), { storage: process, random });
      const headers = async (): Promise<Uint8Array> => {
        const bytes = new Uint8Array(192 * 1024);
        const file = await machine.start().open(path);
        await file.read(bytes, 0);
        return bytes;
      };
      await expect(disk.write(new Uint8Array(unit), 0)).rejects.toMatchObject({ code: "EIO" });
      const left = await headers();
      await expect(disk.write(new Uint8Array(unit), 0)).rejects.toMatchObject({ code: "EIO" });
      await expect(disk.zero(0, unit)).rejects.toMatchObject({ code: "EIO" });
      expect(Buffer.compare(await headers(), left)).toBe(0);
      await disk.close();
    }
  });

  test("an operation that fails is an error, and a flush that failed is the last", async () => {
    for (let at = 0; ; at++) {
      const machine = await prepared();
      const process = machine.start({
        fault: ({ index }) => (index === at ? { kind: "errno", errno: "EIO" } : undefined),
      });
      const model = new Model();
      const failed = await live(process, model).then(
        () => false,
        (error: unknown) => {
          expect(error).toMatchObject({ code: "EIO" });
          return true;
        },
      );
      process.kill();
      const reading = machine.start();
      const { reader } = await openVhdx(await reading.open(path), reading);
      await model.check(reader);
      if (!failed) break;
    }
  });
});

test("what was cut off from the end, by who then could not sync, does not come back with a payload block that gets its place", async () => {
  const machine = await prepared();
  const open = async (process: SimulatedProcess): Promise<{ file: StorageFile; disk: VhdxPlaces }> => {
    const file = await process.open(path, { write: true });
    return { file, disk: await VhdxPlaces.open(file, { storage: process, random }) };
  };
  // Killed between content and table.
  const first = machine.start();
  const torn = await open(first);
  await torn.disk.claim([1]);
  const place = torn.disk.find(torn.disk.payloadBlockBytes) ?? 0;
  await torn.file.write(new Uint8Array(unit).fill(7), place + unit);
  await torn.file.datasync();
  first.kill();
  const second = machine.start({
    fault: ({ kind }) => (kind === "sync" ? { kind: "errno", errno: "EIO" } : undefined),
  });
  const failing = await open(second);
  expect(await failing.disk.trim()).toBe(true);
  await expect(failing.disk.flush()).rejects.toMatchObject({ code: "EIO" });
  second.kill();
  const third = machine.start();
  const { disk, file } = await open(third);
  // For all that is seen nothing is left to cut.
  expect(await disk.trim()).toBe(false);
  await disk.claim([0]);
  expect(disk.find(0)).toBe(place);
  await file.write(new Uint8Array(unit).fill(9), place);
  await disk.flush();
  machine.losePower(() => false);
  const last = machine.start();
  const { reader } = await openVhdx(await last.open(path), last);
  const bytes = new Uint8Array(2 * unit);
  await reader.read(bytes, 0);
  expect([bytes[0], bytes.subarray(unit).every((byte) => byte === 0)]).toEqual([9, true]);
});

describe("files", () => {
  let scratch: Scratch;
  beforeEach(async () => {
    scratch = await createScratch();
  });
  afterEach(() => scratch.remove());

  test("a change gives the file a new GUID of its data, reading and opening do not", async () => {
    const file = scratch.file("disk.vhdx");
    const guidOf = async (): Promise<string> => {
      const opened = await storage.open(file);
      const { header } = await readVhdxFacts(opened, storage);
      await opened.close();
      return header.dataWriteGuid;
    };
    await (await make(storage, file, { sizeBytes: 8 * MIB })).close();
    const first = await guidOf();
    const reopened = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
    await readRange(reopened, 0, 512);
    await reopened.flush();
    expect(await guidOf()).toBe(first);
    await reopened.zero(0, 512);
    const second = await guidOf();
    expect(second).not.toBe(first);
    await reopened.write(new Uint8Array(512), 0);
    await reopened.close();
    expect(await guidOf()).toBe(second);
  });

  test("C-10 the sequence number of a header never wraps", async () => {
    const file = scratch.file("disk.vhdx");
    await writeVhdx(file, { sizeBytes: MIB, sequences: [2n ** 64n - 2n, 2n ** 64n - 1n] });
    const disk = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
    await expect(disk.write(new Uint8Array(512), 0)).rejects.toMatchObject({ code: "image-damaged" });
    await disk.close();
  });

  test("a log that was not written out is, before anything is written", async () => {
    const file = scratch.file("disk.vhdx");
    const plan = { sizeBytes: 4 * MIB, pieces: [{ offset: MIB, bytes: pattern(5_000, 1) }] };
    const built = await writeVhdx(file, plan);
    const page = Buffer.alloc(4096);
    page.writeBigUInt64LE(BigInt(built.blockPlaces.get(1) ?? 0) | 6n, 2 * 8);
    const end = built.sizeBytes + MIB;
    const sectors = [{ offset: built.entryOf(0), bytes: page }];
    const zeros = [{ offset: built.entryOf(0) + 8192, length: 4096 }];
    await writeVhdx(file, { ...plan, log: [{ sequence: 5n, tail: 0, flushed: MIB, last: end, sectors, zeros }] });
    const disk = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
    expect(await readRange(disk, 2 * MIB, 5_000)).toEqual(pattern(5_000, 1));
    await disk.write(pattern(512, 9), 0);
    await disk.flush();
    await disk.close();
    const { reader, files } = await openVhdx(await storage.open(file), storage);
    expect(files[0]?.facts.overlay).toBeUndefined();
    expect(await readRange(reader, 2 * MIB, 5_000)).toEqual(pattern(5_000, 1));
    expect(await readRange(reader, 0, 512)).toEqual(pattern(512, 9));
    expect(files[0]?.facts.file.sizeBytes).toBe(end + MIB);
    await reader.close();
  });

  const dirtyLog = (built: BuiltVhdx, zeros: NonNullable<VhdxPlan["log"]>[number]["zeros"] = []) => ({
    log: [
      {
        sequence: 5n,
        tail: 0,
        flushed: MIB,
        last: MIB,
        zeros: [...zeros, { offset: built.entryOf(0) + 8192, length: 4096 }],
      },
    ],
  });

  test("writing out a log changes the GUID of the file, and not that of its data", async () => {
    const file = scratch.file("disk.vhdx");
    const plan = { sizeBytes: 4 * MIB, pieces: [{ offset: MIB, bytes: pattern(5_000, 1) }] };
    await writeVhdx(file, { ...plan, ...dirtyLog(buildVhdx(plan)) });
    const headerOf = async () => {
      const opened = await storage.open(file);
      const { header } = await readVhdxFacts(opened, storage);
      await opened.close();
      return header;
    };
    const before = await headerOf();
    await (await openVhdxWriter(await storage.open(file, { write: true }), { storage, random })).close();
    const after = await headerOf();
    expect(after.logGuid).not.toBe(before.logGuid);
    expect(after.fileWriteGuid).not.toBe(before.fileWriteGuid);
    expect(after.dataWriteGuid).toBe(before.dataWriteGuid);
  });

  test("a log that zeros a large part of its file is written out as holes", async () => {
    const file = scratch.file("disk.vhdx");
    const plan: VhdxPlan = { sizeBytes: 4 * MIB, pieces: [{ offset: MIB, bytes: pattern(5_000, 1) }] };
    const zeros = [{ offset: 64 * MIB, length: TIB }];
    await writeVhdx(file, { ...plan, ...dirtyLog(buildVhdx(plan), zeros) });
    const longer = await storage.open(file, { write: true });
    await longer.truncate(TIB / 2);
    await longer.write(pattern(4096, 3), TIB / 4);
    const disk = await openVhdxWriter(longer, { storage, random });
    expect(await readRange(disk, MIB, 5_000)).toEqual(pattern(5_000, 1));
    await disk.close();
    const written = await storage.open(file);
    expect(await written.stat()).toMatchObject({ sizeBytes: TIB + 64 * MIB });
    expect((await written.stat()).allocatedBytes).toBeLessThan(8 * MIB);
    await written.close();
  });

  test("a differencing image is refused as it is: its log is not written out", async () => {
    const file = scratch.file("disk.avhdx");
    const plan: VhdxPlan = { sizeBytes: 4 * MIB, parent: { parent_linkage: `{${guids.data}}`, relative_path: "x" } };
    await writeVhdx(file, { ...plan, ...dirtyLog(buildVhdx(plan)) });
    const before = readFileSync(file);
    await expect(openVhdxWriter(await storage.open(file, { write: true }), { storage, random })).rejects.toMatchObject({
      code: "image-format-unsupported",
    });
    expect(readFileSync(file).equals(before)).toBe(true);
  });

  test.each([
    ["a payload block", 1, "payload block 3"],
    ["the BAT", 9 * MIB - 5, "the BAT"],
  ])(
    "C-19 a file that was cut within %s is not written to: what is missing would lie under what is new",
    async (_name, missing, words) => {
      const file = scratch.file("disk.vhdx");
      const plan: VhdxPlan = {
        sizeBytes: 16 * MIB,
        payloadBlockBytes: 2 * MIB,
        pieces: [0, 1, 2, 3].map((block) => ({ offset: block * 2 * MIB, bytes: pattern(2 * MIB, block) })),
      };
      const built = await writeVhdx(file, { ...plan });
      truncateSync(file, built.sizeBytes - missing);
      const before = readFileSync(file);
      await expect(
        openVhdxWriter(await storage.open(file, { write: true }), { storage, random }),
      ).rejects.toMatchObject({ code: "image-truncated", message: expect.stringContaining(words) });
      expect(readFileSync(file).equals(before)).toBe(true);
    },
  );

  test("a file that ends where its disk ends, within its last payload block: a new one lies behind that block", async () => {
    const file = scratch.file("disk.vhdx");
    const sizeBytes = 37 * MIB + 512;
    const plan: VhdxPlan = {
      sizeBytes,
      payloadBlockBytes: 32 * MIB,
      pieces: [{ offset: sizeBytes - 512, bytes: pattern(512, 1) }],
    };
    const built = await writeVhdx(file, plan);
    const last = built.blockPlaces.get(1) ?? 0;
    truncateSync(file, last + 5 * MIB + 512);
    const disk = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
    await disk.write(pattern(4096, 2), 0);
    await disk.flush();
    await disk.close();
    const { reader, files } = await openVhdx(await storage.open(file), storage);
    expect(files[0]?.facts.file.sizeBytes).toBe(last + 64 * MIB);
    expect(await readRange(reader, 0, 4096)).toEqual(pattern(4096, 2));
    expect(await readRange(reader, sizeBytes - 512, 512)).toEqual(pattern(512, 1));
    await reader.close();
  });

  test("a file that ends within its BAT, of which no entry that is needed is missing: a new block lies behind it", async () => {
    const file = scratch.file("disk.vhdx");
    const built = await writeVhdx(file, { sizeBytes: 4 * MIB, payloadBlockBytes: MIB });
    const regions = regionTable([
      { guid: guids.bat, offset: places.bat, length: 4 * MIB, required: true },
      { guid: guids.metadata, offset: places.metadata, length: MIB, required: true },
    ]);
    const cut = await storage.open(file, { write: true });
    for (const at of places.regionTables) await cut.write(regions, at);
    await cut.truncate(built.entryOf(0) + 4096);
    await cut.close();
    const disk = await openVhdxWriter(await storage.open(file, { write: true }), { storage, random });
    await disk.write(pattern(4096, 2), MIB);
    await disk.flush();
    await disk.close();
    const { reader } = await openVhdx(await storage.open(file), storage);
    expect(await readRange(reader, MIB, 4096)).toEqual(pattern(4096, 2));
    await reader.close();
  });

  const noQemu = hasCommand("qemu-img", "--version") ? "" : " (skipped: no qemu-img)";
  test.skipIf(noQemu !== "").each([
    { name: "dynamic", shape: { sizeBytes: 300 * MIB + 512 } },
    { name: "payload blocks of 1 MiB", shape: { sizeBytes: 5 * 2 ** 30, payloadBlockBytes: MIB } },
    { name: "fixed", shape: { sizeBytes: 70 * MIB, fixed: true } },
    { name: "3 TiB", shape: { sizeBytes: 3 * TIB } },
    { name: "64 TiB", shape: { sizeBytes: 64 * TIB } },
  ])(
    `C-08 qemu-img takes it as whole, and reads the same, as libvhdi does: $name${noQemu}${noLibvhdi}`,
    async ({ shape: wanted }) => {
      const file = scratch.file("disk.vhdx");
      const disk = await make(storage, file, wanted);
      const { sizeBytes } = wanted;
      const offsets = [0, 33 * MIB + 512, Math.floor(sizeBytes / 2 / 512) * 512, sizeBytes - 4096];
      for (const [index, offset] of offsets.entries()) await disk.write(pattern(4096, index), offset);
      await disk.zero(33 * MIB + 1024, 512);
      await disk.flush();
      await disk.close();
      execFileSync("qemu-img", ["check", "-q", "-f", "vhdx", file]);
      const info = JSON.parse(
        execFileSync("qemu-img", ["info", "--output=json", "-f", "vhdx", file], { encoding: "utf8" }),
      ) as {
        readonly "virtual-size": number;
      };
      expect(info["virtual-size"]).toBe(sizeBytes);
      const { reader } = await openVhdx(await storage.open(file), storage);
      for (const [index, offset] of offsets.entries()) {
        const right = pattern(4096, index);
        if (offset === 33 * MIB + 512) right.fill(0, 512, 1024);
        expect(await readRange(reader, offset, 4096)).toEqual(right);
        // What QEMU reads there.
        const dump = execFileSync(
          "qemu-img",
          [
            "dd",
            "-f",
            "vhdx",
            "-O",
            "raw",
            "bs=512",
            `skip=${offset / 512}`,
            `count=${offset / 512 + 8}`,
            `if=${file}`,
            `of=${scratch.file("piece")}`,
          ],
          { stdio: "pipe" },
        );
        expect(dump.length).toBe(0);
        const piece = await storage.open(scratch.file("piece"));
        const found = new Uint8Array(4096);
        await piece.read(found, 0);
        await piece.close();
        expect(found).toEqual(right);
      }
      if (noLibvhdi === "") {
        const right = createHash("sha256");
        for (const offset of offsets) right.update(await readRange(reader, offset, 4096));
        const pieces = offsets.map((offset) => [offset, 4096] as const);
        expect(askLibvhdi([file], pieces)).toEqual({ sizeBytes, digest: right.digest("hex") });
      }
      const data = (await extentsOf(reader, 0, sizeBytes)).filter(({ kind }) => kind === "data");
      expect(data.reduce((sum, { length }) => sum + length, 0)).toBeLessThan(MIB);
      await reader.close();
    },
  );
});
