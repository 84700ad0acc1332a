/** What a store is, `store.json`. */
import type { Storage } from "../storage/seam.ts";
import type { StorePaths } from "./layout.ts";
import { defaultPolicyText, parsePolicy } from "./retention/policy.ts";
import { decodeState, readState, type StateContent, type StateFormat, writeState } from "./state-file.ts";

export interface StoreRecord {
  readonly id: string;
  /** Retention policy of its disks, as text; undefined: {@link defaultPolicyText}. */
  readonly keep: string | undefined;
}

export const storeFormat: StateFormat = { format: "replicate store", version: 1 };

function parse(content: StateContent): StoreRecord {
  return { id: content.text("id"), keep: content.optionalText("keep") };
}

/** Throws `store-damaged`, `store-version-unsupported`. */
export function decodeStore(path: string, bytes: Uint8Array): StoreRecord {
  return parse(decodeState(path, storeFormat, bytes));
}

/** Undefined: there is none. Errors as {@link decodeStore}. */
export async function readStoreRecord(storage: Storage, paths: StorePaths): Promise<StoreRecord | undefined> {
  const content = await readState(storage, paths.record, storeFormat);
  return content === undefined ? undefined : parse(content);
}

/** Durable when it resolves. */
export async function writeStoreRecord(storage: Storage, paths: StorePaths, { id, keep }: StoreRecord): Promise<void> {
  await writeState(storage, paths.record, storeFormat, { id, keep });
}

/** The text of the policy in force. Throws `usage` for one that makes no sense. */
export function policyTextOf(record: StoreRecord | undefined): string {
  const text = record?.keep ?? defaultPolicyText;
  parsePolicy(text);
  return text;
}
