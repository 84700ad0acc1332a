/** Images of real tools give the content that other readers give, where those are right. */
import { createHash } from "node:crypto";
import { readFileSync, renameSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { openImage } from "../../../src/image/open-image.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { createScratch, type Scratch } from "../../storage/scratch.ts";
import { extentsOf, readRange } from "../conformance.ts";
import { contentDigest, noSamples, samples, unpackSample, vhdSamples } from "./samples.ts";

const storage = createNodeStorage();
let scratch: Scratch;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(() => scratch.remove());

describe.skipIf(noSamples !== undefined)(`images of real tools (${noSamples ?? "beside this repository"})`, () => {
  test.each([...samples.filter(({ large }) => large !== true), ...vhdSamples])(
    "C-08 C-22 C-23 $file: right, and the file stays as it is",
    async ({ file, parent, digest }) => {
      if (parent !== undefined) unpackSample(parent, scratch.path);
      const path = unpackSample(file, scratch.path);
      const before = createHash("sha256").update(readFileSync(path)).digest("hex");
      const image = await openImage(path, { storage });
      expect(image.format).toBe(file.endsWith(".vhd") ? "vhd" : "vhdx");
      expect(await contentDigest(image.reader)).toBe(digest);
      await image.reader.close();
      expect(createHash("sha256").update(readFileSync(path)).digest("hex")).toBe(before);
    },
  );

  test.each(["qemu/hyperv2012r2-dynamic.vhd", "qemu/virtualpc-dynamic.vhd"])(
    "C-22 %s is an empty disk of the size it says, which its geometry does not",
    async (file) => {
      const image = await openImage(unpackSample(file, scratch.path), { storage });
      expect(image.reader.sizeBytes).toBe(136_365_211_648);
      expect(await extentsOf(image.reader, 0, image.reader.sizeBytes)).toEqual([
        { kind: "hole", offset: 0, length: 136_365_211_648 },
      ]);
      await image.reader.close();
    },
  );

  test("C-23 a VHD under a wrong name is what its content says", async () => {
    renameSync(unpackSample("dfvfs/ntfs-fixed.vhd", scratch.path), scratch.file("disk.raw"));
    const image = await openImage(scratch.file("disk.raw"), { storage });
    expect(image.format).toBe("vhd");
    // Not a raw disk with a sector more.
    expect(image.reader.sizeBytes).toBe(4_194_304);
    await image.reader.close();
  });

  test("C-04 the partition table of a disk whose log was not written out is there", async () => {
    const image = await openImage(unpackSample("discutils/vhdx-log-replay.vhdx", scratch.path), { storage });
    const sector = Buffer.from(await readRange(image.reader, 0, 512));
    expect(sector.readUInt16LE(510)).toBe(0xaa55);
    await image.reader.close();
  });

  test("C-05 cut below what its log says was flushed it is refused", async () => {
    const path = unpackSample("discutils/vhdx-log-replay.vhdx", scratch.path);
    const whole = await storage.open(path, { write: true });
    for (const sizeBytes of [36 * 2 ** 20 - 1, 20 * 2 ** 20]) {
      await whole.truncate(sizeBytes);
      await expect(openImage(path, { storage })).rejects.toMatchObject({
        code: "image-damaged",
        message: expect.stringContaining("37748736"),
      });
    }
    await whole.close();
  });

  test("C-07 a log of which the only entry is damaged", async () => {
    const path = unpackSample("qemu/iotest-dirtylog-10G-4M.vhdx", scratch.path);
    const file = await storage.open(path, { write: true });
    await file.write(Buffer.from("!"), 2 ** 20 + 49_152 + 100);
    await file.close();
    await expect(openImage(path, { storage })).rejects.toMatchObject({
      code: "image-damaged",
      message: expect.stringContaining("log present but no valid log sequence"),
    });
  });

  test("C-13 the parent is found by its relative path of Windows; when it is gone, every path is named", async () => {
    unpackSample("dfvfs/ntfs-parent.vhdx", scratch.path);
    const path = unpackSample("dfvfs/ntfs-differential.vhdx", scratch.path);
    await (await openImage(path, { storage })).reader.close();
    renameSync(scratch.file("ntfs-parent.vhdx"), scratch.file("elsewhere.vhdx"));
    await expect(openImage(path, { storage })).rejects.toMatchObject({
      code: "image-not-found",
      message: expect.stringMatching(/ntfs-parent\.vhdx.*C:\\Projects.*[0-9a-f]{8}-/),
    });
  });

  test("C-16 the kind comes from the content, whatever the name", async () => {
    unpackSample("dfvfs/ntfs-parent.vhdx", scratch.path);
    for (const [file, name, at] of [
      ["dfvfs/ntfs-differential.vhdx", "base.vhdx", 4],
      ["dfvfs/ntfs-fixed.vhdx", "x.avhdx", 2],
      ["dfvfs/ntfs-dynamic.vhdx", "disk.raw", 1],
    ] as const) {
      renameSync(unpackSample(file, scratch.path), scratch.file(name));
      const image = await openImage(scratch.file(name), { storage });
      expect(await contentDigest(image.reader)).toBe(samples[at]?.digest);
      await image.reader.close();
    }
  });
});
