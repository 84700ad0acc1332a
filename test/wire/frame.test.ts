import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { KIB, MIB, PART_BYTES } from "../../src/base/units.ts";
import { createFrameDecoder, encodeFrame, encodeHeadBefore } from "../../src/wire/frame.ts";
import type { Data, Message } from "../../src/wire/messages.ts";
import { collector, decodeAll, thrownBy } from "./decoding.ts";
import { goldenFrames } from "./golden-messages.ts";

const goldens = Object.values(goldenFrames);
const stream = new Uint8Array(Buffer.concat(goldens.map(({ message, payload }) => encodeFrame(message, payload))));

function wholeBlocks(count: number): Data {
  return {
    type: "data",
    blocks: Array.from({ length: count }, (_, index) => index),
    masks: new Uint8Array(count * 2).fill(0xff),
    digests: new Uint8Array(count * 8).fill(1),
    codec: "stored",
    rawBytes: count * 64 * KIB,
    repeat: false,
  };
}

describe("any chunking yields the same frames", () => {
  const whole = decodeAll(stream);

  test("in one piece", () => {
    expect(whole.map(({ message }) => message)).toEqual(goldens.map(({ message }) => message));
    expect(whole.reduce((sum, { frameBytes }) => sum + frameBytes, 0)).toBe(stream.length);
  });

  test("byte by byte", () => {
    const { decoder, frames } = collector();
    for (const byte of stream) decoder.push(Uint8Array.of(byte));
    expect(frames).toEqual(whole);
    expect(decoder.atBoundary).toBe(true);
  });

  test("at random places, in chunks that are used again", () => {
    const cuts = fc.array(fc.nat(stream.length), { maxLength: 60 });
    fc.assert(
      fc.property(cuts, (places) => {
        const { decoder, frames } = collector();
        const reused = new Uint8Array(stream.length);
        let from = 0;
        for (const to of [...places.sort((a, b) => a - b), stream.length]) {
          reused.set(stream.subarray(from, to));
          decoder.push(reused.subarray(0, to - from));
          reused.fill(0xee);
          from = to;
        }
        expect(frames).toEqual(whole);
      }),
      { numRuns: 200 },
    );
  });
});

describe("decoder", () => {
  test("a boundary is where a frame is complete, and only there", () => {
    const { decoder, frames } = collector();
    expect(decoder.atBoundary).toBe(true);
    for (const byte of stream) {
      const before = frames.length;
      decoder.push(Uint8Array.of(byte));
      expect(decoder.atBoundary).toBe(frames.length > before);
    }
  });

  test("at a boundary already in onFrame", () => {
    const seen: boolean[] = [];
    const decoder = createFrameDecoder({
      payloadTarget: (_message, bytes) => new Uint8Array(bytes),
      onFrame: () => seen.push(decoder.atBoundary),
    });
    decoder.push(stream);
    expect(seen).toEqual(goldens.map(() => true));
  });

  test("an empty chunk is nothing", () => {
    const { decoder, frames } = collector();
    decoder.push(new Uint8Array(0));
    expect(decoder.atBoundary).toBe(true);
    expect(frames).toEqual([]);
  });

  test("fills the target it was given, in shared memory too, and asks for none without payload", () => {
    const memory = new SharedArrayBuffer(100);
    const asked: [string, number][] = [];
    const payloads: Uint8Array[] = [];
    const decoder = createFrameDecoder({
      payloadTarget(message, bytes) {
        asked.push([message.type, bytes]);
        return new Uint8Array(memory, 10, bytes);
      },
      onFrame: ({ payload }) => payloads.push(payload),
    });
    decoder.push(encodeFrame({ type: "bye" }));
    decoder.push(encodeFrame({ type: "blocks", request: 1, page: 2, count: 1 }, new Uint8Array(16).fill(7)));
    expect(asked).toEqual([["blocks", 16]]);
    expect(payloads[0]).toHaveLength(0);
    expect(payloads[1]?.buffer).toBe(memory);
    expect([...new Uint8Array(memory)]).toEqual([
      ...new Uint8Array(10),
      ...new Uint8Array(16).fill(7),
      ...new Uint8Array(74),
    ]);
  });

  test("a header larger than the usual grows the buffer once and later frames still come out", () => {
    const large: Message = {
      type: "error",
      code: "internal",
      message: "ä".repeat(limits.errorTextCharsMax),
      details: Object.fromEntries(Array.from({ length: 32 }, (_, index) => [`key${index}`, "x".repeat(256)])),
    };
    const bye: Message = { type: "bye" };
    const bytes = Buffer.concat([encodeFrame(bye), encodeFrame(large), encodeFrame(bye)]);
    expect(bytes.length).toBeGreaterThan(8 * KIB);
    const { decoder, frames } = collector();
    for (let at = 0; at < bytes.length; at += 1_000) decoder.push(bytes.subarray(at, at + 1_000));
    expect(frames.map(({ message }) => message)).toEqual([bye, large, bye]);
  });

  test("a payload target of another length is a wrong call, and the decoder stays dead", () => {
    const decoder = createFrameDecoder({ payloadTarget: () => new Uint8Array(7), onFrame: () => undefined });
    const frame = encodeFrame({ type: "blocks", request: 1, page: 2, count: 1 }, new Uint8Array(8));
    const first = thrownBy(() => decoder.push(frame));
    expect(first).toBeInstanceOf(InvariantError);
    expect(thrownBy(() => decoder.push(frame))).toBe(first);
  });

  test("what the callbacks throw comes out of push and kills the decoder", () => {
    const full = new ReplicationError("limit-exceeded", "no room");
    for (const throwing of ["payloadTarget", "onFrame"]) {
      const decoder = createFrameDecoder({
        payloadTarget(_message, bytes) {
          if (throwing === "payloadTarget") throw full;
          return new Uint8Array(bytes);
        },
        onFrame() {
          throw full;
        },
      });
      const frame = encodeFrame({ type: "blocks", request: 1, page: 2, count: 1 }, new Uint8Array(8));
      expect(thrownBy(() => decoder.push(frame))).toBe(full);
      expect(thrownBy(() => decoder.push(new Uint8Array(0)))).toBe(full);
    }
  });

  test("push inside onFrame is a wrong call", () => {
    const decoder = createFrameDecoder({
      payloadTarget: (_message, bytes) => new Uint8Array(bytes),
      onFrame: () => decoder.push(new Uint8Array(1)),
    });
    expect(thrownBy(() => decoder.push(encodeFrame({ type: "bye" })))).toBeInstanceOf(InvariantError);
  });
});

