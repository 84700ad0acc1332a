/** Blocks on their way into jobs: pieces of pages, gathered until a job has enough. */
import { invariant } from "../base/errors.ts";
import { EXTENT_BYTES_MAX } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { FileRun } from "../image/block-device.ts";
import type { ScanRequest } from "../lanes/jobs.ts";
import type { BlockRange } from "./data-cursor.ts";
import type { PageWork } from "./page-work.ts";

/** Compared in one job, so that jobs are few, and a slow disk does not hold a lane for long. */
export const bytesTogether: number = 8 * EXTENT_BYTES_MAX;
/** Scattered pieces of one job: each may be a seek, and a guest that writes to what is being read waits for all of them. */
export const piecesTogether = 32;

/** Blocks of a page that follow one another. */
export interface Piece extends BlockRange {
  readonly work: PageWork;
  /** What the receiver holds of the page. `unknown`: the page is read by itself. */
  readonly base: Uint8Array | "zero" | "unknown";
}

/** One whose bytes lie in files. */
export interface PlacedPiece extends Piece {
  readonly length: number;
  readonly runs: readonly FileRun[];
}

/** The receiver's digests of blocks of which it is known. */
function digestsOf({ work, first, end }: Piece, base: Uint8Array): Uint8Array {
  const width = work.digests.length / work.count;
  return base.subarray((first - work.first) * width, (end - work.first) * width);
}

/** What the receiver holds of the blocks of these pieces, as jobs take it. */
export function baseOf(pieces: readonly Piece[]): ScanRequest["base"] {
  const common = pieces[0]?.base;
  if (typeof common === "string" && pieces.every(({ base }) => base === common)) return common;
  return Buffer.concat(
    pieces.map((piece) => {
      const { base, work, first, end } = piece;
      invariant(base !== "unknown", "a page whose digests are not known is read by itself");
      if (base === "zero") return new Uint8Array((end - first) * (work.digests.length / work.count));
      return digestsOf(piece, base);
    }),
  );
}

/** Whether the receiver holds one of these blocks as zeros: then it may be new, and is shipped at once. */
export function hasZero(piece: Piece): boolean {
  if (typeof piece.base === "string") return false;
  const width = piece.work.digests.length / piece.work.count;
  const digests = digestsOf(piece, piece.base);
  for (let at = 0; at < digests.length; at += width) {
    if (digests[at] === 0 && isZero(digests.subarray(at, at + width))) return true;
  }
  return false;
}

/** Pieces without their first `count` blocks. */
export function dropBlocks<P extends Piece>(pieces: readonly P[], count: number): P[] {
  let left = count;
  return pieces.flatMap((piece) => {
    const dropped = Math.min(left, piece.end - piece.first);
    left -= dropped;
    if (dropped === 0) return [piece];
    return piece.first + dropped === piece.end ? [] : [{ ...piece, first: piece.first + dropped }];
  });
}

/** Gathers pieces until they have so many blocks together, or are so many. */
export class Gathered<P extends BlockRange> {
  readonly #max: { readonly blocks: number; readonly pieces: number };
  readonly #start: (pieces: readonly P[]) => void;
  #pieces: P[] = [];
  #blocks = 0;

  constructor(max: { readonly blocks: number; readonly pieces: number }, start: (pieces: readonly P[]) => void) {
    this.#max = max;
    this.#start = start;
  }

  add(piece: P): void {
    const blocks = piece.end - piece.first;
    if (this.#blocks + blocks > this.#max.blocks || this.#pieces.length === this.#max.pieces) this.finish();
    this.#pieces.push(piece);
    this.#blocks += blocks;
  }

  finish(): void {
    if (this.#pieces.length > 0) this.#start(this.#pieces);
    this.#pieces = [];
    this.#blocks = 0;
  }
}
