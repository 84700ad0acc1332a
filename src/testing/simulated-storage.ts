/**
 * A disk in memory with the faults a real one has, and processes that use it: storage for tests that crash at every step.
 *
 * Fault model. When power is lost, any subset of the writes, truncations and punches since the last sync of their file has happened,
 * writes at sector grain; of the changes of a directory since its last sync any prefix (or any subset). A killed process loses its handles and locks and
 * nothing else. A failed sync of a file forgets what it should have written: reads still show it, a later sync succeeds and writes
 * nothing of it. A failed sync of a directory leaves its changes un-synced.
 */
import { basename, dirname } from "node:path/posix";
import type { FileLock, FileStat, LaneStorage, OpenOptions, Storage, StorageFile } from "../storage/seam.ts";
import type { Operation, ProcessOptions } from "./simulated-faults.ts";
import {
  type HeldLock,
  SimulatedDirectory,
  SimulatedFile,
  type SimulatedNode,
  statOf,
  type Survives,
} from "./simulated-node.ts";
import { type FileCalls, SimulatedOpenFile } from "./simulated-open-file.ts";
import { namesOf } from "./simulated-paths.ts";

export type { Fault, Operation, OperationKind, ProcessOptions } from "./simulated-faults.ts";

export interface SimulatedProcess extends Storage {
  /** Operations so far. */
  readonly operations: number;
  readonly dead: boolean;
  /** The machine's clock, milliseconds since 1970 UTC: what the times of files are made of. */
  nowMillis(): number;
  /** Ends the process: every later call fails. */
  kill(): void;
}

export interface SimulatedDisk {
  start(options?: ProcessOptions): SimulatedProcess;
  /** Ends all processes; what was not synced survives by `survives`. */
  losePower(survives: Survives): void;
  /** Changes bytes on the medium behind everybody's back. */
  poke(path: string, bytes: Uint8Array, offset: number): void;
  /** Content as reads see it; undefined: no such file. */
  peek(path: string): Uint8Array | undefined;
  /** Paths of all files, sorted. */
  files(): readonly string[];
}

export interface DiskOptions {
  /** Default 1 TiB. */
  readonly freeBytes?: number;
  /** Default: not limited. */
  readonly fileBytesMax?: number;
  /** False: `space` does not tell `fileBytesMax`, as of a file system nobody knows. Default true. */
  readonly fileBytesMaxKnown?: boolean;
  /** `any`: of the changes of a directory since its last sync any subset survives a loss of power, and not a prefix. Default `prefix`. */
  readonly entriesSurvive?: "prefix" | "any";
}

export function createSimulatedDisk(options: DiskOptions = {}): SimulatedDisk {
  const disk = new Disk(options);
  return {
    start: (processOptions) => new Process(disk, processOptions ?? {}),
    losePower: (survives) => {
      disk.losePower(survives);
    },
    poke(path, bytes, offset) {
      disk.file(path).poke(bytes, offset);
    },
    peek(path) {
      const node = disk.find(path);
      if (!(node instanceof SimulatedFile)) return undefined;
      const bytes = new Uint8Array(node.content.sizeBytes);
      node.content.read(bytes, 0);
      return bytes;
    },
    files: () => [...disk.walk("", disk.root)].sort(),
  };
}

class Disk {
  readonly root = new SimulatedDirectory(1);
  readonly options: DiskOptions;
  readonly processes = new Set<Process>();
  #inode = 1;
  #fd = 2;
  #now = 1_700_000_000_000_000_000n;

  constructor(options: DiskOptions) {
    this.options = options;
  }

  nextInode(): number {
    return ++this.#inode;
  }

  nextFd(): number {
    return ++this.#fd;
  }

