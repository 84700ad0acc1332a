/** Servers that break the protocol, byte by byte: each costs the client a clear error, and no read is ever answered with what was not sent. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import * as option from "../../src/nbd/option-codec.ts";
import { chunks, commands, exportFlags, optionReplies, options } from "../../src/nbd/protocol.ts";
import * as reply from "../../src/nbd/reply-codec.ts";
import type { ReadRequest } from "../../src/nbd/request-codec.ts";
import { openScripted, type ScriptedServer } from "./kit.ts";

function chunk(request: ReadRequest, type: number, done: boolean, ...payload: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(payload);
  const head = Buffer.alloc(reply.chunkHeadBytes);
  reply.encodeChunkHead(request, { type, done, length: body.length }, head, 0);
  return Buffer.concat([head, body]);
}

function simple(request: ReadRequest, error = 0): Buffer {
  const bytes = Buffer.alloc(reply.simpleReplyBytes);
  reply.encodeSimpleReply(request, error, bytes, 0);
  return bytes;
}

function offset(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  reply.encodeOffset(value, bytes, 0);
  return bytes;
}

function content(request: ReadRequest, at: number, bytes: Uint8Array, done = false): Buffer {
  return chunk(request, chunks.offsetData, done, offset(at), bytes);
}

function hole(request: ReadRequest, at: number, length: number, done = false): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt32BE(length);
  return chunk(request, chunks.offsetHole, done, offset(at), size);
}

const ones = (length: number): Uint8Array => new Uint8Array(length).fill(1);

describe("negotiation", () => {
  const go = async (server: ScriptedServer, ...infos: readonly Uint8Array[]): Promise<void> => {
    await server.greet();
    for (;;) {
      const { option: asked } = await server.option();
      if (asked !== options.go) {
        server.reply(asked, optionReplies.unsupported);
        continue;
      }
      for (const info of infos) server.reply(asked, optionReplies.info, info);
      server.reply(asked, optionReplies.ack);
      return;
    }
  };
  const first = async (server: ScriptedServer, ...says: readonly (Uint8Array | string)[]): Promise<void> => {
    await server.greet();
    await server.option();
    server.say(...says);
  };
  const size = option.encodeExportInfo({ sizeBytes: 4096, flags: 1 });

  test.each<[string, string, RegExp, (server: ScriptedServer) => Promise<void>]>([
    ["an HTTP server", "not-nbd", /address and the port/, async (s) => s.say(Buffer.from("HTTP/1.1 400 Bad Request"))],
    [
      "oldstyle",
      "version-unsupported",
      /oldstyle/,
      async (s) => s.say("4e42444d41474943 0000420281861253", Buffer.alloc(136)),
    ],
    ["newstyle that is not fixed", "version-unsupported", /not fixed/, async (s) => s.say(option.encodeGreeting(0))],
    ["an end before the greeting", "connection-lost", /closed/, async (s) => s.stream.close()],
    ["a reply that is none", "protocol-violation", /does not begin/, (s) => first(s, Buffer.alloc(20))],
    [
      "a reply to another option",
      "protocol-violation",
      /reply to option 3/,
      (s) => first(s, option.encodeOptionReply(3, 1)),
    ],
    [
      "a reply of 4 GiB",
      "protocol-violation",
      /4294967295 bytes/,
      (s) => first(s, "0003e889045565a9 00000008 00000001 ffffffff"),
    ],
    [
      "replies without end",
      "protocol-violation",
      /no end of replies/,
      async (s) => {
        await s.greet();
        await s.option();
        for (let index = 0; index < 5_000; index++) s.reply(options.structuredReply, optionReplies.info);
      },
    ],
    [
      "megabytes of replies",
      "protocol-violation",
      /no end of replies/,
      async (s) => {
        await s.greet();
        await s.option();
        for (let index = 0; index < 80; index++) s.reply(options.structuredReply, optionReplies.info, ones(16_000));
      },
    ],
    ["TLS wanted", "tls-failed", /nbds:/, (s) => first(s, option.encodeOptionReply(8, optionReplies.tlsRequired))],
    [
      "a server that goes down",
      "connection-lost",
      /going down/,
      (s) => first(s, option.encodeOptionReply(8, optionReplies.shutdown)),
    ],
    ["an export of which nothing is said", "protocol-violation", /nothing was said/, (s) => go(s)],
    [
      "an export without flags",
      "protocol-violation",
      /without flags/,
      (s) => go(s, option.encodeExportInfo({ sizeBytes: 1, flags: 0 })),
    ],
    [
      "a disk larger than any",
      "limit-exceeded",
      /64 TiB/,
      (s) => go(s, option.encodeExportInfo({ sizeBytes: 2 ** 47, flags: 1 })),
    ],
    [
      "blocks of 3 bytes",
      "protocol-violation",
      /at least 3/,
      (s) => go(s, size, Buffer.from("0003000000030000100000001000", "hex")),
    ],
  ])("%s: %s", async (_name, code, says, script) => {
    const opening = openScripted(script);
    await expect(opening).rejects.toMatchObject({ code });
    await expect(opening).rejects.toThrow(says);
    await expect(opening).rejects.toThrow(/^nbd:\/\/scripted:10809\/disk: /);
  });

  test.each<[string, readonly [number, string][], RegExp]>([
    [
      "two contexts with one id",
      [
        [1, "base:allocation"],
        [1, "other"],
      ],
      /one id/,
    ],
    ["a context nobody asked for", [[1, "surprise"]], /"surprise" was not asked/],
    [
      "a context twice",
      [
        [1, "other"],
        [2, "other"],
      ],
      /"other" was not asked/,
    ],
  ])("%s", async (_name, contexts, says) => {
    const opening = openScripted(
      async (server) => {
        await server.greet();
        await server.option();
        server.reply(options.structuredReply, optionReplies.ack);
        await server.option();
        for (const [id, name] of contexts) {
          server.reply(options.setMetaContext, optionReplies.metaContext, option.encodeContext(id, name));
        }
        server.reply(options.setMetaContext, optionReplies.ack);
      },
      { contexts: ["other"] },
    );
    await expect(opening).rejects.toThrow(says);
    await expect(opening).rejects.toMatchObject({ code: "protocol-violation" });
  });

  test("a server that knows no GO is asked by name, and may have 124 zeroes behind its answer", async () => {
    const reader = await openScripted(async (server) => {
      await server.greet(1);
      for (;;) {
        const { option: asked, data } = await server.option();
        if (asked === options.exportName) {
          expect(data.toString()).toBe("disk");
          server.say(option.encodeExportNameReply({ sizeBytes: 1024, flags: 1 }, true));
          const request = await server.request();
          server.say(simple(request), ones(request.length));
          return;
        }
        server.reply(asked, optionReplies.unsupported);
      }
    });
    expect(reader.sizeBytes).toBe(1024);
    expect(reader.contexts).toEqual([]);
    const target = new Uint8Array(1024);
    await reader.read(target, 0);
    expect(target).toEqual(ones(1024));
    await reader.close();
  });

  test("a wrong name ends with the names there are, also where the server only closes the connection", async () => {
    const script = (lists: boolean) => async (server: ScriptedServer) => {
      await server.greet();
      for (;;) {
        const { option: asked } = await server.option();
        if (asked === options.exportName) return server.stream.close();
        if (asked === options.list && lists) {
          for (const name of ["a", 'b"\n']) server.reply(asked, optionReplies.server, option.encodeListed(name));
          server.reply(asked, optionReplies.ack);
        } else server.reply(asked, optionReplies.unsupported);
      }
    };
    const named = openScripted(script(true));
    await expect(named).rejects.toMatchObject({ code: "image-not-found" });
    await expect(named).rejects.toThrow('no export "disk": it has "a", "b\\"\\n"');
    await expect(openScripted(script(false))).rejects.toThrow("it names none");
  });

  test("a server that says nothing is given up in time", async () => {
    const clock = createFakeClock();
    const opening = openScripted(async () => undefined, { clock });
    const failed = expect(opening).rejects.toMatchObject({ code: "handshake-timeout", action: "reconnect" });
    await clock.run(9_999);
    expect(clock.waiting).toBe(1);
    await clock.run(1);
    await failed;
    expect(clock.waiting).toBe(0);
  });
});

type Says = (server: ScriptedServer, request: ReadRequest) => void;

/** Reads 4096 bytes at 8192 from a server that answers once as `says`; the target has 0xee where nothing came. */
async function readFrom(says: Says, structured = true): Promise<Uint8Array> {
  const reader = await openScripted(async (server) => {
    await server.negotiate({ structured });
    says(server, await server.request());
  });
  const target = new Uint8Array(4096).fill(0xee);
  try {
    await reader.read(target, 8192);
  } finally {
    await reader.close();
  }
  return target;
}

