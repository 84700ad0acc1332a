/** A sender meets a receiver that breaks every rule: the run ends with a named error, and nothing of it goes on. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createEngine, type Engine } from "../../src/replication/engine.ts";
import { RepeatQueue } from "../../src/replication/repeat-queue.ts";
import { createSender, type Sender, type SenderOptions } from "../../src/replication/sender.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLinkedPair } from "../../src/testing/linked-pair.ts";
import { silentLogger } from "../../src/base/logger.ts";
import type { DecodedFrame } from "../../src/wire/frame.ts";
import type { Commit, Message, Opened } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";
import { EndByHand, turns, until } from "./by-hand.ts";
import { watchRejections } from "./checks.ts";
import { hastyClock } from "./pair-kit.ts";

const blockBytes = 64 * KIB;
const blocks = 32;
let engine: Engine;
const rejections = watchRejections();

beforeEach(async () => {
  engine = await createEngine({ lanes: 0, poolBytes: 24 * MIB, clock: hastyClock });
});

afterEach(async () => {
  expect(engine.pool.free, "every slot is back").toBe(engine.pool.slotCount);
  await engine.close();
  expect(await rejections.take()).toEqual([]);
});

/** What the receiver by hand says to a message; undefined: what an honest one would. */
type Says = (frame: DecodedFrame, end: EndByHand) => boolean | undefined;

interface Facts {
  readonly opened?: Partial<Opened>;
  readonly options?: Partial<SenderOptions>;
  /** Called before the honest answer; true: it was answered. */
  readonly says?: Says;
}

/** A sender of a random image against a receiver that holds other content, and behaves unless told otherwise. */
async function start(facts: Facts): Promise<{ readonly sender: Sender; readonly done: Promise<unknown> }> {
  const image = createMemoryImage(blocks * blockBytes);
  await image.write(randomBytes(image.sizeBytes), 0);
  const sender = createSender({
    source: { reader: facts.options?.source?.reader ?? image, name: "image", identity: "image-1" },
    disk: "disk",
    instance: "instance-1",
    software: "test",
    ...{ lanes: engine.lanes, pool: engine.pool, random: engine.random, codecs: engine.codecs },
    clock: hastyClock,
    log: silentLogger,
    attemptsMax: 1,
    connect: () => {
      const pair = createLinkedPair({ clock: facts.options?.clock ?? hastyClock });
      const end = new EndByHand(pair.server);
      end.onFrame = (frame) => {
        // In a job of its own, as over a socket.
        queueMicrotask(() => {
          if (facts.says?.(frame, end) !== true) behave(frame.message, end, facts);
        });
      };
      return Promise.resolve(pair.client);
    },
    ...facts.options,
  });
  return { sender, done: sender.run() };
}

function openedMessage(more: Partial<Opened> = {}): Opened {
  return {
    type: "opened",
    fresh: false,
    point: 3,
    cycle: "older",
    root: new Uint8Array(32).fill(1),
    sizeBytes: blocks * blockBytes,
    blockBytes,
    digestKind: "xxh64",
    empty: false,
    anotherSource: false,
    resumeBlock: 0,
    generation: "generation",
    term: 1,
    credit: 8,
    codecs: ["stored", "lz4"],
    ...more,
  };
}

const answered = (count: number, unit: number): Uint8Array => {
  const bits = new Uint8Array(Math.ceil(count / 8));
  for (let index = 0; index < count; index++) bits[index >> 3] = (bits[index >> 3] ?? 0) | (1 << (index & 7));
  return Buffer.concat([bits, new Uint8Array(count * unit).fill(7)]);
};

function behave(message: Message, end: EndByHand, { opened }: Facts): void {
  switch (message.type) {
    case "hello":
      end.send({ ...message, version: 1, versionMin: 1, token: "token", software: "by hand" });
      return;
    case "open":
      end.send(openedMessage(opened));
      return;
    case "ask-pages":
      end.payload({ ...message, type: "pages" }, answered(message.count, 32));
      return;
    case "ask-blocks":
      for (const page of message.pages) {
        const digests = new Uint8Array(Math.min(512, blocks) * 8).fill(7);
        end.payload({ type: "blocks", request: message.request, page, count: 1 }, digests);
      }
      return;
    case "ask-parts":
      end.payload(
        { type: "parts", request: message.request, count: message.blocks.length },
        answered(message.blocks.length, (blockBytes / 4_096) * 4),
      );
      return;
    case "data":
    case "zero":
      end.send({ type: "grant", frames: 1 });
      return;
    case "commit":
      end.send(durableFor(message));
      return;
    default:
      return;
  }
}

