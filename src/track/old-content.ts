/**
 * Old content of blocks, kept aside while a cut is read: in memory first, then in a spill file. A block is put once, and stays until the end. Memory and
 * file are bounded, and the file leaves its file system a reserve: the guest's image may grow on it. Who puts more gets an error, and has to do without.
 */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { defaultReserveBytes } from "../storage/reserve.ts";
import type { FreeSpace, StorageFile } from "../storage/seam.ts";

export interface OldContentOptions {
  readonly blockBytes: number;
  /** Opens an empty file that is this object's alone; asked for when memory is full. Undefined: there is none. */
  readonly openSpill?: (() => Promise<StorageFile>) | undefined;
  /** Of the file system the file lies on; undefined: not known. */
  readonly spillSpace?: (() => Promise<FreeSpace>) | undefined;
  /** Default {@link SPILL_MEMORY_BYTES}. */
  readonly memoryBytes?: number | undefined;
  /** Of the spill file; default {@link SPILL_FILE_BYTES}. */
  readonly spillBytesMax?: number | undefined;
}

export const SPILL_MEMORY_BYTES = 32 * MIB;
export const SPILL_FILE_BYTES = 64 * 1024 * MIB;
/** The room is asked for again after so many bytes of the file. */
export const SPILL_ASK_BYTES = 64 * MIB;

export class OldContent {
  readonly #o: OldContentOptions;
  readonly #memory = new Map<number, Uint8Array>();
  /** Place of a block in the file, in blocks. */
  readonly #places = new Map<number, number>();
  #used = 0;
  #memoryBytes = 0;
  #file: Promise<StorageFile> | undefined;
  /** So long may the file become before its room is asked for again. */
  #roomBytes = 0;
  #asking: Promise<void> | undefined;

  constructor(options: OldContentOptions) {
    this.#o = options;
  }

  /** Takes the bytes over. The block is there once it resolves. Errors: `cut-abandoned`: there is no room, or the file cannot be written. */
  async put(block: number, bytes: Uint8Array): Promise<void> {
    if (this.#memoryBytes + bytes.length <= (this.#o.memoryBytes ?? SPILL_MEMORY_BYTES)) {
      this.#memoryBytes += bytes.length;
      this.#memory.set(block, bytes);
      return;
    }
    const { blockBytes, openSpill, spillBytesMax = SPILL_FILE_BYTES } = this.#o;
    if (openSpill === undefined) throw abandoned("memory for the old content of blocks is full, and there is no file");
    try {
      while ((this.#used + 1) * blockBytes > this.#roomBytes) await this.#askRoom();
      if ((this.#used + 1) * blockBytes > spillBytesMax) {
        throw abandoned(`the old content of more blocks was to be kept than its limit allows (${spillBytesMax} bytes)`);
      }
      const place = this.#used++;
      this.#file ??= openSpill();
      const file = await this.#file;
      await file.write(bytes, place * blockBytes);
      this.#places.set(block, place);
    } catch (error) {
      if (error instanceof ReplicationError) throw error;
      throw abandoned(`the old content of a block cannot be kept (${errnoOf(error) ?? String(error)})`, error);
    }
  }

  #askRoom(): Promise<void> {
    this.#asking ??= this.#findRoom().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  async #findRoom(): Promise<void> {
    const { blockBytes, spillSpace } = this.#o;
    const space = await spillSpace?.();
    const spareBytes = space === undefined ? SPILL_ASK_BYTES : space.freeBytes - defaultReserveBytes(space);
    if (spareBytes < blockBytes)
      throw abandoned("the old content of blocks would take the last free space of its disk");
    this.#roomBytes = this.#used * blockBytes + Math.min(spareBytes, SPILL_ASK_BYTES);
  }

  /** Fills `target` with the block's bytes from `within` on; of a block that is there. Throws the system's error. */
  async read(block: number, target: Uint8Array, within: number): Promise<void> {
    const bytes = this.#memory.get(block);
    if (bytes !== undefined) {
      target.set(bytes.subarray(within, within + target.length));
      return;
    }
    const file = await this.#file;
    const at = (this.#places.get(block) ?? 0) * this.#o.blockBytes + within;
    if ((await file?.read(target, at)) === target.length) return;
    throw abandoned("the file with the old content of blocks became shorter");
  }

  /** Nothing is put or read any more. Idempotent. */
  async close(): Promise<void> {
    this.#memory.clear();
    const file = await this.#file?.catch(() => undefined);
    await file?.close();
  }
}

function abandoned(what: string, cause?: unknown): ReplicationError {
  return new ReplicationError(
    "cut-abandoned",
    `${what}: the cut is given up, and the guest goes on. What changed stays marked for the next one`,
    { cause },
  );
}
