/**
 * Frames of every message, byte for byte. `UPDATE_GOLDEN=1` writes those that are missing or differ; a released one is
 * never changed.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { encodeFrame } from "../../src/wire/frame.ts";
import { layouts } from "../../src/wire/message-layout.ts";
import { decodeAll } from "./decoding.ts";
import { goldenFrames, packedPart } from "./golden-messages.ts";
import { loadCodecs } from "../../src/codec/compression.ts";

const folder = join(import.meta.dirname, "../../fixtures/wire");

function hexLines(bytes: Uint8Array): string {
  const lines =
    Buffer.from(bytes)
      .toString("hex")
      .match(/.{1,64}/g) ?? [];
  return `${lines.join("\n")}\n`;
}

test.each(Object.entries(goldenFrames))("%s", (name, { message, payload }) => {
  const file = join(folder, `${name}.hex`);
  const frame = encodeFrame(message, payload);
  if (process.env["UPDATE_GOLDEN"] === "1") {
    mkdirSync(folder, { recursive: true });
    writeFileSync(file, hexLines(frame));
  }
  const pinned = readFileSync(file, "latin1");
  expect(hexLines(frame)).toBe(pinned);
  const bytes = Buffer.from(pinned.replaceAll("\n", ""), "hex");
  expect(decodeAll(bytes)).toEqual([{ message, payload: payload ?? new Uint8Array(0), frameBytes: bytes.length }]);
});

test("every message type has a golden frame, and every file its message", () => {
  const types = new Set(Object.values(goldenFrames).map(({ message }) => message.type));
  expect([...types].sort()).toEqual(Object.keys(layouts).sort());
  expect(readdirSync(folder).sort()).toEqual(
    Object.keys(goldenFrames)
      .map((name) => `${name}.hex`)
      .sort(),
  );
});

test("the packed part of the examples is a real lz4 block", async () => {
  const target = new Uint8Array(4_096);
  (await loadCodecs()).get("lz4").decompress(packedPart, target);
  expect(target.every((byte) => byte === 0xab)).toBe(true);
});
