/**
 * The undo logs between a point and the replica, open. The chain of a point only ever grows at its end while the point is locked: the open log
 * gets entries, is closed by a commit, and the next one follows. Who reads follows it by looking again.
 */
import { join } from "node:path";
import { errnoOf, ReplicationError } from "../../base/errors.ts";
import { blocksPerPage, type DigestKind, KIB, MIB } from "../../base/units.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import { type ChainLog, chainOf, ownLogs } from "../chain.ts";
import { fileError } from "../file-error.ts";
import type { DiskPaths } from "../layout.ts";
import { parsePointFile, undoName } from "../layout.ts";
import { listPoints, type LoadedPoints, loadPoints, orphanLog, type Point, type PointFiles } from "./point.ts";
import { type BlockRange, type BlockSources, type PageSources, PageSourcesBuilder } from "./sources.ts";
import type { NamedDigest } from "./table.ts";
import { damaged } from "../state-file.ts";
import { readLog } from "../undo/batches.ts";
import type { ClosedLog, UndoEntry, UndoLogReader } from "../undo/entry.ts";
import { UNDO_PAGE_BYTES } from "../undo/format.ts";
import { ByteLru } from "../undo/lru.ts";
import { openUndoLogReader } from "../undo/reader.ts";

/** What chains are made with. */
export interface ChainParts {
  readonly storage: Storage;
  readonly paths: DiskPaths;
  /** Of the disk, for messages. */
  readonly name: string;
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
  readonly decompressLz4: (packed: Uint8Array, raw: Uint8Array) => void;
}

/** Index pages all logs of a chain keep, and the least and the most one of them does. */
const indexCacheBytes = 24 * MIB;
const indexCacheBytesMin = 256 * KIB;
const indexCacheBytesMax = 2 * MIB;

/** A log of a chain, open. */
export interface HeldLog {
  readonly name: string;
  readonly file: StorageFile;
  readonly closed: ClosedLog | undefined;
  readonly reader: UndoLogReader;
}

/** Commits and removals beside us change what we look at; this many looks outlast them. */
const looksMax = 20;

/** All points of a disk, as of one moment. */
export interface ListedPoints extends LoadedPoints {
  readonly files: PointFiles;
}

/**
 * The points ascending. A record that vanishes while they are read means looking again: the logs of a removed point are in the list of the
 * one before it, which may have been read too early. A log whose point's record somebody took away counts as an unreadable record.
 * `from`: points before it are left out, and their records are not read.
 */
export async function readPoints(storage: Storage, paths: DiskPaths, from = 0): Promise<ListedPoints> {
  for (let looks = 1; ; looks++) {
    const files = await listPoints(storage, paths);
    const records = files.records.filter((sequence) => sequence >= from);
    const loaded = await loadPoints(storage, paths, { records });
    const orphan = orphanLog(files);
    const { whole } = loaded;
    if (whole && orphan === undefined) return { files, ...loaded };
    if (looks < looksMax) continue;
    if (!whole || orphan === undefined) throw changesForEver(paths);
    const message = damaged(paths.point(orphan), "it is missing, but its undo log is there").message;
    return { files, ...loaded, unreadable: [...loaded.unreadable, { point: orphan, message }] };
  }
}

function changesForEver(paths: DiskPaths): ReplicationError {
  return new ReplicationError("disk-busy", `${paths.points} changes without end; try again in a moment`);
}

/**
 * Opens the logs of a point's chain. `held`: logs of an earlier chain of the same point; they are used again where they are still the same, and stay
 * the caller's. Throws `point-not-found`; `store-damaged` naming what is missing or damaged between the point and the replica.
 */
export async function openChain(
  parts: ChainParts,
  sequence: number,
  held: readonly HeldLog[] = [],
): Promise<PointChain> {
  let missing = "";
  for (let looks = 0; looks < looksMax; looks++) {
    // The chain of a point is of its own record and the newer ones: a lock keeps the point from being removed, and with it where it begins.
    const listed = await readPoints(parts.storage, parts.paths, sequence);
    const found = chainLogs(parts, listed, sequence);
    if (found === undefined) {
      throw pointNotFound(parts.name, sequence, (await readPoints(parts.storage, parts.paths)).points);
    }
    const { point, logs } = found;
    const opened = await openLogs(parts, logs, held);
    if (!("missing" in opened)) {
      return new PointChain(parts, { point, newest: listed.files.newest, ...opened });
    }
    missing = opened.missing;
  }
  throw damaged(join(parts.paths.points, missing), `it is missing, and point ${sequence} cannot be read without it`);
}

