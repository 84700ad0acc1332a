/**
 * Joins the undo logs of a point into one when that gives space back: after points were removed, a list holds content that nobody can reach any
 * more, since an earlier log of the list has the same part. Needs no `apply.lock`: closed logs do not change.
 */
import { join } from "node:path";
import { loadCodecs } from "../codec/compression.ts";
import type { StorageFile } from "../storage/seam.ts";
import { neededLogs, ownLogs } from "./chain.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import { undoName } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints, type NamedLog, type Point, writePoint } from "./points/point.ts";
import { syncDirectory } from "./state-file.ts";
import type { ClosedLog, UndoLogReader } from "./undo/entry.ts";
import { encodeUndoHeader, UNDO_ID_BYTES, UNDO_PAGE_BYTES } from "./undo/format.ts";
import { LoggedParts } from "./undo/logged.ts";
import { countMerge, type MergeCount, mergeLogs } from "./undo/merge.ts";
import { openUndoLogReader } from "./undo/reader.ts";
import { UndoWriter } from "./undo/writer.ts";

/** A list this long is joined whatever it gives back: each log is one more to look into, and a record holds so many names only. */
const joinedLogsMin = 64;

/** Content that must become free, as a share of all that the list holds. */
const worthShare = 1 / 3;

export interface Compaction {
  readonly point: number;
  /** Bytes of the logs that were joined, and of the one that took their place. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

/**
 * Joins lists one after another, oldest point first. Safe beside a receiver, readers and removals: what changes meanwhile is left for the next time.
 * Throws `no-space` (nothing has changed then), `write-failed`, `sync-failed`, `aborted`. A list with a log that cannot be read is left as it is, and so
 * are all while the record of a point cannot be read.
 */
export async function compactDisk(
  store: StoreParts,
  paths: DiskPaths,
  signal?: AbortSignal,
): Promise<readonly Compaction[]> {
  const { storage } = store;
  const { points, unreadable } = await loadPoints(storage, paths, await listPoints(storage, paths));
  const done: Compaction[] = [];
  if (unreadable.length > 0) return done;
  for (const [index, list] of ownLogs(points).entries()) {
    signal?.throwIfAborted();
    const point = points[index];
    if (point === undefined || list === undefined || list.length < 2) continue;
    const compaction = await new ListCompaction(store, paths, point, list, signal).run();
    if (compaction !== undefined) done.push(compaction);
  }
  return done;
}

/** What a damaged log held is not known: a merge would make a whole log of it. Most damage is found only when the entries are read. */
function areWhole(readers: readonly UndoLogReader[]): boolean {
  return readers.every(({ damage }) => damage.length === 0);
}

class ListCompaction {
  readonly #store: StoreParts;
  readonly #paths: DiskPaths;
  readonly #point: Point;
  readonly #list: readonly NamedLog[];
  readonly #signal: AbortSignal | undefined;
  readonly #files: StorageFile[] = [];

  constructor(
    store: StoreParts,
    paths: DiskPaths,
    point: Point,
    list: readonly NamedLog[],
    signal: AbortSignal | undefined,
  ) {
    this.#store = store;
    this.#paths = paths;
    this.#point = point;
    this.#list = list;
    this.#signal = signal;
  }

  /** Undefined: it is not worth it, or the list changed under our hands. */
  async run(): Promise<Compaction | undefined> {
    try {
      const readers = await this.#open();
      if (readers === undefined) return undefined;
      const { kept, held } = await this.#count(readers);
      const worthIt = held - kept >= held * worthShare || this.#list.length >= joinedLogsMin;
      if (!worthIt || !areWhole(readers)) return undefined;
      return await this.#join(readers);
    } finally {
      for (const file of this.#files) await file.close();
    }
  }

  async #count(readers: readonly UndoLogReader[]): Promise<MergeCount> {
    const counting = countMerge(readers);
    for (;;) {
      const step = counting.next();
      if (step.done === true) return step.value;
      this.#signal?.throwIfAborted();
      // Others of this thread, a session for one, get their turn.
      await this.#store.clock.sleep(0);
    }
  }

  async #open(): Promise<readonly UndoLogReader[] | undefined> {
    const { storage } = this.#store;
    const lz4 = (await loadCodecs()).get("lz4");
    const readers: UndoLogReader[] = [];
    for (const { name, closed } of this.#list) {
      const path = join(this.#paths.points, name);
      // Removed meanwhile, with its point.
      if ((await storage.stat(path)) === undefined) return undefined;
      const file = await inFile("store-damaged", `opening ${path}`, () => storage.open(path));
      this.#files.push(file);
      const reader = openUndoLogReader({
        path,
        lanes: storage.lanes,
        fd: file.fd,
        closed,
        decompressLz4: (packed, raw) => {
          lz4.decompress(packed, raw);
        },
      });
      readers.push(reader);
    }
    return areWhole(readers) ? readers : undefined;
  }

