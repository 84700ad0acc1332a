/**
 * Files that are cut anywhere, or of which any bit is wrong. BAT and payload have no checksum, so that such a file may still be a valid one of other
 * content: but never content from outside its payload blocks, never anything but a ReplicationError, never without end.
 */
import { describe, expect, test } from "vitest";
import { MIB } from "../../../src/base/units.ts";
import { ReplicationError } from "../../../src/base/errors.ts";
import { extentsOf, readRange } from "../conformance.ts";
import { bytesOf } from "../pieces.ts";
import { type BuiltVhdx, buildVhdx, guids, openBytes, places, type VhdxPlan } from "./kit.ts";

/** All content of payload blocks; nothing else of the files consists of it. */
const fill = 0xa5;
const sizeBytes = 6 * MIB;
const filled = (offset: number, length: number) => ({ offset, bytes: Buffer.alloc(length, fill) });

const parentPlan: VhdxPlan = { sizeBytes, pieces: [filled(0, 2 * MIB)] };
const plans: Readonly<Record<string, VhdxPlan>> = {
  dynamic: { sizeBytes, pieces: [filled(0, MIB), filled(3 * MIB, 2 * MIB)] },
  differencing: {
    sizeBytes,
    dataGuid: "77777777-7777-7777-7777-777777777777",
    parent: { parent_linkage: `{${guids.data}}`, relative_path: ".\\parent.vhdx" },
    pieces: [filled(512, 1024), filled(4 * MIB, 8192)],
  },
};
const parent = { "/images/parent.vhdx": bytesOf(buildVhdx(parentPlan)) };

function withLog(plan: VhdxPlan): VhdxPlan {
  const built = buildVhdx(plan);
  const page = Buffer.alloc(4096);
  for (const piece of built.pieces) {
    if (piece.offset >= places.bat && piece.offset < places.bat + 4096)
      page.set(piece.bytes, piece.offset - places.bat);
  }
  const entry = { tail: 0, flushed: built.sizeBytes, last: built.sizeBytes };
  const zeros = [{ offset: places.bat + 8192, length: 4096 }];
  return {
    ...plan,
    log: [
      { ...entry, sequence: 5n, zeros },
      { ...entry, sequence: 6n, zeros, sectors: [{ offset: places.bat, bytes: page }] },
    ],
  };
}

/** What a reader gives of it: an error, or how much of it is content. */
async function outcome(bytes: Uint8Array): Promise<"error" | "read"> {
  try {
    const { reader } = await openBytes(bytes, parent);
    // A flipped bit may make a disk of any size.
    const length = Math.min(reader.sizeBytes, 2 * sizeBytes);
    await extentsOf(reader, 0, length);
    reader.runs?.(0, length);
    // Both ends of each payload block.
    for (let offset = 0; offset < length; offset += MIB - 8192 === offset % MIB ? 8192 : MIB - 8192) {
      const some = await readRange(reader, offset, Math.min(8192, length - offset));
      const strange = some.findIndex((byte) => byte !== 0 && byte !== fill);
      if (strange >= 0) throw new Error(`byte ${String(some[strange])} at ${offset + strange} is of no payload block`);
    }
    await reader.close();
    return "read";
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return "error";
  }
}

async function flips(
  bytes: Buffer,
  places: Iterable<number>,
): Promise<{ readonly errors: number; readonly read: number }> {
  let errors = 0;
  let read = 0;
  for (const at of places) {
    const before = bytes[at] ?? 0;
    // Another bit at each place, all eight over eight neighbours.
    bytes[at] = before ^ (1 << ((at * 5) % 8));
    try {
      if ((await outcome(bytes)) === "error") errors++;
      else read++;
    } catch (error) {
      throw new Error(`byte ${at} flipped`, { cause: error });
    } finally {
      bytes[at] = before;
    }
  }
  return { errors, read };
}

function* range(start: number, end: number, step = 1): Generator<number> {
  for (let at = start; at < end; at += step) yield at;
}

describe.each(
  Object.entries(plans).flatMap(([name, plan]) => [
    { name, plan },
    { name: `${name}, with a log`, plan: withLog(plan) },
  ]),
)("a file that is $name", ({ plan }) => {
  const built: BuiltVhdx = buildVhdx(plan);
  const whole = bytesOf(built);

  test("reads when nothing is wrong with it", async () => {
    expect(await outcome(whole)).toBe("read");
  });

  test("cut at each 4 KiB", async () => {
    for (let length = 0; length < whole.length; length += 4096) {
      const result = await outcome(whole.subarray(0, length)).catch((error: unknown) => {
        throw new Error(`cut to ${length}`, { cause: error });
      });
      // What holds content cannot be missing.
      if (length < places.bat) expect(`${length} ${result}`).toBe(`${length} error`);
    }
    // The last payload block of the other ends in sectors that are the parent's.
    if (plan.parent === undefined) expect(await outcome(whole.subarray(0, whole.length - 1))).toBe("error");
  });

  test("a bit of the header section", async () => {
    // One damaged copy of either is no harm.
    const [header1, header2] = places.headers;
    const [table1, table2] = places.regionTables;
    const once = await flips(whole, [
      ...range(8, 520, 7),
      ...range(header1, header1 + 80),
      ...range(table1, table1 + 80),
      ...range(table2 + 80, table2 + 64 * 1024, 997),
    ]);
    expect(once.errors).toBe(0);
    expect((await flips(whole, range(0, 8))).errors).toBe(8);
    // The header in use: the other one says the same, but an older one of a log is none of this log.
    const used = await flips(whole, [...range(header2, header2 + 80), ...range(header2 + 80, header2 + 4096, 31)]);
    expect(used.errors).toBe(0);
  });

  test("a bit of the metadata", async () => {
    const items = places.metadata + 64 * 1024;
    const { errors } = await flips(whole, [
      ...range(places.metadata, places.metadata + 200),
      ...range(items, items + 200),
    ]);
    expect(errors).toBeGreaterThan(100);
  });

  test("a bit of BAT or sector bitmap", async () => {
    const { errors, read } = await flips(whole, [
      ...range(places.bat, places.bat + 64),
      ...range(places.bat + 4096 * 8, places.bat + 4096 * 8 + 8),
    ]);
    expect(errors + read).toBe(72);
    if (plan.log === undefined) expect(errors).toBeGreaterThan(5);
  });

  test("a bit of the log", async () => {
    const { errors, read } = await flips(whole, [
      ...range(places.log, places.log + 200),
      ...range(places.log + 200, places.log + 12 * 1024, 61),
    ]);
    // Without a log nobody looks; with one the entry in question is none, and it is the oldest or the newest.
    if (plan.log === undefined) expect(errors).toBe(0);
    else expect(read).toBeGreaterThan(100);
  });
});
