/** VHDX files that qemu-img makes, of every shape it offers, and real file systems in them: the content is that of the raw image. */
import { execFileSync } from "node:child_process";
import { closeSync, ftruncateSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { GIB, KIB, MIB, TIB } from "../../../src/base/units.ts";
import { openImage } from "../../../src/image/open-image.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { randomBytes } from "../../random.ts";
import { createScratch, hasCommand, type Scratch } from "../../storage/scratch.ts";
import { readRange } from "../conformance.ts";
import { fileSystems, makeFileSystem, missingTools, sha256 } from "./file-systems.ts";
import { contentDigest } from "./samples.ts";

const storage = createNodeStorage();
const noQemu = hasCommand("qemu-img", "--version") ? "" : " (skipped: no qemu-img)";
/** No multiple of a payload block, nor of 4096. */
const sizeBytes = 37 * MIB + 512;

const types = ["dynamic", "fixed"];
/** MiB */
const blocks = [1, 2, 8, 16, 32, 256];

let scratch: Scratch;
let source: string;
let digest: string;
beforeAll(async () => {
  scratch = await createScratch();
  source = scratch.file("source.raw");
  const fd = openSync(source, "w");
  ftruncateSync(fd, sizeBytes);
  for (let at = 0; at < sizeBytes; at += 2 * MIB)
    writeSync(fd, randomBytes(64 * KIB).subarray(0, sizeBytes - at), 0, undefined, at);
  writeSync(fd, Buffer.alloc(512, "TAIL"), 0, 512, sizeBytes - 512);
  closeSync(fd);
  digest = sha256(source);
});
afterAll(() => scratch.remove());

async function digestOf(path: string): Promise<string> {
  const image = await openImage(path, { storage });
  expect(image.format).toBe("vhdx");
  const found = await contentDigest(image.reader);
  await image.reader.close();
  return found;
}

function convert(raw: string, options: string): string {
  const path = scratch.file("made.vhdx");
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, path]);
  return path;
}

describe.skipIf(noQemu !== "")(`files of qemu-img${noQemu}`, () => {
  test.each(types.flatMap((type) => blocks.map((block) => ({ type, block }))))(
    "C-11 $type, payload blocks of $block MiB",
    async ({ type, block }) => {
      expect(await digestOf(convert(source, `subformat=${type},block_size=${block}M`))).toBe(digest);
    },
  );

  test.each(["log_size=1M", "log_size=2M", "log_size=64M", "block_state_zero=off"])("%s", async (options) => {
    expect(await digestOf(convert(source, `subformat=dynamic,${options}`))).toBe(digest);
  });

  for (const system of fileSystems) {
    const missing = missingTools(system);
    describe.skipIf(missing !== "")(`with ${system.name} in them${missing}`, () => {
      let raw: string;
      let right: string;
      beforeAll(() => {
        raw = makeFileSystem(system, scratch.file(system.name));
        system.check(raw);
        right = sha256(raw);
      });

      test.each(types.flatMap((type) => blocks.map((block) => ({ type, block }))))(
        "$type, payload blocks of $block MiB, logs of all sizes",
        async ({ type, block }) => {
          for (const log of [1, 3, 64]) {
            const path = convert(raw, `subformat=${type},block_size=${block}M,log_size=${log}M`);
            expect(await digestOf(path), `log of ${log} MiB`).toBe(right);
          }
        },
      );

      test("as qemu-img itself gives it back", () => {
        const back = scratch.file("back.raw");
        execFileSync("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", convert(raw, "subformat=dynamic"), back]);
        expect(sha256(back)).toBe(right);
      });
    });
  }

  test.each([512, 4096 - 512, MIB + 512, 32 * MIB - 512, 2 * GIB + 512, 3 * TIB + 512])(
    "C-22 a disk of %d bytes",
    async (bytes) => {
      const raw = scratch.file("odd.raw");
      writeFileSync(raw, "");
      truncateSync(raw, bytes);
      const fd = openSync(raw, "r+");
      writeSync(fd, Buffer.alloc(512, "TAIL"), 0, 512, bytes - 512);
      closeSync(fd);
      const image = await openImage(convert(raw, "subformat=dynamic"), { storage });
      expect(image.reader.sizeBytes).toBe(bytes);
      expect(Buffer.from(await readRange(image.reader, bytes - 512, 512)).toString()).toBe("TAIL".repeat(128));
      const start = await readRange(image.reader, 0, Math.min(bytes - 512, MIB));
      expect(start.every((byte) => byte === 0)).toBe(true);
      await image.reader.close();
    },
  );
});
