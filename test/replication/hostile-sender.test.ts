/** A receiver meets a sender that breaks every rule: the session ends with a named error, nothing is committed, nothing leaks. */
import { countParts, fullMask } from "../../src/base/part-mask.ts";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { limits } from "../../src/base/limits.ts";
import { KIB, maskBytes, MIB, PART_BYTES } from "../../src/base/units.ts";
import { createDigester, type Digester } from "../../src/codec/digest.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { createLinkedPair, type LinkedPair, type LinkedPairOptions } from "../../src/testing/linked-pair.ts";
import { createPageDigests, pageDigest } from "../../src/table/digest-table.ts";
import type { Commit, Data, Message, Open, Opened } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";
import { EndByHand, helloMessage, turns, until } from "./by-hand.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

const sizeBytes = 4 * MIB + 5_000;
let kit: PairKit;
let digester: Digester;
/** The receiver's lanes do nothing until it resolves. */
let lanesBusy: Promise<void> | undefined;
const rejections = watchRejections();

beforeEach(async () => {
  lanesBusy = undefined;
  kit = await PairKit.create({
    receiverLanes: (lanes) => ({
      ...lanes,
      async run(name, request) {
        await lanesBusy;
        return await lanes.run(name, request);
      },
    }),
  });
  digester = await createDigester("xxh64");
});

