/** Images that are written to and read a sector at a time, so that a read which overlaps a write shows it, and tracked ones over them. */
import type { BlockWriter } from "../../src/image/block-device.ts";
import { KIB } from "../../src/base/units.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createSimulatedDisk, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import { openJournal } from "../../src/track/journal/open.ts";
import { TrackedImage, type TrackedImageOptions } from "../../src/track/tracked-image.ts";
import { createTestRandom } from "../replica/simulated-store.ts";
import type { Turns } from "./turns.ts";

export const blockBytes = 16 * KIB;
const sectorBytes = 512;

export interface SlowImage extends BlockWriter {
  readonly bytes: Uint8Array;
  /** Reads as a lane does: past everything. */
  readByLane(target: Uint8Array, offset: number): Promise<void>;
}

export function createSlowImage(sizeBytes: number, turns: Turns): SlowImage {
  const bytes = new Uint8Array(sizeBytes);
  const bySectors = async (offset: number, length: number, each: (start: number, end: number) => void) => {
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(at - (at % sectorBytes) + sectorBytes * 8, offset + length);
      if (turns.pick(3) === 0) await turns.wait();
      each(at, end);
      at = end;
    }
  };
  const read = (target: Uint8Array, offset: number): Promise<void> =>
    bySectors(offset, target.length, (start, end) => target.set(bytes.subarray(start, end), start - offset));
  return {
    ...{ bytes, sizeBytes, sectorBytes },
    read,
    readByLane: read,
    write: (source, offset) =>
      bySectors(offset, source.length, (start, end) => bytes.set(source.subarray(start - offset, end - offset), start)),
    zero: (offset, length) => bySectors(offset, length, (start, end) => bytes.fill(0, start, end)),
    async *extents(offset, length) {
      for (let at = offset; at < offset + length; ) {
        const end = Math.min(at - (at % sectorBytes) + sectorBytes, offset + length);
        const kind = bytes.subarray(at, end).every((byte) => byte === 0) ? "hole" : "data";
        yield { kind, offset: at, length: end - at };
        if (turns.pick(20) === 0) await turns.wait();
        at = end;
      }
    },
    runs: (offset, length) => [{ kind: "file", fd: 0, offset, length }],
    flush: () => turns.wait(),
    async close() {},
  };
}

export interface TrackedWorld {
  readonly image: SlowImage;
  readonly tracked: TrackedImage;
  readonly process: SimulatedProcess;
}

export async function createTracked(
  sizeBytes: number,
  turns: Turns,
  options: Partial<Pick<TrackedImageOptions, "openSpill" | "spillSpace" | "spillMemoryBytes" | "spillBytesMax">> = {},
): Promise<TrackedWorld> {
  const process = createSimulatedDisk().start();
  await process.makeDirectory("/images");
  const { journal } = await openJournal({
    ...{ storage: process, path: "/images/vm.rbj", sizeBytes, blockBytes, kind: "file" },
    image: async () => ({ sizeBytes, device: "1", inode: "1", changedNanos: 1n, dataWriteGuid: undefined }),
    clock: createFakeClock(),
    random: createTestRandom(1),
    hotRegionsMax: 4,
  });
  const image = createSlowImage(sizeBytes, turns);
  const openSpill = () => process.open("/images/spill", { write: true, create: true, truncate: true });
  return { image, process, tracked: new TrackedImage({ image, journal, openSpill, ...options }) };
}
