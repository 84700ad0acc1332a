/** An image file as it is, for readers that find their way by its tables. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { LaneStorage, StorageFile } from "../storage/seam.ts";
import type { TableFile } from "./table-pages.ts";

export class PlainFile implements TableFile {
  readonly file: StorageFile;
  #sizeBytes: number;
  readonly #lanes: LaneStorage;

  /** `lanes`: for what must be known at once. */
  constructor(file: StorageFile, lanes: LaneStorage, sizeBytes: number) {
    this.file = file;
    this.#lanes = lanes;
    this.#sizeBytes = sizeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The file was made longer by who writes it. */
  grew(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
  }

  isPlain(offset: number, length: number): boolean {
    return offset + length <= this.sizeBytes;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    let count: number;
    try {
      count = await this.file.read(target, offset);
    } catch (error) {
      throw this.#unreadable(error, target.length, offset);
    }
    if (count < target.length) throw this.truncated(offset + count);
  }

  /** The same, at once: a few pages of a table. */
  readNow(target: Uint8Array, offset: number): void {
    let count: number;
    try {
      count = this.#lanes.read(this.file.fd, target, offset);
    } catch (error) {
      throw this.#unreadable(error, target.length, offset);
    }
    if (count < target.length) throw this.truncated(offset + count);
  }

  truncated(endsAt: number, what = "more belongs to it"): ReplicationError {
    const { path } = this.file;
    return new ReplicationError(
      "image-truncated",
      `${path} ends at offset ${endsAt}, but ${what}: it was cut short, or its copy is incomplete`,
      { details: { file: path, offset: endsAt } },
    );
  }

  #unreadable(error: unknown, length: number, offset: number): unknown {
    const code = errnoOf(error);
    if (code === undefined) return error;
    const { path } = this.file;
    return new ReplicationError(
      "image-unreadable",
      `${path} cannot be read at offset ${offset}, length ${length}: ${code}. Check the medium and the system's log`,
      { cause: error, details: { file: path, offset, length, errno: code } },
    );
  }
}