  /**
   * Order: the new log made and locked → written, synced, its name durable → (chain.lock) the point's record names it, durable → logs nobody names
   * unlinked. A crash before the record leaves a log without a name, which the next holder of `apply.lock` removes.
   */
  async #join(readers: readonly UndoLogReader[]): Promise<Compaction | undefined> {
    const { storage, locks } = this.#store;
    const { name, path } = this.#newLog();
    // Made by locking; a name that is there already is left alone.
    if ((await storage.stat(path)) !== undefined) return undefined;
    const lock = await locks.exclusive(path);
    if (lock === undefined) return undefined;
    let useless = true;
    try {
      const closed = await this.#write(path, readers);
      if (!areWhole(readers)) return undefined;
      await syncDirectory(storage, this.#paths.points);
      // When this fails the record may name the log: who tidies up later can tell.
      useless = false;
      const named = await locks.withChainLock(this.#paths.chainLock, () => this.#adopt({ name, closed }));
      useless = !named;
      if (!named) return undefined;
      const bytesBefore = this.#list.reduce((sum, log) => sum + log.closed.sizeBytes, 0);
      return { point: this.#point.point, bytesBefore, bytesAfter: closed.sizeBytes };
    } finally {
      if (useless) await inFile("write-failed", `removing ${path}`, () => storage.unlink(path));
      await lock.release();
    }
  }

  /** Drawn by chance: who reads a point keeps its logs open by their names, so a name never stands for two contents. */
  #newLog(): { readonly name: string; readonly path: string } {
    const [a = 0, b = 0, c = 0, d = 0] = this.#store.random.bytes(4);
    const name = undoName(this.#point.point, 1 + ((((a << 22) | (b << 14) | (c << 6) | (d >> 2)) >>> 0) % 999_999_999));
    return { name, path: join(this.#paths.points, name) };
  }

  async #write(path: string, readers: readonly UndoLogReader[]): Promise<ClosedLog> {
    const { storage, random } = this.#store;
    const [first] = readers;
    const facts = first?.header;
    if (facts === undefined) throw new Error("a list that is joined has logs");
    const header = { ...facts, id: random.bytes(UNDO_ID_BYTES), sequence: this.#point.point };
    const file = await inFile("write-failed", `creating ${path}`, () =>
      storage.open(path, { write: true, create: true, mode: 0o600 }),
    );
    try {
      const page = new Uint8Array(UNDO_PAGE_BYTES);
      page.set(encodeUndoHeader(header));
      await inFile("write-failed", `writing ${path}`, () => file.write(page, 0));
      const empty = {
        end: UNDO_PAGE_BYTES,
        pending: [],
        runs: [],
        entries: 0,
        parts: 0,
        damagedEntries: 0,
        damage: [],
      };
      const writer = new UndoWriter(file, header, new LoggedParts(header.blockBytes), empty);
      const lz4 = (await loadCodecs()).get("lz4");
      const target = {
        id: header.id,
        blockBytes: header.blockBytes,
        compressLz4: (source: Uint8Array, into: Uint8Array) => lz4.compress(source, into),
      };
      for (const { heads, content } of mergeLogs(readers, target)) {
        this.#signal?.throwIfAborted();
        const batch = writer.batch(heads, content.length);
        await inFile("write-failed", `writing ${path}`, () =>
          file.write(Buffer.concat([batch.head, content]), batch.offset),
        );
        writer.wrote(batch);
      }
      return await writer.finish();
    } finally {
      await file.close();
    }
  }

  /** With `chain.lock` held. False: the point is gone, or its list does not begin with what was joined. */
  async #adopt(joined: NamedLog): Promise<boolean> {
    const { storage } = this.#store;
    const { points, unreadable } = await loadPoints(storage, this.#paths, await listPoints(storage, this.#paths));
    const index = points.findIndex(({ point }) => point === this.#point.point);
    const now = points[index];
    const list = ownLogs(points)[index];
    if (now === undefined || list === undefined || unreadable.length > 0) return false;
    if (this.#list.some(({ name }, at) => list[at]?.name !== name)) return false;
    const point: Point = { ...now, logs: [joined, ...list.slice(this.#list.length)] };
    await writePoint(storage, this.#paths, point);
    const needed = neededLogs(points.map((each) => (each.point === point.point ? point : each)));
    await inFile("write-failed", `removing joined logs in ${this.#paths.points}`, async () => {
      for (const { name } of this.#list) {
        if (!needed.has(name)) await storage.unlink(join(this.#paths.points, name));
      }
    });
    return true;
  }
}
