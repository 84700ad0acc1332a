import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, symlink, truncate, writeFile } from "node:fs/promises";
import { relative } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { GIB, TIB } from "../../src/base/units.ts";
import { openImage } from "../../src/image/open-image.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { openNbdReader } from "../../src/nbd/client.ts";
import { parseNbdUri } from "../../src/nbd/nbd-uri.ts";
import { createScratch, hasCommand, type Scratch } from "../storage/scratch.ts";
import { readRange } from "./conformance.ts";

const storage = createNodeStorage();
const noQemu = hasCommand("qemu-nbd", "--version") ? undefined : "no qemu-nbd";
const why = (reason: string | undefined): string => (reason === undefined ? "" : ` (skipped: ${reason})`);

let scratch: Scratch;
beforeEach(async () => {
  scratch = await createScratch();
});
afterEach(() => scratch.remove());

async function failure(path: string): Promise<{ readonly code: string; readonly message: string }> {
  return openImage(path, { storage }).then(
    () => expect.unreachable("opened"),
    (error: unknown) => error as { readonly code: string; readonly message: string },
  );
}

describe("what is no image", () => {
  test("a missing file, a directory, a pipe, a loop of links", async () => {
    expect(await failure(scratch.file("none.raw"))).toMatchObject({ code: "image-not-found" });
    await writeFile(scratch.file("file"), "x");
    expect(await failure(scratch.file("file/below"))).toMatchObject({ code: "image-not-found" });
    await mkdir(scratch.file("dir"));
    expect(await failure(scratch.file("dir"))).toMatchObject({
      code: "image-unreadable",
      message: expect.stringContaining("is a directory"),
    });
    execFileSync("mkfifo", [scratch.file("pipe")]);
    expect(await failure(scratch.file("pipe"))).toMatchObject({ code: "image-unreadable" });
    await symlink("loop", scratch.file("loop"));
    expect(await failure(scratch.file("loop"))).toMatchObject({ code: "image-unreadable" });
  });

  test("a file larger than any disk", async (context) => {
    await writeFile(scratch.file("a.raw"), "");
    try {
      await truncate(scratch.file("a.raw"), 64 * TIB + 1);
    } catch {
      // The file system cannot hold such a file: nothing to refuse.
      return context.skip("the file system has no files of 64 TiB");
    }
    expect(await failure(scratch.file("a.raw"))).toMatchObject({ code: "limit-exceeded" });
  });
});

describe("raw images", () => {
  test("C-22 open with their size to the byte", async () => {
    for (const sizeBytes of [0, 1, 511, GIB - 1, GIB + 512, GIB + 4096]) {
      await writeFile(scratch.file("a.img"), "");
      await truncate(scratch.file("a.img"), sizeBytes);
      const image = await openImage(scratch.file("a.img"), { storage });
      expect(image.reader.sizeBytes).toBe(sizeBytes);
      expect(image.format).toBe("raw");
      await image.reader.close();
    }
  });

  test("have one identity under all their names, and an absolute path", async () => {
    await writeFile(scratch.file("a.img"), "content");
    await writeFile(scratch.file("b.img"), "content");
    await symlink("a.img", scratch.file("c.img"));
    const identities: string[] = [];
    for (const name of ["a.img", "b.img", "c.img"]) {
      const image = await openImage(relative(process.cwd(), scratch.file(name)), { storage });
      expect(image.path).toBe(scratch.file(name));
      identities.push(image.identity);
      await image.reader.close();
    }
    expect(identities[0]).toBe(identities[2]);
    expect(identities[0]).not.toBe(identities[1]);
  });

  test("C-16 a raw file named like another format is refused, unless told", async () => {
    for (const name of ["disk.vhdx", "disk.vhd", "disk.avhdx", "disk.qcow2", "disk-flat.vmdk"]) {
      await writeFile(scratch.file(name), Buffer.alloc(8192, 1));
      expect(await failure(scratch.file(name))).toMatchObject({
        code: "image-format-mismatch",
        message: expect.stringContaining("--format raw"),
      });
      const image = await openImage(scratch.file(name), { storage, format: "raw" });
      expect(await readRange(image.reader, 0, 8192)).toEqual(new Uint8Array(8192).fill(1));
      await image.reader.close();
    }
  });

  test("a raw disk that begins like another format is refused, unless told", async () => {
    await writeFile(scratch.file("a.raw"), Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(8188)]));
    expect(await failure(scratch.file("a.raw"))).toMatchObject({ code: "image-format-unsupported" });
    const image = await openImage(scratch.file("a.raw"), { storage, format: "raw" });
    expect(image.reader.sizeBytes).toBe(8192);
    await image.reader.close();
  });
});

describe.skipIf(noQemu !== undefined)(`images of qemu-img${why(noQemu)}`, () => {
  test.each([
    ["qcow2", "a QCOW2 image", []],
    ["vmdk", "a VMDK image", []],
    ["vmdk", "a VMDK image", ["-o", "subformat=monolithicFlat"]],
    ["vdi", "a VDI image", []],
    ["qed", "a QED image", []],
    ["parallels", "a Parallels image", []],
  ] as const)(
    "C-23 %s is refused as %s %j, and the first command in the message makes it readable",
    async (format, title, options) => {
      const path = scratch.file("image");
      execFileSync("qemu-img", ["create", "-q", "-f", format, ...options, path, "16M"]);
      const error = await failure(path);
      expect(error).toMatchObject({ code: "image-format-unsupported", message: expect.stringContaining(title) });
      const command = /^ {2}(qemu-nbd .*)$/m.exec(error.message)?.[1] ?? "false";
      const pidFile = scratch.file("pid");
      execFileSync("sh", ["-c", command.replace("qemu-nbd", `qemu-nbd --fork --pid-file=${pidFile}`)], {
        stdio: "pipe",
      });
      try {
        const served = await openNbdReader({ address: parseNbdUri(`nbd+unix:///?socket=${path}.sock`) });
        expect(served.sizeBytes).toBeGreaterThanOrEqual(16 * 2 ** 20);
        expect(served.isReadOnly).toBe(true);
        await served.close();
      } finally {
        process.kill(Number(readFileSync(pidFile, "utf8")));
      }
    },
  );
});
