/** An initial copy in files: what is written, what is refused, and what a crash of either end leaves. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createEngine } from "../../src/replication/engine.ts";
import {
  decodePartHeader,
  decodePartTrailer,
  encodePartHeader,
  encodePartTrailer,
  manifestName,
  parseSeedFile,
  partHeaderBytes,
  partName,
  partTrailerBytes,
} from "../../src/replication/seed/format.ts";
import { inspectSeedFile } from "../../src/replication/seed/inspect.ts";
import { openSeed } from "../../src/replication/seed/reader.ts";
import { createSimulatedDisk, type Operation, type SimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createChance } from "../replica/simulated-store.ts";
import { randomBytes } from "../random.ts";
import { applySeed, blockBytes, bytesOf, exportSeed, makeSource, openSeedStore, storePath, usb } from "./seed-kit.ts";

const replicaPath = `${storePath}/disks/disk/replica.raw`;

function seedFiles(machine: SimulatedDisk): readonly string[] {
  return machine.files().filter((path) => path.startsWith(`${usb}/`));
}

async function machineWithSeed(reader = makeSource()): Promise<{ machine: SimulatedDisk; source: Buffer }> {
  const machine = createSimulatedDisk();
  const image = await reader;
  await exportSeed(machine.start(), image);
  return { machine, source: await bytesOf(image) };
}

/** Puts a file in the place of another; undefined: removes it. */
async function replace(machine: SimulatedDisk, path: string, bytes: Uint8Array | undefined): Promise<void> {
  const process = machine.start();
  await process.unlink(path);
  if (bytes !== undefined) {
    const file = await process.open(path, { write: true, create: true });
    await file.write(bytes, 0);
    await file.close();
  }
  process.kill();
}

async function pointsIn(machine: SimulatedDisk, disk = "disk"): Promise<readonly number[]> {
  const storage = machine.start();
  const engine = await createEngine({ storage, lanes: 0, poolBytes: 2 ** 23 });
  try {
    const store = await openSeedStore(storage, engine);
    return (await store.disks()).includes(disk) ? (await store.points(disk)).points.map(({ point }) => point) : [];
  } finally {
    await engine.close();
  }
}

describe("a copy", () => {
  test("becomes the disk, and a second time is already there", async () => {
    const { machine, source } = await machineWithSeed();
    expect(seedFiles(machine).length).toBeGreaterThan(3);
    const seed = await openSeed(machine.start(), usb);
    const progress: number[] = [];
    const report = await applySeed(machine.start(), { onProgress: (done) => progress.push(done) });
    expect(report).toMatchObject({ disk: "disk", point: 1, created: true, cycle: seed.run, blocksSkipped: 0 });
    expect(progress.at(-1)).toBe(seed.bytes);
    expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
    expect(await applySeed(machine.start())).toMatchObject({ point: 1, created: false, cycle: seed.run });
    expect(await pointsIn(machine)).toEqual([1]);
  });

  test.each([
    ["no bytes", 0, 0],
    ["zeros", 3 * blockBytes, 0],
    ["one byte", 1, 1],
    ["one whole block", blockBytes, blockBytes],
  ])("of a disk of %s", async (_what, bytes, written) => {
    const image = createMemoryImage(bytes);
    if (written > 0) await image.write(randomBytes(written), 0);
    const { machine, source } = await machineWithSeed(Promise.resolve(image));
    expect(await applySeed(machine.start())).toMatchObject({ point: 1, created: true, sizeBytes: bytes });
    expect(Buffer.from(machine.peek(replicaPath) ?? [1]).equals(source)).toBe(true);
  });

  test("of any image, with any codec, digest and length of parts", async () => {
    const piece = fc.record({ block: fc.nat(59), part: fc.nat(3), length: fc.integer({ min: 1, max: 30_000 }) });
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { maxLength: 12 }),
        fc.constantFrom("auto" as const, "lz4" as const, "deflate" as const, "stored" as const),
        fc.constantFrom("xxh64" as const, "sha256" as const),
        fc.integer({ min: 200, max: 300_000 }),
        async (pieces, codec, digestKind, partBytes) => {
          const image = createMemoryImage(62 * blockBytes + 100);
          for (const { block, part, length } of pieces) {
            await image.write(randomBytes(length), block * blockBytes + part * 4_096);
          }
          const machine = createSimulatedDisk();
          await exportSeed(machine.start(), image, { codec, digestKind, partBytes });
          await applySeed(machine.start());
          expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(await bytesOf(image))).toBe(true);
        },
      ),
      { numRuns: 15 },
    );
  });

  test("keeps label, time, consistency and source; the disk belongs to who was named", async () => {
    const machine = createSimulatedDisk();
    await exportSeed(machine.start(), await makeSource(), { label: "by courier", consistency: "application" });
    await applySeed(machine.start(), { owner: "other" });
    const storage = machine.start();
    const engine = await createEngine({ storage, lanes: 0, poolBytes: 2 ** 23 });
    const summary = await (await openSeedStore(storage, engine)).summary("disk");
    await engine.close();
    expect(summary).toMatchObject({
      record: { owner: "other", blockBytes },
      newest: { point: 1, label: "by courier", consistency: "application", source: "image-1", sourceName: "image" },
    });
    await expect(applySeed(machine.start(), { owner: "web" })).rejects.toMatchObject({ code: "disk-owned" });
  });
});

