import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { decodeUndoHeader, encodeUndoHeader } from "../../src/replica/undo-log.ts";

const header = { id: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8), sequence: 4_294_967_297 };

test("a header is read as it was written", () => {
  const bytes = encodeUndoHeader(header);
  expect(bytes.length).toBe(32);
  const found = decodeUndoHeader("/x.undo", Buffer.concat([bytes, Buffer.from("more")]));
  expect([...found.id]).toEqual([...header.id]);
  expect(found.sequence).toBe(header.sequence);
});

test("every flipped bit is found", () => {
  const bytes = encodeUndoHeader(header);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Uint8Array.from(bytes);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    expect(() => decodeUndoHeader("/x.undo", flipped)).toThrow(ReplicationError);
  }
});

describe("what is refused", () => {
  test("a header cut short", () => {
    for (let length = 0; length < 32; length++) {
      expect(() => decodeUndoHeader("/x.undo", encodeUndoHeader(header).subarray(0, length))).toThrow(
        /less than its header/,
      );
    }
  });

  test("another version, by name", () => {
    const bytes = Buffer.from(encodeUndoHeader(header));
    bytes.writeUInt16LE(2, 8);
    expect(() => decodeUndoHeader("/x.undo", bytes)).toThrow(
      expect.objectContaining({
        code: "store-version-unsupported",
        message: expect.stringContaining("/x.undo has version 2"),
      }),
    );
  });
});
