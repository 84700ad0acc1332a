import { truncate, writeFile } from "node:fs/promises";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createRawWriter, sizeRawTarget } from "../../src/image/raw.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { attachLoop, createScratch, type Scratch, whyNoLoop } from "../storage/scratch.ts";
import { writerConformance } from "./conformance.ts";

const noLoop = await whyNoLoop();

for (const sectorBytes of [512, 4096] as const) {
  writerConformance({
    name: "memory image",
    sectorBytes,
    sizeUnit: 1,
    sizeBytesMax: 64 * 2 ** 40,
    create: async (sizeBytes) => createMemoryImage(sizeBytes, { sectorBytes }),
    async clean() {},
  });
}

for (const { name, storage } of [
  { name: "raw file", storage: createNodeStorage() },
  { name: "raw file without native calls", storage: createNodeStorage({ linux: { missing: "left out by the test" } }) },
]) {
  let scratch: Scratch | undefined;
  writerConformance({
    name,
    sectorBytes: 512,
    sizeUnit: 1,
    // One extent of data of 2^41 bytes is all the second can say.
    sizeBytesMax: 2 ** 41,
    async create(sizeBytes) {
      scratch = await createScratch();
      const file = await storage.open(scratch.file("disk.raw"), { write: true, exclusive: true });
      return createRawWriter(file, storage, await sizeRawTarget(file, storage, sizeBytes));
    },
    async clean() {
      await scratch?.remove();
    },
  });
}

for (const sectorBytes of [512, 4096] as const) {
  const storage = createNodeStorage();
  let undo: (() => Promise<void>) | undefined;
  writerConformance({
    name: "loop device",
    sectorBytes,
    sizeUnit: sectorBytes,
    skip: noLoop,
    async create(sizeBytes) {
      const scratch = await createScratch();
      const backing = scratch.file("backing.raw");
      await writeFile(backing, "");
      // A loop device over an empty file has no geometry: one sector at least, the disk may be shorter.
      await truncate(backing, Math.max(sizeBytes, 4096));
      const loop = attachLoop(backing, sectorBytes);
      undo = async () => {
        loop.detach();
        await scratch.remove();
      };
      const file = await storage.open(loop.path, { write: true, holdDevice: true });
      return createRawWriter(file, storage, await sizeRawTarget(file, storage, sizeBytes));
    },
    async clean() {
      await undo?.();
      undo = undefined;
    },
  });
}