afterEach(async () => {
  await until(() => kit.receiver.sessions === 0);
  expect(kit.receiving.pool.free).toBe(kit.receiving.pool.slotCount);
  // The disk is free and true for an honest sender.
  const image = createMemoryImage(8 * MIB);
  await image.write(randomBytes(3 * MIB), 1_000);
  const report = await kit.send(image, { instance: "honest" });
  expect(report.attempts).toBe(1);
  await expectEqual(kit, image);
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

interface Hand {
  readonly end: EndByHand;
  readonly pair: LinkedPair;
  readonly opened: Opened;
}

function connect(options: LinkedPairOptions = {}): { readonly end: EndByHand; readonly pair: LinkedPair } {
  const pair = createLinkedPair({ clock: hastyClock, ...options });
  kit.receiver.accept(pair.server);
  return { end: new EndByHand(pair.client), pair };
}

async function greet(
  options: LinkedPairOptions = {},
): Promise<{ readonly end: EndByHand; readonly pair: LinkedPair; readonly token: string }> {
  const { end, pair } = connect(options);
  end.send(helloMessage());
  const hello = await end.next("hello");
  return { end, pair, token: hello?.message.token ?? "" };
}

function openMessage(more: Partial<Open> = {}): Open {
  return {
    type: "open",
    disk: "disk",
    sizeBytes,
    explicit: false,
    source: "image-1",
    sourceName: "image",
    sectorBytes: 512,
    cycle: "cycle-1",
    allowShrink: false,
    adopt: false,
    ...more,
  };
}

async function open(more: Partial<Open> = {}, options: LinkedPairOptions = {}): Promise<Hand> {
  const { end, pair } = await greet(options);
  end.send(openMessage(more));
  const opened = await end.next("opened");
  if (opened === undefined) throw new Error("not opened");
  return { end, pair, opened: opened.message };
}

function digestsOf(content: Uint8Array, blockBytes: number): Buffer {
  const digests = Buffer.alloc((content.length / blockBytes) * 8);
  for (let at = 0; at < content.length; at += blockBytes) {
    digester.digest(content.subarray(at, at + blockBytes), digests, (at / blockBytes) * 8);
  }
  return digests;
}

/** Whole blocks from `first`, as a frame. */
function whole(first: number, content: Uint8Array, more: Partial<Data> = {}, blockBytes = 64 * KIB): Data {
  const count = content.length / blockBytes;
  return {
    type: "data",
    blocks: Array.from({ length: count }, (_unused, index) => first + index),
    masks: Buffer.concat(Array.from({ length: count }, () => fullMask(blockBytes))),
    digests: digestsOf(content, blockBytes),
    codec: "stored",
    rawBytes: content.length,
    repeat: false,
    ...more,
  };
}

function commitMessage(more: Partial<Commit> = {}): Commit {
  return {
    type: "commit",
    root: new Uint8Array(32),
    frames: [0],
    cycle: "cycle-1",
    sizeBytes,
    time: 1,
    consistency: "crash",
    skipEmpty: false,
    ...more,
  };
}

const block = (): Buffer => randomBytes(64 * KIB);
const zero = (first: number, count: number, repeat = false): Message => ({ type: "zero", first, count, repeat });

async function points(): Promise<number> {
  return (await kit.store.summary("disk"))?.newest?.point ?? 0;
}

describe("out of order", () => {
  test("the first message is no hello", async () => {
    const { end } = connect();
    end.send(openMessage());
    expect(await end.end()).not.toBe("closed");
  });

  test("data before open", async () => {
    const { end } = await greet();
    const content = block();
    end.payload(whole(0, content), content);
    expect(await end.end()).toBe("connection-lost");
    expect(await kit.store.disks()).toEqual([]);
  });

  test("data right behind open, before its answer", async () => {
    const { end } = await greet();
    const content = block();
    end.send(openMessage());
    end.payload(whole(0, content), content);
    expect(await end.end()).toBe("connection-lost");
  });

  test("a question before open is answered", async () => {
    const { end } = await greet();
    end.send({ type: "ask-pages", request: 1, first: 0, count: 1 });
    expect(await end.end()).toBe("connection-lost");
  });

  test("messages only a receiver sends", async () => {
    const { end } = await open();
    end.send({ type: "grant", frames: 1 });
    expect(await end.end()).toBe("connection-lost");
  });

  test("open twice", async () => {
    const { end } = await open();
    end.send(openMessage());
    expect(await end.end()).toBe("connection-lost");
  });
});

describe("blocks", () => {
  test.each<[string, readonly (Message | Buffer)[]]>([
    ["data beyond the disk", [block()]],
    ["zeros beyond the disk", [zero(60, 10)]],
    ["zeros far beyond the disk", [zero(2 ** 31, 65_536)]],
    ["zeros twice", [zero(3, 4), zero(6, 1)]],
    ["zeros repeated without being asked for", [zero(3, 1, true)]],
  ])("%s", async (_name, messages) => {
    const { end } = await open();
    for (const message of messages) {
      if (!("type" in message)) end.payload(whole(65, message), message);
      else end.send(message);
    }
    expect(await end.end()).toBe("protocol-violation");
    expect(await points()).toBe(0);
  });

  test("the same block twice, in two frames", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content), content);
    end.payload(whole(7, content), content);
    expect(await end.end()).toBe("protocol-violation");
  });

  test("data and zero for one block", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content), content);
    end.send(zero(7, 1));
    expect(await end.end()).toBe("protocol-violation");
  });

  test("a repeat nobody asked for", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content, { repeat: true }), content);
    expect(await end.end()).toBe("protocol-violation");
  });

  test("digests of another width, masks of another block size", async () => {
    for (const wrong of [{ digests: new Uint8Array(16) }, { masks: new Uint8Array(4).fill(0xf) }]) {
      const { end } = await open();
      const content = block();
      end.payload(whole(7, content, wrong), content);
      expect(await end.end()).toBe("message-malformed");
    }
  });

  test("mask bits behind the last part of a block", async () => {
    const { end } = await open({ disk: "small", blockBytes: 16 * KIB });
    await kit.send(createMemoryImage(MIB), { disk: "other" });
    for (const mask of [0xff, 0xf0, 0x11]) {
      const parts = countParts(Uint8Array.of(mask));
      const content = randomBytes(parts * PART_BYTES);
      const digests = Buffer.alloc(8);
      digester.digest(content, digests, 0);
      const hand = mask === 0xff ? { end } : await open({ disk: `small-${mask}`, blockBytes: 16 * KIB });
      const masks = Uint8Array.of(mask);
      hand.end.payload(
        { ...whole(3, Buffer.alloc(0)), blocks: [3], masks, digests, rawBytes: content.length },
        content,
      );
      expect(await hand.end.end()).toBe("message-malformed");
    }
  });

  test.each([
    ["whole", undefined],
    ["as parts, some of them behind the end", [0, 1, 2]],
    ["as a part that lies behind the end", [3]],
    ["as the part over the end", [1]],
  ] as const)("C-11 a block that begins within the disk and has content behind its end, %s", async (_name, parts) => {
    // All of the replica is content, so that whatever is written or added shows.
    const image = createMemoryImage(sizeBytes);
    await image.write(randomBytes(sizeBytes), 0);
    await kit.send(image, { instance: "honest" });
    await kit.idle();
    const before = kit.replica();
    expect(before).toHaveLength(sizeBytes);
    const { end } = await open({ source: "image-1" });
    // The disk ends 5,000 bytes into its last block.
    const last = Math.floor(sizeBytes / (64 * KIB));
    const content = Buffer.alloc(64 * KIB);
    before.copy(content, 0, last * 64 * KIB);
    const named = parts ?? Array.from({ length: 16 }, (_unused, part) => part);
    const masks = Buffer.alloc(2);
    for (const part of named) {
      randomBytes(PART_BYTES).copy(content, part * PART_BYTES);
      masks.writeUInt16LE(masks.readUInt16LE() | (1 << part));
    }
    const payload = Buffer.concat(named.map((part) => content.subarray(part * PART_BYTES, (part + 1) * PART_BYTES)));
    const message = { ...whole(last, content), masks, rawBytes: payload.length };
    end.payload(message, payload);
    await end.next("ask-repeat");
    expect(await end.end()).toBe("message-malformed");
    await kit.idle();
    expect(kit.replica().equals(before)).toBe(true);
    expect(await points()).toBe(1);
  });

  test("a payload that does not decompress", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content, { codec: "lz4" }), randomBytes(1_000));
    expect(await end.end()).toBe("codec-damaged");
  });

  test("a wrong block is asked for whole; wrong again ends the session, and nothing of it was written", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content), block());
    const asked = await end.next("ask-repeat");
    expect(asked?.message.blocks).toEqual([7]);
    end.payload(whole(7, content, { repeat: true }), block());
    expect(await end.end()).toBe("digest-mismatch");
    await turns(20);
    expect(kit.replica().every((byte) => byte === 0)).toBe(true);
  });

  test("a repeat asked for may come once", async () => {
    const { end } = await open();
    const content = block();
    end.payload(whole(7, content), block());
    await end.next("ask-repeat");
    end.payload(whole(7, content, { repeat: true }), content);
    end.payload(whole(7, content, { repeat: true }), content);
    expect(await end.end()).toBe("protocol-violation");
  });
});

