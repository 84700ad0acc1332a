/** Chains of differencing images with a real file system that changes in each: as the disk they are of, to its checker and to libvhdi. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../../src/base/units.ts";
import { openImage } from "../../../src/image/open-image.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "../../storage/scratch.ts";
import { type Piece, readRange } from "../conformance.ts";
import { changedCopy, fileSystems, makeFileSystem, missingTools, sha256 } from "./file-systems.ts";
import { guids, type VhdxPlan, writeVhdx } from "./kit.ts";
import { askLibvhdi, noLibvhdi } from "./libvhdi.ts";

const storage = createNodeStorage();
const ids = [guids.data, "22222222-2222-2222-2222-222222222222", "33333333-3333-3333-3333-333333333333"] as const;

let scratch: Scratch;
beforeAll(async () => {
  scratch = await createScratch();
});
afterAll(() => scratch.remove());

/** Runs of units of which one image differs from another: zeros too, where there was content. */
function differences(from: Buffer | undefined, to: Buffer, unit: number): Piece[] {
  const pieces: Piece[] = [];
  const zeros = Buffer.alloc(unit);
  for (let at = 0; at < to.length; at += unit) {
    const bytes = to.subarray(at, at + unit);
    const before = from?.subarray(at, at + unit) ?? zeros.subarray(0, bytes.length);
    if (bytes.equals(before)) continue;
    const last = pieces.at(-1);
    if (last !== undefined && last.offset + last.bytes.length === at) {
      pieces[pieces.length - 1] = { offset: last.offset, bytes: to.subarray(last.offset, at + bytes.length) };
    } else pieces.push({ offset: at, bytes });
  }
  return pieces;
}

for (const system of fileSystems) {
  const missing = missingTools(system);
  describe.skipIf(missing !== "")(`${system.name}${missing}`, () => {
    test(`a chain of three files${noLibvhdi === "" ? "" : ", without libvhdi"}`, async () => {
      const folder = scratch.file(system.name);
      const first = makeFileSystem(system, folder);
      const second = changedCopy(system, first, join(folder, "second.raw"));
      const third = changedCopy(system, second.raw, join(folder, "third-one.raw"));
      const raws = [first, second.raw, third.raw];
      const blocks = [2, 32, 1];
      for (const [index, raw] of raws.entries()) {
        const parent = raws[index - 1];
        const content = readFileSync(raw);
        const plan: VhdxPlan = {
          ...{ sizeBytes: system.sizeBytes, payloadBlockBytes: (blocks[index] ?? 1) * MIB, dataGuid: ids[index] ?? "" },
          ...(parent === undefined
            ? { pieces: differences(undefined, content, 64 * KIB) }
            : {
                pieces: differences(readFileSync(parent), content, 512),
                parent: { parent_linkage: `{${ids[index - 1] ?? ""}}`, relative_path: `.\\${String(index - 1)}.vhdx` },
              }),
        };
        await writeVhdx(join(folder, `${String(index)}.vhdx`), plan);
      }
      for (const [index, raw] of raws.entries()) {
        const paths = [2, 1, 0].slice(2 - index).map((number) => join(folder, `${String(number)}.vhdx`));
        const image = await openImage(paths[0] ?? "", { storage });
        const ours = join(folder, "read.raw");
        writeFileSync(ours, await readRange(image.reader, 0, image.reader.sizeBytes));
        await image.reader.close();
        expect(sha256(ours)).toBe(sha256(raw));
        system.check(ours);
        if (noLibvhdi === "") {
          expect(askLibvhdi(paths)).toEqual({ sizeBytes: system.sizeBytes, digest: sha256(raw) });
        }
        if (index < 2) continue;
        for (const [name, content] of new Map([...second.files, ...third.files])) {
          expect(system.get(ours, name).equals(content), name).toBe(true);
        }
        // Without what the last file changes it is another disk.
        expect(sha256(raws[1] ?? "")).not.toBe(sha256(raw));
      }
    });
  });
}
