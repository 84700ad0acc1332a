/** Bytes of a peer that is damaged or means harm: only coded errors, bounded memory. */
import { Encoder } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { KIB } from "../../src/base/units.ts";
import { encodeFrame } from "../../src/wire/frame.ts";
import { layouts } from "../../src/wire/message-layout.ts";
import { preludeBytes } from "../../src/wire/prelude.ts";
import { wireLimits } from "../../src/wire/wire-limits.ts";
import { collector, decodeAll, rawFrame, thrownBy } from "./decoding.ts";
import { goldenFrames } from "./golden-messages.ts";

const goldens = Object.entries(goldenFrames).map(
  ([name, { message, payload }]) => [name, encodeFrame(message, payload)] as const,
);
const bye = layouts.bye.number;
const data = layouts.data.number;

function pack(value: unknown): Uint8Array {
  return new Encoder().encode(value);
}

function codeOf(bytes: Uint8Array): string {
  const error = thrownBy(() => decodeAll(bytes));
  expect(error).toBeInstanceOf(ReplicationError);
  return (error as ReplicationError).code;
}

function messageOf(bytes: Uint8Array): string {
  return (thrownBy(() => decodeAll(bytes)) as ReplicationError).message;
}

/** Whatever the bytes are: frames or a coded error, and no payload memory beyond the limit. */
function survive(bytes: Uint8Array): "frames" | "pending" | "error" {
  const { decoder, targets } = collector();
  let outcome: "frames" | "pending" | "error";
  try {
    decoder.push(bytes);
    outcome = decoder.atBoundary ? "frames" : "pending";
  } catch (error) {
    expect(error).toBeInstanceOf(ReplicationError);
    expect(["frame-malformed", "message-malformed"]).toContain((error as ReplicationError).code);
    expect(thrownBy(() => decoder.push(Uint8Array.of(0)))).toBe(error);
    outcome = "error";
  }
  for (const target of targets) expect(target).toBeLessThanOrEqual(limits.framePayloadBytesMax);
  return outcome;
}

describe.each(goldens)("golden frame %s", (_name, frame) => {
  const payloadBytes = Buffer.from(frame).readUInt32LE(12);
  const headBytes = frame.length - payloadBytes;

  test("every flipped bit of the head is refused or leaves the decoder waiting within the limits", () => {
    for (let bit = 0; bit < headBytes * 8; bit++) {
      const flipped = Uint8Array.from(frame);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      const outcome = survive(flipped);
      // A longer header is the only thing one flip can make that needs more bytes; what comes with them fails the
      // checksum.
      if (outcome === "pending") {
        expect(bit >> 3).toBeGreaterThanOrEqual(8);
        expect(bit >> 3).toBeLessThan(12);
        const more = Buffer.concat([flipped, new Uint8Array(limits.frameHeaderBytesMax)]);
        expect(survive(more)).toBe("error");
      } else {
        expect(outcome).toBe("error");
      }
    }
  });

  test("a flipped bit of the payload is a valid frame: payloads have digests of their own", () => {
    for (let at = headBytes; at < frame.length; at++) {
      const flipped = Uint8Array.from(frame);
      flipped[at] = (flipped[at] ?? 0) ^ 0x10;
      expect(survive(flipped)).toBe("frames");
    }
  });

  test("every truncation waits for more", () => {
    for (let length = 1; length < frame.length; length++) {
      const { decoder, frames } = collector();
      decoder.push(frame.subarray(0, length));
      expect(decoder.atBoundary).toBe(false);
      expect(frames).toEqual([]);
    }
  });
});

test("noise never gets through", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: preludeBytes, maxLength: 300 }), (bytes) => {
      expect(survive(bytes)).not.toBe("frames");
    }),
    { numRuns: 500 },
  );
});

test("noise as the header of every message", () => {
  const types = Object.values(layouts).map(({ number, payload }) => ({ number, payload: payload !== undefined }));
  fc.assert(
    fc.property(fc.constantFrom(...types), fc.uint8Array({ minLength: 1, maxLength: 200 }), (type, header) => {
      survive(rawFrame({ type: type.number, header, ...(type.payload ? { payload: new Uint8Array(8) } : {}) }));
    }),
    { numRuns: 2_000 },
  );
});