describe("the folder", () => {
  test("with other files or a copy is refused; overwriting removes the copy and nothing else", async () => {
    const { machine } = await machineWithSeed();
    const image = await makeSource();
    const before = seedFiles(machine);
    await expect(exportSeed(machine.start(), image)).rejects.toMatchObject({ code: "target-exists" });
    expect(seedFiles(machine)).toEqual(before);
    await replace(machine, `${usb}/holiday.jpg`, Buffer.from("x"));
    await exportSeed(machine.start(), image, { overwrite: true });
    const after = seedFiles(machine);
    expect(after).toContain(`${usb}/holiday.jpg`);
    expect(after.filter((path) => before.includes(path))).toEqual([]);
    await expect(exportSeed(machine.start(), image, { directory: `${usb}/new` })).resolves.toMatchObject({ point: 0 });

    const other = createSimulatedDisk();
    await other.start().makeDirectory(usb);
    await replace(other, `${usb}/holiday.jpg`, Buffer.from("x"));
    await expect(exportSeed(other.start(), image)).rejects.toMatchObject({
      code: "target-exists",
      message: expect.stringContaining("holiday.jpg"),
    });
  });

  test("what an interrupted copy left is no copy; the next one removes it, of this disk only", async () => {
    const { machine } = await machineWithSeed();
    const manifest = seedFiles(machine).find((path) => path.endsWith(".seed.json")) ?? "";
    const left = seedFiles(machine).filter((path) => path !== manifest);
    await replace(machine, manifest, undefined);
    await expect(applySeed(machine.start())).rejects.toMatchObject({
      code: "seed-not-found",
      message: expect.stringContaining("not complete"),
    });
    const image = await makeSource();
    await expect(exportSeed(machine.start(), image, { disk: "other" })).rejects.toMatchObject({
      code: "target-exists",
    });
    await exportSeed(machine.start(), image);
    expect(seedFiles(machine).filter((path) => left.includes(path))).toEqual([]);
    expect(await applySeed(machine.start())).toMatchObject({ created: true });
  });

  test("is left as it was by a run that is stopped, or whose image changes", async () => {
    const machine = createSimulatedDisk();
    const image = await makeSource();
    const guard = {
      begin: () => Promise.resolve(),
      check: () => Promise.reject(new Error("changed")),
    };
    const source = { reader: image, name: "image", identity: "image-1", guard };
    await expect(exportSeed(machine.start(), image, { source })).rejects.toThrow("changed");
    expect(seedFiles(machine)).toEqual([]);
    const stop = new AbortController();
    const reader = {
      ...image,
      read: (target: Uint8Array, offset: number) => {
        stop.abort();
        return image.read(target, offset);
      },
    };
    await expect(exportSeed(machine.start(), reader, { signal: stop.signal })).rejects.toMatchObject({
      code: "aborted",
    });
    expect(seedFiles(machine)).toEqual([]);
    await exportSeed(machine.start(), image);
  });

  test.each([
    ["write", "ENOSPC", "no-space"],
    ["write", "EIO", "write-failed"],
    ["sync", "EIO", "sync-failed"],
    ["sync-directory", "EIO", "sync-failed"],
    ["rename", "EIO", "write-failed"],
  ])("a %s that fails with %s is %s, tried once", async (kind, errno, code) => {
    const image = await makeSource();
    for (const nth of [0, 1, 3]) {
      const machine = createSimulatedDisk();
      let seen = 0;
      const fault = (operation: Operation) =>
        operation.kind === kind && operation.path.startsWith(usb) && seen++ === nth
          ? { kind: "errno" as const, errno }
          : undefined;
      const failed = await exportSeed(machine.start({ fault }), image).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (nth === 0) expect(failed).toBeDefined();
      if (seen <= nth) continue;
      expect(failed).toMatchObject({ code });
      expect(seedFiles(machine)).toEqual([]);
    }
  });
});

