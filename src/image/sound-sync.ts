/**
 * Syncs of one file, one at a time. Linux tells a failure to write back once for each open file, to whoever syncs first: of two syncs at once one would hear yes
 * for what the other lost. After one that failed each fails: what that one lost no later one writes, though reads still show it.
 */
export class SoundSync {
  readonly #sync: () => Promise<void>;
  /** Settles, and never rejects, when the sync under way or the one that waits has ended. */
  #before: Promise<void> = Promise.resolve();
  /** Has not begun yet. */
  #next: Promise<void> | undefined;
  #failure: { readonly error: unknown } | undefined;

  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** What the first sync that failed threw; undefined: none did. */
  get failure(): { readonly error: unknown } | undefined {
    return this.#failure;
  }

  /** One that begins after this call; who asks while it waits for its turn shares it. Throws what the sync throws, then and from then on. */
  run(): Promise<void> {
    if (this.#next === undefined) {
      this.#next = this.#runAfter(this.#before);
      this.#before = this.#next.catch(() => undefined);
    }
    return this.#next;
  }

  async #runAfter(before: Promise<void>): Promise<void> {
    await before;
    this.#next = undefined;
    if (this.#failure !== undefined) throw this.#failure.error;
    try {
      await this.#sync();
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
  }
}
