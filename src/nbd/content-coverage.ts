/** Which bytes of a read have come. Pure. */
import { nbdLimits } from "./nbd-limits.ts";
import { violation } from "./violation.ts";

/**
 * The pieces of one read: each byte comes once. Pieces that join are kept as one, so the usual ascending order costs nothing. Bounded: content in more
 * scattered pieces than `nbdLimits.contentPiecesMax` is a violation.
 */
export class ContentCoverage {
  readonly #start: number;
  readonly #end: number;
  /** Ascending, apart from each other: start and end by turns. */
  #edges: number[] = [];
  #covered = 0;

  /** Of the bytes `start` to `end` of a disk. */
  constructor(start: number, end: number) {
    this.#start = start;
    this.#end = end;
  }

  get complete(): boolean {
    return this.#covered === this.#end - this.#start;
  }

  /** Throws `protocol-violation` for a piece outside the read, or that came before. */
  add(offset: number, length: number): void {
    const end = offset + length;
    if (offset < this.#start || end > this.#end) throw violation("content outside of what was asked");
    const edges = this.#edges;
    // From the end: pieces come in order, mostly.
    let index = edges.length;
    while (index > 0 && (edges[index - 2] ?? 0) >= end) index -= 2;
    const endsAt = index > 0 ? (edges[index - 1] ?? 0) : -1;
    if (endsAt > offset) throw violation("the same content twice");
    const joinsBefore = endsAt === offset;
    const joinsAfter = edges[index] === end;
    if (joinsBefore && joinsAfter) edges.splice(index - 1, 2);
    else if (joinsBefore) edges[index - 1] = end;
    else if (joinsAfter) edges[index] = offset;
    else edges.splice(index, 0, offset, end);
    if (edges.length > 2 * nbdLimits.contentPiecesMax) throw violation("content in too many pieces");
    this.#covered += length;
  }
}