describe("replies to a read", () => {
  test("content may come in any order, with holes, and the end alone", async () => {
    const target = await readFrom((server, request) => {
      server.say(
        content(request, 8192 + 3000, ones(1096)),
        hole(request, 8192, 1000),
        content(request, 9192, ones(2000)),
      );
      server.say(chunk(request, chunks.none, true));
    });
    expect(target.subarray(0, 1000)).toEqual(new Uint8Array(1000));
    expect(target.subarray(1000)).toEqual(ones(3096));
  });

  test.each<[string, RegExp, Says]>([
    ["that do not begin as one", /does not begin/, (s) => s.say(Buffer.alloc(64))],
    ["to nobody", /no request of ours/, (s, r) => s.say(content({ ...r, low: 5 }, 8192, ones(4096), true))],
    [
      "to a place, but not this request",
      /no request of ours/,
      (s, r) => s.say(content({ ...r, high: r.high + 1 }, 8192, ones(4096), true)),
    ],
    [
      "to a place there is not",
      /no request of ours/,
      (s, r) => s.say(content({ ...r, low: 2 ** 31 }, 8192, ones(4096), true)),
    ],
    ["simple, where structured was agreed", /in place of/, (s, r) => s.say(simple(r), ones(4096))],
    ["that say they are done with less", /before its content/, (s, r) => s.say(content(r, 8192, ones(4095), true))],
    ["that are done with nothing", /before its content/, (s, r) => s.say(chunk(r, chunks.none, true))],
    ["with more", /outside/, (s, r) => s.say(content(r, 8192, ones(4097), true))],
    ["from before", /outside/, (s, r) => s.say(content(r, 8191, ones(4096), true))],
    ["from 2^63", /no disk has/, (s, r) => s.say(chunk(r, chunks.offsetData, true, Buffer.alloc(8, 0x80), ones(4096)))],
    ["of 4 GiB", /outside/, (s, r) => s.say("668e33ef 0001 0001", offsetOf(r), "ffffffff", offset(8192))],
    ["with a hole of 4 GiB", /outside/, (s, r) => s.say(hole(r, 8192, 2 ** 32 - 1, true))],
    ["with a hole of nothing", /hole of no bytes/, (s, r) => s.say(hole(r, 8192, 0))],
    [
      "with content twice",
      /same content twice/,
      (s, r) => s.say(content(r, 8192, ones(2048)), content(r, 8192 + 2047, ones(2049), true)),
    ],
    ["with content of nothing", /without content/, (s, r) => s.say(content(r, 8192, ones(0)))],
    [
      "with a block status",
      /nobody asked/,
      (s, r) => s.say(chunk(r, chunks.blockStatus, true, reply.encodeStatusPayload(1, [1, 0]))),
    ],
    ["of an unknown type", /unknown type 77/, (s, r) => s.say(chunk(r, 77, true))],
    [
      "that are done, and then go on",
      /no request of ours/,
      (s, r) => s.say(content(r, 8192, ones(4096), true), content(r, 8192, ones(1))),
    ],
    ["with an error of 1 GiB", /error chunk of/, (s, r) => s.say("668e33ef 0001 8001", offsetOf(r), "40000000")],
    [
      "with an error that is none",
      /without an error/,
      (s, r) => s.say(chunk(r, chunks.error, true, reply.encodeErrorPayload(0, ""))),
    ],
  ])("%s", async (name, says, script) => {
    const read = readFrom(script);
    if (name.includes("then go on")) await expect(read).resolves.toEqual(ones(4096));
    else {
      await expect(read).rejects.toMatchObject({ code: "protocol-violation" });
      await expect(read).rejects.toThrow(says);
    }
  });

  test.each<[string, Says]>([
    [
      "in the middle of content",
      (s, r) => {
        s.say(content(r, 8192, ones(4096), true).subarray(0, 2000));
        s.stream.close();
      },
    ],
    [
      "in the middle of a head",
      (s) => {
        s.say("668e33ef 00");
        s.stream.close();
      },
    ],
    ["instead of an answer", (s) => s.stream.destroy()],
  ])("that end %s: to be tried again", async (_name, script) => {
    await expect(readFrom(script)).rejects.toMatchObject({ code: "connection-lost", action: "reconnect" });
  });

  test("an error says what the server says, and the connection goes on", async () => {
    const reader = await openScripted(async (server) => {
      await server.negotiate();
      const first = await server.request();
      server.say(
        content(first, 0, ones(512)),
        chunk(first, chunks.error, true, reply.encodeErrorPayload(5, "bad\nsector")),
      );
      const second = await server.request();
      server.say(chunk(second, 0xabcd, false, reply.encodeErrorPayload(12, "")), chunk(second, chunks.none, true));
      const third = await server.request();
      server.say(content(third, 0, ones(1024), true));
    });
    const target = new Uint8Array(1024);
    const failed = reader.read(target, 0);
    await expect(failed).rejects.toMatchObject({
      code: "image-unreadable",
      details: { offset: 0, length: 1024, errno: "EIO" },
    });
    await expect(failed).rejects.toThrow('EIO, "bad\\nsector"');
    await expect(reader.read(target, 0)).rejects.toThrow("ENOMEM");
    await reader.read(target, 0);
    expect(target).toEqual(ones(1024));
    await reader.close();
  });

  test("simple replies: an error, then content", async () => {
    const reader = await openScripted(async (server) => {
      await server.negotiate({ structured: false });
      server.say(simple(await server.request(), 5));
      server.say(simple(await server.request()), ones(512));
    });
    const target = new Uint8Array(512);
    await expect(reader.read(target, 0)).rejects.toMatchObject({ code: "image-unreadable" });
    await reader.read(target, 0);
    expect(target).toEqual(ones(512));
    await reader.close();
  });

  test("any order and any cut of content is put together, or refused when a byte is missing or comes twice", async () => {
    const cuts = fc.array(fc.integer({ min: 1, max: 4095 }), { maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(
        cuts,
        fc.array(fc.nat(1000), { minLength: 13, maxLength: 13 }),
        fc.constantFrom("whole", "missing", "twice"),
        async (at, order, how) => {
          const edges = [0, ...new Set(at), 4096].sort((a, b) => a - b);
          const pieces = edges
            .slice(1)
            .map((end, index) => ({ start: edges[index] ?? 0, end, rank: order[index] ?? 0 }));
          pieces.sort((a, b) => a.rank - b.rank);
          if (how === "missing") pieces.pop();
          if (how === "twice") pieces.push(...pieces.slice(0, 1));
          const read = readFrom((server, request) => {
            for (const { start, end } of pieces) server.say(content(request, 8192 + start, ones(end - start)));
            server.say(chunk(request, chunks.none, true));
          });
          if (how === "whole") expect(await read).toEqual(ones(4096));
          else await expect(read).rejects.toMatchObject({ code: "protocol-violation" });
        },
      ),
      { numRuns: 60 },
    );
  });

  test("any bytes after negotiation end in an error, never in content", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 4, maxLength: 80 }),
        fc.constantFrom("", "668e33ef", "67446698"),
        async (noise, start) => {
          const read = readFrom((server) => {
            server.say(start, noise);
            server.stream.close();
          });
          await expect(read).rejects.toMatchObject({
            code: expect.stringMatching(/protocol-violation|connection-lost/) as string,
          });
        },
      ),
      { numRuns: 100 },
    );
  });

  function offsetOf({ high, low }: ReadRequest): string {
    return `${high.toString(16).padStart(8, "0")}${low.toString(16).padStart(8, "0")}`;
  }
});

