/** The holder of `apply.lock`: a disk open for writing. Each method that makes something durable says its order. */
import { invariant, ReplicationError } from "../base/errors.ts";
import { blockCount, pageCount } from "../base/units.ts";
import type { FileRun } from "../image/block-device.ts";
import type { FileLock } from "../storage/seam.ts";
import type { DigestTable } from "../table/digest-table.ts";
import type { CommitFacts, DiskWriter } from "./disk-writer.ts";
import { type DiskRecord, geometryOf } from "./disk-record.ts";
import { inFile } from "./file-error.ts";
import type { HolderHeartbeat } from "./heartbeat.ts";
import type { DiskPaths } from "./layout.ts";
import type { Doubt } from "./doubt.ts";
import { listPoints, type Point, refreshTimes, replicaTimes, writePoint } from "./points/point.ts";
import type { StoreParts } from "./open-disk.ts";
import type { PointReader } from "./points/reader.ts";
import { prunePoints } from "./prune.ts";
import { removeRubbish } from "./recover.ts";
import { checkFits } from "./replica-file.ts";
import type { Replica } from "./replica.ts";
import { shrunkDigest, shrinkDisk, growDisk, isTailKept, type ResizeParts } from "./resize.ts";
import { restoreNewest } from "./rollback.ts";
import { fingerprintOf, removeSession, writeSession } from "./session-record.ts";
import type { Suspect } from "./suspect.ts";
import { emptyRoot, hexOf, settleAll, type TableFiles } from "./table-files.ts";
import { createUndoLog } from "./undo-log.ts";
import type { ClosedLog } from "./undo/entry.ts";
import { UNDO_ID_BYTES } from "./undo/format.ts";
import type { LoggedParts } from "./undo/logged.ts";
import type { UndoWriter } from "./undo/writer.ts";

/** What a writer works with; handed over by who opened it. */
export interface WriterParts {
  readonly store: StoreParts;
  readonly lock: FileLock;
  readonly heartbeat: HolderHeartbeat;
  readonly paths: DiskPaths;
  readonly replica: Replica;
  readonly tableFiles: TableFiles;
  readonly damage: TableDamage;
  readonly record: DiskRecord;
  readonly newest: Point | undefined;
  readonly openLog: boolean;
  readonly undo: UndoWriter | undefined;
  readonly table: DigestTable;
  readonly doubt: Doubt | undefined;
  readonly resumeBlock: number;
  readonly suspect: Suspect;
}

/** Pages of the table that were found not to match their checksums, and are so in the file. */
export type TableDamage = Set<number>;

export class OpenedDisk implements DiskWriter {
  readonly #parts: WriterParts;
  readonly table: DigestTable;
  #record: DiskRecord;
  #newest: Point | undefined;
  #doubt: Doubt | undefined;
  #undo: UndoWriter | undefined;
  #resumeBlock: number;
  #openLog: boolean;
  /** Set by `begin`: the log is open and the clean-stop record is gone, so replica and table may be written. */
  #begun = false;
  #commitsToTidy = 0;
  #poisoned = false;
  #tail: Promise<unknown> = Promise.resolve();
  #released: Promise<void> | undefined;

  constructor(parts: WriterParts) {
    this.#parts = parts;
    this.table = parts.table;
    this.#record = parts.record;
    this.#newest = parts.newest;
    this.#doubt = parts.doubt;
    this.#resumeBlock = parts.resumeBlock;
    this.#openLog = parts.openLog;
    this.#undo = parts.undo;
  }

  get record(): DiskRecord {
    return this.#record;
  }

  get newest(): Point | undefined {
    return this.#newest;
  }

  get replicaFd(): number {
    return this.#parts.replica.fd;
  }

  get replicaDirectFd(): number | undefined {
    return this.#parts.replica.directFd;
  }

  get replicaPath(): string {
    return this.#parts.paths.replica;
  }

  places(blocks: readonly number[]): readonly number[] | undefined {
    return this.#parts.replica.places(blocks);
  }

