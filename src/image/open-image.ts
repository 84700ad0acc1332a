/** Opens a disk image by path: what it is, that it can be read, and who it is. */
import { basename, resolve } from "node:path";
import { type Clock, systemClock } from "../base/clock.ts";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";
import type { BlockReader } from "./block-device.ts";
import {
  detectFormat,
  detectHeadBytes,
  detectTailBytes,
  formatTitle,
  type ImageFormat,
  promisedFormat,
  readingAdvice,
} from "./detect.ts";
import { createImageGuard, type ImageGuard, joinGuards } from "./guard.ts";
import { createRawReader, rawSectorBytes } from "./raw.ts";
import { openVhd } from "./vhd/open.ts";
import { openVhdx } from "./vhdx/open.ts";

export interface OpenImageOptions {
  readonly storage: Storage;
  /** For the guard; default the system's. */
  readonly clock?: Clock;
  /** Read the bytes as they are, whatever they look like or the name promises. */
  readonly format?: "raw" | undefined;
  /** Open a block device that is mounted or held by another, at the user's word. */
  readonly allowLive?: boolean;
}

export interface OpenImage {
  readonly reader: BlockReader;
  readonly format: "raw" | "vhdx" | "vhd";
  /** Absolute. */
  readonly path: string;
  /** The same for every name of the file or device: `file:DEVICE:INODE` or `device:MAJOR:MINOR`. */
  readonly identity: string;
  readonly guard: ImageGuard;
  /** What is wrong with the image and does no harm, in words. */
  readonly remarks: readonly string[];
}

/**
 * Opens an image for reading, and the images it builds upon; `reader.close` closes it.
 * Errors: `image-not-found`, `image-unreadable` (a directory, no permission, ...), `image-in-use` (a device that is mounted
 * or held), `image-format-unsupported`, `image-format-mismatch`, `image-damaged`, `limit-exceeded`.
 */
export async function openImage(path: string, options: OpenImageOptions): Promise<OpenImage> {
  const { storage } = options;
  const absolute = resolve(path);
  const file = await openFile(absolute, options);
  try {
    const stat = await file.stat();
    const format = options.format === "raw" ? "raw" : await formatOf(file, stat);
    const facts = {
      path: absolute,
      identity: stat.kind === "device" ? `device:${stat.device}` : `file:${stat.device}:${stat.inode}`,
    };
    if (format !== "raw") return { ...facts, format, ...(await openChain(file, format, options)) };
    if (stat.sizeBytes > limits.diskBytesMax) {
      throw new ReplicationError(
        "limit-exceeded",
        `${absolute} has ${stat.sizeBytes} bytes; disks have at most ${limits.diskBytesMax} (64 TiB)`,
      );
    }
    return {
      ...facts,
      reader: createRawReader(file, { sizeBytes: stat.sizeBytes, sectorBytes: rawSectorBytes(stat) }),
      format,
      guard: createImageGuard(file, { storage, clock: options.clock ?? systemClock }),
      remarks: [],
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Its tables are read now: it is watched from before, or what was read of them could be older than what is read of the disk. One that may
 * change is the user's word.
 */
async function openChain(
  file: StorageFile,
  format: "vhdx" | "vhd",
  options: OpenImageOptions,
): Promise<Pick<OpenImage, "reader" | "guard" | "remarks">> {
  const { storage, clock = systemClock } = options;
  const guards: ImageGuard[] = [];
  const watch = async (each: StorageFile): Promise<void> => {
    const guard = createImageGuard(each, { storage, clock });
    guards.push(guard);
    if (options.allowLive !== true) await guard.begin();
  };
  const { reader, files } = await (format === "vhdx" ? openVhdx : openVhd)(file, storage, watch);
  const remarks = files.flatMap(({ file: { path }, facts }) => facts.remarks.map((remark) => `${path}: ${remark}`));
  return { reader, guard: joinGuards(guards), remarks };
}

async function openFile(path: string, options: OpenImageOptions): Promise<StorageFile> {
  try {
    const stat = await options.storage.stat(path);
    if (stat === undefined) {
      throw new ReplicationError("image-not-found", `there is no image ${path}: check the path`);
    }
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if (stat.kind === "directory" || stat.kind === "other") {
      const kind = stat.kind === "directory" ? "a directory" : "neither a file nor a block device";
      throw new ReplicationError("image-unreadable", `${path} is ${kind}: name the disk image itself`);
    }
    return await options.storage.open(path, { holdDevice: stat.kind === "device" && options.allowLive !== true });
  } catch (error) {
    throw openError(path, error);
  }
}

function openError(path: string, error: unknown): unknown {
  const code = errnoOf(error);
  if (error instanceof ReplicationError || code === undefined) return error;
  const details = { file: path, errno: code };
  if (code === "ENOENT" || code === "ENOTDIR") {
    return new ReplicationError("image-not-found", `there is no image ${path}: check the path`, { details });
  }
  if (code === "EBUSY") {
    return new ReplicationError(
      "image-in-use",
      `${path} is mounted or held by another program: unmount it, send a snapshot of it, ` +
        "or accept an inconsistent copy with --allow-live",
      { cause: error, details },
    );
  }
  const advice = code === "EACCES" || code === "EPERM" ? "give this user the right to read it" : "check the medium";
  return new ReplicationError("image-unreadable", `${path} cannot be opened (${code}): ${advice}`, {
    cause: error,
    details,
  });
}

/** What can be read here; anything else is refused. */
async function formatOf(file: StorageFile, stat: FileStat): Promise<OpenImage["format"]> {
  const head = await readPiece(file, 0, Math.min(detectHeadBytes, stat.sizeBytes));
  const tailBytes = Math.min(detectTailBytes, stat.sizeBytes);
  const tail = await readPiece(file, stat.sizeBytes - tailBytes, tailBytes);
  const format: ImageFormat = detectFormat({ head, tail });
  if (format === "vhdx" || format === "vhd") return format;
  const insist = "If it is a raw disk all the same, pass --format raw";
  if (format !== "raw") {
    throw new ReplicationError(
      "image-format-unsupported",
      `${file.path} is ${formatTitle(format)}, which is not read directly. ${readingAdvice(format, file.path)}${insist}`,
      { details: { file: file.path, format } },
    );
  }
  const promised = stat.kind === "file" ? promisedFormat(basename(file.path)) : undefined;
  if (promised !== undefined && promised !== "raw") {
    throw new ReplicationError(
      "image-format-mismatch",
      `${file.path} is named like ${formatTitle(promised)} but does not have its signature: ` +
        `it is damaged, incomplete or misnamed. ${insist}`,
      { details: { file: file.path, promised } },
    );
  }
  return format;
}

async function readPiece(file: StorageFile, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  try {
    return bytes.subarray(0, await file.read(bytes, offset));
  } catch (error) {
    throw new ReplicationError(
      "image-unreadable",
      `${file.path} cannot be read at offset ${offset} (${errnoOf(error) ?? "unknown error"}): check the medium`,
      { cause: error, details: { file: file.path, offset } },
    );
  }
}