describe("block status", () => {
  const status = (...descriptors: readonly number[]) => reply.encodeStatusPayload(1, descriptors);
  const extentsFrom = async (says: Says): Promise<unknown[]> => {
    const reader = await openScripted(async (server) => {
      await server.negotiate();
      for (;;) says(server, await server.request());
    });
    const found: unknown[] = [];
    try {
      for await (const { kind, offset: at, length } of reader.extents(4096, 8192)) found.push([kind, at, length]);
    } finally {
      await reader.close();
    }
    return found;
  };

  test("kinds are told, what goes beyond the range is cut, a short answer is asked on", async () => {
    let asked = 0;
    const found = await extentsFrom((server, request) => {
      expect(request.command).toBe(commands.blockStatus);
      asked++;
      const descriptors = asked === 1 ? status(512, 0, 512, 3, 1024, 2) : status(512, 1, 1024, 0, 2 ** 31, 3);
      server.say(chunk(request, chunks.blockStatus, true, descriptors));
    });
    expect(asked).toBe(2);
    expect(found).toEqual([
      ["data", 4096, 512],
      ["hole", 4608, 512],
      ["zero", 5120, 1024],
      ["data", 6144, 512],
      ["data", 6656, 1024],
      ["hole", 7680, 4608],
    ]);
  });

  test.each<[string, RegExp, Says]>([
    ["of no bytes", /of no bytes/, (s, r) => s.say(chunk(r, chunks.blockStatus, true, status(0, 0)))],
    ["that says nothing", /says nothing/, (s, r) => s.say(chunk(r, chunks.none, true))],
    [
      "of another context",
      /without base:allocation/,
      (s, r) => s.say(chunk(r, chunks.blockStatus, true, reply.encodeStatusPayload(9, [4096, 0]))),
    ],
    [
      "of one context twice",
      /two block statuses/,
      (s, r) =>
        s.say(chunk(r, chunks.blockStatus, false, status(1, 0)), chunk(r, chunks.blockStatus, true, status(1, 0))),
    ],
    ["with content", /nobody asked/, (s, r) => s.say(content(r, 4096, ones(1)))],
    ["in a simple reply", /in place of/, (s, r) => s.say(simple(r))],
    [
      "of 1 GiB",
      /block status of/,
      (s, r) => s.say(chunk(r, chunks.blockStatus, true, status(1, 0)).fill(0x40, 16, 17)),
    ],
    [
      "of 40 contexts",
      /again and again/,
      (s, r) => {
        for (let id = 1; id <= 40; id++)
          s.say(chunk(r, chunks.blockStatus, false, reply.encodeStatusPayload(id, [1, 0])));
      },
    ],
  ])("%s", async (_name, says, script) => {
    const extents = extentsFrom(script);
    await expect(extents).rejects.toMatchObject({ code: "protocol-violation" });
    await expect(extents).rejects.toThrow(says);
  });
});

