/** An open file of a simulated process: a descriptor, and the process that has it. */
import type { FileStat, LaneStorage, StorageFile } from "../storage/seam.ts";

/** What a process does with its descriptors. */
export interface FileCalls {
  readonly lanes: LaneStorage;
  truncate(fd: number, sizeBytes: number): void;
  nextData(fd: number, offset: number): ReturnType<StorageFile["nextData"]>;
  statFile(fd: number): FileStat;
  closeFile(fd: number): void;
}

export class SimulatedOpenFile implements StorageFile {
  readonly path: string;
  readonly fd: number;
  readonly directFd: number | undefined;
  readonly #calls: FileCalls;

  constructor(calls: FileCalls, path: string, fd: number, direct: boolean) {
    this.#calls = calls;
    this.path = path;
    this.fd = fd;
    this.directFd = direct ? fd : undefined;
  }

  async read(target: Uint8Array, offset: number): Promise<number> {
    return this.#calls.lanes.read(this.fd, target, offset);
  }

  async write(source: Uint8Array, offset: number): Promise<void> {
    this.#calls.lanes.write(this.fd, source, offset);
  }

  async truncate(sizeBytes: number): Promise<void> {
    this.#calls.truncate(this.fd, sizeBytes);
  }

  nextData(offset: number): ReturnType<StorageFile["nextData"]> {
    return this.#calls.nextData(this.fd, offset);
  }

  async datasync(): Promise<void> {
    this.#calls.lanes.datasync(this.fd);
  }

  async stat(): Promise<FileStat> {
    return this.#calls.statFile(this.fd);
  }

  async close(): Promise<void> {
    this.#calls.closeFile(this.fd);
  }
}
