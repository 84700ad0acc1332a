/**
 * What a tracked image looked like at the state a receiver has: its page digests, in a file beside the journal. With them a delta is compared with the
 * receiver's table as a whole, though only what changed is read. docs/formats.md, "Known state".
 *
 * A file is complete or not there: it is written under another name, synced, and takes its name. It is a help and no truth of its own: without it everything is compared.
 */
import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { errnoOf, invariant } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { type DigestKind, isBlockSize, pageCount } from "../base/units.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import {
  CHUNK_BYTES,
  createPageDigests,
  PAGE_DIGEST_BYTES,
  type PageDigests,
  PAGES_PER_CHUNK,
} from "../table/page-digests.ts";

export interface KnownState {
  /** Id of the cut it is of. */
  readonly cycle: string;
  readonly pages: PageDigests;
}

/**
 * The states of one image that a receiver may have: the base, and the one that was asked for last while its answer is not known. A file each, so that neither is lost whatever
 * happens in between.
 */
export interface KnownStates {
  /** At most two. */
  readonly known: readonly KnownState[];
  /** Of the disk at the receiver, as it was last; undefined: nothing is known of it. */
  readonly geometry: PageDigests["geometry"] | undefined;
  /** Of a cycle that a receiver is about to be asked for: durable when it resolves, beside the base; or told to `onFailure`, and known until the process ends. */
  keep(state: KnownState): Promise<void>;
  /** The receiver has that cycle: if it was kept it is the base from now on, else there is none. */
  settle(cycle: string): Promise<void>;
  /** Nothing is known from now on. */
  forget(): Promise<void>;
}

/**
 * `path`: of the base. A file that cannot be written costs a comparison after the next start, and no cycle: it is told, in words, the first time and when it could be written in
 * between, and what would be in it is known all the same for as long as the process runs.
 */
export async function openKnownStates(
  storage: Storage,
  path: string,
  options: { readonly sync: boolean; readonly onFailure?: (words: string) => void },
): Promise<KnownStates> {
  const nextPath = `${path}.next`;
  let base = await loadKnownState(storage, path);
  let next = await loadKnownState(storage, nextPath);
  /** Whether {@link next} is in its file. */
  let isNextKept = next !== undefined;
  let isTold = false;
  const attempt = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
      isTold = false;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      if (isTold) return;
      isTold = true;
      const words = `${path}, what is known of the receiver, cannot be written (${errno}): after the next start all of the image is compared`;
      options.onFailure?.(words);
    }
  };
  // What is believed from now on may have been renamed by a process whose sync failed, and then it is in memory alone.
  if (options.sync && (base ?? next) !== undefined) await attempt(() => storage.syncDirectory(dirname(path)));
  return {
    get known() {
      return [base, next].filter((state) => state !== undefined);
    },
    get geometry() {
      return (next ?? base)?.pages.geometry;
    },
    async keep(state) {
      next = state;
      isNextKept = false;
      await attempt(async () => {
        await saveKnownState(storage, nextPath, state, options);
        isNextKept = true;
      });
    },
    async settle(cycle) {
      // Another process may have kept it.
      if (next?.cycle !== cycle) {
        next = await loadKnownState(storage, nextPath);
        isNextKept = next !== undefined;
      }
      base = next?.cycle === cycle ? next : undefined;
      next = undefined;
      if (base === undefined || !isNextKept) return;
      await attempt(async () => {
        await storage.rename(nextPath, path);
        if (options.sync) await storage.syncDirectory(dirname(path));
      });
    },
    async forget() {
      base = undefined;
      next = undefined;
      // The one a receiver has most likely goes first: what an end in between leaves must not be believed.
      for (const file of [nextPath, path]) {
        await storage.unlink(file).catch((error: unknown) => {
          if (errnoOf(error) !== "ENOENT") throw error;
        });
      }
      if (options.sync) await storage.syncDirectory(dirname(path));
    },
  };
}

const magic = Buffer.from("rplknown", "latin1");
const version = 1;
const headBytes = 512;
const cycleBytesMax = 128;
const checksumBytes = 32;
const chunkHeadBytes = 8;
const kinds: readonly DigestKind[] = ["xxh64", "sha256"];

/** The name of an image's known state, beside its journal. */
export function knownStatePathOf(journalPath: string): string {
  return `${journalPath.replace(/\.rbj$/, "")}.rbk`;
}

/** Durable when it resolves, if `sync`. Throws the system's error; the old file is there then. */
export async function saveKnownState(
  storage: Storage,
  path: string,
  state: KnownState,
  options: { readonly sync: boolean },
): Promise<void> {
  const fresh = `${path}.new`;
  const file = await storage.open(fresh, { write: true, create: true, truncate: true });
  try {
    await writeState(file, state);
    if (options.sync) await file.datasync();
  } finally {
    await file.close();
  }
  await storage.rename(fresh, path);
  if (options.sync) await storage.syncDirectory(dirname(path));
}

