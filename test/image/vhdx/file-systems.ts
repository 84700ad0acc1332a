/** Raw images with a real file system in them, made and changed by the tools of that file system, without being mounted. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { KIB, MIB } from "../../../src/base/units.ts";
import { randomBytes } from "../../random.ts";
import { hasCommand } from "../../storage/scratch.ts";

export interface FileSystem {
  readonly name: string;
  /** No multiple of a payload block, nor of 4096. */
  readonly sizeBytes: number;
  readonly tools: readonly string[];
  make(raw: string): void;
  /** A file in the root, new or over an old one. */
  put(raw: string, name: string, source: string): void;
  /** Its content. */
  get(raw: string, name: string): Buffer;
  /** Throws when the checker finds anything. */
  check(raw: string): void;
}

function run(command: string, ...args: readonly string[]): Buffer {
  return execFileSync(command, args, {
    stdio: "pipe",
    maxBuffer: 64 * MIB,
    env: { ...process.env, MTOOLS_SKIP_CHECK: "1" },
  });
}

export const fileSystems: readonly FileSystem[] = [
  {
    name: "ext4",
    sizeBytes: 37 * MIB + 512,
    tools: ["mke2fs", "debugfs", "e2fsck"],
    make: (raw) => void run("mke2fs", "-q", "-t", "ext4", raw),
    put(raw, name, source) {
      run("debugfs", "-w", "-R", `rm ${name}`, raw);
      run("debugfs", "-w", "-R", `write ${source} ${name}`, raw);
    },
    get: (raw, name) => run("debugfs", "-R", `cat ${name}`, raw),
    check: (raw) => void run("e2fsck", "-fn", raw),
  },
  {
    name: "NTFS",
    sizeBytes: 53 * MIB + 2_560,
    tools: ["mkntfs", "ntfscp", "ntfscat", "ntfsfix", "ntfsresize", "ntfsinfo"],
    make: (raw) => void run("mkntfs", "-q", "-F", "-f", raw),
    put: (raw, name, source) => void run("ntfscp", "-f", raw, source, name),
    get: (raw, name) => run("ntfscat", "-f", raw, name),
    check(raw) {
      run("ntfsfix", "-n", raw);
      run("ntfsresize", "--info", "--force", "--no-progress-bar", raw);
      run("ntfsinfo", "-f", "-m", raw);
    },
  },
  {
    name: "FAT32",
    // Of clusters of one sector: below 65,525 of them it is no FAT32, whatever it is called.
    sizeBytes: 41 * MIB + 1_536,
    tools: ["mkfs.vfat", "mcopy", "mtype", "fsck.vfat"],
    make: (raw) => void run("mkfs.vfat", "-F", "32", "-s", "1", raw),
    put: (raw, name, source) => void run("mcopy", "-o", "-i", raw, source, `::${name}`),
    get: (raw, name) => run("mtype", "-i", raw, `::${name}`),
    check: (raw) => void run("fsck.vfat", "-n", raw),
  },
];

/** Why it cannot be made here, for the name of a test; empty: it can. */
export function missingTools({ tools }: FileSystem): string {
  const missing = tools.filter((tool) => !hasCommand("sh", "-c", `command -v ${tool}`));
  return missing.length === 0 ? "" : ` (skipped: no ${missing.join(", ")})`;
}

/** A new file system in `folder` with some files. Returns the raw image. */
export function makeFileSystem(system: FileSystem, folder: string): string {
  mkdirSync(folder, { recursive: true });
  const raw = join(folder, `${system.name}.raw`);
  writeFileSync(raw, "");
  truncateSync(raw, system.sizeBytes);
  system.make(raw);
  for (const name of ["one", "two", "three"]) putFile(system, raw, name, 300_000);
  return raw;
}

/** What is put in a file is random. Returns it. */
export function putFile(system: FileSystem, raw: string, name: string, length: number): Buffer {
  const content = randomBytes(length);
  const source = `${raw}.${name}`;
  writeFileSync(source, content);
  system.put(raw, name, source);
  return Buffer.from(content);
}

/** The same disk later: another content of a file, and a file more. */
export function changedCopy(
  system: FileSystem,
  raw: string,
  changed: string,
): { readonly raw: string; readonly files: ReadonlyMap<string, Buffer> } {
  copyFileSync(raw, changed);
  const files = new Map([
    ["two", putFile(system, changed, "two", 100_000)],
    [`more${String(changed.length)}`, putFile(system, changed, `more${String(changed.length)}`, 200 * KIB)],
  ]);
  return { raw: changed, files };
}

export function sha256(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}