function durableFor(commit: Commit): Message {
  return { type: "durable", point: 4, root: commit.root, cycle: commit.cycle, created: true };
}

/** Answers the first message of this type with these instead. */
function onFirst(type: Message["type"], answer: (message: never, end: EndByHand) => void): Says {
  let done = false;
  return ({ message }, end) => {
    if (done || message.type !== type) return undefined;
    done = true;
    answer(message as never, end);
    return true;
  };
}

test("the receiver by hand behaves unless told otherwise", async () => {
  const { done } = await start({});
  expect(await done).toMatchObject({ point: 4, created: true, funnel: { shippedBytes: blocks * blockBytes } });
});

describe("answers that do not fit", () => {
  const wrongPayload = (message: Message, bytes: number): Says => {
    const asked = { pages: "ask-pages", blocks: "ask-blocks", parts: "ask-parts" } as const;
    return onFirst(asked[message.type as "pages"], (ask: { readonly request: number }, end) => {
      end.payload({ ...message, request: ask.request } as Message, new Uint8Array(bytes).fill(0xff));
    });
  };

  test.each<[string, Says]>([
    ["page digests for a page that is none", wrongPayload({ type: "pages", request: 0, first: 0, count: 1 }, 1)],
    ["too few block digests", wrongPayload({ type: "blocks", request: 0, page: 0, count: 1 }, 4_096)],
    ["part digests without parts", wrongPayload({ type: "parts", request: 0, count: blocks }, 4)],
    ["part digests of another block size", wrongPayload({ type: "parts", request: 0, count: blocks }, 4 + 32 * 16)],
  ])("%s", async (_name, says) => {
    const { done } = await start({ says });
    await expect(done).rejects.toMatchObject({ name: "ReplicationError", code: "message-malformed" });
  });

  test.each<[string, Says]>([
    [
      "page digests of other pages",
      onFirst("ask-pages", (ask: { readonly request: number }, end) => {
        end.payload({ type: "pages", request: ask.request, first: 7, count: 1 }, answered(1, 32));
      }),
    ],
    [
      "block digests of another page",
      onFirst("ask-blocks", (ask: { readonly request: number }, end) => {
        end.payload({ type: "blocks", request: ask.request, page: 9, count: 1 }, new Uint8Array(blocks * 8));
      }),
    ],
    [
      "part digests of another number of blocks",
      onFirst("ask-parts", (ask: { readonly request: number }, end) => {
        end.payload({ type: "parts", request: ask.request, count: 1 }, answered(1, 64));
      }),
    ],
    [
      "another kind of answer",
      onFirst("ask-pages", (ask: { readonly request: number }, end) => {
        end.payload({ type: "blocks", request: ask.request, page: 0, count: 1 }, new Uint8Array(blocks * 8));
      }),
    ],
    [
      "an answer to a question nobody asked",
      onFirst("ask-pages", (_ask, end) => {
        end.payload({ type: "pages", request: 4_711, first: 0, count: 1 }, answered(1, 32));
      }),
    ],
    [
      "two answers to one question",
      onFirst("ask-pages", (ask: { readonly request: number }, end) => {
        for (let time = 0; time < 2; time++) {
          end.payload({ type: "pages", request: ask.request, first: 0, count: 1 }, answered(1, 32));
        }
      }),
    ],
  ])("%s", async (_name, says) => {
    const { done } = await start({ says });
    await expect(done).rejects.toMatchObject({ code: "protocol-violation" });
  });
});