describe("bad input", () => {
  /** The copy is refused with a message that names the file, and nothing is committed; once it is good again it is taken. */
  async function refused(machine: SimulatedDisk, file: string, code = "seed-damaged"): Promise<void> {
    await expect(applySeed(machine.start())).rejects.toMatchObject({ code, message: expect.stringContaining(file) });
    expect(await pointsIn(machine)).toEqual([]);
  }

  test("cut short, anywhere", async () => {
    const { machine, source } = await machineWithSeed();
    for (const path of seedFiles(machine)) {
      const whole = machine.peek(path) ?? new Uint8Array();
      const at = [0, 1, 50, partHeaderBytes, whole.length >> 1, whole.length - partTrailerBytes, whole.length - 1];
      for (const length of at.filter((count) => count < whole.length)) {
        // The line end of a manifest means nothing.
        if (path.endsWith(".json") && length === whole.length - 1) continue;
        await replace(machine, path, whole.subarray(0, length));
        await refused(machine, path);
      }
      await replace(machine, path, Buffer.concat([whole, Buffer.alloc(10)]));
      if (path.endsWith(".frames")) await refused(machine, path);
      await replace(machine, path, whole);
    }
    expect(await applySeed(machine.start())).toMatchObject({ created: true });
    expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
  });

  test("a byte that is another one, anywhere", async () => {
    const { machine, source } = await machineWithSeed();
    const chance = createChance(7);
    for (const path of seedFiles(machine)) {
      const whole = machine.peek(path) ?? new Uint8Array();
      const places = [0, 9, 13, 17, 33, 40, 70, partHeaderBytes, partHeaderBytes + 4, partHeaderBytes + 21];
      for (let count = 0; count < 8; count++) places.push(Math.floor(chance() * whole.length));
      for (let back = 1; back < partTrailerBytes; back += 9) places.push(whole.length - back);
      for (const place of places) {
        if (place >= whole.length) continue;
        // White space of a manifest means nothing.
        if (path.endsWith(".json") && /\s/.test(String.fromCharCode(whole[place] ?? 0))) continue;
        const changed = Uint8Array.from(whole);
        changed[place] = (changed[place] ?? 0) ^ (1 << (place % 7));
        await replace(machine, path, changed);
        await refused(machine, path);
      }
      await replace(machine, path, whole);
    }
    expect(await applySeed(machine.start())).toMatchObject({ created: true });
    expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
  });

  test("is told by inspect, of a part as far as its ends tell", async () => {
    const { machine } = await machineWithSeed();
    const storage = machine.start();
    const files = seedFiles(machine);
    const described = await Promise.all(files.map((path) => inspectSeedFile(storage, path)));
    expect(described.map((found) => [found?.kind, found?.trouble])).toEqual(
      files.map((path) => [path.endsWith(".json") ? "seed" : "seed part", undefined]),
    );
    expect(described[0]?.facts).toMatchObject({ disk: "disk", part: 1, protocol: 1 });
    expect(described.at(-1)?.facts).toMatchObject({
      disk: "disk",
      parts: files.length - 1,
      codecs: "stored lz4 deflate",
    });
    for (const path of files) {
      await replace(machine, path, (machine.peek(path) ?? new Uint8Array()).subarray(0, 100));
      expect((await inspectSeedFile(machine.start(), path))?.trouble).toContain(path);
    }
    expect(await inspectSeedFile(machine.start(), `${usb}/web.raw`)).toBeUndefined();
  });

  test("a part that is missing, of another run, or in the place of another", async () => {
    const { machine } = await machineWithSeed();
    const other = (await machineWithSeed()).machine;
    const parts = seedFiles(machine).filter((path) => path.endsWith(".frames"));
    const others = seedFiles(other).filter((path) => path.endsWith(".frames"));
    for (const [index, path] of parts.entries()) {
      const whole = machine.peek(path) ?? new Uint8Array();
      await replace(machine, path, undefined);
      await refused(machine, path);
      await replace(machine, path, other.peek(others[index] ?? ""));
      await refused(machine, path);
      await replace(machine, path, machine.peek(parts[(index + 1) % parts.length] ?? ""));
      await refused(machine, path);
      await replace(machine, path, whole);
    }
    const manifest = seedFiles(machine).find((path) => path.endsWith(".json")) ?? "";
    const whole = machine.peek(manifest);
    await replace(machine, manifest, other.peek(seedFiles(other).find((path) => path.endsWith(".json")) ?? ""));
    await refused(machine, manifest);
    await replace(machine, manifest, whole);
    await replace(machine, `${usb}/${manifestName("disk", crypto.randomUUID())}`, whole);
    await refused(machine, "2 copies", "seed-not-found");
  });

  test("a part with frames of the same run in another order does not follow the one before", async () => {
    const { machine } = await machineWithSeed();
    const [first = "", second = ""] = seedFiles(machine);
    const whole = machine.peek(second) ?? new Uint8Array();
    // As if written anew behind another first part: true in itself.
    const header = decodePartHeader(second, whole.subarray(0, partHeaderBytes));
    const changed = Uint8Array.from(whole);
    changed.set(encodePartHeader({ ...header, previous: new Uint8Array(32).fill(3) }));
    await replace(machine, second, changed);
    await refused(machine, second);
    expect(first).not.toBe(second);
  });

  test("another version is refused by name", async () => {
    const { machine } = await machineWithSeed();
    const [first = ""] = seedFiles(machine);
    const manifest = seedFiles(machine).find((path) => path.endsWith(".json")) ?? "";
    const whole = machine.peek(first) ?? new Uint8Array();
    const header = decodePartHeader(first, whole.subarray(0, partHeaderBytes));
    const changed = Uint8Array.from(whole);
    changed.set(encodePartHeader({ ...header, protocol: 9 }));
    await replace(machine, first, changed);
    await refused(machine, first, "version-unsupported");
    await replace(machine, first, whole);
    const text = Buffer.from(machine.peek(manifest) ?? []).toString();
    await replace(machine, manifest, Buffer.from(text.replace('"version": 1', '"version": 2')));
    await refused(machine, manifest, "version-unsupported");
    await replace(machine, manifest, Buffer.from(text.replace("stored lz4", "stored zstd")));
    await refused(machine, manifest);
  });

  test("a folder that is not there, or empty, or a codec that is not known here", async () => {
    const machine = createSimulatedDisk();
    await expect(applySeed(machine.start())).rejects.toMatchObject({ code: "seed-not-found" });
    await machine.start().makeDirectory(usb);
    await expect(applySeed(machine.start())).rejects.toMatchObject({ code: "seed-not-found" });
    await exportSeed(machine.start(), await makeSource());
    await expect(applySeed(machine.start(), { codecs: ["stored", "deflate"] })).rejects.toMatchObject({
      code: "feature-unsupported",
      message: expect.stringContaining("lz4"),
    });
  });

  test("a read that fails names the part", async () => {
    const { machine } = await machineWithSeed();
    const second = seedFiles(machine)[1] ?? "";
    for (const from of [0, 4_096]) {
      const readFault = (path: string, offset: number) => (path === second && offset >= from ? "EIO" : undefined);
      await expect(applySeed(machine.start({ readFault }))).rejects.toMatchObject({
        code: "seed-damaged",
        message: expect.stringContaining(second),
      });
    }
    expect(await applySeed(machine.start())).toMatchObject({ created: true });
  });
});

