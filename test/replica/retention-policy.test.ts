import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import {
  defaultPolicy,
  defaultPolicyText,
  formatPolicy,
  type GridRow,
  keepOptions,
  parsePolicy,
  type RetentionPolicy,
} from "../../src/replica/retention/policy.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

describe("texts that are policies", () => {
  const cases: [string, RetentionPolicy][] = [
    ["all", { kind: "all" }],
    [" all ", { kind: "all" }],
    ["last=0", { kind: "keep", counts: { last: 0 } }],
    ["last=24", { kind: "keep", counts: { last: 24 } }],
    ["yearly=1,hourly=2", { kind: "keep", counts: { hourly: 2, yearly: 1 } }],
    [
      "last=1, hourly=2, daily=3, weekly=4, monthly=5, yearly=6",
      { kind: "keep", counts: { last: 1, hourly: 2, daily: 3, weekly: 4, monthly: 5, yearly: 6 } },
    ],
    ["grid=24x1h", { kind: "grid", rows: [{ count: 24, lengthMillis: HOUR, keep: 1 }] }],
    [
      "grid=1x30s(keep=all)|2x15m(keep=3) | 4x1w",
      {
        kind: "grid",
        rows: [
          { count: 1, lengthMillis: 30_000, keep: "all" },
          { count: 2, lengthMillis: 15 * MINUTE, keep: 3 },
          { count: 4, lengthMillis: 7 * DAY, keep: 1 },
        ],
      },
    ],
    // Shorter buckets may follow only where everything was kept so far.
    [
      "grid=1x1d(keep=all)|6x1h",
      {
        kind: "grid",
        rows: [
          { count: 1, lengthMillis: DAY, keep: "all" },
          { count: 6, lengthMillis: HOUR, keep: 1 },
        ],
      },
    ],
  ];
  test.each(cases)("%s", (text, policy) => {
    expect(parsePolicy(text)).toEqual(policy);
  });

  test("the default", () => {
    expect(defaultPolicy).toEqual({
      kind: "grid",
      rows: [
        { count: 1, lengthMillis: HOUR, keep: "all" },
        { count: 24, lengthMillis: HOUR, keep: 1 },
        { count: 14, lengthMillis: DAY, keep: 1 },
        { count: 8, lengthMillis: 7 * DAY, keep: 1 },
      ],
    });
    expect(formatPolicy(defaultPolicy)).toBe(defaultPolicyText);
  });
});

describe("texts that are none say what is wrong and where", () => {
  test.each([
    ["", /at character 1 there is nothing; write all, grid=\.\.\., or NAME=N/],
    ["everything", /at character 1 there is "everything"/],
    ["last", /at character 1 there is "last"/],
    ["last=", /at character 1 there is "last="; last takes a number from 0/],
    ["last=-1", /last takes a number/],
    ["last=1.5", /last takes a number/],
    ["last=1e3", /last takes a number/],
    ["last=1=2", /at character 1 there is "last=1=2"/],
    ["last=9999999", /last takes a number from 0 to 1000000/],
    ["last=3,", /at character 8 there is nothing/],
    ["last=3, fortnightly=2", /at character 9 there is "fortnightly=2"/],
    ["last=3,hourly=1,last=4", /at character 17 there is "last=4"; last is given twice/],
    ["Last=3", /"Last=3"/],
    ["constructor=1", /"constructor=1"/],
    ["grid=", /at character 6 there is nothing; a row is COUNTxLENGTH/],
    ["grid=24x1h|", /at character 12 there is nothing/],
    ["grid=24x1y", /at character 6 there is "24x1y".*units are s, m, h, d and w/],
    ["grid=24x1h | 14xd", /at character 14 there is "14xd"/],
    ["grid=24h", /"24h"/],
    ["grid=0x1h", /a row has from 1 to/],
    ["grid=1x0h", /a bucket has a length/],
    ["grid=1x1h(keep=0)", /keep is "all" or a number from 1/],
    ["grid=1x1h(keep=some)", /a row is COUNTxLENGTH/],
    ["grid=1x1h(keep=all", /a row is COUNTxLENGTH/],
    ["grid=14x1d|24x1h", /at character 12 there is "24x1h"; its buckets are shorter/],
    ["grid=1x1d(keep=all)|3x2h|4x1h", /at character 26 .*shorter/],
    ["grid=1000000x1w", /longer than a thousand years/],
    [`grid=1x${"9".repeat(400)}h`, /longer than a thousand years/],
    [`grid=${"9".repeat(400)}x1h`, /a row has from 1 to/],
    ["last=1".padEnd(5000), /at most 4096 characters/],
  ])("%j", (text, message) => {
    const parse = (): RetentionPolicy => parsePolicy(text);
    expect(parse).toThrow(ReplicationError);
    expect(parse).toThrow(expect.objectContaining({ code: "usage", message: expect.stringMatching(message) }));
  });

  test("any text is a policy or a usage error", () => {
    const pieces = fc.constantFrom(
      "grid=",
      "last=",
      "all",
      "1",
      "x",
      "h",
      "|",
      ",",
      "(keep=",
      ")",
      " ",
      "24x1h",
      "=",
      "é",
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(pieces).map((list) => list.join("")),
        ),
        (text) => {
          try {
            const policy = parsePolicy(text);
            expect(parsePolicy(formatPolicy(policy))).toEqual(policy);
          } catch (error) {
            expect(error).toMatchObject({ name: "ReplicationError", code: "usage" });
          }
        },
      ),
    );
  });
});

test("a policy survives being written", () => {
  const row: fc.Arbitrary<Omit<GridRow, "lengthMillis">> = fc.record({
    count: fc.integer({ min: 1, max: 1000 }),
    keep: fc.oneof(fc.constant("all" as const), fc.integer({ min: 1, max: 9 })),
  });
  const grid = fc
    .array(fc.tuple(row, fc.integer({ min: 1, max: 1_000_000 })), { minLength: 1, maxLength: 6 })
    .map((rows): RetentionPolicy => {
      const lengths = rows.map(([, seconds]) => seconds * 1000).toSorted((a, b) => a - b);
      return { kind: "grid", rows: rows.map(([made], index) => ({ ...made, lengthMillis: lengths[index] ?? 0 })) };
    });
  const keep = fc
    .dictionary(fc.constantFrom(...keepOptions), fc.nat(1_000_000), { minKeys: 1 })
    .map((counts): RetentionPolicy => ({ kind: "keep", counts: { ...counts } }));
  fc.assert(
    fc.property(fc.oneof(grid, keep), (policy) => {
      expect(parsePolicy(formatPolicy(policy))).toEqual(policy);
    }),
  );
});
