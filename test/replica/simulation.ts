/**
 * A random life of one disk over simulated storage: deltas part by part, commits, deltas laid aside or dropped, growth, shrinking, removal of points,
 * readers all along, failing operations, kills, losses of power. One seed, one life. After every step readers see what they opened; after every crash
 * every point that was told durable has the size it had and reads as it did.
 */
import { punchBlock, readBlock, writeBlock } from "./in-replica.ts";
import { hash } from "node:crypto";
import { ReplicationError, toReplicationError } from "../../src/base/errors.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { DiskWriter, Store } from "../../src/replica/store.ts";
import {
  createSimulatedDisk,
  type DiskOptions,
  type Fault,
  type Operation,
  type SimulatedDisk,
  type SimulatedProcess,
} from "../../src/testing/simulated-storage.ts";
import type { Change } from "./crash-scenario.ts";
import {
  blockBytes,
  commitFacts,
  createChance,
  diskName,
  expectTableTrue,
  geometry,
  keepParts,
  openTestStore,
  openWriter,
  rebuild,
  shrinkTo,
  storePath,
} from "./simulated-store.ts";

const partBytes = 4 * KIB;
const perBlock = blockBytes / partBytes;
const width = 16;

/** Content of a disk: for each block that is not zero a number for each part, 0 for zeros. */
type Content = ReadonlyMap<number, readonly number[]>;

interface Committed {
  readonly point: number;
  readonly cycle: string;
  readonly sizeBytes: number;
  readonly content: Content;
}

interface OpenReader {
  readonly of: Committed;
  readonly reader: Awaited<ReturnType<Store["openPoint"]>>;
}

/** A part filled with one number, padded blocks and their digests: nobody writes into them, so each is made once. */
const partContents: Buffer[] = [];
const blockContents = new WeakMap<readonly number[], Padded[]>();

interface Padded {
  readonly length: number;
  /** Padded with zeros, as the last block is digested. */
  readonly bytes: Buffer;
  readonly digest: Buffer;
}

const zeroPart = Buffer.alloc(partBytes);
const zeroBlock: Padded = { length: blockBytes, bytes: Buffer.alloc(blockBytes), digest: Buffer.alloc(width) };

function partContent(value: number): Buffer {
  return (partContents[value] ??= value === 0 ? zeroPart : Buffer.alloc(partBytes, `part ${value} `));
}

let room = Buffer.alloc(0);

/** Bytes to read into, until the next call. They are full of what no part is, so that what a read leaves out is seen. */
function bytesToFill(length: number): Buffer {
  if (room.length < length) room = Buffer.alloc(2 * length);
  return room.subarray(0, length).fill(0xff);
}

function lengthOf(sizeBytes: number, block: number): number {
  return Math.min(blockBytes, sizeBytes - block * blockBytes);
}

function paddedOf(content: Content, sizeBytes: number, block: number): Padded {
  const parts = content.get(block);
  if (parts === undefined) return zeroBlock;
  const length = lengthOf(sizeBytes, block);
  let made = blockContents.get(parts);
  if (made === undefined) blockContents.set(parts, (made = []));
  let found = made.find((padded) => padded.length === length);
  if (found === undefined) {
    const bytes = Buffer.concat(parts.map(partContent)).fill(0, length);
    found = { length, bytes, digest: digestOf(bytes) };
    made.push(found);
  }
  return found;
}

function digestOf(bytes: Buffer): Buffer {
  if (bytes.equals(zeroBlock.bytes)) return zeroBlock.digest;
  return hash("sha256", bytes, "buffer").subarray(0, width);
}

export interface LifeOptions {
  readonly seed: number;
  /** Default 40. */
  readonly steps?: number;
  /** What is taken out of the program. */
  readonly change?: Change;
  readonly disk?: DiskOptions;
  /** What the replica is; default `raw`. A VHDX has payload blocks of 1 MiB, and its disk is so large that it has several. */
  readonly format?: "raw" | "vhdx";
}