describe("out of turn", () => {
  test.each<[string, Message["type"], readonly Message[]]>([
    ["grants beyond the maximum", "ask-pages", [{ type: "grant", frames: limits.creditFramesMax }]],
    [
      "durable without a commit",
      "ask-pages",
      [{ type: "durable", point: 1, root: new Uint8Array(32), cycle: "c", created: true }],
    ],
    ["opened twice", "open", [openedMessage(), openedMessage()]],
    ["opened before open", "hello", [openedMessage()]],
    ["a message of senders", "ask-pages", [{ type: "ask-pages", request: 1, first: 0, count: 1 }]],
    ["blocks beyond the disk wanted whole", "commit", [{ type: "ask-repeat", blocks: [blocks] }]],
    [
      "a block wanted whole twice",
      "commit",
      [
        { type: "ask-repeat", blocks: [3, 4] },
        { type: "ask-repeat", blocks: [4] },
      ],
    ],
    ["a block wanted whole before anything was sent", "open", [openedMessage(), { type: "ask-repeat", blocks: [0] }]],
  ])("%s", async (_name, on, messages) => {
    const { done } = await start({
      says: onFirst(on, (_message, end) => {
        end.send(...messages);
      }),
    });
    await expect(done).rejects.toMatchObject({ name: "ReplicationError", code: "protocol-violation" });
  });

  test("durable for another root: not what was sent", async () => {
    const { done } = await start({
      says: onFirst("commit", (commit: Commit, end) => {
        end.send(durableFor({ ...commit, root: new Uint8Array(32).fill(9) }));
      }),
    });
    await expect(done).rejects.toMatchObject({ code: "root-mismatch" });
  });

  test("its own error ends the run with that error, told as the receiver's", async () => {
    const { done } = await start({
      says: onFirst("ask-parts", (_message, end) => {
        end.send({ type: "error", code: "no-space", message: "the disk is full", details: {} });
      }),
    });
    await expect(done).rejects.toMatchObject({ code: "no-space", remote: true });
  });

  test("an orderly end in the middle is a lost connection", async () => {
    const { done } = await start({
      says: onFirst("ask-parts", (_message, end) => {
        end.send({ type: "bye" });
        void end.link.close();
      }),
    });
    await expect(done).rejects.toMatchObject({ code: "connection-lost" });
  });

  test("a codec the user insists on and the receiver has not", async () => {
    const { done } = await start({ opened: { codecs: ["stored"] }, options: { codec: "deflate" } });
    await expect(done).rejects.toMatchObject({ code: "feature-unsupported" });
  });
});

test("repeats: served whole, counted, committed again", async () => {
  let commits = 0;
  let repeats = 0;
  const frames: number[] = [];
  const { done } = await start({
    says: ({ message }, end) => {
      if (message.type === "data" && message.repeat) {
        repeats++;
        expect(message.blocks).toEqual([commits === 1 ? 5 : 6]);
        expect(message.rawBytes).toBe(blockBytes);
        return undefined;
      }
      if (message.type !== "commit") return undefined;
      frames.push(message.frames[0] ?? -1);
      commits++;
      if (commits === 3) return undefined;
      end.send({ type: "ask-repeat", blocks: [commits === 1 ? 5 : 6] });
      return true;
    },
  });
  expect(await done).toMatchObject({ point: 4, funnel: { repeatedBlocks: 2 } });
  expect(repeats).toBe(2);
  expect(frames.map((count) => count - (frames[0] ?? 0))).toEqual([0, 1, 2]);
});

test("blocks wanted whole for ever, and no credit for them: ended at the first that is wanted twice", async () => {
  let asked = 0;
  const ask = async (end: EndByHand): Promise<void> => {
    while (end.ended === undefined && asked < 10 * blocks) {
      end.send({ type: "ask-repeat", blocks: [asked++ % blocks] });
      await turns(1);
    }
    end.link.destroy(new ReplicationError("connection-lost", "enough"));
  };
  const says = onFirst("ask-pages", (_ask, end) => void ask(end));
  const { done } = await start({
    opened: { credit: 1 },
    says: (frame, end) => frame.message.type === "data" || says(frame, end),
  });
  await expect(done).rejects.toMatchObject({
    code: "protocol-violation",
    message: expect.stringContaining("block 0 ") as string,
  });
  // One turn or two until it is heard.
  expect(asked).toBeLessThan(blocks + 10);
});

