/**
 * Files that are cut anywhere, or of which any bit is wrong. BAT and payload have no checksum, so that such a file may still be a valid one of other
 * content: but never content from outside its payload blocks, never anything but a ReplicationError, never without end.
 */
import { describe, expect, test } from "vitest";
import { MIB } from "../../../src/base/units.ts";
import { bytesOf } from "../pieces.ts";
import { flips, hostilePlans, outcome, range } from "./hostile.ts";
import { type BuiltVhdx, buildVhdx, places } from "./kit.ts";

describe.each(hostilePlans)("a file that is $name", ({ plan }) => {
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
      ...range(header1 + 80, header1 + 4096, 31),
      ...range(table1, table1 + 80),
      ...range(table1 + 80, table1 + 64 * 1024, 997),
      ...range(table2, table2 + 80),
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
    // One bitmap, of which the first bits are those of the disk's sectors.
    const bitmapAt = Number(whole.readBigUInt64LE(places.bat + 4096 * 8) >> 20n) * MIB;
    const bitmap = plan.parent === undefined ? [] : [...range(bitmapAt, bitmapAt + (6 * MIB) / 512 / 8, 5)];
    const { errors, read } = await flips(whole, [
      ...range(places.bat, places.bat + 64),
      ...range(places.bat + 4096 * 8, places.bat + 4096 * 8 + 8),
      ...bitmap,
    ]);
    expect(errors + read).toBe(72 + bitmap.length);
    if (plan.log === undefined) expect(errors).toBeGreaterThan(5);
  });

  test("a bit of the log", async () => {
    const { errors, read } = await flips(whole, [
      // Heads and descriptors of two entries, the start and end of the sector of content, and some of everything.
      ...range(places.log, places.log + 200),
      ...range(places.log + 4096, places.log + 4096 + 200),
      ...range(places.log + 8192, places.log + 8192 + 16),
      ...range(places.log + 3 * 4096 - 16, places.log + 3 * 4096),
      ...range(places.log + 200, places.log + 12 * 1024, 61),
    ]);
    // Without a log nobody looks; with one the entry in question is none, and it is the oldest or the newest.
    if (plan.log === undefined) expect(errors).toBe(0);
    else expect(read).toBeGreaterThan(100);
  });
});
