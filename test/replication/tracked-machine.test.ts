/** Two tracked images that are cut at one moment: doubt about one of them costs the other nothing. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { toReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createMachineSender } from "../../src/replication/machine.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { createSender } from "../../src/replication/sender.ts";
import { TrackedSender } from "../../src/replication/tracked-sender.ts";
import { createLinkedPair } from "../../src/testing/linked-pair.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { openJournal } from "../../src/track/journal/open.ts";
import { openKnownStates } from "../../src/track/known-state.ts";
import { TrackedImage } from "../../src/track/tracked-image.ts";
import { randomBytes } from "../random.ts";
import { createTestRandom } from "../replica/simulated-store.ts";
import { keepLog } from "../transport/kit.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

const sizeBytes = 40 * MIB;
const names = ["first", "second"];

let kit: PairKit;

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
});

class Machine {
  readonly log = keepLog();
  readonly #storage = createSimulatedDisk().start();
  readonly #random = createTestRandom(1);
  readonly #memories: readonly BlockWriter[] = names.map(() => createMemoryImage(sizeBytes));
  images: readonly TrackedImage[] = [];
  #sender!: TrackedSender;
  /** Of the second disk more must be read than is known to have changed: nothing of the first is half done when the cut comes to nothing. */
  secondFails = false;
  /** Sends that were begun, those that came to nothing among them. */
  sends = 0;
  /** Of the last one, of each disk: all of it can be read as it was, which has old content of whatever is written kept. */
  complete: readonly unknown[] = [];

  async start(): Promise<void> {
    await this.#storage.makeDirectory("/images");
    const random = this.#random;
    const disks = await Promise.all(
      this.#memories.map(async (image, nth) => {
        const name = names[nth] ?? "";
        const { journal } = await openJournal({
          ...{ storage: this.#storage, path: `/images/${name}.rbj`, sizeBytes, blockBytes: 64 * KIB, kind: "file" },
          image: async () => ({ sizeBytes, device: "1", inode: name, changedNanos: 1n, dataWriteGuid: undefined }),
          ...{ clock: hastyClock, random, log: silentLogger },
        });
        const states = await openKnownStates(this.#storage, `/images/${name}.rbk`, { sync: true });
        return { image: new TrackedImage({ image, journal }), name, identity: name, states };
      }),
    );
    this.images = disks.map(({ image }) => image);
    const { lanes, pool, codecs } = kit.sending;
    const common = { lanes, pool, codecs, random, clock: hastyClock, log: silentLogger };
    this.#sender = new TrackedSender({
      ...{ disks, random, clock: hastyClock, log: this.log },
      createPass: () => {
        throw new Error("little is to be sent");
      },
      createSend: (sources) => {
        this.sends++;
        this.complete = sources.map(({ changes }) => changes?.complete);
        const waits = this.secondFails && this.complete[1] === false;
        const machine = createMachineSender({
          disks: sources.map((source) => ({ disk: source.name, source })),
          createSender: ({ disk, source }, cut) =>
            createSender({
              ...{ ...common, source, disk, cut, instance: "vm", software: "test" },
              connect: async (signal) => {
                if (waits && disk === "first") await aborted(signal);
                const pair = createLinkedPair({ clock: hastyClock });
                kit.receiver.accept(pair.server);
                return pair.client;
              },
            }),
          ...{ clock: hastyClock, random, log: silentLogger },
        });
        return { run: async (signal) => (await machine.run(signal)).disks };
      },
    });
  }

  async stop(): Promise<void> {
    for (const { journal } of this.images) await journal.close();
  }

  async forget(name: string): Promise<void> {
    await this.#storage.unlink(`/images/${name}.rbk`);
  }

  /** Writes something to each image. */
  async write(): Promise<void> {
    for (const image of this.images) await image.write(randomBytes(4_096), 9 * MIB);
  }

  /** Its reports; the replicas are equal then, and the points are of one cut. */
  async cycle(): Promise<readonly SendReport[]> {
    const reports = await this.#sender.cycle();
    await kit.idle();
    for (const [nth, memory] of this.#memories.entries()) {
      const bytes = new Uint8Array(sizeBytes);
      await memory.read(bytes, 0);
      expect(Buffer.compare(kit.replica(names[nth]), bytes), names[nth]).toBe(0);
    }
    return reports;
  }
}

