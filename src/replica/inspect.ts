/** Says what a file of a store is and whether it is whole: for `replicate inspect`. Reads only; takes no lock. */
import { basename, dirname, join } from "node:path";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { type Geometry, MIB, TABLE_PAGE_BYTES } from "../base/units.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import { createPageDigests, type PageDigests, pageDigest, tableFileBytes } from "../table/digest-table.ts";
import { parseHolder } from "./disk-lock.ts";
import { decodeRecord, diskFormat, geometryOf } from "./disk-record.ts";
import { fileError } from "./file-error.ts";
import { decodePoint, pointFormat } from "./points/point.ts";
import { decodePolicyRecord, policyFormat } from "./policy-record.ts";
import { decodeSession, sessionFormat } from "./session-record.ts";
import { readSmallFile } from "./state-file.ts";
import { decodeStore, storeFormat } from "./store-record.ts";
import { decodeSuspicion, suspicionFormat } from "./suspicion.ts";
import { hexOf } from "./table-files.ts";
import { describeUndoLog } from "./undo/describe.ts";
import { undoMagic } from "./undo/format.ts";

export type FactValue = string | number | boolean | undefined;

export interface StoreFileDescription {
  readonly kind:
    | "store"
    | "disk"
    | "point"
    | "session"
    | "suspicion"
    | "policy"
    | "undo log"
    | "digests"
    | "page digests"
    | "lock"
    | "adoption";
  readonly sizeBytes: number;
  /** What the file says, in its own terms. Empty when nothing of it can be believed. */
  readonly facts: Readonly<Record<string, FactValue>>;
  /** What is wrong with it, in words; undefined: it is whole, as far as can be told from it and the files beside it. */
  readonly trouble: string | undefined;
}

/** Undefined: not a file of a store. Throws `store-not-found` when there is no such file, `store-damaged` when it cannot be read. */
export async function inspectStoreFile(storage: Storage, path: string): Promise<StoreFileDescription | undefined> {
  const stat = await storage.stat(path);
  if (stat === undefined) throw new ReplicationError("store-not-found", `${path} does not exist; check the path`);
  if (stat.kind !== "file") return undefined;
  const { sizeBytes } = stat;
  const name = basename(path);
  if (name === "digests")
    return { kind: "digests", sizeBytes, ...(await inspectTableFile(storage, path, describeDigests)) };
  if (name === "pages")
    return { kind: "page digests", sizeBytes, ...(await inspectTableFile(storage, path, describePages)) };
  // One byte more than allowed is enough to see that there are too many.
  const bytes = (await readSmallFile(storage, path, limits.stateFileBytesMax + 1)) ?? new Uint8Array();
  if (name.endsWith(".lock")) return { kind: "lock", sizeBytes, ...describeLock(bytes) };
  if (name === "adopt.new") return { kind: "adoption", sizeBytes, ...describeAdoption(bytes) };
  if (name.endsWith(".undo") || isUndoLog(bytes)) {
    return { kind: "undo log", sizeBytes, ...(await inspectUndoLog(storage, path)) };
  }
  const decoder = findStateDecoder(name, bytes);
  return decoder === undefined
    ? undefined
    : { kind: decoder.kind, sizeBytes, ...attempt(() => ({ ...decoder.decode(path, bytes) })) };
}

interface Outcome {
  readonly facts: StoreFileDescription["facts"];
  readonly trouble: string | undefined;
}

function attempt(read: () => Readonly<Record<string, FactValue>>): Outcome {
  try {
    return { facts: read(), trouble: undefined };
  } catch (error) {
    if (error instanceof ReplicationError) return { facts: {}, trouble: error.message };
    throw error;
  }
}

interface StateDecoder {
  readonly kind: StoreFileDescription["kind"];
  readonly format: string;
  readonly name: RegExp;
  readonly decode: (path: string, bytes: Uint8Array) => Readonly<Record<string, FactValue>>;
}

