/** A tracked image under a load like a database's: what a cycle costs in bytes, and that no write is lost while cycles come one after the other. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB, PART_BYTES } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { createSender } from "../../src/replication/sender.ts";
import { TrackedSender } from "../../src/replication/tracked-sender.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { openJournal } from "../../src/track/journal/open.ts";
import { openKnownStates } from "../../src/track/known-state.ts";
import { TrackedImage } from "../../src/track/tracked-image.ts";
import { createChance, createTestRandom } from "../replica/simulated-store.ts";
import { randomBytes } from "../random.ts";
import { watchRejections } from "./checks.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

/** An image in memory and its tracker, whose journal lies on a simulated disk. */
class Load {
  readonly sizeBytes: number;
  readonly image: TrackedImage;
  onPair: (pair: LinkedPair) => void = () => undefined;
  readonly #sender: TrackedSender;
  readonly #chance: () => number;

  private constructor(image: TrackedImage, states: Awaited<ReturnType<typeof openKnownStates>>, seed: number) {
    this.sizeBytes = image.sizeBytes;
    this.image = image;
    this.#chance = createChance(seed);
    this.#sender = new TrackedSender({
      disks: [{ image, name: "db", identity: "db-1", states }],
      ...{ clock: hastyClock, random: createTestRandom(seed), log: silentLogger },
      createPass: () => {
        throw new Error("an image this small is cut at once");
      },
      createSend: ([source], { consistency }) => {
        if (source === undefined) throw new Error("a source");
        const { lanes, pool, random, codecs } = kit.sending;
        const sender = createSender({
          source,
          ...{ disk: "disk", instance: "db-1", software: "test", lanes, pool, random, codecs, consistency },
          ...{ clock: hastyClock, log: silentLogger },
          connect: () => {
            const pair = createLinkedPair({ clock: hastyClock });
            this.onPair(pair);
            kit.receiver.accept(pair.server);
            return Promise.resolve(pair.client);
          },
        });
        return { run: async (signal) => [await sender.run(signal)] };
      },
    });
  }

  static async start(sizeBytes: number, seed: number): Promise<Load> {
    const storage = createSimulatedDisk().start();
    await storage.makeDirectory("/images");
    const { journal } = await openJournal({
      ...{ storage, path: "/images/db.rbj", sizeBytes, blockBytes: 64 * KIB, kind: "file" },
      image: async () => ({ sizeBytes, device: "1", inode: "1", changedNanos: 1n, dataWriteGuid: undefined }),
      clock: hastyClock,
      random: createTestRandom(seed),
    });
    const states = await openKnownStates(storage, "/images/db.rbk", { sync: true });
    return new Load(new TrackedImage({ image: createMemoryImage(sizeBytes), journal }), states, seed);
  }

  /** From 0 to `end` - 1. */
  below(end: number): number {
    return Math.floor(this.#chance() * end);
  }

  /** Pages of 4 to 16 KiB at places of chance, each written anew. */
  async write(writes: number): Promise<void> {
    for (let nth = 0; nth < writes; nth++) {
      const length = [4, 8, 16][this.below(3)] ?? 4;
      await this.image.write(randomBytes(length * KIB), this.below(this.sizeBytes / (length * KIB)) * length * KIB);
    }
  }

  async cycle(): Promise<SendReport> {
    const [report] = await this.#sender.cycle();
    if (report === undefined) throw new Error("a report for each disk");
    return report;
  }

  async bytes(): Promise<Buffer> {
    const bytes = Buffer.alloc(this.sizeBytes);
    await this.image.read(bytes, 0);
    return bytes;
  }

  async expectReplica(what: string): Promise<void> {
    await kit.idle();
    expect(Buffer.compare(kit.replica(), await this.bytes()), what).toBe(0);
  }
}

/** Of the undo logs of the disk. */
function undoBytes(): number {
  const points = join(kit.folder, "store/disks/disk/points");
  const logs = readdirSync(points).filter((name) => name.endsWith(".undo"));
  return logs.reduce((sum, name) => sum + statSync(join(points, name)).size, 0);
}

function changedParts(before: Buffer, after: Buffer): number {
  let parts = 0;
  for (let at = 0; at < after.length; at += PART_BYTES) {
    if (before.compare(after, at, at + PART_BYTES, at, at + PART_BYTES) !== 0) parts++;
  }
  return parts;
}

test("wire and undo of a cycle are at most 1.3 times the parts that changed", async () => {
  const load = await Load.start(32 * MIB, 1);
  for (let at = 0; at < load.sizeBytes; at += MIB) await load.image.write(randomBytes(MIB), at);
  await load.cycle();
  await kit.idle();
  let before = await load.bytes();
  for (const writes of [60, 120, 250, 500]) {
    await load.write(writes);
    const undo = undoBytes();
    const { reason, funnel } = await load.cycle();
    await load.expectReplica(`${writes} writes`);
    const after = await load.bytes();
    const bytes = changedParts(before, after) * PART_BYTES;
    before = after;
    expect(reason).toBe("bitmap");
    // What a guest writes can hardly be compressed: less than that could not do.
    expect(bytes).toBeGreaterThan(writes * 4 * KIB);
    expect(funnel.shippedBytes).toBe(bytes);
    expect(funnel.wireBytes).toBeGreaterThanOrEqual(bytes);
    expect(funnel.wireBytes / bytes, `wire of ${writes} writes`).toBeLessThanOrEqual(1.3);
    expect(undoBytes() - undo).toBeGreaterThanOrEqual(bytes);
    expect((undoBytes() - undo) / bytes, `undo of ${writes} writes`).toBeLessThanOrEqual(1.3);
  }
  await load.image.journal.close();
});

test("C-26: a writer goes on through 100 cycles, some of which come to nothing: whenever it pauses the replica is its image", async () => {
  const load = await Load.start(2 * MIB + 512, 26);
  let [made, failed] = [0, 0];
  for (let cycle = 0; cycle < 100; cycle++) {
    // Its bits are set while those of the cycle are taken out of the way, read, and dropped or merged back.
    const writing = load.write(1 + load.below(8));
    const cut = load.below(6) === 0;
    load.onPair = (pair) => {
      if (cut) pair.toServer.cutAfter(2_000 + load.below(60_000));
    };
    try {
      await load.cycle();
      made++;
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      failed++;
    }
    await writing;
    if (cycle % 10 !== 9) continue;
    load.onPair = () => undefined;
    await load.cycle();
    await load.expectReplica(`after cycle ${cycle}`);
  }
  expect(made).toBeGreaterThan(75);
  expect(failed).toBeGreaterThan(1);
  await load.image.journal.close();
});
