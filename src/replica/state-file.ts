/**
 * The JSON files of a store: `{format, version, checksum, content}`. One form, one checksum, one way to replace them.
 * docs/formats.md, "JSON files".
 */
import { hash } from "node:crypto";
import { dirname } from "node:path";
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Storage } from "../storage/seam.ts";
import { fileError, inFile } from "./file-error.ts";

/** What a file says it is. Readers refuse every version but this one. */
export interface StateFormat {
  readonly format: string;
  readonly version: number;
}

export type StateValue = string | number | boolean | undefined | StateRecord | readonly StateRecord[];

export interface StateRecord {
  readonly [key: string]: StateValue;
}

/** Bytes of a state file. Keys whose value is undefined are left out. */
export function encodeState(format: StateFormat, content: StateRecord): Uint8Array {
  const checksum = checksumOf(format, JSON.stringify(content));
  return Buffer.from(`${JSON.stringify({ ...format, checksum, content }, null, 2)}\n`);
}

/** `path` is for messages. Throws `store-damaged`, `store-version-unsupported`. Unknown keys of the content are ignored. */
export function decodeState(path: string, format: StateFormat, bytes: Uint8Array): StateContent {
  if (bytes.length > limits.stateFileBytesMax) {
    throw damaged(path, `it has ${bytes.length} bytes, more than the ${limits.stateFileBytesMax} allowed`);
  }
  const whole = parseObject(path, bytes);
  if (whole["format"] !== format.format) throw damaged(path, `it is not a "${format.format}" file`);
  const version = whole["version"];
  if (typeof version !== "number" || !Number.isSafeInteger(version)) throw damaged(path, "it has no version");
  if (version !== format.version) {
    throw new ReplicationError(
      "store-version-unsupported",
      `${path} has version ${version}; this program reads version ${format.version} only. Use the program that wrote it, or a newer one`,
      { details: { version, versionSupported: format.version } },
    );
  }
  const content = whole["content"];
  if (!isObject(content)) throw damaged(path, "it has no content");
  if (whole["checksum"] !== checksumOf(format, textOf(path, content)))
    throw damaged(path, "its checksum does not match");
  return new StateContent(path, content);
}

/** Undefined: no such file. Errors as {@link decodeState}. */
export async function readState(
  storage: Storage,
  path: string,
  format: StateFormat,
): Promise<StateContent | undefined> {
  const bytes = await readSmallFile(storage, path, limits.stateFileBytesMax + 1);
  return bytes === undefined ? undefined : decodeState(path, format, bytes);
}

/** The first bytes of a file, at most `bytesMax`; undefined: no such file. */
export async function readSmallFile(storage: Storage, path: string, bytesMax: number): Promise<Uint8Array | undefined> {
  try {
    const file = await storage.open(path);
    try {
      const { sizeBytes } = await file.stat();
      const target = Buffer.alloc(Math.min(sizeBytes, bytesMax));
      return target.subarray(0, await file.read(target, 0));
    } finally {
      await file.close();
    }
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "store-damaged", `reading ${path}`);
  }
}

/** Name of the file in which the next content of `path` is written before it takes the name. */
export function newName(path: string): string {
  return `${path}.new`;
}

/**
 * Replaces a state file. Order: `<path>.new` written → synced → renamed over `path` → directory synced. A crash before the rename
 * leaves the old file and a `.new` that nobody reads; after it, the old or the new one, each whole.
 * Throws `sync-failed`, `write-failed`, `no-space`; then the old or the new content may be there. `limit-exceeded` before anything is written.
 */
export async function writeState(
  storage: Storage,
  path: string,
  format: StateFormat,
  content: StateRecord,
): Promise<void> {
  const bytes = encodeState(format, content);
  // A file that no reader would take must not replace one that can be read.
  if (bytes.length > limits.stateFileBytesMax) {
    throw new ReplicationError(
      "limit-exceeded",
      `${path} would have ${bytes.length} bytes, more than the ${limits.stateFileBytesMax} allowed; nothing was changed`,
      { details: { bytes: bytes.length, bytesMax: limits.stateFileBytesMax } },
    );
  }
  const fresh = newName(path);
  await inFile("write-failed", `writing ${fresh}`, async () => {
    const file = await storage.open(fresh, { write: true, create: true, truncate: true, mode: 0o600 });
    try {
      await file.write(bytes, 0);
      await inFile("sync-failed", `syncing ${fresh}`, () => file.datasync());
    } finally {
      await file.close();
    }
  });
  await inFile("write-failed", `renaming ${fresh}`, () => storage.rename(fresh, path));
  await syncDirectory(storage, dirname(path));
}

