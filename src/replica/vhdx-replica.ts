/** A replica whose file is a VHDX: dynamic, its payload blocks where its table says. docs/formats.md, "VHDX replica". */
import { ReplicationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { FileRun } from "../image/block-device.ts";
import { readVhdxBeside } from "../image/vhdx/beside.ts";
import { createVhdx } from "../image/vhdx/create.ts";
import { VhdxPlaces } from "../image/vhdx/places.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import type { Replica, ReplicaReader } from "./replica.ts";

/** Default of a new replica: as Hyper-V has it. */
export const payloadBlockBytesDefault: number = 32 * 2 ** 20;

/** The tables of a new replica, in an empty file; not synced. */
export async function makeVhdxReplica(
  file: StorageFile,
  shape: { readonly sizeBytes: number; readonly sectorBytes: number; readonly payloadBlockBytes: number },
  random: Random,
): Promise<void> {
  const { sizeBytes, payloadBlockBytes } = shape;
  await createVhdx(
    file,
    { sizeBytes, payloadBlockBytes, sectorBytes: shape.sectorBytes === 4096 ? 4096 : 512 },
    random,
  );
}

/**
 * Opens the replica's file, itself open for writing, and takes it over. What a crash left in its log is written out, and what it left at its end cut off: neither is
 * content. `changed`: that was done. Throws `store-damaged`, and the system's errors unchanged.
 */
export async function openVhdxReplica(
  file: StorageFile,
  options: { readonly storage: Storage; readonly random: Random; readonly blockBytes: number },
): Promise<{ readonly replica: Replica; readonly changed: boolean }> {
  const { blockBytes, ...how } = options;
  return ofStore(file.path, async () => {
    const before = await file.stat();
    const places = await VhdxPlaces.open(file, how);
    const trimmed = await places.trim();
    const after = await file.stat();
    const changed = trimmed || after.modifiedNanos !== before.modifiedNanos || after.sizeBytes !== before.sizeBytes;
    return { replica: new VhdxReplica(places, file, blockBytes), changed };
  });
}

class VhdxReplica implements Replica {
  readonly #places: VhdxPlaces;
  readonly #file: StorageFile;
  readonly #blockBytes: number;
  readonly path: string;
  readonly fd: number;
  readonly directFd: number | undefined;

  constructor(places: VhdxPlaces, file: StorageFile, blockBytes: number) {
    this.#places = places;
    this.#file = file;
    this.#blockBytes = blockBytes;
    this.path = file.path;
    this.fd = file.fd;
    this.directFd = file.directFd;
  }

  get sizeBytes(): number {
    return this.#places.sizeBytes;
  }

  places(blocks: readonly number[]): readonly number[] {
    // Payload blocks begin at whole mebibytes and are at least as large: a block lies in one of them, at a multiple of its own size.
    return blocks.map((block) => (this.#find(block * this.#blockBytes) ?? -this.#blockBytes) / this.#blockBytes);
  }

  async claim(blocks: readonly number[]): Promise<readonly number[]> {
    const { payloadBlockBytes } = this.#places;
    await this.#places.claim(
      new Set(blocks.map((block) => Math.floor((block * this.#blockBytes) / payloadBlockBytes))),
    );
    return this.places(blocks);
  }

  runs(offset: number, length: number): readonly FileRun[] {
    const { payloadBlockBytes } = this.#places;
    const runs: FileRun[] = [];
    for (let at = offset; at < offset + length; ) {
      const stop = Math.min(offset + length, (Math.floor(at / payloadBlockBytes) + 1) * payloadBlockBytes);
      const place = this.#find(at);
      runs.push(
        place === undefined
          ? { kind: "zero", length: stop - at }
          : { kind: "file", fd: this.fd, offset: place, length: stop - at },
      );
      at = stop;
    }
    return runs;
  }

  nextData(offset: number): { readonly start: number; readonly end: number } | undefined {
    const { sizeBytes, payloadBlockBytes } = this.#places;
    const next = (from: number): number | undefined => this.#told(() => this.#places.nextPlaced(from, sizeBytes));
    for (let at = next(offset); at !== undefined; at = next(at)) {
      const stop = Math.min(sizeBytes, (Math.floor(at / payloadBlockBytes) + 1) * payloadBlockBytes);
      const place = this.#find(at) ?? 0;
      const data = this.#file.nextData(place);
      if (data !== undefined && data.start < place + stop - at) {
        return { start: at + data.start - place, end: Math.min(stop, at + data.end - place) };
      }
      at = stop;
    }
    return undefined;
  }

  touch(): Promise<void> {
    return this.#places.touch();
  }

  resize(sizeBytes: number): Promise<void> {
    return ofStore(this.path, () => this.#places.resize(sizeBytes));
  }

  datasync(): Promise<void> {
    return this.#places.flush();
  }

  stat(): ReturnType<StorageFile["stat"]> {
    return this.#file.stat();
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #find(offset: number): number | undefined {
    return this.#told(() => this.#places.find(offset));
  }

  #told<T>(look: () => T): T {
    try {
      return look();
    } catch (error) {
      throw asStoreError(this.path, error);
    }
  }
}

/** The replica's file, open for reading, beside a writer or none; takes it over. Throws `store-damaged`, and the system's errors unchanged. */
export async function readVhdxReplica(file: StorageFile, storage: Storage): Promise<ReplicaReader> {
  const disk = await ofStore(file.path, () => readVhdxBeside(file, storage));
  return {
    path: file.path,
    read: (target, offset) => ofStore(file.path, () => disk.read(target, offset)),
    close: () => file.close(),
  };
}

async function ofStore<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw asStoreError(path, error);
  }
}

/** The tables of the file are the store's, and so is their damage. */
function asStoreError(path: string, error: unknown): unknown {
  if (!(error instanceof ReplicationError) || !error.code.startsWith("image-")) return error;
  return new ReplicationError("store-damaged", error.message, {
    cause: error,
    details: { ...error.details, file: path },
  });
}