describe("where something is already", () => {
  test("a disk with another point is left alone", async () => {
    const { machine, source } = await machineWithSeed();
    await applySeed(machine.start());
    await exportSeed(machine.start(), await makeSource(), { overwrite: true });
    await expect(applySeed(machine.start())).rejects.toMatchObject({ code: "target-exists" });
    expect(await pointsIn(machine)).toEqual([1]);
    expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
  });

  test("what is left of another copy is replaced, block by block", async () => {
    const { machine } = await machineWithSeed();
    // Stopped in the middle; then another image under the same name, of which other blocks are zero.
    const stop = new AbortController();
    const stopHalfWay = (done: number, total: number): void => {
      if (done > total / 2) stop.abort();
    };
    await expect(applySeed(machine.start(), { signal: stop.signal, onProgress: stopHalfWay })).rejects.toMatchObject({
      code: "aborted",
    });
    const image = createMemoryImage(40 * blockBytes + 5_000);
    await image.write(randomBytes(2_000), blockBytes + 5_000);
    for (let block = 0; block < 12; block += 2) await image.write(randomBytes(4_096), block * blockBytes);
    await exportSeed(machine.start(), image, { overwrite: true });
    expect(await applySeed(machine.start())).toMatchObject({ point: 1, created: true });
    expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(await bytesOf(image))).toBe(true);
  });

  test("one begun with other blocks or another digest needs a person", async () => {
    const { machine } = await machineWithSeed();
    const stop = new AbortController();
    const onProgress = (): void => stop.abort();
    await expect(applySeed(machine.start(), { signal: stop.signal, onProgress })).rejects.toMatchObject({
      code: "aborted",
    });
    for (const [options, code] of [
      [{ blockBytes: 2 * blockBytes }, "block-size-differs"],
      [{ digestKind: "sha256" as const }, "digest-kind-differs"],
    ] as const) {
      await exportSeed(machine.start(), await makeSource(), { overwrite: true, ...options });
      await expect(applySeed(machine.start())).rejects.toMatchObject({ code });
    }
  });
});

