/** The bytes of every message, written out by hand from the protocol's document, and what is no message. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { isErrorChunk, isOptionError, optionReplies, options } from "../../src/nbd/protocol.ts";
import * as option from "../../src/nbd/option-codec.ts";
import * as reply from "../../src/nbd/reply-codec.ts";
import { decodeRequest, encodeRequest, type ReadRequest, requestHeadBytes } from "../../src/nbd/request-codec.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const bytes = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ""), "hex");

function written(length: number, write: (target: Buffer) => void): string {
  const target = Buffer.alloc(length, 0xee);
  write(target);
  return hex(target);
}

describe("negotiation", () => {
  test.each([
    ["greeting", option.encodeGreeting(3), "4e42444d41474943 49484156454f5054 0003"],
    ["client flags", option.encodeClientFlags(3), "00000003"],
    ["an option without data", option.encodeOption(options.list), "49484156454f5054 00000003 00000000"],
    [
      "go, block sizes wanted",
      option.encodeOption(options.go, option.encodeExportChoice("ab", [3])),
      "49484156454f5054 00000007 0000000a 00000002 6162 0001 0003",
    ],
    [
      "choice of contexts",
      option.encodeContextQueries("é", ["base:", "q"]),
      "00000002 c3a9 00000002 00000005 626173653a 00000001 71",
    ],
    ["ack", option.encodeOptionReply(options.go, optionReplies.ack), "0003e889045565a9 00000007 00000001 00000000"],
    [
      "unsupported, with a text",
      option.encodeOptionReply(4, optionReplies.unsupported, Buffer.from("no")),
      "0003e889045565a9 00000004 80000001 00000002 6e6f",
    ],
    ["an export in a list", option.encodeListed("disk", "d"), "00000004 6469736b 64"],
    [
      "info of an export of 2^40 bytes",
      option.encodeExportInfo({ sizeBytes: 2 ** 40, flags: 0x0103 }),
      "0000 0000010000000000 0103",
    ],
    [
      "info of block sizes",
      option.encodeBlockSizeInfo({ minimum: 1, preferred: 4096, maximum: 2 ** 25 }),
      "0003 00000001 00001000 02000000",
    ],
    ["info of a name", option.encodeTextInfo(1, "x"), "0001 78"],
    ["a context", option.encodeContext(7, "base:allocation"), "00000007 626173653a616c6c6f636174696f6e"],
    ["answer to a name", option.encodeExportNameReply({ sizeBytes: 513, flags: 1 }, false), "0000000000000201 0001"],
    [
      "answer to a name of an old client",
      option.encodeExportNameReply({ sizeBytes: 513, flags: 1 }, true),
      `0000000000000201 0001 ${"00".repeat(124)}`,
    ],
  ])("%s", (_name, encoded, expected) => {
    expect(hex(encoded)).toBe(expected.replaceAll(" ", ""));
  });

  test("what was written is read", () => {
    expect(option.decodeGreeting(option.encodeGreeting(3))).toEqual({ kind: "newstyle", flags: 3 });
    expect(option.decodeOptionHead(option.encodeOption(9, Buffer.alloc(5)))).toEqual({ option: 9, length: 5 });
    const head = option.encodeOptionReply(7, optionReplies.info, Buffer.alloc(12));
    expect(option.decodeOptionReplyHead(head, 7)).toEqual({ type: 3, length: 12 });
    expect(option.decodeExportChoice(option.encodeExportChoice("a/b", [0, 3]))).toEqual({
      name: "a/b",
      wanted: [0, 3],
    });
    expect(option.decodeContextQueries(option.encodeContextQueries("", ["x"]))).toEqual({ name: "", queries: ["x"] });
    expect(option.decodeListed(option.encodeListed("n", "about"))).toEqual({ name: "n", description: "about" });
    const exported = { sizeBytes: 2 ** 46, flags: 0xffff };
    expect(option.decodeInfo(option.encodeExportInfo(exported))).toEqual({ kind: "export", ...exported });
    expect(option.decodeExportNameReply(option.encodeExportNameReply(exported, false))).toEqual(exported);
    const sizes = { minimum: 512, preferred: 4096, maximum: 0xffff_ffff };
    expect(option.decodeInfo(option.encodeBlockSizeInfo(sizes))).toEqual({ kind: "blockSize", ...sizes });
    expect(option.decodeInfo(option.encodeTextInfo(2, "text"))).toEqual({ kind: "other" });
    expect(option.decodeContext(option.encodeContext(3, "c"))).toEqual({ id: 3, name: "c" });
  });

  test("oldstyle is told from what is no NBD at all", () => {
    expect(option.decodeGreeting(bytes("4e42444d41474943 0000420281861253 0000"))).toEqual({ kind: "oldstyle" });
    expect(option.decodeGreeting(bytes("4e42444d41474943 49484156454f5055 0000"))).toBeUndefined();
    expect(option.decodeGreeting(Buffer.from("HTTP/1.1 400 Bad Request"))).toBeUndefined();
  });

  test.each([
    ["no option", () => option.decodeOptionHead(Buffer.alloc(16))],
    ["no reply", () => option.decodeOptionReplyHead(Buffer.alloc(20), 7)],
    ["a reply to another option", () => option.decodeOptionReplyHead(option.encodeOptionReply(6, 1), 7)],
    ["a reply of 4 GiB", () => option.decodeOptionReplyHead(bytes("0003e889045565a9 00000007 00000003 ffffffff"), 7)],
    ["a name that ends too early", () => option.decodeExportChoice(bytes("00000005 6162 0000"))],
    ["a name of 4097 bytes", () => option.decodeExportChoice(option.encodeExportChoice("x".repeat(4097), []))],
    ["a name with a NUL", () => option.decodeExportChoice(option.encodeExportChoice("a\0b", []))],
    ["fewer wanted facts than said", () => option.decodeExportChoice(bytes("00000000 0002 0003"))],
    ["more bytes than said", () => option.decodeExportChoice(bytes("00000000 0000 00"))],
    ["2^32-1 queries in no bytes", () => option.decodeContextQueries(bytes("00000000 ffffffff"))],
    ["a disk of 2^63 bytes", () => option.decodeInfo(bytes("0000 8000000000000000 0001"))],
    ["a fact that is cut", () => option.decodeInfo(bytes("0000 00000000"))],
    ["block sizes that are too long", () => option.decodeInfo(bytes("0003 00000001 00001000 02000000 00"))],
    ["blocks of 0", () => option.decodeInfo(option.encodeBlockSizeInfo({ minimum: 0, preferred: 1, maximum: 1 }))],
    ["blocks of 3", () => option.decodeInfo(option.encodeBlockSizeInfo({ minimum: 3, preferred: 4, maximum: 9 }))],
    [
      "blocks of 128 KiB at least",
      () => option.decodeInfo(option.encodeBlockSizeInfo({ minimum: 2 ** 17, preferred: 2 ** 17, maximum: 2 ** 25 })),
    ],
    [
      "a maximum below the minimum",
      () => option.decodeInfo(option.encodeBlockSizeInfo({ minimum: 4096, preferred: 4096, maximum: 512 })),
    ],
  ])("%s is refused", (_name, decode) => {
    expect(decode).toThrow(expect.objectContaining({ code: "protocol-violation" }) as Error);
  });
});

describe("transmission", () => {
  const cookie = { high: 0x01020304, low: 0x05060708 };
  const request = { ...cookie, command: 1, flags: 1, offset: 2 ** 40 + 512, length: 4096 };
  const fresh = (): ReadRequest => ({ command: -1, flags: -1, high: -1, low: -1, offset: -1, length: -1 });

  test.each([
    [
      "request",
      written(requestHeadBytes, (target) => encodeRequest(request, target, 0)),
      "25609513 0001 0001 0102030405060708 0000010000000200 00001000",
    ],
    [
      "simple reply",
      written(reply.simpleReplyBytes, (target) => reply.encodeSimpleReply(cookie, 5, target, 0)),
      "67446698 00000005 0102030405060708",
    ],
    [
      "head of a chunk",
      written(reply.chunkHeadBytes, (target) =>
        reply.encodeChunkHead(cookie, { type: 1, done: true, length: 9 }, target, 0),
      ),
      "668e33ef 0001 0001 0102030405060708 00000009",
    ],
    ["offset", written(8, (target) => reply.encodeOffset(2 ** 40 + 1, target, 0)), "0000010000000001"],
    ["error", hex(reply.encodeErrorPayload(22, "no")), "00000016 0002 6e6f"],
    ["block status", hex(reply.encodeStatusPayload(9, [4096, 3])), "00000009 00001000 00000003"],
  ])("%s", (_name, encoded, expected) => {
    expect(encoded).toBe(expected.replaceAll(" ", ""));
  });

  test("what was written is read", () => {
    const target = Buffer.alloc(40);
    encodeRequest(request, target, 12);
    const into = fresh();
    decodeRequest(target, 12, into);
    expect(into).toEqual(request);
    expect(reply.decodeErrorPayload(reply.encodeErrorPayload(28, "full"))).toEqual({ error: 28, message: "full" });
    reply.encodeOffset(2 ** 52 + 3, target, 1);
    expect(reply.decodeOffset(target, 1)).toBe(2 ** 52 + 3);
    const { id, descriptors } = reply.decodeStatusPayload(reply.encodeStatusPayload(4, [512, 0, 2 ** 32 - 512, 3]));
    expect([id, ...descriptors]).toEqual([4, 512, 0, 2 ** 32 - 512, 3]);
  });

  test("an offset that no disk has is no offset of ours", () => {
    const target = Buffer.alloc(requestHeadBytes);
    encodeRequest(request, target, 0);
    target.writeUInt32BE(0xffff_ffff, 16);
    const into = fresh();
    decodeRequest(target, 0, into);
    expect(into.offset).toBe(Number.POSITIVE_INFINITY);
  });

  test.each([
    ["no request", () => decodeRequest(Buffer.alloc(28), 0, fresh())],
    ["an error without a number", () => reply.decodeErrorPayload(bytes("00000000 0000"))],
    ["an error that is cut", () => reply.decodeErrorPayload(bytes("00000005 00"))],
    ["an error with less text than said", () => reply.decodeErrorPayload(bytes("00000005 0003 6e6f"))],
    ["an offset of 2^53", () => reply.decodeOffset(bytes("0020000000000000"), 0)],
    ["a block status of nothing", () => reply.decodeStatusPayload(bytes("00000001"))],
    ["a block status that is cut", () => reply.decodeStatusPayload(bytes("00000001 00000001 000000"))],
    ["a block status of no bytes", () => reply.decodeStatusPayload(bytes("00000001 00000000 00000003"))],
    ["nothing, and more to come", () => reply.checkChunkLength(0, 0, false)],
    ["nothing, with content", () => reply.checkChunkLength(0, 1, true)],
    ["content of no bytes", () => reply.checkChunkLength(1, 8, true)],
    ["a hole with content", () => reply.checkChunkLength(2, 13, true)],
    ["a block status of 1 GiB", () => reply.checkChunkLength(5, 2 ** 30, true)],
    ["an error of 1 GiB", () => reply.checkChunkLength(0x8001, 2 ** 30, true)],
    ["a chunk of an unknown type", () => reply.checkChunkLength(3, 0, true)],
  ])("%s is refused", (_name, decode) => {
    expect(decode).toThrow(expect.objectContaining({ code: "protocol-violation" }) as Error);
  });

  test("errors are known by their bit, whatever their number", () => {
    expect([1, 3, 0x8000_0001, 0xffff_ffff].map(isOptionError)).toEqual([false, false, true, true]);
    expect([0, 5, 0x8001, 0xffff].map(isErrorChunk)).toEqual([false, false, true, true]);
    expect(() => reply.checkChunkLength(0xabcd, 6, true)).not.toThrow();
  });
});

test("any bytes are a message or a protocol violation, never another exception", () => {
  const decoders: ((bytes: Buffer) => unknown)[] = [
    (data) => option.decodeExportChoice(data),
    (data) => option.decodeContextQueries(data),
    (data) => option.decodeListed(data),
    (data) => option.decodeInfo(data),
    (data) => option.decodeContext(data),
    (data) => reply.decodeErrorPayload(data),
    (data) => reply.decodeStatusPayload(data),
  ];
  const small = fc.constantFrom(0, 1, 2, 3, 4, 8);
  const data = fc.oneof(
    fc.uint8Array({ maxLength: 60 }),
    fc.array(small, { maxLength: 12 }).map((words) => Uint8Array.from(words.flatMap((word) => [0, 0, 0, word]))),
  );
  fc.assert(
    fc.property(data, fc.nat(decoders.length - 1), (given, index) => {
      try {
        decoders[index]?.(Buffer.from(given));
      } catch (error) {
        expect(error).toBeInstanceOf(ReplicationError);
        expect((error as ReplicationError).code).toBe("protocol-violation");
      }
    }),
    { numRuns: 2_000 },
  );
});
