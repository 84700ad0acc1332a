/** What a store is, `store.json`. */
import { decodeState, type StateFormat } from "./state-file.ts";

export interface StoreRecord {
  readonly id: string;
}

export const storeFormat: StateFormat = { format: "replicate store", version: 1 };

/** Throws `store-damaged`, `store-version-unsupported`. */
export function decodeStore(path: string, bytes: Uint8Array): StoreRecord {
  return { id: decodeState(path, storeFormat, bytes).text("id") };
}
