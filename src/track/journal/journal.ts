/**
 * The bitmap journal of a tracked image: after any crash the blocks it names are all that may have changed since the base, at next to no cost for a
 * busy guest. docs/formats.md, "Bitmap journal".
 *
 * Order for each write to the image: {@link BitmapJournal.mark} → (what it returned resolves) → written. For each cycle: writers drained →
 * {@link BitmapJournal.flip} → its `durable` → sent under its id → **the image synced** → the receiver says `durable` → {@link BitmapJournal.retire}; when
 * anything fails, {@link BitmapJournal.mergeBack}. Several disks are cut at one moment by draining all, then flipping all: a flip is synchronous.
 *
 * Nothing here throws because of the file, and no write waits for more than the attempt to tell it: a journal that cannot be written is made one that nobody
 * believes, everything is dirty from then on, and {@link BitmapJournal.failure} says why. It goes on in memory, and with each cycle that is retired it is tried to
 * begin the file anew. Wrong calls are invariant failures.
 */
import { errnoOf, invariant } from "../../base/errors.ts";
import { HEARTBEAT_MILLIS, HEARTBEAT_SYNC_MILLIS } from "../../base/heartbeat.ts";
import type { DirtyBits } from "../dirty-bitmap.ts";
import type { Fingerprint } from "../fingerprint.ts";
import { type Scan, scan } from "../scan-reason.ts";
import type { LogRecord } from "./batch.ts";
import { JOURNAL_PAGE_BYTES } from "./format.ts";
import type { HeaderFacts, JournalFile } from "./journal-file.ts";
import type { Cut, JournalParts } from "./journal-parts.ts";
import type { JournalState, Marked } from "./state.ts";

export type { Cut } from "./journal-parts.ts";

/** Pages of a checkpoint that are written before marks have a turn. */
const pagesPerTurn = 256;
/** Cycles until a journal that fails again and again is begun anew: each failure costs a comparison. */
const cyclesToNextMax = 64;
/** Room for any batch: half of the hot regions with their bits, and ranges. */
const batchBytesMax = 4 * JOURNAL_PAGE_BYTES;
const wrongOnDisk =
  ". What it says on disk is wrong now, and could not be taken back: remove it before the image is tracked again";
/** Of the clock by which files get their times: what is written within two of them has one time. */
const clockTickMillis = 10;

interface Waiting extends Marked {
  readonly resolve: () => void;
}

export class BitmapJournal {
  readonly #parts: JournalParts;
  readonly #state: JournalState;
  #file: JournalFile | undefined;
  #id: string;
  #failure: Scan | undefined;
  /** While the attempt runs to tell the file that it is not to be believed. */
  #failing: Promise<void> | undefined;
  #marks: Waiting[] = [];
  #flips: { readonly epoch: number; readonly resolve: () => void }[] = [];
  #checkpoints: (() => void)[] = [];
  /** Pages the checkpoint that was asked for may still write before its last step. */
  #early: number | undefined;
  /** Marks wait for it: the last step of another size, or of a file that is begun anew. */
  #halted: Promise<void> | undefined;
  #newSize: number | undefined;
  #beatDue = false;
  #syncedAt: number;
  #running: Promise<void> | undefined;
  #closing = false;
  #closedWith: Fingerprint | undefined;
  /** Cycles until it is tried to keep it again, and how many there will be when it fails the next time. */
  #cyclesLeft = 1;
  #cyclesNext = 1;
  #image: Fingerprint | undefined;
  #stopBeating: () => void = () => undefined;

  constructor(parts: JournalParts) {
    this.#parts = parts;
    this.#state = parts.state;
    this.#file = parts.file;
    this.#id = parts.file?.id ?? parts.random.uuid();
    this.#failure = parts.failure;
    this.#syncedAt = parts.clock.monotonic();
    if (parts.failure !== undefined) this.#state.loseTrack();
  }

  /** Why what is known is in memory alone, and everything was dirty at first; undefined: the journal is kept. */
  get failure(): Scan | undefined {
    return this.#failure;
  }

  /** The cycle a receiver is known to have, and the newest cut since: it may have that one. */
  get base(): string | undefined {
    return this.#cycle(this.#state.base);
  }

  get pending(): string | undefined {
    return this.#cycle(this.#state.pending);
  }

  get sizeBytes(): number {
    return this.#state.active.sizeBytes;
  }

  /** Of the open epoch. */
  get dirty(): DirtyBits {
    return this.#state.active;
  }

  /** Regions that are hot. */
  get hotRegions(): number {
    return this.#state.hot.size;
  }

