import { Encoder } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { MIB, PART_BYTES, TIB } from "../../src/base/units.ts";
import { fromErrorMessage, toErrorMessage } from "../../src/wire/error-message.ts";
import { encodeFrame } from "../../src/wire/frame.ts";
import { layouts } from "../../src/wire/message-layout.ts";
import { messageForms } from "../../src/wire/message-codec.ts";
import { type Message, payloadTypes } from "../../src/wire/messages.ts";
import { packAscending, unpackAscending } from "../../src/wire/number-list.ts";
import { wireLimits } from "../../src/wire/wire-limits.ts";
import { WrongValue } from "../../src/wire/wrong-value.ts";
import { decodeAll, rawFrame, thrownBy } from "./decoding.ts";
import { goldenFrames } from "./golden-messages.ts";

/** The header of a golden frame as a map, with some keys replaced (undefined: left out). */
function altered(name: string, change: Readonly<Record<string, unknown>>, payloadBytes?: number): Uint8Array {
  const golden = goldenFrames[name];
  if (golden === undefined) throw new Error(`no golden frame ${name}`);
  const { message, payload } = golden;
  const layout = layouts[message.type];
  const fields = Object.entries(layout.fields as Record<string, { key: string; kind: { pack(v: unknown): unknown } }>);
  const plain = message as unknown as Record<string, unknown>;
  const map = new Map<string, unknown>();
  for (const [field, { key, kind }] of fields) if (plain[field] !== undefined) map.set(key, kind.pack(plain[field]));
  for (const [key, value] of Object.entries(change)) {
    if (value === undefined) map.delete(key);
    else map.set(key, value);
  }
  const header = new Encoder().encode(Object.fromEntries(map));
  const body = payloadBytes === undefined ? payload : new Uint8Array(payloadBytes);
  return rawFrame({ type: layout.number, header, ...(body === undefined ? {} : { payload: body }) });
}

function decoded(bytes: Uint8Array): Message {
  const message = decodeAll(bytes)[0]?.message;
  if (message === undefined) throw new Error("no frame");
  return message;
}

/** `message-malformed` whose text has the message's name and `part`. */
function refuses(name: string, change: Readonly<Record<string, unknown>>, part: string, payloadBytes?: number): void {
  const error = thrownBy(() => decodeAll(altered(name, change, payloadBytes)));
  expect(error).toBeInstanceOf(ReplicationError);
  const { code, message } = error as ReplicationError;
  expect(code).toBe("message-malformed");
  expect(message).toContain(`message ${goldenFrames[name]?.message.type} `);
  expect(message).toContain(part);
}

function accepts(name: string, change: Readonly<Record<string, unknown>>, payloadBytes?: number): Message {
  return decoded(altered(name, change, payloadBytes));
}

describe("layouts", () => {
  test("numbers and keys are used once, payload types are those of messages.ts", () => {
    expect(messageForms.map(({ number }) => number)).toEqual(messageForms.map((_, index) => index + 1));
    for (const { fields } of messageForms) expect(new Set(fields.map(({ key }) => key)).size).toBe(fields.length);
    const withPayload = messageForms.filter(({ payload }) => payload !== undefined).map(({ type }) => type);
    expect(withPayload.sort()).toEqual([...payloadTypes].sort());
  });

  const cases = messageForms.flatMap(({ type, fields }) => fields.map((field) => ({ type, ...field })));
  test.each(cases)("$type $key: missing, nil, wrong type", ({ type, key, optional }) => {
    const name = Object.keys(goldenFrames).find((golden) => {
      const { message } = goldenFrames[golden] ?? {};
      return message?.type === type;
    });
    if (name === undefined) throw new Error(`no golden frame of ${type}`);
    if (optional) expect(accepts(name, { [key]: undefined }).type).toBe(type);
    else refuses(name, { [key]: undefined }, `${key}`);
    refuses(name, { [key]: null }, key);
    refuses(name, { [key]: -1.5 }, key);
    refuses(name, { [key]: [[1]] }, key);
  });

  test("keys of a later version are left out, at the top and inside", () => {
    expect(accepts("zero", { later: "x", more: { deep: [1] } })).toEqual(goldenFrames["zero"]?.message);
    const joined = accepts("hello-join", { join: { token: "t", connection: 2, later: true } });
    expect(joined).toMatchObject({ join: { token: "t", connection: 2 } });
    expect(JSON.stringify(joined)).not.toContain("later");
  });

  test("codecs of a later version are left out of `opened` and refused in `data`", () => {
    expect(accepts("opened-fresh", { co: ["brotli", "zstd", "stored"] })).toMatchObject({ codecs: ["stored", "zstd"] });
    refuses("data-parts", { c: "brotli" }, "c (codec)");
  });

  test("decoded byte arrays share no memory with the chunk", () => {
    const frame = encodeFrame(goldenFrames["durable"]?.message as Message);
    const message = decoded(frame);
    frame.fill(0);
    expect(message).toEqual(goldenFrames["durable"]?.message);
  });
});

