/** What all sessions of a process share: block memory, lanes, files, clock, chance. */
import { availableParallelism, hostname } from "node:os";
import { type BufferPool, createBufferPool } from "../base/buffer-pool.ts";
import { type Clock, systemClock } from "../base/clock.ts";
import { limits } from "../base/limits.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { type Random, systemRandom } from "../base/random.ts";
import type { CodecName } from "../codec/compression.ts";
import { createLane, laneRoomBytes } from "../lanes/lane.ts";
import { createInlineLanes, type Lanes } from "../lanes/lanes.ts";
import { slotBytes, slotsFor } from "../lanes/slot-layout.ts";
import { createWorkerLanes } from "../lanes/worker-lanes.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";

export interface EngineOptions {
  /** Shared memory for blocks, whatever the number and size of disks; default 96 MiB. Touched only as it is used. */
  readonly poolBytes?: number;
  /** Worker threads; default one a core, at most 4. 0: everything in the calling thread. */
  readonly lanes?: number;
  /** `wasm`: the slower lz4 that needs no native module. Default: native where it was built. */
  readonly lz4?: "native" | "wasm" | undefined;
  readonly log?: Logger;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly storage?: Storage;
}

export interface Engine {
  readonly pool: BufferPool;
  readonly lanes: Lanes;
  readonly codecs: readonly CodecName[];
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly host: string;
  /** Waits for jobs under way and ends the lanes. After the last sender and receiver have ended. */
  close(): Promise<void>;
}

export async function createEngine(options: EngineOptions = {}): Promise<Engine> {
  const log = options.log ?? silentLogger;
  const storage = options.storage ?? createNodeStorage();
  const count = options.lanes ?? Math.min(4, availableParallelism());
  const pool = createBufferPool({
    slotBytes,
    slotCount: slotsFor(options.poolBytes ?? limits.poolBytesDefault),
    extraBytes: (count + 1) * laneRoomBytes,
  });
  const { memory, extraAt: roomAt } = pool;
  const { lz4 } = options;
  const inline = await createLane({ memory, roomAt, storage: storage.lanes, lz4 });
  const lanes =
    count === 0
      ? createInlineLanes(inline)
      : createWorkerLanes({ count, memory, roomAt: roomAt + laneRoomBytes, lz4: inline.codecs.lz4 });
  if (inline.codecs.lz4 === "wasm" && lz4 !== "wasm") {
    log.warn({}, "the native lz4 module was not built; using the slower WebAssembly one");
  }
  if (storage.capabilities.missing !== undefined) log.warn({}, storage.capabilities.missing);
  return {
    pool,
    lanes,
    codecs: inline.codecs.names,
    storage,
    clock: options.clock ?? systemClock,
    random: options.random ?? systemRandom,
    log,
    host: hostname(),
    close: () => lanes.close(),
  };
}
