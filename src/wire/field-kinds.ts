/**
 * Kinds of header fields: how a value of ours is written as a msgpack value and how a received one is checked.
 * `describe` is the text of the field's row in docs/protocol.md.
 */
import type { ErrorDetails } from "../base/errors.ts";
import { packAscending, unpackAscending } from "./number-list.ts";
import { wireLimits } from "./wire-limits.ts";
import { wrong } from "./wrong-value.ts";

export interface Kind<T> {
  readonly describe: string;
  /** The value as the msgpack library takes it. Trusts `value`; the result is checked by `unpack` before it is sent. */
  pack(value: T): unknown;
  /** A value as the msgpack library gave it. Throws `WrongValue`. What it returns shares no memory with the header. */
  unpack(raw: unknown): T;
}

export function integer(min: number, max: number): Kind<number> {
  return {
    describe: `integer, ${plainNumber(min)} to ${plainNumber(max)}`,
    pack: (value) => value,
    unpack(raw) {
      if (typeof raw !== "number" || !Number.isSafeInteger(raw) || Object.is(raw, -0))
        wrong(`${show(raw)}, not an integer`);
      if (raw < min || raw > max) wrong(`${raw}, ${plainNumber(min)} to ${plainNumber(max)} allowed`);
      return raw;
    },
  };
}

export function flag(): Kind<boolean> {
  return {
    describe: "boolean",
    pack: (value) => value,
    unpack: (raw) => (typeof raw === "boolean" ? raw : wrong(`${show(raw)}, not a boolean`)),
  };
}

const visible = /^[\x21-\x7e]*$/;

/** Whether a text may be sent as a {@link name} of so many characters. */
export function isName(value: string, charsMax: number = wireLimits.nameCharsMax): boolean {
  return value.length >= 1 && value.length <= charsMax && visible.test(value);
}

/** For machines: compared, never shown as prose. */
export function name(charsMax: number): Kind<string> {
  return {
    describe: `name, 1 to ${charsMax} characters`,
    pack: (value) => value,
    unpack(raw) {
      const value = stringOf(raw);
      if (value.length < 1 || value.length > charsMax) wrong(`${value.length} characters, 1 to ${charsMax} allowed`);
      if (!visible.test(value)) wrong("characters other than visible ASCII");
      return value;
    },
  };
}

/**
 * For people. The sender cuts it and takes control characters out, because losing the end of a text beats losing the
 * message.
 */
export function text(charsMax: number): Kind<string> {
  return {
    describe: `text, at most ${charsMax} characters`,
    pack: (value) => plainText(value, charsMax),
    unpack: (raw) => checkText(raw, charsMax),
  };
}

export function oneOf<T extends string>(values: readonly T[]): Kind<T> {
  return {
    describe: `one of ${values.map((value) => `\`${value}\``).join(", ")}`,
    pack: (value) => value,
    unpack(raw) {
      const found = values.find((value) => value === raw);
      return found ?? wrong(`${show(raw)}, one of ${values.join(", ")} allowed`);
    },
  };
}

/** A list of names of which those this version does not know are left out. */
export function known<T extends string>(values: readonly T[]): Kind<readonly T[]> {
  const names = list(name(wireLimits.featureCharsMax), 0, wireLimits.featuresMax);
  return {
    describe: `array of 0 to ${wireLimits.featuresMax} names; known: ${values.map((value) => `\`${value}\``).join(", ")}`,
    pack: (value) => names.pack(value),
    unpack(raw) {
      const received = new Set<string>(names.unpack(raw));
      return values.filter((value) => received.has(value));
    },
  };
}

/** A byte array of `min` to `max` bytes. */
export function bytes(min: number, max: number): Kind<Uint8Array> {
  return {
    describe: min === max ? `${min} bytes` : `${min} to ${max} bytes`,
    pack: (value) => value,
    unpack(raw) {
      const value = bytesOf(raw);
      if (value.length < min || value.length > max) wrong(`${value.length} bytes, ${min} to ${max} allowed`);
      return new Uint8Array(value);
    },
  };
}

export function list<T>(item: Kind<T>, min: number, max: number): Kind<readonly T[]> {
  return {
    describe: `array of ${min} to ${max}: ${item.describe}`,
    pack: (value) => value.map((entry) => item.pack(entry)),
    unpack(raw) {
      if (!Array.isArray(raw)) wrong(`${show(raw)}, not an array`);
      if (raw.length < min || raw.length > max) wrong(`${raw.length} entries, ${min} to ${max} allowed`);
      return raw.map((entry: unknown) => item.unpack(entry));
    },
  };
}

/** Strictly ascending numbers below `limit`, at least one. */
export function ascending(countMax: number, limit: number): Kind<readonly number[]> {
  return {
    describe: `number list, 1 to ${countMax} below ${plainNumber(limit)}`,
    pack: packAscending,
    unpack(raw) {
      const numbers = unpackAscending(bytesOf(raw), countMax, limit);
      return numbers.length > 0 ? numbers : wrong("an empty list");
    },
  };
}

/** A map inside the header, with keys of its own. */
export function joinKind(connectionsMax: number): Kind<{ readonly token: string; readonly connection: number }> {
  const token = name(wireLimits.nameCharsMax);
  const connection = integer(1, connectionsMax - 1);
  return {
    describe: `map: \`token\` ${token.describe}; \`connection\` ${connection.describe}`,
    pack: (value) => ({ token: value.token, connection: value.connection }),
    unpack(raw) {
      const map = mapOf(raw);
      return { token: token.unpack(map["token"]), connection: connection.unpack(map["connection"]) };
    },
  };
}

