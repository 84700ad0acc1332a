/** The client's side of fixed newstyle negotiation, from the greeting to the moment requests may be sent. */
import { type ErrorCode, ReplicationError } from "../base/errors.ts";
import type { ByteStream } from "../transport/byte-stream.ts";
import { ByteReader } from "./byte-reader.ts";
import { nbdLimits } from "./nbd-limits.ts";
import {
  decodeContext,
  decodeExportNameReply,
  decodeGreeting,
  decodeInfo,
  decodeListed,
  decodeOptionReplyHead,
  encodeClientFlags,
  encodeContextQueries,
  encodeExportChoice,
  encodeOption,
  exportNameReplyBytes,
  exportNameZeroes,
  greetingBytes,
  optionReplyHeadBytes,
} from "./option-codec.ts";
import {
  type BlockSizes,
  type ExportInfo,
  exportFlags,
  handshakeFlags,
  infos,
  isOptionError,
  optionReplies,
  options,
} from "./protocol.ts";
import { quoted, violation } from "./violation.ts";

export interface NegotiationOptions {
  readonly exportName: string;
  /** Contexts to ask for; those the server does not have are left out. */
  readonly contexts: readonly string[];
  /** Starts TLS on the stream; undefined: no TLS. */
  readonly startTls: ((stream: ByteStream) => Promise<ByteStream>) | undefined;
}

/** A connection whose next bytes are requests and replies. */
export interface Negotiated {
  readonly stream: ByteStream;
  /** What the server has sent already. Taken by the sink that takes the stream over, at that moment: until then more may come. */
  readonly ahead: () => Buffer;
  readonly info: ExportInfo;
  readonly blocks: BlockSizes;
  readonly structured: boolean;
  /** Ids of the contexts the server has, by name. */
  readonly contexts: ReadonlyMap<string, number>;
}

/** What a server takes that says nothing of block sizes. */
const defaultBlocks: BlockSizes = { minimum: 1, preferred: 4_096, maximum: nbdLimits.requestBytesDefault };

/** Exports named in an error at most. */
const namesShown = 20;

/**
 * Negotiates. The stream is open when it resolves; on an error the caller destroys it. Errors: `not-nbd`, `version-unsupported` (oldstyle, or not fixed newstyle),
 * `image-not-found` (no such export; names those there are), `not-allowed`, `tls-failed` (TLS wanted by one side only), `connection-lost`, `protocol-violation`.
 */
export async function negotiate(stream: ByteStream, wanted: NegotiationOptions): Promise<Negotiated> {
  const first = new Dialog(stream);
  const noZeroes = await first.greet();
  const dialog = wanted.startTls === undefined ? first : await first.startTls(wanted.startTls);
  const structured = (await dialog.ask(options.structuredReply)).refusal === undefined;
  const contexts = structured ? await chooseContexts(dialog, wanted) : new Map<string, number>();
  const chosen = (await chooseExport(dialog, wanted)) ?? (await chooseByName(dialog, wanted, noZeroes));
  const { info, blocks } = chosen;
  if ((info.flags & exportFlags.hasFlags) === 0) throw violation("an export without flags");
  return { stream: dialog.stream, ahead: () => dialog.rest(), info, blocks, structured, contexts };
}

interface Refusal {
  readonly type: number;
  /** What the server says to people. */
  readonly text: string;
}

interface Answers {
  readonly answers: readonly { readonly type: number; readonly data: Buffer }[];
  /** Undefined: acknowledged. */
  readonly refusal: Refusal | undefined;
}

/** Options asked one after the other. */
class Dialog {
  readonly stream: ByteStream;
  readonly #reader: ByteReader;

  constructor(stream: ByteStream) {
    this.stream = stream;
    this.#reader = new ByteReader(stream);
  }

  read(count: number): Promise<Buffer> {
    return this.#reader.read(count);
  }

  rest(): Buffer {
    return this.#reader.rest();
  }

  write(bytes: Uint8Array): void {
    this.stream.write([bytes]);
  }

  /** True: zeroes behind the answer to a name are left out. */
  async greet(): Promise<boolean> {
    const greeting = decodeGreeting(await this.read(greetingBytes));
    if (greeting === undefined) {
      throw new ReplicationError("not-nbd", "no NBD server answers there: check the address and the port");
    }
    if (greeting.kind === "oldstyle" || (greeting.flags & handshakeFlags.fixedNewstyle) === 0) {
      const what = greeting.kind === "oldstyle" ? "oldstyle" : "newstyle that is not fixed";
      throw new ReplicationError(
        "version-unsupported",
        `the server speaks ${what}, an NBD of before 2013: use a newer server, such as qemu-nbd or nbdkit`,
      );
    }
    const { fixedNewstyle, noZeroes } = handshakeFlags;
    this.write(encodeClientFlags(fixedNewstyle | (greeting.flags & noZeroes)));
    return (greeting.flags & noZeroes) !== 0;
  }

  async startTls(start: (stream: ByteStream) => Promise<ByteStream>): Promise<Dialog> {
    const { refusal } = await this.ask(options.startTls);
    if (refusal !== undefined) {
      throw refused(
        refusal,
        "tls-failed",
        "the server offers no TLS: nothing was asked of it without. Give it certificates, or use nbd://",
      );
    }
    if (this.rest().length > 0) throw violation("something was said between the consent to TLS and its begin");
    return new Dialog(await start(this.stream));
  }

