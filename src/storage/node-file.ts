/** {@link StorageFile} over plain descriptors: a FileHandle closes its descriptor when it is collected, which lanes must not meet. */
import * as fs from "node:fs";
import { constants } from "node:os";
import { promisify } from "node:util";
import { invariant } from "../base/errors.ts";
import { deviceGeometry, deviceName } from "./block-device.ts";
import { findData } from "./find-data.ts";
import type { LinuxCalls } from "./linux.ts";
import { requestBytesMax } from "./node-lanes.ts";
import type { FileStat, StorageFile } from "./seam.ts";
import { systemError } from "./system-error.ts";

const readAt = promisify(fs.read);
const writeAt = promisify(fs.write);
const truncateTo = promisify(fs.ftruncate);
const syncData = promisify(fs.fdatasync);
const closeDescriptor = promisify(fs.close);
const statDescriptor = promisify(fs.fstat) as (fd: number, options: { bigint: true }) => Promise<fs.BigIntStats>;

/** Facts of an open file or, without `fd`, of a path. */
export async function toFileStat(stats: fs.BigIntStats, linux: LinuxCalls, fd: number | undefined): Promise<FileStat> {
  const facts = {
    allocatedBytes: Number(stats.blocks) * 512,
    changedNanos: stats.ctimeNs,
    modifiedNanos: stats.mtimeNs,
    mode: Number(stats.mode) & 0o7777,
    links: Number(stats.nlink),
  };
  if (stats.isBlockDevice()) {
    const device = deviceName(stats.rdev);
    return { ...facts, ...(await deviceGeometry(device, linux, fd)), kind: "device", device, inode: "0" };
  }
  return {
    ...facts,
    sizeBytes: Number(stats.size),
    kind: stats.isFile() ? "file" : stats.isDirectory() ? "directory" : "other",
    device: deviceName(stats.dev),
    inode: stats.ino.toString(),
    sectorBytes: 512,
  };
}

export class NodeFile implements StorageFile {
  readonly path: string;
  readonly fd: number;
  readonly directFd: number | undefined;
  readonly #linux: LinuxCalls;
  /** Of a block device, whose size fstat does not tell. */
  #deviceBytes: number | undefined;
  #underWay = 0;
  #onIdle: (() => void) | undefined;
  #closed: Promise<void> | undefined;

  /** Takes over both descriptors. */
  constructor(
    path: string,
    fd: number,
    options: { readonly directFd: number | undefined; readonly linux: LinuxCalls },
  ) {
    const { directFd, linux } = options;
    this.path = path;
    this.fd = fd;
    this.directFd = directFd;
    this.#linux = linux;
  }

  /** Learns the capacity of a device. Once, before use. */
  async prepare(): Promise<void> {
    const facts = await this.stat();
    if (facts.kind === "device") this.#deviceBytes = facts.sizeBytes;
  }

  read(target: Uint8Array, offset: number): Promise<number> {
    return this.#run(async () => {
      let done = 0;
      while (done < target.length) {
        const length = Math.min(target.length - done, requestBytesMax);
        const { bytesRead } = await readAt(this.fd, target, done, length, offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return done;
    });
  }

  write(source: Uint8Array, offset: number): Promise<void> {
    return this.#run(async () => {
      let done = 0;
      while (done < source.length) {
        const length = Math.min(source.length - done, requestBytesMax);
        const { bytesWritten } = await writeAt(this.fd, source, done, length, offset + done);
        if (bytesWritten === 0) throw systemError("write", -constants.errno.EIO, this.path);
        done += bytesWritten;
      }
    });
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#run(() => truncateTo(this.fd, sizeBytes));
  }

  nextData(offset: number): { readonly start: number; readonly end: number } | undefined {
    invariant(this.#closed === undefined, "a closed file is not used");
    const { seek } = this.#linux;
    const sizeBytes = this.#deviceBytes ?? fs.fstatSync(this.fd).size;
    if (this.#deviceBytes !== undefined || seek === undefined) {
      return offset < sizeBytes ? { start: offset, end: sizeBytes } : undefined;
    }
    return findData((from, what) => seek(this.fd, from, what), offset, sizeBytes);
  }

  datasync(): Promise<void> {
    return this.#run(() => syncData(this.fd));
  }

  stat(): Promise<FileStat> {
    return this.#run(async () => toFileStat(await statDescriptor(this.fd, { bigint: true }), this.#linux, this.fd));
  }

  close(): Promise<void> {
    this.#closed ??= this.#closeWhenIdle();
    return this.#closed;
  }

  async #closeWhenIdle(): Promise<void> {
    if (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
      });
    }
    if (this.directFd !== undefined) await closeDescriptor(this.directFd);
    await closeDescriptor(this.fd);
  }

  async #run<T>(operation: () => Promise<T>): Promise<T> {
    invariant(this.#closed === undefined, "a closed file is not used");
    this.#underWay++;
    try {
      return await operation();
    } finally {
      this.#underWay--;
      if (this.#underWay === 0) this.#onIdle?.();
    }
  }
}