/** `listed`: from the point on. Undefined: it is not there. */
function chainLogs(
  { name, paths }: ChainParts,
  { files, points, unreadable }: ListedPoints,
  sequence: number,
): { readonly point: Point; readonly logs: readonly ChainLog[] } | undefined {
  const [own] = unreadable;
  if (own !== undefined) {
    const older = own.point === sequence ? "" : `disk ${name}: point ${sequence} cannot be reached: `;
    throw new ReplicationError("store-damaged", `${older}${own.message}`, { details: { point: own.point } });
  }
  const [point] = points;
  if (point?.point !== sequence) return undefined;
  const chain = chainOf(points, 0, files.openLog);
  if (chain === undefined) {
    const broken = points[ownLogs(points).indexOf(undefined)]?.point ?? sequence;
    throw damaged(
      paths.undo(broken),
      `no record says how it was closed, and point ${sequence} cannot be read without it`,
    );
  }
  return { point, logs: chain };
}

export function pointNotFound(name: string, sequence: number | "newest", points: readonly Point[]): ReplicationError {
  const [first, last] = [points[0], points.at(-1)];
  const there =
    first === undefined || last === undefined
      ? "has no points yet"
      : `has no point ${sequence}; its points are from ${first.point} to ${last.point}`;
  return new ReplicationError("point-not-found", `disk ${name} ${there}`);
}

interface WantedLog extends ChainLog {
  /** Index pages to keep; default {@link indexCacheBytesMin}. */
  readonly cacheBytes?: number;
}

type OpenedLogs =
  | { readonly closed: readonly HeldLog[]; readonly open: HeldLog | undefined }
  | { readonly missing: string };

async function openLogs(parts: ChainParts, logs: readonly ChainLog[], held: readonly HeldLog[]): Promise<OpenedLogs> {
  const fresh: StorageFile[] = [];
  const closed: HeldLog[] = [];
  let open: HeldLog | undefined;
  let done = false;
  try {
    const share = Math.floor(indexCacheBytes / Math.max(1, logs.length));
    const cacheBytes = Math.min(indexCacheBytesMax, Math.max(indexCacheBytesMin, share));
    for (const each of logs) {
      const log = { ...each, cacheBytes };
      const before = held.find(({ name }) => name === log.name);
      const found = before === undefined ? await openLog(parts, log) : again(parts, log, before);
      if (found === "missing") return { missing: log.name };
      if (found === "empty") continue;
      if (before === undefined) fresh.push(found.file);
      if (log.closed === undefined) open = found;
      else closed.push(found);
    }
    done = true;
    return { closed, open };
  } finally {
    if (!done) for (const file of fresh) await file.close();
  }
}