async function writeState(file: StorageFile, { cycle, pages }: KnownState): Promise<void> {
  const { sizeBytes, blockBytes, digestKind } = pages.geometry;
  const numbers = chunksOf(pages);
  const head = Buffer.alloc(headBytes);
  head.set(magic, 0);
  head.writeUInt16LE(version, 8);
  head[10] = kinds.indexOf(digestKind);
  head.writeUInt32LE(blockBytes, 12);
  head.writeBigUInt64LE(BigInt(sizeBytes), 16);
  head.writeUInt32LE(numbers.length, 24);
  const name = Buffer.from(cycle, "utf8");
  invariant(name.length <= cycleBytesMax, "a cycle has a short name");
  head.writeUInt32LE(name.length, 28);
  head.set(name, 32);
  const checksum = createHash("sha256");
  let at = 0;
  const write = async (bytes: Uint8Array): Promise<void> => {
    checksum.update(bytes);
    await file.write(bytes, at);
    at += bytes.length;
  };
  await write(head);
  for (const number of numbers) {
    const bytes = Buffer.alloc(chunkHeadBytes + CHUNK_BYTES);
    bytes.writeUInt32LE(number, 0);
    for (
      let page = number * PAGES_PER_CHUNK;
      page < Math.min((number + 1) * PAGES_PER_CHUNK, pageCount(pages.geometry));
      page++
    ) {
      bytes.set(pages.get(page), chunkHeadBytes + (page % PAGES_PER_CHUNK) * PAGE_DIGEST_BYTES);
    }
    await write(bytes);
  }
  await file.write(checksum.digest(), at);
}

/** Numbers of chunks with a page that is not zero. */
function chunksOf(pages: PageDigests): number[] {
  const found: number[] = [];
  const count = pageCount(pages.geometry);
  for (let page = 0; page < count; page++) {
    if (pages.isZero(page)) continue;
    const number = Math.floor(page / PAGES_PER_CHUNK);
    found.push(number);
    page = (number + 1) * PAGES_PER_CHUNK - 1;
  }
  return found;
}

export interface KnownStateDescription {
  readonly kind: "known state";
  readonly facts: Readonly<Record<string, string | number>>;
  /** What is wrong with it, in words; undefined: it is whole. */
  readonly trouble: string | undefined;
}

/** For `replicate inspect`. Undefined: none, by content and by name. Storage errors pass. */
export async function describeKnownState(storage: Storage, path: string): Promise<KnownStateDescription | undefined> {
  const file = await storage.open(path);
  try {
    const head = Buffer.alloc(magic.length);
    await file.read(head, 0);
    if (!head.equals(magic) && !path.endsWith(".rbk")) return undefined;
    const { sizeBytes: fileBytes } = await file.stat();
    const state = await readState(file);
    if (state === undefined) {
      const trouble =
        "it is damaged or not complete: the next cycle of its image compares everything, and writes another";
      return { kind: "known state", facts: { fileBytes }, trouble };
    }
    const { cycle, pages } = state;
    const facts = { fileBytes, cycle, ...pages.geometry, root: Buffer.from(pages.root()).toString("hex") };
    return { kind: "known state", facts, trouble: undefined };
  } finally {
    await file.close();
  }
}

/** Undefined: there is none, or it is not whole. Never throws because of what the file is. */
export async function loadKnownState(storage: Storage, path: string): Promise<KnownState | undefined> {
  let file: StorageFile;
  try {
    file = await storage.open(path);
  } catch (error) {
    if (errnoOf(error) !== undefined) return undefined;
    throw error;
  }
  try {
    return await readState(file);
  } catch (error) {
    if (errnoOf(error) !== undefined) return undefined;
    throw error;
  } finally {
    await file.close();
  }
}

async function readState(file: StorageFile): Promise<KnownState | undefined> {
  const checksum = createHash("sha256");
  const head = Buffer.alloc(headBytes);
  if ((await file.read(head, 0)) < headBytes) return undefined;
  checksum.update(head);
  const facts = decodeHead(head);
  if (facts === undefined) return undefined;
  const { sizeBytes, blockBytes, digestKind, chunks, cycle } = facts;
  const pages = createPageDigests({ sizeBytes, blockBytes, digestKind });
  const pagesThere = pageCount(pages.geometry);
  const bytes = Buffer.alloc(chunkHeadBytes + CHUNK_BYTES);
  let at = headBytes;
  let before = -1;
  for (let nth = 0; nth < chunks; nth++, at += bytes.length) {
    if ((await file.read(bytes, at)) < bytes.length) return undefined;
    checksum.update(bytes);
    const number = bytes.readUInt32LE(0);
    const first = number * PAGES_PER_CHUNK;
    if (number <= before || first >= pagesThere) return undefined;
    before = number;
    for (let page = first; page < Math.min(first + PAGES_PER_CHUNK, pagesThere); page++) {
      const from = chunkHeadBytes + (page - first) * PAGE_DIGEST_BYTES;
      pages.set(page, bytes.subarray(from, from + PAGE_DIGEST_BYTES));
    }
  }
  const end = Buffer.alloc(checksumBytes + 1);
  if ((await file.read(end, at)) !== checksumBytes) return undefined;
  return checksum.digest().equals(end.subarray(0, checksumBytes)) ? { cycle, pages } : undefined;
}

function decodeHead(head: Buffer) {
  const digestKind = kinds[head[10] ?? 0xff];
  const blockBytes = head.readUInt32LE(12);
  const size = head.readBigUInt64LE(16);
  const chunks = head.readUInt32LE(24);
  const cycleBytes = head.readUInt32LE(28);
  const sound =
    head.subarray(0, magic.length).equals(magic) &&
    head.readUInt16LE(8) === version &&
    isBlockSize(blockBytes) &&
    size <= BigInt(limits.diskBytesMax) &&
    cycleBytes > 0 &&
    cycleBytes <= cycleBytesMax;
  if (!sound || digestKind === undefined) return undefined;
  const cycle = head.toString("utf8", 32, 32 + cycleBytes);
  return { sizeBytes: Number(size), blockBytes, digestKind, chunks, cycle };
}