  claim(blocks: readonly number[]): Promise<readonly number[]> | undefined {
    const { replica } = this.#parts;
    const claimed = replica.claim(blocks);
    if (claimed === undefined) return undefined;
    invariant(this.#begun, "begin comes before any write");
    return inFile("write-failed", `disk ${this.#record.name}: making room in ${replica.path}`, () => claimed);
  }

  runs(offset: number, length: number): readonly FileRun[] {
    return this.#parts.replica.runs(offset, length);
  }

  get doubt(): Doubt | undefined {
    return this.#doubt;
  }

  get logged(): LoggedParts | undefined {
    return this.#undo?.logged;
  }

  get undo(): UndoWriter {
    invariant(this.#begun && this.#undo !== undefined, "begin comes before the undo log");
    return this.#undo;
  }

  get resumeBlock(): number {
    return this.#resumeBlock;
  }

  nextData(offset: number): { readonly start: number; readonly end: number } | undefined {
    return this.#parts.replica.nextData(offset);
  }

  /**
   * Order: table entries synced → `pages` written, given its length and synced → (where the replica is not the newest point: its undo
   * log created) → checkpoint → clean-stop record → no suspicion any more, unless a commit is to keep what others have changed. The replica was synced, and its page cache dropped, when the disk was opened. A crash
   * before the end leaves the table doubtful, or true.
   */
  settleDoubt(): Promise<void> {
    return this.#run(async () => {
      if (this.#doubt === undefined) return;
      const { suspect, tableFiles } = this.#parts;
      await suspect.check(this.#sequence);
      await tableFiles.settle(this.table);
      this.#setAside();
      if (!this.#openLog && !this.#isCommitted()) {
        this.#parts.store.log.warn(
          { disk: this.#record.name },
          "the replica does not hold its newest point; the next delta repairs it",
        );
        await this.#openUndoLog();
      }
      if (this.#openLog) {
        await this.#checkpoint();
        await this.#writeSession(0);
      } else await this.#vouch();
      if (this.#doubt.wish !== "keep" || !suspect.found || !this.#openLog) {
        await suspect.end();
        suspect.unwatch();
      }
      this.#parts.damage.clear();
      this.#doubt = undefined;
    });
  }

  /** Order: (where the replica is compared with its table: the suspicion) → heartbeat durable → log of the newest point durable → clean-stop record gone, durably → (VHDX: its header says that it changes). A crash in between: the delta counts as begun. */
  begin(): Promise<void> {
    return this.#run(async () => {
      const sure = this.#doubt === undefined || this.#doubt.blocks === "differing";
      invariant(sure, "a doubtful table is rebuilt before anything is written");
      await this.#begin();
    });
  }

