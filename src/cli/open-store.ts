/** The store a verb works on, beside whatever else does. */
import { hostname } from "node:os";
import { systemClock } from "../base/clock.ts";
import { systemRandom } from "../base/random.ts";
import { openStore, type Store } from "../replica/store.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";
import { needed, type ParsedArguments } from "./arguments.ts";
import { createLog, parseLevel } from "./log.ts";
import type { CliIo } from "./verb.ts";

export interface OpenedStore {
  readonly store: Store;
  /** For what the library reads and writes beside the store. */
  readonly engine: { readonly storage: Storage; readonly clock: typeof systemClock };
}

/** Options every verb of a store takes. */
export const storeOptions = ["store", "log-level"] as const;
export const storeFlags = ["json", "single-process"] as const;
export const storeHelp = `  --store DIR            the receiver's folder
  --single-process       the file system has no locks, and at your word nothing else uses the store
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default warn)`;

export async function openStoreOf(given: ParsedArguments, verb: string, io: CliIo): Promise<OpenedStore> {
  const path = needed(given.text("store"), verb, "--store DIR");
  return openStoreAt(path, io, {
    json: given.flag("json"),
    singleProcess: given.flag("single-process"),
    level: parseLevel(given.text("log-level"), "warn"),
  });
}

export async function openStoreAt(
  path: string,
  io: CliIo,
  options: { readonly json: boolean; readonly singleProcess: boolean; readonly level: ReturnType<typeof parseLevel> },
): Promise<OpenedStore> {
  const storage = createNodeStorage();
  const log = createLog(io, options);
  const store = await openStore({
    path,
    storage,
    clock: systemClock,
    random: systemRandom,
    log,
    host: hostname(),
    timeZone: machineTimeZone(),
    singleProcess: options.singleProcess,
  });
  return { store, engine: { storage, clock: systemClock } };
}

/** Calendar periods of a retention policy are those of this machine. */
export function machineTimeZone(): string {
  return new Intl.DateTimeFormat().resolvedOptions().timeZone;
}
