/**
 * Keeps what a delta overwrites: old parts go to the undo log, and the log is durable before the caller may write. What the table says
 * to be zero is not read: one entry says so for a whole run of blocks, and ahead of a writer that goes through zeros in order.
 */
import { fullMask } from "../base/part-mask.ts";
import type { Clock } from "../base/clock.ts";
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { blocksPerPage, digestBytes, EXTENT_BYTES_MAX, maskBytes, pageBlocks, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { ReceivedFrame, SaveRequest, SaveResult } from "../lanes/jobs.ts";
import { oldContentAt } from "../lanes/slot-layout.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { KnownParts } from "./known-parts.ts";
import type { DiskWriter, UndoEntryHead, UndoWriter } from "../replica/store.ts";
import { undoFlags } from "../replica/store.ts";

/** Table pages of zeros named ahead at most: 2 GiB of disk at the defaults. */
const pagesAheadMax = 64;
/** Table pages of a tail between two waits for the log: long enough for few syncs, short enough that others get their turn. */
const pagesBetweenSyncs = 1_024;
/**
 * Milliseconds to wait before old content that cannot be read is read again: a path that fails over, a server that starts anew. What cannot be read after
 * them is lost to the points that have it, as soon as the delta overwrites it.
 */
const readPauses = [50, 500, 5_000] as const;

export interface OldContentOptions {
  readonly disk: string;
  readonly writer: DiskWriter;
  readonly lanes: Lanes;
  /** For content that no frame's slot has room for. */
  readonly pool: Pick<BufferPool, "acquire">;
  readonly log: Logger;
  readonly clock: Pick<Clock, "sleep">;
  readonly signal: AbortSignal;
  /** False while a table page is being digested anew: what it says of zeros is not to be believed. */
  readonly isSettled: (page: number) => boolean;
}

/** Blocks with content of which parts are to be kept. */
interface Wanted {
  readonly blocks: number[];
  readonly masks: Uint8Array[];
  readonly base: Uint8Array[];
  /** Whether the entry gets the block's digest. */
  readonly first: boolean[];
}

export class OldContent {
  readonly #o: OldContentOptions;
  /** The log all this is about: a commit ends it. */
  #undo: UndoWriter | undefined;
  /** End of the last batch that says of blocks that they were zero. */
  #zerosEnd = 0;
  /** Where the pages named ahead end, and how many were named the last time. */
  #aheadEnd = -1;
  #aheadPages = 1;
  /** How often old content is read again. */
  #pauses: readonly number[] = readPauses;

  constructor(options: OldContentOptions) {
    this.#o = options;
  }

  /**
   * Resolves when everything is durable that is needed to have back what a frame overwrites, with what was found of its blocks meanwhile
   * (`ApplyRequest.checked`). `base`: what the table says of them; `known`: of those among them that were just read. The frame lies in `slot`, whose area A is used and free again afterwards. After a failure
   * the log holds less than it was promised: the writer is poisoned.
   */
  async keep(frame: ReceivedFrame, base: Uint8Array, slot: Slot, known: KnownParts): Promise<Uint8Array | undefined> {
    const { writer } = this.#o;
    const { blocks, masks } = frame;
    let checked: Uint8Array | undefined;
    const perMask = maskBytes(writer.record.blockBytes);
    await this.#guarded(async (undo) => {
      const wanted = this.#claim(undo, blocks, (index) => masks.subarray(index * perMask, (index + 1) * perMask), base);
      let end = 0;
      const content = { frame, known: known.of(wanted.blocks) };
      known.forget(blocks);
      if (wanted.blocks.length > 0) ({ end, checked } = await this.#save(undo, wanted, slot, content));
      await undo.durable(Math.max(end, this.#zerosEnd));
    });
    return checked;
  }

  /** As {@link keep}, for whole blocks, however many. */
  async keepWhole(blocks: readonly number[], base: Uint8Array): Promise<void> {
    await this.#guarded(async (undo) => undo.durable(await this.#takeWhole(undo, blocks, base)));
  }

  /**
   * Keeps everything from block `first` to the end of the disk that is not kept yet, before it is cut off; durable when it resolves. `digestsOf`: what the
   * table says of a page, a view. Nothing else is kept or written meanwhile. Stopped in the middle, what was kept so far stays true.
   */
  async keepTail(first: number, digestsOf: (page: number) => Promise<Uint8Array>): Promise<void> {
    const { writer, signal } = this.#o;
    const { geometry, pages } = writer.table;
    const width = digestBytes(geometry.digestKind);
    const zero = new Uint8Array(width);
    let end = 0;
    const settle = (): Promise<void> => this.#guarded((undo) => undo.durable(end));
    for (let page = Math.floor(first / blocksPerPage(geometry.digestKind)); page < pageCount(geometry); page++) {
      signal.throwIfAborted();
      const inPage = pageBlocks(geometry, page);
      const digests = pages.isZero(page) ? undefined : Uint8Array.from(await digestsOf(page));
      const { logged } = writer.undo;
      const blocks: number[] = [];
      const base: Uint8Array[] = [];
      for (let block = Math.max(first, inPage.first); block < inPage.first + inPage.count; block++) {
        const at = (block - inPage.first) * width;
        const digest = digests?.subarray(at, at + width) ?? zero;
        // It is named already, and what the log lacks of it is zero: as what is read behind the end.
        if (logged.has(block) && (digest === zero || isZero(digest))) continue;
        blocks.push(block);
        base.push(digest);
      }
      if (blocks.length > 0) {
        await this.#guarded(async (undo) => {
          end = Math.max(end, await this.#takeWhole(undo, blocks, Buffer.concat(base)));
        });
      }
      if (page % pagesBetweenSyncs === 0) await settle();
    }
    await settle();
  }

  /** Puts whole blocks into the log; resolves with where it must be durable to. */
  async #takeWhole(undo: UndoWriter, blocks: readonly number[], base: Uint8Array): Promise<number> {
    const { writer, pool, signal } = this.#o;
    const { blockBytes } = writer.record;
    const full = fullMask(blockBytes);
    const wanted = this.#claim(undo, blocks, () => full, base);
    let end = 0;
    if (wanted.blocks.length > 0) {
      const slot = await pool.acquire(signal);
      try {
        const step = EXTENT_BYTES_MAX / blockBytes;
        for (let at = 0; at < wanted.blocks.length; at += step)
          ({ end } = await this.#save(undo, part(wanted, at, at + step), slot));
      } finally {
        slot.release();
      }
    }
    return Math.max(end, this.#zerosEnd);
  }

  async #guarded(work: (undo: UndoWriter) => Promise<void>): Promise<void> {
    const { undo } = this.#o.writer;
    if (undo !== this.#undo) {
      this.#undo = undo;
      this.#zerosEnd = 0;
      this.#aheadEnd = -1;
    }
    try {
      await work(undo);
    } catch (error) {
      // What was claimed may not be in the log: nothing more may be written on its strength.
      undo.fail(error);
      this.#o.writer.poison();
      throw error;
    }
  }

  /** Counts parts as logged, in the order frames come; what holds zeros is written to the log at once. */
  #claim(undo: UndoWriter, blocks: readonly number[], maskOf: (index: number) => Uint8Array, base: Uint8Array): Wanted {
    const { logged } = undo;
    const width = digestBytes(this.#o.writer.record.digestKind);
    const wanted: Wanted = { blocks: [], masks: [], base: [], first: [] };
    const heads: UndoEntryHead[] = [];
    for (const [index, block] of blocks.entries()) {
      if (logged.isWhole(block)) continue;
      const digest = base.subarray(index * width, (index + 1) * width);
      if (isZero(digest) && !logged.has(block)) {
        this.#nameZeros(undo, block, heads);
        continue;
      }
      const claim = logged.claim(block, maskOf(index));
      if (claim === undefined) continue;
      // Zero now, and not when the point was made: the parts that are still to be kept are zero.
      if (isZero(claim.mask) || isZero(digest)) {
        const flags = isZero(claim.mask) ? 0 : undoFlags.zero;
        heads.push({ block, run: 1, flags, contentBytes: 0, contentChecksum: 0, digest: undefined, mask: claim.mask });
        continue;
      }
      wanted.blocks.push(block);
      wanted.masks.push(claim.mask);
      wanted.base.push(digest);
      wanted.first.push(claim.first);
    }
    if (heads.length > 0) this.#put(undo, heads);
    return wanted;
  }

  #put(undo: UndoWriter, heads: readonly UndoEntryHead[]): void {
    const written = undo.put(heads);
    this.#zerosEnd = undo.sizeBytes;
    // The log has failed then, and `durable` says so to everybody.
    written.catch(() => undefined);
  }

  /** Says of `block` that it was zero, and of what is zero around it, so that few entries and few syncs are needed. */
  #nameZeros(undo: UndoWriter, block: number, heads: UndoEntryHead[]): void {
    const { geometry, pages } = this.#o.writer.table;
    const per = blocksPerPage(geometry.digestKind);
    const page = Math.floor(block / per);
    if (!this.#isEmptyPage(undo, page)) {
      undo.logged.claimWhole(block);
      const last = heads.at(-1);
      const joins = last !== undefined && last.flags === zeroFlags && last.block + last.run === block;
      if (joins && Math.floor(last.block / per) === page) heads[heads.length - 1] = { ...last, run: last.run + 1 };
      else heads.push(this.#zeroRun(block, 1));
      return;
    }
    this.#aheadPages = page === this.#aheadEnd ? Math.min(this.#aheadPages * 2, pagesAheadMax) : 1;
    const end = Math.min(page + this.#aheadPages, pageCount(geometry));
    let at = page;
    for (; at < end && (at === page || (pages.isZero(at) && this.#isEmptyPage(undo, at))); at++) {
      const { first, count } = pageBlocks(geometry, at);
      for (let each = first; each < first + count; each++) undo.logged.claimWhole(each);
      heads.push(this.#zeroRun(first, count));
    }
    this.#aheadEnd = at;
  }

  /** Every block of the page is zero, and the log has none of them. */
  #isEmptyPage(undo: UndoWriter, page: number): boolean {
    const { table } = this.#o.writer;
    if (!this.#o.isSettled(page) || !table.pages.isZero(page)) return false;
    const { first, count } = pageBlocks(table.geometry, page);
    for (let block = first; block < first + count; block++) if (undo.logged.has(block)) return false;
    return true;
  }

  #zeroRun(block: number, run: number): UndoEntryHead {
    const { blockBytes, digestKind } = this.#o.writer.record;
    const digest = new Uint8Array(digestBytes(digestKind));
    return { block, run, flags: zeroFlags, contentBytes: 0, contentChecksum: 0, digest, mask: fullMask(blockBytes) };
  }

  /** Reads, and appends to the log. Returns where the batch ends, and what was found of the frame's blocks. */
  async #save(
    undo: UndoWriter,
    wanted: Wanted,
    slot: Slot,
    { frame, known }: Partial<Pick<SaveRequest, "frame" | "known">> = {},
  ): Promise<{ readonly end: number; readonly checked: Uint8Array }> {
    const { disk, lanes, writer } = this.#o;
    const { blockBytes, digestKind, sizeBytes } = writer.record;
    const contentAt = oldContentAt(undo.headBytes(wanted.blocks.length));
    const result = await this.#read({
      slot: slot.index,
      contentAt,
      disk,
      fd: writer.replicaFd,
      places: writer.places(wanted.blocks),
      sizeBytes,
      blocks: wanted.blocks,
      masks: Buffer.concat(wanted.masks),
      base: Buffer.concat(wanted.base),
      seed: undo.seed,
      codec: "stored",
      frame,
      known,
      blockBytes,
      digestKind,
    });
    const heads = this.#headsOf(wanted, result);
    const contentBytes = result.contentBytes.reduce((sum, bytes) => sum + bytes, 0);
    const batch = undo.batch(heads, contentBytes);
    const { offset, head } = batch;
    const { path, fd, directFd } = undo;
    await lanes.run("append", { slot: slot.index, path, fd, directFd, offset, head, contentAt, contentBytes });
    undo.wrote(batch);
    return { end: batch.end, checked: result.checked };
  }

  /** Reads it again where it cannot be read. A disk that has had all the time and still does not give it gets less for the rest of the delta. */
  async #read(request: SaveRequest): Promise<SaveResult> {
    const { disk, lanes, log, clock, signal } = this.#o;
    let result = await lanes.run("save", request);
    for (const millis of this.#pauses) {
      const { unreadable } = result;
      if (unreadable === 0) return result;
      const words = `disk ${disk}: ${unreadable} blocks of the replica, whose content points need, cannot be read; trying again`;
      log.warn({ disk, unreadable, millis }, words);
      await clock.sleep(millis, signal);
      result = await lanes.run("save", request);
    }
    if (result.unreadable > 0) this.#pauses = readPauses.slice(0, 1);
    return result;
  }

  #headsOf(wanted: Wanted, result: SaveResult): readonly UndoEntryHead[] {
    return wanted.blocks.map((block, index) => {
      const damaged = result.damaged[index] === 1;
      if (damaged) this.#report(block);
      const first = wanted.first[index] === true;
      return {
        block,
        run: 1,
        flags:
          (first ? undoFlags.digest : 0) +
          (damaged ? undoFlags.damaged : 0) +
          (result.packed[index] === 1 ? undoFlags.lz4 : 0),
        contentBytes: result.contentBytes[index] ?? 0,
        contentChecksum: result.checksums[index] ?? 0,
        digest: first ? wanted.base[index] : undefined,
        mask: wanted.masks[index] ?? new Uint8Array(),
      };
    });
  }

  #report(block: number): void {
    const { disk, writer, log } = this.#o;
    const offset = block * writer.record.blockBytes;
    const point = writer.newest?.point ?? 0;
    const message =
      `disk ${disk}: the replica is damaged at offset ${offset}: point ${point}, and older ones that hold the same block, ` +
      "cannot be read there; the sender sends the block anew";
    log.error({ disk, point, offset, block, err: new ReplicationError("store-damaged", message) }, message);
  }
}

const zeroFlags = undoFlags.zero + undoFlags.digest;

function part(wanted: Wanted, from: number, to: number): Wanted {
  return {
    blocks: wanted.blocks.slice(from, to),
    masks: wanted.masks.slice(from, to),
    base: wanted.base.slice(from, to),
    first: wanted.first.slice(from, to),
  };
}
