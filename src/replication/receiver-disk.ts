/** The disk a session works on: its table read with care, its replica changed through lanes. */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { neighboursEnd } from "../base/neighbours.ts";
import type { Logger } from "../base/logger.ts";
import { blockCount, blockLength, blocksPerPage, digestBytes, type Geometry, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { OldPartsResult } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { type DiskWriter, type Doubt, replicaChanged } from "../replica/store.ts";
import type { PageDigests } from "../table/digest-table.ts";
import type { Data } from "../wire/messages.ts";
import { type ShrunkTable, shrunkTable } from "./shrunk-table.ts";
import { EarlyWriteback } from "./early-writeback.ts";
import { KnownParts } from "./known-parts.ts";
import { OldContent } from "./old-content.ts";
import { rebuildTable } from "./rebuild.ts";
import { reconcile } from "./reconcile.ts";

export interface SessionDiskOptions {
  readonly name: string;
  readonly writer: DiskWriter;
  readonly lanes: Lanes;
  readonly log: Logger;
  readonly clock: Pick<Clock, "sleep">;
  /** Slots of the session, for a rebuild before it has credit. */
  readonly slots: readonly Slot[];
  /** Memory beside them, for a page that turns out damaged later: then the session's slots are promised to the sender. */
  readonly pool: Pick<BufferPool, "acquire">;
  readonly signal: AbortSignal;
  /** Bytes of the disk passed in a rebuild. */
  readonly onProgress: (bytes: number) => void;
}

/** Lost sectors are few. Of a device that is away for a moment everything would be put down as lost, and be lost then. */
export const unreadableBlocksMax = 128;

export class SessionDisk {
  readonly #o: SessionDiskOptions;
  #begun: Promise<void> | undefined;
  /** Pages being digested anew: half done they look like zero blocks. */
  readonly #mending = new Map<number, Promise<void>>();
  readonly #old: OldContent;
  readonly #known: KnownParts;
  readonly #writeback = new EarlyWriteback();
  #targetBytes: number | undefined;
  /** Blocks the device did not give: lost, and nobody's writing. */
  readonly #unreadable = new Set<number>();
  /** The table as it will be, while the disk is still to be cut. */
  #cut: ShrunkTable | undefined;

  constructor(options: SessionDiskOptions) {
    this.#o = options;
    const { name, writer, lanes, pool, log, clock, signal } = options;
    this.#known = new KnownParts(writer.record.blockBytes);
    this.#old = new OldContent({
      ...{ disk: name, writer, lanes, pool, log, clock, signal },
      isSettled: (page) => !this.#mending.has(page),
    });
  }

  /** Of the disk the sender is told of: one that becomes smaller has its new size from {@link resizeTo} on. */
  get geometry(): Geometry {
    return this.#cut?.geometry ?? this.#o.writer.table.geometry;
  }

  get pages(): Pick<PageDigests, "get" | "isZero"> {
    return this.#cut?.pages ?? this.#o.writer.table.pages;
  }

  /** True when this session may have changed replica or table. */
  get changed(): boolean {
    return this.#begun !== undefined;
  }

  /** True when a commit would make another state of the disk: something was written, or it is to have another size. */
  get changes(): boolean {
    const { sizeBytes } = this.#o.writer.record;
    return this.changed || (this.#targetBytes ?? sizeBytes) !== sizeBytes;
  }

  /**
   * The size this delta gives the disk. It grows or shrinks when the delta begins, and not now: the sender may yet find that this is another image.
   * The table is in no doubt.
   */
  async resizeTo(sizeBytes: number): Promise<void> {
    const { writer } = this.#o;
    const { geometry, pages } = writer.table;
    if (sizeBytes < geometry.sizeBytes) {
      this.#cut = await shrunkTable(
        { ...geometry, sizeBytes },
        { pages, page: (page) => this.page(page), lastDigest: () => writer.shrunkDigest(sizeBytes) },
      );
    }
    this.#targetBytes = sizeBytes;
    if (this.#begun === undefined) return;
    // A page had to be mended.
    this.#begun = this.#begun.then(() => this.#resize());
    await this.#begun;
  }

  /** Before the first overwrite. Idempotent. */
  begin(): Promise<void> {
    this.#begun ??= this.#beginOnce();
    return this.#begun;
  }

  async #beginOnce(): Promise<void> {
    const { writer } = this.#o;
    await writer.begin();
    await this.#resize();
  }

  async #resize(): Promise<void> {
    const { writer } = this.#o;
    const { sizeBytes } = writer.record;
    const target = this.#targetBytes ?? sizeBytes;
    if (target !== sizeBytes) this.#known.clear();
    if (target > sizeBytes) await writer.grow(target);
    if (target < sizeBytes) await this.#shrink(target);
  }

  /** Order: everything that is cut off, and the block the new end lies in, in the undo log and durable → cut. */
  async #shrink(sizeBytes: number): Promise<void> {
    const { writer, log, name } = this.#o;
    const before = writer.record.sizeBytes;
    const first = Math.floor(sizeBytes / writer.record.blockBytes);
    await this.#old.keepTail(first, (page) => this.#soundPage(page));
    await writer.shrink(sizeBytes);
    this.#cut = undefined;
    log.info({ disk: name, before, sizeBytes }, "the disk was made smaller; older points keep their size");
  }

  /** A page while nothing else is done to the disk. */
  async #soundPage(page: number): Promise<Uint8Array> {
    const { writer, pool, signal } = this.#o;
    try {
      return writer.table.page(page);
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code !== "store-damaged") throw error;
      const slot = await pool.acquire(signal);
      try {
        await this.#redigest(page, page + 1, [slot]);
      } finally {
        slot.release();
      }
      return writer.table.page(page);
    }
  }

  /** Makes a table in doubt true by reading the replica. Throws `replica-changed` where somebody else wrote to it, and nobody has said what is to be of that. */
  async rebuild(): Promise<void> {
    const { writer, log, name } = this.#o;
    const { doubt } = writer;
    if (doubt === undefined) return;
    if (doubt.found === true) throw replicaChanged(name, writer.newest, undefined);
    const isIdle = writer.logged === undefined;
    if (doubt.blocks === "differing") {
      log.warn({ disk: name, why: doubt.why }, "comparing the replica with its table");
      await this.#reconcile(async (blocks) => {
        const block = await this.#noteForeign(blocks);
        if (block !== undefined) throw replicaChanged(name, writer.newest, block * this.geometry.blockBytes);
      });
    } else await this.#digestDoubtful(doubt);
    if (await this.#noteForeignRoot(isIdle)) throw replicaChanged(name, writer.newest, undefined);
    await this.#settleDoubt();
  }

  /** The first of blocks that differ which somebody else has written: on record then. What the device does not give is no change. */
  readonly #noteForeign = async (blocks: readonly number[]): Promise<number | undefined> => {
    const block = blocks.find((differing) => !this.#unreadable.has(differing));
    if (block !== undefined) await this.#o.writer.noteChanges();
    return block;
  };

  /** Where no delta was begun, and pages of the table had to be made anew, the root shows whether the replica is its newest point. */
  async #noteForeignRoot(isIdle: boolean): Promise<boolean> {
    const { writer } = this.#o;
    const { newest, table } = writer;
    if (!isIdle || newest === undefined || this.#unreadable.size > 0) return false;
    if (Buffer.from(table.root()).toString("hex") === newest.root) return false;
    await writer.noteChanges();
    return true;
  }

  async #digestDoubtful(doubt: Doubt): Promise<void> {
    const { writer, log, name, slots } = this.#o;
    const { logged } = writer;
    const recent = doubt.blocks === "recent" ? logged : undefined;
    const what = recent === undefined ? "all of it" : `${recent.recentCount} blocks the interrupted delta names`;
    log.warn({ disk: name, why: doubt.why }, `the digest table is in doubt; reading the replica, ${what}`);
    if (recent === undefined) await this.#redigest(0, pageCount(this.geometry), slots);
    else await this.#redigestRecent(recent);
  }

  /** Blocks the open log names, which its delta may have written or not. */
  async #redigestRecent(recent: NonNullable<DiskWriter["logged"]>): Promise<void> {
    await this.#redigest(0, pageCount(this.geometry), this.#o.slots, (block) => recent.isRecent(block));
  }

  async #settleDoubt(): Promise<void> {
    await this.#o.writer.settleDoubt();
    // What was begun to mend a page, or to enter a difference, has ended with it.
    this.#begun = undefined;
  }

  /** Reads all of the table, and mends what of it is damaged. `pause`: called now and then, for whatever else this process does. */
  async mendTable(pause: () => Promise<void>): Promise<void> {
    const damaged: number[] = [];
    for (const page of this.#o.writer.table.check()) {
      if (page === undefined) await pause();
      else damaged.push(page);
    }
    for (const page of damaged) await this.page(page);
  }

  /**
   * Compares all of the replica with the table; what differs is sent anew by the next delta. `keep`: {@link DiskWriter.hasForeignChanges} says afterwards whether there
   * is anything for a commit to keep. Returns the ranges.
   */
  async repair(wish: "keep" | "give-up"): Promise<readonly { readonly first: number; readonly end: number }[]> {
    const { writer } = this.#o;
    const { doubt } = writer;
    const isIdle = writer.logged === undefined;
    await writer.suspect("it is to be repaired", wish);
    if (doubt !== undefined && doubt.blocks !== "differing") {
      await this.#digestDoubtful(doubt);
      await this.#noteForeignRoot(isIdle);
      await this.#settleDoubt();
      if (writer.hasForeignChanges) return [];
      await writer.suspect("it is to be repaired", wish);
    }
    const differing = await this.#reconcile(async (blocks) => {
      await this.#noteForeign(blocks);
    });
    await this.#noteForeignRoot(isIdle);
    await this.#settleDoubt();
    return differing;
  }

  async #reconcile(
    onDiffering?: (blocks: readonly number[]) => Promise<void>,
  ): Promise<readonly { readonly first: number; readonly end: number }[]> {
    const { writer, lanes, name, slots, signal, onProgress, log } = this.#o;
    if (writer.doubt?.interrupted === true && writer.logged !== undefined) await this.#redigestRecent(writer.logged);
    const differing = await reconcile({
      ...{ disk: name, geometry: this.geometry, table: writer.table },
      runs: (offset, length) => writer.runs(offset, length),
      nextData: (offset) => writer.nextData(offset),
      ...{ lanes, slots, signal, onProgress, writer, old: this.#old },
      ...{ onUnreadable: this.#tellUnreadable, onDiffering },
      page: (page) => this.page(page),
    });
    const blocks = differing.reduce((sum, { first, end }) => sum + end - first, 0);
    if (blocks > 0)
      log.error({ disk: name, blocks }, "the replica is not what its table says; the next delta sends these blocks");
    return differing;
  }

  /** Whoever writes the block anew may heal it: the next delta sends it. Throws when there are so many that it is the device that cannot be read. */
  readonly #tellUnreadable = (block: number, error: ReplicationError): void => {
    const { name: disk, log } = this.#o;
    this.#unreadable.add(block);
    if (this.#unreadable.size > unreadableBlocksMax) throw error;
    const offset = block * this.geometry.blockBytes;
    log.error({ disk, block, offset, err: error }, "the replica cannot be read there; the next delta sends the block");
  };

  #redigest(
    firstPage: number,
    endPage: number,
    slots: readonly Slot[],
    inDoubt?: (block: number) => boolean,
  ): Promise<void> {
    const { writer, lanes, name, signal, onProgress } = this.#o;
    const how = {
      disk: name,
      geometry: writer.table.geometry,
      runs: (offset: number, length: number) => writer.runs(offset, length),
      nextData: (offset: number) => writer.nextData(offset),
      table: writer.table,
      lanes,
      slots,
      signal,
      inDoubt,
      onProgress,
      onUnreadable: this.#tellUnreadable,
    };
    return rebuildTable(how, firstPage, endPage);
  }

  /** Digests of a page; one that does not match its checksum is digested anew from the replica. A view: used before the next call. */
  async page(page: number): Promise<Uint8Array> {
    const { writer, log, name } = this.#o;
    if (page >= pageCount(this.geometry)) throw new ReplicationError("protocol-violation", `there is no page ${page}`);
    if (page === this.#cut?.lastPage) return this.#cut.digests;
    const mending = this.#mending.get(page);
    if (mending !== undefined) await mending;
    try {
      return writer.table.page(page);
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code !== "store-damaged") throw error;
      log.warn({ disk: name, page }, `${error.message}; reading its blocks`);
      const mend = this.#mend(page);
      this.#mending.set(page, mend);
      try {
        await mend;
      } finally {
        this.#mending.delete(page);
      }
      return writer.table.page(page);
    }
  }

  async #mend(page: number): Promise<void> {
    // Which may need a slot itself.
    await this.begin();
    const slot = await this.#o.pool.acquire(this.#o.signal);
    try {
      await this.#redigest(page, page + 1, [slot]);
    } finally {
      slot.release();
    }
  }

  /** Digests of these blocks as one array. */
  async digestsOf(blocks: readonly number[]): Promise<Uint8Array> {
    const width = digestBytes(this.geometry.digestKind);
    const per = blocksPerPage(this.geometry.digestKind);
    const digests = new Uint8Array(blocks.length * width);
    for (let index = 0; index < blocks.length; ) {
      const first = blocks[index] ?? 0;
      const number = Math.floor(first / per);
      const count = neighboursEnd(blocks, index, (number + 1) * per - first) - index;
      this.#checkBlock(first + count - 1);
      const at = (first - number * per) * width;
      digests.set((await this.page(number)).subarray(at, at + count * width), index * width);
      index += count;
    }
    return digests;
  }

  /** Part digests of what the replica holds. */
  async oldParts(blocks: readonly number[]): Promise<OldPartsResult> {
    const { writer, lanes, name } = this.#o;
    const base = await this.digestsOf(blocks);
    const { sizeBytes, blockBytes, digestKind } = this.geometry;
    const places = writer.places(blocks);
    const request = { disk: name, fd: writer.replicaFd, sizeBytes, blocks, places, base, blockBytes, digestKind };
    const result = await lanes.run("oldParts", request);
    this.#known.add(blocks, result.wide);
    return result;
  }

  #checkBlock(block: number): void {
    if (block >= blockCount(this.geometry)) {
      throw new ReplicationError("protocol-violation", `there is no block ${block}`);
    }
  }

  /** Applies a data frame whose payload lies in `slot`; what it overwrites is kept before. Returns an `applyState` for each block; the table is the caller's to set. */
  async apply(message: Data, slot: Slot, payloadBytes: number): Promise<Uint8Array> {
    const { writer, lanes, name } = this.#o;
    const { blocks, masks, digests, codec, rawBytes } = message;
    const base = await this.digestsOf(blocks);
    const frame = { payloadBytes, codec, rawBytes, blocks, masks, digests };
    const checked = await this.#old.keep(frame, base, slot, this.#known);
    const { sizeBytes, blockBytes, digestKind } = this.geometry;
    const places = await writer.claim(blocks);
    const result = await lanes.run("apply", {
      slot: slot.index,
      disk: name,
      fd: writer.replicaFd,
      directFd: writer.replicaDirectFd,
      sizeBytes,
      places,
      ...frame,
      base,
      checked,
      writeback: this.#writeback.take(),
      blockBytes,
      digestKind,
    });
    const inFile = places ?? blocks;
    const [first, last] =
      places === undefined ? [inFile[0], inFile.at(-1)] : [Math.min(...places), Math.max(...places)];
    if (first !== undefined && last !== undefined) {
      this.#writeback.wrote(first * blockBytes, (last + 1) * blockBytes, result.cachedBytes);
    }
    return result.states;
  }

  /** Makes blocks zero, in the replica where they are not, and in the table. */
  async clear(first: number, count: number): Promise<void> {
    const { writer, lanes, name } = this.#o;
    const blocks = Array.from({ length: count }, (_unused, index) => first + index);
    this.#known.forget(blocks);
    const digests = await this.digestsOf(blocks);
    const width = digestBytes(this.geometry.digestKind);
    const ranges: { offset: number; length: number }[] = [];
    await this.#old.keepWhole(blocks, digests);
    const places = writer.places(blocks) ?? blocks;
    for (const [index, block] of blocks.entries()) {
      if (isZero(digests.subarray(index * width, (index + 1) * width))) continue;
      const offset = (places[index] ?? 0) * this.geometry.blockBytes;
      // Nowhere in the file: what the table says of it is not there any more, and it is zero.
      if (offset < 0) continue;
      const length = blockLength(this.geometry, block);
      const last = ranges.at(-1);
      if (last !== undefined && last.offset + last.length === offset) last.length += length;
      else ranges.push({ offset, length });
    }
    if (ranges.length > 0) await lanes.run("clear", { disk: name, fd: writer.replicaFd, ranges });
    writer.table.clear(first, count);
  }
}