describe("credit", () => {
  test("data beyond it", async () => {
    const { end, opened } = await open();
    for (let number = 0; number <= opened.credit; number++) {
      const content = block();
      end.payload(whole(number, content), content);
    }
    expect(["protocol-violation", "connection-lost"]).toContain(await end.end());
  });

  test("zeros beyond it", async () => {
    const { end, opened } = await open();
    for (let number = 0; number <= opened.credit; number++) end.send(zero(number, 1));
    expect(await end.end()).toBe("protocol-violation");
  });

  test("what is granted is what was done with, never more than the slots of the session", async () => {
    const { end, opened } = await open();
    let credit = opened.credit;
    end.onFrame = ({ message }) => {
      if (message.type === "grant") credit += message.frames;
      expect(credit).toBeLessThanOrEqual(opened.credit);
    };
    for (let number = 0; number < 60; number++) {
      while (credit === 0) await end.next("grant");
      credit--;
      end.send(zero(number, 1));
    }
    end.send({ type: "bye" });
    await turns(20);
    expect(end.ended?.error).toBeUndefined();
  });
});

describe("commit", () => {
  async function oneBlock(): Promise<{ readonly end: EndByHand; readonly root: Uint8Array }> {
    const { end } = await open();
    const content = block();
    const pages = createPageDigests({ sizeBytes, blockBytes: 64 * KIB, digestKind: "xxh64" });
    const digests = Buffer.alloc(66 * 8);
    digestsOf(content, 64 * KIB).copy(digests, 7 * 8);
    pages.set(0, pageDigest(digests));
    end.payload(whole(7, content), content);
    return { end, root: pages.root() };
  }

  test("with another root: root-mismatch, and no point", async () => {
    const { end } = await oneBlock();
    end.send(commitMessage({ frames: [1] }));
    expect(await end.end()).toBe("root-mismatch");
    await turns(20);
    expect(await points()).toBe(0);
  });

  test("of another size", async () => {
    const { end, root } = await oneBlock();
    end.send(commitMessage({ frames: [1], root, sizeBytes: sizeBytes + 1 }));
    expect(await end.end()).toBe("protocol-violation");
    expect(await points()).toBe(0);
  });

  test("of frames on more connections than there are", async () => {
    const { end, root } = await oneBlock();
    end.send(commitMessage({ frames: [1, 0], root }));
    expect(await end.end()).toBe("protocol-violation");
  });

  test("counts too many or too few: nothing is committed until they are right", async () => {
    for (const frames of [2, Number.MAX_SAFE_INTEGER, 0]) {
      const { end, root } = await oneBlock();
      end.send(commitMessage({ frames: [frames], root }));
      await turns(30);
      expect(end.frames.filter(({ message }) => message.type === "durable")).toEqual([]);
      expect(await points()).toBe(0);
      if (frames !== 0) {
        end.send({ type: "bye" });
        await until(() => kit.receiver.sessions === 0);
        continue;
      }
      // A later one counts.
      end.send(commitMessage({ frames: [1], root }));
      expect((await end.next("durable"))?.message).toMatchObject({ point: 1, created: true, cycle: "cycle-1" });
      end.send({ type: "bye" });
    }
  });

  test("a pass makes no point, says when it is kept, and nothing may follow it but the end", async () => {
    const { end, root } = await oneBlock();
    end.send({ type: "pass", root, frames: [2] });
    await turns(30);
    expect(end.frames.filter(({ message }) => message.type === "synced")).toEqual([]);
    end.send({ type: "pass", root, frames: [1] });
    expect(Buffer.from((await end.next("synced"))?.message.root ?? [])).toEqual(Buffer.from(root));
    expect(await points()).toBe(0);
    end.send(commitMessage({ frames: [1], root }));
    expect(await end.end()).toBe("connection-lost");
    await until(() => kit.receiver.sessions === 0);
    expect(await points()).toBe(0);
    const { end: next, opened } = await open();
    expect(opened).toMatchObject({ fresh: true, empty: false });
    next.send(commitMessage({ frames: [0], root }));
    expect((await next.next("durable"))?.message).toMatchObject({ point: 1, created: true });
    next.send({ type: "bye" });
    await until(() => kit.receiver.sessions === 0);
  });

  test("a pass with another root: root-mismatch", async () => {
    const { end } = await oneBlock();
    end.send({ type: "pass", root: randomBytes(32), frames: [1] });
    expect(await end.end()).toBe("root-mismatch");
  });
});