const stateDecoders: readonly StateDecoder[] = [
  {
    kind: "store",
    format: storeFormat.format,
    name: /^store\.json$/,
    decode: (...file) => ({ ...decodeStore(...file) }),
  },
  {
    kind: "disk",
    format: diskFormat.format,
    name: /^disk\.json$/,
    decode: (...file) => ({ ...decodeRecord(...file) }),
  },
  {
    kind: "point",
    format: pointFormat.format,
    name: /^[0-9]{10}\.json$/,
    decode(path, bytes) {
      const { hold, cut, closed, logs, ...facts } = decodePoint(path, bytes);
      return {
        ...facts,
        heldBy: hold?.owner,
        heldUntil: hold?.until,
        cut: cut?.id,
        cutMembers: cut?.members.join(" "),
        closedLogBytes: closed?.sizeBytes,
        logs: logs?.map(({ name }) => name).join(" "),
      };
    },
  },
  {
    kind: "session",
    format: sessionFormat.format,
    name: /^session\.json$/,
    decode(path, bytes) {
      const { undo, root, replica, resumeBlock } = decodeSession(path, bytes);
      return {
        undo,
        root,
        replicaSizeBytes: replica.sizeBytes,
        replicaInode: replica.inode,
        replicaChangedNanos: replica.changedNanos,
        resumeBlock,
      };
    },
  },
  {
    kind: "suspicion",
    format: suspicionFormat.format,
    name: /^suspect\.json$/,
    decode: (...file) => ({ ...decodeSuspicion(...file) }),
  },
  {
    kind: "policy",
    format: policyFormat.format,
    name: /^keep\.json$/,
    decode: (...file) => ({ keep: decodePolicyRecord(...file) }),
  },
];

/** By what the file says it is, else by its name, so that a copy under any name and a damaged original are both known. */
function findStateDecoder(name: string, bytes: Uint8Array): StateDecoder | undefined {
  const start = Buffer.from(bytes.subarray(0, 200)).toString("latin1");
  return (
    stateDecoders.find(({ format }) => /^\s*\{/.test(start) && start.includes(`"format": "${format}"`)) ??
    stateDecoders.find((decoder) => decoder.name.test(name))
  );
}

function isUndoLog(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes.subarray(0, undoMagic.length), undoMagic) === 0;
}

async function inspectUndoLog(storage: Storage, path: string): Promise<Outcome> {
  const file = await storage.open(path);
  try {
    const { header, batches, trouble, troubleCount, ...facts } = describeUndoLog(
      { path, lanes: storage.lanes, fd: file.fd },
      { contents: true },
    );
    const [first] = trouble;
    const more = troubleCount > 1 ? `, and ${troubleCount - 1} more` : "";
    return {
      facts: {
        sequence: header.sequence,
        id: hexOf(header.id),
        blockBytes: header.blockBytes,
        digestKind: header.digestKind,
        diskBytes: header.sizeBytes,
        ...facts,
        entryBatches: batches.entries,
        checkpoints: batches.checkpoint,
        indexRuns: batches.index,
        footer: batches.footer > 0,
      },
      trouble: first === undefined ? undefined : `${path} is damaged at offset ${first.offset}: ${first.what}${more}`,
    };
  } catch (error) {
    if (error instanceof ReplicationError) return { facts: {}, trouble: error.message };
    throw error;
  } finally {
    await file.close();
  }
}

function describeLock(bytes: Uint8Array): Outcome {
  const holder = parseHolder(Buffer.from(bytes.subarray(0, 4096)).toString("utf8"));
  if (holder === undefined) return { facts: {}, trouble: undefined };
  const { heartbeat, ...facts } = holder;
  return { facts: { ...facts, heartbeat: heartbeat?.millis, boot: heartbeat?.bootId }, trouble: undefined };
}

/** The mark of an adoption that did not end. */
function describeAdoption(bytes: Uint8Array): Outcome {
  try {
    const { image } = JSON.parse(Buffer.from(bytes).toString("utf8")) as { readonly image?: unknown };
    return { facts: typeof image === "string" ? { image } : {}, trouble: undefined };
  } catch {
    // Half written: its text is for people, and nothing hangs on it.
    return { facts: {}, trouble: undefined };
  }
}