/** What a life was made of, for a look at whether it was one. */
export interface LifeFacts {
  points: number;
  crashes: number;
  failures: number;
  reads: number;
  removed: number;
  rollbacks: number;
  joined: number;
  /** Deltas that made the replica longer, and shorter. */
  grown: number;
  shrunk: number;
}

/** Lives one life. Throws what was found wrong. */
export async function simulate(options: LifeOptions): Promise<LifeFacts> {
  const life = new Life(options);
  for (let step = 0; step < (options.steps ?? 40); step++) {
    try {
      await life.step();
    } catch (error) {
      throw new Error(`seed ${options.seed}, step ${step} (${life.doing})`, { cause: error });
    }
  }
  return life.facts;
}

class Life {
  readonly #chance: () => number;
  readonly #machine: SimulatedDisk;
  readonly #change: Change;
  readonly facts: LifeFacts = {
    ...{ points: 0, crashes: 0, failures: 0, reads: 0, removed: 0 },
    ...{ rollbacks: 0, joined: 0, grown: 0, shrunk: 0 },
  };
  doing = "start";
  #process: SimulatedProcess;
  #store: Store | undefined;
  #writer: DiskWriter | undefined;
  #readers: OpenReader[] = [];
  readonly #durable = new Map<number, Committed>();
  readonly #going = new Set<number>();
  #asked: Omit<Committed, "point"> | undefined;
  /** What the sender wants the disk to be. */
  #target = new Map<number, readonly number[]>();
  #sizeBytes: number;
  readonly #format: "raw" | "vhdx";
  /** Only each so-manieth block is ever used, or the one behind it. */
  readonly #spread: number;
  #cycle = 0;
  /** The container writes out its log when it is opened. Stopped before that is on record, the next open finds a touched file, and compares all of it. */
  #stoppedOpening = false;
  /** Operation of this process at which it fails, and how. */
  #fate: { readonly at: number; readonly fault: Fault } | undefined;

  constructor({ seed, change = {}, disk = {}, format = "raw" }: LifeOptions) {
    this.#format = format;
    this.#spread = format === "raw" ? 1 : 12;
    this.#sizeBytes = 20 * this.#spread * blockBytes + 512;
    this.#chance = createChance(seed);
    this.#machine = createSimulatedDisk(disk);
    this.#change = change;
    this.#process = this.#start();
  }

  #below(count: number): number {
    return Math.floor(this.#chance() * count);
  }

