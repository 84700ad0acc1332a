/**
 * A recovery point as an image, read beside whatever is being done to its disk, in this process or another one.
 *
 * What the logs do not have comes from the replica and its table. The applier appends to the open log, syncs it, and only then overwrites;
 * so after replica and table were read the logs are looked at again, and what they still do not have had not been overwritten. Every block is
 * compared with its digest before it is served.
 */
import { invariant, ReplicationError } from "../../base/errors.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  type DigestKind,
  EXTENT_BYTES_MAX,
  type Geometry,
  pageBlocks,
  pageCount,
} from "../../base/units.ts";
import { loadCodecs } from "../../codec/compression.ts";
import { isZero } from "../../base/zero.ts";
import { createDigester, type Digester } from "../../codec/digest.ts";
import type { BlockReader, Extent } from "../../image/block-device.ts";
import { checkRange } from "../../image/range.ts";
import type { FileLock } from "../../storage/seam.ts";
import { type DiskRecord, pathsOf, readRecord } from "../disk-record.ts";
import { inFile } from "../file-error.ts";
import { diskPaths, type DiskPaths } from "../layout.ts";
import type { StoreParts } from "../open-disk.ts";
import { listPoints, type Point } from "./point.ts";
import { BlockAssembler, type Outcome } from "./blocks.ts";
import { type ChainParts, openChain, type PageView, type PointChain, pointNotFound, readPoints } from "./chain.ts";
import { ChainFollower, closeLogs } from "./follower.ts";
import { lockPoint } from "./lock.ts";
import { openReplicaToRead } from "../replica-file.ts";
import type { ReplicaReader } from "../replica.ts";
import type { BlockRange } from "./sources.ts";
import { saysZero, type TablePage, TablePages } from "./table.ts";
import { settleAll } from "../table-files.ts";

/**
 * A recovery point as an image. Content never changes while it is open. A block that cannot be told for sure is never served: `read` throws
 * `store-damaged` with `disk`, `point`, `block` and `offset` in the details, and other blocks stay readable.
 */
export interface PointReader extends BlockReader {
  readonly disk: DiskRecord;
  readonly point: Point;
  /** Digest of a block at the point, all zero for a zero block. Throws `store-damaged` when it cannot be told. */
  digest(block: number): Promise<Uint8Array>;
  /**
   * Digests of table page `page` at the point, of blocks that exist. With those of all pages the point's root can be checked, which says of all of
   * them whether they are right. Throws `store-damaged` when one of them cannot be told.
   */
  digests(page: number): Promise<Uint8Array>;
}

/** Where the points of a disk are read from; see {@link readPoints}. */
export interface DiskPoints {
  /** Ascending. */
  readonly points: readonly Point[];
  /** Records that are damaged or were taken away. Points before them cannot be read. */
  readonly unreadable: readonly { readonly point: number; readonly message: string }[];
  /** A delta over the newest point was begun. */
  readonly openLog: boolean;
}

/** Throws `disk-not-found`, `store-damaged` when disk.json cannot be read. */
export async function listDiskPoints(store: StoreParts, name: string): Promise<DiskPoints> {
  const paths = diskPaths(store.path, name);
  await readDisk(store, paths, name);
  const { points, unreadable, files } = await readPoints(store.storage, paths);
  return { points, unreadable, openLog: files.openLog };
}

async function readDisk(store: StoreParts, paths: DiskPaths, name: string): Promise<DiskRecord> {
  const disk = await readRecord(store.storage, paths);
  if (disk !== undefined) return disk;
  throw new ReplicationError("disk-not-found", `the store ${store.path} has no disk ${name}`);
}

/**
 * Opens a point. It cannot be removed until it is closed. Throws `disk-not-found`, `point-not-found`, `disk-busy`, `locks-unsupported`,
 * `store-version-unsupported`; `store-damaged` when something between the point and the replica is missing or damaged: newer points may be
 * readable then.
 */
export async function openPoint(store: StoreParts, name: string, sequence: number | "newest"): Promise<PointReader> {
  const { storage } = store;
  const paths = diskPaths(store.path, name);
  const disk = await readDisk(store, paths, name);
  const { lock, point } = await lockFound(store, paths, name, sequence);
  const closers: (() => Promise<void>)[] = [() => lock.release()];
  try {
    const { blockBytes, digestKind } = disk;
    const digester = await digesterOf(digestKind);
    const lz4 = (await loadCodecs()).get("lz4");
    const decompressLz4 = (packed: Uint8Array, raw: Uint8Array): void => {
      lz4.decompress(packed, raw);
    };
    const parts: ChainParts = { storage, paths, name, blockBytes, digestKind, decompressLz4 };
    const chain = await openChain(parts, point);
    closers.push(() => closeLogs(chain.logs));
    const table = await TablePages.open(storage, paths);
    closers.push(() => table.close());
    const replica = await openReplicaToRead(storage, pathsOf(paths, disk), disk);
    return new OpenPoint({ parts, disk, chain, table, replica, lock, digester });
  } catch (error) {
    for (const close of closers.reverse()) await close();
    throw error;
  }
}

