/** Clients that break the protocol, or want too much: each costs a bounded amount, one clear log line, and no other client anything. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { ExportedDisk } from "../../src/nbd/exported-disk.ts";
import { MemoryBudget } from "../../src/nbd/memory-budget.ts";
import { nbdLimits } from "../../src/nbd/nbd-limits.ts";
import * as option from "../../src/nbd/option-codec.ts";
import { chunks, commandFlags, commands, optionReplies, options } from "../../src/nbd/protocol.ts";
import { createNbdServer, type NbdServer } from "../../src/nbd/server.ts";
import { ServerConnection } from "../../src/nbd/server-connection.ts";
import { createFakeClock, type FakeClock } from "../../src/testing/fake-clock.ts";
import { keepLog, until } from "../transport/kit.ts";
import { makeImage } from "../e2e/kit.ts";
import { createLinkedStreams } from "../../src/testing/linked-streams.ts";
import { socketDir } from "./kit.ts";
import { connectTo, exportFile, ScriptedClient } from "./server-kit.ts";

interface Served {
  readonly server: NbdServer;
  readonly image: BlockWriter;
  readonly clock: FakeClock;
  readonly lines: () => string[];
  connect(chunkBytes?: number): ScriptedClient;
}

function serve(
  how: { readonly sizeBytes?: number; readonly writable?: boolean; readonly image?: BlockWriter } = {},
): Served {
  const { sizeBytes = MIB, writable = true, image = createMemoryImage(sizeBytes) } = how;
  const clock = createFakeClock();
  const log = keepLog();
  const other = { name: "other", image: createMemoryImage(512), writable: false, description: "about it" };
  const server = createNbdServer({ exports: [{ name: "disk", image, writable }, other], clock, log });
  return {
    ...{ server, image, clock },
    lines: () => log.at("warn"),
    connect: (chunkBytes) => new ScriptedClient(connectTo(server, chunkBytes)),
  };
}

describe("negotiation", () => {
  test("exports are listed, described and chosen by name; what is not known is refused and the dialog goes on", async () => {
    const { connect, server } = serve();
    const client = connect(3);
    await client.greet();
    const types = async (asked: number, data?: Uint8Array) => (await client.ask(asked, data)).map(([type]) => type);
    const listed = await client.ask(options.list);
    expect(listed.slice(0, 2).map(([, data]) => option.decodeListed(data))).toEqual([
      { name: "disk", description: "" },
      { name: "other", description: "about it" },
    ]);
    expect(await types(options.list, Buffer.from("x"))).toEqual([optionReplies.invalid]);
    expect(await types(99, Buffer.alloc(100))).toEqual([optionReplies.unsupported]);
    expect(await types(options.startTls)).toEqual([optionReplies.policy]);
    const query = (...queries: string[]) => option.encodeContextQueries("disk", queries);
    expect(await types(options.setMetaContext, query("base:allocation"))).toEqual([optionReplies.invalid]);
    expect(await types(options.structuredReply, Buffer.from("x"))).toEqual([optionReplies.invalid]);
    expect(await types(options.structuredReply)).toEqual([optionReplies.ack]);
    for (const queries of [[], ["base:"], ["base:allocation"]]) {
      const found = await client.ask(options.listMetaContext, query(...queries));
      expect(found.map(([, data]) => data.toString("latin1", 4))).toEqual(["base:allocation", ""]);
    }
    expect(await types(options.listMetaContext, query("qemu:"))).toEqual([optionReplies.ack]);
    expect(await types(options.setMetaContext, query("base:", "base:allocation"))).toEqual([
      optionReplies.metaContext,
      optionReplies.ack,
    ]);
    expect(await types(options.info, option.encodeExportChoice("none", []))).toEqual([optionReplies.unknown]);
    const described = await client.ask(options.info, option.encodeExportChoice("other", [1, 2]));
    expect(described.map(([type]) => type)).toEqual([3, 3, 3, 3, 1]);
    expect(option.decodeInfo(described[0]?.[1] ?? Buffer.alloc(0))).toMatchObject({ kind: "export", sizeBytes: 512 });
    expect(described[2]?.[1].toString("latin1", 2)).toBe("other");
    expect(described[3]?.[1].toString("latin1", 2)).toBe("about it");
    expect(await types(options.go, option.encodeExportChoice("", []))).toEqual([3, 3, 1]);
    client.request({ command: commands.disconnect });
    await client.gone();
    expect(server.connections).toBe(0);
  });

  test("contexts chosen for another export than the one that is served are not served", async () => {
    const { connect } = serve();
    const client = connect();
    await client.greet();
    await client.ask(options.structuredReply);
    await client.ask(options.setMetaContext, option.encodeContextQueries("other", ["base:allocation"]));
    await client.ask(options.go, option.encodeExportChoice("disk", []));
    client.request({ command: commands.blockStatus, length: 512 });
    expect(await client.chunk()).toMatchObject({ type: chunks.error });
  });

  test("by name, as before 2016: with zeroes for an old client, and the end of the connection for a wrong name", async () => {
    const { connect, lines } = serve();
    for (const [flags, zeroes] of [
      [1, 124],
      [3, 0],
    ] as const) {
      const client = connect();
      await client.greet(flags);
      client.say(option.encodeOption(options.exportName, Buffer.from("disk")));
      expect((await client.read(10 + zeroes)).readUInt32BE(4)).toBe(MIB);
      client.request({ length: 512 });
      expect(await client.simple()).toBe(0);
      expect(await client.read(512)).toEqual(Buffer.alloc(512));
    }
    const wrong = connect();
    await wrong.greet();
    wrong.say(option.encodeOption(options.exportName, Buffer.from("no\nne")));
    await wrong.gone();
    await until(() => lines().length > 0);
    expect(lines()).toEqual([expect.stringContaining('there is no export "no\\nne"')]);
  });

  test.each<[string, RegExp, (client: ScriptedClient) => Promise<void>]>([
    ["client flags of the future", /client flags 4/, (c) => c.greet(4)],
    ["an HTTP request", /client flags/, async (c) => c.say(Buffer.from("GET / HTTP/1.1\r\n\r\n"))],
    [
      "no option",
      /does not begin/,
      async (c) => {
        await c.greet();
        c.say(Buffer.alloc(16));
      },
    ],
    [
      "an option of 4 GiB",
      /option of 4294967295 bytes/,
      async (c) => {
        await c.greet();
        c.say("49484156454f5054 00000003 ffffffff");
      },
    ],
    [
      "a choice that is cut",
      /ends too early/,
      async (c) => {
        await c.greet();
        c.say(option.encodeOption(options.go, Buffer.alloc(3)));
      },
    ],
    [
      "2^32-1 queries",
      /ends before/,
      async (c) => {
        await c.greet();
        c.say(option.encodeOption(options.setMetaContext, Buffer.from("00000000ffffffff", "hex")));
      },
    ],
    [
      "options without end",
      /more than 64 options/,
      async (c) => {
        await c.greet();
        for (let count = 0; count < 70; count++) c.say(option.encodeOption(99));
      },
    ],
  ])("%s", async (_name, says, script) => {
    const { connect, server, lines, clock } = serve();
    const client = connect();
    const scripted = script(client).catch(() => undefined);
    await until(() => lines().length > 0);
    await scripted;
    expect(lines()).toHaveLength(1);
    expect(lines()[0]).toMatch(says);
    expect(server.connections).toBe(0);
    expect(clock.waiting).toBe(0);
  });

  test("who says nothing is sent away in time, and who leaves is no news", async () => {
    const { connect, server, lines, clock } = serve();
    connect();
    const half = connect();
    await half.greet();
    half.say("49484156");
    await clock.run(9_999);
    expect(server.connections).toBe(2);
    await clock.run(1);
    await until(() => server.connections === 0);
    expect(lines()).toHaveLength(2);
    expect(lines()[0]).toContain("within 10 s");
    const polite = connect();
    await polite.greet();
    expect(await polite.ask(options.abort)).toEqual([[optionReplies.ack, Buffer.alloc(0)]]);
    await polite.gone();
    expect(lines()).toHaveLength(2);
  });

  test("hundreds of idle connections: the oldest makes room, and one at work is left alone", async () => {
    const { connect, server } = serve();
    const worker = connect();
    await worker.go();
    for (let count = 0; count < 300; count++) connect();
    await until(() => server.connections === nbdLimits.serverConnectionsMax);
    const late = connect();
    await late.go();
    worker.request({ command: commands.flush });
    expect(await worker.simple()).toBe(0);
    await server.close();
    expect(server.connections).toBe(0);
  });

  test("when all places are at work another client is sent away, and told of in the log", async () => {
    const { connect, server, lines } = serve();
    for (let count = 0; count < nbdLimits.serverConnectionsMax; count++) await connect().go();
    await connect().gone();
    expect(lines()).toEqual([expect.stringContaining("sent away")]);
    await server.close();
  });
});

describe("requests", () => {
  const { read, write, trim, writeZeroes, blockStatus, flush, cache } = commands;
  const content = Buffer.alloc(512, 7);

  test.each<[string, number, Parameters<ScriptedClient["request"]>]>([
    ["a command of the future", 22, [{ command: 77 }]],
    ["resize", 22, [{ command: 8 }]],
    ["cache, where there is no file", 22, [{ command: cache, length: 512 }]],
    ["a flag that does not belong", 22, [{ command: read, flags: commandFlags.noHole, length: 512 }]],
    ["a fast zero, which is not offered", 22, [{ command: writeZeroes, flags: commandFlags.fastZero, length: 512 }]],
    ["a read beyond the end", 22, [{ command: read, offset: MIB - 511, length: 512 }]],
    ["a read at 2^63", 22, [{ command: read, offset: 2 ** 63, length: 512 }]],
    ["a read of 4 GiB", 22, [{ command: read, length: 2 ** 32 - 1 }]],
    ["a write beyond the end", 28, [{ command: write, offset: MIB, length: 512 }, content]],
    ["zeroes beyond the end", 28, [{ command: writeZeroes, offset: 512, length: MIB }]],
    ["a trim of 4 GiB", 28, [{ command: trim, length: 2 ** 32 - 1 }]],
    ["a flush of a range", 22, [{ command: flush, length: 1 }]],
    ["a status without context", 22, [{ command: blockStatus, length: 512 }]],
  ])("%s is refused, and the next one is served", async (_name, error, request) => {
    for (const structured of [false, true]) {
      const { connect } = serve();
      const client = connect(100);
      await client.go(structured);
      client.request(...request);
      client.request({ command: read, length: 16 });
      if (structured) {
        const { type, done, payload } = await client.chunk();
        expect([type, done, payload.readUInt32BE(0)]).toEqual([chunks.error, true, error]);
        expect((await client.chunk()).payload).toEqual(Buffer.alloc(24));
      } else {
        expect(await client.simple()).toBe(error);
        expect(await client.simple()).toBe(0);
        expect(await client.read(16)).toEqual(Buffer.alloc(16));
      }
    }
  });

  test("a read-only export is not written to, whatever is tried", async () => {
    const { connect, image } = serve({ writable: false });
    const client = connect();
    await client.go();
    client.request({ command: write, length: 512 }, content);
    client.request({ command: trim, length: 512 });
    client.request({ command: writeZeroes, length: 512 });
    client.request({ command: flush });
    expect([await client.simple(), await client.simple(), await client.simple(), await client.simple()]).toEqual([
      1, 1, 1, 0,
    ]);
    const bytes = Buffer.alloc(512, 9);
    await image.read(bytes, 0);
    expect(bytes).toEqual(Buffer.alloc(512));
  });

  test.each<[string, RegExp, (client: ScriptedClient) => void]>([
    ["bytes that are no request", /does not begin/, (c) => c.say(Buffer.alloc(28))],
    ["a write of 4 GiB", /write of 4294967295 bytes/, (c) => c.request({ command: write, length: 2 ** 32 - 1 })],
    [
      "a reset in the middle of a write",
      /reset/,
      (c) => {
        c.request({ command: write, length: 4096 }, content);
        c.stream.destroy();
      },
    ],
  ])("%s: the connection is over, with one line", async (_name, says, script) => {
    const { connect, server, lines } = serve();
    const client = connect();
    await client.go();
    script(client);
    await until(() => server.connections === 0);
    expect(lines()).toHaveLength(1);
    expect(lines()[0]).toMatch(says);
  });

  test("a client that leaves in the middle of a write, or without a word, is no news", async () => {
    const { connect, server, lines } = serve();
    for (const bytes of [0, 100]) {
      const client = connect();
      await client.go();
      if (bytes > 0) client.request({ command: write, length: 4096 }, content);
      client.stream.close();
      await until(() => server.connections === 0);
    }
    expect(lines()).toEqual([]);
  });

  test("a long read comes in pieces, DF only when it fits one", async () => {
    const sizeBytes = 4 * nbdLimits.serverPieceBytes;
    const { connect, image } = serve({ sizeBytes });
    await image.write(Buffer.alloc(sizeBytes, 3), 0);
    const client = connect();
    await client.go(true);
    client.request({ length: sizeBytes });
    let got = 0;
    for (let done = false; !done; ) {
      const chunk = await client.chunk();
      done = chunk.done;
      if (chunk.type === chunks.offsetData) got += chunk.payload.subarray(8).filter((byte) => byte === 3).length;
    }
    expect(got).toBe(sizeBytes);
    client.request({ flags: commandFlags.dontFragment, length: sizeBytes });
    expect((await client.chunk()).payload.readUInt32BE(0)).toBe(75);
    client.request({ flags: commandFlags.dontFragment, length: 4096 });
    expect(await client.chunk()).toMatchObject({ type: chunks.offsetData, done: true });
  });

  test("block status: kinds, one descriptor, and an offered context", async () => {
    const image = createMemoryImage(MIB);
    await image.write(Buffer.alloc(4096, 1), 8192);
    const clock = createFakeClock();
    const dirty = {
      name: "qemu:dirty-bitmap:t",
      async *stretches(offset: number, length: number) {
        yield { length: 4096, flags: offset === 0 ? 1 : 0 };
        yield { length: length - 4096, flags: 0 };
      },
    };
    const server = createNbdServer({
      exports: [{ name: "d", image, writable: false, contexts: [dirty] }],
      clock,
      log: keepLog(),
    });
    const client = new ScriptedClient(connectTo(server));
    await client.go(true, [dirty.name, "base:allocation"]);
    const words = (payload: Buffer): number[] =>
      Array.from({ length: payload.length / 4 }, (_, index) => payload.readUInt32BE(index * 4));
    client.request({ command: blockStatus, length: 64 * KIB });
    const first = await client.chunk();
    const second = await client.chunk();
    expect([first.done, second.done]).toEqual([false, true]);
    expect(words(first.payload)).toEqual([1, 8192, 3, 4096, 0, 52 * KIB, 3]);
    expect(words(second.payload)).toEqual([2, 4096, 1, 60 * KIB, 0]);
    client.request({ command: blockStatus, flags: commandFlags.requestOne, length: 64 * KIB });
    expect(words((await client.chunk()).payload)).toEqual([1, 8192, 3]);
    expect(words((await client.chunk()).payload)).toEqual([2, 4096, 1]);
  });

  test("a flush that failed is never taken back: flushes and writes after it fail too, on all connections", async () => {
    let broken = true;
    const inner = createMemoryImage(MIB);
    const image: BlockWriter = {
      ...inner,
      async flush() {
        if (broken) throw Object.assign(new Error("EIO"), { code: "EIO" });
      },
    };
    const { connect, lines } = serve({ image });
    const client = connect();
    await client.go();
    client.request({ command: write, flags: commandFlags.fua, length: 512 }, content);
    expect(await client.simple()).toBe(5);
    broken = false;
    const other = connect();
    await other.go();
    other.request({ command: flush });
    expect(await other.simple()).toBe(5);
    other.request({ command: write, length: 512 }, content);
    expect(await other.simple()).toBe(5);
    other.request({ command: read, length: 512 });
    expect(await other.simple()).toBe(0);
    expect(lines().length).toBeGreaterThan(0);
  });

  test("of two flushes at once none succeeds when one failed: the system tells a failure once", async () => {
    const ends: ((error?: Error) => void)[] = [];
    const image: BlockWriter = {
      ...createMemoryImage(MIB),
      flush: () =>
        new Promise((resolve, reject) => {
          ends.push((error) => (error === undefined ? resolve() : reject(error)));
        }),
    };
    const { connect } = serve({ image });
    const clients = [connect(), connect()];
    for (const client of clients) {
      await client.go();
      client.request({ command: flush });
    }
    for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    ends[0]?.(Object.assign(new Error("EIO"), { code: "EIO" }));
    for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    for (const end of ends.slice(1)) end();
    for (const client of clients) expect(await client.simple()).toBe(5);
  });

  test("errors of the disk have the number they are due", async () => {
    const inner = createMemoryImage(MIB);
    let code = "";
    const fail = async (): Promise<void> => {
      throw Object.assign(new Error(code), { code });
    };
    const { connect } = serve({ image: { ...inner, write: fail, zero: fail, read: fail } });
    const client = connect();
    await client.go();
    for (const [errno, expected] of [
      ["ENOSPC", 28],
      ["EROFS", 1],
      ["EIO", 5],
      ["ESTRANGE", 5],
    ] as const) {
      code = errno;
      client.request({ command: write, length: 512 }, content);
      expect(await client.simple()).toBe(expected);
      client.request({ command: trim, length: 512 });
      expect(await client.simple()).toBe(expected);
      client.request({ command: read, length: 512 });
      expect(await client.simple()).toBe(expected);
    }
  });
});

describe("memory", () => {
  /** A disk whose requests wait until the test lets them go. */
  function slowDisk(sizeBytes: number) {
    const inner = createMemoryImage(sizeBytes);
    const waiting: (() => void)[] = [];
    let held = 0;
    let most = 0;
    const wait = async (bytes: number): Promise<void> => {
      held += bytes;
      most = Math.max(most, held);
      await new Promise<void>((resolve) => waiting.push(resolve));
      held -= bytes;
    };
    const image: BlockWriter = {
      ...inner,
      read: async (target, offset) => {
        await wait(target.length);
        await inner.read(target, offset);
      },
      write: async (source, offset) => {
        await wait(source.length);
        await inner.write(source, offset);
      },
    };
    return { image, waiting, most: () => most };
  }

  test("a client that asks for everything and takes nothing holds a bounded amount; when it takes, all is served", async () => {
    const disk = slowDisk(32 * MIB);
    const { connect, server } = serve({ image: disk.image });
    const client = connect(64 * KIB);
    await client.go(true);
    for (let count = 0; count < 20; count++) client.request({ length: 16 * MIB, low: count });
    const settle = async (): Promise<void> => {
      for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    };
    await settle();
    client.stream.pause();
    for (let round = 0; round < 50; round++) {
      for (const go of disk.waiting.splice(0)) go();
      await settle();
    }
    expect(disk.most()).toBeLessThanOrEqual(nbdLimits.serverHeldBytesMax);
    expect(disk.waiting).toHaveLength(0);
    client.stream.resume();
    let done = 0;
    const letGo = setInterval(() => {
      for (const go of disk.waiting.splice(0)) go();
    }, 0);
    try {
      while (done < 20) if ((await client.chunk()).done) done++;
    } finally {
      clearInterval(letGo);
    }
    client.request({ command: commands.disconnect });
    await client.gone();
    expect(server.connections).toBe(0);
  });

  test("a plain file: a client that takes nothing has a bounded amount of replies waiting, and gets them all in the end", async (t) => {
    const path = `${socketDir(t)}/disk.raw`;
    makeImage(path, 8 * MIB);
    const exported = await exportFile(t, path, { direct: true });
    const server = createNbdServer({ exports: [exported], clock: createFakeClock(), log: keepLog() });
    const streams = createLinkedStreams();
    server.accept(streams.server);
    const client = new ScriptedClient(streams.client);
    await client.go(true);
    client.stream.pause();
    for (let count = 0; count < 40; count++) client.request({ length: 8 * MIB, low: count });
    for (let turn = 0; turn < 5_000; turn++) await Promise.resolve();
    expect(streams.server.bytesQueued).toBeGreaterThan(nbdLimits.serverBacklogBytesMax);
    expect(streams.server.bytesQueued).toBeLessThan(nbdLimits.serverBacklogBytesMax + 2 * nbdLimits.serverPieceBytes);
    client.stream.resume();
    for (let done = 0; done < 3; ) if ((await client.chunk()).done) done++;
    client.stream.destroy();
    await server.close();
  });

  test("writes to a slow disk: what is under way is bounded, for one client and for many", async () => {
    const disk = slowDisk(64 * MIB);
    const { connect, server } = serve({ image: disk.image });
    const clients = Array.from({ length: 16 }, () => connect(64 * KIB));
    for (const client of clients) {
      await client.go();
      for (let count = 0; count < 12; count++)
        client.request({ command: commands.write, offset: count * MIB, length: MIB }, Buffer.alloc(MIB, 1));
    }
    for (let turn = 0; turn < 20_000; turn++) await Promise.resolve();
    expect(disk.most()).toBeGreaterThan(nbdLimits.serverHeldBytesMax);
    expect(disk.most()).toBeLessThanOrEqual(nbdLimits.serverHeldBytesTotal + 16 * nbdLimits.serverPieceBytes);
    const letGo = setInterval(() => {
      for (const go of disk.waiting.splice(0)) go();
    }, 0);
    try {
      for (const client of clients) for (let count = 0; count < 12; count++) expect(await client.simple()).toBe(0);
    } finally {
      clearInterval(letGo);
    }
    expect(disk.most()).toBeLessThanOrEqual(nbdLimits.serverHeldBytesTotal + 16 * nbdLimits.serverPieceBytes);
    await server.close();
  });

  /** A client past its negotiation, whose connection has a budget of its own. */
  function admitted(image: BlockWriter, budget: MemoryBudget) {
    const streams = createLinkedStreams();
    const client = new ScriptedClient(streams.client);
    const disk = new ExportedDisk({ name: "disk", image, writable: true });
    const ended = new Promise<void>((resolve) => {
      new ServerConnection({
        admitted: { stream: streams.server, disk, structured: true, contexts: new Map(), ahead: () => Buffer.alloc(0) },
        ...{ budget, onTrouble: () => undefined, onEnd: () => resolve() },
      });
    });
    return { client, ended };
  }

  test.each<[string, (client: ScriptedClient) => Promise<void>]>([
    ["asked for much and is gone before it took it", async (c) => c.stream.destroy()],
    ["asked for much, says goodbye and takes it then", async (c) => c.request({ command: commands.disconnect })],
    [
      "breaks off in the middle of a write",
      async (c) => {
        c.request({ command: commands.write, length: MIB }, Buffer.alloc(512, 1));
        for (let turn = 0; turn < 200; turn++) await Promise.resolve();
        c.stream.destroy();
      },
    ],
  ])("a client that %s leaves the budget of all as it was", async (_name, leave) => {
    const bytesMax = 16 * MIB;
    const budget = new MemoryBudget(bytesMax);
    for (let round = 0; round < 5; round++) {
      const { client, ended } = admitted(createMemoryImage(4 * MIB), budget);
      client.stream.pause();
      client.request({ length: 3 * MIB });
      for (let turn = 0; turn < 2_000; turn++) await Promise.resolve();
      await leave(client);
      await ended;
      client.stream.resume();
      for (let turn = 0; turn < 2_000; turn++) await Promise.resolve();
    }
    expect(budget.take(bytesMax, false)).toBe(true);
    expect(budget.take(1, false)).toBe(false);
  });

  test("closing waits for what is under way on the disk", async () => {
    const disk = slowDisk(MIB);
    const { connect, server } = serve({ image: disk.image });
    const client = connect();
    await client.go();
    client.request({ command: commands.write, length: 512 }, Buffer.alloc(512, 1));
    await until(() => disk.waiting.length > 0);
    let closed = false;
    const closing = server.close().then(() => {
      closed = true;
    });
    for (let turn = 0; turn < 200; turn++) await Promise.resolve();
    expect(closed).toBe(false);
    for (const go of disk.waiting.splice(0)) go();
    await closing;
    expect(await client.simple()).toBe(0);
  });
});

test("any bytes, before and after negotiation, end in a log line or in silence; the server goes on", async () => {
  const { connect, server, image } = serve({ writable: false });
  const start = fc.constantFrom(
    "",
    "49484156454f5054 00000007",
    "49484156454f5054 0000000a 00000010",
    "25609513 0000 0000",
    "25609513 0001 0001",
  );
  await fc.assert(
    fc.asyncProperty(fc.boolean(), start, fc.uint8Array({ maxLength: 120 }), async (transmission, prefix, noise) => {
      const client = connect(11);
      if (transmission) await client.go(true);
      else await client.greet();
      client.say(prefix, noise);
      client.stream.close();
      await until(() => server.connections === 0);
    }),
    { numRuns: 150 },
  );
  const client = connect();
  await client.go();
  client.request({ length: 512 });
  expect(await client.simple()).toBe(0);
  expect(await client.read(512)).toEqual(Buffer.alloc(512));
  const bytes = Buffer.alloc(512, 9);
  await image.read(bytes, 0);
  expect(bytes).toEqual(Buffer.alloc(512));
});