  #start(): SimulatedProcess {
    const { fault, dropsCache, wrap } = this.#change;
    const past: Operation[] = [];
    const process = this.#machine.start({
      ...(dropsCache === undefined ? {} : { dropsCache }),
      fault: (operation) => {
        const fate = this.#fate;
        let found = fault?.({ ...operation, doing: this.doing, past });
        if (fate !== undefined && operation.index >= fate.at) {
          // A sync that fails, or any other operation; once.
          this.#fate = undefined;
          found = fate.fault;
        }
        if (fault !== undefined) past.push(operation);
        return found;
      },
    });
    return wrap?.(process) ?? process;
  }

  async step(): Promise<void> {
    const dice = this.#chance();
    if (dice < 0.12) this.#fate = this.#drawFate();
    try {
      await this.#act();
      await this.#readSome();
    } catch (error) {
      if (!this.#process.dead && !isFailure(error)) throw error;
      this.facts.failures++;
      if (!this.#process.dead) await this.#giveUpWriter();
    }
    if (this.#process.dead || this.#chance() < 0.03) await this.#crash();
  }

  #drawFate(): { readonly at: number; readonly fault: Fault } {
    const at = this.#process.operations + this.#below(30);
    if (this.#chance() < 0.6) return { at, fault: { kind: "kill" } };
    return { at, fault: { kind: "errno", errno: this.#chance() < 0.5 ? "EIO" : "ENOSPC" } };
  }

  async #act(): Promise<void> {
    const store = await this.#openStore();
    const dice = this.#chance();
    if (dice < 0.5) await this.#delta(store);
    else if (dice < 0.61) await this.#openReader(store);
    else if (dice < 0.68) await this.#closeReader();
    else if (dice < 0.81) await this.#prune(store);
    else if (dice < 0.84) await this.#hold(store);
    else if (dice < 0.88) this.#growTarget();
    else if (dice < 0.92) this.#shrinkTarget();
    else if (dice < 0.96) await this.#rollBack(store);
    else await this.#giveUpWriter();
  }

  async #openStore(): Promise<Store> {
    if (this.#store !== undefined) return this.#store;
    this.doing = "create";
    await this.#process.makeDirectory(storePath).catch((error: unknown) => {
      throw toReplicationError(error, "write-failed");
    });
    const newDisks = { format: this.#format, payloadBlockBytes: MIB };
    const store = await openTestStore(this.#process, storePath, { keep: "all", newDisks });
    if ((await store.summary(diskName)) === undefined) {
      if (this.#durable.size > 0) throw new Error("the disk is gone");
      await store.create(diskName, { geometry: geometry(this.#sizeBytes), owner: "sender", sectorBytes: 512 });
    }
    this.#store = store;
    return store;
  }

  async #openForDelta(store: Store): Promise<DiskWriter> {
    if (this.#writer !== undefined) return this.#writer;
    this.doing = "open";
    const mayCompare = this.#stoppedOpening;
    this.#stoppedOpening = this.#format === "vhdx";
    const writer = await openWriter(store);
    this.#writer = writer;
    this.#settleAsked(writer.newest);
    // Nobody takes anything away here: what a crash leaves in doubt the log names, and everything else can be read meanwhile.
    const { doubt } = writer;
    if (doubt !== undefined && doubt.blocks !== "recent" && !mayCompare)
      throw new Error(`more than the log names is in doubt: ${doubt.why}`);
    this.doing = "rebuild";
    if (writer.doubt !== undefined) await rebuild(writer, this.#process.lanes);
    this.#stoppedOpening = false;
    if (this.#chance() < 0.3) expectTableTrue(writer, this.#process.lanes);
    return writer;
  }

  /** A commit nobody heard of is found by its cycle. */
  #settleAsked(newest: { readonly point: number; readonly cycle: string } | undefined): void {
    const asked = this.#asked;
    const last = Math.max(0, ...this.#durable.keys());
    if (asked !== undefined && newest?.cycle === asked.cycle)
      this.#durable.set(newest.point, { ...asked, point: newest.point });
    else if ((newest?.point ?? 0) !== last)
      throw new Error(`the newest point is ${newest?.point ?? 0} and not ${last}`);
    this.#asked = undefined;
  }

  async #delta(store: Store): Promise<void> {
    const writer = await this.#openForDelta(store);
    this.#changeTarget();
    this.doing = "apply";
    await writer.begin();
    await this.#resize(writer);
    const whole = this.#chance() < 0.7;
    await this.#apply(writer, whole ? 1 : this.#chance());
    if (!whole) {
      if (this.#chance() < 0.6) {
        this.doing = "suspend";
        await writer.suspend(0);
        await this.#giveUpWriter();
      }
      return;
    }
    this.doing = "commit";
    const state = { cycle: `c${++this.#cycle}`, sizeBytes: this.#sizeBytes, content: new Map(this.#target) };
    this.#asked = state;
    const { point } = await writer.commit(commitFacts(state.cycle));
    this.#durable.set(point, { ...state, point });
    this.#asked = undefined;
    this.facts.points++;
    if (this.#chance() < 0.5) await this.#giveUpWriter();
  }

  #changeTarget(): void {
    const blocks = Math.ceil(this.#sizeBytes / blockBytes);
    for (let change = this.#below(8); change >= 0; change--) {
      const block = this.#someBlock(blocks);
      const parts = [...(this.#target.get(block) ?? [0, 0, 0, 0])];
      const dice = this.#chance();
      if (dice < 0.2) parts.fill(0);
      else if (dice < 0.3) parts.fill(1 + this.#below(250));
      else parts[this.#below(perBlock)] = this.#below(250);
      if (parts.every((value) => value === 0)) this.#target.delete(block);
      else this.#target.set(block, parts);
    }
  }

  #someBlock(blocks: number): number {
    if (this.#spread === 1) return this.#below(blocks);
    return Math.min(blocks - 1, this.#below(Math.ceil(blocks / this.#spread)) * this.#spread + this.#below(2));
  }

  async #resize(writer: DiskWriter): Promise<void> {
    const before = writer.record.sizeBytes;
    if (before < this.#sizeBytes) {
      this.doing = "grow";
      await writer.grow(this.#sizeBytes);
      this.facts.grown++;
    } else if (before > this.#sizeBytes) {
      this.doing = "shrink";
      await shrinkTo(writer, this.#process.lanes, this.#sizeBytes);
      this.facts.shrunk++;
    }
    this.doing = "apply";
  }

  #growTarget(): void {
    // What lay behind the old end was no content.
    const last = Math.floor(this.#sizeBytes / blockBytes);
    const parts = this.#target.get(last);
    const kept = Math.floor((this.#sizeBytes - last * blockBytes) / partBytes);
    if (parts !== undefined) {
      const clean = parts.map((value, index) => (index < kept ? value : 0));
      if (clean.every((value) => value === 0)) this.#target.delete(last);
      else this.#target.set(last, clean);
    }
    this.#sizeBytes += 512 + this.#below(3) * blockBytes * this.#spread;
  }

  /** By a few blocks, now and then by most of the disk; the new end lies between blocks, between parts, or anywhere. */
  #shrinkTarget(): void {
    const most = this.#chance() < 0.1 ? this.#sizeBytes : 4 * blockBytes * this.#spread;
    const grain = [blockBytes, partBytes, 512, this.#format === "raw" ? 1 : 512][this.#below(4)] ?? 1;
    const sizeBytes = this.#sizeBytes - 1 - this.#below(most);
    this.#sizeBytes = Math.max(512, sizeBytes - (sizeBytes % grain));
    for (const [block, parts] of this.#target) {
      const length = Math.max(0, lengthOf(this.#sizeBytes, block));
      const left = parts.map((value, index) => (index * partBytes < length ? value : 0));
      if (left.every((value) => value === 0)) this.#target.delete(block);
      else if (length < blockBytes) this.#target.set(block, left);
    }
  }

  /** What a receiver does with what a sender sends: the parts that differ, old content first. */
  async #apply(writer: DiskWriter, share: number): Promise<void> {
    const blocks = Math.ceil(this.#sizeBytes / blockBytes);
    for (let block = 0; block < blocks; block++) {
      if (this.#chance() >= share) continue;
      const wanted = paddedOf(this.#target, this.#sizeBytes, block);
      const base = writer.table.get(block);
      if (wanted.digest.equals(base)) continue;
      await this.#put(writer, block, wanted, Uint8Array.from(base));
    }
  }

  async #put(writer: DiskWriter, block: number, { bytes: wanted, digest }: Padded, base: Uint8Array): Promise<void> {
    const { lanes } = this.#process;
    const length = lengthOf(writer.record.sizeBytes, block);
    try {
      const old = bytesToFill(blockBytes).fill(0, length);
      readBlock(writer, lanes, block, old.subarray(0, length));
      const zero = digest.equals(zeroBlock.digest);
      let mask = 0;
      for (let part = 0; part < perBlock; part++) {
        const at = part * partBytes;
        if (zero || wanted.compare(old, at, at + partBytes, at, at + partBytes) !== 0) mask |= 1 << part;
      }
      await keepParts(writer, lanes, block, mask, base);
      if (zero) {
        punchBlock(writer, lanes, block, length);
        writer.table.clear(block, 1);
        return;
      }
      const pieces: { within: number; bytes: Uint8Array }[] = [];
      for (let part = 0; part < perBlock; part++) {
        const at = part * partBytes;
        if ((mask & (1 << part)) === 0 || at >= length) continue;
        pieces.push({ within: at, bytes: wanted.subarray(at, Math.min(at + partBytes, length)) });
      }
      await writeBlock(writer, lanes, block, pieces);
      writer.table.set(block, 1, digest);
    } catch (error) {
      writer.poison();
      throw toReplicationError(error, "write-failed");
    }
  }

  async #openReader(store: Store): Promise<void> {
    this.doing = "open a point";
    const alive = [...this.#durable.values()].filter(({ point }) => !this.#going.has(point));
    const of = alive[this.#below(alive.length)];
    if (of === undefined || this.#readers.length >= 3) return;
    const reader = await store.openPoint(diskName, of.point);
    this.#readers.push({ of, reader });
    expectSize(reader.sizeBytes, of);
  }

  async #closeReader(): Promise<void> {
    await this.#readers.splice(this.#below(this.#readers.length), 1)[0]?.reader.close();
  }

  async #readSome(): Promise<void> {
    this.doing = "read";
    for (const { reader, of } of this.#readers) {
      const offset = this.#below(of.sizeBytes);
      const length = Math.min(of.sizeBytes - offset, 1 + this.#below(3 * blockBytes));
      const found = bytesToFill(length);
      await reader.read(found, offset);
      this.facts.reads++;
      for (let at = 0; at < length; ) {
        const block = Math.floor((offset + at) / blockBytes);
        const from = offset + at - block * blockBytes;
        const count = Math.min(length - at, blockBytes - from);
        const { bytes } = paddedOf(of.content, of.sizeBytes, block);
        if (bytes.compare(found, at, at + count, from, from + count) !== 0) {
          throw new Error(`a reader of point ${of.point} got something else at offset ${offset + at}`);
        }
        at += count;
      }
    }
  }

  async #prune(store: Store): Promise<void> {
    this.doing = "prune";
    const keep = `last=${1 + this.#below(6)}`;
    const planned = await store.prune(diskName, { keep, dryRun: true });
    for (const { point, keep: stays } of planned) if (!stays) this.#going.add(point);
    const verdicts = await store.prune(diskName, { keep });
    if (this.#chance() < 0.5) {
      this.doing = "compact";
      this.facts.joined += (await store.compact(diskName)).length;
    }
    this.facts.removed += verdicts.filter(({ keep: stays }) => !stays).length;
    for (const { point, keep: stays } of verdicts) if (stays) this.#going.delete(point);
  }

  async #rollBack(store: Store): Promise<void> {
    const writer = await this.#openForDelta(store);
    this.doing = "roll back";
    const { newest } = writer;
    if (newest === undefined) return;
    const reader = await store.openPoint(diskName, newest.point);
    try {
      await writer.rollBack(reader);
    } finally {
      await reader.close();
    }
    this.facts.rollbacks++;
    this.#expectReplicaIs(writer, newest.point);
  }

  /** The replica's file itself is the point. */
  #expectReplicaIs(writer: DiskWriter, point: number): void {
    const of = this.#durable.get(point);
    if (of === undefined) throw new Error(`point ${point} was never told`);
    expectSize(writer.record.sizeBytes, of);
    for (let block = 0; block * blockBytes < writer.record.sizeBytes; block++) {
      const length = lengthOf(writer.record.sizeBytes, block);
      const found = bytesToFill(blockBytes).fill(0, length);
      readBlock(writer, this.#process.lanes, block, found.subarray(0, length));
      const wanted = block * blockBytes < of.sizeBytes ? paddedOf(of.content, of.sizeBytes, block) : zeroBlock;
      if (!wanted.bytes.equals(found))
        throw new Error(`rolled back to point ${point}, the replica is wrong in block ${block}`);
    }
  }

  async #hold(store: Store): Promise<void> {
    this.doing = "hold";
    const { points } = await store.points(diskName);
    const point = points[this.#below(points.length)];
    if (point === undefined) return;
    if (point.hold === undefined) await store.hold(diskName, point.point, { owner: "sim", until: undefined });
    else await store.release(diskName, point.point, "sim");
  }

  async #giveUpWriter(): Promise<void> {
    this.doing = "release";
    const writer = this.#writer;
    this.#writer = undefined;
    await writer?.release();
  }

  async #crash(): Promise<void> {
    this.facts.crashes++;
    this.#fate = undefined;
    this.#process.kill();
    this.#writer = undefined;
    this.#store = undefined;
    this.#readers = [];
    if (this.#chance() < 0.5) this.#machine.losePower(this.#drawSurvival());
    this.#process = this.#start();
    this.doing = "check";
    await this.#checkPoints(await this.#openStore());
  }

  #drawSurvival(): () => boolean {
    const dice = this.#chance();
    if (dice < 0.25) return () => false;
    return () => this.#chance() < 0.5;
  }

  /** Before anything is mended: who restores does not wait for the sender. */
  async #checkPoints(store: Store): Promise<void> {
    const { points, unreadable } = await store.points(diskName);
    if (unreadable.length > 0) throw new Error(`records cannot be read: ${unreadable[0]?.message}`);
    const newest = points.at(-1);
    const last = Math.max(0, ...this.#durable.keys());
    const asked = this.#asked;
    // A commit nobody heard of may be there, and may yet be lost: only who opens the disk for writing makes sure of it.
    if (asked !== undefined && newest?.cycle === asked.cycle) {
      await this.#checkPoint(store, { ...asked, point: newest.point });
    } else if ((newest?.point ?? 0) !== last)
      throw new Error(`the newest point is ${newest?.point ?? 0} and not ${last}`);
    const there = new Map(points.map(({ point, sizeBytes }) => [point, sizeBytes]));
    for (const committed of this.#durable.values()) {
      const listed = there.get(committed.point);
      if (listed !== undefined) {
        expectSize(listed, committed);
        await this.#checkPoint(store, committed);
      } else if (!this.#going.has(committed.point)) throw new Error(`point ${committed.point} is gone`);
    }
  }

  async #checkPoint(store: Store, committed: Committed): Promise<void> {
    const { point, sizeBytes, content } = committed;
    const reader = await store.openPoint(diskName, point);
    try {
      expectSize(reader.sizeBytes, committed);
      const found = bytesToFill(sizeBytes);
      await reader.read(found, 0);
      for (let block = 0; block * blockBytes < sizeBytes; block++) {
        const length = lengthOf(sizeBytes, block);
        const wanted = paddedOf(content, sizeBytes, block).bytes.subarray(0, length);
        if (!wanted.equals(found.subarray(block * blockBytes, block * blockBytes + length))) {
          throw new Error(`point ${point} is wrong in block ${block}`);
        }
      }
    } finally {
      await reader.close();
    }
  }
}

function expectSize(sizeBytes: number, of: Committed): void {
  if (sizeBytes !== of.sizeBytes) {
    throw new Error(`point ${of.point} had ${of.sizeBytes} bytes and is found to have ${sizeBytes}`);
  }
}

/** What an injected errno turns into. Damage never is. */
function isFailure(error: unknown): boolean {
  const { code, details } = toReplicationError(error);
  if (!(error instanceof ReplicationError)) return false;
  return (
    ["write-failed", "sync-failed", "no-space"].includes(code) || (code === "replica-unreadable" && "errno" in details)
  );
}
