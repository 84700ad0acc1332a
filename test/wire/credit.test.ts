import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { createCredit, createFrameCounts } from "../../src/wire/credit.ts";
import { thrownBy } from "./decoding.ts";

const max = limits.creditFramesMax;

function violation(work: () => unknown): void {
  expect(thrownBy(work)).toMatchObject({ code: "protocol-violation" });
}

function invariantFails(work: () => unknown): void {
  expect(thrownBy(work)).toBeInstanceOf(InvariantError);
}

describe("credit", () => {
  test("without credit: the sender's own fault, or its violation", () => {
    for (const initial of [0, 2]) {
      const own = createCredit("sender", initial);
      const peers = createCredit("receiver", initial);
      for (let frame = 0; frame < initial; frame++) {
        own.take();
        peers.take();
      }
      invariantFails(() => own.take());
      violation(() => peers.take());
    }
  });

  test("grants up to exactly the maximum", () => {
    const received = createCredit("sender", max - 1);
    received.grant(1);
    expect(received.available).toBe(max);
    violation(() => received.grant(1));
    const sent = createCredit("receiver", max);
    invariantFails(() => sent.grant(1));
    sent.take();
    sent.grant(1);
    expect(sent.available).toBe(max);
    violation(() => createCredit("sender", max + 1));
    invariantFails(() => createCredit("receiver", max + 1));
  });

  test("a grant is a whole number of frames", () => {
    const credit = createCredit("receiver", 1);
    for (const frames of [-1, 0.5, Number.NaN]) invariantFails(() => credit.grant(frames));
  });

  test("a refused take or grant changes nothing", () => {
    const credit = createCredit("sender", 0);
    invariantFails(() => credit.take());
    violation(() => credit.grant(max + 1));
    expect(credit.available).toBe(0);
  });

  test("both ends agree when frames and grants cross", () => {
    const act = fc.constantFrom("send", "deliver frame", "grant", "deliver grant");
    fc.assert(
      fc.property(fc.nat(max), fc.array(act, { maxLength: 300 }), (initial, acts) => {
        const sender = createCredit("sender", initial);
        const receiver = createCredit("receiver", initial);
        const frames: number[] = [];
        const grants: number[] = [];
        for (const what of acts) {
          if (what === "send" && sender.available > 0) {
            sender.take();
            frames.push(1);
          } else if (what === "deliver frame" && frames.pop() !== undefined) receiver.take();
          else if (what === "grant" && receiver.available < max) {
            receiver.grant(1);
            grants.push(1);
          } else if (what === "deliver grant") sender.grant(grants.pop() ?? 0);
          expect(receiver.available).toBe(sender.available + frames.length + grants.length);
        }
      }),
    );
  });
});

describe("frame counts", () => {
  test("behind, equal, ahead", () => {
    const counts = createFrameCounts(2);
    counts.count(0);
    counts.count(1);
    counts.count(1);
    expect(counts.list()).toEqual([1, 2]);
    expect(counts.compare([1, 2])).toBe("equal");
    expect(counts.compare([2, 2])).toBe("behind");
    expect(counts.compare([1, 3])).toBe("behind");
    expect(counts.compare([1, 1])).toBe("ahead");
    expect(counts.compare([2, 1])).toBe("behind");
    expect(createFrameCounts(1).compare([0])).toBe("equal");
  });

  test("another number of connections is a violation", () => {
    const counts = createFrameCounts(2);
    for (const stated of [[], [0], [0, 0, 0]]) violation(() => counts.compare(stated));
  });

  test("connections that are not there are a wrong call", () => {
    invariantFails(() => createFrameCounts(0));
    invariantFails(() => createFrameCounts(limits.connectionsMax + 1));
    const counts = createFrameCounts(limits.connectionsMax);
    invariantFails(() => counts.count(limits.connectionsMax));
    invariantFails(() => counts.count(-1));
  });

  test("the list is a copy", () => {
    const counts = createFrameCounts(1);
    const before = counts.list();
    counts.count(0);
    expect(before).toEqual([0]);
    expect(counts.list()).toEqual([1]);
  });
});

test("violations are errors of the wire", () => {
  expect(thrownBy(() => createCredit("receiver", 0).take())).toBeInstanceOf(ReplicationError);
});
