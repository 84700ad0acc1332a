/**
 * The retention policy of one disk, `keep.json`; a disk without it follows the store's. A file of its own, because `disk.json` belongs to the holder of
 * `apply.lock`, and a policy is set beside a session.
 */
import type { Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { parsePolicy } from "./retention/policy.ts";
import {
  decodeState,
  readState,
  type StateContent,
  type StateFormat,
  syncDirectory,
  writeState,
} from "./state-file.ts";

export const policyFormat: StateFormat = { format: "replicate retention policy", version: 1 };

function parse(content: StateContent): string {
  return content.text("keep");
}

/** The policy as text. Throws `store-damaged`, `store-version-unsupported`. */
export function decodePolicyRecord(path: string, bytes: Uint8Array): string {
  return parse(decodeState(path, policyFormat, bytes));
}

/** The disk's own policy, as text; undefined: it has none. Throws `store-damaged`, `store-version-unsupported`; `usage` for one that makes no sense. */
export async function readDiskPolicy(storage: Storage, paths: DiskPaths): Promise<string | undefined> {
  const content = await readState(storage, paths.policy, policyFormat);
  if (content === undefined) return undefined;
  const text = parse(content);
  parsePolicy(text);
  return text;
}

/** Undefined: the store's policy is followed from now on. Durable when it resolves. Throws `usage`, `no-space`, `write-failed`, `sync-failed`. */
export async function writeDiskPolicy(storage: Storage, paths: DiskPaths, keep: string | undefined): Promise<void> {
  if (keep !== undefined) {
    parsePolicy(keep);
    return await writeState(storage, paths.policy, policyFormat, { keep });
  }
  await inFile("write-failed", `removing ${paths.policy}`, () => storage.unlink(paths.policy));
  await syncDirectory(storage, paths.directory);
}