/** One for all readers of the thread: nothing it does is left half done for another to see. */
const digesters = new Map<DigestKind, Promise<Digester>>();

function digesterOf(kind: DigestKind): Promise<Digester> {
  let digester = digesters.get(kind);
  if (digester === undefined) digesters.set(kind, (digester = createDigester(kind)));
  return digester;
}

/** A newest point that is removed before it is locked is not the newest any more. */
const newestTries = 20;

async function lockFound(
  store: StoreParts,
  paths: DiskPaths,
  name: string,
  sequence: number | "newest",
): Promise<{ readonly lock: FileLock; readonly point: number }> {
  for (let tries = 0; tries < newestTries; tries++) {
    const wanted = sequence === "newest" ? (await listPoints(store.storage, paths)).newest : sequence;
    const lock = wanted > 0 ? await lockPoint(store, paths, wanted) : undefined;
    if (lock !== undefined) return { lock, point: wanted };
    if (sequence !== "newest" || wanted === 0) break;
  }
  throw pointNotFound(name, sequence, (await readPoints(store.storage, paths)).points);
}

interface OpenParts {
  readonly parts: ChainParts;
  readonly disk: DiskRecord;
  readonly chain: PointChain;
  readonly table: TablePages;
  readonly replica: ReplicaReader;
  readonly lock: FileLock;
  readonly digester: Digester;
}

/** Blocks whose content is put together: within one table page. */
interface Work {
  readonly page: number;
  readonly range: BlockRange;
  /** Whole blocks of the range, padded. */
  readonly bytes: Uint8Array;
  /** 1: `bytes` got what the replica has of the block. */
  readonly fetched: Uint8Array;
  /** Blocks to be fetched whatever the logs say. */
  readonly wanted: Set<number>;
}

/** What is being written just now may look damaged for a moment. */
const triesMax = 3;
/** Table pages looked at together for extents: one look again for all of them. */
const extentPages = 16;

class OpenPoint implements PointReader {
  readonly disk: DiskRecord;
  readonly point: Point;
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly #o: OpenParts;
  readonly #geometry: Geometry;
  readonly #perPage: number;
  readonly #width: number;
  readonly #follower: ChainFollower;
  readonly #blocks: BlockAssembler;
  readonly #tasks = new Set<Promise<unknown>>();
  /** The block that was last read in pieces; a point never changes. */
  #kept: { readonly block: number; readonly bytes: Uint8Array } | undefined;
  #closed: Promise<void> | undefined;