export function details(): Kind<ErrorDetails> {
  const key = name(wireLimits.detailKeyCharsMax);
  return {
    describe: `map of 0 to ${wireLimits.detailsMax}: name to text, number, boolean or nil`,
    pack(value) {
      const entries = Object.entries(value)
        .slice(0, wireLimits.detailsMax)
        .map(([entry, fact]) => [entry, packFact(fact)]);
      return Object.fromEntries(entries);
    },
    unpack(raw) {
      const entries = Object.entries(mapOf(raw));
      if (entries.length > wireLimits.detailsMax) wrong(`${entries.length} entries, ${wireLimits.detailsMax} allowed`);
      return Object.fromEntries(entries.map(([entry, fact]) => [key.unpack(entry), unpackFact(fact)]));
    },
  };
}

function packFact(fact: string | number | boolean | null): string | number | boolean | null {
  if (typeof fact === "string") return plainText(fact, wireLimits.detailTextCharsMax);
  return typeof fact === "number" && !Number.isFinite(fact) ? String(fact) : fact;
}

function unpackFact(raw: unknown): string | number | boolean | null {
  if (raw === null || typeof raw === "boolean") return raw;
  if (typeof raw === "number") return Number.isFinite(raw) ? raw : wrong("a number that is not finite");
  return checkText(raw, wireLimits.detailTextCharsMax);
}

/** Control characters other than line break and tab: texts of a peer end up on terminals and in logs. */
const controls = /(?![\n\t])\p{Cc}/gu;

function plainText(value: string, charsMax: number): string {
  const clean = value.replace(controls, "\ufffd");
  return clean.length <= charsMax ? clean : `${clean.slice(0, charsMax - 1)}…`;
}

function checkText(raw: unknown, charsMax: number): string {
  const value = stringOf(raw);
  if (value.length > charsMax) wrong(`${value.length} characters, ${charsMax} allowed`);
  return value.replace(controls, "\ufffd");
}

function stringOf(raw: unknown): string {
  return typeof raw === "string" ? raw : wrong(`${show(raw)}, not a string`);
}

function bytesOf(raw: unknown): Uint8Array {
  return raw instanceof Uint8Array ? raw : wrong(`${show(raw)}, not a byte array`);
}

function mapOf(raw: unknown): Readonly<Record<string, unknown>> {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw) || raw instanceof Uint8Array) {
    wrong(`${show(raw)}, not a map`);
  }
  return raw as Record<string, unknown>;
}

/** A received value in a message: short, and safe to print. */
function show(raw: unknown): string {
  if (raw === undefined) return "missing";
  if (typeof raw === "string") return `a string of ${raw.length} characters`;
  if (raw === null || typeof raw === "number" || typeof raw === "boolean") return String(raw);
  if (Array.isArray(raw)) return "an array";
  return raw instanceof Uint8Array ? "a byte array" : "a map";
}

/** Large powers of two by their exponent: `2^46`, `2^53-1`. */
export function plainNumber(value: number): string {
  if (value < 100_000) return String(value);
  const exponent = Math.log2(value);
  if (Number.isInteger(exponent) && 2 ** exponent === value) return `2^${exponent}`;
  const above = Math.round(exponent);
  return 2 ** above - 1 === value ? `2^${above}-1` : String(value);
}
