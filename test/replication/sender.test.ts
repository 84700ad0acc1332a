/** The sender's run as a whole: what it leaves alone when it has ended, when it gives up, how long it waits. */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createSender, type SenderOptions } from "../../src/replication/sender.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { EndByHand, turns, until } from "./by-hand.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { PairKit } from "./pair-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

beforeEach(async () => {
  kit = await PairKit.create();
});

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

describe("a run that has ended leaves image and slots alone", () => {
  /** A reader that takes its time, counts its reads under way, and may fail at an offset. */
  function slowReader(image: BlockReader): BlockReader & { active: number; reads: number; failAt: number } {
    const reader = {
      sizeBytes: image.sizeBytes,
      sectorBytes: image.sectorBytes,
      extents: (offset: number, length: number) => image.extents(offset, length),
      close: () => Promise.resolve(),
      active: 0,
      reads: 0,
      failAt: -1,
      async read(target: Uint8Array, offset: number) {
        reader.active++;
        reader.reads++;
        try {
          await turns(1 + (reader.reads % 4));
          if (reader.failAt >= offset && reader.failAt < offset + target.length) {
            throw new ReplicationError("image-unreadable", "image: bad sector");
          }
          await image.read(target, offset);
        } finally {
          reader.active--;
        }
      },
    };
    return reader;
  }

  const size = 40 * MIB;
  const blockBytes = 16 * KIB;

  async function changed(): Promise<ReturnType<typeof slowReader>> {
    const image = createMemoryImage(size);
    const pattern = randomBytes(4_096);
    pattern[0] = 0; // so that the 1 below is a change
    await image.write(Buffer.alloc(size, pattern), 0);
    await kit.send(image, { blockBytes });
    for (let block = 0; block < size / blockBytes; block++) await image.write(Buffer.of(1), block * blockBytes);
    return slowReader(image);
  }

  async function expectQuiet(
    reader: ReturnType<typeof slowReader>,
    ending: Promise<unknown>,
    code: string,
  ): Promise<void> {
    let active = -1;
    let reads = -1;
    let free = -1;
    await expect(
      ending.finally(() => {
        active = reader.active;
        reads = reader.reads;
        free = kit.sending.pool.free;
      }),
    ).rejects.toMatchObject({ code });
    expect({ active, free }).toEqual({ active: 0, free: kit.sending.pool.slotCount });
    await turns(50);
    expect(reader.reads).toBe(reads);
  }

  test.each([0, 9, 17, 25, 39])("a sector that cannot be read at %i MiB", async (at) => {
    const reader = await changed();
    reader.failAt = at * MIB + 5_000;
    await expectQuiet(reader, kit.send(reader), "image-unreadable");
  });

  test.each([100, 20_000, 100_000])("a connection lost after %i bytes", async (bytes) => {
    const reader = await changed();
    const onPair = (pair: LinkedPair): void => {
      pair.toServer.cutAfter(bytes);
    };
    await expectQuiet(reader, kit.send(reader, { attemptsMax: 1, onPair }), "connection-lost");
  });

  test.each([1, 30, 200])("stopped by the user after %i reads", async (reads) => {
    const reader = await changed();
    const { read } = reader;
    const stop = new AbortController();
    reader.read = async (target, offset) => {
      if (reader.reads === reads) stop.abort();
      await read(target, offset);
    };
    await expectQuiet(reader, kit.sendUntil(stop.signal, reader), "aborted");
  });

  test("stopped while blocks are sent again", async () => {
    const reader = await changed();
    const stop = new AbortController();
    const { read } = reader;
    let last = 0;
    reader.read = async (target, offset) => {
      // One block alone, behind everything else: a block that is sent again.
      if (target.length === blockBytes) stop.abort();
      last = target.length;
      await read(target, offset);
    };
    const onPair = (pair: LinkedPair): void => {
      for (let at = 30_000; at < 3_000_000; at += 60_007) pair.toServer.corruptAt(at);
    };
    await expectQuiet(
      reader,
      kit.sendUntil(stop.signal, reader, { onPair, codec: "stored", attemptsMax: 1 }),
      "aborted",
    );
    expect(last).toBeGreaterThan(0);
  });
});

