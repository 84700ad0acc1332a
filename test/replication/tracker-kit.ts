/** A tracker and a receiver in one process: a tracked image in memory, its journal on a simulated disk, cycles over linked connections. */
import { expect } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Quiescing } from "../../src/replication/quiescing.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { createSender, type Sender, type SendSource } from "../../src/replication/sender.ts";
import { TrackedSender } from "../../src/replication/tracked-sender.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { leastAuditShareOf } from "../../src/track/belief.ts";
import { openJournal } from "../../src/track/journal/open.ts";
import { openKnownStates } from "../../src/track/known-state.ts";
import { TrackedImage } from "../../src/track/tracked-image.ts";
import { randomBytes } from "../random.ts";
import { createTestRandom } from "../replica/simulated-store.ts";
import { hastyClock, type PairKit } from "./pair-kit.ts";

export const sizeBytes = 100 * MIB + 1_536;
export const statePath = "/images/vm.rbk";

/** A process that tracks; several one after the other share the image and the folder. */
export class Tracker {
  readonly #kit: PairKit;
  readonly disk = createSimulatedDisk();
  readonly memory: BlockWriter = createMemoryImage(sizeBytes);
  passBytes: number | undefined;
  /** Of a disk that is new at the receiver. */
  blockBytes: number | undefined;
  #opens = 0;
  image!: TrackedImage;
  sender!: TrackedSender;
  onPair: (pair: LinkedPair) => void | Promise<void> = () => undefined;
  auditShare = 0;
  kind: "file" | "device" = "file";
  quiescing: Quiescing | undefined;

  constructor(kit: PairKit) {
    this.#kit = kit;
  }

  async cycle(signal?: AbortSignal): Promise<SendReport> {
    const [report] = await this.sender.cycle(signal);
    if (report === undefined) throw new Error("a report for each disk");
    return report;
  }

  async start(blockBytes = 64 * KIB, spillMemoryBytes?: number): Promise<string> {
    const storage = this.disk.start();
    await storage.makeDirectory("/images");
    const { journal, belief } = await openJournal({
      ...{ storage, path: "/images/vm.rbj", sizeBytes, blockBytes, kind: this.kind },
      image: async () => ({ sizeBytes, device: "1", inode: "1", changedNanos: 1n, dataWriteGuid: undefined }),
      clock: hastyClock,
      random: createTestRandom(++this.#opens),
    });
    const leastAuditShare = leastAuditShareOf(belief);
    this.image = new TrackedImage({ image: this.memory, journal, spillMemoryBytes, leastAuditShare });
    this.sender = new TrackedSender({
      disks: [
        {
          ...{ image: this.image, name: "vm", identity: "vm-1" },
          states: await openKnownStates(storage, statePath, { sync: true }),
        },
      ],
      ...{ clock: hastyClock, random: createTestRandom(this.#opens), log: silentLogger },
      auditShare: this.auditShare,
      quiescing: this.quiescing,
      passBytes: this.passBytes,
      createPass: (source) => this.#createSender(source, { isPass: true }),
      createSend: ([source], how) => {
        if (source === undefined) throw new Error("a source");
        const sender = this.#createSender(source, how);
        return { run: async (signal) => [await sender.run(signal)] };
      },
    });
    return belief.kind;
  }

  #createSender(
    source: SendSource,
    how: { readonly isPass?: boolean; readonly consistency?: "crash" | "application" },
  ): Sender {
    const { lanes, pool, random, codecs } = this.#kit.sending;
    return createSender({
      ...{ source, disk: "disk", instance: "vm-1", software: "test", lanes, pool, random, codecs },
      ...{ clock: hastyClock, log: silentLogger },
      ...{ blockBytes: this.blockBytes, ...how },
      connect: async () => {
        const pair = createLinkedPair({ clock: hastyClock });
        await this.onPair(pair);
        this.#kit.receiver.accept(pair.server);
        return pair.client;
      },
    });
  }

  async stop(): Promise<void> {
    await this.image.journal.close();
  }

  write(offset: number, length: number): Promise<void> {
    return this.image.write(randomBytes(length), offset);
  }

  async expectReplica(): Promise<void> {
    await this.#kit.idle();
    const bytes = new Uint8Array(sizeBytes);
    await this.memory.read(bytes, 0);
    expect(Buffer.compare(this.#kit.replica(), bytes)).toBe(0);
  }
}

/** One that has made its first point. */
export async function filled(kit: PairKit): Promise<Tracker> {
  const tracker = new Tracker(kit);
  await tracker.start();
  for (const at of [0, 40, 99]) await tracker.write(at * MIB, MIB);
  const report = await tracker.cycle();
  expect(report).toMatchObject({ reason: "initial", point: 1, created: true });
  await tracker.expectReplica();
  return tracker;
}
