import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { createLinkedPair, type LinkedPairOptions } from "../../src/testing/linked-pair.ts";
import { encodeFrame } from "../../src/wire/frame.ts";
import { dataFrame, observe } from "../transport/kit.ts";

async function jobs(count = 200): Promise<void> {
  for (let job = 0; job < count; job++) await Promise.resolve();
}

function started(options: LinkedPairOptions = {}) {
  const pair = createLinkedPair(options);
  return { ...pair, a: observe(pair.client), b: observe(pair.server) };
}

const byeBytes = encodeFrame({ type: "bye" }).length;

test("frames go both ways, in order, in any size of chunk; who is who is told", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 40_000 }),
      fc.array(fc.constantFrom(4_096, 8_192, 65_536), { maxLength: 5 }),
      async (chunkBytes, sizes) => {
        const { client, server, a, b, toServer } = started({ chunkBytes, client: { name: "web" } });
        expect([client.peer.name, server.peer.name]).toEqual(["server", "web"]);
        const frames = sizes.map((size, index) => dataFrame(size, index));
        await Promise.all(frames.map((frame) => client.sendFrame(frame)));
        server.send({ type: "grant", frames: 3 });
        await client.close();
        expect([a.ends, b.ends]).toEqual([[undefined], [undefined]]);
        expect(b.payloads.map((payload) => [payload.length, payload[0]])).toEqual(
          sizes.map((size, index) => [size, index]),
        );
        const bytes = frames.reduce((sum, frame) => sum + frame.length, 0);
        expect([client.bytesSent, server.bytesReceived, toServer.delivered]).toEqual([bytes, bytes, bytes]);
        await expect(client.sendFrame(dataFrame(4_096, 0))).rejects.toMatchObject({ code: "connection-lost" });
      },
    ),
    { numRuns: 50 },
  );
});

test("a frame is taken when the other side has consumed it, and not before it started; control frames overtake", async () => {
  const { client, server } = createLinkedPair();
  let taken = 0;
  const frames = [1, 2].map((fill) => dataFrame(65_536, fill));
  for (const frame of frames) void client.sendFrame(frame).then(() => taken++);
  expect(client.send({ type: "bye" })).toBe(false);
  await jobs();
  expect(taken).toBe(0);
  expect(client.bytesQueued).toBe(byeBytes + frames.reduce((sum, frame) => sum + frame.length, 0));
  const b = observe(server);
  await jobs();
  expect(taken).toBe(2);
  expect(client.bytesQueued).toBe(0);
  expect(b.messages.map(({ type }) => type)).toEqual(["bye", "data", "data"]);
});

test("the last byte received is dated by the clock", async () => {
  const clock = createFakeClock();
  const { client, server } = started({ clock });
  clock.advance(70);
  client.send({ type: "bye" });
  await jobs();
  expect(server.lastReceived).toBe(70);
  expect(client.lastReceived).toBe(0);
});

