/** A send in which nothing moves: the user hears of it each minute, with what the receiver is busy with, and the session goes on. */
import { expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createEngine } from "../../src/replication/engine.ts";
import { createSender } from "../../src/replication/sender.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLinkedPair, type LinkedPair } from "../../src/testing/linked-pair.ts";
import type { Opened } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";
import { keepLog } from "../transport/kit.ts";
import { EndByHand, turns, until } from "./by-hand.ts";

const fresh: Opened = {
  ...{ type: "opened", fresh: true, empty: true, sizeBytes: MIB, blockBytes: 64 * KIB, digestKind: "xxh64" },
  ...{ anotherSource: false, resumeBlock: 0, generation: "generation", term: 1, credit: 8, codecs: ["stored"] },
};
const opened: Opened = {
  ...fresh,
  fresh: false,
  empty: false,
  point: 3,
  cycle: "older",
  root: new Uint8Array(32).fill(1),
};

test("no progress for 60 s is told, again each 60 s, and no more when things move again; heartbeats keep the session", async (t) => {
  const clock = createFakeClock();
  const log = keepLog();
  const engine = await createEngine({ lanes: 0, poolBytes: 24 * MIB });
  t.onTestFinished(() => engine.close());
  const ends: EndByHand[] = [];
  const stop = new AbortController();
  const run = createSender({
    source: { reader: createMemoryImage(MIB), name: "image", identity: "image-1" },
    ...{ disk: "vm", instance: "instance-1", software: "test", clock, log, attemptsMax: 1 },
    ...{ lanes: engine.lanes, pool: engine.pool, random: engine.random, codecs: engine.codecs },
    connect: () => {
      const pair = createLinkedPair({ clock });
      ends.push(new EndByHand(pair.server));
      return Promise.resolve(pair.client);
    },
  }).run(stop.signal);
  const ended = run.catch((error: unknown) => error);
  await until(() => ends.length === 1);
  const [receiver] = ends;
  if (receiver === undefined) throw new Error("a connection");
  const hello = await receiver.next("hello");
  if (hello === undefined) throw new Error("a greeting");
  receiver.send({ ...hello.message, token: "token", software: "by hand" });
  await receiver.next("open");

  /** The receiver is alive, and busy with `phase`. */
  const pass = async (seconds: number, phase: string): Promise<void> => {
    for (let passed = 0; passed < seconds; passed += 10) {
      receiver.send({ type: "heartbeat", bytes: 0, phase });
      await turns(2);
      await clock.run(10_000);
    }
  };
  const told = (): readonly string[] => log.at("warn");
  const busy = "no progress for 60 s; the receiver is busy: rebuild";
  await pass(50, "rebuild");
  expect(told()).toEqual([]);
  await pass(10, "rebuild");
  expect(told()).toEqual([busy]);
  await pass(60, "rebuild");
  expect(told()).toEqual([busy, busy]);

  // The receiver has answered: the sender scans, which is progress. Then it gets no answer to what it asks.
  receiver.send(opened);
  await receiver.next("ask-pages");
  await pass(60, "");
  expect(told()).toEqual([busy, busy]);
  await pass(60, "");
  expect(told()).toEqual([busy, busy, "no progress for 60 s"]);

  expect(receiver.ended).toBeUndefined();
  stop.abort();
  await turns(20);
  await clock.run(5_000);
  expect(await ended).toMatchObject({ code: "aborted" });
  // Nobody watches any more.
  await clock.run(600_000);
  expect(told()).toHaveLength(3);
});

test("a receiver that falls silent while frames wait for it: that is the cause that is told, not the end of the connection", async (t) => {
  const clock = createFakeClock();
  const engine = await createEngine({ lanes: 0, poolBytes: 24 * MIB });
  t.onTestFinished(() => engine.close());
  const reader = createMemoryImage(MIB);
  await reader.write(randomBytes(MIB), 0);
  const pairs: LinkedPair[] = [];
  const run = createSender({
    source: { reader, name: "image", identity: "image-1" },
    ...{ disk: "vm", instance: "instance-1", software: "test", clock, log: keepLog(), attemptsMax: 1 },
    ...{ lanes: engine.lanes, pool: engine.pool, random: engine.random, codecs: engine.codecs },
    connect: () => {
      const pair = createLinkedPair({ clock });
      pairs.push(pair);
      return Promise.resolve(pair.client);
    },
  }).run();
  const ended = run.catch((error: unknown) => error);
  await until(() => pairs.length === 1);
  const [pair] = pairs;
  if (pair === undefined) throw new Error("a connection");
  const receiver = new EndByHand(pair.server);
  const hello = await receiver.next("hello");
  if (hello === undefined) throw new Error("a greeting");
  receiver.send({ ...hello.message, token: "token", software: "by hand" });
  await receiver.next("open");
  // Its window is full: nothing that is shipped gets anywhere.
  pair.toServer.stallAfter();
  receiver.send(fresh);
  await until(() => pair.client.bytesQueued > 64 * KIB);
  await clock.run(40_000);
  await turns(20);
  await clock.run(5_000);
  expect(await ended).toMatchObject({ code: "peer-silent" });
});