describe("attempts", () => {
  const clock = createFakeClock();

  function options(more: Partial<SenderOptions>): SenderOptions {
    const { lanes, pool, random, codecs } = kit.sending;
    return {
      source: { reader: createMemoryImage(MIB), name: "image", identity: "image-1" },
      disk: "disk",
      instance: "instance-1",
      software: "test",
      ...{ lanes, pool, random, codecs, clock },
      log: silentLogger,
      connect: () => Promise.reject(new ReplicationError("connect-failed", "nobody there")),
      ...more,
    };
  }

  /** Runs, and writes down how long it waits each time. */
  async function waitsOf(sender: SenderOptions): Promise<{ readonly waits: number[]; readonly code: string }> {
    const waits: number[] = [];
    let code = "";
    const run = createSender(sender)
      .run()
      .then(
        () => "done",
        (error: unknown) => (error instanceof ReplicationError ? error.code : String(error)),
      );
    void run.then((found) => {
      code = found;
    });
    for (let turn = 0; turn < 5_000 && code === ""; turn++) {
      await turns(1);
      const due = clock.nextAt;
      if (due === undefined || code !== "") continue;
      const before = clock.monotonic();
      // Only a wait between attempts sleeps with nothing else to do: heartbeats end with their session.
      clock.advance(due - before);
      waits.push(due - before);
    }
    return { waits, code };
  }

  test("a first connection that fails is tried three times", async () => {
    expect(await waitsOf(options({}))).toEqual({ waits: [1_000, 2_000], code: "connect-failed" });
  });

  test.each(["certificate-refused", "tls-failed", "usage"] as const)("%s is not tried again", async (code) => {
    const connect = (): Promise<never> => Promise.reject(new ReplicationError(code, "no"));
    expect(await waitsOf(options({ connect }))).toEqual({ waits: [], code });
  });

  test("attemptsMax counts attempts without progress, also the first", async () => {
    for (const attemptsMax of [1, 2]) {
      expect((await waitsOf(options({ attemptsMax }))).waits.length).toBe(attemptsMax - 1);
    }
  });

  test("stopping in a wait ends it at once", async () => {
    const stop = new AbortController();
    const run = createSender(options({})).run(stop.signal);
    const ended = expect(run).rejects.toMatchObject({ code: "aborted" });
    await turns(5);
    expect(clock.waiting).toBe(1);
    stop.abort();
    await ended;
    expect(clock.waiting).toBe(0);
  });

  test("stopped before it began", async () => {
    await expect(createSender(options({})).run(AbortSignal.abort())).rejects.toMatchObject({ code: "aborted" });
  });

  test("a receiver that was reached and is busy is tried as often as one that was lost", async () => {
    const connect = (): Promise<LinkedPair["client"]> => {
      const pair = createLinkedPair({ clock });
      new EndByHand(pair.server).send({ type: "error", code: "receiver-busy", message: "full", details: {} });
      return Promise.resolve(pair.client);
    };
    const sender = createSender(options({ connect }));
    let over = false;
    const ended = expect(sender.run()).rejects.toMatchObject({ code: "receiver-busy", remote: true });
    void ended.finally(() => {
      over = true;
    });
    await until(() => {
      if (sender.progress().phase === "waiting") clock.advance(1_000);
      return over;
    });
    await ended;
    expect(sender.progress().attempt).toBe(8);
  });

  test("connections that break are made anew, with waits by the clock; progress starts the waits over", async () => {
    const image = createMemoryImage(3 * MIB);
    await image.write(randomBytes(3 * MIB), 0);
    let made = 0;
    const connect = (): Promise<LinkedPair["client"]> => {
      const pair = createLinkedPair({ clock });
      kit.receiver.accept(pair.server);
      // Nothing gets through twice, then megabytes do, then nothing again.
      pair.toServer.cutAfter([150, 150, 1_500_000, 150, 150, 150][made++] ?? Number.POSITIVE_INFINITY);
      return Promise.resolve(pair.client);
    };
    const sender = createSender(options({ connect, source: { reader: image, name: "image", identity: "image-1" } }));
    const waits: number[] = [];
    let done = false;
    const run = sender.run().finally(() => {
      done = true;
    });
    while (!done) {
      await turns(1);
      if (sender.progress().phase !== "waiting") continue;
      const before = clock.monotonic();
      const { attempt } = sender.progress();
      while (sender.progress().attempt === attempt) {
        clock.advance(100);
        await turns(1);
      }
      waits.push(clock.monotonic() - before);
    }
    const report = await run;
    expect(report).toMatchObject({ point: 1, attempts: 7 });
    expect(waits).toEqual([1_000, 2_000, 1_000, 2_000, 4_000, 8_000]);
    await expectEqual(kit, image);
  });

  test("a lost connection to a receiver that is gone half way does not hang", async () => {
    const image = createMemoryImage(2 * MIB);
    await image.write(randomBytes(2 * MIB), 0);
    const connect = (): Promise<LinkedPair["client"]> => {
      const pair = createLinkedPair({ clock });
      kit.receiver.accept(pair.server);
      pair.toClient.stallAfter(500);
      return Promise.resolve(pair.client);
    };
    const sender = createSender(
      options({ connect, attemptsMax: 1, source: { reader: image, name: "image", identity: "image-1" } }),
    );
    const ended = expect(sender.run()).rejects.toMatchObject({ code: "peer-silent" });
    let over = false;
    void ended.then(() => {
      over = true;
    });
    await until(() => {
      clock.advance(500);
      return over;
    });
    await ended;
  });
});
