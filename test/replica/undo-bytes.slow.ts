/** What keeping old content costs on disk: hardly more than the bytes that were overwritten. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { randomBytes } from "../random.ts";
import { PairKit } from "../replication/pair-kit.ts";

const size = 64 * MIB;
const part = 4 * KIB;
/** Coprime to the number of parts: a walk over all of them, scattered. */
const stride = 1_181;

test("5 % of the parts of an incompressible image overwritten: an undo log of at most 1.1 times their bytes", async (t) => {
  const kit = await PairKit.create();
  t.onTestFinished(async () => {
    expect(await kit.close(), "every slot is back").toBe(true);
  });
  const image = createMemoryImage(size);
  await image.write(randomBytes(size), 0);
  expect(await kit.send(image)).toMatchObject({ point: 1 });
  const parts = size / part;
  const count = Math.floor(parts * 0.05);
  for (let index = 0; index < count; index++) await image.write(randomBytes(part), ((index * stride) % parts) * part);
  const changed = count * part;
  expect(await kit.send(image)).toMatchObject({ point: 2, funnel: { changedBytes: changed } });
  await kit.idle();

  const points = join(kit.folder, "store/disks/disk/points");
  expect(readdirSync(points).filter((name) => name.endsWith(".undo"))).toEqual(["0000000001.undo"]);
  const { size: bytes } = statSync(join(points, "0000000001.undo"));
  // What cannot be compressed is all there.
  expect(bytes / changed).toBeGreaterThan(1);
  expect(bytes / changed).toBeLessThanOrEqual(1.1);
});
