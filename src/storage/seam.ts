/**
 * The one door to files, in two faces: {@link Storage} and {@link StorageFile} are asynchronous, for control;
 * {@link LaneStorage} is positional and synchronous, for lanes, and names files by descriptor (descriptors are
 * process-wide, so a lane in a worker thread uses the descriptor the main thread opened).
 *
 * Errors: methods throw the system's error (`ENOSPC`, `EIO`, ...) unchanged; the caller knows which disk and phase it was
 * and turns it into a ReplicationError. What the platform lacks (holes, locks, hints) is told by {@link Capabilities}.
 */

/** What this platform and build can do; what is missing is said once in the log by the opener. */
export interface Capabilities {
  /** SEEK_DATA/SEEK_HOLE: without it everything counts as data. */
  readonly holes: boolean;
  /** fallocate(PUNCH_HOLE): without it zeros are written. */
  readonly punch: boolean;
  /** flock: without it a store needs --single-process. */
  readonly locks: boolean;
  /** posix_fadvise, sync_file_range. */
  readonly hints: boolean;
  /** One line for the log when something is missing, else undefined. */
  readonly missing: string | undefined;
}

export interface FileStat {
  /** Size in bytes; of a block device its capacity. */
  readonly sizeBytes: number;
  /** Bytes allocated. */
  readonly allocatedBytes: number;
  readonly kind: "file" | "device" | "directory" | "other";
  /**
   * Device and inode, as text: the identity of the file while it exists. Of a block device its own number
   * (`major:minor`), and inode "0": the node in /dev is made anew at each boot.
   */
  readonly device: string;
  readonly inode: string;
  /** ctime and mtime in nanoseconds since 1970. */
  readonly changedNanos: bigint;
  readonly modifiedNanos: bigint;
  /** Permission bits. */
  readonly mode: number;
  /** Hard links; 0: unlinked but open. */
  readonly links: number;
  /** Of a block device: its logical sector; of a file 512. */
  readonly sectorBytes: number;
}

export interface OpenOptions {
  readonly write?: boolean;
  /** Create when missing. */
  readonly create?: boolean;
  /** Fail when it exists. Implies create. */
  readonly exclusive?: boolean;
  readonly truncate?: boolean;
  /** O_EXCL without creating, for block devices: fails while it is mounted or held by another. */
  readonly holdDevice?: boolean;
  /** Have {@link StorageFile.directFd} where the file system can. */
  readonly direct?: boolean;
  /** Permission bits of a created file; default 0600. */
  readonly mode?: number;
}

/** What direct writes are aligned to: no device in use has larger sectors. */
export const DIRECT_BYTES = 4096;

export interface StorageFile {
  readonly path: string;
  /** For {@link LaneStorage}. Valid until close. */
  readonly fd: number;
  /** The same file past the page cache, for {@link LaneStorage.writeDirect}; undefined: not asked for, or not to be had. */
  readonly directFd?: number | undefined;
  /** Fills `target` from `offset`; returns bytes read, fewer only at the end of the file. */
  read(target: Uint8Array, offset: number): Promise<number>;
  /** Writes all of `source` or throws. */
  write(source: Uint8Array, offset: number): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  /**
   * The first extent of data at or behind `offset`, as [start, end), or undefined when there is none.
   * Always: offset <= start < end <= size. Without hole support: the rest of the file.
   */
  nextData(offset: number): { readonly start: number; readonly end: number } | undefined;
  /** fdatasync: content and size are durable when it resolves. */
  datasync(): Promise<void>;
  stat(): Promise<FileStat>;
  /** Waits for what this handle has under way. Idempotent. */
  close(): Promise<void>;
}

/** What tells one boot of a machine from another. */
export interface Boot {
  /** Random, the kernel's own; in a container that of its host. */
  readonly id: string;
  /** Since it began, in milliseconds; time asleep counts. */
  readonly ageMillis: number;
}

/** A lock that ends with `release`, with the process, and with nothing else. */
export interface FileLock {
  release(): Promise<void>;
}