/** Throws `sync-failed`. */
export async function syncDirectory(storage: Storage, path: string): Promise<void> {
  await inFile("sync-failed", `syncing the directory ${path}`, () => storage.syncDirectory(path));
}

/** Content whose checksum is right, read key by key. Every method throws `store-damaged` naming file and key. */
export class StateContent {
  readonly path: string;
  readonly #content: Readonly<Record<string, unknown>>;

  constructor(path: string, content: Readonly<Record<string, unknown>>) {
    this.path = path;
    this.#content = content;
  }

  text(key: string): string {
    const value = this.#value(key);
    if (typeof value !== "string") throw damaged(this.path, `"${key}" is not a text`);
    return value;
  }

  optionalText(key: string): string | undefined {
    return this.#value(key) === undefined ? undefined : this.text(key);
  }

  hex(key: string, bytes: number): string {
    const value = this.text(key);
    if (!/^[0-9a-f]*$/.test(value) || value.length !== bytes * 2) {
      throw damaged(this.path, `"${key}" is not ${bytes} bytes in hex`);
    }
    return value;
  }

  /** A whole number of at least `min` and at most `max` (default 2^53-1). */
  integer(key: string, min = 0, max: number = Number.MAX_SAFE_INTEGER): number {
    const value = this.#value(key);
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max) {
      throw damaged(this.path, `"${key}" is not a whole number from ${min} to ${max}`);
    }
    return value;
  }

  oneOf<T extends string | number>(key: string, allowed: readonly T[]): T {
    const value = this.#value(key);
    const found = allowed.find((candidate) => candidate === value);
    if (found === undefined) throw damaged(this.path, `"${key}" is none of ${allowed.join(", ")}`);
    return found;
  }

  optionalInteger(key: string): number | undefined {
    return this.#value(key) === undefined ? undefined : this.integer(key);
  }

  /** An object within the content, read in the same way; undefined: missing. */
  optionalObject(key: string): StateContent | undefined {
    const value = this.#value(key);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw damaged(this.path, `"${key}" is not an object`);
    return new StateContent(this.path, value);
  }

  /** A list of objects; undefined: missing. */
  optionalList(key: string): readonly StateContent[] | undefined {
    const value = this.#value(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw damaged(this.path, `"${key}" is not a list`);
    return value.map((item: unknown) => {
      if (!isObject(item)) throw damaged(this.path, `"${key}" holds other than objects`);
      return new StateContent(this.path, item);
    });
  }

  #value(key: string): unknown {
    return Object.hasOwn(this.#content, key) ? this.#content[key] : undefined;
  }
}

export function damaged(path: string, why: string): ReplicationError {
  return new ReplicationError(
    "store-damaged",
    `${path} is damaged: ${why}. Put back a good copy of this file, or replicate the disk under another name`,
  );
}

function checksumOf({ format, version }: StateFormat, content: string): string {
  return hash("sha256", `${format}\n${version}\n${content}`, "hex");
}

function textOf(path: string, content: object): string {
  try {
    return JSON.stringify(content);
  } catch (error) {
    // RangeError: the parser takes a deeper nesting than the writer.
    throw damaged(path, `its content is nested too deeply (${error instanceof Error ? error.message : String(error)})`);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

function parseObject(path: string, bytes: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(utf8.decode(bytes));
  } catch (error) {
    // SyntaxError, TypeError of the decoder, RangeError of too deep a nesting: all mean the same to the reader.
    throw damaged(path, `it is not JSON (${error instanceof Error ? error.message : String(error)})`);
  }
  if (!isObject(value)) throw damaged(path, "it is not a JSON object");
  return value;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
