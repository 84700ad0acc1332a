/** A disk in a VHDX file, written in place by {@link VhdxPlaces}. */
import type { Storage, StorageFile } from "../../storage/seam.ts";
import type { BlockReader, BlockWriter } from "../block-device.ts";
import { MappedReader } from "../mapped-reader.ts";
import { checkRange } from "../range.ts";
import { zeroRaw } from "../raw.ts";
import { type PlacesOptions, VhdxPlaces } from "./places.ts";

/**
 * Opens a file for writing (itself opened so) that nobody else has open. A log that was not written out is, first. Takes the file over. Errors: those of reading;
 * `image-format-unsupported` for a differencing file; `image-truncated` for one that does not hold all of its content. Methods of the writer throw
 * the system's errors unchanged; after a flush that failed, or a header that could not be written, all further ones throw.
 */
export async function openVhdxWriter(file: StorageFile, options: PlacesOptions): Promise<BlockWriter> {
  try {
    return new VhdxWriter(await VhdxPlaces.open(file, options), file, options.storage).asWriter();
  } catch (error) {
    await file.close();
    throw error;
  }
}

class VhdxWriter {
  readonly #places: VhdxPlaces;
  readonly #file: StorageFile;
  readonly #storage: Storage;
  readonly #reader: BlockReader;
  /** One call after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  #failed: { readonly error: unknown } | undefined;

  constructor(places: VhdxPlaces, file: StorageFile, storage: Storage) {
    this.#places = places;
    this.#file = file;
    this.#storage = storage;
    const { sizeBytes, sectorBytes } = places.disk;
    const { map } = places;
    this.#reader = new MappedReader({ sizeBytes, sectorBytes, file: places.file, map, parent: undefined });
  }

  asWriter(): BlockWriter {
    const reader = this.#reader;
    const { sizeBytes, sectorBytes } = reader;
    return {
      sizeBytes,
      sectorBytes,
      read: (target, offset) => this.#after(() => reader.read(target, offset)),
      extents: (offset, length) => reader.extents(offset, length),
      runs: (offset, length) => reader.runs?.(offset, length),
      write: async (source, offset) => {
        checkRange(sizeBytes, offset, source.length);
        await this.#after(() => this.#write(source, offset));
      },
      zero: async (offset, length) => {
        checkRange(sizeBytes, offset, length);
        await this.#after(() => this.#zero(offset, length));
      },
      flush: () => this.#after(() => this.#orFail(() => this.#places.flush())),
      close: () => this.#after(() => reader.close(), true),
    };
  }

  #after<T>(work: () => Promise<T>, always = false): Promise<T> {
    const next = this.#turn.then(() => {
      if (this.#failed !== undefined && !always) throw this.#failed.error;
      return work();
    });
    this.#turn = next.then(
      () => undefined,
      () => undefined,
    );
    return next;
  }

  async #write(source: Uint8Array, offset: number): Promise<void> {
    const { payloadBlockBytes } = this.#places;
    await this.#orFail(() => this.#places.touch());
    for (let done = 0; done < source.length; ) {
      const position = offset + done;
      const block = Math.floor(position / payloadBlockBytes);
      const length = Math.min(source.length - done, (block + 1) * payloadBlockBytes - position);
      await this.#places.claim([block]);
      await this.#file.write(source.subarray(done, done + length), this.#places.find(position) ?? 0);
      done += length;
    }
  }

  async #zero(offset: number, length: number): Promise<void> {
    const { payloadBlockBytes } = this.#places;
    await this.#orFail(() => this.#places.touch());
    const end = offset + length;
    for (let at = this.#places.nextPlaced(offset, end); at !== undefined; at = this.#places.nextPlaced(at, end)) {
      const stop = Math.min(end, (Math.floor(at / payloadBlockBytes) + 1) * payloadBlockBytes);
      const place = this.#places.find(at) ?? 0;
      await zeroRaw(this.#file, this.#storage, place, place + stop - at);
      at = stop;
    }
  }

  async #orFail(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#failed = { error };
      throw error;
    }
  }
}