/** The geometry is in the disk.json beside the table; without it only lengths can be told. */
async function inspectTableFile(
  storage: Storage,
  path: string,
  describe: (file: StorageFile, geometry: Geometry, beside: StorageFile | undefined) => Promise<Outcome>,
): Promise<Outcome> {
  const record = await readSmallFile(storage, join(dirname(path), "disk.json"), limits.stateFileBytesMax + 1);
  if (record === undefined)
    return { facts: {}, trouble: "there is no disk.json beside it to say what disk it is the table of" };
  let geometry: Geometry;
  try {
    geometry = geometryOf(decodeRecord(join(dirname(path), "disk.json"), record));
  } catch (error) {
    if (error instanceof ReplicationError) return { facts: {}, trouble: error.message };
    throw error;
  }
  try {
    const file = await storage.open(path);
    try {
      const beside = await openBeside(storage, join(dirname(path), "pages"));
      try {
        return await describe(file, geometry, beside);
      } finally {
        await beside?.close();
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fileError(error, "store-damaged", `reading ${path}`);
  }
}

async function openBeside(storage: Storage, path: string): Promise<StorageFile | undefined> {
  try {
    return await storage.open(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function describePages(file: StorageFile, geometry: Geometry): Promise<Outcome> {
  const wanted = tableFileBytes(geometry).pages;
  const { sizeBytes } = await file.stat();
  const { pages, nonZero } = await readPages(file, geometry);
  const facts = { pages: wanted / 32, nonZeroPages: nonZero, root: hexOf(pages.root()) };
  return { facts, trouble: lengthTrouble(sizeBytes, wanted) };
}

async function describeDigests(
  file: StorageFile,
  geometry: Geometry,
  pagesFile: StorageFile | undefined,
): Promise<Outcome> {
  const wanted = tableFileBytes(geometry).digests;
  const { sizeBytes } = await file.stat();
  let facts: Record<string, FactValue> = { pages: wanted / TABLE_PAGE_BYTES };
  if (pagesFile === undefined) return { facts, trouble: 'there is no "pages" beside it to check it with' };
  const { pages, nonZero } = await readPages(pagesFile, geometry);
  let different = 0;
  let firstDifferent: number | undefined;
  const page = Buffer.alloc(TABLE_PAGE_BYTES);
  for (let number = 0; number < wanted / TABLE_PAGE_BYTES; number++) {
    // A page of zero blocks is never read: what its place in the file holds means nothing.
    if (pages.isZero(number)) continue;
    page.fill(0, await file.read(page, number * TABLE_PAGE_BYTES));
    if (Buffer.compare(pageDigest(page), pages.get(number)) === 0) continue;
    different++;
    firstDifferent ??= number;
  }
  facts = { ...facts, nonZeroPages: nonZero, differentPages: different };
  const trouble =
    firstDifferent === undefined
      ? lengthTrouble(sizeBytes, wanted)
      : `${different} pages do not match their checksum in "pages", the first is page ${firstDifferent}; while a session writes the disk that is normal`;
  return { facts, trouble };
}

function lengthTrouble(sizeBytes: number, wanted: number): string | undefined {
  return sizeBytes === wanted ? undefined : `it has ${sizeBytes} bytes and not the ${wanted} of its disk`;
}

async function readPages(
  file: StorageFile,
  geometry: Geometry,
): Promise<{ readonly pages: PageDigests; readonly nonZero: number }> {
  const pages = createPageDigests(geometry);
  const bytes = tableFileBytes(geometry).pages;
  const buffer = Buffer.alloc(Math.min(MIB, bytes));
  let nonZero = 0;
  for (let at = 0; at < bytes; ) {
    const data = file.nextData(at);
    if (data === undefined) break;
    at = Math.max(at, data.start - (data.start % 32));
    const count = await file.read(buffer.subarray(0, Math.min(buffer.length, bytes - at)), at);
    for (let entry = 0; entry + 32 <= count; entry += 32) {
      const page = (at + entry) / 32;
      pages.set(page, buffer.subarray(entry, entry + 32));
      nonZero += Number(!pages.isZero(page));
    }
    if (count < 32) break;
    at += count - (count % 32);
  }
  return { pages, nonZero };
}