describe("crashes", () => {
  test("of the export: a copy is complete or there is none, whatever survives", async () => {
    const image = await makeSource();
    const source = await bytesOf(image);
    const whole = createSimulatedDisk().start();
    await exportSeed(whole, image);
    for (let operation = 0; operation < whole.operations; operation++) {
      const machine = createSimulatedDisk();
      const chance = createChance(operation);
      const fault = ({ index }: Operation) => (index === operation ? { kind: "kill" as const } : undefined);
      await expect(exportSeed(machine.start({ fault }), image)).rejects.toThrow();
      machine.losePower(() => chance() < 0.5);
      const seed = await openSeed(machine.start(), usb).catch((error: unknown) => {
        expect(error).toMatchObject({ code: "seed-not-found" });
      });
      if (seed === undefined) await exportSeed(machine.start(), image);
      await applySeed(machine.start());
      expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
    }
  });

  test("of the import: the next run goes on, and there is one point", async () => {
    const image = await makeSource();
    const source = await bytesOf(image);
    const { machine: model } = await machineWithSeed(Promise.resolve(image));
    const counting = model.start();
    await applySeed(counting);
    const step = Math.max(1, Math.floor(counting.operations / 36));
    let skipped = 0;
    for (let operation = 0; operation < counting.operations; operation += step) {
      const machine = createSimulatedDisk();
      await exportSeed(machine.start(), image);
      const chance = createChance(operation);
      const fault = ({ index }: Operation) => (index === operation ? { kind: "kill" as const } : undefined);
      await applySeed(machine.start({ fault })).catch(() => undefined);
      // A killed process, or a machine without power.
      if (operation % 2 === 0) machine.losePower(() => chance() < 0.5);
      const report = await applySeed(machine.start());
      skipped += report.blocksSkipped;
      expect(report.point).toBe(1);
      expect(await pointsIn(machine)).toEqual([1]);
      expect(Buffer.from(machine.peek(replicaPath) ?? []).equals(source)).toBe(true);
      expect(await applySeed(machine.start())).toMatchObject({ created: false, point: 1 });
    }
    expect(skipped).toBeGreaterThan(0);
  });
});

