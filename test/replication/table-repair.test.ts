/** A digest table in doubt or damaged: made true again by reading the replica, while the session lasts. */
import { closeSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { createBufferPool } from "../../src/base/buffer-pool.ts";
import { digestBytes, KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { JobTypes, ScanRequest } from "../../src/lanes/jobs.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import { slotBytes } from "../../src/lanes/slot-layout.ts";
import { tableCheckMillis } from "../../src/replication/table-checks.ts";
import { rebuildTable } from "../../src/replication/rebuild.ts";
import type { DigestTable } from "../../src/table/digest-table.ts";
import { createLinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { EndByHand, helloMessage, turns, until } from "./by-hand.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

const rejections = watchRejections();

describe("rebuild", () => {
  const geometry = { sizeBytes: 8 * MIB + 5_000, blockBytes: 64 * KIB, digestKind: "xxh64" } as const;

  /** Lanes whose scans settle when they are told. */
  function heldLanes(): {
    readonly lanes: Lanes;
    readonly held: { request: ScanRequest; settle: (error?: Error) => void }[];
  } {
    const held: { request: ScanRequest; settle: (error?: Error) => void }[] = [];
    const run = (_name: string, request: unknown): Promise<JobTypes["scan"]["result"]> =>
      new Promise((resolve, reject) => {
        const { pieces, blockBytes } = request as ScanRequest;
        const length = pieces[0]?.length ?? 0;
        const count = Math.ceil(length / blockBytes);
        const result = { digests: new Uint8Array(count * 8).fill(7), states: new Uint8Array(count) };
        held.push({
          request: request as ScanRequest,
          settle: (error) => {
            if (error === undefined) resolve({ ...result, parts: new Uint8Array(0), shipment: undefined });
            else reject(error);
          },
        });
      });
    return { lanes: { count: 1, run: run as Lanes["run"], close: () => Promise.resolve() }, held };
  }

  function start(signal: AbortSignal): {
    readonly held: { request: ScanRequest; settle: (error?: Error) => void }[];
    readonly set: [number, number][];
    readonly done: Promise<string>;
  } {
    const { lanes, held } = heldLanes();
    const set: [number, number][] = [];
    const pool = createBufferPool({ slotBytes, slotCount: 2 });
    const slots = [pool.tryAcquire(), pool.tryAcquire()].filter((slot) => slot !== undefined);
    const table = {
      clear: () => {},
      set: (first: number, count: number) => void set.push([first, count]),
    } as unknown as DigestTable;
    const done = rebuildTable(
      {
        ...{
          disk: "disk",
          geometry,
          runs: (offset, length) => [{ kind: "file", fd: 1, offset, length }],
          table,
          lanes,
          slots,
          signal,
        },
        nextData: (offset) => (offset < geometry.sizeBytes ? { start: offset, end: geometry.sizeBytes } : undefined),
      },
      0,
      1,
    ).then(
      () => "done",
      (error: unknown) => (error instanceof ReplicationError ? error.code : String(error)),
    );
    return { held, set, done };
  }

  test("reads every block once, in as many slots as it has", async () => {
    const { held, set, done } = start(new AbortController().signal);
    const seen: number[] = [];
    while (seen.length < 9) {
      await turns(1);
      expect(held.length).toBeLessThanOrEqual(2);
      const { request, settle } = held.shift() ?? { request: undefined, settle: () => {} };
      if (request === undefined) continue;
      const [piece] = request.pieces;
      const [run] = piece?.runs ?? [];
      const offset = run?.kind === "file" ? run.offset : -1;
      seen.push(offset);
      expect(piece?.length).toBe(offset === 8 * MIB ? 5_000 : MIB);
      settle();
    }
    expect(await done).toBe("done");
    expect(seen).toEqual(Array.from({ length: 9 }, (_unused, index) => index * MIB));
    expect(set.reduce((sum, [, count]) => sum + count, 0)).toBe(129);
  });

  test.each(["stopped", "a job failed"])("%s: returns when no job holds a slot any more", async (how) => {
    const stop = new AbortController();
    const { held, done } = start(stop.signal);
    await turns(1);
    expect(held.length).toBe(2);
    let returned = false;
    void done.then(() => {
      returned = true;
    });
    if (how === "stopped") stop.abort(new ReplicationError("connection-lost", "gone"));
    held[0]?.settle(how === "stopped" ? undefined : new ReplicationError("image-unreadable", "EIO"));
    // What comes next is let go on, except one job.
    for (let round = 0; round < 20; round++) {
      await turns(1);
      for (const job of held.splice(2)) job.settle();
    }
    expect(returned).toBe(false);
    for (const job of held) job.settle();
    await until(() => {
      for (const job of held) job.settle();
      return returned;
    });
    expect(await done).toBe(how === "stopped" ? "done" : "image-unreadable");
  });

  test("stopped between two pages: waits for the jobs of the page before", async () => {
    const { lanes, held } = heldLanes();
    const stop = new AbortController();
    const pool = createBufferPool({ slotBytes, slotCount: 2 });
    const slots = [pool.tryAcquire(), pool.tryAcquire()].filter((slot) => slot !== undefined);
    const large = { ...geometry, sizeBytes: 128 * MIB };
    let returned = "";
    const rebuild = rebuildTable(
      {
        ...{
          disk: "disk",
          geometry: large,
          runs: (offset, length) => [{ kind: "file", fd: 1, offset, length }],
          lanes,
          slots,
          signal: stop.signal,
        },
        table: { clear: () => {}, set: () => {} } as unknown as DigestTable,
        // One block with data in each page.
        nextData: (offset) => {
          const first = Math.ceil(offset / (32 * MIB)) * 32 * MIB;
          return first < large.sizeBytes ? { start: first, end: first + 64 * KIB } : undefined;
        },
        onProgress: () => {
          stop.abort(new ReplicationError("connection-lost", "gone"));
        },
      },
      0,
      4,
    ).catch((error: unknown) => {
      returned = error instanceof ReplicationError ? error.code : String(error);
    });
    await until(() => held.length === 1);
    await turns(5);
    expect(returned).toBe("");
    held[0]?.settle();
    await rebuild;
    expect(returned).toBe("connection-lost");
  });
});

describe("a damaged page", () => {
  let kit: PairKit;
  let lanesBusy: Promise<void> | undefined;
  /** How far the receiver's clock is ahead. */
  let aheadMillis: number;
  /** Jobs that read the replica to digest it anew. */
  let scans: number;

  beforeEach(async () => {
    lanesBusy = undefined;
    aheadMillis = 0;
    scans = 0;
    kit = await PairKit.create({
      receiver: { clock: { ...hastyClock, monotonic: () => hastyClock.monotonic() + aheadMillis } },
      receiverLanes: (lanes) => ({
        ...lanes,
        async run(name, request) {
          if (name === "scan") scans++;
          if (name === "scan") await lanesBusy;
          return await lanes.run(name, request);
        },
      }),
    });
  });

  afterEach(async () => {
    expect(await kit.close(), "every slot is back").toBe(true);
    expect(await rejections.take()).toEqual([]);
  });

  /** Three pages of 32 MiB, content in the first two. */
  async function sent(): Promise<ReturnType<typeof createMemoryImage>> {
    const image = createMemoryImage(96 * MIB);
    await image.write(randomBytes(MIB), 0);
    await image.write(randomBytes(MIB), 40 * MIB);
    await kit.send(image);
    // The session gives the disk up a moment after the sender has its answer.
    await kit.idle();
    return image;
  }

  function damage(page: number): void {
    const fd = openSync(join(kit.folder, "store/disks/disk/digests"), "r+");
    writeSync(fd, randomBytes(64), 0, 64, page * 4_096 + 2_048);
    closeSync(fd);
  }

  test("found when the disk is opened, which looks at all pages once an hour: the table is built anew in the same session", async () => {
    const image = await sent();
    damage(1);
    aheadMillis = tableCheckMillis;
    await image.write(randomBytes(64 * KIB), MIB);
    const report = await kit.send(image);
    expect(report).toMatchObject({ point: 2, attempts: 1, funnel: { changedBytes: 64 * KIB } });
    await expectEqual(kit, image);
  });

  test("not looked at within the hour, found when it is needed", async () => {
    const image = await sent();
    damage(1);
    aheadMillis = tableCheckMillis - 60_000;
    await image.write(randomBytes(64 * KIB), MIB);
    expect(await kit.send(image)).toMatchObject({ point: 2, attempts: 1, funnel: { changedBytes: 64 * KIB } });
    expect(scans).toBe(0);
    await image.write(randomBytes(64 * KIB), 41 * MIB);
    expect(await kit.send(image)).toMatchObject({ point: 3, attempts: 1, funnel: { changedBytes: 64 * KIB } });
    expect(scans).toBe(1);
    await expectEqual(kit, image);
  });

  test("found in the session: digested anew, and the sender's credit stays what it is", async () => {
    const image = await sent();
    const pair = createLinkedPair({ clock: hastyClock });
    kit.receiver.accept(pair.server);
    const end = new EndByHand(pair.client);
    end.send(helloMessage());
    await end.next("hello");
    end.send({
      type: "open",
      disk: "disk",
      sizeBytes: image.sizeBytes,
      explicit: false,
      source: "image-1",
      sourceName: "image",
      sectorBytes: 512,
      cycle: "by-hand",
      allowShrink: false,
      adopt: false,
    });
    const opened = await end.next("opened");
    damage(1);
    let release = (): void => {};
    lanesBusy = new Promise((resolve) => {
      release = resolve;
    });
    // Twice the same question: the second must not be answered from the page half done.
    end.send({ type: "ask-blocks", request: 1, pages: [1] }, { type: "ask-blocks", request: 2, pages: [1] });
    await turns(50);
    const content = randomBytes(16 * KIB);
    expect(opened, JSON.stringify(end.ended)).toBeDefined();
    const credit = opened?.message.credit ?? 0;
    expect(credit).toBeGreaterThan(0);
    // All frames of the credit at once, each in a slot; garbage, so that they end as repeats, not in the table.
    for (let number = 0; number < credit; number++) {
      end.payload(
        {
          type: "data",
          blocks: [1_200 + number],
          masks: Uint8Array.of(0x0f, 0),
          digests: new Uint8Array(digestBytes("xxh64")).fill(1),
          codec: "stored",
          rawBytes: content.length,
          repeat: false,
        },
        content,
      );
    }
    await turns(50);
    expect(end.ended).toBeUndefined();
    release();
    const answers = [await end.next("blocks"), await end.next("blocks")];
    end.send({ type: "bye" });
    await until(() => kit.receiver.sessions === 0);

    const [first, second] = answers.map((answer) => Buffer.from(answer?.payload ?? []));
    expect(first?.length).toBe(4_096);
    // Blocks 640 to 655 have content: 40 MiB is block 128 of page 1.
    const filled = Array.from({ length: 512 }, (_unused, block) => block).filter((block) =>
      first?.subarray(block * 8, block * 8 + 8).some((byte) => byte !== 0),
    );
    expect(filled).toEqual(Array.from({ length: 16 }, (_unused, index) => 128 + index));
    expect(second?.equals(first ?? Buffer.alloc(0))).toBe(true);
    // And an honest sender finds the disk as it was.
    expect((await kit.send(image)).funnel.changedBytes).toBe(0);
    await expectEqual(kit, image);
  });
});
