/**
 * A tracked image on a simulated disk: a guest that writes, a receiver that has what it was sent, and after each crash the question whether the journal
 * names every block in which they differ.
 */
import { expect } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BitmapJournal } from "../../src/track/journal/journal.ts";
import { openJournal } from "../../src/track/journal/open.ts";
import type { Belief, JournalMode } from "../../src/track/belief.ts";
import type { DirtyBits } from "../../src/track/dirty-bitmap.ts";
import { fingerprintOf } from "../../src/track/fingerprint.ts";
import type { StorageFile } from "../../src/storage/seam.ts";
import { createFakeClock, type FakeClock } from "../../src/testing/fake-clock.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import {
  createSimulatedDisk,
  type DiskOptions,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import { overriding } from "../replica/overriding.ts";
import { createTestRandom } from "../replica/simulated-store.ts";

export const imagePath = "/images/vm.img";
export const journalPath = "/images/vm.img.rbj";

export function isJournalPath(path: string): boolean {
  return path === journalPath || path === "/images";
}

export const blockBytes = 64 * KIB;
export const regionBytes = 4 * MIB;
export const sectorBytes = 512;
/** Simulated files get their times from here on, a millisecond an operation. */
const wallStart = 1_700_000_060_000;

/** One operation of a life, over all its processes. */
export interface Step extends Operation {
  readonly doing: string;
  /** Operations of the same process before it. */
  readonly past: readonly Operation[];
}

/** Something taken out of the program. */
export type FaultOf = (step: Step) => Fault | undefined;

export interface WorldOptions {
  readonly fault?: FaultOf | undefined;
  readonly disk?: DiskOptions;
  readonly mode?: JournalMode;
  readonly sizeBytes?: number;
  /** Default 32 KiB: it is full soon. */
  readonly logBytes?: number;
}

/** Content: the number written to a sector, by its offset. What is not there is zeros. */
export type Content = ReadonlyMap<number, number>;

export class World {
  readonly disk: SimulatedDisk;
  doing = "start";
  operations = 0;
  process: SimulatedProcess | undefined;
  /** Undefined: nobody tracks. */
  journal: BitmapJournal | undefined;
  belief: Belief | undefined;
  clock: FakeClock = createFakeClock();
  sizeBytes: number;
  /** Every sector the guest ever wrote to. */
  readonly touched = new Set<number>();
  /** What the image reads as, by the guest's writes. */
  content = new Map<number, number>();
  /** What a receiver has when it has the cycle. */
  readonly cycles = new Map<string, Content>();
  /** The cycle that was retired last, durably. */
  retired: string | undefined;
  /** The one that was last to be. */
  retiring: string | undefined;
  /** An open of a journal that is kept has ended, or it is kept again, and it has not failed since. */
  isKept = false;
  /** Nothing is to go wrong now. */
  quiet = false;
  exact = 0;
  scans = 0;
  /** Operations that failed. */
  failures = 0;
  #image: StorageFile | undefined;
  #values = 0;
  #boot = 1;
  #wall = wallStart;
  #opens = 0;
  readonly #options: WorldOptions;

  constructor(options: WorldOptions = {}) {
    this.#options = options;
    this.disk = createSimulatedDisk(options.disk);
    this.sizeBytes = options.sizeBytes ?? 10 * regionBytes + 3 * blockBytes + 512;
  }

  /** An image that is there before anybody looks. */
  async makeImage(): Promise<void> {
    const process = this.disk.start();
    await process.makeDirectory("/images");
    const file = await process.open(imagePath, { write: true, create: true });
    await file.truncate(this.sizeBytes);
    await file.datasync();
    await file.close();
    await process.syncDirectory("/images");
    await process.syncDirectory("/");
    process.kill();
  }

