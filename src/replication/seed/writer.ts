/**
 * Writes the parts of a seed and its manifest.
 *
 * Order: leftovers removed → parts, each written, closed by its trailer and synced → directory synced → manifest written, synced, renamed, directory synced.
 * A crash before the last step leaves parts without a manifest: no copy, which the next export of the disk removes.
 */
import { createHash, type Hash } from "node:crypto";
import { dirname, join } from "node:path";
import { invariant, ReplicationError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { MIB } from "../../base/units.ts";
import { inFile } from "../../replica/file-error.ts";
import { newName, syncDirectory, writeState } from "../../replica/state-file.ts";
import type { FileLock, Storage, StorageFile } from "../../storage/seam.ts";
import { protocolVersion } from "../../wire/handshake.ts";
import {
  encodePartHeader,
  encodePartTrailer,
  manifestName,
  noHash,
  parseSeedFile,
  partName,
  partTrailerBytes,
  seedFormat,
  seedPartBytes,
} from "./format.ts";
import type { SeedFacts } from "./reader.ts";

/** Written and not synced at most: a portable disk is slow, and the last sync should be short. */
const syncEveryBytes = 64 * MIB;
/** What file systems and desktops put into the root of a disk. */
const harmless = new Set(["lost+found", "System Volume Information", "$RECYCLE.BIN"]);

export interface SeedWriterOptions {
  readonly storage: Storage;
  readonly log: Logger;
  readonly directory: string;
  /** Remove a copy that is there, and work beside other files. */
  readonly overwrite: boolean;
  readonly disk: string;
  /** A uuid. */
  readonly run: string;
  /** Default {@link seedPartBytes}. */
  readonly partBytes?: number | undefined;
}

/** The facts of a manifest the writer does not know by itself. */
export type CommitFacts = Omit<SeedFacts, "disk" | "run" | "parts" | "frames" | "bytes" | "sha256">;

interface OpenPart {
  readonly file: StorageFile;
  readonly hash: Hash;
  bytes: number;
  frames: number;
  unsynced: number;
  /** Never rejects: what failed is in `failed`. */
  syncing: Promise<void>;
  failed: { readonly error: unknown } | undefined;
}

export class SeedWriter {
  readonly #o: SeedWriterOptions;
  readonly #lock: FileLock | undefined;
  #part: OpenPart | undefined;
  #parts = 0;
  #frames = 0;
  #bytes = 0;
  #previous = noHash;

  private constructor(options: SeedWriterOptions, lock: FileLock | undefined) {
    this.#o = options;
    this.#lock = lock;
  }

  /**
   * Takes the directory, which is made when it is missing. Throws `target-exists` when it holds other files or a complete copy, unless `overwrite`; `image-busy`
   * when another process writes there; `write-failed`, `sync-failed`.
   */
  static async create(options: SeedWriterOptions): Promise<SeedWriter> {
    const { storage, directory } = options;
    const lock = await takeDirectory(storage, directory);
    try {
      await clearDirectory(options);
    } catch (error) {
      await lock?.release();
      throw error;
    }
    return new SeedWriter(options, lock);
  }

  /** Bytes given to files so far. */
  get bytes(): number {
    return this.#bytes + (this.#part?.bytes ?? 0);
  }

  /** A whole frame. One at a time; the array is on loan until the promise settles. Throws `no-space`, `write-failed`, `sync-failed`. */
  async append(frame: Uint8Array): Promise<void> {
    const most = (this.#o.partBytes ?? seedPartBytes) - partTrailerBytes;
    if (this.#part !== undefined && this.#part.frames > 0 && this.#part.bytes + frame.length > most)
      await this.#endPart();
    this.#part ??= await this.#beginPart();
    await this.#write(this.#part, frame);
    this.#part.frames++;
    this.#frames++;
  }

  /** After the last frame. The copy is complete and durable when it resolves. */
  async finish(facts: CommitFacts): Promise<void> {
    invariant(this.#part !== undefined, "a seed has at least the frames that open and commit it");
    const { storage, directory, disk, run } = this.#o;
    await this.#endPart();
    await syncDirectory(storage, directory);
    const { sizeBytes, blockBytes, digestKind, root, time, label, consistency, sourceName, codecs } = facts;
    await writeState(storage, join(directory, manifestName(disk, run)), seedFormat, {
      run,
      disk,
      sizeBytes,
      blockBytes,
      digestKind,
      root,
      time,
      label,
      consistency,
      sourceName,
      codecs: codecs.join(" "),
      parts: this.#parts,
      frames: this.#frames,
      bytes: this.#bytes,
      sha256: Buffer.from(this.#previous).toString("hex"),
    });
    await this.#lock?.release();
  }

  /** The copy will not be complete: removes what was written, as far as it can be. Never rejects. */
  async discard(): Promise<void> {
    const { storage, directory, disk, run, log } = this.#o;
    try {
      await this.#part?.syncing;
      await this.#part?.file.close();
      // It may have its name, if the directory could not be synced.
      const manifest = join(directory, manifestName(disk, run));
      for (const path of [manifest, newName(manifest)]) await storage.unlink(path);
      for (let part = 1; part <= this.#parts; part++) await storage.unlink(join(directory, partName(disk, run, part)));
      await this.#lock?.release();
    } catch (error) {
      // Without a manifest they count for nothing, and the next export of the disk removes them.
      log.warn({ disk, directory, cause: String(error) }, "the files of the copy that failed could not be removed");
    }
  }

  async #beginPart(): Promise<OpenPart> {
    const { storage, directory, disk, run } = this.#o;
    const number = this.#parts + 1;
    const path = join(directory, partName(disk, run, number));
    const file = await inFile("write-failed", `making ${path}`, () =>
      storage.open(path, { write: true, exclusive: true }),
    );
    this.#parts = number;
    const hash = createHash("sha256");
    const part: OpenPart = {
      file,
      hash,
      bytes: 0,
      frames: 0,
      unsynced: 0,
      syncing: Promise.resolve(),
      failed: undefined,
    };
    await this.#write(
      part,
      encodePartHeader({ protocol: protocolVersion, run, part: number, previous: this.#previous }),
    );
    return part;
  }

  async #write(part: OpenPart, bytes: Uint8Array): Promise<void> {
    const { path } = part.file;
    part.hash.update(bytes);
    await inFile("write-failed", `writing ${path}`, () => part.file.write(bytes, part.bytes));
    part.bytes += bytes.length;
    part.unsynced += bytes.length;
    if (part.unsynced < syncEveryBytes) return;
    // The one before has to be through; writing goes on beside this one.
    await settled(part);
    part.unsynced = 0;
    part.syncing = part.file.datasync().catch((error: unknown) => {
      part.failed ??= { error };
    });
  }

  async #endPart(): Promise<void> {
    const part = this.#part;
    invariant(part !== undefined, "a part was begun");
    const { file, bytes, frames } = part;
    const sha256 = part.hash.digest();
    const trailer = encodePartTrailer({ part: this.#parts, bodyBytes: bytes, frames, sha256 });
    await inFile("write-failed", `writing ${file.path}`, () => file.write(trailer, bytes));
    await settled(part);
    await inFile("sync-failed", `syncing ${file.path}`, () => file.datasync());
    this.#o.storage.lanes.dropCache(file.fd, 0, bytes + trailer.length);
    await inFile("write-failed", `closing ${file.path}`, () => file.close());
    this.#part = undefined;
    this.#previous = sha256;
    this.#bytes += bytes + trailer.length;
  }
}

async function settled(part: OpenPart): Promise<void> {
  await part.syncing;
  const { failed } = part;
  if (failed !== undefined) {
    await inFile("sync-failed", `syncing ${part.file.path}`, () => Promise.reject(failed.error));
  }
}

async function takeDirectory(storage: Storage, directory: string): Promise<FileLock | undefined> {
  if (!storage.capabilities.locks || storage.lockName === undefined) return undefined;
  const name = createHash("sha256").update(`seed ${directory}`).digest("hex").slice(0, 32);
  const lock = await inFile(
    "locks-unsupported",
    `taking a lock for ${directory}`,
    () => storage.lockName?.(name) ?? Promise.resolve(undefined),
  );
  if (lock === undefined) throw new ReplicationError("image-busy", `another process is writing a copy to ${directory}`);
  return lock;
}

async function clearDirectory({ storage, directory, disk, overwrite, log }: SeedWriterOptions): Promise<void> {
  const names = await inFile("write-failed", `listing ${directory}`, () => storage.list(directory));
  if (names === undefined) {
    await inFile("write-failed", `making ${directory}`, () => storage.makeDirectory(directory));
    await syncDirectory(storage, dirname(directory));
    return;
  }
  const ours = names.flatMap((name) => {
    const parsed = parseSeedFile(name);
    return parsed === undefined ? [] : [{ name, ...parsed }];
  });
  if (!overwrite) {
    const complete = ours.find(({ kind }) => kind === "manifest");
    if (complete !== undefined)
      throw occupied(directory, `holds a copy of disk ${complete.disk} already (${complete.name})`);
    const other = names.find(
      (name) =>
        !harmless.has(name) && !name.startsWith(".") && !ours.some((file) => file.name === name && file.disk === disk),
    );
    if (other !== undefined) throw occupied(directory, `is not empty (it holds ${JSON.stringify(other)})`);
  }
  if (ours.length === 0) return;
  log.warn(
    { directory, files: ours.length },
    "removing a copy that is there, or what an export that was interrupted left",
  );
  await inFile("write-failed", `removing files in ${directory}`, async () => {
    // Manifests first, durably: parts without one are no copy, a manifest without its parts would be a damaged one.
    for (const { name, kind } of ours) if (kind === "manifest") await storage.unlink(join(directory, name));
    await storage.syncDirectory(directory);
    for (const { name } of ours) await storage.unlink(join(directory, name));
  });
}

function occupied(directory: string, what: string): ReplicationError {
  return new ReplicationError(
    "target-exists",
    `${directory} ${what}: give an empty or new folder, or --force, which removes copies there and leaves other files alone`,
    { details: { directory } },
  );
}