  /** Asks, and gathers what is answered up to the acknowledgement or the refusal. */
  async ask(option: number, data?: Uint8Array): Promise<Answers> {
    this.write(encodeOption(option, data));
    const answers: { type: number; data: Buffer }[] = [];
    let bytes = 0;
    for (;;) {
      const { type, length } = decodeOptionReplyHead(await this.read(optionReplyHeadBytes), option);
      const body = await this.read(length);
      if (type === optionReplies.ack) return { answers, refusal: undefined };
      if (isOptionError(type)) {
        const refusal = { type, text: body.toString("utf8") };
        checkGoing(refusal);
        return { answers, refusal };
      }
      bytes += length;
      if (answers.length === nbdLimits.optionRepliesMax || bytes > nbdLimits.optionAnswersBytesMax) {
        throw violation(`no end of replies to option ${option}`);
      }
      answers.push({ type, data: body });
    }
  }

  /** Names of the server's exports; undefined: it does not tell. */
  async list(): Promise<readonly string[] | undefined> {
    const { answers, refusal } = await this.ask(options.list);
    if (refusal !== undefined) return undefined;
    return answers.filter(({ type }) => type === optionReplies.server).map(({ data }) => decodeListed(data).name);
  }
}

/** Refusals that say the same of every option. */
function checkGoing(refusal: Refusal): void {
  if (refusal.type === optionReplies.tlsRequired) {
    throw refused(refusal, "tls-failed", "the server wants TLS: write nbds:// in place of nbd://");
  }
  if (refusal.type === optionReplies.shutdown) throw refused(refusal, "connection-lost", "the server is going down");
}

function refused({ text }: Refusal, code: ErrorCode, what: string): ReplicationError {
  return new ReplicationError(code, text === "" ? what : `${what} (it says ${quoted(text)})`, { remote: true });
}

async function chooseContexts(
  dialog: Dialog,
  { exportName, contexts }: NegotiationOptions,
): Promise<ReadonlyMap<string, number>> {
  const found = new Map<string, number>();
  if (contexts.length === 0) return found;
  const { answers, refusal } = await dialog.ask(options.setMetaContext, encodeContextQueries(exportName, contexts));
  // A wrong export name is told better by what follows.
  if (refusal !== undefined) return found;
  for (const { type, data } of answers) {
    if (type !== optionReplies.metaContext) throw violation(`a reply of type ${type} to the choice of contexts`);
    const { id, name } = decodeContext(data);
    if (!contexts.includes(name) || found.has(name)) throw violation(`the context ${quoted(name)} was not asked for`);
    found.set(name, id);
  }
  if (new Set(found.values()).size < found.size) throw violation("two contexts with one id");
  return found;
}

type Chosen = Pick<Negotiated, "info" | "blocks">;

/** Undefined: the server does not know this option. */
async function chooseExport(dialog: Dialog, { exportName }: NegotiationOptions): Promise<Chosen | undefined> {
  const { answers, refusal } = await dialog.ask(options.go, encodeExportChoice(exportName, [infos.blockSize]));
  if (refusal?.type === optionReplies.unsupported) return undefined;
  if (refusal?.type === optionReplies.unknown) throw notFound(exportName, await dialog.list(), refusal);
  if (refusal !== undefined) {
    throw refused(refusal, "not-allowed", `the server refuses the export ${quoted(exportName)} to this client`);
  }
  let info: ExportInfo | undefined;
  let blocks = defaultBlocks;
  for (const { type, data } of answers) {
    if (type !== optionReplies.info) throw violation(`a reply of type ${type} to the choice of an export`);
    const fact = decodeInfo(data);
    if (fact.kind === "export") info = { sizeBytes: fact.sizeBytes, flags: fact.flags };
    else if (fact.kind === "blockSize") {
      const { minimum, preferred, maximum } = fact;
      blocks = { minimum, preferred, maximum };
    }
  }
  if (info === undefined) throw violation("an export of which nothing was said");
  return { info, blocks };
}

/** As before 2016: the server answers, or closes the connection. */
async function chooseByName(dialog: Dialog, { exportName }: NegotiationOptions, noZeroes: boolean): Promise<Chosen> {
  const names = await dialog.list();
  if (names !== undefined && exportName !== "" && !names.includes(exportName)) throw notFound(exportName, names);
  dialog.write(encodeOption(options.exportName, Buffer.from(exportName)));
  let info: ExportInfo;
  try {
    info = decodeExportNameReply(await dialog.read(exportNameReplyBytes));
  } catch (error) {
    if (!(error instanceof ReplicationError) || error.code !== "connection-lost") throw error;
    throw notFound(exportName, names);
  }
  if (!noZeroes) await dialog.read(exportNameZeroes);
  return { info, blocks: defaultBlocks };
}

function notFound(name: string, names: readonly string[] | undefined, refusal?: Refusal): ReplicationError {
  const wrong = name === "" ? "the server has no default export" : `the server has no export ${quoted(name)}`;
  const shown = names?.slice(0, namesShown).map(quoted).join(", ");
  const more = names !== undefined && names.length > namesShown ? `, and ${names.length - namesShown} more` : "";
  const there = names === undefined || names.length === 0 ? "it names none" : `it has ${shown}${more}`;
  const says = refusal === undefined || refusal.text === "" ? "" : ` (it says ${quoted(refusal.text)})`;
  return new ReplicationError("image-not-found", `${wrong}: ${there}${says}`, { remote: true });
}
