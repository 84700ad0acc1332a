import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { decodeState, encodeState, readState, type StateFormat, writeState } from "../../src/replica/state-file.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";

const format: StateFormat = { format: "replicate example", version: 3 };

function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof ReplicationError) {
      expect(error.message).toContain("/x.json");
      return error.code;
    }
    throw error;
  }
  return "none";
}

test("what is written is read, whatever texts and numbers", () => {
  fc.assert(
    fc.property(fc.string(), fc.integer(), fc.option(fc.string(), { nil: undefined }), (text, number, label) => {
      const content = decodeState("/x.json", format, encodeState(format, { text, number, label }));
      expect(content.text("text")).toBe(text);
      expect(content.integer("number", Number.MIN_SAFE_INTEGER)).toBe(number);
      expect(content.optionalText("label")).toBe(label);
    }),
  );
});

test("a flipped bit ends in a clear error or changes nothing", () => {
  const bytes = encodeState(format, { text: "café", number: 123_456 });
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Uint8Array.from(bytes);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    let content: ReturnType<typeof decodeState>;
    try {
      content = decodeState("/x.json", format, flipped);
    } catch (error) {
      expect(error).toBeInstanceOf(ReplicationError);
      continue;
    }
    // White space between tokens.
    expect([content.text("text"), content.integer("number")]).toEqual(["café", 123_456]);
  }
});

test("every truncation is damage", () => {
  const bytes = encodeState(format, { text: "a" });
  for (let length = 0; length < bytes.length - 2; length++) {
    expect(codeOf(() => decodeState("/x.json", format, bytes.subarray(0, length)))).toBe("store-damaged");
  }
});

describe("what is refused", () => {
  const encode = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
  const cases: readonly (readonly [string, Uint8Array, string])[] = [
    ["a newer version", encodeState({ ...format, version: 4 }, {}), "store-version-unsupported"],
    ["an older version", encodeState({ ...format, version: 2 }, {}), "store-version-unsupported"],
    ["another format", encodeState({ ...format, format: "replicate other" }, {}), "store-damaged"],
    ["no version", encode({ format: format.format, content: {} }), "store-damaged"],
    ["a version that is a text", encode({ ...format, version: "3", content: {} }), "store-damaged"],
    ["no content", encode(format), "store-damaged"],
    ["content that is a list", encode({ ...format, content: [] }), "store-damaged"],
    ["no checksum", encode({ ...format, content: {} }), "store-damaged"],
    ["a list", encode([1]), "store-damaged"],
    ["null", encode(null), "store-damaged"],
    ["bytes that are not UTF-8", Uint8Array.of(0x7b, 0xff, 0x7d), "store-damaged"],
    [
      "a nesting no stack holds",
      Buffer.from(
        `{"format":"${format.format}","version":3,"content":{"a":${"[".repeat(300_000)}${"]".repeat(300_000)}}}`,
      ),
      "store-damaged",
    ],
    ["one byte more than the limit", Buffer.alloc(limits.stateFileBytesMax + 1, 0x20), "store-damaged"],
  ];
  for (const [name, bytes, code] of cases) {
    test(name, () => {
      expect(codeOf(() => decodeState("/x.json", format, bytes))).toBe(code);
    });
  }
});

test("content of the wrong type is damage that names the key", () => {
  const content = decodeState("/x.json", format, encodeState(format, { a: 1.5, b: "zz", c: -1, d: true }));
  expect(() => content.integer("a")).toThrow(/"a" is not a whole number/);
  expect(() => content.hex("b", 1)).toThrow(/"b" is not 1 bytes in hex/);
  expect(() => content.integer("c")).toThrow(/"c"/);
  expect(() => content.text("d")).toThrow(/"d" is not a text/);
  expect(() => content.text("missing")).toThrow(/"missing"/);
  expect(() => content.text("toString")).toThrow(/"toString"/);
  expect(() => content.oneOf("b", ["x", "y"])).toThrow(/none of x, y/);
});

test("unknown keys are ignored", () => {
  expect(decodeState("/x.json", format, encodeState(format, { a: "1", later: "2" })).text("a")).toBe("1");
});

test("a file exactly as large as allowed is written and read, a larger one is neither", async () => {
  const storage = createSimulatedDisk().start();
  const small = encodeState(format, { text: "x" }).length;
  const text = "x".repeat(limits.stateFileBytesMax - small + 1);
  await writeState(storage, "/x.json", format, { text });
  expect((await storage.stat("/x.json"))?.sizeBytes).toBe(limits.stateFileBytesMax);
  expect((await readState(storage, "/x.json", format))?.text("text").length).toBe(text.length);
  const larger = { text: `${text}y` };
  await expect(writeState(storage, "/x.json", format, larger)).rejects.toMatchObject({ code: "limit-exceeded" });
  expect((await readState(storage, "/x.json", format))?.text("text").length).toBe(text.length);
  const file = await storage.open("/y.json", { write: true, create: true });
  await file.write(encodeState(format, larger), 0);
  await file.close();
  await expect(readState(storage, "/y.json", format)).rejects.toMatchObject({ code: "store-damaged" });
});

test("files are private, and leave no unfinished one behind", async () => {
  const disk = createSimulatedDisk();
  const storage = disk.start();
  await writeState(storage, "/x.json", format, { text: "x" });
  expect((await storage.stat("/x.json"))?.mode).toBe(0o600);
  expect(disk.files()).toEqual(["/x.json"]);
  expect(await readState(storage, "/y.json", format)).toBeUndefined();
});