describe("integers", () => {
  test("exactly the bounds, and one beyond", () => {
    accepts("open-first", { s: 64 * TIB });
    refuses("open-first", { s: 64 * TIB + 1 }, "s (sizeBytes)");
    accepts("open-first", { s: 0 });
    refuses("open-first", { s: -1 }, "s (sizeBytes)");
    accepts("grant", { n: limits.creditFramesMax });
    refuses("grant", { n: limits.creditFramesMax + 1 }, "n (frames)");
    refuses("grant", { n: 0 }, "n (frames)");
    accepts("ask-pages", { n: limits.pagesPerRequestMax });
    refuses("ask-pages", { n: limits.pagesPerRequestMax + 1 }, "n (count)");
    accepts("heartbeat", { b: Number.MAX_SAFE_INTEGER });
    refuses("heartbeat", { b: 2 ** 53 }, "b (bytes)");
    refuses("heartbeat", { b: -1 }, "b (bytes)");
  });

  test("minus zero and not-a-number", () => {
    const header = Uint8Array.from([0x82, 0xa1, 0x62, 0xcb, 0x80, 0, 0, 0, 0, 0, 0, 0, 0xa1, 0x70, 0xa0]);
    const minusZero = thrownBy(() => decodeAll(rawFrame({ type: layouts.heartbeat.number, header })));
    expect((minusZero as ReplicationError).message).toContain("b (bytes)");
    refuses("heartbeat", { b: Number.NaN }, "b (bytes)");
    refuses("heartbeat", { b: Number.POSITIVE_INFINITY }, "b (bytes)");
  });

  test("2^53+1 as a 64-bit integer is not rounded into range", () => {
    const header = Uint8Array.from([0x82, 0xa1, 0x62, 0xcf, 0, 0x20, 0, 0, 0, 0, 0, 1, 0xa1, 0x70, 0xa0]);
    expect(thrownBy(() => decodeAll(rawFrame({ type: layouts.heartbeat.number, header })))).toMatchObject({
      code: "message-malformed",
    });
  });

  test("block sizes, sector sizes, ranges of blocks", () => {
    for (const b of [16_384, 65_536, MIB]) accepts("open-delta", { b });
    for (const b of [8_192, 65_535, 98_304, 2 * MIB]) refuses("open-delta", { b }, "b (blockBytes)");
    refuses("open-first", { e: 1_024 }, "e (sectorBytes)");
    accepts("zero", { f: 2 ** 32 - 1, n: 1 });
    refuses("zero", { f: 2 ** 32 - 1, n: 2 }, "n (count)");
    refuses("zero", { n: 0 }, "n (count)");
    accepts("zero", { n: wireLimits.blocksPerZeroMax });
    refuses("zero", { n: wireLimits.blocksPerZeroMax + 1 }, "n (count)");
    refuses("hello-offer", { version: 1, versionMin: 2 }, "versionMin");
  });
});

describe("strings", () => {
  test("names: length and characters", () => {
    accepts("open-first", { d: "d".repeat(63) });
    refuses("open-first", { d: "d".repeat(64) }, "d (disk): 64 characters");
    refuses("open-first", { d: "" }, "d (disk)");
    for (const d of ["a b", "a\u0000", "ä", "a\n", "\u001b[2J"]) refuses("open-first", { d }, "d (disk)");
  });

  test("lists of names", () => {
    accepts("hello-offer", { features: Array.from({ length: 64 }, (_, index) => `f${index}`) });
    refuses("hello-offer", { features: ["x".repeat(33)] }, "features");
    refuses("hello-offer", { features: [1] }, "features");
    refuses("hello-offer", { features: "parts" }, "features");
  });

  test("texts: at most the maximum received; longer ones are cut before they are sent", () => {
    accepts("heartbeat", { p: "x".repeat(256) });
    refuses("heartbeat", { p: "x".repeat(257) }, "p (phase): 257 characters");
    const sent = decoded(encodeFrame({ type: "error", code: "internal", message: "y".repeat(5_000), details: {} }));
    expect(sent).toMatchObject({ message: `${"y".repeat(limits.errorTextCharsMax - 1)}…` });
  });

  test("control characters become visible, line breaks stay", () => {
    expect(accepts("heartbeat", { p: "a\u001b[2J\u0000\u009b\nb\tc" })).toMatchObject({
      phase: "a\ufffd[2J\ufffd\ufffd\nb\tc",
    });
    const sent = decoded(encodeFrame({ type: "heartbeat", bytes: 0, phase: "a\u0007" }));
    expect(sent).toMatchObject({ phase: "a\ufffd" });
  });
});

