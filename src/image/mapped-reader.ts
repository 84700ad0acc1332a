/** A disk whose blocks lie anywhere in a file, as a table says: over its parent, where it has one. */
import type { StorageFile } from "../storage/seam.ts";
import type { BlockReader, Extent, FileRun } from "./block-device.ts";
import { checkRange } from "./range.ts";

/** Blocks from `first` to `end` (exclusive) of which the same is true: not in this file, zeros, or at a place in it. */
export type BlockStretch =
  | { readonly kind: "elsewhere" | "zero"; readonly first: number; readonly end: number }
  /** One block. */
  | { readonly kind: "present" | "partly"; readonly first: number; readonly end: number; readonly at: number };

/** Where payload blocks are. Its methods throw `image-damaged`, `image-truncated`, `image-unreadable`. */
export interface BlockMap {
  readonly payloadBlockBytes: number;
  /** Has what is needed of a block in memory, so that `stretch` need not read it. */
  fetch(block: number): Promise<void>;
  /** What is true of `first`, and of as many blocks behind it, at most up to `end`, as are known to be alike without reading more. */
  stretch(first: number, end: number): BlockStretch;
  /** Whether the sectors from `sector` on are in this file, and for how many, at most `count`, that is so; all of the partly present `block`. */
  sectors(block: number, sector: number, count: number): { readonly here: boolean; readonly count: number };
}

/** The file, with what a log that was not written out changes of it. */
export interface MappedFile {
  readonly file: StorageFile;
  readonly sizeBytes: number;
  /** Whether the range is in the file as it is: what reads the file itself reads the same. */
  isPlain(offset: number, length: number): boolean;
  /** Fills all of `target`, or throws `image-truncated` or `image-unreadable`. */
  read(target: Uint8Array, offset: number): Promise<void>;
  /** That a file ends at `endsAt`; `what`: what is missing of it. */
  truncated(endsAt: number, what: string): Error;
}

export interface MappedDisk {
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly file: MappedFile;
  readonly map: BlockMap;
  /** Of the same size. Undefined: what is not in this file reads as zeros. */
  readonly parent: BlockReader | undefined;
}

/** Where bytes of the disk are. `parent`: at the same place of the parent, or zeros where there is none. */
type Segment =
  | { readonly kind: "file"; readonly at: number; readonly length: number }
  | { readonly kind: "zero" | "parent"; readonly length: number };

/**
 * Takes file and parent over: `close` closes both. Errors of reading: `image-damaged`, `image-truncated` with the payload block,
 * `image-unreadable`.
 */
export class MappedReader implements BlockReader {
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly #file: MappedFile;
  readonly #map: BlockMap;
  readonly #parent: BlockReader | undefined;

