/** Messages of the negotiation as bytes and back. Pure. Decoders throw `protocol-violation` naming the rule that was broken. */
import { KIB } from "../base/units.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { type BlockSizes, type ExportInfo, infos, magics } from "./protocol.ts";
import { violation } from "./violation.ts";

export const greetingBytes = 18;
export const clientFlagsBytes = 4;
export const optionHeadBytes = 16;
export const optionReplyHeadBytes = 20;
/** What the answer to `exportName` has behind its 10 bytes unless both ends leave it out. */
export const exportNameZeroes = 124;
export const exportNameReplyBytes = 10;

/** `oldstyle`: a server of before 2011, whose handshake ends here. */
export type Greeting = { readonly kind: "newstyle"; readonly flags: number } | { readonly kind: "oldstyle" };

export function encodeGreeting(flags: number): Buffer {
  const bytes = Buffer.alloc(greetingBytes);
  bytes.writeBigUInt64BE(magics.greeting, 0);
  bytes.writeBigUInt64BE(magics.option, 8);
  bytes.writeUInt16BE(flags, 16);
  return bytes;
}

/** Undefined: this is no NBD server. */
export function decodeGreeting(bytes: Buffer): Greeting | undefined {
  if (bytes.readBigUInt64BE(0) !== magics.greeting) return undefined;
  const style = bytes.readBigUInt64BE(8);
  if (style === magics.oldstyle) return { kind: "oldstyle" };
  return style === magics.option ? { kind: "newstyle", flags: bytes.readUInt16BE(16) } : undefined;
}

export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.alloc(clientFlagsBytes);
  bytes.writeUInt32BE(flags);
  return bytes;
}

const noData = Buffer.alloc(0);

