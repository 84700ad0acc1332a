import { invariant } from "../../base/errors.ts";

/** Values by key, bounded by the bytes they take; the least recently used go first. */
export class ByteLru<Key, Value> {
  readonly #held = new Map<Key, { readonly value: Value; readonly bytes: number }>();
  readonly #bytesMax: number;
  #bytes = 0;

  constructor(bytesMax: number) {
    invariant(bytesMax >= 0, "a cache has a size");
    this.#bytesMax = bytesMax;
  }

  get(key: Key): Value | undefined {
    const found = this.#held.get(key);
    if (found === undefined) return undefined;
    this.#held.delete(key);
    this.#held.set(key, found);
    return found.value;
  }

  /** The newest value is kept whatever it takes. */
  set(key: Key, value: Value, bytes: number): void {
    this.delete(key);
    this.#held.set(key, { value, bytes });
    this.#bytes += bytes;
    for (const oldest of this.#held.keys()) {
      if (this.#bytes <= this.#bytesMax || oldest === key) break;
      this.delete(oldest);
    }
  }

  delete(key: Key): void {
    const found = this.#held.get(key);
    if (found === undefined) return;
    this.#held.delete(key);
    this.#bytes -= found.bytes;
  }
}
