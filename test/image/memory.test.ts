import { expect, test } from "vitest";
import { TIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/testing/index.ts";
import { extentsOf, readRange } from "./conformance.ts";

test("a disk of 64 TiB costs what was written, and zeroing it whole empties it", async () => {
  const disk = createMemoryImage(64 * TIB, { sectorBytes: 4096 });
  for (let piece = 0; piece < 64; piece++) await disk.write(Uint8Array.of(piece + 1), piece * TIB + 5);
  const extents = await extentsOf(disk, 0, disk.sizeBytes);
  expect(extents.filter((extent) => extent.kind === "data").map((extent) => extent.length)).toEqual(
    new Array(64).fill(4096),
  );
  expect(await readRange(disk, 63 * TIB + 4, 3)).toEqual(Uint8Array.of(0, 64, 0));
  await disk.zero(0, disk.sizeBytes);
  expect(await extentsOf(disk, 0, disk.sizeBytes)).toEqual([{ kind: "hole", offset: 0, length: 64 * TIB }]);
});

test("a write while extents are consumed is seen ahead and never behind", async () => {
  const disk = createMemoryImage(64 * 4096);
  await disk.write(Uint8Array.of(1), 0);
  const seen: string[] = [];
  for await (const extent of disk.extents(0, disk.sizeBytes)) {
    seen.push(`${extent.kind} ${extent.offset / 4096}+${extent.length / 4096}`);
    if (extent.offset === 0) await disk.write(Uint8Array.of(1), 10 * 4096);
  }
  expect(seen).toEqual(["data 0+1", "hole 1+9", "data 10+1", "hole 11+53"]);
});

test("the content outlives close", async () => {
  const disk = createMemoryImage(4096);
  await disk.write(Uint8Array.of(7), 1);
  await disk.close();
  expect(await readRange(disk, 0, 3)).toEqual(Uint8Array.of(0, 7, 0));
});
