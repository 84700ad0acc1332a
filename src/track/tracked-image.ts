/**
 * A disk image whose changes are tracked: a {@link BlockWriter} over another, through which everything is written. Each write is marked in the journal
 * before it is made, and where a cut is being read, old content is copied aside first.
 *
 * A cut stops new writes, waits for those under way, closes the epoch and lets the writers go on: {@link cutImages}. It is read through its view while they do,
 * and ends with {@link ImageCut.retire} or {@link ImageCut.mergeBack}.
 */
import type { Clock } from "../base/clock.ts";
import { invariant, ReplicationError } from "../base/errors.ts";
import type { BlockWriter, Extent, FileRun } from "../image/block-device.ts";
import { SoundSync } from "../image/sound-sync.ts";
import type { FreeSpace, StorageFile } from "../storage/seam.ts";
import { DirtyBitmap, type DirtyBits } from "./dirty-bitmap.ts";
import { FrozenView } from "./frozen-view.ts";
import type { BitmapJournal } from "./journal/journal.ts";
import { OldContent } from "./old-content.ts";

export interface TrackedImageOptions {
  /** Written through this object only, from now on. Taken over: `close` closes it. */
  readonly image: BlockWriter;
  /** Of the image, opened before. Taken over as well. */
  readonly journal: BitmapJournal;
  /** Where old content goes when memory is full: an empty file of its own, which is gone when it is closed. Undefined: a cut that needs one is given up. */
  readonly openSpill?: (() => Promise<StorageFile>) | undefined;
  /** Of the file system where it goes: {@link OldContent} leaves it a reserve. */
  readonly spillSpace?: (() => Promise<FreeSpace>) | undefined;
  /** Defaults: {@link OldContent}. */
  readonly spillMemoryBytes?: number | undefined;
  readonly spillBytesMax?: number | undefined;
  /** {@link TrackedImage.leastAuditShare} at the start; default 0. */
  readonly leastAuditShare?: number | undefined;
}

export interface ImageCut {
  /** Id of this state: what a receiver has when it has the cut. */
  readonly cycle: string;
  /**
   * States relative to which {@link dirty} names everything that may have changed. Empty: there is none, and all has to be compared. Of a cut
   * after a pass, it is relative to what the pass sent instead.
   */
  readonly bases: readonly string[];
  readonly dirty: DirtyBits;
  /** Blocks that are looked at although they may be clean. */
  readonly audited: DirtyBits | undefined;
  /** As the image was: of all blocks, or of those that are dirty or audited alone. */
  readonly view: FrozenView;
  /** Every block of the view may be read: as it was or, of a pass, as it is. */
  readonly complete: boolean;
  /** Where it is not complete: around each dirty or audited block everything between two multiples of this is as it was. Bytes. */
  readonly grainBytes: number;
  /** Resolves when the journal has the cut: before anything of it is sent. */
  readonly durable: Promise<void>;
  /** A receiver has the cut. Before: `remember`, which keeps what is known of its content. Syncs the image first; throws what that throws, and then the bits stay. */
  retire(remember?: () => Promise<void>): Promise<void>;
  /** The cut came to nothing: what it froze is dirty for the next one. Idempotent; after `retire` it does nothing. */
  mergeBack(): Promise<void>;
}

/**
 * What a cut keeps as it was: `dirty` and audited blocks, `all` of them, or `nothing`: that is a pass, which reads the image as it is and leaves what changes
 * meanwhile to the next one.
 */
export type Frozen = "dirty" | "all" | "nothing";

export interface CutExtras {
  /** {@link ImageCut.audited}. */
  readonly audited?: DirtyBitmap | undefined;
  readonly pass?: ImageCut | undefined;
  /** Of {@link ImageCut.grainBytes}, the least: who reads the cut has blocks of that size. Default: a block of the journal. */
  readonly grainBytes?: number | undefined;
}

/** Time within which all writes under way must end for a cut. */
export const CUT_MILLIS_MAX = 1_000;

export class TrackedImage implements BlockWriter {
  readonly #o: TrackedImageOptions;
  readonly #image: BlockWriter;
  readonly #journal: BitmapJournal;
  #underWay = 0;
  /** While writers are stopped. */
  #stopped: { readonly going: Promise<void>; readonly go: () => void } | undefined;
  #whenDrained: (() => void) | undefined;
  #view: FrozenView | undefined;
  readonly #sync: SoundSync;
  #leastAuditShare: number;

