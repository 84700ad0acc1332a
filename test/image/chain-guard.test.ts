/** C-82: what builds upon each other is watched as a whole: a file of the chain that is written to, replaced or merged away in the middle of a cycle ends it. */
import { renameSync, statSync, unlinkSync, utimesSync } from "node:fs";
import { open, writeFile } from "node:fs/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Clock } from "../../src/base/clock.ts";
import { MIB } from "../../src/base/units.ts";
import { type OpenImage, openImage } from "../../src/image/open-image.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "../storage/scratch.ts";
import { guids, writeVhdx } from "./vhdx/kit.ts";

const storage = createNodeStorage();
const ids = [guids.data, "22222222-2222-2222-2222-222222222222", "33333333-3333-3333-3333-333333333333"] as const;

let scratch: Scratch;
let image: OpenImage | undefined;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(async () => {
  await image?.reader.close();
  image = undefined;
  await scratch.remove();
});

/** Base, a layer upon it, and the tip; opened by the tip. */
async function openChain(): Promise<{ readonly paths: readonly string[]; readonly opened: OpenImage }> {
  const paths = ids.map((_id, index) => scratch.file(`${String(index)}.vhdx`));
  for (const [index, path] of paths.entries()) {
    const parent = ids[index - 1];
    await writeVhdx(path, {
      ...{ sizeBytes: 4 * MIB, payloadBlockBytes: MIB, dataGuid: ids[index] ?? "" },
      pieces: [{ offset: index * MIB, bytes: Buffer.alloc(MIB, index + 1) }],
      ...(parent === undefined
        ? {}
        : { parent: { parent_linkage: `{${parent}}`, relative_path: `.\\${String(index - 1)}.vhdx` } }),
    });
  }
  // All was written long ago, by the clock of the guard.
  let now = Math.max(...paths.map((path) => Number(statSync(path, { bigint: true }).ctimeNs))) / 1e6 + 1_000;
  const clock: Clock = {
    now: () => now,
    monotonic: () => now,
    sleep: (millis) => {
      now += millis;
      return Promise.resolve();
    },
    every: () => () => undefined,
  };
  image = await openImage(paths[2] ?? "", { storage, clock });
  await image.guard.begin();
  await image.guard.check();
  return { paths, opened: image };
}

const layers = [
  ["the base", 0],
  ["the layer between", 1],
  ["the tip", 2],
] as const;

test.each(layers)("%s is written to, and its mtime put back", async (_name, layer) => {
  const { paths, opened } = await openChain();
  const path = paths[layer] ?? "";
  const { atime, mtime } = statSync(path);
  const file = await open(path, "r+");
  await file.write(Buffer.alloc(1, 7), 0, 1, statSync(path).size - 1);
  await file.close();
  utimesSync(path, atime, mtime);
  await expect(opened.guard.check()).rejects.toMatchObject({
    code: "image-changed",
    message: expect.stringContaining(path),
  });
});

test.each(layers)("%s is replaced by another file", async (_name, layer) => {
  const { paths, opened } = await openChain();
  const path = paths[layer] ?? "";
  await writeFile(`${path}.new`, Buffer.alloc(MIB));
  renameSync(`${path}.new`, path);
  await expect(opened.guard.check()).rejects.toMatchObject({ code: "image-changed" });
});

test("the tip is merged into the layer below, and is gone: what is opened then is the new tip", async () => {
  const { paths, opened } = await openChain();
  const [, below = "", tip = ""] = paths;
  const file = await open(below, "r+");
  await file.write(Buffer.alloc(1, 7), 0, 1, statSync(below).size - 1);
  await file.close();
  unlinkSync(tip);
  await expect(opened.guard.check()).rejects.toMatchObject({ code: "image-changed" });
  await expect(openImage(tip, { storage })).rejects.toMatchObject({ code: "image-not-found" });
});

test("a layer that is added upon the tip changes nothing of what is read", async () => {
  const { paths, opened } = await openChain();
  await writeVhdx(scratch.file("3.vhdx"), {
    ...{ sizeBytes: 4 * MIB, payloadBlockBytes: MIB, dataGuid: "44444444-4444-4444-4444-444444444444" },
    pieces: [{ offset: 0, bytes: Buffer.alloc(MIB, 9) }],
    parent: { parent_linkage: `{${ids[2]}}`, relative_path: ".\\2.vhdx" },
  });
  await opened.guard.check();
  const bytes = Buffer.alloc(4 * MIB);
  await opened.reader.read(bytes, 0);
  expect([0, 1, 2, 3].map((block) => bytes[block * MIB])).toEqual([1, 2, 3, 0]);
  expect(paths).toHaveLength(3);
});