  async open(): Promise<Belief> {
    const past: Operation[] = [];
    const process = this.disk.start({
      fault: (operation) => {
        const step = { ...operation, index: this.operations++, doing: this.doing, past };
        const found = this.#options.fault?.(step);
        if (found?.kind === "errno") this.failures++;
        past.push(operation);
        return found;
      },
    });
    this.process = process;
    this.clock = createFakeClock({ now: this.#wall });
    const image = await process.open(imagePath, { write: true });
    this.#image = image;
    this.sizeBytes = (await image.stat()).sizeBytes;
    // As who opens a tracked image does it.
    process.lanes.dropCache(image.fd, 0, this.sizeBytes);
    const boot = { id: `boot ${this.#boot}`, ageMillis: 30_000 };
    const opened = await openJournal({
      storage: overriding(process, { boot: () => Promise.resolve(boot) }),
      path: journalPath,
      sizeBytes: this.sizeBytes,
      blockBytes,
      kind: "file",
      image: () => fingerprintOf(image),
      clock: this.clock,
      random: createTestRandom(++this.#opens),
      hotRegionsMax: 4,
      logBytes: this.#options.logBytes ?? 32 * KIB,
      mode: this.#options.mode ?? "power",
    });
    this.journal = opened.journal;
    this.belief = opened.belief;
    this.#alive();
    if (opened.journal.failure === undefined) this.isKept = true;
    if (opened.belief.kind === "exact") this.exact++;
    else {
      this.scans++;
      this.retired = undefined;
    }
    return opened.belief;
  }

  /** Of the process that tracks. */
  get image(): StorageFile {
    return this.#tracker.image;
  }

  get #tracker(): { journal: BitmapJournal; image: StorageFile } {
    const { journal } = this;
    if (journal === undefined || this.#image === undefined) throw new Error("nobody tracks");
    this.#noteFailure();
    return { journal, image: this.#image };
  }

  /** Never written before. */
  nextValue(): number {
    return ++this.#values;
  }

  /** Writes a sector at each offset, all at once. True: none had to wait. */
  async write(...offsets: number[]): Promise<boolean> {
    const waits = await Promise.all(offsets.map((offset) => this.writeRange(offset, sectorBytes)));
    return waits.every((waited) => !waited);
  }

  /** Marks a range and writes the first sector of each of its blocks, or of each n-th. True: it had to wait. */
  async writeRange(offset: number, length: number, everyBlocks = 1): Promise<boolean> {
    const { journal, image } = this.#tracker;
    const marked = journal.mark(offset, length);
    await marked;
    for (let at = offset; at < Math.min(offset + length, this.sizeBytes - sectorBytes + 1); ) {
      const value = this.nextValue();
      this.touched.add(at);
      const bytes = Buffer.alloc(sectorBytes);
      bytes.writeUInt32LE(value);
      await image.write(bytes, at);
      this.content.set(at, value);
      at = Math.floor(at / blockBytes + everyBlocks) * blockBytes;
    }
    return marked !== undefined;
  }

  /** Returns the cycle. */
  async flip(): Promise<string> {
    const { cycle, frozen, durable } = this.#tracker.journal.flip();
    this.noteCut(cycle, frozen);
    await durable;
    this.#alive();
    return cycle;
  }

  /** What the guest has written is what the cycle is of. */
  noteCut(cycle: string, frozen: DirtyBits): void {
    const { journal } = this.#tracker;
    expect(this.cycles.has(cycle), "a cycle's id is its own").toBe(false);
    // Of a journal that is kept: what differs from the base is in what was cut.
    if (journal.base !== undefined) this.#expectNamed(journal.base, this.content, frozen, "cut");
    this.cycles.set(cycle, new Map(this.content));
  }

  /** The receiver has it. */
  async retire(cycle: string): Promise<void> {
    const { journal, image } = this.#tracker;
    await image.datasync();
    this.retiring = cycle;
    await journal.retire(cycle);
    this.noteRetired(cycle);
  }

  /** The journal has said so. */
  noteRetired(cycle: string): void {
    const { journal } = this.#tracker;
    this.#alive();
    if (journal.failure === undefined) {
      // Also of one that had failed, and was begun anew.
      this.isKept = true;
      this.retired = cycle;
      expect(journal.base).toBe(cycle);
    }
  }

  async cycle(): Promise<void> {
    await this.retire(await this.flip());
  }

  mergeBack(cycle: string): void {
    this.#tracker.journal.mergeBack(cycle);
  }

  /** Lets seconds pass. */
  async pass(seconds: number): Promise<void> {
    for (let second = 0; second < seconds; second++) await this.clock.run(1_000);
    this.#alive();
  }

  async resize(sizeBytes: number): Promise<void> {
    const { journal, image } = this.#tracker;
    if (sizeBytes > this.sizeBytes) await journal.resize(sizeBytes);
    await image.truncate(sizeBytes);
    await image.datasync();
    if (sizeBytes < this.sizeBytes) await journal.resize(sizeBytes);
    this.sizeBytes = sizeBytes;
    for (const offset of this.content.keys()) if (offset >= sizeBytes) this.content.delete(offset);
  }

  /** `isSynced`: the image is, by who writes to it. */
  async close(isSynced = false): Promise<void> {
    const { journal, image } = this.#tracker;
    if (!isSynced) await image.datasync();
    await journal.close();
    await image.close();
    this.#alive();
    this.#noteFailure();
    this.journal = undefined;
    this.#wall = this.clock.now() + 1_000;
    this.process?.kill();
  }

  /** What a journal that failed knew of a receiver is lost. That its process was killed is no failure. */
  #noteFailure(): void {
    const failure = this.journal?.failure;
    if (failure === undefined || failure.words.includes("EKILLED")) return;
    this.isKept = false;
    this.retired = undefined;
  }

  /** A journal never says that its process was killed. */
  #alive(): void {
    if (this.process?.dead === true) throw new Error("the process was killed");
  }

  /** Ends the process; with `survives` power is lost, and the machine starts anew. */
  crash(survives?: Survives): void {
    this.#noteFailure();
    this.process?.kill();
    this.journal = undefined;
    this.#wall = this.clock.now() + 1_000;
    if (survives === undefined) return;
    this.disk.losePower(survives);
    this.#boot++;
    this.#wall += 60_000;
  }

  /** Opens after a crash, and looks whether the journal promises too much. */
  async openAndCheck(): Promise<Belief> {
    const belief = await this.open();
    const { journal, image } = this.#tracker;
    this.content = new Map();
    for (const offset of this.touched) {
      const bytes = Buffer.alloc(sectorBytes);
      if (offset + sectorBytes <= this.sizeBytes) await image.read(bytes, offset);
      const value = bytes.readUInt32LE();
      if (value !== 0) this.content.set(offset, value);
    }
    if (belief.kind === "scan") {
      expect([journal.base, journal.pending]).toEqual([undefined, undefined]);
      expect(journal.dirty.count).toBe(journal.dirty.blocks);
    } else {
      if (this.retired !== undefined) expect([this.retired, this.retiring]).toContain(journal.base);
      for (const cycle of [journal.base, journal.pending]) {
        if (cycle !== undefined) this.#expectNamed(cycle, this.content, journal.dirty, "after a crash");
      }
      if (journal.base === undefined) expect(journal.dirty.count).toBe(journal.dirty.blocks);
    }
    return belief;
  }

  #expectNamed(cycle: string, now: Content, dirty: DirtyBits, when: string): void {
    const was = this.cycles.get(cycle);
    expect(was, `${cycle} was cut`).toBeDefined();
    for (const offset of this.touched) {
      if (offset >= this.sizeBytes || now.get(offset) === was?.get(offset)) continue;
      const block = Math.floor(offset / blockBytes);
      if (!dirty.has(block)) throw new Error(`${when}: block ${block} differs from ${cycle} and is called clean`);
    }
  }
}
