/**
 * Change tracking as a whole over a {@link World}: a guest that writes to a tracked image, flushes, and is served while a cut is read; the sender that makes the cuts; a
 * receiver whose newest point is a copy. After each crash: what differs from that point is dirty or all is compared, and what the guest flushed is there.
 */
import { createHash } from "node:crypto";
import { expect } from "vitest";
import { errnoOf, ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { blocksPerPage, pageCount } from "../../src/base/units.ts";
import { holdRuns } from "../../src/image/held-runs.ts";
import { createRawWriter } from "../../src/image/raw.ts";
import type { SendReport } from "../../src/replication/report.ts";
import type { SendSource } from "../../src/replication/sender.ts";
import { TrackedSender } from "../../src/replication/tracked-sender.ts";
import type { SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import type { Survives } from "../../src/testing/simulated-node.ts";
import { createPageDigests, type PageDigests } from "../../src/table/page-digests.ts";
import type { Belief } from "../../src/track/belief.ts";
import { type KnownState, type KnownStates, knownStatePathOf, openKnownStates } from "../../src/track/known-state.ts";
import { TrackedImage } from "../../src/track/tracked-image.ts";
import { createTestRandom } from "../replica/simulated-store.ts";
import { blockBytes, type Content, journalPath, sectorBytes, type World } from "./journal-world.ts";

export const statePath = knownStatePathOf(journalPath);
/** At the end of what a life is doing, from the commit on. */
export const pointMade = ", point made";
export const spillPath = `${journalPath}.spill`;

/** What a cycle runs into. `lost`: the point is made, and the answer does not come. */
export interface CycleHow {
  readonly link?: "good" | "broken" | "lost";
  /** What the guest does while the cut is read, one begun after the other. */
  readonly meanwhile?: readonly (() => Promise<unknown>)[];
  /** Reads as a lane does, where it can. */
  readonly byLane?: boolean;
}

interface Running {
  readonly process: SimulatedProcess;
  readonly image: TrackedImage;
  readonly sender: TrackedSender;
  readonly states: KnownStates;
}

/** A write to one sector that may be lost with power. */
interface Loose {
  readonly offset: number;
  readonly value: number;
  /** `done`: acknowledged to the guest. `gone`: the image has another value, though this one may come back when power is lost. */
  state: "asked" | "done" | "gone";
}

/** Of bytes. */
interface Range {
  readonly offset: number;
  readonly end: number;
}

/** Promise jobs that are let through where a reader waits. */
const jobsOfPause = 12;

/** Blocks whose old content is kept in memory, and in the spill file. */
const [memoryBlocks, spillBlocks] = [2, 6];

export class TrackedWorld {
  readonly world: World;
  /** The newest point, durable at the receiver. */
  point: { readonly cycle: string; readonly content: Content } | undefined;
  /** The newest cycle that was cut, and the newest whose end the sender was told of. */
  cut: string | undefined;
  answered: string | undefined;
  readonly facts = { points: 0, deltas: 0, whole: 0 };
  #running: Running | undefined;
  readonly #underWay: (Range & { readonly over: Promise<void> })[] = [];
  #how: CycleHow = {};
  #meanwhile: (() => Promise<unknown>)[] = [];
  readonly #guests: Promise<unknown>[] = [];
  #lostPower = false;
  /** A sync failed: what it should have written is gone, though this process still reads it. */
  #forgot = false;
  /** Operations that had failed when the process that runs was looked at. */
  #failures = 0;
  /** What a loss of power leaves, by sector: what was flushed, or one of the writes since. */
  #flushed = new Map<number, number>();
  #loose: Loose[] = [];

  constructor(world: World) {
    this.world = world;
  }

  get #now(): Running {
    if (this.#running === undefined) throw new Error("nobody tracks");
    return this.#running;
  }

  async open(): Promise<Belief> {
    const belief = await this.world.open();
    await this.#track();
    return belief;
  }

  async #track(): Promise<void> {
    const { world } = this;
    const { process, journal } = world;
    if (process === undefined || journal === undefined) throw new Error("nobody tracks");
    const states = await openKnownStates(process, statePath, { sync: true });
    const writer = createRawWriter(world.image, process, { sizeBytes: world.sizeBytes });
    const image = new TrackedImage({
      image: { ...writer, flush: () => this.#noting(writer.flush()) },
      journal,
      spillMemoryBytes: memoryBlocks * blockBytes,
      spillBytesMax: spillBlocks * blockBytes,
      async openSpill() {
        const file = await process.open(spillPath, { write: true, create: true, truncate: true });
        await process.unlink(spillPath);
        return file;
      },
    });
    const freeze = image.freeze.bind(image);
    image.freeze = (what, audited) => {
      const cut = freeze(what, audited);
      world.noteCut(cut.cycle, cut.dirty);
      this.cut = cut.cycle;
      return cut;
    };
    const sender = new TrackedSender({
      disks: [{ image, name: "vm", identity: "vm", states }],
      ...{ clock: world.clock, random: createTestRandom(0), log: silentLogger },
      createPass: () => {
        throw new Error("an image this small is cut at once");
      },
      createSend: ([source]) => ({
        run: async () => {
          if (source === undefined) throw new Error("a source");
          return [await this.#send(source)];
        },
      }),
    });
    this.#running = { process, image, sender, states };
  }

  async #noting(flush: Promise<void>): Promise<void> {
    try {
      await flush;
    } catch (error) {
      this.#forgot = true;
      throw error;
    }
  }

  // The guest -------------------------------------------------------------------------------------------------------

  /** Writes so many sectors in one go; `atOnce`: past the tracked image, as a server does where it may. */
  async write(offset: number, sectors = 1, atOnce = false): Promise<void> {
    const { image, process } = this.#now;
    const count = Math.min(sectors, Math.floor((this.world.sizeBytes - offset) / sectorBytes));
    if (count <= 0) return;
    const bytes = Buffer.alloc(count * sectorBytes);
    const parts = Array.from({ length: count }, (_, nth): Loose => {
      const value = this.world.nextValue();
      bytes.writeUInt32LE(value, nth * sectorBytes);
      return { offset: offset + nth * sectorBytes, value, state: "asked" };
    });
    await this.#change(
      { offset, end: offset + bytes.length },
      () => parts,
      async () => {
        if (atOnce && image.mayWriteNow(offset, bytes.length)) process.lanes.write(this.world.image.fd, bytes, offset);
        else await image.write(bytes, offset);
      },
    );
  }

  async zero(offset: number, length: number): Promise<void> {
    const end = Math.min(offset + length, this.world.sizeBytes);
    if (end <= offset) return;
    const { image } = this.#now;
    await this.#change(
      { offset, end },
      () =>
        [...this.world.touched]
          .filter((at) => at >= offset && at < end)
          .map((at): Loose => ({ offset: at, value: 0, state: "asked" })),
      () => image.zero(offset, end - offset),
    );
  }

  /** A guest has no two requests for a sector under way: which comes last would be nobody's business. */
  async #change(range: Range, partsOf: () => readonly Loose[], change: () => Promise<void>): Promise<void> {
    const isOverlapping = (other: Range): boolean => other.offset < range.end && range.offset < other.end;
    for (let other = this.#underWay.find(isOverlapping); other !== undefined; ) {
      await other.over;
      other = this.#underWay.find(isOverlapping);
    }
    const { touched, content } = this.world;
    const parts = partsOf();
    for (const { offset } of parts) touched.add(offset);
    this.#loose.push(...parts);
    const work = change();
    const request = { ...range, over: work.catch(() => undefined) };
    this.#underWay.push(request);
    try {
      await work;
    } finally {
      this.#underWay.splice(this.#underWay.indexOf(request), 1);
    }
    for (const part of parts) {
      part.state = "done";
      if (part.value === 0) content.delete(part.offset);
      else content.set(part.offset, part.value);
    }
  }

  /** True: what was acknowledged before is durable. False: the guest was told that it is not. */
  async flush(): Promise<boolean> {
    const before = new Set(this.#loose.filter(({ state }) => state !== "asked"));
    if (!(await this.#attempt(() => this.#now.image.flush()))) return false;
    for (const { offset, value, state } of before) if (state === "done") this.#flushed.set(offset, value);
    this.#loose = this.#loose.filter((part) => !before.has(part));
    return true;
  }

  /** False: it failed as things do. Throws what never may, and when the process was killed. */
  async #attempt(work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      this.#alive();
      return true;
    } catch (error) {
      const isFailure = errnoOf(error) !== undefined || error instanceof ReplicationError;
      if (this.#isDead || !isFailure) throw error;
      return false;
    }
  }

  get #isDead(): boolean {
    return this.world.process?.dead === true;
  }

  // The sender and its receiver -------------------------------------------------------------------------------------

  /** True: a point was made, and the sender knows. */
  async cycle(how: CycleHow = {}): Promise<boolean> {
    this.#how = how;
    this.#meanwhile = [...(how.meanwhile ?? [])];
    const [cycled, guests] = await this.#withGuests(() => this.#attempt(() => this.#now.sender.cycle()));
    for (const ended of [cycled, ...(this.#isDead ? [] : guests)]) if (ended.status === "rejected") throw ended.reason;
    const done = cycled.status === "fulfilled" && cycled.value;
    this.#alive();
    if (!done || this.cut === undefined) return false;
    this.answered = this.cut;
    this.world.noteRetired(this.cut);
    return true;
  }

  async #withGuests<T>(work: () => Promise<T>) {
    const [worked] = await Promise.allSettled([work()]);
    this.#meanwhile = [];
    return [worked, await Promise.allSettled(this.#guests.splice(0))] as const;
  }

  /** The guest goes on. */
  async #pause(): Promise<void> {
    const next = this.#meanwhile.shift();
    if (next !== undefined) {
      const guest = next();
      // Looked at when the cycle is over.
      guest.catch(() => undefined);
      this.#guests.push(guest);
    }
    for (let job = 0; job < jobsOfPause; job++) await Promise.resolve();
  }

  /** What `createSender` does, as far as tracking is concerned. */
  async #send({ reader, guard, changes }: SendSource): Promise<SendReport> {
    const { world, point } = this;
    const { link = "good", byLane = false } = this.#how;
    if (changes === undefined) throw new Error("a tracked source");
    const base = changes.states.find(({ cycle }) => cycle === point?.cycle && changes.bases.includes(cycle));
    if (base === undefined && !changes.complete) {
      throw new ReplicationError("base-mismatch", "the receiver does not have the state its changes are known from");
    }
    if (base === undefined) this.facts.whole++;
    else this.facts.deltas++;
    const content = new Map(point?.content);
    for (const block of this.#touchedBlocks()) {
      await this.#pause();
      if (base === undefined || changes.dirty.has(block)) await this.#readBlock(reader, block, content, byLane);
    }
    await this.#pause();
    await guard?.check();
    if (link === "broken") throw new ReplicationError("connection-lost", "cut off before the commit");
    const state: KnownState = { cycle: changes.cycle, pages: this.#pagesOf(content) };
    await changes.keep?.(state);
    this.#alive();
    // As it was at the cut, whatever the guest did meanwhile.
    this.#expectSame(content, world.cycles.get(changes.cycle));
    this.point = { cycle: changes.cycle, content };
    this.facts.points++;
    world.retiring = changes.cycle;
    world.doing = `${world.doing.replace(pointMade, "")}${pointMade}`;
    if (link === "lost") throw new ReplicationError("connection-lost", "the answer did not come");
    // The rest of a report is for people.
    return { created: true } as SendReport;
  }

  #touchedBlocks(): readonly number[] {
    const blocks = new Set<number>();
    for (const offset of this.world.touched) {
      if (offset + sectorBytes <= this.world.sizeBytes) blocks.add(Math.floor(offset / blockBytes));
    }
    return [...blocks].sort((one, other) => one - other);
  }

  async #readBlock(
    reader: SendSource["reader"],
    block: number,
    into: Map<number, number>,
    byLane: boolean,
  ): Promise<void> {
    const touched = [...this.world.touched].filter((at) => Math.floor(at / blockBytes) === block);
    const start = Math.min(...touched);
    const bytes = Buffer.alloc(Math.min(Math.max(...touched) + sectorBytes, this.world.sizeBytes) - start);
    const { runs, release } = holdRuns(reader, start, bytes.length);
    try {
      const [run] = runs ?? [];
      if (!byLane || run?.kind !== "file") await reader.read(bytes, start);
      else {
        await this.#pause();
        this.#now.process.lanes.read(run.fd, bytes, run.offset);
      }
    } finally {
      release();
    }
    for (const at of touched) {
      const value = at - start + sectorBytes <= bytes.length ? bytes.readUInt32LE(at - start) : 0;
      if (value === 0) into.delete(at);
      else into.set(at, value);
    }
  }

  #expectSame(found: Content, asItWas: Content | undefined): void {
    const wrong = [...this.world.touched].filter(
      (at) => at < this.world.sizeBytes && found.get(at) !== asItWas?.get(at),
    );
    expect(wrong, "sectors of a point that are not as they were cut").toEqual([]);
  }

  #pagesOf(content: Content): PageDigests {
    const pages = createPageDigests({ sizeBytes: this.world.sizeBytes, blockBytes, digestKind: "xxh64" });
    const pageBytes = blocksPerPage("xxh64") * blockBytes;
    const texts = Array.from({ length: pageCount(pages.geometry) }, () => "");
    for (const [offset, value] of [...content].sort(([one], [other]) => one - other)) {
      const page = Math.floor(offset / pageBytes);
      texts[page] += `${offset} ${value},`;
    }
    for (const [page, text] of texts.entries()) {
      if (text !== undefined && text !== "") pages.set(page, createHash("sha256").update(text).digest());
    }
    return pages;
  }

  // Ends ------------------------------------------------------------------------------------------------------------

  /** False: the image could not be flushed, and the process just ends. */
  async close(): Promise<boolean> {
    const flushed = await this.flush();
    if (flushed) await this.world.close(true);
    else this.world.crash();
    this.#running = undefined;
    return flushed;
  }

  /** As of {@link World}. */
  crash(survives?: Survives): void {
    this.world.crash(survives);
    this.#running = undefined;
    this.#lostPower ||= survives !== undefined;
  }

  /** Opens after a crash, or after {@link close}. `hasReason`: to compare all; that an operation failed is one. */
  async openAndCheck(hasReason = false): Promise<Belief> {
    const { world } = this;
    const before = new Map(world.content);
    const wasKept = world.isKept;
    const belief = await world.openAndCheck();
    const mayCompare = hasReason || world.failures > this.#failures;
    this.#failures = world.failures;
    // A retirement that nobody was told of may be there.
    if (belief.kind === "exact") world.retired = world.journal?.base;
    if (wasKept && !mayCompare) expect(belief).toMatchObject({ kind: "exact" });
    this.#expectFlushed(before);
    await this.#track();
    this.#expectDirtyOrDoubt(mayCompare || !world.isKept || belief.kind === "scan");
    return belief;
  }

  #expectFlushed(before: Content): void {
    const { touched, content, sizeBytes } = this.world;
    const isLost = this.#lostPower || this.#forgot;
    const wrong: string[] = [];
    for (const offset of touched) {
      if (offset + sectorBytes > sizeBytes) continue;
      const loose = this.#loose.filter((part) => part.offset === offset);
      const values = loose.filter(({ state }) => isLost || state === "asked").map(({ value }) => value);
      values.push((isLost ? this.#flushed : before).get(offset) ?? 0);
      const found = content.get(offset) ?? 0;
      if (!values.includes(found)) wrong.push(`sector ${offset} has ${found}, not ${values.join(" or ")}`);
    }
    expect(wrong, "sectors whose flushed content is gone").toEqual([]);
    if (this.#lostPower) {
      this.#flushed = new Map(content);
      this.#loose = [];
    } else {
      // What got to the image may still be lost with power, and what was written over may come back.
      const isThere = ({ offset, value }: Loose): boolean => (content.get(offset) ?? 0) === value;
      this.#loose = this.#loose.filter((part) => part.state !== "asked" || isThere(part));
      for (const part of this.#loose) part.state = isThere(part) ? "done" : "gone";
    }
    [this.#lostPower, this.#forgot] = [false, false];
  }

  #expectDirtyOrDoubt(mayCompare: boolean): void {
    const { point, world } = this;
    const { image, states } = this.#now;
    if (point === undefined) return;
    const { base, pending, dirty } = image.journal;
    const known = states.known.find(({ cycle }) => cycle === point.cycle && (cycle === base || cycle === pending));
    if (known === undefined) {
      const isNamed = point.cycle === this.answered || point.cycle === this.cut;
      if (isNamed && !mayCompare) throw new Error(`all is to be compared, though nothing was lost of ${point.cycle}`);
      [this.cut, this.answered] = [undefined, undefined];
      return;
    }
    expect(Buffer.from(known.pages.root()), "what is known of a point").toEqual(
      Buffer.from(this.#pagesOf(point.content).root()),
    );
    for (const offset of world.touched) {
      if (offset + sectorBytes > world.sizeBytes || world.content.get(offset) === point.content.get(offset)) continue;
      const block = Math.floor(offset / blockBytes);
      if (!dirty.has(block)) throw new Error(`block ${block} differs from the newest point and is called clean`);
    }
  }

  #alive(): void {
    if (this.#isDead) throw new Error("the process was killed");
  }

  /** A look, a little use, and a look after power was lost once more. */
  async lookAround(mayCompare: boolean): Promise<void> {
    const belief = await this.openAndCheck(mayCompare);
    if (!mayCompare) expect(belief).toMatchObject({ kind: "exact" });
    await this.write(512, 2);
    await this.flush();
    await this.write(3 * 4 * 1024 * 1024 + 512);
    this.crash(() => false);
    await this.openAndCheck(mayCompare);
    expect(await this.cycle()).toBe(true);
    await this.write(1024);
    await this.close();
    const after = await this.openAndCheck(mayCompare);
    if (this.world.isKept) expect(after).toMatchObject({ kind: "exact" });
    expect(await this.cycle()).toBe(true);
    this.#expectSame(this.point?.content ?? new Map(), this.world.content);
  }
}
