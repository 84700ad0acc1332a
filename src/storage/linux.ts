/**
 * The Linux calls Node does not offer, through koffi; nothing else uses koffi. A call costs 0.3 to 0.5 µs.
 *
 * Every method returns a count or position, or a negative errno as the kernel does. A member that is undefined is not to
 * be had here; {@link LinuxCalls.missing} says so in one sentence.
 */
import { createRequire } from "node:module";
import { arch, constants, platform } from "node:os";

/** `random`: for the whole descriptor, whatever the range. */
export type Advice = "willneed" | "dontneed" | "random";

export interface LinuxCalls {
  /** One sentence for the log when something is missing, else undefined. */
  readonly missing: string | undefined;
  /** lseek with SEEK_DATA or SEEK_HOLE. */
  readonly seek?: ((fd: number, offset: number, what: "data" | "hole") => number) | undefined;
  /** fallocate that punches a hole and keeps the size. */
  readonly punch?: ((fd: number, offset: number, length: number) => number) | undefined;
  /** flock, never waiting. */
  readonly flock?: ((fd: number, operation: "shared" | "exclusive" | "unlock") => number) | undefined;
  /** The user this process acts as. */
  readonly userId?: (() => number) | undefined;
  readonly advise?: ((fd: number, offset: number, length: number, advice: Advice) => number) | undefined;
  /** sync_file_range: begins to write, does not wait for it. */
  readonly writeback?: ((fd: number, offset: number, length: number) => number) | undefined;
  /** Pages of the range in the page cache. */
  readonly cachedPages?: ((fd: number, offset: number, length: number) => number) | undefined;
  /** 1 when another open file holds a record lock on the byte, 0 when none. */
  readonly byteLocked?: ((fd: number, offset: number) => number) | undefined;
  /** Capacity and logical sector of an open block device. */
  readonly deviceBytes?: ((fd: number) => number) | undefined;
  readonly deviceSectorBytes?: ((fd: number) => number) | undefined;
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;
const POSIX_FADV_RANDOM = 1;
const POSIX_FADV_WILLNEED = 3;
const POSIX_FADV_DONTNEED = 4;
const SYNC_FILE_RANGE_WRITE = 2;
const RWF_NOWAIT = 8;
const F_OFD_GETLK = 36;
const F_WRLCK = 1;
const F_UNLCK = 2;
const BLKGETSIZE64 = 0x80081272;
const BLKSSZGET = 0x1268;
const SYS_CACHESTAT = 451;

/** 64-bit, little-endian, with the generic numbers above (s390x and ppc64 have some of their own). */
const architectures = ["x64", "arm64", "riscv64", "loong64"];

type NativeFunction = (...args: readonly unknown[]) => unknown;

interface Binder {
  /** Undefined where the C library has no such symbol; the name is then noted as missing. */
  readonly bind: (name: string, declaration: string) => ((...args: readonly unknown[]) => number) | undefined;
  /** Address of a buffer that the garbage collector does not move. */
  readonly address: (bytes: Uint8Array) => bigint;
  readonly missing: string[];
}

/** Loads koffi (about 10 ms) and binds the calls. Never throws. */
export function loadLinuxCalls(): LinuxCalls {
  const consequence = "everything counts as data, zeros are written out, and there are no file locks";
  if (platform() !== "linux") return { missing: `the platform is ${platform()}, not Linux: ${consequence}` };
  if (!architectures.includes(arch()))
    return { missing: `the system calls of ${arch()} are not known: ${consequence}` };
  let binder: Binder;
  try {
    binder = createBinder();
  } catch (error) {
    const reason = error instanceof Error ? error.message.split("\n", 1)[0] : String(error);
    return { missing: `the native library koffi cannot be loaded (${reason}): ${consequence}` };
  }
  const calls = { ...bindFileCalls(binder), ...bindCacheCalls(binder), ...bindDeviceCalls(binder) };
  if (binder.missing.length === 0) return { missing: undefined, ...calls };
  return { missing: `the C library lacks ${binder.missing.join(", ")}: what needs them is done without`, ...calls };
}

function createBinder(): Binder {
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  const library = koffi.load(null);
  const missing: string[] = [];
  return {
    missing,
    address: (bytes) => koffi.address(bytes),
    bind(name, declaration) {
      let native: NativeFunction;
      try {
        native = library.func(declaration);
      } catch {
        // Nothing is lost: the name lands in the sentence the opener logs.
        missing.push(name);
        return undefined;
      }
      return (...args) => {
        const result = Number(native(...args));
        return result === -1 ? -koffi.errno() : result;
      };
    },
  };
}

function bindFileCalls(binder: Binder): Omit<LinuxCalls, "missing"> {
  const lseek = binder.bind("lseek", "int64_t lseek(int fd, int64_t offset, int whence)");
  const fallocate = binder.bind("fallocate", "int fallocate(int fd, int mode, int64_t offset, int64_t length)");
  const flock = binder.bind("flock", "int flock(int fd, int operation)");
  const operations = { shared: LOCK_SH | LOCK_NB, exclusive: LOCK_EX | LOCK_NB, unlock: LOCK_UN };
  return {
    seek: lseek && ((fd, offset, what) => lseek(fd, offset, what === "data" ? SEEK_DATA : SEEK_HOLE)),
    punch:
      fallocate &&
      ((fd, offset, length) =>
        untilSettled(() => fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))),
    flock: flock && ((fd, operation) => untilSettled(() => flock(fd, operations[operation]))),
    // Not os.userInfo: it fails for a user without an entry in passwd, as containers have.
    userId: binder.bind("geteuid", "uint geteuid()"),
    byteLocked: bindByteLocked(binder),
  };
}

