/**
 * What a file may claim costs no memory: each is opened, scanned and inspected in a process of its own with a small heap, which has at most so much more
 * memory at its peak than with a file of one sector.
 */
import { execFileSync } from "node:child_process";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { GIB, MIB, TIB } from "../../../src/base/units.ts";
import { createScratch, type Scratch } from "../../storage/scratch.ts";
import type { Piece } from "../conformance.ts";
import { writePieces } from "../pieces.ts";
import {
  buildVhdx,
  guids,
  headerBytes,
  type LogEntryPlan,
  logEntry,
  metadataRegion,
  places,
  regionTable,
  sealed,
  type VhdxPlan,
  writeVhdx,
} from "./kit.ts";

const heapMib = 64;
/** Pages of tables, changes of a log, bits of a table; what the collector has not yet taken back. */
const boundBytes = 128 * MIB;

const dist = join(import.meta.dirname, "../../../dist");
const program = `
const [path] = process.argv.slice(1);
const { createNodeStorage } = await import(${JSON.stringify(`${dist}/storage/node-storage.js`)});
const { openImage } = await import(${JSON.stringify(`${dist}/image/open-image.js`)});
const { inspectVhdx } = await import(${JSON.stringify(`${dist}/image/vhdx/inspect.js`)});
const { readFileSync } = await import("node:fs");
const storage = createNodeStorage();
const guard = async (work) => {
  try {
    await work();
    return "read";
  } catch (error) {
    if (error.constructor.name !== "ReplicationError") throw error;
    return error.code + ": " + error.message.slice(0, 300);
  }
};
let extents = 0;
const result = await guard(async () => {
  const { reader } = await openImage(path, { storage });
  try {
    for await (const extent of reader.extents(0, reader.sizeBytes)) extents++;
    const bytes = new Uint8Array(65536);
    for (let at = 0; at < reader.sizeBytes; at += Math.ceil(reader.sizeBytes / 50 / 512) * 512) {
      await reader.read(bytes.subarray(0, Math.min(bytes.length, reader.sizeBytes - at)), at);
    }
  } finally {
    await reader.close();
  }
});
const { facts } = await inspectVhdx(storage, path);
// Of this process alone: what the kernel counts for its resources may have been its parent's.
const peak = /VmHWM:\\s*(\\d+) kB/.exec(readFileSync("/proc/self/status", "latin1"))?.[1];
const peakBytes = (peak === undefined ? process.resourceUsage().maxRSS : Number(peak)) * 1024;
console.log(JSON.stringify({ result, extents, peakBytes, format: facts.format }));
`;

interface Outcome {
  readonly result: string;
  readonly extents: number;
  readonly peakBytes: number;
}

function measure(path: string): Outcome {
  const args = [`--max-old-space-size=${heapMib}`, "--input-type=module", "--eval", program, path];
  return JSON.parse(execFileSync(process.execPath, args, { encoding: "utf8" })) as Outcome;
}

let scratch: Scratch;
let tinyBytes: number;
beforeAll(async () => {
  scratch = await createScratch();
  const path = scratch.file("tiny.vhdx");
  await writeVhdx(path, { sizeBytes: MIB, pieces: [{ offset: 0, bytes: Buffer.alloc(512, 1) }] });
  const tiny = measure(path);
  expect(tiny.result).toBe("read");
  tinyBytes = tiny.peakBytes;
});
afterAll(() => scratch.remove());

/** A file of a plan, and what is written over it. */
async function made(plan: VhdxPlan, over: readonly Piece[] = [], sizeBytes = 0): Promise<string> {
  const built = buildVhdx(plan);
  const path = scratch.file("hostile.vhdx");
  await writePieces(path, { pieces: [...built.pieces, ...over], sizeBytes: Math.max(built.sizeBytes, sizeBytes) });
  return path;
}

/** The log lies behind everything else, where there is room for it. */
async function withLog(entry: LogEntryPlan, logBytes: number, sizeBytes = MIB): Promise<string> {
  const plan: VhdxPlan = { sizeBytes, log: [] };
  const at = buildVhdx(plan).sizeBytes;
  const headers = places.headers.map((offset, index) => {
    const bytes = headerBytes(BigInt(index + 1), { log: [] });
    bytes.writeUInt32LE(logBytes, 68);
    bytes.writeBigUInt64LE(BigInt(at), 72);
    return { offset, bytes: sealed(bytes) };
  });
  return made(plan, [...headers, { offset: at, bytes: logEntry(entry) }], at + logBytes);
}

function tableEntry(at: number, state: number, place: number): Piece {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(place) | BigInt(state));
  return { offset: at, bytes };
}