  /**
   * Before these bytes of the disk are written: undefined when they may be at once, else a promise that resolves when they may. Never rejects. What lies
   * behind the disk's end needs no mark.
   */
  mark(offset: number, length: number): Promise<void> | undefined {
    invariant(!this.#closing, "a journal that is closed gets no marks");
    const marked = { offset, length: Math.min(length, this.sizeBytes - offset) };
    if (marked.length <= 0) return undefined;
    if (this.#halted !== undefined) return this.#halted.then(() => this.mark(offset, length));
    if (this.#failure !== undefined) {
      this.#state.setActive(marked.offset, marked.length);
      return this.#failing;
    }
    if (this.#state.tryMark(marked)) return undefined;
    return new Promise((resolve) => {
      this.#marks.push({ ...marked, resolve });
      this.#kick();
    });
  }

  /** As {@link mark}, for who does not wait: true when the bytes may be written at once; false: nothing was marked. */
  tryMark(offset: number, length: number): boolean {
    invariant(!this.#closing, "a journal that is closed gets no marks");
    if (this.#halted !== undefined || this.#failing !== undefined) return false;
    const marked = { offset, length: Math.min(length, this.sizeBytes - offset) };
    if (marked.length <= 0) return true;
    if (this.#failure === undefined) return this.#state.tryMark(marked);
    this.#state.setActive(marked.offset, marked.length);
    return true;
  }

  /** Closes the open epoch and begins the next, at once. Every mark before it has been resolved, and the write it was for has ended. */
  flip(): Cut {
    invariant(this.#marks.length === 0 && this.#halted === undefined, "writers are drained before a cut");
    const frozen = this.#state.flip();
    const epoch = this.#state.pending;
    const cycle = `${this.#id}:${epoch}`;
    const durable = new Promise<void>((resolve) => {
      if (this.#failure !== undefined) resolve();
      else this.#flips.push({ epoch, resolve });
    });
    this.#kick();
    return { cycle, frozen, durable };
  }

  /**
   * A receiver has the cycle: it is the base from now on, and its frozen bits are clean. The image as it was cut must be durable by then: a loss of power would
   * else take it back behind what the receiver has. Of a cycle that was merged back, also before a restart, the bits stay dirty. Resolves when durable.
   * A cycle from before the journal failed is passed over. One behind that has the file begun anew; when that works the journal is kept again.
   */
  async retire(cycle: string): Promise<void> {
    if (this.#isLost(cycle)) return;
    invariant(cycle === this.pending, "the cycle that is retired is the newest cut");
    this.#state.retire();
    await this.checkpoint();
    if (this.#failure !== undefined && --this.#cyclesLeft <= 0) await this.#keepAgain();
  }

  /** The frozen bits are dirty again, together with those of the open epoch. The cycle stays pending: a receiver may have it all the same. */
  mergeBack(cycle: string): void {
    if (this.#isLost(cycle)) return;
    invariant(cycle === this.pending, "the cycle that is merged back is the newest cut");
    this.#state.mergeBack();
  }

  /** Resolves when pages and header hold what is known now, and the log is empty; or the journal has failed. */
  checkpoint(): Promise<void> {
    if (this.#failure !== undefined) return this.#failing ?? Promise.resolve();
    return new Promise((resolve) => {
      this.#askCheckpoint(resolve);
    });
  }

  /**
   * The disk gets another size; what it has more is dirty. Marks wait meanwhile. Resolves when durable: before the image grows, and after it
   * has shrunk. Writers are drained.
   */
  async resize(sizeBytes: number): Promise<void> {
    invariant(this.#marks.length === 0, "writers are drained before a new size");
    invariant(this.#newSize === undefined, "one new size at a time");
    if (this.#failure !== undefined) {
      this.#state.resize(sizeBytes);
      return;
    }
    this.#newSize = sizeBytes;
    this.#halted = this.checkpoint();
    await this.#halted;
    this.#halted = undefined;
  }

  /** Begins to use the journal. Nothing may be written to the image before it resolves. Heartbeats run from now on. */
  async start(image: Fingerprint): Promise<void> {
    if (this.#failure !== undefined) return;
    this.#image = image;
    await this.checkpoint();
    // It may have failed meanwhile.
    if (this.#isKept) this.#beat();
  }

  #beat(): void {
    this.#stopBeating = this.#parts.clock.every(HEARTBEAT_MILLIS, () => {
      this.#beatDue = true;
      this.#kick();
    });
  }

  /**
   * Ends the use: the next open believes the journal while the image is as it is now. Every write has ended, and the image is synced. Idempotent. Rejects with
   * what the image throws when it is asked for its state; then, and after a failure, the journal counts as not closed.
   */
  async close(): Promise<void> {
    if (this.#closing) return;
    invariant(this.#marks.length === 0, "writers are drained before a journal is closed");
    this.#closing = true;
    this.#stopBeating();
    try {
      await this.#running;
      await this.#failing;
      await this.#keepAgain();
      if (this.#isKept) {
        this.#closedWith = await this.#settledImage();
        await this.checkpoint();
      }
    } finally {
      await this.#running;
      await this.#failing;
      await this.#file?.close().catch(() => undefined);
    }
  }

  /** What was written within a tick of the file system's clock has one ctime: a write after the close must get another. */
  async #settledImage(): Promise<Fingerprint> {
    const { clock, image } = this.#parts;
    const found = await image();
    const age = clock.now() - Number(found.changedNanos / 1_000_000n);
    if (age < 0 || age >= 2 * clockTickMillis) return found;
    await clock.sleep(2 * clockTickMillis);
    return image();
  }

  #cycle(epoch: number): string | undefined {
    return epoch === 0 ? undefined : `${this.#id}:${epoch}`;
  }

  #askCheckpoint(resolve: () => void): void {
    this.#checkpoints.push(resolve);
    this.#early ??= this.#state.changed.size;
    this.#kick();
  }

  #kick(): void {
    if (this.#failure === undefined) this.#running ??= this.#run();
  }

  /** The one place that writes: what comes while it waits has its turn afterwards, together. */
  async #run(): Promise<void> {
    // Marks of one moment share a batch.
    await Promise.resolve();
    try {
      while (this.#file !== undefined && (await this.#turn(this.#file)));
    } catch (error) {
      await this.#fail(error);
    }
    this.#running = undefined;
    if (this.#failure === undefined && this.#hasWork) this.#kick();
  }

  get #hasWork(): boolean {
    return this.#marks.length + this.#flips.length + this.#checkpoints.length > 0 || this.#beatDue;
  }

  /** False: there is nothing to do. */
  async #turn(file: JournalFile): Promise<boolean> {
    const records = this.#marks.length + this.#flips.length > 0;
    const room = file.hasRoom(batchBytesMax);
    if (records && !room && this.#checkpoints.length === 0) this.#askCheckpoint(() => undefined);
    if (this.#checkpoints.length > 0) {
      if (this.#state.changed.size <= pagesPerTurn || (this.#early ?? 0) <= 0) await this.#lastStep(file);
      else {
        await this.#earlyPages(file);
        if (records && room) await this.#appendBatch(file);
      }
      return true;
    }
    if (records) {
      await this.#appendBatch(file);
      if (file.logUsed > file.logBytes / 2) this.#askCheckpoint(() => undefined);
      return true;
    }
    if (!this.#beatDue) return false;
    this.#beatDue = false;
    const { clock } = this.#parts;
    await file.beat(clock.now());
    if (clock.monotonic() - this.#syncedAt >= HEARTBEAT_SYNC_MILLIS) {
      await file.sync();
      this.#syncedAt = clock.monotonic();
    }
    return true;
  }

  async #appendBatch(file: JournalFile): Promise<void> {
    const flips = this.#flips;
    this.#flips = [];
    const { records, taken } = this.#state.compose(this.#marks);
    const marks = this.#marks.slice(0, taken);
    const flipped = flips.map(({ epoch }): LogRecord => ({ kind: "flip", epoch }));
    const all = [...flipped, ...records];
    try {
      // A mark may need nothing any more: what came before it made its region hot.
      if (all.length > 0) await file.append(all);
    } catch (error) {
      this.#flips.unshift(...flips);
      throw error;
    }
    this.#marks.splice(0, taken);
    this.#syncedAt = this.#parts.clock.monotonic();
    this.#state.committed(records, marks);
    for (const { resolve } of [...marks, ...flips]) resolve();
  }

  async #earlyPages(file: JournalFile): Promise<void> {
    let pages = 0;
    for (const page of this.#state.changed) {
      if (pages++ === pagesPerTurn) break;
      this.#state.changed.delete(page);
      await file.writePage(page, (bits) => {
        this.#state.fillPage(page, bits);
      });
    }
    this.#early = (this.#early ?? 0) - pagesPerTurn;
  }

  async #lastStep(file: JournalFile): Promise<void> {
    const asked = this.#checkpoints;
    this.#checkpoints = [];
    this.#early = undefined;
    if (this.#closedWith !== undefined) this.#state.coolAll();
    this.#takeNewSize();
    const pages = [...this.#state.changed];
    this.#state.changed.clear();
    try {
      await file.checkpoint(this.#facts(), pages, (page, bits) => {
        this.#state.fillPage(page, bits);
      });
    } catch (error) {
      this.#checkpoints.unshift(...asked);
      throw error;
    }
    this.#syncedAt = this.#parts.clock.monotonic();
    for (const resolve of asked) resolve();
  }

  #takeNewSize(): void {
    if (this.#newSize === undefined) return;
    this.#state.resize(this.#newSize);
    this.#file?.resize(this.#state.active);
    this.#newSize = undefined;
  }

  get #isKept(): boolean {
    return this.#failure === undefined;
  }

  /** Of a cycle that was cut before the journal failed nothing is known any more. */
  #isLost(cycle: string): boolean {
    if (cycle.startsWith(`${this.#id}:`)) return false;
    invariant(this.#failure !== undefined, "a cycle is this journal's");
    return true;
  }

  #facts(): HeaderFacts {
    const { epoch, base, pending, hot, active } = this.#state;
    const image = this.#closedWith ?? this.#image;
    invariant(image !== undefined, "a journal is started before it is used");
    return {
      sizeBytes: active.sizeBytes,
      blockBytes: active.blockBytes,
      closed: this.#closedWith !== undefined,
      epoch,
      base,
      pending,
      timeMillis: this.#parts.clock.now(),
      hot: [...hot],
      image,
      bootId: this.#parts.bootId,
    };
  }

  /**
   * Begins the file anew where it could not be written and there is a base again. Whatever is marked meanwhile is written by the last step, for which marks wait.
   * When it cannot be written now either, everything stays as it is.
   */
  async #keepAgain(): Promise<void> {
    const { image, hasRoom, makeFile, onKept } = this.#parts;
    if (this.#failure === undefined || this.#state.base === 0) return;
    const { words } = this.#failure;
    if (!(await hasRoom(this.#state.active))) return;
    let goOn = (): void => undefined;
    let file: JournalFile | undefined;
    try {
      this.#image = await image();
      await this.#file?.close().catch(() => undefined);
      this.#file = undefined;
      file = await makeFile(this.#state.active, this.#id);
      this.#state.changeAll();
      this.#early = this.#state.changed.size;
      while (this.#state.changed.size > pagesPerTurn && this.#early > 0) await this.#earlyPages(file);
      this.#halted = new Promise((resolve) => {
        goOn = resolve;
      });
      // What is set is in the pages.
      this.#state.coolAll();
      await this.#lastStep(file);
      this.#file = file;
      this.#failure = undefined;
      if (!this.#closing) this.#beat();
      onKept?.();
    } catch {
      await file?.close().catch(() => undefined);
      const before = this.#failure;
      await this.#takeBack(words);
      // What was told before does not say that the file is wrong.
      if (this.#failure !== undefined && this.#failure !== before) this.#parts.onFailure?.(this.#failure);
    } finally {
      this.#early = undefined;
      this.#halted = undefined;
      goOn();
    }
  }

  /** Nobody is to believe the file. */
  async #takeBack(words: string): Promise<void> {
    const done = await this.#parts.invalidate().catch(() => false);
    if (done || words.endsWith(wrongOnDisk)) return;
    this.#failure = scan("journal-write-failed", `${words}${wrongOnDisk}`);
  }

  async #fail(error: unknown): Promise<void> {
    // What our own code does wrong is told as well: the guest goes on in either case.
    const what = errnoOf(error) ?? (error instanceof Error ? error.message : String(error));
    const words = `the journal ${this.#parts.path} cannot be written (${what}): everything is compared, until it can`;
    this.#failure = scan("journal-write-failed", words);
    this.#stopBeating();
    this.#cyclesLeft = this.#cyclesNext;
    this.#cyclesNext = Math.min(cyclesToNextMax, 2 * this.#cyclesNext);
    this.#failing = this.#takeBack(words).then(() => {
      this.#failing = undefined;
    });
    this.#takeNewSize();
    this.#state.loseTrack();
    this.#id = this.#parts.random.uuid();
    await this.#failing;
    const waiting = [...this.#marks, ...this.#flips];
    const checkpoints = this.#checkpoints;
    this.#marks = [];
    this.#flips = [];
    this.#checkpoints = [];
    for (const { resolve } of waiting) resolve();
    for (const resolve of checkpoints) resolve();
    this.#parts.onFailure?.(this.#failure);
  }
}