function bindByteLocked(binder: Binder): LinuxCalls["byteLocked"] {
  const fcntl = binder.bind("fcntl", "int fcntl(int fd, int command, ...)");
  if (fcntl === undefined) return undefined;
  return (fd, offset) => {
    // struct flock: type, whence (16 bits each), 4 bytes of padding, start, length (64 bits each), pid.
    const lock = Buffer.alloc(32);
    lock.writeInt16LE(F_WRLCK, 0);
    lock.writeBigInt64LE(BigInt(offset), 8);
    lock.writeBigInt64LE(1n, 16);
    const result = fcntl(fd, F_OFD_GETLK, "void *", lock);
    if (result < 0) return result;
    return lock.readInt16LE(0) === F_UNLCK ? 0 : 1;
  };
}

function bindCacheCalls(binder: Binder): Omit<LinuxCalls, "missing"> {
  const fadvise = binder.bind("posix_fadvise", "int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)");
  const sync = binder.bind(
    "sync_file_range",
    "int sync_file_range(int fd, int64_t offset, int64_t length, uint flags)",
  );
  const advices = { random: POSIX_FADV_RANDOM, willneed: POSIX_FADV_WILLNEED, dontneed: POSIX_FADV_DONTNEED };
  return {
    // The one call here that returns the errno itself.
    advise: fadvise && ((fd, offset, length, advice) => -fadvise(fd, offset, length, advices[advice])),
    writeback: sync && ((fd, offset, length) => sync(fd, offset, length, SYNC_FILE_RANGE_WRITE)),
    cachedPages: bindCachedPages(binder),
  };
}

/**
 * cachestat(2) (Linux 6.5, needs the right to write the file since 6.13) counts without side effects; before and without
 * it a read that must not wait tells of the first page.
 */
function bindCachedPages(binder: Binder): LinuxCalls["cachedPages"] {
  const syscall = binder.bind("syscall", "long syscall(long number, ...)");
  const preadv2 = binder.bind("preadv2", "int64_t preadv2(int fd, void *vector, int count, int64_t offset, int flags)");
  if (syscall === undefined || preadv2 === undefined) return undefined;
  const range = Buffer.alloc(16);
  const statistics = Buffer.alloc(40);
  // Slow means: memory of its own, which stays where its address says.
  const scratch = Buffer.allocUnsafeSlow(4096);
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(binder.address(scratch), 0);
  vector.writeBigUInt64LE(1n, 8);
  return (fd, offset, length) => {
    range.writeBigUInt64LE(BigInt(offset), 0);
    range.writeBigUInt64LE(BigInt(length), 8);
    const counted = syscall(SYS_CACHESTAT, "int", fd, "void *", range, "void *", statistics, "uint", 0);
    if (counted === 0) return Number(statistics.readBigUInt64LE(0));
    const { ENOSYS, EPERM, EOPNOTSUPP, EAGAIN } = constants.errno;
    if (counted !== -ENOSYS && counted !== -EPERM && counted !== -EOPNOTSUPP) return counted;
    const read = preadv2(fd, vector, 1, offset, RWF_NOWAIT);
    if (read === -EAGAIN) return 0;
    return read;
  };
}

function bindDeviceCalls(binder: Binder): Omit<LinuxCalls, "missing"> {
  const ioctl = binder.bind("ioctl", "int ioctl(int fd, ulong request, ...)");
  if (ioctl === undefined) return {};
  return {
    deviceBytes(fd) {
      const answer = Buffer.alloc(8);
      const result = ioctl(fd, BLKGETSIZE64, "void *", answer);
      return result < 0 ? result : Number(answer.readBigUInt64LE(0));
    },
    deviceSectorBytes(fd) {
      const answer = Buffer.alloc(4);
      const result = ioctl(fd, BLKSSZGET, "void *", answer);
      return result < 0 ? result : answer.readInt32LE(0);
    },
  };
}

/** Repeats a call that a signal cut short. */
function untilSettled(call: () => number): number {
  for (;;) {
    const result = call();
    if (result !== -constants.errno.EINTR) return result;
  }
}