  constructor(options: TrackedImageOptions) {
    this.#o = options;
    this.#image = options.image;
    this.#journal = options.journal;
    this.#sync = new SoundSync(() => options.image.flush());
    this.#leastAuditShare = options.leastAuditShare ?? 0;
    invariant(options.image.sizeBytes === options.journal.sizeBytes, "a journal is of its image");
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  get sectorBytes(): 512 | 4096 {
    return this.#image.sectorBytes;
  }

  get journal(): BitmapJournal {
    return this.#journal;
  }

  /** Share of the blocks called clean, 0 to 1, that the next cut audits at least: until one that had an audit is retired. */
  get leastAuditShare(): number {
    return this.#leastAuditShare;
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    return this.#image.read(target, offset);
  }

  extents(offset: number, length: number): AsyncIterable<Extent> {
    return this.#image.extents(offset, length);
  }

  runs(offset: number, length: number): readonly FileRun[] | undefined {
    return this.#image.runs?.(offset, length);
  }

  write(source: Uint8Array, offset: number): Promise<void> {
    return this.#change(offset, source.length, () => this.#image.write(source, offset));
  }

  zero(offset: number, length: number): Promise<void> {
    return this.#change(offset, length, () => this.#image.zero(offset, length));
  }

  /** After one that failed each fails: so no bit is retired any more either. {@link SoundSync}. */
  flush(): Promise<void> {
    return this.#sync.run();
  }

  /**
   * Whether a range may be written to the image's file at once, past this object, by who goes on before anything else has a turn. It is marked then. False: go
   * through {@link write}.
   */
  mayWriteNow(offset: number, length: number): boolean {
    if (this.#stopped !== undefined || this.#view?.mayWriteNow(offset, length) === false) return false;
    return this.#journal.tryMark(offset, length);
  }

  async #change(offset: number, length: number, change: () => Promise<void>): Promise<void> {
    while (this.#stopped !== undefined) await this.#stopped.going;
    this.#underWay++;
    try {
      await this.#journal.mark(offset, length);
      await this.#view?.beforeWrite(offset, length);
      await change();
    } finally {
      this.#underWay--;
      if (this.#underWay === 0) this.#whenDrained?.();
    }
  }

  // Cuts ------------------------------------------------------------------------------------------------------------

  /** New writes wait from now on, until {@link go}. Resolves when none is under way. */
  stop(): Promise<void> {
    invariant(this.#stopped === undefined, "writers are stopped once");
    let go = (): void => undefined;
    const going = new Promise<void>((resolve) => {
      go = resolve;
    });
    this.#stopped = { going, go };
    if (this.#underWay === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#whenDrained = resolve;
    });
  }

  go(): void {
    this.#whenDrained = undefined;
    this.#stopped?.go();
    this.#stopped = undefined;
  }

  /**
   * While writers are stopped and none is under way. At once. `pass`: the pass that it follows, which ends: what was written since is dirty here, and that alone
   * has to be kept; in the journal everything is that was.
   */
  freeze(what: Frozen, { audited, pass, grainBytes: wanted = 0 }: CutExtras = {}): ImageCut {
    invariant(this.#stopped !== undefined && this.#underWay === 0, "a cut is made while nobody writes");
    const journal = this.#journal;
    const since = pass === undefined ? undefined : union(journal.dirty);
    void pass?.mergeBack();
    invariant(this.#view === undefined, "one cut of an image at a time");
    const bases = [journal.base, journal.pending].filter((cycle) => cycle !== undefined);
    const { cycle, frozen, durable } = journal.flip();
    const dirty = since ?? frozen;
    const { openSpill, spillSpace, spillMemoryBytes: memoryBytes, spillBytesMax } = this.#o;
    const { blockBytes } = dirty;
    const aside = new OldContent({ blockBytes, openSpill, spillSpace, memoryBytes, spillBytesMax });
    const all = (what === "all" && pass === undefined) || dirty.count === dirty.blocks;
    const grainBytes = Math.max(dirty.blockBytes, wanted);
    const kept = all ? allOf(dirty) : widened(audited === undefined ? dirty : union(dirty, audited), grainBytes);
    const view = new FrozenView({
      ...{ image: this.#image, aside },
      frozen: what === "nothing" ? new DirtyBitmap(dirty).freeze() : kept,
    });
    this.#view = view;
    let ended: Promise<void> | undefined;
    const end = async (): Promise<void> => {
      this.#view = undefined;
      await view.close();
    };
    return {
      ...{ cycle, bases, dirty, audited, view, durable, grainBytes },
      complete: all || what === "nothing",
      retire: async (remember) => {
        invariant(ended === undefined, "a cut ends once");
        await this.flush();
        await remember?.();
        if (audited !== undefined) this.#leastAuditShare = 0;
        ended = end();
        // Also where the view does not end well: nobody may cut while the journal is still at it.
        const retired = journal.retire(cycle);
        await Promise.allSettled([ended, retired]);
        await Promise.all([ended, retired]);
      },
      mergeBack: () => {
        if (ended === undefined) journal.mergeBack(cycle);
        ended ??= end();
        return ended;
      },
    };
  }

  /** After the last cut has ended and the last write has resolved. */
  async close(): Promise<void> {
    invariant(this.#underWay === 0 && this.#view === undefined, "an image that is closed is not in use");
    await this.#journal.close();
    await this.#image.close();
  }
}

function union(dirty: DirtyBits, others?: DirtyBitmap): DirtyBits {
  const both = others?.clone() ?? new DirtyBitmap(dirty);
  for (const range of dirty.ranges()) both.setRange(range);
  return both.freeze();
}

/** All that shares a stretch of `grainBytes` with one of the blocks. */
function widened(blocks: DirtyBits, grainBytes: number): DirtyBits {
  const { blockBytes, sizeBytes } = blocks;
  if (grainBytes <= blockBytes) return blocks;
  const wide = new DirtyBitmap(blocks);
  for (const { first, count } of blocks.ranges()) {
    const start = Math.floor((first * blockBytes) / grainBytes) * grainBytes;
    const end = Math.min(sizeBytes, Math.ceil(((first + count) * blockBytes) / grainBytes) * grainBytes);
    wide.setBytes(start, end - start);
  }
  return wide.freeze();
}

function allOf(blocks: DirtyBits): DirtyBits {
  const all = new DirtyBitmap(blocks);
  all.setAll();
  return all.freeze();
}

/**
 * Cuts several images at one moment: no write is under way in any of them, and each acknowledged before is in, each that begins later is not. Throws `cut-abandoned` when
 * the writes under way do not end in time; nothing has changed then.
 */
export async function cutImages(
  images: readonly TrackedImage[],
  options: {
    readonly clock: Clock;
    /** Of all images, or of each. */
    readonly freeze: Frozen | readonly Frozen[];
    /** Of each image: {@link ImageCut.audited}. */
    readonly audits?: readonly (DirtyBitmap | undefined)[] | undefined;
    /** Of each image: the pass that its cut follows. They end with the cut; when it is given up they go on. */
    readonly passes?: readonly (ImageCut | undefined)[] | undefined;
    /** Of each image: {@link CutExtras.grainBytes}. */
    readonly grains?: readonly (number | undefined)[] | undefined;
    /** Default {@link CUT_MILLIS_MAX}. */
    readonly millisMax?: number;
  },
): Promise<readonly ImageCut[]> {
  const { clock, freeze, audits, passes, grains, millisMax = CUT_MILLIS_MAX } = options;
  const whats = typeof freeze === "string" ? images.map(() => freeze) : freeze;
  const timer = new AbortController();
  const drained = images.map((image) => image.stop());
  try {
    const inTime = await Promise.race([
      Promise.all(drained).then(() => true),
      clock.sleep(millisMax, timer.signal).then(
        () => false,
        () => false,
      ),
    ]);
    if (!inTime) {
      const text = `writes under way did not end within ${millisMax / 1000} s: the cut is given up, and the writers go on`;
      throw new ReplicationError("cut-abandoned", text);
    }
    return images.map((image, nth) =>
      image.freeze(whats[nth] ?? "all", { audited: audits?.[nth], pass: passes?.[nth], grainBytes: grains?.[nth] }),
    );
  } finally {
    timer.abort();
    for (const image of images) image.go();
  }
}
