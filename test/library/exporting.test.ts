/** A point that is served although nobody can tell any more which of its blocks is not what it was. */
import { closeSync, existsSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { repair } from "../../src/library/points.ts";
import { afterEach, beforeEach, expect, test } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { type ExportedPoint, exportPoint } from "../../src/library/exporting.ts";
import { restorePoint } from "../../src/library/points.ts";
import { randomBytes } from "../random.ts";
import { hastyClock, PairKit } from "../replication/pair-kit.ts";

let kit: PairKit;

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  await kit.close();
});

/** Point 1 has lost a block, whose digest was made of what had rotted; point 2 is good. */
async function makePoints(): Promise<void> {
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(8 * MIB), 0);
  await kit.send(image, { blockBytes: 64 * KIB });
  await kit.idle();
  const disk = join(kit.folder, "store/disks/disk");
  const fd = openSync(join(disk, "replica.raw"), "r+");
  writeSync(fd, Buffer.from("rotten"), 0, 6, 4 * MIB);
  closeSync(fd);
  // Without a table all of it is made anew of what is there.
  rmSync(join(disk, "pages"));
  // Its root shows that the replica is not point 1 any more; where, nobody knows.
  await expect(kit.send(image)).rejects.toMatchObject({ code: "replica-changed" });
  await kit.idle();
  await repair(kit.store, "disk", { engine: kit.receiving });
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBlockBytes: 64 * KIB } });
  await kit.idle();
}

function serve(point: number): Promise<ExportedPoint> {
  const { storage, random } = kit.receiving;
  return exportPoint(kit.store, {
    engine: { storage, random, clock: hastyClock, log: silentLogger },
    disk: "disk",
    point,
    place: { kind: "unix", path: join(kit.folder, `${point}.sock`) },
  });
}

test("a point whose digests are not those it was committed with is told, though each block fits its digest", async () => {
  await makePoints();
  const reader = await kit.store.openPoint("disk", 1);
  await reader.read(Buffer.alloc(64 * KIB), 4 * MIB);
  await reader.close();
  const rotten = await serve(1);
  await expect(rotten.checked).rejects.toMatchObject({ code: "store-damaged", details: { disk: "disk", point: 1 } });
  await rotten.close();
  const good = await serve(2);
  await good.checked;
  await good.close();
});

test("what is left of such a point is restored when it is asked for, and never taken for the point", async () => {
  await makePoints();
  const options = { engine: kit.receiving, disk: "disk", point: 1, target: join(kit.folder, "out.raw") } as const;
  await expect(restorePoint(kit.store, options)).rejects.toMatchObject({ code: "store-damaged" });
  expect(existsSync(options.target)).toBe(false);
  const report = await restorePoint(kit.store, { ...options, salvage: true });
  expect(report).toMatchObject({ rootMatches: false, lostRanges: 0 });
  const content = readFileSync(options.target);
  expect(content.toString("latin1", 4 * MIB, 4 * MIB + 6)).toBe("rotten");
  const now = kit.replica();
  expect(content.length).toBe(now.length);
  for (const at of [0, 4 * MIB + 6]) expect(content.compare(now, at, at + 4 * MIB - 6, at, at + 4 * MIB - 6)).toBe(0);
});

test("closing an export ends the look at its digests", async () => {
  await makePoints();
  const served = await serve(1);
  const closed = served.close();
  await served.checked;
  await closed;
});