/** Positional and synchronous. Called in lanes (worker threads) and in simulation. */
export interface LaneStorage {
  /** Fills `target`; returns bytes read, fewer only at the end of the file. */
  read(fd: number, target: Uint8Array, offset: number): number;
  /** Writes all of `source` or throws. */
  write(fd: number, source: Uint8Array, offset: number): void;
  /**
   * Writes all of `source` to a {@link StorageFile.directFd}, past the page cache: what is written once and not read soon costs no memory
   * and half the processor time there. Memory, offset and length must be multiples of {@link DIRECT_BYTES}. As durable as `write`: not,
   * before a sync. False: the system wants another alignment, and some of it may be written; the caller writes it with `write`.
   */
  writeDirect?(directFd: number, source: Uint8Array, offset: number): boolean;
  /**
   * Makes a range read as zeros and gives its space back where the file system can. Returns false when it cannot
   * punch (nothing was changed): the caller writes zeros.
   */
  punch(fd: number, offset: number, length: number): boolean;
  datasync(fd: number): void;
  /** Hint: start writing the range to the device now, so that a later sync is short. Never throws. */
  startWriteback(fd: number, offset: number, length: number): void;
  /** Hint: the range was read once and is not needed in the page cache again. Never throws. */
  dropCache(fd: number, offset: number, length: number): void;
  /** Hint: the range will be read soon. Never throws. */
  readAhead(fd: number, offset: number, length: number): void;
  /**
   * Hint: the kernel is not to read ahead of this descriptor by itself (`readAhead` still does what it is asked). Never
   * throws. Needed where `isCached` decides: see there.
   */
  stopReadAhead?(fd: number): void;
  /**
   * Whether any page of the range (default: its first 4 KiB) lies in the page cache; undefined: not known here. For a
   * scan that drops only what it brought in itself. The kernel reads ahead of a sequential reader (8 MiB and more), and
   * what it brought in counts as cached: call `stopReadAhead` first, and ask before the `readAhead` of the same range.
   */
  isCached?(fd: number, offset: number, length?: number): boolean | undefined;
}

export interface FreeSpace {
  /** For this user. */
  readonly freeBytes: number;
  /** The largest file there can be; undefined: not known. */
  readonly fileBytesMax: number | undefined;
  /** Capacity of the file system; undefined: not known. */
  readonly totalBytes?: number;
}

export interface Storage {
  readonly capabilities: Capabilities;
  readonly lanes: LaneStorage;
  open(path: string, options?: OpenOptions): Promise<StorageFile>;
  /** Atomic replace. Durable only after {@link syncDirectory}. */
  rename(from: string, to: string): Promise<void>;
  link(existing: string, created: string): Promise<void>;
  /** Missing is not an error. */
  unlink(path: string): Promise<void>;
  makeDirectory(path: string): Promise<void>;
  removeDirectory(path: string): Promise<void>;
  /** Names in a directory, sorted; undefined when the directory does not exist. */
  list(path: string): Promise<readonly string[] | undefined>;
  syncDirectory(path: string): Promise<void>;
  /** Undefined when there is no such file. */
  stat(path: string): Promise<FileStat | undefined>;
  setMode(path: string, mode: number): Promise<void>;
  /** The path of the same file without symbolic links. Left out: there are none. */
  realPath?(path: string): Promise<string>;
  /** Of the file system that holds `path`. */
  space(path: string): Promise<FreeSpace>;
  /**
   * A kernel lock (flock) on the file, which is created when missing and never unlinked by locking. Undefined when another
   * open handle, in this process or any other, holds it in a conflicting way. Throws `ENOTSUP` where there are no locks.
   */
  lock(path: string, kind: "shared" | "exclusive"): Promise<FileLock | undefined>;
  /**
   * An exclusive kernel lock between the processes of this user on this machine, by a name that is good for a file. Nothing stays behind once it
   * is released. Undefined when another has it. Throws `ENOTSUP` where there are no locks, and what keeps this user from making files where such
   * locks lie, the system's folder for temporary files.
   */
  lockName?(name: string): Promise<FileLock | undefined>;
  /** `writer` while QEMU has the file open for writing (its image locks tell); undefined: nobody seen, or not known. */
  probeImageLock?(file: StorageFile): "writer" | undefined;
  /**
   * A text that changes with every write or discard the kernel sends to this block device, whoever issued it; writes
   * still in the page cache count once they are synced. Undefined: not known here.
   */
  deviceWrites?(file: StorageFile): Promise<string | undefined>;
  /** This boot of the machine; undefined, or left out: not known here. Never throws. */
  boot?(): Promise<Boot | undefined>;
}
