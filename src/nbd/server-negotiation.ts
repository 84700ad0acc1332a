/** The server's side of fixed newstyle negotiation. */
import { ReplicationError } from "../base/errors.ts";
import type { ByteStream } from "../transport/byte-stream.ts";
import { ByteReader } from "./byte-reader.ts";
import type { ExportedDisk, ServedContext } from "./exported-disk.ts";
import { nbdLimits } from "./nbd-limits.ts";
import {
  clientFlagsBytes,
  decodeContextQueries,
  decodeExportChoice,
  decodeOptionHead,
  encodeBlockSizeInfo,
  encodeContext,
  encodeExportInfo,
  encodeExportNameReply,
  encodeGreeting,
  encodeListed,
  encodeOptionReply,
  encodeTextInfo,
  optionHeadBytes,
} from "./option-codec.ts";
import {
  type BlockSizes,
  type ExportInfo,
  exportFlags,
  handshakeFlags,
  infos,
  optionReplies,
  options,
} from "./protocol.ts";
import { quoted, violation } from "./violation.ts";

export interface ServerNegotiationOptions {
  /** At least one; the first is the default. */
  readonly exports: readonly ExportedDisk[];
  /** Starts TLS on the stream; undefined: none is offered. Where it is, nothing but it is answered before. */
  readonly startTls: ((stream: ByteStream) => Promise<ByteStream>) | undefined;
}

/** A connection whose next bytes are requests. */
export interface Admitted {
  readonly stream: ByteStream;
  /** What has come already. Taken by the sink that takes the stream over, at that moment: until then more may come. */
  readonly ahead: () => Buffer;
  readonly disk: ExportedDisk;
  readonly structured: boolean;
  /** Contexts the client chose, by the id it knows them by. */
  readonly contexts: ReadonlyMap<number, ServedContext>;
}

/** What requests may be like; see {@link nbdLimits.requestBytesDefault}. */
const blocks: BlockSizes = { minimum: 1, preferred: 4_096, maximum: nbdLimits.requestBytesDefault };

/**
 * Negotiates until the client chooses an export; undefined: it said goodbye. On an error the caller destroys the stream. Errors: `connection-lost`,
 * `protocol-violation`, `image-not-found` for a name where no refusal can be sent, those of TLS.
 */
export async function admit(stream: ByteStream, how: ServerNegotiationOptions): Promise<Admitted | undefined> {
  const dialog = new Dialog(stream, how, how.startTls === undefined ? "none" : "wanted");
  const { fixedNewstyle, noZeroes } = handshakeFlags;
  dialog.say(encodeGreeting(fixedNewstyle | noZeroes));
  const flags = (await dialog.read(clientFlagsBytes)).readUInt32BE();
  if ((flags & ~(fixedNewstyle | noZeroes)) !== 0) throw violation(`client flags ${flags}, which are not known`);
  return await dialog.run((flags & noZeroes) !== 0);
}

class Dialog {
  #stream: ByteStream;
  #reader: ByteReader;
  readonly #how: ServerNegotiationOptions;
  #tls: "none" | "wanted" | "on";
  #structured = false;
  #contexts = new Map<number, ServedContext>();
  /** Of which export these are contexts. */
  #contextsOf: ExportedDisk | undefined;

  constructor(stream: ByteStream, how: ServerNegotiationOptions, tls: "none" | "wanted") {
    this.#stream = stream;
    this.#reader = new ByteReader(stream);
    this.#how = how;
    this.#tls = tls;
  }

  read(count: number): Promise<Buffer> {
    return this.#reader.read(count);
  }

  say(bytes: Uint8Array): void {
    this.#stream.write([bytes]);
  }

  async run(noZeroes: boolean): Promise<Admitted | undefined> {
    for (let asked = 0; asked < nbdLimits.optionsMax; asked++) {
      const { option, length } = decodeOptionHead(await this.read(optionHeadBytes));
      if (length > nbdLimits.optionBytesMax) throw violation(`an option of ${length} bytes`);
      const data = await this.read(length);
      if (option === options.abort) {
        this.#reply(option, optionReplies.ack);
        return undefined;
      }
      if (this.#tls === "wanted" && option !== options.startTls) this.#refuseWithoutTls(option);
      else if (option === options.exportName) return this.#byName(data, noZeroes);
      else {
        const chosen = await this.#answer(option, data);
        if (chosen !== undefined) return this.#admitted(chosen);
      }
    }
    throw violation(`more than ${nbdLimits.optionsMax} options`);
  }

  #refuseWithoutTls(option: number): void {
    // No refusal is possible there.
    if (option === options.exportName)
      throw new ReplicationError("tls-failed", "NBD: an export was asked for without TLS");
    this.#refuse(option, optionReplies.tlsRequired, "this server talks inside TLS only");
  }

