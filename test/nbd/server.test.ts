/** The server through our own client: every image is what it is without NBD between. */
import { createMemoryImage } from "../../src/image/memory.ts";
import { createRawWriter, sizeRawTarget } from "../../src/image/raw.ts";
import { writerConformance } from "../image/conformance.ts";
import { createScratch, type Scratch } from "../storage/scratch.ts";
import { linkedWriter, storage } from "./server-kit.ts";

for (const chunkBytes of [1_021, 65_536]) {
  writerConformance({
    name: `memory image over NBD, ${chunkBytes} bytes at a time`,
    sectorBytes: 512,
    sizeUnit: 1,
    create: async (sizeBytes) => linkedWriter(createMemoryImage(sizeBytes), { chunkBytes }),
    async clean() {},
  });
}

{
  let scratch: Scratch | undefined;
  for (const direct of [true, false]) {
    writerConformance({
      name: `raw file over NBD, ${direct ? "at once" : "beside"}`,
      sectorBytes: 512,
      sizeUnit: 1,
      async create(sizeBytes) {
        scratch = await createScratch();
        const file = await storage.open(scratch.file("disk.raw"), { write: true, exclusive: true });
        const image = createRawWriter(file, storage, await sizeRawTarget(file, storage, sizeBytes));
        return linkedWriter(image, direct ? { file: { fd: file.fd, lanes: storage.lanes } } : {});
      },
      async clean() {
        await scratch?.remove();
      },
    });
  }
}