test("one field of a right header replaced by any value", () => {
  const values = fc.oneof(
    fc.anything({ withBigInt: false, withTypedArray: false, maxDepth: 2 }),
    fc.uint8Array({ maxLength: 40 }),
    fc.double(),
    fc.maxSafeInteger(),
  );
  fc.assert(
    fc.property(
      fc.constantFrom(...Object.values(goldenFrames)),
      fc.nat(),
      values,
      ({ message, payload }, pick, value) => {
        const layout = layouts[message.type];
        const fields = Object.entries(
          layout.fields as Record<string, { key: string; kind: { pack(v: unknown): unknown } }>,
        );
        const plain = message as unknown as Record<string, unknown>;
        const map = fields
          .filter(([name]) => plain[name] !== undefined)
          .map(([name, { key, kind }]) => [key, kind.pack(plain[name])] as const);
        const entries = map.map(([key, old], index) => [key, index === pick % map.length ? value : old] as const);
        let header: Uint8Array;
        try {
          header = pack(Object.fromEntries(entries));
        } catch {
          return; // Some of the values cannot be written as msgpack at all.
        }
        survive(rawFrame({ type: layout.number, header, ...(payload === undefined ? {} : { payload }) }));
      },
    ),
    { numRuns: 2_000 },
  );
});

describe("prelude", () => {
  const empty = Uint8Array.of(0x80);

  test("another protocol, unknown types, flags, reserved bytes", () => {
    expect(messageOf(Buffer.from("GET / HTTP/1.1\r\nHost: replica\r\n\r\n"))).toContain("another protocol");
    for (const type of [0, 21, 255]) expect(codeOf(rawFrame({ type, header: empty }))).toBe("frame-malformed");
    expect(messageOf(rawFrame({ type: 21, header: empty }))).toContain("message type 21 is unknown");
    for (let bit = 0; bit < 8; bit++) {
      expect(codeOf(rawFrame({ type: bye, header: empty, flags: 1 << bit }))).toBe("frame-malformed");
    }
    expect(codeOf(rawFrame({ type: bye, header: empty, reserved: 1 }))).toBe("frame-malformed");
    expect(codeOf(rawFrame({ type: bye, header: empty, reserved: 2 ** 31 }))).toBe("frame-malformed");
  });

  test("a header of no bytes, of exactly the maximum, of one more, of 4 GiB", () => {
    expect(codeOf(rawFrame({ type: bye, header: new Uint8Array(0) }))).toBe("frame-malformed");
    const filler = (bytes: number): Uint8Array => new Uint8Array(bytes);
    // bye has no fields, so these are keys of a later version: 4 × (2 + 3 bytes and the filler), and the map.
    const header = (size: number): Uint8Array => {
      const fixed = 1 + 4 * (2 + 3);
      const each = Math.floor((size - fixed) / 4);
      return pack({ a: filler(each), b: filler(each), c: filler(each), d: filler(size - fixed - 3 * each) });
    };
    const largest = header(limits.frameHeaderBytesMax);
    expect(largest.length).toBe(limits.frameHeaderBytesMax);
    expect(decodeAll(rawFrame({ type: bye, header: largest }))[0]?.message).toEqual({ type: "bye" });
    const beyond = rawFrame({ type: bye, header: empty, headerBytes: limits.frameHeaderBytesMax + 1 });
    expect(codeOf(beyond.subarray(0, preludeBytes))).toBe("frame-malformed");
    expect(codeOf(rawFrame({ type: bye, header: empty, headerBytes: 2 ** 32 - 1 }))).toBe("frame-malformed");
  });

  test("a payload of exactly the maximum is taken, one byte more is refused before any memory", () => {
    const header = encodeFrame(
      {
        type: "data",
        blocks: [0],
        masks: Uint8Array.of(1),
        digests: new Uint8Array(8),
        codec: "lz4",
        rawBytes: 4_096,
        repeat: false,
      },
      new Uint8Array(1),
    ).subarray(preludeBytes, -1);
    const max = limits.framePayloadBytesMax;
    const frames = decodeAll(rawFrame({ type: data, header, payload: new Uint8Array(max).fill(9) }));
    expect(frames[0]?.payload).toHaveLength(max);
    const { decoder, targets } = collector();
    const error = thrownBy(() => decoder.push(rawFrame({ type: data, header, payloadBytes: max + 1 })));
    expect((error as ReplicationError).code).toBe("frame-malformed");
    expect(targets).toEqual([]);
    expect(codeOf(rawFrame({ type: data, header, payloadBytes: 3 * 2 ** 30 }))).toBe("frame-malformed");
    expect(codeOf(rawFrame({ type: data, header }))).toBe("frame-malformed");
  });

  test("a payload on a type that carries none", () => {
    expect(codeOf(rawFrame({ type: bye, header: empty, payload: Uint8Array.of(1) }))).toBe("frame-malformed");
  });

  test("a wrong checksum", () => {
    const frame = rawFrame({ type: bye, header: empty });
    frame[16] = (frame[16] ?? 0) ^ 1;
    expect(codeOf(frame)).toBe("frame-malformed");
    expect(messageOf(frame)).toContain("checksum");
  });
});

