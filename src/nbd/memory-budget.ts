/** How much memory the connections of a server may hold for content, together. */

export class MemoryBudget {
  readonly #bytesMax: number;
  #used = 0;
  #waiting = new Set<() => void>();

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** False: there is no room now. `force`: taken all the same, so that each connection can go on with one request. */
  take(bytes: number, force: boolean): boolean {
    if (!force && this.#used + bytes > this.#bytesMax) return false;
    this.#used += bytes;
    return true;
  }

  give(bytes: number): void {
    this.#used -= bytes;
    const waiting = this.#waiting;
    if (waiting.size === 0) return;
    this.#waiting = new Set();
    for (const task of waiting) task();
  }

  /** Calls `task` once when something was given back. */
  whenFreed(task: () => void): void {
    this.#waiting.add(task);
  }
}
