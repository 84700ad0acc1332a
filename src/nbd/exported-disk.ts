/** What a server exports: an image, its names, and what is told of it. */
import { invariant, toReplicationError } from "../base/errors.ts";
import type { BlockReader, BlockWriter } from "../image/block-device.ts";
import { SoundSync } from "../image/sound-sync.ts";
import type { LaneStorage } from "../storage/seam.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { allocationBits, allocationContext } from "./protocol.ts";

/** What a context says of a stretch, in the bits of that context. */
export interface ContextStretch {
  readonly length: number;
  readonly flags: number;
}

/** A context beside `base:allocation`, such as `qemu:dirty-bitmap:NAME`. */
export interface ServedContext {
  readonly name: string;
  /** Stretches one behind the other from `offset` on that cover the range. Evaluated as it is consumed. */
  stretches(offset: number, length: number): AsyncIterable<ContextStretch>;
}

export interface ExportOptions {
  /** Clients name it so; the base name of the image, usually. The first export of a server answers to the empty name as well. */
  readonly name: string;
  readonly description?: string;
  readonly image: BlockReader | BlockWriter;
  /** Clients may write; `image` is a {@link BlockWriter}. */
  readonly writable: boolean;
  /**
   * The image's bytes are exactly those of this file from its start on, for reading and, if it is writable, for writing: they are read and written at once by the
   * thread that serves, which is what makes small requests fast. Left out: everything goes through `image`.
   */
  readonly file?: {
    readonly fd: number;
    readonly lanes: LaneStorage;
    /** Asked before each write that is made at once; false: this one goes through `image`. Left out: always. */
    readonly mayWriteNow?: (offset: number, length: number) => boolean;
  };
  readonly contexts?: readonly ServedContext[];
}

/** An export as its connections share it. The image belongs to who made it, and stays open. */
export class ExportedDisk {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly image: BlockReader;
  /** Undefined: read-only. */
  readonly writer: BlockWriter | undefined;
  readonly file: ExportOptions["file"];
  readonly contexts: readonly ServedContext[];
  readonly #sync = new SoundSync(async () => await this.writer?.flush());

  constructor({ name, description, image, writable, file, contexts }: ExportOptions) {
    this.name = name;
    this.description = description ?? "";
    this.sizeBytes = image.sizeBytes;
    this.image = image;
    if (writable) {
      invariant("write" in image, "an image that clients write to can be written");
      this.writer = image;
    } else this.writer = undefined;
    this.file = file;
    this.contexts = [allocationOf(image), ...(contexts ?? [])];
  }

  /** Writes all of `source` through the image. Of a writable export. */
  async write(source: Uint8Array, offset: number): Promise<void> {
    this.checkSound();
    await this.writer?.write(source, offset);
  }

  /** Makes a range zero. `allocated`: its space is kept. Of a writable export. */
  async zero(offset: number, length: number, allocated: boolean): Promise<void> {
    this.checkSound();
    if (!allocated) {
      await this.writer?.zero(offset, length);
      return;
    }
    const zeros = new Uint8Array(Math.min(length, nbdLimits.serverPieceBytes));
    for (let at = 0; at < length; at += zeros.length) {
      await this.writer?.write(zeros.subarray(0, length - at), offset + at);
    }
  }

  /**
   * Everything written before is durable. Once it failed it always fails, and so does every write: what is on the disk is not known any more, and a
   * second try would say yes to what was lost.
   */
  async flush(): Promise<void> {
    this.checkSound();
    await this.#sync.run();
  }

  /** Throws what the flush that failed threw. */
  checkSound(): void {
    const { failure } = this.#sync;
    if (failure !== undefined) throw toReplicationError(failure.error, "sync-failed");
  }
}

function allocationOf(image: BlockReader): ServedContext {
  const { hole, zero } = allocationBits;
  const flags = { data: 0, zero, hole: hole | zero } as const;
  return {
    name: allocationContext,
    async *stretches(offset, length) {
      for await (const extent of image.extents(offset, length)) {
        yield { length: extent.length, flags: flags[extent.kind] };
      }
    },
  };
}