/** Rejects when it is. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener("abort", () => {
      reject(toReplicationError(signal.reason));
    });
  });
}

/** One that has made its first points. */
async function filled(): Promise<Machine> {
  const machine = new Machine();
  await machine.start();
  for (const image of machine.images) await image.write(randomBytes(4 * MIB), 8 * MIB);
  await machine.cycle();
  await machine.write();
  const reports = await machine.cycle();
  expect(reports.map(({ reason }) => reason)).toEqual(["bitmap", "bitmap"]);
  expect(machine.sends).toBe(2);
  return machine;
}

/** `resume`: the cut that came to nothing had begun to change the replica. */
const compared = expect.stringMatching(/^(scan|resume|resync:base-mismatch)$/) as unknown;

/** The second disk is compared; of the first what changed is read, and can be. */
function expectOne(machine: Machine, [first, second]: readonly SendReport[]): void {
  expect([first?.reason, second?.reason]).toEqual(["bitmap", compared]);
  expect(machine.complete).toEqual([false, true]);
  expect(first?.funnel.readBytes).toBe(64 * KIB);
  expect(second?.funnel.readBytes).toBeGreaterThanOrEqual(4 * MIB);
}

test("of one nothing is known: it is compared, with the first cut", async () => {
  const machine = await filled();
  await machine.stop();
  await machine.forget("second");
  await machine.start();
  await machine.write();
  expectOne(machine, await machine.cycle());
  expect(machine.sends).toBe(3);
  await machine.write();
  expect((await machine.cycle()).map(({ reason }) => reason)).toEqual(["bitmap", "bitmap"]);
  await machine.stop();
});

test("of one the receiver has another state: it is compared, with a second cut", async () => {
  const machine = await filled();
  machine.secondFails = true;
  const other = createMemoryImage(sizeBytes);
  await other.write(randomBytes(MIB), 20 * MIB);
  await kit.send(other, { disk: "second", source: { reader: other, name: "second", identity: "second" } });
  await kit.idle();
  await machine.write();
  expectOne(machine, await machine.cycle());
  expect(machine.sends).toBe(4);
  await machine.stop();
});

test("C-32 all of one is looked at in cycle after cycle: it is told from the second on", async () => {
  const machine = await filled();
  machine.secondFails = true;
  for (const inARow of [1, 2, 3]) {
    const other = createMemoryImage(sizeBytes);
    await other.write(randomBytes(MIB), 20 * MIB);
    await kit.send(other, { disk: "second", source: { reader: other, name: "second", identity: "second" } });
    await kit.idle();
    await machine.write();
    expectOne(machine, await machine.cycle());
    expect(machine.log.at("warn")).toHaveLength(inARow - 1);
  }
  const told = machine.log.lines.filter(({ level }) => level === "warn");
  expect(told.map(({ fields }) => fields)).toEqual(
    [2, 3].map((inARow) => ({ disk: "second", reason: compared, inARow })),
  );
  expect(told[0]?.message).toMatch(/^second: it was compared with the receiver in 2 cycles in a row/);
  machine.secondFails = false;
  await machine.write();
  await machine.cycle();
  expect(machine.log.at("warn")).toHaveLength(2);
  await machine.stop();
});

test("of both the receiver has another state", async () => {
  const machine = await filled();
  for (const name of names) {
    const other = createMemoryImage(sizeBytes);
    await other.write(randomBytes(MIB), 20 * MIB);
    await kit.send(other, { disk: name, source: { reader: other, name, identity: name } });
  }
  await kit.idle();
  await machine.write();
  expect((await machine.cycle()).map(({ reason }) => reason)).toEqual([compared, compared]);
  expect(machine.sends).toBeLessThanOrEqual(5);
  await machine.stop();
});