describe("faults", () => {
  test("cut: exactly that many bytes arrive, both ends lose the connection, what waits is rejected", async () => {
    const frame = dataFrame(65_536, 9);
    for (const at of [0, 1, 16_384, frame.length, frame.length + 1]) {
      const { client, server, a, b, toServer } = started();
      toServer.cutAfter(at);
      const sends = [client.sendFrame(frame), client.sendFrame(frame)].map((send) =>
        send.then(
          () => "taken",
          (error: ReplicationError) => error.code,
        ),
      );
      expect(await Promise.all(sends)).toEqual([at >= frame.length ? "taken" : "connection-lost", "connection-lost"]);
      await jobs();
      expect(server.bytesReceived).toBe(at);
      expect(a.ends).toMatchObject([{ code: "connection-lost" }]);
      expect(b.ends).toMatchObject([{ code: "connection-lost" }]);
      await Promise.all([client.close(), server.close()]);
    }
  });

  test("half-open: bytes stay where they are, the other direction lives, the end does not get through", async () => {
    const clock = createFakeClock();
    const { client, server, a, b, toServer } = started({ clock });
    toServer.stallAfter(20_000);
    let taken = false;
    const send = client.sendFrame(dataFrame(65_536, 1)).then(
      () => void (taken = true),
      () => undefined,
    );
    server.send({ type: "bye" });
    await jobs();
    expect([server.bytesReceived, taken, a.messages.length, b.messages.length]).toEqual([20_000, false, 1, 0]);
    let closed = false;
    const closing = client.close().then(() => void (closed = true));
    clock.advance(1_999);
    await jobs();
    expect(closed).toBe(false);
    clock.advance(1);
    await closing;
    await send;
    expect([a.ends, b.ends]).toEqual([[undefined], []]);
  });

  test("half-open for a while: what was held back arrives", async () => {
    const { client, b, toServer } = started();
    toServer.stallAfter();
    client.send({ type: "bye" });
    await jobs();
    expect(b.messages).toEqual([]);
    toServer.resume();
    await jobs();
    expect(b.messages).toEqual([{ type: "bye" }]);
  });

  test("a changed byte is found by the decoder, and the sender's array is left alone", async () => {
    for (let offset = 0; offset < byeBytes; offset++) {
      const { client, a, b, toServer } = started();
      toServer.corruptAt(offset);
      client.send({ type: "bye" });
      await jobs();
      const shortened = b.ends.length === 0;
      // A changed length may only make the decoder wait for more; everything else is an error at once.
      if (!shortened) expect(b.ends[0]?.code).toMatch(/^(frame|message)-malformed$/);
      expect(b.messages).toEqual([]);
      if (!shortened) expect(a.ends).toMatchObject([{ code: "connection-lost" }]);
    }
    const frame = dataFrame(4_096, 5);
    const before = Uint8Array.from(frame);
    const { client, b, toServer } = started();
    toServer.corruptAt(frame.length - 1, 0x01);
    await client.sendFrame(frame);
    expect(frame).toEqual(before);
    expect(b.payloads[0]?.at(-1)).toBe(5 ^ 1);
  });
});

