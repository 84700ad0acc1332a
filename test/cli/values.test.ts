import { describe, expect, test } from "vitest";
import { errorActions, type ErrorCode } from "../../src/base/errors.ts";
import { parseArguments } from "../../src/cli/arguments.ts";
import { exitCodeOf } from "../../src/cli/exit-codes.ts";
import { sendVerb } from "../../src/cli/send.ts";
import {
  formatDuration,
  formatSize,
  parseAddress,
  parseCount,
  parseSize,
  parseTime,
  parseWord,
} from "../../src/cli/values.ts";
import type { CliIo } from "../../src/cli/verb.ts";

const usage = { code: "usage" };

describe("values people write", () => {
  test.each([
    ["0", 0],
    ["1048576", 1_048_576],
    ["64KiB", 65_536],
    ["1.5MiB", 1_572_864],
    ["64TiB", 2 ** 46],
  ])("size %s", (text, bytes) => {
    expect(parseSize(text, "--x")).toBe(bytes);
  });
  test.each(["", "-1", "64kb", "1.3", "1 GiB", "9999999TiB", "0x10", "1e3"])("no size: %j", (text) => {
    expect(() => parseSize(text, "--block")).toThrowError(expect.objectContaining(usage));
    expect(() => parseSize(text, "--block")).toThrowError(/--block/);
  });
  test.each([
    ["30s", 30_000],
    ["15m", 900_000],
    ["1h", 3_600_000],
    ["250ms", 250],
  ])("time %s", (text, millis) => {
    expect(parseTime(text, "--x")).toBe(millis);
  });
  test.each(["30", "s", "-1s", "1w"])("no time: %j", (text) => {
    expect(() => parseTime(text, "--every")).toThrowError(/--every/);
  });
  test("addresses", () => {
    expect(parseAddress("host.example:7000", "x")).toEqual({ host: "host.example", port: 7000 });
    expect(parseAddress("[::1]:0", "x")).toEqual({ host: "::1", port: 0 });
    for (const text of ["host", "::1:7000", "host:", "host:70000", ":7000", "[::1]"]) {
      expect(() => parseAddress(text, "--listen"), text).toThrowError(/--listen/);
    }
  });
  test("counts and words", () => {
    expect(parseCount("16", "--connections", { min: 1, max: 16 })).toBe(16);
    for (const text of ["0", "17", "1.5", "x", ""]) {
      expect(() => parseCount(text, "--connections", { min: 1, max: 16 }), text).toThrowError(/1 to 16/);
    }
    expect(parseWord("b", "--x", ["a", "b"])).toBe("b");
    expect(() => parseWord("c", "--x", ["a", "b"])).toThrowError(/a, b/);
  });
  test("printed", () => {
    expect([0, 1023, 1024, 123_456_789, 2 ** 41].map(formatSize)).toEqual([
      "0 B",
      "1023 B",
      "1.0 KiB",
      "118 MiB",
      "2.0 TiB",
    ]);
    expect([0.2, 59, 61, 3_725, Number.NaN].map(formatDuration)).toEqual(["1 s", "59 s", "1:01", "1:02:05", "?"]);
  });
});

describe("arguments", () => {
  const shape = { verb: "v", flags: ["f"], options: ["o"], lists: ["l"], positionals: ["A"] };
  test("are taken apart", () => {
    const given = parseArguments(["x", "--f", "--o", "1", "--l=2", "--l", "3"], shape);
    expect([given.positionals, given.flag("f"), given.text("o"), given.texts("l")]).toEqual([
      ["x"],
      true,
      "1",
      ["2", "3"],
    ]);
    expect([given.flag("o"), given.text("f"), given.texts("x")]).toEqual([false, undefined, []]);
  });
  test.each([[[]], [["x", "y"]], [["x", "--no-such"]], [["x", "--o"]], [["x", "--f=1"]]])("wrong: %j", (args) => {
    expect(() => parseArguments(args, shape)).toThrowError(expect.objectContaining(usage));
  });
});

describe("options of send that are wrong", () => {
  const io: CliIo = {
    out: () => undefined,
    err: () => undefined,
    env: {},
    cwd: ".",
    signal: new AbortController().signal,
    isTerminal: false,
    columns: 80,
  };
  test.each([
    ["--block", "5000"],
    ["--block", "8KiB"],
    ["--block", "2MiB"],
    ["--rate", "0"],
    ["--codec", "gzip"],
    ["--digest", "md5"],
    ["--connections", "17"],
  ])("%s %s", async (option, value) => {
    const run = sendVerb.run(["no-image", "127.0.0.1:1/web", "--tls", "no-folder", option, value], io);
    await expect(run).rejects.toMatchObject({ code: "usage", message: expect.stringContaining(option) as string });
  });
  test.each(["Web", "web:1", ".web", "x".repeat(64), "wéb"])(
    "disk name %s: what is allowed is said, nothing is connected",
    async (disk) => {
      const run = sendVerb.run(["no-image", `127.0.0.1:1/${disk}`, "--tls", "no-folder"], io);
      await expect(run).rejects.toMatchObject({
        code: "usage",
        message: expect.stringMatching(/1 to 63 .*a-z, 0-9/) as string,
      });
    },
  );
  test.each(["127.0.0.1:1", "127.0.0.1:1/", "/web", "host/web"])("target %s", async (target) => {
    await expect(sendVerb.run(["no-image", target, "--tls", "x"], io)).rejects.toMatchObject({ code: "usage" });
  });
});

test("every error code has an exit code of the documented ones", () => {
  const codes = Object.keys(errorActions) as ErrorCode[];
  for (const code of codes) expect([1, 2, 3, 4, 130], code).toContain(exitCodeOf(code));
  expect([exitCodeOf("usage"), exitCodeOf("another-image"), exitCodeOf("aborted"), exitCodeOf("no-space")]).toEqual([
    2, 4, 130, 1,
  ]);
});
