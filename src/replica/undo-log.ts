/**
 * The undo log of a point, `points/<sequence>.undo`: its header. A log exists from before the first block after its point is
 * overwritten, and so says that a delta was begun. docs/formats.md, "Undo log".
 *
 *     0 magic "rplundo\n" · 8 version u16 · 10 reserved u16 · 12 checksum u32 · 16 id 8 bytes · 24 sequence u64
 */
import { crc32 } from "node:zlib";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import type { Storage } from "../storage/seam.ts";
import { inFile } from "./file-error.ts";
import { damaged, syncDirectory } from "./state-file.ts";
import type { DiskPaths } from "./layout.ts";

export const UNDO_HEADER_BYTES = 32;
export const UNDO_VERSION = 1;
export const UNDO_ID_BYTES = 8;
export const undoMagic: Buffer = Buffer.from("rplundo\n", "latin1");

export interface UndoHeader {
  /** Random; seeds the checksums of the log's entries. 8 bytes. */
  readonly id: Uint8Array;
  /** The point the log belongs to; 0: before the first. */
  readonly sequence: number;
}

export function encodeUndoHeader({ id, sequence }: UndoHeader): Uint8Array {
  const bytes = Buffer.alloc(UNDO_HEADER_BYTES);
  undoMagic.copy(bytes, 0);
  bytes.writeUInt16LE(UNDO_VERSION, 8);
  bytes.set(id, 16);
  bytes.writeBigUInt64LE(BigInt(sequence), 24);
  bytes.writeUInt32LE(headerChecksum(bytes), 12);
  return bytes;
}

/** `bytes`: at least the header. Throws `store-damaged`, `store-version-unsupported`. */
export function decodeUndoHeader(path: string, bytes: Uint8Array): UndoHeader {
  if (bytes.length < UNDO_HEADER_BYTES) throw damaged(path, `it has ${bytes.length} bytes, less than its header`);
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, UNDO_HEADER_BYTES);
  if (undoMagic.compare(header, 0, 8) !== 0) throw damaged(path, "it is not an undo log");
  const version = header.readUInt16LE(8);
  if (version !== UNDO_VERSION) {
    throw new ReplicationError(
      "store-version-unsupported",
      `${path} has version ${version}; this program reads version ${UNDO_VERSION} only. Use the program that wrote it, or a newer one`,
      { details: { version, versionSupported: UNDO_VERSION } },
    );
  }
  if (header.readUInt32LE(12) !== headerChecksum(header))
    throw damaged(path, "the checksum of its header does not match");
  if (header.readUInt16LE(10) !== 0) throw damaged(path, "reserved bytes of its header are not zero");
  const sequence = header.readBigUInt64LE(24);
  if (sequence > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(path, "its sequence number is too large");
  return { id: Buffer.from(header.subarray(16, 16 + UNDO_ID_BYTES)), sequence: Number(sequence) };
}

/** crc32 over the header without the checksum itself. */
function headerChecksum(header: Uint8Array): number {
  return crc32(header.subarray(16, UNDO_HEADER_BYTES), crc32(header.subarray(0, 12)));
}

/**
 * Creates the log of point `sequence`, or goes on with the one an earlier session of the same delta created. Order: created (it must
 * not exist) → header written and synced → directory synced. A crash in between leaves a log without a whole header: it counts
 * as begun all the same, and gets its header here. Throws `sync-failed`, `write-failed`, `no-space`, `store-version-unsupported`.
 */
export async function openUndoLog(
  storage: Storage,
  paths: DiskPaths,
  sequence: number,
  newId: () => Uint8Array,
): Promise<void> {
  const path = paths.undo(sequence);
  await inFile("write-failed", `creating ${path}`, async () => {
    const file = await createOrOpen(storage, path);
    try {
      const bytes = Buffer.alloc(UNDO_HEADER_BYTES);
      const count = await file.read(bytes, 0);
      const own = isOwnHeader(path, bytes.subarray(0, count), sequence);
      if (!own) await file.truncate(0);
      // A good header is written again: after a crash or a failed sync it may have been in the page cache only.
      await file.write(own ? bytes : encodeUndoHeader({ id: newId(), sequence }), 0);
      await inFile("sync-failed", `syncing ${path}`, () => file.datasync());
    } finally {
      await file.close();
    }
  });
  await syncDirectory(storage, paths.points);
}

async function createOrOpen(storage: Storage, path: string): ReturnType<Storage["open"]> {
  try {
    return await storage.open(path, { write: true, exclusive: true, mode: 0o600 });
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
    return storage.open(path, { write: true });
  }
}

function isOwnHeader(path: string, bytes: Uint8Array, sequence: number): boolean {
  try {
    return decodeUndoHeader(path, bytes).sequence === sequence;
  } catch (error) {
    // A torn header of a log that holds nothing; a newer version must stay as it is.
    if (error instanceof ReplicationError && error.code === "store-damaged") return false;
    throw error;
  }
}
