/** A sender and a receiver in one process: linked connections, inline lanes, a real store in a temporary folder. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { type Logger, silentLogger } from "../../src/base/logger.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import { type NewDisks, openStore, type Store } from "../../src/replica/store.ts";
import { createEngine, type Engine } from "../../src/replication/engine.ts";
import { createReceiver, type Receiver, type ReceiverOptions } from "../../src/replication/receiver.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { createSender, type SenderOptions } from "../../src/replication/sender.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";

/** Waits pass at once, nothing repeats: what is tested here depends on no time. */
export const hastyClock: Clock = {
  now: () => systemClock.now(),
  monotonic: () => systemClock.monotonic(),
  sleep: (_millis, signal) =>
    new Promise((resolve, reject) => {
      setImmediate(() => {
        if (signal?.aborted === true) reject(signal.reason);
        else resolve();
      });
    }),
  every: () => () => {},
};

export type SendOptions = Partial<SenderOptions> & {
  /** Called with each connection before it is used. */
  readonly onPair?: (pair: LinkedPair, attempt: number) => void;
  /** Name in the sender's certificate. */
  readonly identity?: string;
};

export interface KitOptions {
  /** Stands between the receiver and its lanes. */
  readonly receiverLanes?: (lanes: Lanes) => Lanes;
  /** Stands between the receiver, its lanes and its store, and the files. */
  readonly receiverStorage?: (storage: Storage) => Storage;
  readonly receiverLog?: Logger;
  /** What replicas of new disks are; default raw images. */
  readonly newDisks?: NewDisks;
  /** Free space the receiver's store keeps; default 0. */
  readonly reserveBytes?: number;
  readonly receiver?: Pick<ReceiverOptions, "perIdentity" | "whenFull"> &
    Partial<Pick<ReceiverOptions, "authorize" | "clock">>;
}

export class PairKit {
  readonly folder: string;
  readonly sending: Engine;
  readonly receiving: Engine;
  readonly store: Store;
  readonly receiver: Receiver;

  private constructor(
    sending: Engine,
    receiving: Engine,
    { store, folder, options }: { readonly store: Store; readonly folder: string; readonly options: KitOptions },
  ) {
    this.folder = folder;
    this.sending = sending;
    this.receiving = receiving;
    this.store = store;
    this.receiver = createReceiver({
      store,
      ...{ pool: receiving.pool, clock: hastyClock, random: receiving.random },
      lanes: options.receiverLanes?.(receiving.lanes) ?? receiving.lanes,
      log: options.receiverLog ?? silentLogger,
      authorize: () => undefined,
      software: "test",
      codecs: receiving.codecs,
      ...options.receiver,
    });
  }

  static async create(options: KitOptions = {}): Promise<PairKit> {
    const folder = mkdtempSync(join(tmpdir(), "replicate-pair-"));
    const engine = { lanes: 0, poolBytes: 24 * 2 ** 20, clock: hastyClock };
    const sending = await createEngine(engine);
    const wrapped = options.receiverStorage?.(createNodeStorage());
    const receiving = await createEngine({ ...engine, ...(wrapped === undefined ? {} : { storage: wrapped }) });
    const { storage, random, host } = receiving;
    const path = join(folder, "store");
    const store = await openStore({
      path,
      storage,
      clock: hastyClock,
      random,
      log: silentLogger,
      create: true,
      host,
      reserveBytes: options.reserveBytes ?? 0,
      newDisks: options.newDisks,
    });
    return new PairKit(sending, receiving, { store, folder, options });
  }

  /** Sends the image to disk `disk` and resolves with the report. */
  send(reader: BlockReader, options: SendOptions = {}): Promise<SendReport> {
    return this.sendUntil(new AbortController().signal, reader, options);
  }

  async sendUntil(signal: AbortSignal, reader: BlockReader, options: SendOptions = {}): Promise<SendReport> {
    const { onPair, identity, ...rest } = options;
    let attempt = 0;
    const { lanes, pool, random, codecs } = this.sending;
    const sender = createSender({
      source: { reader, name: "image", identity: "image-1" },
      disk: "disk",
      instance: "instance-1",
      software: "test",
      ...{ lanes, pool, random, codecs },
      clock: hastyClock,
      log: silentLogger,
      connect: () => {
        const pair = createLinkedPair({ clock: hastyClock, client: identity === undefined ? {} : { name: identity } });
        onPair?.(pair, attempt++);
        this.receiver.accept(pair.server);
        return Promise.resolve(pair.client);
      },
      ...rest,
    });
    return await sender.run(signal);
  }

  /** Resolves when the receiver has no session left: then what is on disk stays as it is. */
  async idle(): Promise<void> {
    while (this.receiver.sessions > 0) await new Promise((resolve) => setImmediate(resolve));
  }

  replica(disk = "disk"): Buffer {
    return readFileSync(join(this.folder, "store/disks", disk, "replica.raw"));
  }

  /** Ends everything; true when every slot of both pools is back. */
  async close(): Promise<boolean> {
    await this.receiver.close();
    await this.store.close();
    await this.sending.close();
    await this.receiving.close();
    rmSync(this.folder, { recursive: true, force: true });
    return [this.sending, this.receiving].every(({ pool }) => pool.free === pool.slotCount);
  }
}