describe("data", () => {
  const full = (count: number): Readonly<Record<string, unknown>> => ({
    b: packAscending(Array.from({ length: count }, (_, index) => index * 3)),
    m: new Uint8Array(count).fill(1),
    d: new Uint8Array(count * 8),
    r: count * PART_BYTES,
  });

  test("at most 256 blocks, and 1 MiB", () => {
    accepts("data-parts", full(256));
    refuses("data-parts", full(257), "b (blocks): more than 256");
    refuses("data-parts", { ...full(128), m: new Uint8Array(256).fill(0xff), r: 2_048 * PART_BYTES }, "r (rawBytes)");
  });

  test("masks: a whole number of bytes each, a power of two up to 32, none empty", () => {
    for (const each of [1, 2, 4, 8, 16, 32]) {
      const m = new Uint8Array(each * 2);
      m[0] = 1;
      m[each * 2 - 1] = 0x80;
      accepts("data-parts", { ...full(2), m });
    }
    for (const bytes of [1, 3, 6, 10, 48, 128]) {
      refuses("data-parts", { ...full(2), m: new Uint8Array(bytes).fill(1) }, "m (masks)");
    }
    refuses("data-parts", { ...full(2), m: Uint8Array.of(3, 0) }, "m (masks): block 3 without a part");
  });

  test("digests: eight or sixteen bytes each", () => {
    accepts("data-parts", { ...full(2), d: new Uint8Array(16) });
    accepts("data-parts", { ...full(2), d: new Uint8Array(32) });
    for (const bytes of [8, 15, 24, 33, 64])
      refuses("data-parts", { ...full(2), d: new Uint8Array(bytes) }, "d (digests)");
  });

  test("raw bytes are the parts named", () => {
    refuses("data-parts", { ...full(2), r: PART_BYTES }, "r (rawBytes)");
    refuses("data-parts", { ...full(2), r: 3 * PART_BYTES }, "r (rawBytes)");
    refuses("data-parts", { ...full(2), r: 2 * PART_BYTES + 1 }, "r (rawBytes)");
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 2, maxLength: 2 }), (m) => {
        const parts = [...m].reduce((sum, byte) => sum + byte.toString(2).replaceAll("0", "").length, 0);
        const change = { ...full(2), m, r: parts * PART_BYTES };
        if (m.includes(0)) refuses("data-parts", change, "data");
        else accepts("data-parts", change);
      }),
    );
  });

  test("blocks ascend", () => {
    refuses("data-parts", { b: new Uint8Array(0) }, "b (blocks): an empty list");
    refuses("data-parts", { b: Uint8Array.of(0x80) }, "cut short");
    refuses("data-parts", { b: Uint8Array.of(0x80, 0x00) }, "longer than it needs");
    refuses("data-parts", { b: Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0x01) }, "too large");
    refuses("data-parts", { b: Uint8Array.of(0x80, 0x80, 0x80, 0x80, 0x10) }, "below 4294967296");
    accepts("data-parts", { b: Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0x0f) });
  });

  test("stored payloads are as long as they say", () => {
    accepts("data-parts", { c: "stored" }, 4_096);
    refuses("data-parts", { c: "stored" }, "payload", 4_095);
    accepts("data-parts", { c: "lz4" }, 4_095);
  });
});

describe("payloads of answers", () => {
  test("pages: a bit each and 32 bytes for those set", () => {
    for (const bytes of [2, 2 + 32, 2 + 320]) accepts("pages", {}, bytes);
    for (const bytes of [1, 3, 2 + 31, 2 + 352]) refuses("pages", {}, "payload", bytes);
  });

  test("blocks: digests of its pages, at least one each", () => {
    for (const bytes of [16, 8_192]) accepts("blocks", {}, bytes);
    for (const bytes of [8, 20, 8_200]) refuses("blocks", {}, "payload", bytes);
    accepts("blocks", { n: wireLimits.pagesPerAnswerMax }, wireLimits.pagesPerAnswerMax * 4_096);
    for (const n of [0, wireLimits.pagesPerAnswerMax + 1]) refuses("blocks", { n }, "n (count)");
  });

  test("parts: a bit each and the part digests of those set", () => {
    for (const bytes of [1, 1 + 16, 1 + 4_096]) accepts("parts", {}, bytes);
    for (const bytes of [2, 1 + 15, 1 + 4_112]) refuses("parts", {}, "payload", bytes);
  });

  test("the largest answers fit a frame", () => {
    expect(limits.pagesPerRequestMax / 8 + limits.pagesPerRequestMax * 32).toBeLessThan(limits.framePayloadBytesMax);
    expect(limits.blocksPerRequestMax / 8 + limits.blocksPerRequestMax * 1_024).toBeLessThan(
      limits.framePayloadBytesMax,
    );
  });
});

