/**
 * `suspect.json`: somebody may have written to the replica, and it is being compared with its table. It is there from before the first difference is entered in
 * the table until all of the replica was looked at: a comparison that is cut short is made again, and not forgotten because a delta has begun meanwhile.
 */
import { ReplicationError } from "../base/errors.ts";
import type { Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { decodeState, readState, type StateFormat, syncDirectory, writeState } from "./state-file.ts";

export const suspicionFormat: StateFormat = { format: "replicate suspicion", version: 1 };

/** Why, in words. Throws `store-damaged`, `store-version-unsupported`. */
export function decodeSuspicion(path: string, bytes: Uint8Array): string {
  return decodeState(path, suspicionFormat, bytes).text("why");
}

/** Why, in words; undefined: there is none. One that cannot be read is one all the same. */
export async function readSuspicion(storage: Storage, paths: DiskPaths): Promise<string | undefined> {
  try {
    return (await readState(storage, paths.suspicion, suspicionFormat))?.text("why");
  } catch (error) {
    if (error instanceof ReplicationError) return error.message;
    throw error;
  }
}

/** Durable when it resolves. Order and errors: {@link writeState}. */
export async function writeSuspicion(storage: Storage, paths: DiskPaths, why: string): Promise<void> {
  await writeState(storage, paths.suspicion, suspicionFormat, { why });
}

/** Durable when it resolves. Throws `write-failed`, `sync-failed`. */
export async function removeSuspicion(storage: Storage, paths: DiskPaths): Promise<void> {
  await inFile("write-failed", `removing ${paths.suspicion}`, () => storage.unlink(paths.suspicion));
  await syncDirectory(storage, paths.directory);
}
