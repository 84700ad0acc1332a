/** VHDX files that qemu-img makes, of every shape it offers, and real file systems in them: the content is that of the raw image. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KIB, MIB } from "../../../src/base/units.ts";
import { openImage } from "../../../src/image/open-image.ts";
import { createNodeStorage } from "../../../src/storage/node-storage.ts";
import { randomBytes } from "../../random.ts";
import { createScratch, hasCommand, type Scratch } from "../../storage/scratch.ts";
import { contentDigest } from "./samples.ts";

const storage = createNodeStorage();
const noQemu = hasCommand("qemu-img", "--version") ? "" : " (skipped: no qemu-img)";
/** No multiple of a payload block, nor of 4096. */
const sizeBytes = 37 * MIB + 512;

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

function sha256(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

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
  test.each(["dynamic", "fixed"].flatMap((type) => [1, 2, 8, 16, 32, 256].map((block) => ({ type, block }))))(
    "C-11 $type, payload blocks of $block MiB",
    async ({ type, block }) => {
      expect(await digestOf(convert(source, `subformat=${type},block_size=${block}M`))).toBe(digest);
    },
  );

  test.each(["log_size=1M", "log_size=2M", "log_size=64M", "block_state_zero=off"])("%s", async (options) => {
    expect(await digestOf(convert(source, `subformat=dynamic,${options}`))).toBe(digest);
  });

  const kinds = [
    ["ext4", "mke2fs", ["-q", "-t", "ext4", "-d"]],
    ["FAT", "mkfs.vfat", ["-F", "32"]],
    ["NTFS", "mkntfs", ["-q", "-F", "-f"]],
  ] as const;
  for (const [name, command, args] of kinds) {
    const none = hasCommand("sh", "-c", `command -v ${command}`) ? "" : ` (skipped: no ${command})`;
    test.skipIf(none !== "")(`a file system of the kind ${name}${none}`, async () => {
      const raw = scratch.file("fs.raw");
      writeFileSync(raw, "");
      execFileSync("truncate", ["--size", "64M", raw]);
      mkdirSync(scratch.file("tree"), { recursive: true });
      writeFileSync(scratch.file("tree/file"), randomBytes(300_000));
      const tree = command === "mke2fs" ? [scratch.file("tree")] : [];
      execFileSync(command, [...args, ...tree, raw], { stdio: "ignore" });
      for (const type of ["dynamic", "fixed"]) {
        expect(await digestOf(convert(raw, `subformat=${type},block_size=2M`))).toBe(sha256(raw));
      }
    });
  }
});
