/** Reads runs of files in a lane. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { FileRun } from "../image/block-device.ts";
import type { Lane } from "./lane.ts";

/** Read and digested at a time: it stays in the core's own cache in between. */
export const stepBytes: number = 256 * KIB;

export interface ReadHow {
  readonly file: string;
}

/** Reads runs one after the other into targets of any length. */
export class RunReader {
  readonly #lane: Lane;
  readonly #runs: readonly FileRun[];
  readonly #how: ReadHow;
  #next = 0;
  /** Bytes taken of the run at `#next`. */
  #taken = 0;

  constructor(lane: Lane, runs: readonly FileRun[], how: ReadHow) {
    this.#lane = lane;
    this.#runs = runs;
    this.#how = how;
  }

  /** Passes bytes without reading them. */
  skip(bytes: number): void {
    let left = bytes;
    for (let run = this.#runs[this.#next]; left > 0 && run !== undefined; run = this.#runs[this.#next]) {
      const passed = Math.min(run.length - this.#taken, left);
      left -= passed;
      this.#taken += passed;
      if (this.#taken < run.length) break;
      this.#next++;
      this.#taken = 0;
    }
  }

  /**
   * Fills all of `target`. A short read, or runs that end early, is `image-truncated`, never zeros; a failed one `image-unreadable` with
   * file and offset.
   */
  fill(target: Uint8Array): void {
    let filled = 0;
    while (filled < target.length) {
      const run = this.#runs[this.#next];
      if (run === undefined) {
        throw new ReplicationError(
          "image-truncated",
          `${this.#how.file}: the image ends ${target.length - filled} bytes early`,
        );
      }
      const length = Math.min(run.length - this.#taken, target.length - filled);
      const piece = target.subarray(filled, filled + length);
      if (run.kind === "zero") this.#lane.zero(piece);
      else readRun(this.#lane, run.fd, run.offset + this.#taken, piece, this.#how);
      filled += length;
      this.#taken += length;
      if (this.#taken === run.length) {
        this.#next++;
        this.#taken = 0;
      }
    }
  }
}

/** The last block of the disk is digested padded with zeros: `content` is whole blocks, of which `bytes` are there. */
export function padEnd(lane: Lane, content: Uint8Array, bytes: number): Uint8Array {
  if (bytes < content.length) lane.zero(content.subarray(bytes));
  return content;
}

function readRun(lane: Lane, fd: number, offset: number, target: Uint8Array, options: ReadHow): void {
  const { storage } = lane;
  let count: number;
  try {
    count = storage.read(fd, target, offset);
  } catch (error) {
    throw new ReplicationError(
      "image-unreadable",
      `${options.file}: reading ${target.length} bytes at offset ${offset} failed (${errnoOf(error) ?? String(error)})`,
      { cause: error, details: { offset, errno: errnoOf(error) ?? null } },
    );
  }
  if (count < target.length) {
    throw new ReplicationError(
      "image-truncated",
      `${options.file}: reading ${target.length} bytes at offset ${offset} gave ${count}: the file was cut short or is being changed`,
      { details: { offset: offset + count } },
    );
  }
}