export function encodeOption(option: number, data: Uint8Array = noData): Buffer {
  const bytes = Buffer.alloc(optionHeadBytes + data.length);
  bytes.writeBigUInt64BE(magics.option, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  bytes.set(data, optionHeadBytes);
  return bytes;
}

/** `length`: bytes of data that follow, as the peer says: not checked here. */
export function decodeOptionHead(bytes: Buffer): { readonly option: number; readonly length: number } {
  if (bytes.readBigUInt64BE(0) !== magics.option) throw violation("an option does not begin as one");
  return { option: bytes.readUInt32BE(8), length: bytes.readUInt32BE(12) };
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array = noData): Buffer {
  const bytes = Buffer.alloc(optionReplyHeadBytes + data.length);
  bytes.writeBigUInt64BE(magics.optionReply, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  bytes.set(data, optionReplyHeadBytes);
  return bytes;
}

/** The head of a reply to `option`; its data is short enough to be read. */
export function decodeOptionReplyHead(
  bytes: Buffer,
  option: number,
): { readonly type: number; readonly length: number } {
  if (bytes.readBigUInt64BE(0) !== magics.optionReply) throw violation("a reply to an option does not begin as one");
  const about = bytes.readUInt32BE(8);
  if (about !== option) throw violation(`a reply to option ${about}, where ${option} was asked`);
  const length = bytes.readUInt32BE(16);
  if (length > nbdLimits.optionReplyBytesMax) throw violation(`a reply of ${length} bytes to option ${option}`);
  return { type: bytes.readUInt32BE(12), length };
}

// Data of options ---------------------------------------------------------------------------------------------------

/** Reads the fields of a message one after the other. */
class Fields {
  readonly #bytes: Buffer;
  readonly #what: string;
  #at = 0;

  constructor(bytes: Buffer, what: string) {
    this.#bytes = bytes;
    this.#what = what;
  }

  u16(): number {
    return this.#bytes.readUInt16BE(this.#step(2));
  }

  u32(): number {
    return this.#bytes.readUInt32BE(this.#step(4));
  }

  u64(): number {
    const value = this.#bytes.readBigUInt64BE(this.#step(8));
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw violation(`${this.#what} has the number ${value}`);
    return Number(value);
  }

  /** A string of a known length in bytes. */
  text(length: number): string {
    if (length > nbdLimits.stringBytesMax) throw violation(`${this.#what} has a string of ${length} bytes`);
    const at = this.#step(length);
    const text = this.#bytes.toString("utf8", at, at + length);
    if (text.includes("\0")) throw violation(`${this.#what} has a string with a NUL`);
    return text;
  }

  /** All that is left, as a string. */
  rest(): string {
    return this.text(this.#bytes.length - this.#at);
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw violation(`${this.#what} is longer than what it says`);
  }

  #step(count: number): number {
    const at = this.#at;
    if (at + count > this.#bytes.length) throw violation(`${this.#what} ends too early`);
    this.#at = at + count;
    return at;
  }
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function u32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, 4 * index);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** Its length as 32 bits, then the string. */
function longText(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([u32(bytes.length), bytes]);
}

/** Data of `info` and `go`: which export, and of which {@link infos} it wants to hear. */
export function encodeExportChoice(name: string, wanted: readonly number[]): Buffer {
  return Buffer.concat([longText(name), u16(wanted.length), ...wanted.map(u16)]);
}

export function decodeExportChoice(bytes: Buffer): { readonly name: string; readonly wanted: readonly number[] } {
  const fields = new Fields(bytes, "the choice of an export");
  const name = fields.text(fields.u32());
  const wanted = Array.from({ length: fields.u16() }, () => fields.u16());
  fields.end();
  return { name, wanted };
}

/** Data of `listMetaContext` and `setMetaContext`: which export, and contexts by name. */
export function encodeContextQueries(name: string, queries: readonly string[]): Buffer {
  return Buffer.concat([longText(name), u32(queries.length), ...queries.map(longText)]);
}

export function decodeContextQueries(bytes: Buffer): { readonly name: string; readonly queries: readonly string[] } {
  const fields = new Fields(bytes, "the choice of contexts");
  const name = fields.text(fields.u32());
  const count = fields.u32();
  // A query takes four bytes at least: the count cannot make us work for more than was sent.
  if (count * 4 > bytes.length) throw violation(`the choice of contexts ends before its ${count} queries`);
  const queries = Array.from({ length: count }, () => fields.text(fields.u32()));
  fields.end();
  return { name, queries };
}

// Data of replies ---------------------------------------------------------------------------------------------------

/** Data of a `server` reply: an export by name, with a description. */
export function encodeListed(name: string, description = ""): Buffer {
  return Buffer.concat([longText(name), Buffer.from(description)]);
}

export function decodeListed(bytes: Buffer): { readonly name: string; readonly description: string } {
  const fields = new Fields(bytes, "an export in a list");
  return { name: fields.text(fields.u32()), description: fields.rest() };
}

export function encodeExportInfo({ sizeBytes, flags }: ExportInfo): Buffer {
  return Buffer.concat([u16(infos.export), u64(sizeBytes), u16(flags)]);
}

export function encodeTextInfo(kind: typeof infos.name | typeof infos.description, text: string): Buffer {
  return Buffer.concat([u16(kind), Buffer.from(text)]);
}

export function encodeBlockSizeInfo({ minimum, preferred, maximum }: BlockSizes): Buffer {
  return Buffer.concat([u16(infos.blockSize), u32(minimum, preferred, maximum)]);
}

/** A fact of an `info` reply; `other`: one this version has no use for. */
export type Info =
  | ({ readonly kind: "export" } & ExportInfo)
  | ({ readonly kind: "blockSize" } & BlockSizes)
  | { readonly kind: "other" };

export function decodeInfo(bytes: Buffer): Info {
  const fields = new Fields(bytes, "a fact of an export");
  const kind = fields.u16();
  if (kind === infos.export) {
    const info = { kind: "export", sizeBytes: fields.u64(), flags: fields.u16() } as const;
    fields.end();
    return info;
  }
  if (kind === infos.blockSize) {
    const sizes = { minimum: fields.u32(), preferred: fields.u32(), maximum: fields.u32() };
    fields.end();
    checkBlockSizes(sizes);
    return { kind: "blockSize", ...sizes };
  }
  return { kind: "other" };
}

function checkBlockSizes({ minimum, preferred, maximum }: BlockSizes): void {
  const isPower = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));
  if (!isPower(minimum) || minimum > 64 * KIB) throw violation(`blocks of at least ${minimum} bytes`);
  if (!isPower(preferred) || preferred < minimum) throw violation(`blocks of ${preferred} bytes preferred`);
  if (maximum < minimum) throw violation(`requests of ${maximum} bytes at most, blocks of ${minimum} at least`);
}

/** Data of a `metaContext` reply. `id`: what block status replies call it by. */
export function encodeContext(id: number, name: string): Buffer {
  return Buffer.concat([u32(id), Buffer.from(name)]);
}

export function decodeContext(bytes: Buffer): { readonly id: number; readonly name: string } {
  const fields = new Fields(bytes, "a context");
  return { id: fields.u32(), name: fields.rest() };
}

/** The answer to `exportName`; `zeroes`: with those bytes that clients of before 2013 wait for. */
export function encodeExportNameReply({ sizeBytes, flags }: ExportInfo, zeroes: boolean): Buffer {
  return Buffer.concat([u64(sizeBytes), u16(flags), Buffer.alloc(zeroes ? exportNameZeroes : 0)]);
}

export function decodeExportNameReply(bytes: Buffer): ExportInfo {
  const fields = new Fields(bytes, "the answer to the name of an export");
  return { sizeBytes: fields.u64(), flags: fields.u16() };
}
