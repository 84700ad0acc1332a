/** The BAT of a file that is written, with what was given a place since it was written out. */
import { InvariantError } from "../../base/errors.ts";
import type { BlockMap, BlockStretch } from "../mapped-reader.ts";
import type { Bat } from "./bat.ts";

export class PendingMap implements BlockMap {
  readonly payloadBlockBytes: number;
  readonly #bat: Bat;
  readonly #places = new Map<number, number>();
  /** Those of them the file is long enough for. */
  readonly #ready = new Set<number>();

  constructor(bat: Bat) {
    this.#bat = bat;
    this.payloadBlockBytes = bat.payloadBlockBytes;
  }

  /** A block gets its place. */
  add(block: number, place: number): void {
    this.#places.set(block, place);
  }

  /** The file reaches over the places of these blocks now. */
  settled(blocks: Iterable<number>): void {
    for (const block of blocks) this.#ready.add(block);
  }

  /** What the table can be given: block to place. */
  ready(): ReadonlyMap<number, number> {
    return new Map([...this.#ready].map((block) => [block, this.#places.get(block) ?? 0]));
  }

  /** It has been given these. */
  flushed(places: ReadonlyMap<number, number>): void {
    for (const block of places.keys()) {
      this.#places.delete(block);
      this.#ready.delete(block);
    }
  }

  fetch(block: number): Promise<void> {
    return this.#bat.fetch(block);
  }

  stretch(first: number, end: number): BlockStretch {
    const at = this.#places.get(first);
    if (at !== undefined) return { kind: "present", first, end: first + 1, at };
    const stretch = this.#bat.stretch(first, end);
    if (stretch.end === first + 1) return stretch;
    let stop = stretch.end;
    for (const block of this.#places.keys()) if (block > first && block < stop) stop = block;
    return { ...stretch, end: stop };
  }

  sectors(): never {
    throw new InvariantError("a disk without a parent is never partly there");
  }
}