describe("number lists", () => {
  const ascending = fc.uniqueArray(fc.nat(2 ** 31 - 1), { maxLength: 300 }).map((list) => list.sort((a, b) => a - b));

  test("come back as they were", () => {
    fc.assert(
      fc.property(ascending, fc.constantFrom(0, 2 ** 31), (list, base) => {
        const numbers = list.map((number) => number + base);
        expect(unpackAscending(packAscending(numbers), 300, 2 ** 32)).toEqual(numbers);
      }),
    );
  });

  test("any bytes are a list or a WrongValue, and each list has one form", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        let numbers: number[];
        try {
          numbers = unpackAscending(bytes, 64, 2 ** 32);
        } catch (error) {
          expect(error).toBeInstanceOf(WrongValue);
          return;
        }
        expect([...packAscending(numbers)]).toEqual([...bytes]);
      }),
      { numRuns: 1_000 },
    );
  });

  test("cost at most two bytes a block below gaps of 16384, and one for neighbours", () => {
    const headBytes = (message: Message, payload?: Uint8Array): number =>
      encodeFrame(message, payload).length - (payload?.length ?? 0);
    const scattered = (count: number): number[] => Array.from({ length: count }, (_, index) => 9_000 + index * 16_384);
    const frame = (blocks: readonly number[]): number =>
      headBytes(
        {
          type: "data",
          blocks,
          masks: new Uint8Array(blocks.length * 2).fill(1),
          digests: new Uint8Array(blocks.length * 8),
          codec: "stored",
          rawBytes: blocks.length * 2 * PART_BYTES,
          repeat: false,
        },
        new Uint8Array(blocks.length * 2 * PART_BYTES),
      );
    const fixed = 55;
    expect(frame(scattered(64))).toBeLessThanOrEqual(fixed + 64 * (2 + 2 + 8));
    expect(frame(Array.from({ length: 64 }, (_, index) => index))).toBeLessThanOrEqual(fixed + 64 * (1 + 2 + 8));
    expect(headBytes({ type: "ask-parts", request: 70_000, blocks: scattered(256) })).toBeLessThanOrEqual(fixed + 512);
  });
});

describe("errors across the wire", () => {
  const round = (error: ReplicationError): ReplicationError => {
    const message = decoded(encodeFrame(toErrorMessage(error)));
    if (message.type !== "error") throw new Error("another message");
    return fromErrorMessage(message);
  };

  test("code, text and details come back, marked as remote", () => {
    const error = new ReplicationError("no-space", "disk a: full", {
      details: { need: 5, path: "/x", why: null, b: true },
    });
    expect(round(error)).toMatchObject({
      code: "no-space",
      message: "disk a: full",
      details: { need: 5, path: "/x", why: null, b: true },
      remote: true,
      action: "never",
    });
  });

  test("too much is cut, never refused", () => {
    const facts = Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`k${index}`, "z".repeat(400)]));
    const { details } = round(new ReplicationError("internal", "", { details: { ...facts, k0: Number.NaN } }));
    expect(Object.keys(details)).toHaveLength(wireLimits.detailsMax);
    expect(details["k0"]).toBe("NaN");
    expect(details["k1"]).toHaveLength(wireLimits.detailTextCharsMax);
  });

  test("a code of a later version becomes internal and keeps its name", () => {
    const error = fromErrorMessage({ type: "error", code: "quantum-lost", message: "gone", details: { a: 1 } });
    expect(error).toMatchObject({
      code: "internal",
      action: "never",
      details: { a: 1, code: "quantum-lost" },
      remote: true,
    });
    expect(error.message).toContain("quantum-lost");
  });

  test("details: values and keys", () => {
    refuses("error", { details: { a: [1] } }, "details");
    refuses("error", { details: { a: new Uint8Array(1) } }, "details");
    refuses("error", { details: { a: Number.POSITIVE_INFINITY } }, "details");
    refuses("error", { details: { "a b": 1 } }, "details");
    refuses("error", { details: [] }, "details");
    accepts("error", { details: { a: -0.5 } });
  });
});
