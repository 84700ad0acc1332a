/**
 * Of which disks of a machine the next cut has all, because the receiver is not where it was left: doubt about one costs the others nothing. A mismatch behind that,
 * or one of which nobody said whose it is, makes it all of them.
 */
export class WholeDisks<Disk> {
  readonly #disks = new Set<Disk>();
  #mismatches = 0;

  /** More of this one must be read than what changed. */
  add(disk: Disk): void {
    this.#disks.add(disk);
  }

  has(disk: Disk): boolean {
    return this.#disks.has(disk);
  }

  /** In the order in which they were added. */
  get disks(): readonly Disk[] {
    return [...this.#disks];
  }

  /** A cut of `all` came to nothing, with `base-mismatch`. */
  missed(all: Iterable<Disk>): void {
    if (++this.#mismatches > 1 || this.#disks.size === 0) for (const disk of all) this.#disks.add(disk);
  }

  /** The receiver has a cut of them. */
  clear(): void {
    this.#disks.clear();
    this.#mismatches = 0;
  }
}
