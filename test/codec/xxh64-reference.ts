/**
 * xxh64 with seed 0 straight from its specification, slow: an independent opinion, and the way to content whose digest
 * is zero.
 */
import { PART_BYTES } from "../../src/base/units.ts";

const word = (1n << 64n) - 1n;
const prime1 = 0x9e3779b185ebca87n;
const prime2 = 0xc2b2ae3d27d4eb4fn;
const prime3 = 0x165667b19e3779f9n;
const prime4 = 0x85ebca77c2b2ae63n;
const prime5 = 0x27d4eb2f165667c5n;

const rotate = (value: bigint, bits: bigint): bigint => ((value << bits) | (value >> (64n - bits))) & word;
const round = (sum: bigint, lane: bigint): bigint => (rotate((sum + lane * prime2) & word, 31n) * prime1) & word;
const merge = (sum: bigint, lane: bigint): bigint => ((sum ^ round(0n, lane)) * prime1 + prime4) & word;

/** The sum after all whole stripes of 32 bytes, before the tail. */
function stripes(bytes: Uint8Array): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 32) return (prime5 + BigInt(bytes.length)) & word;
  const lanes: [bigint, bigint, bigint, bigint] = [(prime1 + prime2) & word, prime2, 0n, -prime1 & word];
  for (let offset = 0; offset + 32 <= bytes.length; offset += 32) {
    for (const lane of [0, 1, 2, 3] as const) {
      lanes[lane] = round(lanes[lane], view.getBigUint64(offset + lane * 8, true));
    }
  }
  let sum = (rotate(lanes[0], 1n) + rotate(lanes[1], 7n) + rotate(lanes[2], 12n) + rotate(lanes[3], 18n)) & word;
  for (const lane of lanes) sum = merge(sum, lane);
  return (sum + BigInt(bytes.length)) & word;
}

export function referenceXxh64(bytes: Uint8Array): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let sum = stripes(bytes);
  let offset = bytes.length - (bytes.length % 32);
  for (; offset + 8 <= bytes.length; offset += 8) {
    sum = (rotate(sum ^ round(0n, view.getBigUint64(offset, true)), 27n) * prime1 + prime4) & word;
  }
  if (offset + 4 <= bytes.length) {
    sum = (rotate(sum ^ ((BigInt(view.getUint32(offset, true)) * prime1) & word), 23n) * prime2 + prime3) & word;
    offset += 4;
  }
  for (; offset < bytes.length; offset++) {
    sum = (rotate(sum ^ ((BigInt(view.getUint8(offset)) * prime5) & word), 11n) * prime1) & word;
  }
  sum = ((sum ^ (sum >> 33n)) * prime2) & word;
  sum = ((sum ^ (sum >> 29n)) * prime3) & word;
  return sum ^ (sum >> 32n);
}

/** Digest of a block: over those of its parts, unless it is all zeros. */
export function referenceDigest(block: Uint8Array): bigint {
  if (block.every((byte) => byte === 0)) return 0n;
  const parts = Buffer.alloc((block.length / PART_BYTES) * 8);
  for (let at = 0; at < block.length; at += PART_BYTES) {
    parts.writeBigUInt64LE(referenceXxh64(block.subarray(at, at + PART_BYTES)), (at / PART_BYTES) * 8);
  }
  return referenceXxh64(parts);
}

/** 40 bytes, not zero, whose xxh64 is 0: every step of the tail can be undone, so its last lane is solved for. */
export function contentWithZeroDigest(): Uint8Array {
  const bytes = new Uint8Array(40).fill(0x5a, 0, 32);
  const wanted = rotate((-prime4 * inverse(prime1)) & word, 37n);
  const rounded = ((wanted ^ stripes(bytes)) * inverse(prime1)) & word;
  const lane = (rotate(rounded, 33n) * inverse(prime2)) & word;
  new DataView(bytes.buffer).setBigUint64(32, lane, true);
  return bytes;
}

/** Of an odd number modulo 2^64, by Newton's iteration. */
function inverse(odd: bigint): bigint {
  let result = odd;
  for (let bits = 3; bits < 64; bits *= 2) result = (result * (2n - odd * result)) & word;
  return result;
}