  async #answer(option: number, data: Buffer): Promise<ExportedDisk | undefined> {
    switch (option) {
      case options.startTls:
        return await this.#startTls(data);
      case options.structuredReply:
        if (data.length > 0) return this.#refuse(option, optionReplies.invalid, "it has no data");
        this.#structured = true;
        return this.#reply(option, optionReplies.ack);
      case options.list:
        return this.#list(option, data);
      case options.info:
      case options.go:
        return this.#describe(option, data);
      case options.listMetaContext:
      case options.setMetaContext:
        return this.#chooseContexts(option, data);
      default:
        return this.#refuse(option, optionReplies.unsupported, "this server does not know it");
    }
  }

  async #startTls(data: Buffer): Promise<undefined> {
    const { startTls } = this.#how;
    if (startTls === undefined) return this.#refuse(options.startTls, optionReplies.policy, "no TLS is offered here");
    if (this.#tls === "on" || data.length > 0) {
      return this.#refuse(options.startTls, optionReplies.invalid, "it is asked once, without data");
    }
    if (this.#reader.rest().length > 0) throw violation("something was said between the wish for TLS and its begin");
    this.#reply(options.startTls, optionReplies.ack);
    this.#stream = await startTls(this.#stream);
    this.#reader = new ByteReader(this.#stream);
    this.#tls = "on";
    return undefined;
  }

  #list(option: number, data: Buffer): undefined {
    if (data.length > 0) return this.#refuse(option, optionReplies.invalid, "it has no data");
    for (const { name, description } of this.#how.exports) {
      this.#reply(option, optionReplies.server, encodeListed(name, description));
    }
    return this.#reply(option, optionReplies.ack);
  }

  #describe(option: number, data: Buffer): ExportedDisk | undefined {
    const { name, wanted } = decodeExportChoice(data);
    const disk = this.#find(name);
    if (disk === undefined) return this.#refuseName(option, name);
    this.#reply(option, optionReplies.info, encodeExportInfo(this.#info(disk)));
    this.#reply(option, optionReplies.info, encodeBlockSizeInfo(blocks));
    if (wanted.includes(infos.name)) this.#reply(option, optionReplies.info, encodeTextInfo(infos.name, disk.name));
    if (wanted.includes(infos.description) && disk.description !== "") {
      this.#reply(option, optionReplies.info, encodeTextInfo(infos.description, disk.description));
    }
    this.#reply(option, optionReplies.ack);
    return option === options.go ? disk : undefined;
  }

  #chooseContexts(option: number, data: Buffer): undefined {
    const { name, queries } = decodeContextQueries(data);
    const disk = this.#find(name);
    if (disk === undefined) return this.#refuseName(option, name);
    const sets = option === options.setMetaContext;
    if (sets && !this.#structured) return this.#refuse(option, optionReplies.invalid, "structured replies come first");
    const found = disk.contexts
      .map((context, index) => [index + 1, context] as const)
      .filter(([, context]) => matches(context.name, queries, sets))
      .slice(0, nbdLimits.contextsMax);
    if (sets) {
      this.#contexts = new Map(found);
      this.#contextsOf = disk;
    }
    for (const [id, context] of found) {
      this.#reply(option, optionReplies.metaContext, encodeContext(sets ? id : 0, context.name));
    }
    return this.#reply(option, optionReplies.ack);
  }

  #byName(data: Buffer, noZeroes: boolean): Admitted {
    const name = data.toString("utf8");
    const disk = this.#find(name);
    if (disk === undefined) throw new ReplicationError("image-not-found", `NBD: there is no export ${quoted(name)}`);
    this.say(encodeExportNameReply(this.#info(disk), !noZeroes));
    return this.#admitted(disk);
  }

  #admitted(disk: ExportedDisk): Admitted {
    return {
      stream: this.#stream,
      ahead: () => this.#reader.rest(),
      disk,
      structured: this.#structured,
      contexts: this.#contextsOf === disk ? this.#contexts : new Map(),
    };
  }

  #find(name: string): ExportedDisk | undefined {
    const { exports } = this.#how;
    return name === "" ? exports[0] : exports.find((disk) => disk.name === name);
  }

  #info({ sizeBytes, writer, file }: ExportedDisk): ExportInfo {
    const { cache, hasFlags, multiConnection, dontFragment, readOnly, flush, fua, trim, writeZeroes } = exportFlags;
    // Every connection sees what the others wrote, and a flush is one of all.
    const common =
      hasFlags |
      multiConnection |
      flush |
      fua |
      (this.#structured ? dontFragment : 0) |
      (file === undefined ? 0 : cache);
    return { sizeBytes, flags: common | (writer === undefined ? readOnly : trim | writeZeroes) };
  }

  #refuseName(option: number, name: string): undefined {
    return this.#refuse(option, optionReplies.unknown, `there is no export ${quoted(name)}`);
  }

  #refuse(option: number, type: number, text: string): undefined {
    return this.#reply(option, type, Buffer.from(text));
  }

  #reply(option: number, type: number, data?: Uint8Array): undefined {
    this.say(encodeOptionReply(option, type, data));
    return undefined;
  }
}

/** When contexts are listed no query means all, and a query that ends with a colon all of that kind. */
function matches(name: string, queries: readonly string[], sets: boolean): boolean {
  if (queries.includes(name)) return true;
  return !sets && (queries.length === 0 || queries.some((query) => query.endsWith(":") && name.startsWith(query)));
}
