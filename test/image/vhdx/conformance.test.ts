/** VHDX files against what every reader must do. */
import { mkdirSync } from "node:fs";
import { KIB, MIB } from "../../../src/base/units.ts";
import { openVhdx } from "../../../src/image/vhdx/open.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "../../storage/scratch.ts";
import { type Piece, readerConformance } from "../conformance.ts";
import { guids, writeVhdx } from "./kit.ts";

const storage = createNodeStorage();

for (const sectorBytes of [512, 4096] as const) {
  for (const payloadBlockBytes of [MIB, 32 * MIB, 256 * MIB]) {
    let scratch: Scratch | undefined;
    readerConformance({
      name: `VHDX, payload blocks of ${payloadBlockBytes / MIB} MiB`,
      sectorBytes,
      sizeUnit: sectorBytes,
      async open(sizeBytes, pieces) {
        scratch = await createScratch();
        const path = scratch.file("disk.vhdx");
        await writeVhdx(path, { sizeBytes, payloadBlockBytes, sectorBytes, pieces });
        return (await openVhdx(await storage.open(path), storage)).reader;
      },
      async clean() {
        await scratch?.remove();
      },
    });
  }

  let scratch: Scratch | undefined;
  readerConformance({
    name: "VHDX over its parent over its parent",
    sectorBytes,
    sizeUnit: sectorBytes,
    async open(sizeBytes, pieces) {
      scratch = await createScratch();
      mkdirSync(scratch.file("base"));
      const shares = [0, 1, 2].map((share) =>
        sharesOf(pieces, sectorBytes).filter((_piece, index) => index % 3 === share),
      );
      const size = { sizeBytes, sectorBytes };
      await writeVhdx(scratch.file("base/a.vhdx"), { ...size, payloadBlockBytes: 2 * MIB, pieces: shares[0] ?? [] });
      await writeVhdx(scratch.file("b.avhdx"), {
        ...size,
        dataGuid: "22222222-2222-2222-2222-222222222222",
        parent: { parent_linkage: `{${guids.data}}`, relative_path: ".\\base\\a.vhdx" },
        pieces: shares[1] ?? [],
      });
      await writeVhdx(scratch.file("c.avhdx"), {
        ...size,
        payloadBlockBytes: 8 * MIB,
        dataGuid: "33333333-3333-3333-3333-333333333333",
        parent: { parent_linkage: "{22222222-2222-2222-2222-222222222222}", absolute_win32_path: "C:\\vm\\b.avhdx" },
        pieces: shares[2] ?? [],
      });
      return (await openVhdx(await storage.open(scratch.file("c.avhdx")), storage)).reader;
    },
    async clean() {
      await scratch?.remove();
    },
  });
}

/** The pieces cut at sectors, for files that have some sectors each; what of a sector is not in a piece is zero. */
function sharesOf(pieces: readonly Piece[], sectorBytes: number): Piece[] {
  const sectors = new Map<number, Uint8Array>();
  for (const { offset, bytes } of pieces) {
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done;
      const sector = Math.floor(at / sectorBytes);
      const within = at - sector * sectorBytes;
      const length = Math.min(bytes.length - done, sectorBytes - within);
      const content = sectors.get(sector) ?? new Uint8Array(sectorBytes);
      content.set(bytes.subarray(done, done + length), within);
      sectors.set(sector, content);
      done += length;
    }
  }
  // Neighbours stay together up to 8 KiB, so that runs of both kinds of length come up.
  const together = 8 * KIB;
  const made: Piece[] = [];
  for (const sector of [...sectors.keys()].sort((a, b) => a - b)) {
    const bytes = sectors.get(sector) ?? new Uint8Array(0);
    const last = made.at(-1);
    const offset = sector * sectorBytes;
    if (last !== undefined && last.offset + last.bytes.length === offset && offset % together !== 0) {
      made[made.length - 1] = { offset: last.offset, bytes: Buffer.concat([last.bytes, bytes]) };
    } else made.push({ offset, bytes });
  }
  return made;
}