describe("questions", () => {
  test.each<Message>([
    { type: "ask-pages", request: 1, first: 0, count: 2 },
    { type: "ask-pages", request: 1, first: 2 ** 31, count: limits.pagesPerRequestMax },
    { type: "ask-blocks", request: 1, pages: [0, 1] },
    { type: "ask-parts", request: 1, blocks: [65, 66] },
  ])("of what there is not: $type", async (ask) => {
    const { end } = await open();
    end.send(ask);
    expect(await end.end()).toBe("protocol-violation");
  });

  test("without reading the answers: the session ends, and memory for answers stays bounded", async () => {
    const { end, pair } = await open({ disk: "large", sizeBytes: 512 * MIB, blockBytes: 16 * KIB });
    pair.toClient.stallAfter();
    let most = 0;
    const pages = Array.from({ length: 64 }, (_unused, index) => index);
    for (let request = 0; request < 1_000 && kit.receiver.sessions > 0; request++) {
      end.send({ type: "ask-blocks", request, pages });
      await turns(1);
      most = Math.max(most, pair.server.bytesQueued);
    }
    await until(() => kit.receiver.sessions === 0);
    expect(most).toBeGreaterThan(15 * MIB);
    expect(most).toBeLessThan(17 * MIB);
  });

  test("all at once: only so many are open at a time", async () => {
    const { end } = await open();
    let release = (): void => {};
    lanesBusy = new Promise((resolve) => {
      release = resolve;
    });
    for (let request = 0; request < 300; request++) end.send({ type: "ask-parts", request, blocks: [0, 1, 2] });
    expect(await end.end()).toBe("connection-lost");
    release();
  });
});

