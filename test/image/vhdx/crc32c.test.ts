import { expect, test } from "vitest";
import { crc32c } from "../../../src/image/vhdx/crc32c.ts";

test("gives the values that the standards give", () => {
  // RFC 3720, B.4, and the check value of the catalogue of CRCs.
  const counting = Uint8Array.from({ length: 32 }, (_unused, index) => index);
  expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
  expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
  expect(crc32c(counting)).toBe(0x46dd794e);
  expect(crc32c(counting.toReversed())).toBe(0x113fdb5c);
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283);
  expect(crc32c(new Uint8Array(0))).toBe(0);
});

test("goes on where it was, at any place", () => {
  const bytes = Buffer.from("a text of which the length is no multiple of eight, read from any place on");
  const whole = crc32c(bytes);
  for (let at = 0; at <= bytes.length; at++)
    expect(crc32c(bytes.subarray(at), crc32c(bytes.subarray(0, at)))).toBe(whole);
});
