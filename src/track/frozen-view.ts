/**
 * An image as it was at one moment, read while its writers go on: before a frozen block is written to for the first time since, its old content is
 * copied aside. A block that is being read is not written to until that one read has ended.
 *
 * Only frozen blocks are as they were; whatever else is read is as it is. The guest comes first: when old content cannot be kept the view is lost, says so in
 * {@link FrozenView.check} and in each read, and no writer waits any more.
 */
import { invariant, type ReplicationError, toReplicationError } from "../base/errors.ts";
import { PagedBits } from "../base/paged-bits.ts";
import type { BlockReader, Extent, FileRun } from "../image/block-device.ts";
import { checkRange } from "../image/range.ts";
import type { DirtyBits } from "./dirty-bitmap.ts";
import type { OldContent } from "./old-content.ts";

export interface FrozenViewOptions {
  /** What the writers write to. Stays open. */
  readonly image: BlockReader;
  readonly frozen: DirtyBits;
  /** Taken over. */
  readonly aside: OldContent;
}

interface Hold {
  count: number;
  /** Writers that wait. */
  readonly waiting: (() => void)[];
}

export class FrozenView implements BlockReader {
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly frozen: DirtyBits;
  readonly #image: BlockReader;
  readonly #aside: OldContent;
  readonly #blockBytes: number;
  /** Frozen blocks whose content still lies in the image alone. */
  readonly #inPlace: PagedBits;
  readonly #copied: PagedBits;
  readonly #held = new Map<number, Hold>();
  readonly #copying = new Map<number, Promise<void>>();
  /** Reads of what was copied aside that are under way. */
  #readingAside = 0;
  #lost: ReplicationError | undefined;
  readonly #whenLost: ((error: ReplicationError) => void)[] = [];
  #over = false;

  constructor({ image, frozen, aside }: FrozenViewOptions) {
    this.sizeBytes = frozen.sizeBytes;
    this.sectorBytes = image.sectorBytes;
    this.frozen = frozen;
    this.#image = image;
    this.#aside = aside;
    this.#blockBytes = frozen.blockBytes;
    this.#inPlace = new PagedBits(frozen.blocks);
    this.#copied = new PagedBits(frozen.blocks);
    for (const { first, count } of frozen.ranges()) this.#inPlace.addRange(first, count);
  }

  /** Blocks whose old content was copied aside so far. */
  get copied(): number {
    return this.#copied.count;
  }

  // For writers -----------------------------------------------------------------------------------------------------