describe("time on the way", () => {
  test("delay: what is sent arrives so much later, in order, while more is sent; the other direction is as ever", async () => {
    const clock = createFakeClock();
    const { client, server, a, b, toServer } = started({ clock });
    toServer.delay(50);
    const [first, second] = [dataFrame(65_536, 1), dataFrame(4_096, 2)];
    let taken = 0;
    const send = (frame: Uint8Array): void => void client.sendFrame(frame).then(() => taken++);
    send(first);
    await clock.run(30);
    send(second);
    server.send({ type: "bye" });
    await clock.run(19);
    expect([server.bytesReceived, taken, a.messages.length]).toEqual([0, 0, 1]);
    expect(client.bytesQueued).toBe(first.length + second.length);
    await clock.run(1);
    expect([server.bytesReceived, server.lastReceived, taken]).toEqual([first.length, 50, 1]);
    await clock.run(29);
    expect(b.payloads.length).toBe(1);
    await clock.run(1);
    expect(b.payloads.map((payload) => payload[0])).toEqual([1, 2]);
    expect([server.lastReceived, taken, clock.waiting]).toEqual([80, 2, 0]);
  });

  test("delay: a shorter one lets nothing overtake but control frames, and the end comes last", async () => {
    const clock = createFakeClock();
    const { client, a, b, toServer } = started({ clock });
    toServer.delay(100);
    const sends = [client.sendFrame(dataFrame(4_096, 1))];
    toServer.delay(10);
    sends.push(client.sendFrame(dataFrame(4_096, 2)));
    client.send({ type: "bye" });
    const closing = client.close();
    await clock.run(99);
    expect(b.messages.map(({ type }) => type)).toEqual(["bye"]);
    expect(b.ends).toEqual([]);
    await clock.run(1);
    await Promise.all([closing, ...sends]);
    expect(b.payloads.map((payload) => payload[0])).toEqual([undefined, 1, 2]);
    expect([a.ends, b.ends, clock.waiting]).toEqual([[undefined], [undefined], 0]);
  });

  test("delay: the end is delayed as well, when nothing is before it", async () => {
    const clock = createFakeClock();
    const { client, b, toServer } = started({ clock });
    toServer.delay(100);
    const closing = client.close();
    await clock.run(99);
    expect(b.ends).toEqual([]);
    await clock.run(1);
    await closing;
    expect(b.ends).toEqual([undefined]);
  });

  test("slow: each chunk takes its time, also behind a pause and after a change of the rate", async () => {
    const clock = createFakeClock();
    const { client, server, toServer } = started({ clock, chunkBytes: 1_000 });
    toServer.slow(100_000);
    const frame = dataFrame(65_536, 1);
    void client.sendFrame(frame).catch(() => undefined);
    /** Bytes that have arrived after so many more milliseconds. */
    const after = async (millis: number): Promise<number> => {
      await clock.run(millis);
      return server.bytesReceived;
    };
    expect(await after(9)).toBe(0);
    expect(await after(1)).toBe(1_000);
    expect(await after(85)).toBe(9_000);
    toServer.slow(10_000);
    expect(await after(99)).toBe(9_000);
    expect(await after(1)).toBe(10_000);
    toServer.stallAfter();
    expect(await after(60_000)).toBe(10_000);
    toServer.resume();
    // The chunk that was under way has had its time.
    expect(await after(99)).toBe(11_000);
    expect(await after(1)).toBe(12_000);
    toServer.slow(Number.POSITIVE_INFINITY);
    expect(await after(0)).toBe(frame.length);
    expect(client.bytesQueued).toBe(0);
  });

  test("both: the link is filled while the first byte is on its way", async () => {
    const clock = createFakeClock();
    const { client, server, b, toServer } = started({ clock, chunkBytes: 1_000 });
    toServer.delay(500);
    toServer.slow(100_000);
    const frame = dataFrame(65_536, 1);
    void client.sendFrame(frame);
    await clock.run(510);
    expect(server.bytesReceived).toBe(1_000);
    // Nothing but the rate counts from here on.
    await clock.run((frame.length - 1_000) / 100 - 1);
    expect(b.payloads).toEqual([]);
    await clock.run(1);
    expect(b.payloads.length).toBe(1);
  });

  test("a cut comes at its byte of a slow link, and nothing waits any more; a reset takes what was on the way", async () => {
    const clock = createFakeClock();
    const { client, server, a, b, toServer } = started({ clock, chunkBytes: 1_000 });
    toServer.slow(100_000);
    toServer.cutAfter(1_500);
    const lost = client.sendFrame(dataFrame(4_096, 1)).catch((error: ReplicationError) => error.code);
    await clock.run(14);
    expect([server.bytesReceived, b.ends]).toEqual([1_000, []]);
    await clock.run(1);
    expect(await lost).toBe("connection-lost");
    expect([server.bytesReceived, a.ends.length, b.ends.length, clock.waiting]).toEqual([1_500, 1, 1, 0]);

    const other = started({ clock });
    other.toServer.delay(50);
    other.client.send({ type: "bye" });
    await clock.run(10);
    expect(clock.waiting).toBe(1);
    other.client.destroy(new ReplicationError("aborted", "stop"));
    await clock.run(0);
    expect([other.b.messages, other.b.ends.length, clock.waiting]).toEqual([[], 1, 0]);
  });

  test("a clock whose waits pass at once gets everything through, without real time", async () => {
    const waits: number[] = [];
    const clock = {
      ...createFakeClock(),
      sleep: (millis: number) => {
        waits.push(millis);
        // Else one wait would be made again and again.
        expect(waits.length).toBeLessThan(20);
        return Promise.resolve();
      },
    };
    const { client, b, toServer } = started({ clock });
    toServer.delay(1_000);
    toServer.slow(16_384);
    const frame = dataFrame(65_536, 3);
    await client.sendFrame(frame);
    expect(b.payloads.length).toBe(1);
    expect(waits.reduce((sum, millis) => sum + millis, 0)).toBeCloseTo(1_000 + frame.length / 16.384);
  });
});

test("destroy tells this side the error and the other that the connection is lost", async () => {
  const { client, a, b } = started();
  const error = new ReplicationError("aborted", "stop");
  client.destroy(error);
  expect(a.ends).toEqual([]);
  await jobs();
  expect(a.ends).toEqual([error]);
  expect(b.ends).toMatchObject([{ code: "connection-lost" }]);
});

test("an end in the middle of a frame is a lost connection", async () => {
  const { client, server, b, toServer, toClient } = started();
  toServer.stallAfter(30);
  void client.sendFrame(dataFrame(4_096, 1)).catch(() => undefined);
  await jobs();
  client.destroy(new ReplicationError("aborted", "stop"));
  await jobs();
  // The reset does not get through a stalled direction either.
  expect(b.ends).toEqual([]);
  toClient.cutAfter(0);
  await jobs();
  expect(b.ends).toMatchObject([{ code: "connection-lost" }]);
  await server.close();
});