describe("encodeHeadBefore", () => {
  test("ends where the payload starts and gives the bytes of encodeFrame, in shared memory too", () => {
    const message = wholeBlocks(2);
    const payload = new Uint8Array(message.rawBytes).fill(0x5a);
    const slot = new Uint8Array(new SharedArrayBuffer(16 * KIB + payload.length));
    slot.set(payload, 16 * KIB);
    const start = encodeHeadBefore(message, payload.length, slot, 16 * KIB);
    expect(Buffer.compare(slot.subarray(start), encodeFrame(message, payload))).toBe(0);
    expect(slot.subarray(0, start).every((byte) => byte === 0)).toBe(true);
    expect(decodeAll(slot.subarray(start))[0]?.message).toEqual(message);
  });

  test("works inside a view that does not begin its memory", () => {
    const view = new Uint8Array(new ArrayBuffer(300), 100, 200);
    const start = encodeHeadBefore({ type: "bye" }, 0, view, 50);
    expect(decodeAll(view.subarray(start, 50))[0]?.message).toEqual({ type: "bye" });
  });

  test("refuses a room that is too small by one byte, and an end beyond the array", () => {
    const exact = encodeFrame({ type: "bye" }).length;
    expect(encodeHeadBefore({ type: "bye" }, 0, new Uint8Array(100), exact)).toBe(0);
    expect(thrownBy(() => encodeHeadBefore({ type: "bye" }, 0, new Uint8Array(100), exact - 1))).toBeInstanceOf(
      InvariantError,
    );
    expect(thrownBy(() => encodeHeadBefore({ type: "bye" }, 0, new Uint8Array(100), 101))).toBeInstanceOf(
      InvariantError,
    );
  });

  test("the largest head of a data frame fits 16 KiB in front of its payload", () => {
    const count = 256;
    const step = Math.floor(2 ** 32 / count);
    const message: Data = {
      type: "data",
      blocks: Array.from({ length: count }, (_, index) => (index + 1) * step - 1),
      masks: Uint8Array.from({ length: count * 32 }, (_, index) => (index % 32 === 31 ? 0x80 : 0)),
      digests: new Uint8Array(count * 16),
      codec: "deflate",
      rawBytes: MIB,
      repeat: true,
    };
    const start = encodeHeadBefore(message, MIB, new Uint8Array(16 * KIB), 16 * KIB);
    expect(start).toBeGreaterThan(0);
  });
});

describe("what encoding refuses", () => {
  const refuse = (message: Message, payload?: Uint8Array): void => {
    expect(thrownBy(() => encodeFrame(message, payload))).toBeInstanceOf(InvariantError);
  };

  test("a payload where none belongs, none where one belongs, one too long", () => {
    refuse({ type: "bye" }, new Uint8Array(1));
    refuse(wholeBlocks(1));
    refuse({ ...wholeBlocks(1), codec: "lz4" }, new Uint8Array(limits.framePayloadBytesMax + 1));
    expect(encodeFrame({ ...wholeBlocks(1), codec: "lz4" }, new Uint8Array(limits.framePayloadBytesMax))).toBeDefined();
  });

  test("a message a receiver would refuse", () => {
    refuse({ type: "grant", frames: 0 });
    refuse({ type: "ask-parts", request: 1, blocks: [2, 2] });
    refuse({ type: "ask-parts", request: 1, blocks: [3, 2] });
    refuse({ type: "ask-parts", request: 1, blocks: [] });
    refuse({ ...wholeBlocks(1), rawBytes: PART_BYTES }, new Uint8Array(PART_BYTES));
    refuse({ type: "heartbeat", bytes: 1.5, phase: "idle" });
    refuse({ type: "heartbeat", phase: "idle" } as unknown as Message);
  });
});
