/** A server in this process for tests, and a client that says what a test wants. */
import { basename } from "node:path";
import { systemClock } from "../../src/base/clock.ts";
import { systemRandom } from "../../src/base/random.ts";
import type { BlockWriter } from "../../src/image/block-device.ts";
import { createRawWriter } from "../../src/image/raw.ts";
import { type NbdWriter, openNbdWriter } from "../../src/nbd/client.ts";
import type { ExportOptions } from "../../src/nbd/exported-disk.ts";
import { parseNbdUri } from "../../src/nbd/nbd-uri.ts";
import * as option from "../../src/nbd/option-codec.ts";
import { optionReplies, options } from "../../src/nbd/protocol.ts";
import { encodeRequest, type Request, requestHeadBytes } from "../../src/nbd/request-codec.ts";
import { createNbdServer, listenNbd, type NbdServer, type NbdServerOptions } from "../../src/nbd/server.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { createLinkedStreams } from "../../src/testing/linked-streams.ts";
import type { ByteSink, ByteStream } from "../../src/transport/byte-stream.ts";
import type { Scope } from "../e2e/kit.ts";
import { keepLog } from "../transport/kit.ts";
import { socketDir } from "./kit.ts";

export const storage = createNodeStorage();

/** An image file as an export; `direct`: read and written at once. Closed with the scope. */
export async function exportFile(
  scope: Scope,
  path: string,
  how: { readonly direct: boolean; readonly writable?: boolean },
): Promise<ExportOptions> {
  const { writable = true } = how;
  const file = await storage.open(path, { write: writable });
  const image = createRawWriter(file, storage, { sizeBytes: (await file.stat()).sizeBytes });
  scope.onTestFinished(() => image.close());
  const direct = how.direct ? { file: { fd: file.fd, lanes: storage.lanes } } : {};
  return { name: basename(path), image, writable, ...direct };
}

export interface Listening {
  readonly uri: string;
  readonly log: ReturnType<typeof keepLog>;
  readonly server: Awaited<ReturnType<typeof listenNbd>>;
}

/** A server on a unix socket, closed with the scope. */
export async function serve(
  scope: Scope,
  exports: readonly ExportOptions[],
  more: Partial<NbdServerOptions> = {},
): Promise<Listening> {
  const path = `${socketDir(scope)}/s`;
  const log = keepLog();
  const place = { kind: "unix", path } as const;
  const server = await listenNbd({ place, exports, storage, clock: systemClock, random: systemRandom, log, ...more });
  scope.onTestFinished(() => server.close());
  return { uri: `nbd+unix:///?socket=${path}`, log, server };
}

/** A client of an image through a server, over linked streams; closing it closes all. */
export async function linkedWriter(
  image: BlockWriter,
  how: Partial<ExportOptions> & { readonly chunkBytes?: number } = {},
): Promise<NbdWriter> {
  const server = createNbdServer({
    exports: [{ name: "disk", image, writable: true, ...how }],
    clock: systemClock,
    log: keepLog(),
  });
  const connect = async (): Promise<ByteStream> => connectTo(server, how.chunkBytes);
  const client = await openNbdWriter({ address: parseNbdUri("nbd://linked/disk"), connect });
  const close = async (): Promise<void> => {
    await Object.getPrototypeOf(client).close.call(client);
    await server.close();
    await image.close();
  };
  return Object.assign(client, { close });
}

/** The client's end of a new connection to a server. */
export function connectTo(server: NbdServer, chunkBytes = 4_093): ByteStream {
  const { client, server: end } = createLinkedStreams({ chunkBytes });
  server.accept(end);
  return client;
}

/** A client that says what a test wants, and keeps what it hears. */
export class ScriptedClient implements ByteSink {
  readonly stream: ByteStream;
  #heard: Buffer = Buffer.alloc(0);
  readonly #landing = Buffer.alloc(65_536);
  #over = false;
  #wake = (): void => undefined;

  constructor(stream: ByteStream) {
    this.stream = stream;
    stream.receive(this);
  }

  room(): Uint8Array {
    return this.#landing;
  }

  filled(count: number): void {
    this.#heard = Buffer.concat([this.#heard, this.#landing.subarray(0, count)]);
    this.#wake();
  }

  ended(): void {
    this.#over = true;
    this.#wake();
  }

  async read(count: number): Promise<Buffer> {
    while (this.#heard.length < count) {
      if (this.#over) throw new Error("the server ended the connection");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const bytes = this.#heard.subarray(0, count);
    this.#heard = this.#heard.subarray(count);
    return bytes;
  }

  /** Bytes, or hexadecimal text. */
  say(...parts: readonly (Uint8Array | string)[]): void {
    this.stream.write(
      parts.map((part) => (typeof part === "string" ? Buffer.from(part.replaceAll(" ", ""), "hex") : part)),
    );
  }

  async greet(flags = 3): Promise<void> {
    await this.read(option.greetingBytes);
    this.say(option.encodeClientFlags(flags));
  }

  /** Replies up to the last, as [type, data]. */
  async ask(asked: number, data?: Uint8Array): Promise<[number, Buffer][]> {
    this.say(option.encodeOption(asked, data));
    const replies: [number, Buffer][] = [];
    for (;;) {
      const { type, length } = option.decodeOptionReplyHead(await this.read(option.optionReplyHeadBytes), asked);
      replies.push([type, await this.read(length)]);
      if (type === optionReplies.ack || type > 2 ** 31) return replies;
    }
  }

  async go(structured = false, contexts: readonly string[] = []): Promise<void> {
    await this.greet();
    if (structured) await this.ask(options.structuredReply);
    if (contexts.length > 0) await this.ask(options.setMetaContext, option.encodeContextQueries("", contexts));
    await this.ask(options.go, option.encodeExportChoice("", []));
  }

  request(request: Partial<Request>, ...content: readonly Uint8Array[]): void {
    const head = Buffer.alloc(requestHeadBytes);
    encodeRequest({ command: 0, flags: 0, high: 7, low: 9, offset: 0, length: 0, ...request }, head, 0);
    this.say(head, ...content);
  }

  /** Error number of a simple reply to the cookie of {@link request}. */
  async simple(): Promise<number> {
    const bytes = await this.read(16);
    if (bytes.toString("hex", 0, 4) !== "67446698" || bytes.readUInt32BE(8) !== 7)
      throw new Error(`no simple reply: ${bytes.toString("hex")}`);
    return bytes.readUInt32BE(4);
  }

  /** A chunk of a structured reply. */
  async chunk(): Promise<{ readonly done: boolean; readonly type: number; readonly payload: Buffer }> {
    const head = await this.read(20);
    if (head.toString("hex", 0, 4) !== "668e33ef") throw new Error(`no chunk: ${head.toString("hex")}`);
    return {
      done: head.readUInt16BE(4) === 1,
      type: head.readUInt16BE(6),
      payload: await this.read(head.readUInt32BE(16)),
    };
  }

  /** Resolves when the server has ended the connection. */
  async gone(): Promise<void> {
    await this.read(1).then(
      () => {
        throw new Error("the server goes on");
      },
      () => undefined,
    );
  }
}