  get nowMillis(): number {
    return Number(this.#now / 1_000_000n);
  }

  tick(): bigint {
    return (this.#now += 1_000_003n);
  }

  find(path: string): SimulatedNode | undefined {
    let node: SimulatedNode | undefined = this.root;
    const above: SimulatedDirectory[] = [];
    for (const name of namesOf(path)) {
      if (!(node instanceof SimulatedDirectory)) return undefined;
      if (name === "..") {
        node = above.pop() ?? this.root;
        continue;
      }
      above.push(node);
      node = node.entries.get(name);
    }
    return node;
  }

  file(path: string): SimulatedFile {
    const node = this.find(path);
    if (node instanceof SimulatedFile) return node;
    throw systemError(node === undefined ? "ENOENT" : "EISDIR", path);
  }

  directory(path: string): SimulatedDirectory {
    const node = this.find(path);
    if (node instanceof SimulatedDirectory) return node;
    throw systemError(node === undefined ? "ENOENT" : "ENOTDIR", path);
  }

  losePower(survives: Survives): void {
    for (const process of [...this.processes]) process.kill();
    this.root.losePower(survives, this.options.entriesSurvive ?? "prefix");
  }

  linksOf(node: SimulatedNode, directory = this.root): number {
    let count = 0;
    for (const entry of directory.entries.values()) {
      if (entry === node) count++;
      if (entry instanceof SimulatedDirectory) count += this.linksOf(node, entry);
    }
    return count;
  }

  *walk(path: string, directory: SimulatedDirectory): Generator<string> {
    for (const [name, node] of directory.entries) {
      if (node instanceof SimulatedDirectory) yield* this.walk(`${path}/${name}`, node);
      else yield `${path}/${name}`;
    }
  }
}

/** Without a stack, as the errors of system calls are: they are many, and most only say that a file is not there. */
function systemError(errno: string, path: string): Error {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  const error = new Error(`${errno}: ${path}`);
  Error.stackTraceLimit = stackTraceLimit;
  return Object.assign(error, { code: errno });
}

interface Handle {
  readonly file: SimulatedFile;
  readonly path: string;
  readonly writable: boolean;
}

/** An operation that was reported as done. `due`: it has been overtaken. */
interface Late {
  readonly path: string;
  readonly isSeen: boolean;
  readonly until: (operation: Operation) => boolean;
  readonly effect: () => void;
  due: boolean;
}

class Process implements SimulatedProcess, FileCalls {
  readonly capabilities: Storage["capabilities"];
  readonly lanes: LaneStorage;
  readonly #disk: Disk;
  readonly #options: ProcessOptions;
  readonly #handles = new Map<number, Handle>();
  readonly #locks = new Map<HeldLock, SimulatedFile>();
  #operations = 0;
  #dead = false;
  /** Reported as done, and not done yet. */
  #late: Late[] = [];

  constructor(disk: Disk, options: ProcessOptions) {
    this.#disk = disk;
    this.#options = options;
    const locks = options.locks ?? true;
    this.capabilities = { holes: true, punch: true, locks, hints: true, missing: undefined };
    this.lanes = this.#lanes();
    disk.processes.add(this);
  }

  get operations(): number {
    return this.#operations;
  }

  get dead(): boolean {
    return this.#dead;
  }

  nowMillis(): number {
    return this.#disk.nowMillis;
  }

  kill(): void {
    this.#dead = true;
    this.#disk.processes.delete(this);
    this.#handles.clear();
    for (const lock of [...this.#locks.keys()]) this.#unlock(lock);
  }

  async open(path: string, options: OpenOptions = {}): Promise<StorageFile> {
    this.#look(path);
    let node = this.#disk.find(path);
    if (node instanceof SimulatedDirectory) throw systemError("EISDIR", path);
    if (node !== undefined && options.exclusive === true) throw systemError("EEXIST", path);
    const writable = options.write === true;
    if (node === undefined) {
      if (options.create !== true && options.exclusive !== true) throw systemError("ENOENT", path);
      node = this.#createFile(path, options.mode ?? 0o600);
    } else if (
      this.#options.root === false &&
      (node.mode & (writable ? 0o600 : 0o400)) !== (writable ? 0o600 : 0o400)
    ) {
      throw systemError("EACCES", path);
    }
    if (options.truncate === true && node.content.sizeBytes > 0) {
      const file = node;
      this.#do({ kind: "truncate", path, sizeBytes: 0 }, () => {
        file.truncate(0, this.#disk.tick());
      });
    }
    const fd = this.#disk.nextFd();
    this.#handles.set(fd, { file: node, path, writable });
    return new SimulatedOpenFile(this, path, fd, options.direct === true);
  }

  async rename(from: string, to: string): Promise<void> {
    const node = this.#disk.file(from);
    this.#do({ kind: "rename", path: to }, () => {
      const source = this.#disk.directory(dirname(from));
      const target = this.#disk.directory(dirname(to));
      const add = { name: basename(to), node };
      if (source === target) {
        source.change({ remove: basename(from), add });
      } else {
        target.change({ add });
        source.change({ remove: basename(from) });
      }
    });
  }

  async link(existing: string, created: string): Promise<void> {
    const node = this.#disk.file(existing);
    if (this.#disk.find(created) !== undefined) throw systemError("EEXIST", created);
    this.#do({ kind: "link", path: created }, () => {
      node.changedNanos = this.#disk.tick();
      this.#disk.directory(dirname(created)).change({ add: { name: basename(created), node } });
    });
  }

