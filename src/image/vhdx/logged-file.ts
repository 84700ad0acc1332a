/** A VHDX file as it is after its log was replayed. */
import type { ReplicationError } from "../../base/errors.ts";
import type { LaneStorage, StorageFile } from "../../storage/seam.ts";
import { PlainFile } from "../plain-file.ts";
import type { TableFile } from "../table-pages.ts";
import { completeSector, LOG_SECTOR_BYTES } from "./log-entries.ts";
import type { LogOverlay } from "./replay.ts";

export class LoggedFile implements TableFile {
  readonly file: StorageFile;
  readonly #plain: PlainFile;
  readonly #overlay: LogOverlay | undefined;
  readonly #fileBytes: number;
  /** With what the log adds at the end, which reads as zeros. */
  readonly sizeBytes: number;

  /** `lanes`: for what must be known at once. */
  constructor(options: {
    readonly file: StorageFile;
    readonly lanes: LaneStorage;
    readonly fileBytes: number;
    readonly overlay: LogOverlay | undefined;
  }) {
    this.file = options.file;
    this.#plain = new PlainFile(options.file, options.lanes, options.fileBytes);
    this.#fileBytes = options.fileBytes;
    this.#overlay = options.overlay;
    this.sizeBytes = Math.max(options.fileBytes, options.overlay?.fileBytes ?? 0);
  }

  get path(): string {
    return this.file.path;
  }

  isPlain(offset: number, length: number): boolean {
    return offset + length <= this.#fileBytes && this.#overlay?.touches(offset, length) !== true;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    if (this.isPlain(offset, target.length)) {
      await this.#plain.read(target, offset);
      return;
    }
    for (const { bytes, at, place } of this.#sectors(target, offset)) {
      if (place !== undefined) await this.#plain.read(bytes, place);
      this.#complete(bytes, at);
    }
  }

  /** The same, at once: a few pages of a table. */
  readNow(target: Uint8Array, offset: number): void {
    if (this.isPlain(offset, target.length)) {
      this.#plain.readNow(target, offset);
      return;
    }
    for (const { bytes, at, place } of this.#sectors(target, offset)) {
      if (place !== undefined) this.#plain.readNow(bytes, place);
      this.#complete(bytes, at);
    }
  }

  /**
   * A range that the log changes, in pieces: whole sectors where it does. `place`: where in the file the bytes are; undefined: nowhere.
   */
  *#sectors(
    target: Uint8Array,
    offset: number,
  ): Generator<{ readonly bytes: Uint8Array; readonly at: number; readonly place: number | undefined }> {
    const end = offset + target.length;
    if (end > this.sizeBytes) throw this.truncated(this.sizeBytes, `what is read of it reaches to ${end}`);
    for (let at = offset; at < end; ) {
      const sectorAt = Math.floor(at / LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES;
      const stop = Math.min(end, sectorAt + LOG_SECTOR_BYTES);
      const bytes = target.subarray(at - offset, stop - offset);
      const change = this.#overlay?.sector(sectorAt);
      if (change === "zero") bytes.fill(0);
      else if (change !== undefined) yield { bytes, at, place: change.logAt + (at - sectorAt) };
      else {
        // What lies behind the end of the file was added by the log.
        const held = Math.max(0, Math.min(stop, this.#fileBytes) - at);
        bytes.fill(0, held);
        if (held > 0) yield { bytes: bytes.subarray(0, held), at, place: at };
      }
      at = stop;
    }
  }

  /** The log holds all of a sector but its first 8 and last 4 bytes, which its descriptor has. */
  #complete(bytes: Uint8Array, at: number): void {
    const sectorAt = Math.floor(at / LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES;
    const change = this.#overlay?.sector(sectorAt);
    if (change === undefined || change === "zero") return;
    completeSector(bytes, at - sectorAt, change);
  }

  truncated(endsAt: number, what: string): ReplicationError {
    return this.#plain.truncated(endsAt, what);
  }
}
