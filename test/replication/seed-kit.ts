/** Seeds on a simulated disk: `/usb` is the portable disk, `/store` the receiver's store. */
import { expect } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { openStore, type Store } from "../../src/replica/store.ts";
import { createEngine, type Engine } from "../../src/replication/engine.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { createSeedTarget } from "../../src/replication/seed/export.ts";
import { type ImportOptions, type ImportReport, importSeed } from "../../src/replication/seed/import.ts";
import { createSender, type SenderOptions } from "../../src/replication/sender.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { randomBytes } from "../random.ts";
import { hastyClock } from "./pair-kit.ts";

export const usb = "/usb";
export const storePath = "/store";
export const blockBytes = 16 * KIB;

/** An image of 41 blocks, the last one short: noise, text, single parts, holes. */
export async function makeSource(bytes = 40 * blockBytes + 5_000): Promise<ReturnType<typeof createMemoryImage>> {
  const image = createMemoryImage(bytes);
  await image.write(randomBytes(5 * blockBytes), 0);
  await image.write(Buffer.alloc(3 * blockBytes, "text "), 8 * blockBytes);
  for (let block = 20; block < 36; block += 3) await image.write(randomBytes(4 * KIB), block * blockBytes + 8 * KIB);
  await image.write(randomBytes(3_000), bytes - 3_000);
  return image;
}

export function engineOn(storage: Storage): Promise<Engine> {
  return createEngine({ storage, lanes: 0, poolBytes: 12 * 2 ** 20, clock: hastyClock });
}

export interface ExportOptions extends Partial<SenderOptions> {
  readonly directory?: string;
  readonly partBytes?: number;
  readonly overwrite?: boolean;
  readonly signal?: AbortSignal;
}

/** Sends an image to `/usb` in parts of 64 KiB. */
export async function exportSeed(
  storage: Storage,
  reader: BlockReader,
  options: ExportOptions = {},
): Promise<SendReport> {
  const { directory = usb, partBytes = 64 * KIB, overwrite, signal, ...rest } = options;
  const engine = await engineOn(storage);
  const { lanes, pool, random, codecs } = engine;
  const target = createSeedTarget({
    ...{ storage, directory, partBytes, overwrite, clock: hastyClock, log: silentLogger },
    ...{ codecs: ["stored", "lz4", "deflate"], software: "test" },
  });
  try {
    const sender = createSender({
      source: { reader, name: "image", identity: "image-1" },
      ...{ disk: "disk", instance: "instance-1", software: "test", lanes, pool, random, codecs, blockBytes },
      ...{ clock: hastyClock, log: silentLogger, connect: target.connect, attemptsMax: 1 },
      ...rest,
    });
    return await sender.run(signal);
  } finally {
    await target.settled();
    await engine.close();
  }
}

export function openSeedStore(storage: Storage, engine: Engine, path = storePath): Promise<Store> {
  const { random, host } = engine;
  return openStore({
    ...{ path, storage, random, host, clock: hastyClock, log: silentLogger },
    ...{ create: true, reserveBytes: 0 },
  });
}

/** Applies what is in `/usb` to `/store`. Every slot is back when it returns. */
export async function applySeed(
  storage: Storage,
  options: Partial<ImportOptions> & { readonly path?: string } = {},
): Promise<ImportReport> {
  const engine = await engineOn(storage);
  const { lanes, pool, random, codecs } = engine;
  try {
    const store = await openSeedStore(storage, engine, options.path);
    return await importSeed({
      ...{ store, storage, lanes, pool, random, codecs, clock: hastyClock, log: silentLogger },
      ...{ software: "test", directory: usb, owner: "web" },
      ...options,
    });
  } finally {
    await engine.close();
    expect(pool.free).toBe(pool.slotCount);
  }
}

/** All of an image. */
export async function bytesOf(reader: BlockReader): Promise<Buffer> {
  const bytes = Buffer.alloc(reader.sizeBytes);
  await reader.read(bytes, 0);
  return bytes;
}