/** `empty`: an open log whose header is not whole yet, so it holds nothing. */
async function openLog(parts: ChainParts, log: WantedLog): Promise<HeldLog | "missing" | "empty"> {
  const path = join(parts.paths.points, log.name);
  let file: StorageFile;
  try {
    file = await parts.storage.open(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return "missing";
    throw fileError(error, "store-damaged", `opening ${path}`);
  }
  try {
    for (let looks = 1; ; looks++) {
      try {
        return read(parts, log, file);
      } catch (error) {
        const torn = error instanceof ReplicationError && error.code === "store-damaged";
        if (!torn || log.closed !== undefined || looks === 3) throw error;
        // Batches are written behind a whole header only.
        if (hasBatches(parts, file)) continue;
        await file.close();
        return "empty";
      }
    }
  } catch (error) {
    await file.close();
    throw error;
  }
}

function hasBatches({ storage }: ChainParts, file: StorageFile): boolean {
  return readLog({ path: file.path, lanes: storage.lanes, fd: file.fd }, new Uint8Array(1), UNDO_PAGE_BYTES) > 0;
}

/** A log that is open already, as the chain knows it now. The open one may have been closed: then it has a footer. */
function again(parts: ChainParts, log: WantedLog, held: HeldLog): HeldLog {
  return held.closed?.footerChecksum === log.closed?.footerChecksum && held.closed?.sizeBytes === log.closed?.sizeBytes
    ? held
    : read(parts, log, held.file);
}

function read(
  { storage, blockBytes, digestKind, decompressLz4, paths }: ChainParts,
  log: WantedLog,
  file: StorageFile,
): HeldLog {
  const { closed, name, cacheBytes = indexCacheBytesMin } = log;
  const path = join(paths.points, name);
  const reader = openUndoLogReader({
    path,
    lanes: storage.lanes,
    fd: file.fd,
    decompressLz4,
    closed,
    cacheBytes,
  });
  const { header } = reader;
  if (
    header.blockBytes !== blockBytes ||
    header.digestKind !== digestKind ||
    header.sequence !== parsePointFile(name)?.sequence
  ) {
    throw damaged(
      path,
      `it is the log of point ${header.sequence} of a disk with blocks of ${header.blockBytes} bytes`,
    );
  }
  return { name, file, closed, reader };
}

const pageCacheBytes = 12 * MIB;

/** What the logs have of one table page, at one moment. */
export interface PageView {
  readonly logs: readonly HeldLog[];
  /** Whether the logs have nothing of the page and are whole. */
  readonly isEmpty: boolean;
  /** What the logs have of a block; undefined: nothing. */
  sources(block: number): BlockSources | undefined;
  /**
   * Why the logs do not prove which digest a block has at the point; undefined: they do. A log that is damaged may have lost entries, so neither
   * what it does not have nor what it has behind the damage says anything.
   */
  trouble(sources: BlockSources | undefined): string | undefined;
}

interface KeptPage {
  readonly closed: PageSources;
  readonly closedBytes: number;
  open: PageSources;
  /** Of the open log, when `open` was made. */
  openVersion: number;
}

/** Lookups are synchronous: what they find is the state of one moment. The files belong to who opened the chain. */
export class PointChain {
  readonly point: Point;
  /** Sequence of the newest point when the chain was opened. */
  readonly newest: number;
  readonly #parts: ChainParts;
  readonly #closed: readonly HeldLog[];
  /** For each closed log a range of blocks it has no entries of. */
  readonly #gaps: BlockRange[];
  readonly #pages = new ByteLru<number, KeptPage>(pageCacheBytes);
  #open: HeldLog | undefined;
  #openVersion = 0;
  #logs: readonly HeldLog[];

  constructor(
    parts: ChainParts,
    found: {
      readonly point: Point;
      readonly newest: number;
      readonly closed: readonly HeldLog[];
      readonly open: HeldLog | undefined;
    },
  ) {
    this.#parts = parts;
    this.point = found.point;
    this.newest = found.newest;
    this.#closed = found.closed;
    this.#gaps = found.closed.map(() => ({ first: 0, end: 0 }));
    this.#open = found.open;
    this.#logs = found.open === undefined ? found.closed : [...found.closed, found.open];
  }

  get hasOpenLog(): boolean {
    return this.#open !== undefined;
  }

  /** In lookup order. */
  get logs(): readonly HeldLog[] {
    return this.#logs;
  }

  /** Takes in what was appended to the open log. Throws `store-damaged`. */
  refresh(): void {
    const open = this.#open;
    if (open === undefined) return;
    if (open.reader.refresh()) this.#openVersion++;
    if (open.reader.sizeBytes > UNDO_PAGE_BYTES) return;
    // While there are no batches its writer may have failed to make the header durable, and made the log anew.
    try {
      this.#setOpen(read(this.#parts, { name: open.name, closed: undefined }, open.file));
    } catch (error) {
      const torn = error instanceof ReplicationError && error.code === "store-damaged";
      // Batches are written behind a whole header only.
      if (!torn || hasBatches(this.#parts, open.file)) throw error;
    }
  }

  /** Opens the newest point's log, which was begun since; nothing is done while it has no whole header. Throws `store-damaged`. */
  async findOpenLog(): Promise<void> {
    const log = await openLog(this.#parts, { name: undoName(this.newest), closed: undefined });
    if (log === "missing") throw damaged(this.#parts.paths.undo(this.newest), "it was there a moment ago");
    if (log !== "empty") this.#setOpen(log);
  }

  #setOpen(log: HeldLog): void {
    this.#open = log;
    this.#logs = [...this.#closed, log];
    this.#openVersion++;
  }

  view(page: number): PageView {
    const { closed, open } = this.#page(page);
    const logs = this.#logs;
    // Now, because looking the page up finds damage.
    const damage = logs.map(({ reader }) =>
      reader.damage.reduce((low, { offset }) => Math.min(low, offset), Number.POSITIVE_INFINITY),
    );
    const whole = damage.every((offset) => offset === Number.POSITIVE_INFINITY);
    return {
      logs,
      isEmpty: whole && closed.size === 0 && open.size === 0,
      sources: (block) => open.get(block) ?? closed.get(block),
      trouble(sources) {
        const found = whole ? undefined : damageBefore(logs, damage, sources);
        if (found !== undefined || sources === undefined || sources.digest !== undefined) return found;
        return `${logs[sources.digestLog]?.reader.path ?? "an undo log"} lacks the digest of the block`;
      },
    };
  }

  /** The first digests of the open log alone: what the table had when the newest point was made. */
  openDigests(page: number): readonly NamedDigest[] {
    if (this.#open === undefined) return [];
    const { first, end } = this.#range(page);
    const found = new Map<number, NamedDigest>();
    for (const { block: start, run, digest } of this.#open.reader.entries(first, end - first)) {
      for (let block = start; digest !== undefined && block < start + run; block++) {
        if (!found.has(block)) found.set(block, { block, digest });
      }
    }
    return [...found.values()];
  }

  #range(page: number): BlockRange {
    const per = blocksPerPage(this.#parts.digestKind);
    return { first: page * per, end: (page + 1) * per };
  }

  #page(page: number): KeptPage {
    let kept = this.#pages.get(page);
    if (kept === undefined) {
      const builder = this.#builder(page);
      for (const index of this.#closed.keys()) builder.add(index, this.#closedEntries(index, page));
      kept = { closed: builder.found, closedBytes: builder.byteLength, open: new Map(), openVersion: -1 };
    }
    if (kept.openVersion !== this.#openVersion) {
      const { first, end } = this.#range(page);
      const builder = this.#builder(page, kept.closed);
      if (this.#open !== undefined) builder.add(this.#closed.length, this.#open.reader.entries(first, end - first));
      kept.open = builder.found;
      kept.openVersion = this.#openVersion;
      this.#pages.set(page, kept, kept.closedBytes + builder.byteLength + 200);
    }
    return kept;
  }

  #builder(page: number, before?: PageSources): PageSourcesBuilder {
    const shape = { blockBytes: this.#parts.blockBytes, sizeBytes: this.point.sizeBytes };
    return new PageSourcesBuilder(shape, this.#range(page), before);
  }

  /** Remembers how far a log has nothing, so that a log of few blocks costs nothing elsewhere. */
  #closedEntries(index: number, page: number): readonly UndoEntry[] {
    const { first, end } = this.#range(page);
    const gap = this.#gaps[index];
    const reader = this.#closed[index]?.reader;
    if (reader === undefined || (gap !== undefined && gap.first <= first && end <= gap.end)) return [];
    const entries = reader.entries(first, end - first);
    if (entries.length === 0) {
      this.#gaps[index] = { first, end: reader.nextBlock(end) ?? Number.POSITIVE_INFINITY };
    }
    return entries;
  }
}

/** `damage`: for each log the lowest offset of what cannot be read. */
function damageBefore(
  logs: readonly HeldLog[],
  damage: readonly number[],
  sources: BlockSources | undefined,
): string | undefined {
  const last = sources?.digestLog ?? logs.length;
  for (const [index, { reader }] of logs.entries()) {
    if (index > last) break;
    const from = damage[index] ?? Number.POSITIVE_INFINITY;
    const before = index === last && sources !== undefined && sources.digestOffset > 0 && sources.digestOffset < from;
    if (from < Number.POSITIVE_INFINITY && !before) {
      return `${reader.path} is damaged at offset ${from}, so what it kept of the block may be lost`;
    }
  }
  return undefined;
}
