/** How much space a simulated disk's files take, at every moment. */
import type { Operation, SimulatedDisk } from "../../src/testing/simulated-storage.ts";

/** Bytes of all files, followed operation by operation, as it is asked before each. */
export class Room {
  readonly #machine: SimulatedDisk;
  readonly #sizes = new Map<string, number>();
  #touched: readonly string[] = [];
  bytes = 0;
  most = 0;

  constructor(machine: SimulatedDisk) {
    this.#machine = machine;
    this.#look(machine.files());
  }

  before({ kind, path }: Operation): void {
    this.settle();
    this.#touched = kind === "rename" ? [`${path}.new`, path] : [path];
  }

  /** Takes in the last operation. */
  settle(): void {
    this.#look(this.#touched);
    this.#touched = [];
  }

  #look(paths: readonly string[]): void {
    for (const path of paths) {
      const size = this.#machine.peek(path)?.length ?? 0;
      this.bytes += size - (this.#sizes.get(path) ?? 0);
      this.#sizes.set(path, size);
    }
    this.most = Math.max(this.most, this.bytes);
  }
}
