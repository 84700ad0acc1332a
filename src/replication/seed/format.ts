/**
 * A seed: the initial copy of a disk as files, for a portable disk. Parts hold the very frames of the wire, one after the other; a manifest, written last,
 * says that the copy is complete. docs/formats.md, "Seed", has the bytes.
 */
import { crc32 } from "node:zlib";
import { invariant, ReplicationError } from "../../base/errors.ts";
import { GIB } from "../../base/units.ts";
import { isDiskName } from "../../base/disk-name.ts";
import type { StateFormat } from "../../replica/state-file.ts";

export const seedFormat: StateFormat = { format: "replicate seed", version: 1 };

/** A part ends before a frame that would take it beyond this many bytes: a size every file system can hold. */
export const seedPartBytes = GIB;

export const partHeaderBytes = 96;
export const partTrailerBytes = 64;
const partVersion = 1;
const headerMagic = Buffer.from("rplseed\n", "latin1");
const trailerMagic = Buffer.from("rplsdend", "latin1");
const checksumAt = 12;
const hashBytes = 32;

/** What precedes the first part in the chain of hashes. */
export const noHash: Uint8Array = new Uint8Array(hashBytes);

export interface PartHeader {
  /** Version of the wire protocol the frames are of. */
  readonly protocol: number;
  /** Uuid of the run that made the seed: the cycle of its commit. */
  readonly run: string;
  /** From 1. */
  readonly part: number;
  /** sha256 of the part before, as its trailer says; 32 zero bytes in the first. */
  readonly previous: Uint8Array;
}

export interface PartTrailer {
  readonly part: number;
  /** Bytes before the trailer, the header included. */
  readonly bodyBytes: number;
  readonly frames: number;
  /** Over those bytes. */
  readonly sha256: Uint8Array;
}

/** The names of a seed's files begin with this. */
function seedPrefix(disk: string, run: string): string {
  return `${disk}-${run}.`;
}

export function manifestName(disk: string, run: string): string {
  return `${seedPrefix(disk, run)}seed.json`;
}

export function partName(disk: string, run: string, part: number): string {
  return `${seedPrefix(disk, run)}${String(part).padStart(5, "0")}.frames`;
}

const nameForm =
  /^(.+)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.(?:(seed\.json)|seed\.json\.new|(\d{5,9})\.frames)$/;

export interface SeedFileName {
  readonly disk: string;
  readonly run: string;
  /** `leftover`: a manifest that did not get its name. */
  readonly kind: "manifest" | "part" | "leftover";
  /** Of a part. */
  readonly part: number | undefined;
}

/** Undefined: not the name of a seed's file. */
export function parseSeedFile(name: string): SeedFileName | undefined {
  const [, disk = "", run = "", manifest, part] = nameForm.exec(name) ?? [];
  if (!isDiskName(disk)) return undefined;
  if (part !== undefined) return { disk, run, kind: "part", part: Number(part) };
  return { disk, run, kind: manifest === undefined ? "leftover" : "manifest", part: undefined };
}

export function isRunId(text: string): boolean {
  return /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
}

export function encodePartHeader(header: PartHeader): Uint8Array {
  invariant(isRunId(header.run) && header.previous.length === hashBytes, "a part belongs to a run and follows another");
  const bytes = Buffer.alloc(partHeaderBytes);
  headerMagic.copy(bytes);
  bytes.writeUInt16LE(partVersion, 8);
  bytes.writeUInt16LE(header.protocol, 10);
  bytes.write(header.run.replaceAll("-", ""), 16, "hex");
  bytes.writeUInt32LE(header.part, 32);
  bytes.set(header.previous, 64);
  bytes.writeUInt32LE(checksumOf(bytes), checksumAt);
  return bytes;
}

/** Throws `seed-damaged`, and `version-unsupported` for a part of another version. */
export function decodePartHeader(path: string, bytes: Uint8Array): PartHeader {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.length < partHeaderBytes) throw seedDamaged(path, `it has only ${view.length} bytes`);
  if (!view.subarray(0, 8).equals(headerMagic)) throw seedDamaged(path, "it is not a part of a copy");
  if (view.readUInt32LE(checksumAt) !== checksumOf(view))
    throw seedDamaged(path, "its header does not match its checksum");
  const version = view.readUInt16LE(8);
  if (version !== partVersion) {
    throw new ReplicationError(
      "version-unsupported",
      `${path} has version ${version}; this program reads version ${partVersion} only. Use the program that wrote it, or a newer one`,
      { details: { version, versionSupported: partVersion } },
    );
  }
  if (view.subarray(36, 64).some((byte) => byte !== 0))
    throw seedDamaged(path, "reserved bytes of its header are not zero");
  const hex = view.toString("hex", 16, 32);
  const run = [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
  return {
    protocol: view.readUInt16LE(10),
    run,
    part: view.readUInt32LE(32),
    previous: Uint8Array.from(view.subarray(64, partHeaderBytes)),
  };
}

export function encodePartTrailer(trailer: PartTrailer): Uint8Array {
  invariant(trailer.sha256.length === hashBytes, "a part has a sha256");
  const bytes = Buffer.alloc(partTrailerBytes);
  trailerMagic.copy(bytes);
  bytes.writeUInt32LE(trailer.part, 8);
  bytes.writeBigUInt64LE(BigInt(trailer.bodyBytes), 16);
  bytes.writeUInt32LE(trailer.frames, 24);
  bytes.set(trailer.sha256, 32);
  bytes.writeUInt32LE(checksumOf(bytes), checksumAt);
  return bytes;
}

/** `bytes`: the last of the file, whose size is `fileBytes`. Throws `seed-damaged`. */
export function decodePartTrailer(path: string, bytes: Uint8Array, fileBytes: number): PartTrailer {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.length < partTrailerBytes || !view.subarray(0, 8).equals(trailerMagic)) {
    throw seedDamaged(path, "its closing record is missing: it was cut short, or something was put behind it");
  }
  if (view.readUInt32LE(checksumAt) !== checksumOf(view)) {
    throw seedDamaged(path, "its closing record does not match its checksum");
  }
  if (view.readUInt32LE(28) !== 0) throw seedDamaged(path, "reserved bytes of its closing record are not zero");
  const bodyBytes = Number(view.readBigUInt64LE(16));
  if (bodyBytes < partHeaderBytes || bodyBytes + partTrailerBytes !== fileBytes) {
    throw seedDamaged(path, `it has ${fileBytes} bytes, not the ${bodyBytes + partTrailerBytes} it was written with`);
  }
  return {
    part: view.readUInt32LE(8),
    bodyBytes,
    frames: view.readUInt32LE(24),
    sha256: Uint8Array.from(view.subarray(32, partTrailerBytes)),
  };
}

/** CRC-32 over all bytes but its own four. */
function checksumOf(bytes: Uint8Array): number {
  return crc32(bytes.subarray(checksumAt + 4), crc32(bytes.subarray(0, checksumAt)));
}

export function seedDamaged(path: string, why: string, cause?: unknown): ReplicationError {
  return new ReplicationError(
    "seed-damaged",
    `${path} is damaged: ${why}. Nothing was committed; copy the file again from where it is good, or make the copy again with send --to-dir`,
    { ...(cause === undefined ? {} : { cause }), details: { file: path } },
  );
}
