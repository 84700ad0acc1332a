/** A file or block device whose bytes are the disk's bytes. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { GIB, KIB } from "../base/units.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";
import type { BlockReader, BlockWriter, Extent, FileRun } from "./block-device.ts";
import { checkRange } from "./range.ts";

export interface RawOptions {
  /** Size of the disk in bytes, exact to the byte: of a file its size, of a device at most its capacity. */
  readonly sizeBytes: number;
  /** Default 512. */
  readonly sectorBytes?: 512 | 4096;
}

/** File systems free space in blocks; 4 KiB is the smallest that holes are made of in practice. */
const holeUnitBytes = 4 * KIB;
/** Zeros are written in pieces of this size: larger ones cost more CPU a byte, not less. */
const zeroPieceBytes = 256 * KIB;
/** Punched in one call; between two the process does its other work. */
const punchPieceBytes = GIB;

/** The sector a reader may report for a file or device: 512 unless the device has at least 4096. */
export function rawSectorBytes(stat: FileStat): 512 | 4096 {
  return stat.sectorBytes >= 4096 ? 4096 : 512;
}

/**
 * Reads `file` as a disk. Takes the file over: `close` closes it.
 * Errors: `image-truncated` when the file is shorter than the disk, `image-unreadable` with the system's error as cause.
 */
export function createRawReader(file: StorageFile, options: RawOptions): BlockReader {
  const { sizeBytes } = options;
  return {
    sizeBytes,
    sectorBytes: options.sectorBytes ?? 512,
    read: (target, offset) => readRaw(file, sizeBytes, target, offset),
    extents: (offset, length) => rawExtents(file, sizeBytes, offset, length),
    runs(offset, length): readonly FileRun[] {
      checkRange(sizeBytes, offset, length);
      return length === 0 ? [] : [{ kind: "file", fd: file.fd, offset, length }];
    },
    close: () => file.close(),
  };
}

/**
 * Reads and writes `file` (open for writing) as a disk; never changes its size ({@link sizeRawTarget} does). Takes the
 * file over. Write, zero and flush throw the system's error unchanged.
 */
export function createRawWriter(file: StorageFile, storage: Storage, options: RawOptions): BlockWriter {
  const { sizeBytes } = options;
  return {
    ...createRawReader(file, options),
    async write(source, offset) {
      checkRange(sizeBytes, offset, source.length);
      await file.write(source, offset);
    },
    async zero(offset, length) {
      checkRange(sizeBytes, offset, length);
      await zeroRaw(file, storage, offset, offset + length);
    },
    flush: () => file.datasync(),
  };
}

/**
 * Makes a file or device ready to hold a disk of `sizeBytes`, before anything is sent: a file gets that size, a device is
 * checked and never truncated. Neither is cleared: what it holds stays until it is written or zeroed.
 * Errors: `target-too-small` (capacity, or the file system's largest file), `target-unsuitable` (sectors).
 */
export async function sizeRawTarget(file: StorageFile, storage: Storage, sizeBytes: number): Promise<RawOptions> {
  const stat = await file.stat();
  if (stat.kind === "device") {
    if (stat.sizeBytes < sizeBytes) {
      throw new ReplicationError(
        "target-too-small",
        `${file.path} has ${stat.sizeBytes} bytes, the disk ${sizeBytes}: choose a device of at least that size`,
      );
    }
    if (sizeBytes % stat.sectorBytes !== 0) {
      throw new ReplicationError(
        "target-unsuitable",
        `${file.path} has sectors of ${stat.sectorBytes} bytes and the disk's ${sizeBytes} bytes are no multiple of it: ` +
          "choose a device with 512-byte sectors, or a file",
      );
    }
    return { sizeBytes, sectorBytes: rawSectorBytes(stat) };
  }
  const { fileBytesMax } = await storage.space(file.path);
  if (fileBytesMax !== undefined && sizeBytes > fileBytesMax) {
    throw new ReplicationError(
      "target-too-small",
      `the file system of ${file.path} holds files of at most ${fileBytesMax} bytes, the disk has ${sizeBytes}: ` +
        "choose another file system (XFS, or ext4 below 16 TiB)",
    );
  }
  if (stat.sizeBytes !== sizeBytes) await file.truncate(sizeBytes);
  return { sizeBytes, sectorBytes: 512 };
}

async function readRaw(file: StorageFile, sizeBytes: number, target: Uint8Array, offset: number): Promise<void> {
  checkRange(sizeBytes, offset, target.length);
  let count: number;
  try {
    count = await file.read(target, offset);
  } catch (error) {
    const code = errnoOf(error);
    if (code === undefined) throw error;
    throw new ReplicationError(
      "image-unreadable",
      `${file.path} cannot be read at offset ${offset}, length ${target.length}: ${code}. ` +
        "Check the medium and the system's log",
      { cause: error, details: { file: file.path, offset, length: target.length, errno: code } },
    );
  }
  if (count < target.length) throw truncated(file, sizeBytes, offset + count);
}

/** A file that got shorter must not be taken for one that ends in a hole. */
function truncated(file: StorageFile, sizeBytes: number, endsAt: number): ReplicationError {
  return new ReplicationError(
    "image-truncated",
    `${file.path} ends at offset ${endsAt}, but ${sizeBytes} bytes belong to the disk: ` +
      "it was cut while it was being read, or its copy is incomplete",
    { details: { file: file.path, offset: endsAt, sizeBytes } },
  );
}

async function* rawExtents(
  file: StorageFile,
  sizeBytes: number,
  offset: number,
  length: number,
): AsyncGenerator<Extent, void, undefined> {
  checkRange(sizeBytes, offset, length);
  const end = offset + length;
  let position = offset;
  while (position < end) {
    const data = file.nextData(position);
    const start = Math.min(data?.start ?? end, end);
    if (start > position) {
      if (data === undefined) await checkNotCut(file, sizeBytes, end);
      yield { kind: "hole", offset: position, length: start - position };
    }
    if (start === end || data === undefined) return;
    const dataEnd = Math.min(data.end, end);
    yield { kind: "data", offset: start, length: dataEnd - start };
    position = dataEnd;
  }
}

async function checkNotCut(file: StorageFile, sizeBytes: number, end: number): Promise<void> {
  const stat = await file.stat();
  if (stat.sizeBytes < end) throw truncated(file, sizeBytes, stat.sizeBytes);
}

/**
 * Whole units are punched, what is left at both ends is written, so that no byte hangs on how a file system rounds the
 * tail of a file.
 */
export async function zeroRaw(file: StorageFile, storage: Storage, start: number, end: number): Promise<void> {
  const innerStart = Math.ceil(start / holeUnitBytes) * holeUnitBytes;
  const innerEnd = Math.floor(end / holeUnitBytes) * holeUnitBytes;
  if (innerStart >= innerEnd) {
    await writeZeros(file, start, end);
    return;
  }
  await writeZeros(file, start, innerStart);
  for (let position = innerStart; position < innerEnd; ) {
    const length = Math.min(innerEnd - position, punchPieceBytes);
    if (!storage.lanes.punch(file.fd, position, length)) {
      await writeZeros(file, position, innerEnd);
      break;
    }
    position += length;
    // Any call that goes through the event loop: a punch blocks it.
    if (position < innerEnd) await file.stat();
  }
  await writeZeros(file, innerEnd, end);
}

async function writeZeros(file: StorageFile, start: number, end: number): Promise<void> {
  if (start >= end) return;
  const zeros = new Uint8Array(Math.min(end - start, zeroPieceBytes));
  for (let position = start; position < end; position += zeros.length) {
    await file.write(zeros.subarray(0, end - position), position);
  }
}
