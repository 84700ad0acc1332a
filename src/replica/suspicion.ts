/**
 * `suspect.json`: somebody may have written to the replica, and it is being compared with its table. It is there from before the first difference is entered in
 * the table until all of the replica was looked at: a comparison that is cut short is made again, and not forgotten because a delta has begun meanwhile.
 * What was found to be written by somebody else is nobody's to overwrite until a person has said so.
 */
import { ReplicationError } from "../base/errors.ts";
import type { Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import {
  decodeState,
  readState,
  type StateContent,
  type StateFormat,
  syncDirectory,
  writeState,
} from "./state-file.ts";

export const suspicionFormat: StateFormat = { format: "replicate suspicion", version: 1 };

export interface Suspicion {
  /** In words. */
  readonly why: string;
  /** Somebody else wrote to the replica, and no delta is taken before a person has decided. Default: it is not known yet. */
  readonly found?: boolean | undefined;
  /** Newest point when it was written; a newer one is that of the changes. */
  readonly point?: number | undefined;
}

/** Throws `store-damaged`, `store-version-unsupported`. */
export function decodeSuspicion(path: string, bytes: Uint8Array): Suspicion {
  return suspicionOf(decodeState(path, suspicionFormat, bytes));
}

function suspicionOf(content: StateContent): Suspicion {
  const changes = content.optionalText("changes") === undefined ? undefined : content.oneOf("changes", ["found"]);
  return { why: content.text("why"), found: changes === "found", point: content.optionalInteger("point") };
}

/** Undefined: there is none. One that cannot be read is the worst one all the same. */
export async function readSuspicion(storage: Storage, paths: DiskPaths): Promise<Suspicion | undefined> {
  try {
    const content = await readState(storage, paths.suspicion, suspicionFormat);
    return content && suspicionOf(content);
  } catch (error) {
    if (error instanceof ReplicationError) return { why: error.message, found: true };
    throw error;
  }
}

/** Durable when it resolves. Order and errors: {@link writeState}. */
export async function writeSuspicion(storage: Storage, paths: DiskPaths, suspicion: Suspicion): Promise<void> {
  const { why, found, point } = suspicion;
  const changes = found === true ? "found" : undefined;
  await writeState(storage, paths.suspicion, suspicionFormat, { why, changes, point });
}

/** Durable when it resolves. Throws `write-failed`, `sync-failed`. */
export async function removeSuspicion(storage: Storage, paths: DiskPaths): Promise<void> {
  await inFile("write-failed", `removing ${paths.suspicion}`, () => storage.unlink(paths.suspicion));
  await syncDirectory(storage, paths.directory);
}
