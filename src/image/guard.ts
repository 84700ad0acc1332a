/**
 * Watches an image nobody tracks while it is read: content mixed from two moments must not become a point.
 * A file is watched by its size and ctime (mtime can be set back, ctime cannot), a block device by the kernel's count of
 * its writes; QEMU is asked through its image locks.
 */
import type { Clock } from "../base/clock.ts";
import { errnoOf, invariant, ReplicationError } from "../base/errors.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";

export interface ImageGuard {
  /** One sentence when a change could go unseen on this image or platform, else undefined. Known after `begin`. */
  readonly blindness: string | undefined;
  /**
   * Before the first read. While a watch is on, further calls do nothing: it spans all attempts of a cycle.
   * Errors: `image-in-use` (QEMU writes to it), `image-changed` (somebody is writing just now), `image-unreadable`.
   */
  begin(): Promise<void>;
  /** After the last read; may be asked again. Errors: `image-changed`, naming what moved. */
  check(): Promise<void>;
}

/** Two ticks of a kernel clock at 100 Hz: within them two writes may leave the same ctime. */
const tickMillis = 20;
/** Tries to see the image at rest for two ticks before it counts as being written to. */
const settleTries = 10;

interface Watch {
  readonly stat: FileStat;
  readonly writes: string | undefined;
}

export function createImageGuard(
  file: StorageFile,
  options: { readonly storage: Storage; readonly clock: Clock },
): ImageGuard {
  const { storage, clock } = options;
  let watch: Watch | undefined;
  let blindness: string | undefined;
  return {
    get blindness() {
      return blindness;
    },
    async begin() {
      if (watch !== undefined) return;
      if (storage.probeImageLock?.(file) === "writer") {
        throw new ReplicationError(
          "image-in-use",
          `${file.path} is open for writing in QEMU (it holds QEMU's image lock): stop the virtual machine, ` +
            "or replicate it through its NBD export, or accept an inconsistent copy with --allow-live",
          { details: { file: file.path } },
        );
      }
      // Writes through a memory map move the ctime only at a page's first write after it was last written back.
      await syncImage(file);
      const stat = await settledStat(file, clock);
      const writes = stat.kind === "device" ? await storage.deviceWrites?.(file) : undefined;
      if (stat.kind === "device" && writes === undefined) {
        blindness = `the kernel does not count the writes of ${file.path}: a change while it is read goes unseen`;
      }
      watch = { stat, writes };
    },
    async check() {
      invariant(watch !== undefined, "a guard begins before it checks");
      const before = watch;
      // Only what has left the page cache is counted.
      if (before.stat.kind === "device") await syncImage(file);
      const stat = await file.stat();
      const writes = before.writes === undefined ? undefined : await storage.deviceWrites?.(file);
      const moved = whatMoved(before, { stat, writes });
      if (moved === undefined) return;
      throw new ReplicationError(
        "image-changed",
        `${file.path} was changed while it was read (${moved}): nothing was committed. Send a snapshot of it, ` +
          "track its writes (replicate track), or accept an inconsistent copy with --allow-live",
        { details: { file: file.path, moved } },
      );
    },
  };
}

/** Of an image that lies in several files. `guards` may still grow until `begin`. */
export function joinGuards(guards: readonly ImageGuard[]): ImageGuard {
  return {
    get blindness() {
      return guards.find((guard) => guard.blindness !== undefined)?.blindness;
    },
    async begin() {
      for (const guard of guards) await guard.begin();
    },
    async check() {
      for (const guard of guards) await guard.check();
    },
  };
}

function whatMoved(before: Watch, after: Watch): string | undefined {
  if (before.stat.sizeBytes !== after.stat.sizeBytes) {
    return `size from ${before.stat.sizeBytes} to ${after.stat.sizeBytes} bytes`;
  }
  // The node of a device has a ctime of its own that says nothing of the content.
  if (before.stat.kind !== "device" && before.stat.changedNanos !== after.stat.changedNanos) {
    return `change time from ${isoTime(before.stat.changedNanos)} to ${isoTime(after.stat.changedNanos)}`;
  }
  if (before.writes !== after.writes) return "the kernel counted writes to the device";
  return undefined;
}

/** Facts of a file that rested for two ticks. Compared with itself and not only with the clock, which may be set wrong. */
async function settledStat(file: StorageFile, clock: Clock): Promise<FileStat> {
  let stat = await file.stat();
  if (stat.kind === "device") return stat;
  for (let attempt = 0; attempt < settleTries; attempt++) {
    const ageMillis = clock.now() - Number(stat.changedNanos) / 1e6;
    if (ageMillis >= tickMillis) return stat;
    const before = stat;
    await clock.sleep(tickMillis);
    stat = await file.stat();
    if (stat.changedNanos === before.changedNanos && stat.sizeBytes === before.sizeBytes) return stat;
  }
  throw new ReplicationError(
    "image-changed",
    `${file.path} is being written to just now: stop the writer, send a snapshot of it, ` +
      "or accept an inconsistent copy with --allow-live",
    { details: { file: file.path } },
  );
}

async function syncImage(file: StorageFile): Promise<void> {
  try {
    await file.datasync();
  } catch (error) {
    const code = errnoOf(error);
    // File systems and devices without anything to sync; Windows refuses it on a file open for reading.
    if (code === "EINVAL" || code === "EROFS" || code === "EPERM" || code === "ENOTSUP") return;
    throw new ReplicationError(
      "image-unreadable",
      `${file.path} cannot be synced (${code ?? "unknown error"}): what was written to it last may be lost. ` +
        "Check the medium and the system's log",
      { cause: error, details: { file: file.path } },
    );
  }
}

function isoTime(nanos: bigint): string {
  const millis = Number(nanos / 1_000_000n);
  const rest = (nanos % 1_000_000n).toString().padStart(6, "0");
  return new Date(millis).toISOString().replace("Z", `${rest}Z`);
}