const hostile: Readonly<Record<string, { readonly make: () => Promise<string>; readonly result: string | RegExp }>> = {
  "a table for 64 TiB in payload blocks of 1 MiB, with an entry in each of its pages": {
    make() {
      const plan: VhdxPlan = { sizeBytes: 64 * TIB };
      const { entryOf, sizeBytes } = buildVhdx(plan);
      const entries = Array.from({ length: 8_192 }, (_unused, page) =>
        tableEntry(entryOf(page * 8_190), 6, Math.ceil(sizeBytes / MIB) * MIB + page * GIB),
      );
      return made(plan, entries, 9 * TIB);
    },
    result: "read",
  },
  "a table of 196,608 blocks that are all there": {
    async make() {
      const plan: VhdxPlan = { sizeBytes: 192 * GIB };
      const { sizeBytes } = buildVhdx(plan);
      const path = await made(plan, [], TIB);
      const file = await open(path, "r+");
      // A chunk of 4,096 blocks and the entry of its bitmap at a time.
      for (let chunk = 0; chunk < 48; chunk++) {
        const bytes = Buffer.alloc(4_097 * 8);
        for (let index = 0; index < 4_096; index++) {
          bytes.writeBigUInt64LE(BigInt(sizeBytes + (chunk * 4_096 + index) * MIB) | 6n, index * 8);
        }
        await file.write(bytes, 0, bytes.length, places.bat + chunk * bytes.length);
      }
      await file.close();
      return path;
    },
    result: "read",
  },
  "a table whose blocks all lie at one place": {
    make() {
      const plan: VhdxPlan = { sizeBytes: TIB };
      const bytes = Buffer.alloc(8 * MIB);
      for (let at = 0; at < bytes.length; at += 8) bytes.writeBigUInt64LE(BigInt(64 * MIB) | 6n, at);
      return made(plan, [{ offset: places.bat, bytes }], 256 * MIB);
    },
    result: /image-damaged.*lies over another/,
  },
  "2,047 items of metadata, of 1 MiB each": {
    make() {
      const table = Buffer.alloc(64 * 1024);
      const plan: VhdxPlan = { sizeBytes: MIB };
      for (const { offset, bytes } of buildVhdx(plan).pieces) if (offset === places.metadata) table.set(bytes);
      for (let index = table.readUInt16LE(10); index < 2_047; index++) {
        const at = 32 + index * 32;
        table.writeUInt32LE(index, at);
        table.writeUInt32LE(64 * 1024, at + 16);
        table.writeUInt32LE(MIB - 64 * 1024, at + 20);
      }
      table.writeUInt16LE(2_047, 10);
      return made(plan, [{ offset: places.metadata, bytes: table }]);
    },
    result: "read",
  },
  "a log of nearly 4 GiB": {
    make: () => withLog({ sequence: 1n, tail: 0, flushed: MIB, last: MIB }, 2 ** 32 - MIB),
    result: /image-format-unsupported.*4293918720/,
  },
  "an entry of a log with a million changes": {
    make() {
      const zeros = Array.from({ length: 1_000_000 }, (_unused, index) => ({
        offset: GIB + index * 8192,
        length: 4096,
      }));
      return withLog({ sequence: 1n, tail: 0, flushed: MIB, last: MIB, zeros }, 32 * MIB);
    },
    result: /image-format-unsupported.*1000000 changes/,
  },
  "a log with as many changes as there may be": {
    make() {
      const zeros = Array.from({ length: 55_000 }, (_unused, index) => ({ offset: GIB + index * 8192, length: 4096 }));
      const content = Buffer.alloc(4096, 7);
      const sectors = Array.from({ length: 10_000 }, (_unused, index) => ({
        offset: 2 * GIB + index * 8192,
        bytes: content,
      }));
      return withLog({ sequence: 1n, tail: 0, flushed: MIB, last: MIB, zeros, sectors }, 64 * MIB, 16 * TIB);
    },
    result: "read",
  },
  "a log that says that its file has nearly 2^53 bytes": {
    make: () => withLog({ sequence: 1n, tail: 0, flushed: MIB, last: 2 ** 53 - 2 ** 20 }, MIB),
    result: "read",
  },
  "a parent locator of as many and as long texts as there may be": {
    make() {
      // All of them are the same bytes: of a name that no file has.
      const item = Buffer.alloc(MIB, "\u2603", "utf16le");
      const pairs = ["parent_linkage", "relative_path", "absolute_win32_path", "volume_path"];
      let textAt = 900_000;
      const text = (value: string): { readonly at: number; readonly length: number } => {
        const bytes = Buffer.from(value, "utf16le");
        bytes.copy(item, textAt);
        textAt += bytes.length;
        return { at: textAt - bytes.length, length: bytes.length };
      };
      const head = Buffer.alloc(20 + 64 * 12);
      metadataLocator.copy(head);
      head.writeUInt16LE(64, 18);
      for (let index = 0; index < 64; index++) {
        const name = pairs[index];
        const key = name === undefined ? { at: 2_000 + index * 2, length: 65_534 - index * 2 } : text(name);
        const value = index === 0 ? text(`{${guids.data}}`) : { at: 2_000 + index * 64, length: 65_534 };
        head.writeUInt32LE(key.at, 20 + index * 12);
        head.writeUInt32LE(value.at, 24 + index * 12);
        head.writeUInt16LE(key.length, 28 + index * 12);
        head.writeUInt16LE(value.length, 30 + index * 12);
      }
      head.copy(item);
      const number = (value: number, length: number): Buffer => {
        const bytes = Buffer.alloc(8);
        bytes.writeBigUInt64LE(BigInt(value));
        return bytes.subarray(0, length);
      };
      // In a region of 2 MiB, behind what the plan has.
      const at = 16 * MIB;
      const region = metadataRegion([
        { guid: guids.fileParameters, bytes: number(MIB + 2 * 2 ** 32, 8) },
        { guid: guids.diskSize, bytes: number(MIB, 8) },
        { guid: guids.logicalSector, bytes: number(512, 4) },
        { guid: guids.physicalSector, bytes: number(4096, 4) },
        { guid: guids.parentLocator, bytes: item },
      ]).map(({ offset, bytes }) => ({ offset: offset - places.metadata + at, bytes }));
      const regions = regionTable([
        { guid: guids.bat, offset: places.bat, length: MIB, required: true },
        { guid: guids.metadata, offset: at, length: 2 * MIB, required: true },
      ]);
      const tables = places.regionTables.map((offset) => ({ offset, bytes: regions }));
      return made({ sizeBytes: MIB }, [...region, ...tables], 20 * MIB);
    },
    result: /^image-not-found.*its parent was not found/,
  },
  "2,047 regions of nearly 4 GiB each": {
    make() {
      const regions = Array.from({ length: 2_045 }, (_unused, index) => ({
        guid: `00000000-0000-0000-0000-${index.toString(16).padStart(12, "0")}`,
        offset: TIB + index * 4 * GIB,
        length: 2 ** 32 - MIB,
        required: false,
      }));
      const table = regionTable([
        { guid: guids.bat, offset: places.bat, length: 9 * MIB, required: true },
        { guid: guids.metadata, offset: places.metadata, length: MIB, required: true },
        ...regions,
      ]);
      // Many blocks, each of which lies over none of them.
      const bytes = Buffer.alloc(8 * MIB);
      for (let index = 0; index < bytes.length / 8; index++) {
        bytes.writeBigUInt64LE(BigInt(64 * MIB + index * MIB) | (index < 200_000 ? 6n : 2n), index * 8);
      }
      const tables = places.regionTables.map((offset) => ({ offset, bytes: table }));
      return made({ sizeBytes: TIB - GIB }, [...tables, { offset: places.bat, bytes }], 2 * TIB);
    },
    result: "read",
  },
  "a chain of 64 files with tables of 4 MiB each": {
    async make() {
      const sizeBytes = 500 * GIB;
      const name = (index: number): string => `${index === 0 ? "hostile" : `d${index}`}.vhdx`;
      for (let index = 0; index < 64; index++) {
        const parent = { parent_linkage: `{${guids.data}}`, relative_path: `.\\${name(index + 1)}` };
        const plan: VhdxPlan = { sizeBytes, ...(index === 63 ? {} : { parent }) };
        const built = buildVhdx(plan);
        // Not there, which the file says in each page of its table.
        const entries = Array.from({ length: 62 }, (_unused, page) => tableEntry(built.entryOf(page * 8_190), 0, GIB));
        await writePieces(scratch.file(name(index)), {
          pieces: [...built.pieces, ...entries],
          sizeBytes: built.sizeBytes,
        });
      }
      return scratch.file("hostile.vhdx");
    },
    result: "read",
  },
};

const metadataLocator = Buffer.from("b7ef4ab09ed1814ab78925b8e9445913", "hex");

test.each(Object.entries(hostile))("%s", async (_name, { make, result }) => {
  const outcome = measure(await make());
  expect(outcome.result).toMatch(result instanceof RegExp ? result : new RegExp(`^${result}$`));
  const more = outcome.peakBytes - tinyBytes;
  expect(more, `${Math.round(more / MIB)} MiB more`).toBeLessThan(boundBytes);
});