describe("a server that is gone", () => {
  test("a request without an answer ends in time, and the next read connects again", async () => {
    const clock = createFakeClock();
    let connections = 0;
    const reader = await openScripted(
      async (server) => {
        connections++;
        await server.negotiate();
        const request = await server.request();
        if (connections > 1) server.say(content(request, 0, ones(512), true));
      },
      { clock },
    );
    const target = new Uint8Array(512);
    const failed = expect(reader.read(target, 0)).rejects.toMatchObject({ code: "peer-silent", action: "reconnect" });
    await clock.run(119_000);
    expect(connections).toBe(1);
    await clock.run(2_000);
    await failed;
    await reader.read(target, 0);
    expect(target).toEqual(ones(512));
    expect(connections).toBe(2);
    await reader.close();
    expect(clock.waiting).toBe(0);
  });

  test("an export that has another size after a new connection is another image", async () => {
    let connections = 0;
    const reader = await openScripted(async (server) => {
      connections++;
      await server.negotiate({ sizeBytes: 4096 * connections });
      if (connections > 1) return;
      await server.request();
      server.stream.destroy();
    });
    const target = new Uint8Array(512);
    await expect(reader.read(target, 0)).rejects.toMatchObject({ code: "connection-lost" });
    await expect(reader.read(target, 0)).rejects.toMatchObject({ code: "image-changed", action: "never" });
    await reader.close();
    await expect(reader.read(target, 0)).rejects.toThrow(/is closed/);
  });

  test("further connections are made where the server allows them, and one that does not answer harms nobody", async () => {
    const clock = createFakeClock();
    let connections = 0;
    const reader = await openScripted(
      async (server) => {
        connections++;
        if (connections === 3) return;
        await server.negotiate({ flags: exportFlags.hasFlags | exportFlags.multiConnection });
        for (;;) {
          const request = await server.request();
          server.say(content(request, request.offset, ones(request.length), true));
        }
      },
      { clock },
    );
    await clock.run(0);
    expect(connections).toBe(3);
    const target = new Uint8Array(4096);
    await Promise.all(
      [0, 1, 2, 3].map((index) => reader.read(target.subarray(index * 1024, (index + 1) * 1024), index * 1024)),
    );
    expect(target).toEqual(ones(4096));
    const closing = reader.close();
    await closing;
    expect(clock.waiting).toBe(0);
  });
});