test("blocks wanted whole that cannot be sent yet: what waits is a bit for each", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const queue = new RepeatQueue();
  const served: number[] = [];
  let release = (): void => {};
  queue.handler = async (numbers) => {
    served.push(...numbers);
    if (served.length > 1) return;
    await new Promise<void>((resolve) => {
      release = resolve;
    });
  };
  const waiting = 100_000;
  collect();
  const before = process.memoryUsage().heapUsed;
  // Downwards: the first is under way, the others wait.
  for (let block = waiting; block >= 0; block--) queue.push([block]);
  collect();
  expect(process.memoryUsage().heapUsed - before).toBeLessThan(4 * MIB);
  expect([queue.count, served]).toEqual([waiting + 1, [waiting]]);
  release();
  await queue.settled();
  expect(served).toEqual([waiting, ...Array.from({ length: waiting }, (_unused, block) => block)]);
  // And it serves again.
  queue.push([7]);
  await queue.settled();
  expect(served.at(-1)).toBe(7);
});

test("a repeat of a page long passed, behind the commit: compared again, not an internal failure", async () => {
  // More pages that changed than the sender keeps digests of; each 4 MiB (256 blocks of 16 KiB).
  const pages = 300;
  const image = createMemoryImage(pages * 4 * MIB);
  for (let page = 0; page < pages; page++) await image.write(Buffer.of(1, 2, 3), page * 4 * MIB);
  const { done } = await start({
    options: { source: { reader: image, name: "image", identity: "image-1" } },
    opened: { fresh: true, empty: true, blockBytes: 16 * KIB, digestKind: "sha256", sizeBytes: image.sizeBytes },
    says: onFirst("commit", (_commit, end) => {
      end.send({ type: "ask-repeat", blocks: [0] });
    }),
  });
  await expect(done).rejects.toMatchObject({ code: "digest-mismatch", action: "reconnect" });
});

test("a receiver that does not answer: reading stops, whatever the size of the image", async () => {
  const size = 384 * MIB;
  const reader = patternReader(size);
  let asked = 0;
  let hand: EndByHand | undefined;
  const sender = await start({
    options: { source: { reader, name: "image", identity: "image-1" } },
    opened: { sizeBytes: size, blockBytes: 16 * KIB },
    says: ({ message }, end) => {
      hand = end;
      if (message.type === "ask-parts") {
        asked++;
        return true;
      }
      if (message.type === "ask-blocks") {
        for (const page of message.pages) {
          end.payload({ type: "blocks", request: message.request, page, count: 1 }, new Uint8Array(4_096).fill(7));
        }
        return true;
      }
      return undefined;
    },
  });
  let before = -1;
  // Until nothing is read any more.
  while (before !== sender.sender.progress().funnel.readBytes) {
    before = sender.sender.progress().funnel.readBytes;
    await turns(200);
  }
  expect(asked).toBeGreaterThan(0);
  // Each block is read twice: once to digest, once to digest its parts.
  expect(before).toBeLessThan(size);
  hand?.link.destroy(new ReplicationError("connection-lost", "enough"));
  await expect(sender.done).rejects.toMatchObject({ code: "connection-lost" });
});

/** Content everywhere, without memory. */
function patternReader(sizeBytes: number): BlockReader {
  return {
    sizeBytes,
    sectorBytes: 512,
    read: (target, offset) => {
      target.fill(1 + ((offset / MIB) & 0x7f));
      return Promise.resolve();
    },
    async *extents(offset, length) {
      await Promise.resolve();
      yield { kind: "data", offset, length };
    },
    close: () => Promise.resolve(),
  };
}

test("a receiver that falls silent: peer-silent after half a minute, and not before", async () => {
  const clock = createFakeClock();
  const { done } = await start({
    options: { clock },
    says: ({ message }) => message.type === "ask-pages" || undefined,
  });
  let ended = false;
  const watched = expect(
    done.finally(() => {
      ended = true;
    }),
  ).rejects.toMatchObject({ code: "peer-silent" });
  await turns(5);
  for (let second = 0; second < limits.silenceMillis / 1000; second++) {
    clock.advance(1_000);
    await turns(1);
  }
  expect(ended).toBe(false);
  for (let second = 0; second < 5; second++) {
    clock.advance(1_000);
    await turns(1);
  }
  await watched;
  await until(() => ended);
});
