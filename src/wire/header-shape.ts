/**
 * The shape of a header, looked at before the msgpack library builds anything from it: one map, shallow, its counts and
 * lengths within the bytes that are there. The library checks lengths one by one but neither depth nor what counts add
 * up to: a header of 64 KiB could claim arrays inside arrays worth hundreds of megabytes.
 */
import { wireLimits } from "./wire-limits.ts";
import { wrong } from "./wrong-value.ts";

/**
 * Throws `WrongValue` for a header that is not one plain map. Returns the entries of all its maps, to find keys given
 * twice.
 */
export function checkShape(header: Uint8Array): number {
  const reader = new ShapeReader(header);
  reader.header();
  return reader.entries;
}

class ShapeReader {
  readonly #bytes: Uint8Array;
  #at = 0;
  entries = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  header(): void {
    const first = this.#bytes[0] ?? 0;
    if ((first < 0x80 || first > 0x8f) && first !== 0xde && first !== 0xdf) wrong("not a msgpack map");
    this.#value(1);
    if (this.#at !== this.#bytes.length) wrong(`${this.#bytes.length - this.#at} bytes behind its end`);
  }

  #value(depth: number): void {
    const type = this.#uint(1);
    if (type < 0x80 || type >= 0xe0) return;
    if (type < 0x90) return this.#map(type & 0x0f, depth);
    if (type < 0xa0) return this.#array(type & 0x0f, depth);
    if (type < 0xc0) return this.#skip(type & 0x1f);
    this.#tagged(type, depth);
  }

  #tagged(type: number, depth: number): void {
    switch (type) {
      case 0xc0:
      case 0xc2:
      case 0xc3:
        return;
      case 0xcc:
      case 0xd0:
        return this.#skip(1);
      case 0xcd:
      case 0xd1:
        return this.#skip(2);
      case 0xca:
      case 0xce:
      case 0xd2:
        return this.#skip(4);
      case 0xcb:
      case 0xcf:
      case 0xd3:
        return this.#skip(8);
      case 0xc4:
      case 0xd9:
        return this.#skip(this.#uint(1));
      case 0xc5:
      case 0xda:
        return this.#skip(this.#uint(2));
      case 0xc6:
      case 0xdb:
        return this.#skip(this.#uint(4));
      case 0xdc:
        return this.#array(this.#uint(2), depth);
      case 0xdd:
        return this.#array(this.#uint(4), depth);
      case 0xde:
        return this.#map(this.#uint(2), depth);
      case 0xdf:
        return this.#map(this.#uint(4), depth);
      default:
        wrong(`msgpack type 0x${type.toString(16)} is not used in headers`);
    }
  }

  #array(count: number, depth: number): void {
    this.#container(count, depth);
    for (let item = 0; item < count; item++) this.#value(depth + 1);
  }

  #map(count: number, depth: number): void {
    this.#container(count, depth);
    this.entries += count;
    for (let entry = 0; entry < count; entry++) {
      this.#key();
      this.#value(depth + 1);
    }
  }

  #container(count: number, depth: number): void {
    if (depth > wireLimits.headerDepthMax) wrong(`maps and arrays nested deeper than ${wireLimits.headerDepthMax}`);
    if (count > wireLimits.headerItemsMax) wrong(`a map or array of ${count} entries`);
  }

  #key(): void {
    const type = this.#uint(1);
    const length = type >= 0xa0 && type < 0xc0 ? type & 0x1f : type === 0xd9 ? this.#uint(1) : -1;
    if (length < 0) wrong("a key that is not a string");
    if (length > wireLimits.headerKeyBytesMax) wrong(`a key of ${length} bytes`);
    this.#skip(length);
  }

  #skip(length: number): void {
    if (length > wireLimits.headerBytesMax) wrong(`a string or byte array of ${length} bytes`);
    if (length > this.#bytes.length - this.#at) wrong("cut short");
    this.#at += length;
  }

  /** Big endian, as msgpack has it. */
  #uint(length: number): number {
    let value = 0;
    for (let i = 0; i < length; i++) {
      const byte = this.#bytes[this.#at++];
      if (byte === undefined) wrong("cut short");
      value = value * 0x100 + byte;
    }
    return value;
  }
}
