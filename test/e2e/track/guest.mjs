// @ts-check
/**
 * What a guest of guest.slow.ts runs: `node guest.mjs DIRECTORY`. Writes file after file, each with its directory durable before it is told of:
 * `{"event":"synced","file":N,"name":...,"sha256":...}`. Old files go, long after they came.
 */
import { createHash } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";

const [directory = ""] = process.argv.slice(2);
/** Files there are at a time, and directories. */
const filesMax = 3_000;
const folders = 8;

/** @param {string} path */
function sync(path) {
  const fd = openSync(path, "r");
  fsyncSync(fd);
  closeSync(fd);
}

/** @param {number} file */
function nameOf(file) {
  return `d${String(file % folders)}/f${String(file)}`;
}

for (let folder = 0; folder < folders; folder++) mkdirSync(join(directory, `d${String(folder)}`), { recursive: true });
sync(directory);
for (let file = 0; ; file++) {
  const bytes = Buffer.alloc(1_000 + ((file * 7_919) % 40_000), `${String(file)} `);
  const path = join(directory, nameOf(file));
  const fd = openSync(path, "wx");
  // In two pieces: the second one is appended to what may be on the disk already.
  writeSync(fd, bytes, 0, 500);
  writeSync(fd, bytes, 500, bytes.length - 500);
  fsyncSync(fd);
  closeSync(fd);
  sync(join(directory, nameOf(file).slice(0, 2)));
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  process.stdout.write(`${JSON.stringify({ event: "synced", file, name: nameOf(file), sha256 })}\n`);
  if (file >= filesMax) unlinkSync(join(directory, nameOf(file - filesMax)));
}
