/** What a misspelt word is taken for. */
import { expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { parseArguments } from "../../src/cli/arguments.ts";
import { nearest } from "../../src/cli/nearest.ts";

const options = ["rate", "every", "allow-shrink", "to-dir", "tls", "store"];

test.each([
  ["rate", "rate"],
  ["rat", "rate"],
  ["raet", "rate"],
  ["evry", "every"],
  ["allow-shirnk", "allow-shrink"],
  ["allowshrink", "allow-shrink"],
  ["todir", "to-dir"],
  ["tsl", "tls"],
  ["stroe", "store"],
  ["x", undefined],
  ["", undefined],
  ["verbose", undefined],
  ["fast", undefined],
])("%s: %s", (word, meant) => {
  expect(nearest(word, options)).toBe(meant);
});

test.each([
  [["--evry", "3s"], "send: Unknown option '--evry'; did you mean --every?"],
  [["--nothing-like-it"], "send: Unknown option '--nothing-like-it'"],
  [["--every"], "send: Option '--every <value>' argument missing"],
])("%j: %s", (args, message) => {
  const shape = { verb: "send", options: ["every"], positionals: [] };
  expect(() => parseArguments(args, shape)).toThrow(new ReplicationError("usage", message));
});
