/** What all sessions of a process share: block memory, lanes, files, clock, chance. */
import { availableParallelism, hostname } from "node:os";
import { type BufferPool, createBufferPool } from "../base/buffer-pool.ts";
import { type Clock, systemClock } from "../base/clock.ts";
import { limits } from "../base/limits.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { type Random, systemRandom } from "../base/random.ts";
import { availableCodecs } from "../codec/available-codecs.ts";
import type { CodecName } from "../codec/compression.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { laneRoomBytes, slotBytes, slotsFor } from "../lanes/slot-layout.ts";
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
    extraBytes: Math.max(count, 1) * laneRoomBytes,
  });
  const lanes = await createLanes({ count, pool, storage, lz4: options.lz4, log });
  if (storage.capabilities.missing !== undefined) log.warn({}, storage.capabilities.missing);
  return {
    pool,
    lanes,
    codecs: availableCodecs(),
    storage,
    clock: options.clock ?? systemClock,
    random: options.random ?? systemRandom,
    log,
    host: hostname(),
    close: () => lanes.close(),
  };
}

async function createLanes(options: {
  readonly count: number;
  readonly pool: BufferPool;
  readonly storage: Storage;
  readonly lz4: EngineOptions["lz4"];
  readonly log: Logger;
}): Promise<Lanes> {
  const { count, storage, lz4, log } = options;
  const { memory, extraAt: roomAt } = options.pool;
  const onReady = (used: "native" | "wasm"): void => {
    if (used === "wasm" && lz4 !== "wasm") {
      log.warn({}, "the native lz4 module was not built; using the slower WebAssembly one");
    }
  };
  if (count > 0) return createWorkerLanes({ count, memory, roomAt, lz4, onReady });
  // Only here: a program whose lanes are threads need not wait until codecs and digests are loaded in its own.
  const [{ createLane }, { createInlineLanes }] = await Promise.all([
    import("../lanes/lane.ts"),
    import("../lanes/inline-lanes.ts"),
  ]);
  const lane = await createLane({ memory, roomAt, storage: storage.lanes, lz4 });
  onReady(lane.codecs.lz4);
  return createInlineLanes(lane);
}
