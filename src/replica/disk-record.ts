/** What a disk is, `disk.json`. It is written last when a disk is made: with it the disk exists. */
import { isAbsolute } from "node:path";
import { limits } from "../base/limits.ts";
import { BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, type DigestKind, type Geometry, isBlockSize } from "../base/units.ts";
import type { Storage } from "../storage/seam.ts";
import type { DiskPaths } from "./layout.ts";
import type { ReplicaFormat } from "./replica.ts";
import { damaged, decodeState, readState, type StateContent, type StateFormat, writeState } from "./state-file.ts";

/** `disk.json`. */
export interface DiskRecord {
  /** Disk uuid. */
  readonly id: string;
  readonly name: string;
  /** Size of the replica, with what a delta that is not committed yet has grown it by. */
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
  readonly generation: string;
  readonly term: number;
  /** Identity (certificate name) the disk belongs to. */
  readonly owner: string;
  readonly sectorBytes: number;
  /** What the replica's file is; default `raw`. */
  readonly format?: ReplicaFormat | undefined;
  /** Absolute path of the image outside the store that is the replica; undefined: `replica.raw`. */
  readonly image?: string | undefined;
}

export const diskFormat: StateFormat = { format: "replicate disk", version: 1 };

function parseRecord(content: StateContent): DiskRecord {
  const record: DiskRecord = {
    id: content.text("id"),
    name: content.text("name"),
    sizeBytes: content.integer("sizeBytes", 0, limits.diskBytesMax),
    blockBytes: content.integer("blockBytes", BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
    digestKind: content.oneOf("digestKind", ["xxh64", "sha256"]),
    generation: content.text("generation"),
    term: content.integer("term"),
    owner: content.text("owner"),
    sectorBytes: content.oneOf("sectorBytes", [512, 4096]),
    format: content.optionalText("format") === undefined ? undefined : content.oneOf("format", ["vhdx"] as const),
    image: content.optionalText("image"),
  };
  if (!isBlockSize(record.blockBytes)) throw damaged(content.path, '"blockBytes" is not a power of two');
  if (record.image !== undefined && !isImagePath(record.image)) {
    throw damaged(content.path, '"image" is not an absolute path');
  }
  if (record.image !== undefined && record.format !== undefined) {
    throw damaged(content.path, 'it has "image" and "format", and what is adopted is raw');
  }
  return record;
}

function isImagePath(path: string): boolean {
  return isAbsolute(path) && !path.includes("\0");
}

export function decodeRecord(path: string, bytes: Uint8Array): DiskRecord {
  return parseRecord(decodeState(path, diskFormat, bytes));
}

/** Undefined: no such disk. Throws `store-damaged`, `store-version-unsupported`. */
export async function readRecord(storage: Storage, paths: DiskPaths): Promise<DiskRecord | undefined> {
  const content = await readState(storage, paths.record, diskFormat);
  return content === undefined ? undefined : parseRecord(content);
}

/** Durable when it resolves. Order and errors: {@link writeState}. */
export async function writeRecord(storage: Storage, paths: DiskPaths, record: DiskRecord): Promise<void> {
  const { id, name, sizeBytes, blockBytes, digestKind, generation, term, owner, sectorBytes, format, image } = record;
  await writeState(storage, paths.record, diskFormat, {
    id,
    name,
    sizeBytes,
    blockBytes,
    digestKind,
    generation,
    term,
    owner,
    sectorBytes,
    format: format === "vhdx" ? format : undefined,
    image,
  });
}

/** Paths of a disk with the replica its record names: of an image that was adopted where it lies, that image. */
export function pathsOf(paths: DiskPaths, { image, format }: Pick<DiskRecord, "image" | "format">): DiskPaths {
  if (image !== undefined) return { ...paths, replica: image };
  return format === "vhdx" ? { ...paths, replica: paths.vhdx } : paths;
}

export function geometryOf({ sizeBytes, blockBytes, digestKind }: DiskRecord): Geometry {
  return { sizeBytes, blockBytes, digestKind };
}