  suspect(why: string, wish: "keep" | "give-up"): Promise<void> {
    return this.#run(async () => {
      invariant(!this.#begun, "a disk is suspected while nothing is done to it");
      if (this.#doubt === undefined) {
        const { replica, store, paths, suspect } = this.#parts;
        await inFile("sync-failed", `disk ${this.#record.name}: syncing ${paths.replica}`, () => replica.datasync());
        await suspect.watch();
        store.storage.lanes.dropCache(replica.fd, 0, (await replica.stat()).sizeBytes);
      }
      this.#doubt = { ...(this.#doubt ?? { why, blocks: "differing" }), wish };
    });
  }

  noteChanges(): Promise<void> {
    return this.#run(async () => {
      invariant(this.#doubt !== undefined, "changes are found in doubt");
      await this.#parts.suspect.record(this.#doubt.why, true, this.#sequence);
    });
  }

  get hasForeignChanges(): boolean {
    return this.#parts.suspect.found;
  }

  /** Of the newest point; 0: there is none. */
  get #sequence(): number {
    return this.#newest?.point ?? 0;
  }

  /** The replica was read and is the newest point: its record gets the time that was doubted. */
  async #vouch(): Promise<void> {
    const { store, paths, replica } = this.#parts;
    if (this.#newest !== undefined) await refreshTimes(store, paths, this.#newest, replica);
  }

  async #begin(): Promise<UndoWriter> {
    if (!this.#begun) {
      const { store, paths } = this.#parts;
      if (this.#doubt !== undefined) await this.#parts.suspect.record(this.#doubt.why, false, this.#sequence);
      await this.#parts.heartbeat.start();
      await this.#openUndoLog();
      await removeSession(store.storage, paths);
      await this.#touch();
      this.#begun = true;
    }
    return this.undo;
  }

  /** What is to be told from a write of somebody else's is on record, or is told by the doubt. */
  #setAside(): void {
    this.#begun = false;
    this.#parts.heartbeat.pause();
  }

  async #touch(): Promise<void> {
    const { replica, suspect } = this.#parts;
    await suspect.check(this.#sequence);
    await inFile("write-failed", `disk ${this.#record.name}: writing ${replica.path}`, () => replica.touch());
    await suspect.changed();
  }

  /** Order: {@link growDisk}. */
  async grow(sizeBytes: number): Promise<void> {
    const { paths, store } = this.#parts;
    await checkFits(store.storage, paths.replica, this.#record.name, sizeBytes);
    return this.#run(async () => {
      invariant(this.#begun, "begin comes before grow");
      invariant(sizeBytes >= this.#record.sizeBytes, "a disk that grows does not shrink");
      if (sizeBytes > this.#record.sizeBytes) this.#record = await growDisk(this.#resizeParts, this.#record, sizeBytes);
    });
  }

  /** Order: {@link shrinkDisk}. */
  shrink(sizeBytes: number): Promise<void> {
    return this.#run(async () => {
      invariant(sizeBytes < this.#record.sizeBytes, "a disk that shrinks becomes smaller");
      invariant(isTailKept(this.table, this.undo.logged, sizeBytes), "what is cut off is kept before");
      this.#record = await shrinkDisk(this.#resizeParts, this.#record, sizeBytes);
    });
  }

  shrunkDigest(sizeBytes: number): Promise<Uint8Array | undefined> {
    return shrunkDigest(this.#resizeParts, sizeBytes);
  }

  get #resizeParts(): ResizeParts {
    const { store, paths, replica, tableFiles } = this.#parts;
    return { storage: store.storage, paths, replica, tableFiles, table: this.table };
  }

  /**
   * Order: replica synced ∥ table written and synced ∥ the log's footer written and synced → `<newest+1>.json` (written, synced, renamed, directory
   * synced) = the commit → (what others have changed is kept now: the suspicion removed) → what no point needs removed. A crash before the rename: the delta is still open, nothing is lost. After
   * it: the point is committed, and the next open finishes the rest. What fails after the commit is logged; the next open does it again.
   */
  commit(facts: CommitFacts): Promise<Point> {
    return this.#run(async () => {
      invariant(this.#doubt === undefined, "a doubtful table is rebuilt before a commit");
      await this.#parts.suspect.check(this.#sequence);
      this.#parts.suspect.unwatch();
      const undo = await this.#begin();
      let closed: ClosedLog | undefined;
      const finish = async (): Promise<void> => {
        closed = await undo.finish();
      };
      await settleAll([this.#sync(), finish()]);
      const { paths, store } = this.#parts;
      const { storage } = store;
      const point: Point = {
        point: (this.#newest?.point ?? 0) + 1,
        ...facts,
        root: hexOf(this.table.root()),
        sizeBytes: this.#record.sizeBytes,
        generation: this.#record.generation,
        term: this.#record.term,
        ...replicaTimes(await this.#parts.replica.stat()),
        // Before the first point there was nothing that anybody could want back.
        closed: this.#newest === undefined ? undefined : closed,
      };
      await this.#parts.store.locks.withChainLock(paths.chainLock, () => writePoint(storage, paths, point));
      this.#newest = point;
      await this.#parts.suspect.end();
      this.#openLog = false;
      this.#setAside();
      this.#undo = undefined;
      this.#resumeBlock = 0;
      await undo.close();
      await this.#tidy();
      return point;
    });
  }

  /** Order: replica synced ∥ table written and synced → checkpoint → clean-stop record. A crash in between: doubt, as without this call. */
  suspend(resumeBlock: number): Promise<void> {
    return this.#run(async () => {
      if (!this.#begun) return;
      invariant(
        resumeBlock >= 0 && resumeBlock <= blockCount(geometryOf(this.#record)),
        "a scan resumes within the disk",
      );
      await this.#sync();
      await this.#checkpoint();
      await this.#writeSession(resumeBlock);
      this.#setAside();
      this.#resumeBlock = resumeBlock;
    });
  }

  /**
   * Order: log open, clean-stop record gone → a checkpoint that puts every block the log names in doubt, durable → replica and table made the point
   * ({@link restoreNewest}) → both synced → checkpoint → clean-stop record. A crash in between: those blocks are digested anew, and the delta goes on
   * or is rolled back again.
   */
  rollBack(reader: PointReader, signal?: AbortSignal): Promise<number> {
    return this.#run(async () => {
      invariant(this.#doubt === undefined, "a doubtful table is rebuilt before anything is written");
      invariant(reader.point.point === this.#newest?.point, "a disk is rolled back to its newest point");
      const undo = await this.#begin();
      await undo.checkpoint(0);
      const facts = { clock: this.#parts.store.clock, logged: undo.logged, reader, signal };
      const { record, blocks } = await restoreNewest(this.#resizeParts, this.#record, facts);
      this.#record = record;
      await this.#sync();
      await this.#checkpoint();
      await this.#writeSession(0);
      this.#setAside();
      this.#resumeBlock = 0;
      return blocks;
    });
  }

  poison(): void {
    this.#poisoned = true;
    this.#undo?.fail(this.#poisonError());
  }

  release(): Promise<void> {
    this.#released ??= this.#tail.then(() => this.#close());
    return this.#released;
  }

  /** One call after another. What fails poisons: whether a failed write or sync took effect is not known, and a second sync lies. */
  #run<T>(change: () => Promise<T>): Promise<T> {
    invariant(this.#released === undefined, "a released disk is not used");
    const result = this.#tail.then(async () => {
      if (this.#poisoned) throw this.#poisonError();
      try {
        return await change();
      } catch (error) {
        this.poison();
        throw error;
      }
    });
    // Who called has the rejection; the next call only waits.
    this.#tail = result.catch(() => undefined);
    return result;
  }

  #poisonError(): ReplicationError {
    return new ReplicationError(
      "sync-failed",
      `disk ${this.#record.name}: an earlier write or sync failed, so nothing since the last good one counts; ` +
        "look for disk errors in the system's log, then start the session again",
    );
  }

  async #sync(): Promise<void> {
    const { replica, tableFiles, paths, damage } = this.#parts;
    const syncTable = async (): Promise<void> => {
      this.table.write();
      await tableFiles.sync();
      // Some may lie behind an end that the disk has got since.
      const pages = pageCount(this.table.geometry);
      for (const page of damage) if (page >= pages || this.table.isSound(page)) damage.delete(page);
    };
    const syncReplica = inFile("sync-failed", `disk ${this.#record.name}: syncing ${paths.replica}`, () =>
      replica.datasync(),
    );
    await settleAll([syncReplica, syncTable()]);
  }

  #isCommitted(): boolean {
    return hexOf(this.table.root()) === (this.#newest?.root ?? emptyRoot(geometryOf(this.#record)));
  }

  async #openUndoLog(): Promise<void> {
    const { store, paths } = this.#parts;
    const { storage, random } = store;
    const { blockBytes, digestKind, sizeBytes } = this.#record;
    this.#undo ??= await createUndoLog(storage, paths, {
      id: random.bytes(UNDO_ID_BYTES),
      sequence: this.#newest?.point ?? 0,
      blockBytes,
      digestKind,
      sizeBytes: this.#newest?.sizeBytes ?? sizeBytes,
    });
    this.#openLog = true;
  }

  /** Replica and table are synced, and nothing is being written: after a crash no block named so far need be digested anew. */
  async #checkpoint(): Promise<void> {
    const undo = this.#undo;
    if (undo === undefined) return;
    await undo.checkpoint(undo.sizeBytes);
    undo.logged.restart([]);
  }

  async #writeSession(resumeBlock: number): Promise<void> {
    const { paths, replica, store } = this.#parts;
    const { storage } = store;
    await writeSession(storage, paths, {
      undo: this.#newest?.point ?? 0,
      root: hexOf(this.table.root()),
      replica: fingerprintOf(await replica.stat()),
      resumeBlock,
    });
  }

  /**
   * Retention, and files no point needs. Not at every commit where there are many points: reading all their records once a second would be the
   * better part of a small delta.
   */
  async #tidy(): Promise<void> {
    if (--this.#commitsToTidy > 0) return;
    const { paths, store } = this.#parts;
    const { storage, locks } = store;
    try {
      const retention = await store.retention(this.#record.name);
      await locks.withChainLock(paths.chainLock, async () => {
        // Where all of them stay there is nothing to learn from their records.
        if (retention.policy.kind !== "all") await prunePoints(store, paths, retention);
        const files = await listPoints(storage, paths);
        this.#commitsToTidy = Math.floor(files.records.length / 50);
        await removeRubbish(storage, paths, files, locks);
      });
    } catch (error) {
      this.#logLater(error, "removing what the commit made superfluous failed");
    }
  }

  async #close(): Promise<void> {
    const { replica, tableFiles, heartbeat, lock, damage } = this.#parts;
    const steps: (() => Promise<void>)[] = [
      async () => {
        // Without damage the log says which blocks are in doubt, whatever failed; and a doubt that was not settled comes back by itself.
        if (damage.size > 0 && this.#doubt === undefined) await tableFiles.distrust();
      },
      async () => this.#undo?.close(),
      () => replica.close(),
      () => tableFiles.close(),
      () => heartbeat.end(this.#doubt === undefined),
      () => lock.release(),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        this.#logLater(error, "closing the disk");
      }
    }
  }

  /** Nothing is lost by a failure here: the next open of the disk does it again or doubts the table. */
  #logLater(error: unknown, doing: string): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.#parts.store.log.warn(
      { disk: this.#record.name, reason },
      `${doing}; the next open of the disk takes care of it`,
    );
  }
}
