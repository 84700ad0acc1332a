/**
 * Messages to msgpack headers and back. The table is in message-layout.ts; after decoding, inner code trusts the types.
 */
import { Decoder, Encoder } from "@msgpack/msgpack";
import { InvariantError, invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { checkShape } from "./header-shape.ts";
import { type Field, type Layout, layouts } from "./message-layout.ts";
import type { Message, MessageType } from "./messages.ts";
import { wireLimits } from "./wire-limits.ts";
import { WrongValue, wrong } from "./wrong-value.ts";

interface NamedField extends Field<unknown> {
  readonly name: string;
}

/** A layout with its field names as values; which message it belongs to is known to the table only. */
export interface MessageForm {
  readonly type: MessageType;
  readonly number: number;
  readonly fields: readonly NamedField[];
  readonly check: ((message: Message) => void) | undefined;
  readonly payload: ((message: Message, payloadBytes: number) => void) | undefined;
}

/** Every message, by number. */
export const messageForms: readonly MessageForm[] = Object.entries(layouts)
  .map(([type, layout]) => formOf(type as MessageType, layout as Layout<never>))
  .sort((a, b) => a.number - b.number);

const formsByType: ReadonlyMap<MessageType, MessageForm> = new Map(messageForms.map((form) => [form.type, form]));
const formsByNumber: readonly (MessageForm | undefined)[] = Array.from({ length: 256 }, (_, number) =>
  messageForms.find((form) => form.number === number),
);

function formOf(type: MessageType, layout: Layout<never>): MessageForm {
  const fields = Object.entries<Field<unknown>>(layout.fields).map(([name, field]) => ({ name, ...field }));
  return {
    type,
    number: layout.number,
    fields,
    check: layout.check as MessageForm["check"],
    payload: layout.payload as MessageForm["payload"],
  };
}

/** The message with this type byte, or undefined. */
export function formOfNumber(number: number): MessageForm | undefined {
  return formsByNumber[number];
}

export function formOfType(type: MessageType): MessageForm {
  const form = formsByType.get(type);
  invariant(form !== undefined, `a message of a known type (${type})`);
  return form;
}

/**
 * The header of `message`. Everything a receiver would refuse is refused here first, as `InvariantError`. The result is
 * a view that nothing else writes to.
 */
export function encodeHeader(message: Message, payloadBytes: number): Uint8Array {
  const form = formOfType(message.type);
  const values = message as unknown as Readonly<Record<string, unknown>>;
  const map: Record<string, unknown> = {};
  for (const { name, key, kind, optional } of form.fields) {
    const value = values[name];
    if (value === undefined && optional) continue;
    invariant(value !== undefined, `message ${form.type} has ${name}`);
    map[key] = kind.pack(value);
  }
  try {
    checkPayload(form, readFields(form, map), payloadBytes);
  } catch (thrown) {
    if (thrown instanceof WrongValue) throw new InvariantError(`message ${form.type} is not sent: ${thrown.message}`);
    throw thrown;
  }
  const header = new Encoder({ maxDepth: wireLimits.headerDepthMax + 1 }).encodeSharedRef(map);
  invariant(header.length <= limits.frameHeaderBytesMax, `header of message ${form.type} fits a frame`);
  return header;
}

/**
 * Decodes the header of a frame of `form` and checks it against the payload announced. What it returns shares no memory
 * with `header`.
 */
export type HeaderDecoder = (form: MessageForm, header: Uint8Array, payloadBytes: number) => Message;

/** Throws `message-malformed` naming message and key. */
export function createHeaderDecoder(): HeaderDecoder {
  const decoder = new Decoder({
    maxStrLength: wireLimits.headerBytesMax,
    maxBinLength: wireLimits.headerBytesMax,
    maxArrayLength: wireLimits.headerItemsMax,
    maxMapLength: wireLimits.headerItemsMax,
    maxExtLength: 0,
    mapKeyConverter: plainKey,
  });
  return (form, header, payloadBytes) => {
    try {
      const entries = checkShape(header);
      const map = decoder.decode(header) as Readonly<Record<string, unknown>>;
      if (countEntries(map) !== entries) wrong("a key given twice");
      const message = readFields(form, map);
      checkPayload(form, message, payloadBytes);
      return message;
    } catch (thrown) {
      throw malformed(form, thrown);
    }
  };
}

/** Keys that mean something to JavaScript itself. */
function plainKey(key: unknown): string {
  if (typeof key !== "string" || key === "__proto__" || key === "constructor" || key === "prototype") {
    return wrong(`the key ${String(key)} is not allowed`);
  }
  return key;
}

function countEntries(value: unknown): number {
  if (typeof value !== "object" || value === null || value instanceof Uint8Array) return 0;
  const inner: unknown[] = Object.values(value);
  const own = Array.isArray(value) ? 0 : inner.length;
  return inner.reduce<number>((sum, entry) => sum + countEntries(entry), own);
}

/** Keys this version does not know are left out: that is how optional fields are added. */
function readFields(form: MessageForm, map: Readonly<Record<string, unknown>>): Message {
  const message: Record<string, unknown> = { type: form.type };
  for (const { name, key, kind, optional } of form.fields) {
    const raw = Object.hasOwn(map, key) ? map[key] : undefined;
    if (raw === undefined && optional) continue;
    try {
      message[name] = kind.unpack(raw);
    } catch (thrown) {
      if (thrown instanceof WrongValue) wrong(`${key === name ? key : `${key} (${name})`}: ${thrown.message}`);
      throw thrown;
    }
  }
  const checked = message as unknown as Message;
  form.check?.(checked);
  return checked;
}

function checkPayload(form: MessageForm, message: Message, payloadBytes: number): void {
  if (form.payload === undefined ? payloadBytes !== 0 : payloadBytes === 0) wrong(`payload: ${payloadBytes} bytes`);
  form.payload?.(message, payloadBytes);
}

function malformed(form: MessageForm, thrown: unknown): unknown {
  if (thrown instanceof InvariantError) return thrown;
  const problem = thrown instanceof Error ? thrown.message : String(thrown);
  return new ReplicationError(
    "message-malformed",
    `the peer's message ${form.type} is malformed: ${problem}; the peer is damaged or not a version of replicate that can talk to this one`,
    { cause: thrown, details: { message: form.type } },
  );
}