describe("joining", () => {
  test("with a token of nobody", async () => {
    const { end } = connect();
    end.send({ ...helloMessage(), join: { token: "guessed", connection: 1 } });
    expect(await end.end()).toBe("not-allowed");
  });

  test("with another certificate", async () => {
    const { end, token } = await greet();
    const pair = createLinkedPair({ clock: hastyClock, client: { fingerprint: "00:11" } });
    kit.receiver.accept(pair.server);
    const other = new EndByHand(pair.client);
    other.send({ ...helloMessage(), join: { token, connection: 1 } });
    expect(await other.end()).toBe("not-allowed");
    end.send({ type: "bye" });
  });

  test.each([2, 15])("out of turn, as connection %i", async (connection) => {
    const { end, token } = await greet();
    const other = connect().end;
    other.send({ ...helloMessage(), join: { token, connection } });
    expect(await other.end()).not.toBe("closed");
    end.send({ type: "bye" });
  });

  test("after open", async () => {
    const { end, token } = await greet();
    end.send(openMessage());
    await end.next("opened");
    const other = connect().end;
    other.send({ ...helloMessage(), join: { token, connection: 1 } });
    expect(await other.end()).not.toBe("closed");
    end.send({ type: "bye" });
  });

  test("a session that is ending", async () => {
    const { end, pair, token } = await greet();
    const content = block();
    end.send(openMessage());
    await end.next("opened");
    end.payload(whole(0, content), content);
    await turns(0);
    pair.toServer.cutAfter(0);
    // Before its last write has settled.
    const other = connect().end;
    other.send({ ...helloMessage(), join: { token, connection: 1 } });
    expect(await other.end()).not.toBe("closed");
  });
});

test("an end without a word keeps what was applied; the next session of another sender of the same identity goes on", async () => {
  const { end, pair } = await open();
  const content = block();
  end.payload(whole(0, content), content);
  end.send(zero(9, 1));
  await turns(20);
  pair.toServer.cutAfter(0);
  await until(() => kit.receiver.sessions === 0);
  expect(kit.replica().subarray(0, content.length).equals(content)).toBe(true);
});

test("a second session of the same sender takes the disk over, of another is refused", async () => {
  const first = await open();
  const second = await open();
  expect(await first.end.end()).toBe("superseded");
  const pair = createLinkedPair({ clock: hastyClock, client: { name: "somebody else" } });
  kit.receiver.accept(pair.server);
  const other = new EndByHand(pair.client);
  other.send(helloMessage());
  await other.next("hello");
  other.send(openMessage());
  expect(await other.end()).toBe("disk-busy");
  second.end.send({ type: "bye" });
});

test("the mask helper says what the wire says", () => {
  expect(fullMask(64 * KIB).length).toBe(maskBytes(64 * KIB));
});