  constructor(parts: OpenParts) {
    const { disk, chain, digester } = parts;
    const { blockBytes, digestKind } = disk;
    this.#o = parts;
    this.disk = disk;
    this.point = chain.point;
    this.sizeBytes = chain.point.sizeBytes;
    this.sectorBytes = disk.sectorBytes === 4096 ? 4096 : 512;
    this.#geometry = { sizeBytes: this.sizeBytes, blockBytes, digestKind };
    this.#perPage = blocksPerPage(digestKind);
    this.#width = digestBytes(digestKind);
    this.#follower = new ChainFollower(parts.parts, chain, () => this.#tasks.size <= 1);
    this.#blocks = new BlockAssembler({
      name: disk.name,
      point: chain.point.point,
      geometry: this.#geometry,
      digester,
    });
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(this.sizeBytes, offset, target.length);
    return this.#run(() => this.#read(target, offset));
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent, void, undefined> {
    checkRange(this.sizeBytes, offset, length);
    const { blockBytes } = this.#geometry;
    const end = offset + length;
    const endBlock = length === 0 ? 0 : Math.ceil(end / blockBytes);
    const group = extentPages * this.#perPage;
    let run: { readonly kind: "data" | "zero"; readonly offset: number } | undefined;
    for (let first = Math.floor(offset / blockBytes); first < endBlock; ) {
      const range = { first, end: Math.min(endBlock, first - (first % group) + group) };
      const zeros = await this.#run(() => this.#zeros(range));
      for (let block = first; block < range.end; block++) {
        const kind = zeros[block - first] === 1 ? "zero" : "data";
        if (kind === run?.kind) continue;
        const at = Math.max(offset, block * blockBytes);
        if (run !== undefined) yield { ...run, length: at - run.offset };
        run = { kind, offset: at };
      }
      first = range.end;
    }
    if (run !== undefined) yield { ...run, length: end - run.offset };
  }

  digest(block: number): Promise<Uint8Array> {
    invariant(
      Number.isInteger(block) && block >= 0 && block < blockCount(this.#geometry),
      "a block lies within its disk",
    );
    return this.#run(() => this.#digests(Math.floor(block / this.#perPage), { first: block, end: block + 1 }));
  }

  digests(page: number): Promise<Uint8Array> {
    invariant(
      Number.isInteger(page) && page >= 0 && page < pageCount(this.#geometry),
      "a table page lies within its disk",
    );
    const { first, count } = pageBlocks(this.#geometry, page);
    return this.#run(() => this.#digests(page, { first, end: first + count }));
  }

  async #digests(page: number, { first, end }: BlockRange): Promise<Uint8Array> {
    const tables = await this.#tables(page, page + 1);
    const view = this.#follower.chain.view(page);
    const digests = new Uint8Array((end - first) * this.#width);
    const unsure: number[] = [];
    for (let block = first; block < end; block++) {
      const verdict = this.#blocks.verdict(view, tables.get(page), block);
      if ("trouble" in verdict) throw this.#blocks.damaged(block, verdict.trouble);
      digests.set(verdict.digest, (block - first) * this.#width);
      if (!verdict.sure) unsure.push(block);
    }
    // Whether these are right only the content can tell.
    const bytes = new Uint8Array(unsure.length === 0 ? 0 : this.#geometry.blockBytes);
    for (const block of unsure) {
      await this.#fill(page, { first: block, end: block + 1 }, bytes);
      if (isZero(bytes)) digests.fill(0, (block - first) * this.#width, (block + 1 - first) * this.#width);
    }
    return digests;
  }

  /** Waits for what is being read. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    while (this.#tasks.size > 0) await Promise.allSettled(this.#tasks);
    const { table, replica, lock } = this.#o;
    try {
      await settleAll([this.#follower.close(), table.close(), replica.close()]);
    } finally {
      await lock.release();
    }
  }

  async #run<T>(work: () => Promise<T>): Promise<T> {
    invariant(this.#closed === undefined, "a closed point is not read");
    const task = work();
    this.#tasks.add(task);
    try {
      return await task;
    } finally {
      this.#tasks.delete(task);
    }
  }

  async #read(target: Uint8Array, offset: number): Promise<void> {
    const { blockBytes } = this.#geometry;
    const end = offset + target.length;
    const blocksMax = Math.max(1, EXTENT_BYTES_MAX / blockBytes);
    for (let at = offset; at < end; ) {
      const first = Math.floor(at / blockBytes);
      const page = Math.floor(first / this.#perPage);
      const start = first * blockBytes;
      // Whole blocks are put together where they are wanted.
      const stop = Math.min(Math.floor(end / blockBytes), first + blocksMax, (page + 1) * this.#perPage);
      const whole = at === start && stop > first;
      const upTo = Math.min(end, whole ? stop * blockBytes : start + blockBytes);
      const piece = target.subarray(at - offset, upTo - offset);
      if (whole) await this.#fill(page, { first, end: stop }, piece);
      else piece.set((await this.#inPieces(page, first)).subarray(at - start, upTo - start));
      at = upTo;
    }
  }

  /** A whole block for who wants part of it. */
  async #inPieces(page: number, block: number): Promise<Uint8Array> {
    if (this.#kept?.block === block) return this.#kept.bytes;
    const bytes = new Uint8Array(this.#geometry.blockBytes);
    await this.#fill(page, { first: block, end: block + 1 }, bytes);
    this.#kept = { block, bytes };
    return bytes;
  }

  /** Fills `bytes` with whole blocks of one table page. Order: table and replica read → looked again → put together and compared. */
  async #fill(page: number, range: BlockRange, bytes: Uint8Array): Promise<void> {
    const work: Work = { page, range, bytes, fetched: new Uint8Array(range.end - range.first), wanted: new Set() };
    for (let tries = 1; ; ) {
      work.fetched.fill(0);
      const before = this.#follower.chain;
      const table = this.#tableFor(before, page, range);
      const fetched = await this.#fetch(before.view(page), table, work);
      const chain = table !== undefined || fetched ? await this.#follower.look() : before;
      const outcome = this.#assemble(chain.view(page), table, work);
      if (outcome === "good") return;
      // A block is wanted once at most, so this comes to an end.
      if (outcome === "fetch") continue;
      if (tries++ === triesMax) throw outcome;
    }
  }

  /** The table's page, when the logs lack one of the blocks. */
  #tableFor(chain: PointChain, page: number, { first, end }: BlockRange): TablePage | undefined {
    const view = chain.view(page);
    let needed = view.isEmpty;
    for (let block = first; block < end && !needed; block++) needed = view.sources(block) === undefined;
    if (!needed) return undefined;
    const { table } = this.#o;
    const found = table.page(page);
    return found.proven ? found : table.prove(page, found, chain.openDigests(page), this.#geometry.digestKind);
  }

  /** Reads from the replica what the logs do not have, in runs of blocks. True: something was read. */
  async #fetch(view: PageView, table: TablePage | undefined, work: Work): Promise<boolean> {
    const { first, end } = work.range;
    const isNeeded = (block: number): boolean =>
      block < end && (work.wanted.has(block) || this.#blocks.needsReplica(view, table, block));
    let any = false;
    for (let block = first; block < end; block++) {
      if (!isNeeded(block)) continue;
      let stop = block + 1;
      while (isNeeded(stop)) stop++;
      await this.#readReplica(work, { first: block, end: stop });
      work.fetched.fill(1, block - first, stop - first);
      any = true;
      block = stop;
    }
    return any;
  }

  /** Beyond the end of the replica, and of the point, there are zeros. */
  async #readReplica({ range, bytes }: Work, { first, end }: BlockRange): Promise<void> {
    const { replica } = this.#o;
    const { blockBytes } = this.#geometry;
    const offset = first * blockBytes;
    const target = bytes.subarray((first - range.first) * blockBytes, (end - range.first) * blockBytes);
    const length = Math.min(target.length, this.sizeBytes - offset);
    const count = await inFile(
      "replica-unreadable",
      `disk ${this.disk.name}: reading ${replica.path} at offset ${offset}, length ${length}`,
      () => replica.read(target.subarray(0, length), offset),
    );
    target.fill(0, count);
  }

  /** The first failure, if any; else whether something has still to be fetched. */
  #assemble(view: PageView, table: TablePage | undefined, work: Work): Outcome {
    const { first, end } = work.range;
    const { blockBytes } = this.#geometry;
    let all: Outcome = "good";
    for (let block = first; block < end; block++) {
      const at = block - first;
      const target = work.bytes.subarray(at * blockBytes, (at + 1) * blockBytes);
      const outcome = this.#blocks.assemble(view, table, block, { target, fetched: work.fetched[at] === 1 });
      if (outcome === "fetch") {
        work.wanted.add(block);
        if (all === "good") all = outcome;
      } else if (outcome !== "good" && !(all instanceof ReplicationError)) all = outcome;
    }
    return all;
  }

  /** Pages of the table from `first` to `end - 1` where the logs do not say all, read before the look that this ends with. */
  async #tables(first: number, end: number): Promise<ReadonlyMap<number, TablePage>> {
    const tables = new Map<number, TablePage>();
    for (let page = first; page < end; page++) {
      const blocks = pageBlocks(this.#geometry, page);
      const table = this.#tableFor(this.#follower.chain, page, {
        first: blocks.first,
        end: blocks.first + blocks.count,
      });
      if (table !== undefined) tables.set(page, table);
    }
    if (tables.size > 0) await this.#follower.look();
    return tables;
  }

  /** 1 for each block of the range that is known to be zero. */
  async #zeros({ first, end }: BlockRange): Promise<Uint8Array> {
    const zeros = new Uint8Array(end - first);
    const tables = await this.#tables(Math.floor(first / this.#perPage), Math.ceil(end / this.#perPage));
    const { chain } = this.#follower;
    for (let block = first; block < end; ) {
      const page = Math.floor(block / this.#perPage);
      const stop = Math.min(end, (page + 1) * this.#perPage);
      const table = tables.get(page);
      const view = chain.view(page);
      if (view.isEmpty && table?.proven === true && saysZero(table)) {
        zeros.fill(1, block - first, stop - first);
        block = stop;
        continue;
      }
      for (; block < stop; block++) zeros[block - first] = Number(this.#blocks.isKnownZero(view, table, block));
    }
    return zeros;
  }
}