describe("bytes of version 1", () => {
  const fixtures = join(import.meta.dirname, "../../fixtures/seed/v1");
  const run = "00010203-0405-4607-8809-0a0b0c0d0e0f";

  /** Three parts of noise and a part of text in a disk of 4 blocks and a bit. */
  async function make(): Promise<SimulatedDisk> {
    const image = createMemoryImage(4 * blockBytes + 512);
    await image.write(Buffer.alloc(4_096, "first "), 0);
    await image.write(Buffer.alloc(4_096, "second "), 2 * blockBytes + 4_096);
    await image.write(Buffer.alloc(512, "last "), 4 * blockBytes);
    const machine = createSimulatedDisk();
    const clock = {
      now: () => 1_700_000_000_000,
      monotonic: () => 0,
      sleep: () => Promise.resolve(),
      every: () => () => undefined,
    };
    const random = { uuid: () => run, bytes: (count: number) => new Uint8Array(count) };
    await exportSeed(machine.start(), image, {
      ...{ clock, random, codec: "stored", disk: "vm1.sda", label: "by courier", partBytes: 9_000 },
    });
    return machine;
  }

  test("are written, and read", async () => {
    const machine = await make();
    const written = new Map(seedFiles(machine).map((path) => [path.slice(usb.length + 1), machine.peek(path)]));
    if (process.env["UPDATE_GOLDEN"] === "1") {
      mkdirSync(fixtures, { recursive: true });
      for (const [name, bytes] of written) writeFileSync(join(fixtures, name), bytes ?? "");
    }
    const names = readdirSync(fixtures).sort();
    expect([...written.keys()]).toEqual(names);
    const read = createSimulatedDisk();
    await read.start().makeDirectory(usb);
    for (const name of names) {
      const bytes = readFileSync(join(fixtures, name));
      expect(Buffer.from(written.get(name) ?? []).equals(bytes), name).toBe(true);
      await replace(read, `${usb}/${name}`, bytes);
    }
    expect(await applySeed(read.start())).toMatchObject({ disk: "vm1.sda", cycle: run, created: true });
    const replica = Buffer.from(read.peek(`${storePath}/disks/vm1.sda/replica.raw`) ?? []);
    expect(replica.toString("latin1", 2 * blockBytes + 4_096, 2 * blockBytes + 4_110)).toBe("second second ");
  });

  test("the fields that docs/formats.md lists follow each other", () => {
    const text = readFileSync(join(import.meta.dirname, "../../docs/formats.md"), "utf8");
    const section = text.slice(text.indexOf("\n## Seed\n"), text.indexOf("\n### Manifest"));
    const ends: number[] = [];
    let offset = 0;
    for (const [, at, size] of section.matchAll(/^\| (\d+) \| (\d+) \|/gm)) {
      if (at === "0") {
        ends.push(offset);
        offset = 0;
      }
      expect(Number(at)).toBe(offset);
      offset += Number(size);
    }
    expect([...ends, offset]).toEqual([0, partHeaderBytes, partTrailerBytes]);
  });

  test("the records of a part hold what they were given", () => {
    const previous = Uint8Array.from({ length: 32 }, (_unused, index) => index);
    const header = { protocol: 1, run, part: 70_000, previous };
    expect(decodePartHeader("x", encodePartHeader(header))).toEqual(header);
    const trailer = { part: 3, bodyBytes: 5_000_000_000, frames: 12, sha256: previous };
    expect(decodePartTrailer("x", encodePartTrailer(trailer), 5_000_000_064)).toEqual(trailer);
    expect(parseSeedFile(partName("a-b", run, 12))).toEqual({ disk: "a-b", run, kind: "part", part: 12 });
    expect(parseSeedFile(manifestName("a.b", run))).toMatchObject({ disk: "a.b", run, kind: "manifest" });
    for (const name of ["web.raw", `../x-${run}.seed.json`, `web-${run}.1.frames`, `${run}.00001.frames`]) {
      expect(parseSeedFile(name), name).toBeUndefined();
    }
  });
});