describe("msgpack", () => {
  const refused = (header: Uint8Array, part: string): void => {
    expect(header.length).toBeLessThanOrEqual(limits.frameHeaderBytesMax);
    const frame = rawFrame({ type: bye, header });
    expect(codeOf(frame)).toBe("message-malformed");
    expect(messageOf(frame)).toContain(part);
  };
  const inMap = (...value: readonly number[]): Uint8Array => Uint8Array.from([0x81, 0xa1, 0x61, ...value]);

  test("not a map, an empty rest, bytes behind the map", () => {
    refused(pack(5), "not a msgpack map");
    refused(pack([1]), "not a msgpack map");
    refused(Uint8Array.of(0xc1), "not a msgpack map");
    refused(Uint8Array.of(0x80, 0x80), "1 bytes behind");
    refused(Uint8Array.of(0x81), "cut short");
    refused(Uint8Array.of(0x81, 0xa1), "cut short");
    refused(inMap(0xcd, 0x01), "cut short");
  });

  test("claims: arrays, maps, strings and byte arrays larger than the header", () => {
    refused(inMap(0xdd, 0xff, 0xff, 0xff, 0xff), "4294967295 entries");
    refused(inMap(0xdc, 0xff, 0xff), "65535 entries");
    refused(Uint8Array.of(0xdf, 0xff, 0xff, 0xff, 0xff), "4294967295 entries");
    refused(Uint8Array.of(0xde, 0x00, 0x41), "65 entries");
    refused(inMap(0xdb, 0xff, 0xff, 0xff, 0xff), "4294967295 bytes");
    refused(inMap(0xc6, 0x7f, 0xff, 0xff, 0xff), "2147483647 bytes");
    refused(inMap(0xc5, 0x40, 0x01), "16385 bytes");
    refused(inMap(0xc5, 0x40, 0x00), "cut short");
    refused(inMap(0xdc, 0x00, 0x40), "cut short");
  });

  test("arrays inside arrays that would add up to hundreds of megabytes", () => {
    const claims = Array.from({ length: 20_000 }, () => [0xdc, 0x00, 0x40]).flat();
    refused(inMap(...claims), `deeper than ${wireLimits.headerDepthMax}`);
    const nested = Array.from({ length: 60_000 }, () => 0x91);
    refused(inMap(...nested, 0xc0), `deeper than ${wireLimits.headerDepthMax}`);
    refused(Uint8Array.from(Array.from({ length: 20_000 }, () => [0x81, 0xa1, 0x61]).flat()), "deeper than");
  });

  test("exactly the depth allowed is taken, one more is not", () => {
    const decoded = decodeAll(rawFrame({ type: bye, header: pack({ later: { a: [1] } }) }));
    expect(decoded[0]?.message).toEqual({ type: "bye" });
    refused(pack({ later: { a: [[1]] } }), "deeper than");
  });

  test("extension types, keys that are not strings or too long, keys given twice", () => {
    refused(inMap(0xd4, 0x01, 0x00), "0xd4 is not used");
    refused(inMap(0xd6, 0xff, 0, 0, 0, 0), "0xd6 is not used");
    refused(Uint8Array.of(0x81, 0x01, 0xc0), "not a string");
    refused(Uint8Array.of(0x81, 0xc4, 0x01, 0x61, 0xc0), "not a string");
    refused(pack({ ["k".repeat(65)]: 1 }), "a key of 65 bytes");
    refused(Uint8Array.of(0x82, 0xa1, 0x61, 0xc0, 0xa1, 0x61, 0xc0), "a key given twice");
    refused(inMap(0x82, 0xa1, 0x62, 0x01, 0xa1, 0x62, 0x02), "a key given twice");
  });

  test("keys that mean something to JavaScript", () => {
    for (const key of ["__proto__", "constructor", "prototype"]) {
      const bytes = Buffer.from(key);
      const entry = [0xa0 | bytes.length, ...bytes, 0x80];
      refused(Uint8Array.from([0x81, ...entry]), key);
      refused(Uint8Array.from([0x81, 0xa1, 0x61, 0x81, ...entry]), key);
    }
    expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
  });

  test("a large header of small values costs little", () => {
    // 64 entries of 64 entries of 14 nils: the most values the shape lets through.
    const nils = [0x9e, ...Array.from({ length: 14 }, () => 0xc0)];
    const array = [0xdc, 0x00, 0x40, ...Array.from({ length: 64 }, () => nils).flat()];
    const entries = Array.from({ length: 64 }, (_, index) => [0xa2, 0x30 + (index >> 3), 0x30 + (index & 7), ...array]);
    const header = Uint8Array.from([0xde, 0x00, 0x40, ...entries.flat()]);
    expect(header.length).toBeGreaterThan(60 * KIB);
    expect(decodeAll(rawFrame({ type: bye, header }))[0]?.message).toEqual({ type: "bye" });
  });
});
