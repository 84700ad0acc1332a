/** Adopts an image as the replica of a new disk: the table is made by reading it, in lanes. */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import { toReplicationError } from "../base/errors.ts";
import { pageCount } from "../base/units.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { Adopted, ImageToAdopt, Store } from "../replica/store.ts";
import { type RebuildOptions, rebuildTable } from "./rebuild.ts";

export interface AdoptOptions extends ImageToAdopt {
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly signal?: AbortSignal | undefined;
  /** Bytes of the image passed so far, and its size. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

/** More would not be read any faster. */
const slotsMax = 8;

/** Throws as {@link Store.adopt}; `aborted`, which leaves no disk and the image as it was. */
export async function adoptDisk(store: Store, disk: string, options: AdoptOptions): Promise<Adopted> {
  const { lanes, pool, onProgress, signal = new AbortController().signal, ...facts } = options;
  if (signal.aborted) throw toReplicationError(signal.reason, "aborted");
  return store.adopt(disk, facts, async ({ image, geometry, table, fd, nextData }) => {
    const slots: Slot[] = [await pool.acquire(signal)];
    while (slots.length < slotsMax) {
      const more = pool.tryAcquire();
      if (more === undefined) break;
      slots.push(more);
    }
    const { sizeBytes } = geometry;
    try {
      const runs: RebuildOptions["runs"] = (offset, length) => [{ kind: "file", fd, offset, length }];
      const what = { disk, file: image, geometry, runs, nextData, table, lanes, slots, signal };
      const onPage = (bytes: number): void => onProgress?.(Math.min(bytes, sizeBytes), sizeBytes);
      await rebuildTable({ ...what, onProgress: onPage }, 0, pageCount(geometry));
      signal.throwIfAborted();
    } catch (error) {
      throw signal.aborted ? toReplicationError(signal.reason, "aborted") : error;
    } finally {
      for (const slot of slots) slot.release();
    }
  });
}