  constructor({ sizeBytes, sectorBytes, file, map, parent }: MappedDisk) {
    this.sizeBytes = sizeBytes;
    this.sectorBytes = sectorBytes;
    this.#file = file;
    this.#map = map;
    this.#parent = parent;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(this.sizeBytes, offset, target.length);
    let done = 0;
    for (const segment of this.#segments(offset, target.length)) {
      const piece = target.subarray(done, done + segment.length);
      if (segment.kind === "file") await this.#readFile(piece, segment.at, offset + done);
      else if (segment.kind === "zero" || this.#parent === undefined) piece.fill(0);
      else await this.#parent.read(piece, offset + done);
      done += segment.length;
    }
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent, void, undefined> {
    checkRange(this.sizeBytes, offset, length);
    let held: Extent | undefined;
    for await (const extent of this.#looseExtents(offset, length)) {
      if (held !== undefined && held.kind === extent.kind) held = { ...held, length: held.length + extent.length };
      else {
        if (held !== undefined) yield held;
        held = extent;
      }
    }
    if (held !== undefined) yield held;
  }

  runs(offset: number, length: number): readonly FileRun[] | undefined {
    checkRange(this.sizeBytes, offset, length);
    const runs: FileRun[] = [];
    let done = 0;
    for (const segment of this.#segments(offset, length)) {
      if (segment.kind === "file") {
        // What the log holds, or what is missing, only `read` can tell.
        if (!this.#file.isPlain(segment.at, segment.length)) return undefined;
        runs.push({ kind: "file", fd: this.#file.file.fd, offset: segment.at, length: segment.length });
      } else if (segment.kind === "zero" || this.#parent === undefined) {
        runs.push({ kind: "zero", length: segment.length });
      } else {
        const theirs = this.#parent.runs?.(offset + done, segment.length);
        if (theirs === undefined) return undefined;
        runs.push(...theirs);
      }
      done += segment.length;
    }
    return joined(runs);
  }

  async close(): Promise<void> {
    try {
      await this.#file.file.close();
    } finally {
      await this.#parent?.close();
    }
  }

  /** Extents of which neighbours may be of one kind. */
  async *#looseExtents(offset: number, length: number): AsyncGenerator<Extent, void, undefined> {
    const { payloadBlockBytes } = this.#map;
    const end = offset + length;
    let position = offset;
    while (position < end) {
      await this.#map.fetch(Math.floor(position / payloadBlockBytes));
      const [segment] = this.#segments(position, end - position);
      if (segment === undefined) return;
      const { kind, length: bytes } = segment;
      if (kind === "file") yield* this.#fileExtents(segment.at, bytes, position);
      else if (kind === "zero" || this.#parent === undefined) yield { kind: "hole", offset: position, length: bytes };
      else yield* this.#parent.extents(position, bytes);
      position += bytes;
    }
  }

  /** A payload block that is there may still be a hole of its file for the most part. */
  *#fileExtents(at: number, length: number, position: number): Generator<Extent, void, undefined> {
    const end = at + length;
    if (!this.#file.isPlain(at, length)) {
      yield { kind: "data", offset: position, length };
      return;
    }
    for (let next = at; next < end; ) {
      const data = this.#file.file.nextData(next);
      const start = Math.min(data?.start ?? end, end);
      if (start > next) yield { kind: "hole", offset: position + next - at, length: start - next };
      if (start === end || data === undefined) return;
      const stop = Math.min(data.end, end);
      yield { kind: "data", offset: position + start - at, length: stop - start };
      next = stop;
    }
  }

  *#segments(offset: number, length: number): Generator<Segment, void, undefined> {
    const { sectorBytes } = this;
    const { payloadBlockBytes } = this.#map;
    const end = offset + length;
    const lastBlock = Math.ceil(end / payloadBlockBytes);
    for (let position = offset; position < end; ) {
      const block = Math.floor(position / payloadBlockBytes);
      const stretch = this.#map.stretch(block, lastBlock);
      const stop = Math.min(end, stretch.end * payloadBlockBytes);
      if (stretch.kind === "partly") {
        while (position < stop) {
          const sector = Math.floor(position / sectorBytes);
          const { here, count } = this.#map.sectors(block, sector, Math.ceil(stop / sectorBytes) - sector);
          const pieceEnd = Math.min(stop, (sector + count) * sectorBytes);
          const at = stretch.at + position - block * payloadBlockBytes;
          yield here
            ? { kind: "file", at, length: pieceEnd - position }
            : { kind: "parent", length: pieceEnd - position };
          position = pieceEnd;
        }
        continue;
      }
      if (stretch.kind === "present") {
        yield { kind: "file", at: stretch.at + position - block * payloadBlockBytes, length: stop - position };
      } else yield { kind: stretch.kind === "zero" ? "zero" : "parent", length: stop - position };
      position = stop;
    }
  }

  async #readFile(target: Uint8Array, at: number, offset: number): Promise<void> {
    const { sizeBytes } = this.#file;
    if (at + target.length > sizeBytes) {
      const block = Math.floor(offset / this.#map.payloadBlockBytes);
      throw this.#file.truncated(sizeBytes, `payload block ${block} at ${at} reaches to ${at + target.length}`);
    }
    await this.#file.read(target, at);
  }
}

/** With runs made one that continue each other. */
function joined(runs: readonly FileRun[]): FileRun[] {
  const made: FileRun[] = [];
  for (const run of runs) {
    const last = made.at(-1);
    if (last?.kind === "zero" && run.kind === "zero")
      made[made.length - 1] = { ...last, length: last.length + run.length };
    else if (
      last?.kind === "file" &&
      run.kind === "file" &&
      last.fd === run.fd &&
      last.offset + last.length === run.offset
    ) {
      made[made.length - 1] = { ...last, length: last.length + run.length };
    } else made.push(run);
  }
  return made;
}
