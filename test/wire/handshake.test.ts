import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import {
  answer,
  type HandshakeSide,
  offer,
  protocolFeatures,
  protocolVersion,
  protocolVersionMin,
  settle,
} from "../../src/wire/handshake.ts";
import { thrownBy } from "./decoding.ts";

const sender: HandshakeSide = { instance: "s", software: "replicate 1" };
const receiver: HandshakeSide = { instance: "r", software: "replicate 2" };

function refusal(work: () => unknown): ReplicationError {
  const error = thrownBy(work);
  expect(error).toBeInstanceOf(ReplicationError);
  return error as ReplicationError;
}

test("two of the same release agree on everything", () => {
  const offered = offer(sender);
  const { hello, agreed } = answer(offered, receiver, "token");
  expect(hello).toMatchObject({ version: protocolVersion, versionMin: protocolVersion, token: "token", instance: "r" });
  expect(agreed).toEqual({ version: protocolVersion, features: protocolFeatures });
  expect(settle(offered, hello)).toEqual(agreed);
  expect(offer(sender).join).toBeUndefined();
  expect(answer(offered, receiver).hello.token).toBeUndefined();
  expect(offer(sender, { token: "t", connection: 3 }).join).toEqual({ token: "t", connection: 3 });
});

test("the lowest version is this one or the one before", () => {
  expect(protocolVersion - protocolVersionMin).toBeLessThanOrEqual(1);
  expect(protocolVersionMin).toBeGreaterThanOrEqual(1);
});

describe("versions", () => {
  const versions = fc.tuple(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 0, max: 3 }));

  test("any two ranges: the highest common version, or a refusal naming both", () => {
    fc.assert(
      fc.property(versions, versions, ([version, wide], [otherVersion, otherWide]) => {
        const a = { ...sender, version, versionMin: Math.max(1, version - wide) };
        const b = { ...receiver, version: otherVersion, versionMin: Math.max(1, otherVersion - otherWide) };
        const common = [1, 2, 3, 4, 5, 6, 7, 8].filter(
          (v) => v >= a.versionMin && v <= a.version && v >= b.versionMin && v <= b.version,
        );
        const best = common.at(-1);
        if (best === undefined) {
          const error = refusal(() => answer(offer(a), b));
          expect(error.code).toBe("version-unsupported");
          expect(error.message).toContain(`${a.versionMin} to ${a.version}`);
          expect(error.message).toContain(`${b.versionMin} to ${b.version}`);
        } else {
          const { hello, agreed } = answer(offer(a), b);
          expect(agreed.version).toBe(best);
          expect(settle(offer(a), hello).version).toBe(best);
        }
      }),
      { numRuns: 300 },
    );
  });

  test("N talks to N-1 in both directions, and not to N-2", () => {
    const at = (version: number): HandshakeSide => ({ ...sender, version, versionMin: Math.max(1, version - 1) });
    expect(answer(offer(at(3)), at(2)).agreed.version).toBe(2);
    expect(answer(offer(at(2)), at(3)).agreed.version).toBe(2);
    expect(refusal(() => answer(offer(at(3)), at(1))).message).toMatch(/update this side/);
    expect(refusal(() => answer(offer(at(1)), at(3))).message).toMatch(/update the peer/);
  });

  test("an answer outside what was offered, or not one version", () => {
    const offered = offer(sender);
    const { hello } = answer(offered, receiver);
    expect(refusal(() => settle(offered, { ...hello, version: 2, versionMin: 2 })).code).toBe("version-unsupported");
    const wide = offer({ ...sender, version: 3, versionMin: 2 });
    expect(refusal(() => settle(wide, { ...hello, version: 3, versionMin: 2 })).code).toBe("version-unsupported");
    expect(refusal(() => settle(wide, hello)).code).toBe("version-unsupported");
  });
});

describe("features", () => {
  test("agreed: what both have; unknown ones are left out", () => {
    const a = { ...sender, features: ["parts", "future", "connections"] };
    const b = { ...receiver, features: ["connections", "parts", "other"] };
    expect(answer(offer(a), b).agreed.features).toEqual(["connections", "parts"]);
  });

  test("required by the sender and missing at the receiver, and the other way round", () => {
    const strict = { ...sender, features: ["parts", "future"], required: ["future"] };
    const error = refusal(() => answer(offer(strict), receiver));
    expect(error.code).toBe("feature-unsupported");
    expect(error.details).toEqual({ feature: "future" });
    expect(error.message).toContain("future");
    const demanding = { ...receiver, features: ["parts", "future"], required: ["future"] };
    expect(refusal(() => answer(offer(sender), demanding)).details).toEqual({ feature: "future" });
  });

  test("an answer is checked against the offer", () => {
    const offered = offer({ ...sender, required: ["parts"] });
    const { hello } = answer(offered, receiver);
    expect(refusal(() => settle(offered, { ...hello, features: ["connections"] })).code).toBe("feature-unsupported");
    expect(refusal(() => settle(offered, { ...hello, required: ["future"] })).code).toBe("feature-unsupported");
    const taken = refusal(() => settle(offered, { ...hello, features: ["parts", "future"] }));
    expect(taken.code).toBe("protocol-violation");
    expect(taken.message).toContain("future");
  });
});
