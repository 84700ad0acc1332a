/**
 * Strictly ascending numbers as bytes: the first number, then the gaps (difference less one), each as a varint of 7
 * bits a byte, low bits first, high bit set on all but the last byte. Neighbours cost one byte, gaps below 16384 two.
 */
import { invariant } from "../base/errors.ts";
import { wrong } from "./wrong-value.ts";

/** 35 bits: more than any block number needs. */
const varintBytesMax = 5;

export function packAscending(numbers: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(numbers.length * varintBytesMax);
  let end = 0;
  let next = 0;
  for (const number of numbers) {
    let rest = number - next;
    invariant(Number.isSafeInteger(rest) && rest >= 0 && rest < 2 ** 35, "a list on the wire is strictly ascending");
    while (rest >= 0x80) {
      bytes[end++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    bytes[end++] = rest;
    next = number + 1;
  }
  return bytes.subarray(0, end);
}

/**
 * Refuses more than `countMax` numbers, a number of `limit` or more, a varint cut short or longer than it needs to be.
 */
export function unpackAscending(bytes: Uint8Array, countMax: number, limit: number): number[] {
  const numbers: number[] = [];
  let at = 0;
  let next = 0;
  while (at < bytes.length) {
    if (numbers.length === countMax) wrong(`more than ${countMax} numbers`);
    const start = at;
    let gap = 0;
    let scale = 1;
    for (;;) {
      const byte = bytes[at++];
      if (byte === undefined) wrong("list of numbers cut short");
      gap += (byte & 0x7f) * scale;
      scale *= 0x80;
      if (byte < 0x80) {
        if (byte === 0 && at - start > 1) wrong("number written longer than it needs to be");
        break;
      }
      if (at - start === varintBytesMax) wrong("number too large");
    }
    const number = next + gap;
    if (number >= limit) wrong(`number ${number}, below ${limit} allowed`);
    numbers.push(number);
    next = number + 1;
  }
  return numbers;
}
