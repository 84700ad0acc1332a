/** PEM files: small, read whole, replaced whole. */
import { dirname } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { KIB } from "../base/units.ts";
import type { Storage } from "../storage/seam.ts";

/** Of a certificate, a bundle of authorities or a key: real ones have a few KiB, a bundle of all public authorities 250. */
export const pemFileBytesMax = 1024 * KIB;

/** The text of a file, or undefined when there is none. System errors (`EACCES` ...) pass unchanged. */
export async function readText(storage: Storage, path: string): Promise<string | undefined> {
  if ((await storage.stat(path)) === undefined) return undefined;
  const file = await storage.open(path);
  try {
    const { sizeBytes } = await file.stat();
    if (sizeBytes > pemFileBytesMax) {
      throw new ReplicationError(
        "certificate-unusable",
        `${path} has ${sizeBytes} bytes: too large for a certificate or a key`,
      );
    }
    const bytes = Buffer.alloc(sizeBytes);
    const count = await file.read(bytes, 0);
    return bytes.toString("utf8", 0, count);
  } finally {
    await file.close();
  }
}

export interface NewText {
  readonly path: string;
  readonly text: string;
  /** Permission bits. */
  readonly mode: number;
}

/**
 * Writes files nobody can see half of. Order: each new file beside its old one, synced; then all renamed over the old ones in the order
 * given; directories synced. A crash before the renames leaves the old files and `.new-…` files beside them that nobody
 * reads; between two renames it leaves the first files new and the others old.
 */
export async function replaceTexts(storage: Storage, random: Random, files: readonly NewText[]): Promise<void> {
  const staged = files.map((file) => ({
    ...file,
    beside: `${file.path}.new-${Buffer.from(random.bytes(4)).toString("hex")}`,
  }));
  try {
    for (const { beside, text, mode } of staged) {
      const file = await storage.open(beside, { write: true, exclusive: true, mode });
      try {
        await file.write(Buffer.from(text), 0);
        await file.datasync();
      } finally {
        await file.close();
      }
    }
    for (const { beside, path } of staged) await storage.rename(beside, path);
  } catch (error) {
    for (const { beside } of staged) await storage.unlink(beside);
    throw error;
  }
  for (const directory of new Set(files.map((file) => dirname(file.path)))) await storage.syncDirectory(directory);
}
