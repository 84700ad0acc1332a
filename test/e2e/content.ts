/** Content for end-to-end tests: noise, scattered changes, holes, and what two files have apart. */
import { createCipheriv } from "node:crypto";
import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, readSync, statSync, writeSync } from "node:fs";
import { type CliProcess, type JsonLine, procRss, runTool, seededRandom } from "./kit.ts";

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

export const PART = 4 * KIB;
export const BLOCK = 64 * KIB;
/** Bytes of one table page's range: 512 blocks. */
const PAGE = 512 * BLOCK;

/** Bytes nothing compresses; the same for the same seed. */
export function noise(seed: number, length: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(seed >>> 0);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** An image full of noise. */
export function makeNoise(path: string, sizeBytes: number, seed: number): void {
  const fd = openSync(path, "w");
  for (let at = 0, piece = 0; at < sizeBytes; at += 8 * MIB, piece++) {
    writeSync(fd, noise(seed * 100_003 + piece, Math.min(8 * MIB, sizeBytes - at)), 0, undefined, at);
  }
  fsyncSync(fd);
  closeSync(fd);
}

/** A file of this size without data. */
export function makeSparse(path: string, sizeBytes: number): void {
  const fd = openSync(path, "w");
  try {
    ftruncateSync(fd, sizeBytes);
  } finally {
    closeSync(fd);
  }
}

/** Writes pieces into a file that exists. */
export function writeAt(path: string, pieces: Iterable<readonly [offset: number, bytes: Uint8Array]>): void {
  const fd = openSync(path, "r+");
  for (const [offset, bytes] of pieces) writeSync(fd, bytes, 0, bytes.length, offset);
  fsyncSync(fd);
  closeSync(fd);
}

/** Different offsets, multiples of `step`, in no order. */
export function scattered(sizeBytes: number, count: number, seed: number, step = PART): readonly number[] {
  const random = seededRandom(seed);
  const steps = Math.floor(sizeBytes / step);
  const found = new Set<number>();
  while (found.size < Math.min(count, steps)) found.add((random() % steps) * step);
  return [...found];
}

/** Deallocates a range: zeros from now on. Needs `fallocate`. */
export function punch(path: string, offset: number, length: number): void {
  const { code, stderr } = runTool("fallocate", ["-p", "-o", String(offset), "-l", String(length), path]);
  if (code !== 0) throw new Error(`fallocate: ${stderr}`);
}

/** Bytes the file takes on its file system. */
export function allocated(path: string): number {
  return statSync(path).blocks * 512;
}

/** What two files of one size have apart, in the units of the product. */
export interface Differences {
  /** Offsets of 4 KiB parts that differ. */
  readonly parts: readonly number[];
  readonly blocks: number;
  readonly pages: number;
  readonly sizeBytes: number;
}

export function differences(a: string, b: string): Differences {
  const sizeBytes = statSync(a).size;
  const [left, right] = [openSync(a, "r"), openSync(b, "r")];
  const parts: number[] = [];
  const [mine, theirs] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  for (let at = 0; at < sizeBytes; at += MIB) {
    const length = readSync(left, mine, 0, MIB, at);
    theirs.fill(0, readSync(right, theirs, 0, MIB, at));
    if (mine.compare(theirs, 0, length, 0, length) === 0) continue;
    for (let part = 0; part < length; part += PART) {
      const end = Math.min(part + PART, length);
      if (mine.compare(theirs, part, end, part, end) !== 0) parts.push(at + part);
    }
  }
  closeSync(left);
  closeSync(right);
  const unitsOf = (unit: number): number => new Set(parts.map((offset) => Math.floor(offset / unit))).size;
  return { parts, blocks: unitsOf(BLOCK), pages: unitsOf(PAGE), sizeBytes };
}

/** Handshake, open, commit, and their TLS records. */
const sessionBytes = 12 * KIB;

/** What both ends have to tell each other to find these differences: page, block and part digests. */
export function digestBytes({ sizeBytes, pages, blocks }: Omit<Differences, "parts">): number {
  return sessionBytes + pages * 512 * 8 + pageAndPartDigests({ sizeBytes, blocks });
}

/** The page digests of a disk, and the part digests of the blocks that differ: no greeting, and no digests of blocks. */
export function pageAndPartDigests({ sizeBytes, blocks }: Pick<Differences, "sizeBytes" | "blocks">): number {
  return Math.ceil(sizeBytes / PAGE) * 32 + blocks * 64;
}

/** Bytes of a piece of a file. */
export function readAt(path: string, offset: number, length: number): Buffer {
  const fd = openSync(path, "r");
  const bytes = Buffer.alloc(length);
  const count = readSync(fd, bytes, 0, length, offset);
  closeSync(fd);
  return bytes.subarray(0, count);
}

/** Bytes of the parts, one after the other. */
export function readParts(path: string, offsets: readonly number[]): Buffer {
  const fd = openSync(path, "r");
  const bytes = Buffer.alloc(offsets.length * PART);
  for (const [index, offset] of offsets.entries()) readSync(fd, bytes, index * PART, PART, offset);
  closeSync(fd);
  return bytes;
}

/** Log lines of a process so far: pino's, one JSON object a line on standard error. */
export function logLines(child: CliProcess): readonly JsonLine[] {
  return child.stderr
    .split("\n")
    .filter((line) => line.startsWith("{") && line.endsWith("}"))
    .map((line) => JSON.parse(line) as JsonLine);
}

/** The first log line with all of these fields, when it has come; `msg` may be a pattern. */
export async function waitForLog(
  child: CliProcess,
  fields: Readonly<Record<string, unknown>>,
  msg?: RegExp,
): Promise<JsonLine> {
  const find = (): JsonLine | undefined =>
    logLines(child).find(
      (line) =>
        Object.entries(fields).every(([key, value]) => line[key] === value) && (msg?.test(String(line["msg"])) ?? true),
    );
  await child.waitFor(() => find() !== undefined);
  return find() ?? {};
}

/** Looks again and again until the condition holds; the test's time limit ends it otherwise. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** A peak that can be judged. One that is missing must not pass for none; only without /proc, as elsewhere than on Linux, there is nothing to judge. */
export function knownPeak(bytes: number | undefined): number {
  if (bytes === undefined && existsSync("/proc/self/status"))
    throw new Error("the peak memory of a process is missing");
  return bytes ?? 0;
}

/** Follows the peak memory of a process that will end; the function returned gives it in bytes (undefined without /proc). */
export function followPeak(child: CliProcess): () => number | undefined {
  let peak: number | undefined;
  const look = (): void => {
    if (!child.ended) peak = procRss(child.pid) ?? peak;
  };
  const timer = setInterval(look, 20);
  const stop = (): void => clearInterval(timer);
  child.exited.then(stop, stop);
  look();
  return () => peak;
}