  async unlink(path: string): Promise<void> {
    this.#live();
    if (this.#disk.find(path) === undefined) return;
    this.#do({ kind: "unlink", path }, () => {
      this.#disk.directory(dirname(path)).change({ remove: basename(path) });
    });
  }

  async makeDirectory(path: string): Promise<void> {
    this.#live();
    const node = this.#disk.find(path);
    if (node instanceof SimulatedDirectory) return;
    if (node !== undefined) throw systemError("EEXIST", path);
    await this.makeDirectory(dirname(path));
    const created = new SimulatedDirectory(this.#disk.nextInode());
    this.#do({ kind: "make-directory", path }, () => {
      this.#disk.directory(dirname(path)).change({ add: { name: basename(path), node: created } });
    });
  }

  async removeDirectory(path: string): Promise<void> {
    if (this.#disk.directory(path).entries.size > 0) throw systemError("ENOTEMPTY", path);
    this.#do({ kind: "remove-directory", path }, () => {
      this.#disk.directory(dirname(path)).change({ remove: basename(path) });
    });
  }

  async list(path: string): Promise<readonly string[] | undefined> {
    this.#look(path);
    const node = this.#disk.find(path);
    return node instanceof SimulatedDirectory ? [...node.names] : undefined;
  }

  async syncDirectory(path: string): Promise<void> {
    const directory = this.#disk.directory(path);
    this.#do({ kind: "sync-directory", path }, () => {
      directory.sync();
    });
  }

  async stat(path: string): Promise<FileStat | undefined> {
    this.#look(path);
    const node = this.#disk.find(path);
    return node === undefined ? undefined : statOf(node, this.#disk.linksOf(node));
  }

  async setMode(path: string, mode: number): Promise<void> {
    const file = this.#disk.file(path);
    this.#do({ kind: "set-mode", path }, () => {
      file.mode = mode;
      file.changedNanos = this.#disk.tick();
    });
  }

  async space(path: string): ReturnType<Storage["space"]> {
    this.#live();
    if (this.#disk.find(path) === undefined) throw systemError("ENOENT", path);
    const { freeBytes = 2 ** 40, fileBytesMax, fileBytesMaxKnown = true } = this.#disk.options;
    return { freeBytes, fileBytesMax: fileBytesMaxKnown ? fileBytesMax : undefined, totalBytes: 2 ** 40 };
  }

  async lock(path: string, kind: "shared" | "exclusive"): Promise<FileLock | undefined> {
    this.#live();
    if (!this.capabilities.locks) throw systemError("ENOTSUP", path);
    const file = this.#disk.find(path) ?? this.#createFile(path, 0o600);
    if (!(file instanceof SimulatedFile)) throw systemError("EISDIR", path);
    if (file.locks.some((held) => kind === "exclusive" || held.kind === "exclusive")) return undefined;
    const lock: HeldLock = { kind, owner: this };
    file.locks.push(lock);
    this.#locks.set(lock, file);
    return {
      release: async () => {
        this.#unlock(lock);
      },
    };
  }

  #unlock(lock: HeldLock): void {
    const file = this.#locks.get(lock);
    this.#locks.delete(lock);
    if (file !== undefined) file.locks = file.locks.filter((held) => held !== lock);
  }

  #live(): void {
    if (this.#dead) throw systemError("EKILLED", "the process has ended");
  }

  /** For who looks at a path: what is late there and has been overtaken is done. */
  #look(path: string): void {
    this.#live();
    this.#doDue((late) => late.isSeen && (late.path === path || dirname(late.path) === path));
  }

  #doDue(which: (late: Late) => boolean): void {
    if (this.#late.length === 0) return;
    const due = this.#late.filter((each) => each.due && which(each));
    this.#late = this.#late.filter((each) => !due.includes(each));
    for (const { effect } of due) effect();
  }

  /** Counts an operation and does it, unless the faults have it otherwise. `onError`: what a failure does besides. */
  #do(what: Omit<Operation, "index">, effect: () => void, onError?: () => void): void {
    const operation = { ...what, index: this.#operations++ };
    const fault = this.#dead ? undefined : this.#options.fault?.(operation);
    // Before what is due is done: so a process can end between what overtook it and it.
    if (fault?.kind === "kill") this.kill();
    this.#live();
    this.#doDue(() => true);
    switch (fault?.kind) {
      case "errno":
        onError?.();
        throw systemError(fault.errno, what.path);
      case "late":
        this.#late.push({ ...what, isSeen: !what.kind.startsWith("sync"), until: fault.until, effect, due: false });
        return;
      case "skip":
        break;
      default:
        effect();
    }
    for (const each of this.#late) each.due ||= each.until(operation);
  }

  #createFile(path: string, mode: number): SimulatedFile {
    const directory = this.#disk.directory(dirname(path));
    const file = new SimulatedFile(this.#disk.nextInode(), mode, this.#disk.tick());
    this.#do({ kind: "create", path }, () => {
      directory.change({ add: { name: basename(path), node: file } });
    });
    return file;
  }

  #handle(fd: number, forWriting: boolean): Handle {
    this.#live();
    const handle = this.#handles.get(fd);
    if (handle === undefined || (forWriting && !handle.writable)) throw systemError("EBADF", `descriptor ${fd}`);
    return handle;
  }

  #read(fd: number, target: Uint8Array, offset: number): number {
    const { file, path } = this.#handle(fd, false);
    this.#look(path);
    const errno = this.#options.readFault?.(path, offset);
    if (errno !== undefined) throw systemError(errno, path);
    return file.content.read(target, offset);
  }

  #write(fd: number, source: Uint8Array, offset: number): void {
    const { file, path } = this.#handle(fd, true);
    const bytes = new Uint8Array(source);
    this.#do({ kind: "write", path, bytes, offset }, () => {
      file.write(bytes, offset, this.#disk.tick());
    });
  }

  #sync(fd: number): void {
    const { file, path } = this.#handle(fd, false);
    this.#do(
      { kind: "sync", path },
      () => {
        file.sync();
      },
      () => {
        file.failSync();
      },
    );
  }

  #lanes(): LaneStorage {
    return {
      read: (fd, target, offset) => this.#read(fd, target, offset),
      write: (fd, source, offset) => {
        this.#write(fd, source, offset);
      },
      writeDirect: (fd, source, offset) => {
        this.#write(fd, source, offset);
        return true;
      },
      punch: (fd, offset, length) => {
        const { file, path } = this.#handle(fd, true);
        this.#do({ kind: "punch", path }, () => {
          file.punch(offset, length, this.#disk.tick());
        });
        return true;
      },
      datasync: (fd) => {
        this.#sync(fd);
      },
      startWriteback: () => undefined,
      dropCache: (fd, offset, length) => {
        const { file, path } = this.#handle(fd, false);
        if (this.#options.dropsCache?.(path) !== false) file.dropCache(offset, length);
      },
      readAhead: () => undefined,
    };
  }

  nextData(fd: number, offset: number): ReturnType<StorageFile["nextData"]> {
    const { file, path } = this.#handle(fd, false);
    this.#look(path);
    return file.content.nextData(offset);
  }

  statFile(fd: number): FileStat {
    const { file, path } = this.#handle(fd, false);
    this.#look(path);
    return statOf(file, this.#disk.linksOf(file));
  }

  truncate(fd: number, sizeBytes: number): void {
    const { file, path } = this.#handle(fd, true);
    this.#do({ kind: "truncate", path, sizeBytes }, () => {
      if (sizeBytes > (this.#disk.options.fileBytesMax ?? Number.POSITIVE_INFINITY)) throw systemError("EFBIG", path);
      file.truncate(sizeBytes, this.#disk.tick());
    });
  }

  closeFile(fd: number): void {
    this.#handles.delete(fd);
  }
}