  /** Before a range is written to: undefined when it may be at once, else a promise that resolves when it may. Never rejects. */
  beforeWrite(offset: number, length: number): Promise<void> | undefined {
    if (this.#next(offset, length) === undefined) return undefined;
    return this.#copy(offset, length);
  }

  /** Whether a range may be written to by who goes on before anything else has a turn. */
  mayWriteNow(offset: number, length: number): boolean {
    return this.#next(offset, length) === undefined;
  }

  /** The first block of a range of bytes that must be seen to before it is written. */
  #next(offset: number, length: number): number | undefined {
    if (this.#lost !== undefined || this.#over || length <= 0) return undefined;
    const first = Math.floor(offset / this.#blockBytes);
    if (length <= this.#blockBytes - (offset % this.#blockBytes)) return this.#inPlace.has(first) ? first : undefined;
    const found = this.#inPlace.next(first);
    return found !== undefined && found * this.#blockBytes < offset + length ? found : undefined;
  }

  async #copy(offset: number, length: number): Promise<void> {
    for (;;) {
      const block = this.#next(offset, length);
      if (block === undefined) return;
      const hold = this.#held.get(block);
      if (hold === undefined) await this.#copyAside(block);
      else await new Promise<void>((resolve) => hold.waiting.push(resolve));
    }
  }

  #copyAside(block: number): Promise<void> {
    const running = this.#copying.get(block);
    if (running !== undefined) return running;
    const copying = this.#keep(block).finally(() => {
      this.#copying.delete(block);
      this.#dropIfLost();
    });
    this.#copying.set(block, copying);
    return copying;
  }

  async #keep(block: number): Promise<void> {
    const offset = block * this.#blockBytes;
    const bytes = new Uint8Array(Math.min(this.#blockBytes, this.sizeBytes - offset));
    try {
      await this.#image.read(bytes, offset);
      await this.#aside.put(block, bytes);
      this.#copied.add(block);
      this.#inPlace.delete(block);
    } catch (error) {
      this.lose(toReplicationError(error, "image-unreadable"));
    }
  }

  /** The view is of no use any more; nobody waits for it. The first reason stays. */
  lose(error: ReplicationError): void {
    if (this.#over) return;
    if (this.#lost !== undefined) return;
    this.#lost = error;
    this.#wakeAll();
    this.#dropIfLost();
    for (const task of this.#whenLost) task(error);
  }

  /** Calls `task` once when the view is lost, at once when it is; never after the view is over. */
  whenLost(task: (error: ReplicationError) => void): void {
    if (this.#lost === undefined) this.#whenLost.push(task);
    else task(this.#lost);
  }

  /** What was copied aside is of no use to a view that is lost: its room goes back as soon as nobody copies or reads, whoever still has the view. */
  #dropIfLost(): void {
    if (this.#lost === undefined || this.#over || this.#copying.size + this.#readingAside > 0) return;
    // What goes wrong is heard when the view is closed, if it matters.
    this.#aside.close().catch(() => undefined);
  }

  #wakeAll(): void {
    const waiting = [...this.#held.values()].flatMap((hold) => hold.waiting.splice(0));
    for (const resolve of waiting) resolve();
  }

  // For readers -----------------------------------------------------------------------------------------------------

  /** Throws why the view is lost. What was read before it was is good only when this does not throw afterwards. */
  check(): void {
    if (this.#lost !== undefined) throw this.#lost;
    invariant(!this.#over, "a view that is over is not read");
  }

  /** Reads bytes as they were; of blocks that are not frozen as they are. */
  async read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(this.sizeBytes, offset, target.length);
    const tasks: Promise<void>[] = [];
    for (let at = 0; at < target.length; ) {
      this.check();
      const block = Math.floor((offset + at) / this.#blockBytes);
      const copying = this.#copying.get(block);
      if (copying !== undefined) {
        await copying;
        continue;
      }
      const kept = this.#copied.has(block);
      let end = at;
      do end += this.#blockBytes - ((offset + end) % this.#blockBytes);
      while (!kept && end < target.length && this.#isPlaced((offset + end) / this.#blockBytes));
      const piece = target.subarray(at, Math.min(end, target.length));
      const from = offset + at;
      tasks.push(kept ? this.#readAside(block, piece, from % this.#blockBytes) : this.#readPlaced(piece, from));
      // Looked at below, when all are there.
      tasks.at(-1)?.catch(() => undefined);
      at += piece.length;
    }
    await Promise.all(tasks);
    this.check();
  }

  async #readAside(block: number, target: Uint8Array, within: number): Promise<void> {
    this.#readingAside++;
    try {
      await this.#aside.read(block, target, within);
    } finally {
      this.#readingAside--;
      this.#dropIfLost();
    }
  }

  async #readPlaced(target: Uint8Array, offset: number): Promise<void> {
    const release = this.hold(offset, target.length);
    try {
      await this.#image.read(target, offset);
    } finally {
      release();
    }
  }

  /** Extents as they were, of frozen blocks: what was copied aside is data, whatever the image has there by now. */
  async *extents(offset: number, length: number): AsyncGenerator<Extent, void, undefined> {
    checkRange(this.sizeBytes, offset, length);
    // The image is asked first: what changed before its answer has been copied aside by then.
    for await (const extent of this.#image.extents(offset, length)) {
      if (extent.kind === "data" || this.#copied.count === 0) yield extent;
      else yield* this.#overlay(extent);
    }
  }

  *#overlay({ kind, offset, length }: Extent): Generator<Extent> {
    const end = offset + length;
    let at = offset;
    for (;;) {
      const block = this.#copied.next(Math.floor(at / this.#blockBytes));
      if (block === undefined || block * this.#blockBytes >= end) break;
      const start = Math.max(block * this.#blockBytes, at);
      const stop = Math.min((block + 1) * this.#blockBytes, end);
      if (start > at) yield { kind, offset: at, length: start - at };
      yield { kind: "data", offset: start, length: stop - start };
      at = stop;
      if (at === end) return;
    }
    if (at < end) yield { kind, offset: at, length: end - at };
  }

  /** Good while the range is held: {@link FrozenView.hold}. Undefined: some of it was copied aside. */
  runs(offset: number, length: number): readonly FileRun[] | undefined {
    if (this.#lost !== undefined || length === 0) return undefined;
    for (let block = Math.floor(offset / this.#blockBytes); block * this.#blockBytes < offset + length; block++) {
      if (!this.#isPlaced(block)) return undefined;
    }
    return this.#image.runs?.(offset, length);
  }

  /** Its bytes lie in the image, and nobody is about to change that. */
  #isPlaced(block: number): boolean {
    return !this.#copying.has(block) && !this.#copied.has(block);
  }

  hold(offset: number, length: number): () => void {
    const blocks: number[] = [];
    for (let block = Math.floor(offset / this.#blockBytes); block * this.#blockBytes < offset + length; block++) {
      if (!this.#isPlaced(block)) continue;
      blocks.push(block);
      const hold = this.#held.get(block);
      if (hold === undefined) this.#held.set(block, { count: 1, waiting: [] });
      else hold.count++;
    }
    let held = true;
    return () => {
      if (held) for (const block of blocks) this.#release(block);
      held = false;
    };
  }

  #release(block: number): void {
    const hold = this.#held.get(block);
    invariant(hold !== undefined, "what is released was held");
    hold.count--;
    if (hold.count > 0) return;
    this.#held.delete(block);
    for (const resolve of hold.waiting) resolve();
  }

  /** Writers need not care any more. Nothing reads. The image stays open. */
  async close(): Promise<void> {
    this.#over = true;
    this.#wakeAll();
    await Promise.all(this.#copying.values());
    await this.#aside.close();
  }
}
