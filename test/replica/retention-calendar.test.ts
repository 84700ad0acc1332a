/** Retention by calendar periods, worked out by hand. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decideRetention } from "../../src/replica/retention/decide.ts";
import { type KeepOption, parsePolicy } from "../../src/replica/retention/policy.ts";
import { at, decorated, kept, MINUTE, noon, numbers, rules, series, utc } from "./retention-kit.ts";

describe("calendar options", () => {
  // Wednesday 6 May 2026; the points of a week and of months before.
  const points = at(
    "2024-12-31T09:00:00Z", // 1
    "2025-06-30T09:00:00Z", // 2
    "2026-03-31T09:00:00Z", // 3
    "2026-04-26T09:00:00Z", // 4   Sunday, week 17
    "2026-04-27T09:00:00Z", // 5   Monday, week 18
    "2026-05-03T09:00:00Z", // 6   Sunday, week 18
    "2026-05-04T09:00:00Z", // 7   Monday, week 19
    "2026-05-05T09:00:00Z", // 8
    "2026-05-05T21:00:00Z", // 9
    "2026-05-06T10:05:00Z", // 10
    "2026-05-06T10:55:00Z", // 11
    "2026-05-06T11:05:00Z", // 12
    "2026-05-06T11:10:00Z", // 13
  );

  const table: [string, number[]][] = [
    ["last=1", [13]],
    ["last=3", [11, 12, 13]],
    ["last=99", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]],
    // Hours without points do not count: 11h, 10h, and 21h of the day before.
    ["hourly=3", [9, 11, 13]],
    ["hourly=1", [13]],
    ["daily=4", [6, 7, 9, 13]],
    // The newest of its week, so Sunday and not Monday for week 18.
    ["weekly=3", [4, 6, 13]],
    ["monthly=3", [3, 5, 13]],
    ["yearly=2", [2, 13]],
    ["yearly=9", [1, 2, 13]],
    // last covers both hours, so hourly begins with the day before.
    ["last=3,hourly=1", [9, 11, 12, 13]],
    // last covers today and yesterday, so daily takes the two days before.
    ["last=5,daily=2", [6, 7, 9, 10, 11, 12, 13]],
    // hourly 13, 11; daily: today is covered, 9 and 7; weekly: week 19 is covered, 6 and 4; monthly: May and April are covered, 3;
    // yearly: 2026 is covered, 2.
    ["hourly=2,daily=2,weekly=2,monthly=1,yearly=1", [2, 3, 4, 6, 7, 9, 11, 13]],
    ["hourly=0,daily=1", [13]],
    ["last=0", [13]],
    ["daily=0,yearly=0", [13]],
  ];
  test.each(table)("%s", (policy, expected) => {
    expect(kept(points, policy)).toEqual(expected);
  });

  test("the examples of docs/retention.md", () => {
    const list = at("2026-05-05T21:00:00Z", "2026-05-06T09:00:00Z", "2026-05-06T10:05:00Z", "2026-05-06T10:55:00Z");
    expect(kept(list, "hourly=2")).toEqual([2, 4]);
    expect(kept(list, "last=1,daily=1")).toEqual([1, 4]);
    expect(kept(list, "hourly=3")).toEqual([1, 2, 4]);
  });

  test("say which period a point stands for, and which one stands in its place", () => {
    expect(rules(points.slice(8), "last=2,hourly=2,daily=1")).toEqual([
      "+ hourly 2026-05-05T21 (+00:00)",
      "- a newer point stands for hourly 2026-05-06T10 (+00:00)",
      "+ hourly 2026-05-06T10 (+00:00)",
      "+ last, 2 of 2",
      "+ newest",
    ]);
    expect(rules(points.slice(0, 3), "weekly=1,monthly=1", { timeZone: "Europe/Rome" })).toEqual([
      "- no rule keeps it",
      "+ monthly 2025-06 (Europe/Rome)",
      "+ newest",
    ]);
  });

  test("a point that a finer option decided against is not brought back by a coarser one", () => {
    // Week 18 reaches over the end of April: its newest point lies in May, so weekly decides against 30 April, and monthly takes the
    // newest of April that is left.
    const list = at("2026-04-20T09:00:00Z", "2026-04-30T09:00:00Z", "2026-05-02T09:00:00Z", "2026-05-04T09:00:00Z");
    expect(kept(list, "weekly=2,monthly=2")).toEqual([1, 3, 4]);
  });

  test("weeks belong to the year of their Thursday", () => {
    const list = at("2026-12-28T09:00:00Z", "2027-01-03T09:00:00Z", "2027-01-04T09:00:00Z", "2027-01-05T09:00:00Z");
    expect(rules(list, "weekly=2")).toEqual([
      "- a newer point stands for weekly 2026-W53 (UTC)",
      "+ weekly 2026-W53 (UTC)",
      "- a newer point stands for weekly 2027-W01 (UTC)",
      "+ newest",
    ]);
  });

  test("days are those of the time zone", () => {
    const list = at("2026-05-05T21:30:00Z", "2026-05-05T22:30:00Z", "2026-05-06T09:00:00Z");
    expect(kept(list, "daily=2")).toEqual([2, 3]);
    expect(kept(list, "daily=2", { timeZone: "Europe/Rome" })).toEqual([1, 3]);
  });

  test("a held point stays and is not counted", () => {
    const held = points.map((point) => (point.point >= 12 ? { ...point, held: { owner: "backup" } } : point));
    expect(kept(held, "last=2")).toEqual([10, 11, 12, 13]);
  });

  test("a point in use is counted: reading changes nothing for the others", () => {
    const used = points.map((point) => ({ ...point, inUse: point.point === 12 || point.point === 2 }));
    expect(kept(used, "last=2")).toEqual([2, 12, 13]);
  });

  test("a wrong time takes a place of its own and is said to be in doubt", () => {
    const list = at("2026-05-04T09:00:00Z", "2026-05-05T09:00:00Z", "2006-01-01T00:00:00Z", "2026-05-06T09:00:00Z");
    expect(rules(list, "daily=3")).toEqual([
      "- no rule keeps it",
      "+ daily 2026-05-05 (UTC)",
      "+ daily 2006-01-01 (UTC) (its time 2006-01-01T00:00:00Z is in doubt)",
      "+ newest",
    ]);
  });

  test("the newest by sequence stands for a period, whatever the labels in it say", () => {
    expect(kept(at("2026-05-05T12:50:00Z", "2026-05-05T12:10:00Z", "2026-05-06T09:00:00Z"), "daily=2")).toEqual([2, 3]);
  });

  /**
   * The newest point of a period is met before all others of it, by every option whose periods lie within it: one of these keeps it, or none
   * of the period. That needs periods within one another, which weeks are not in months and years.
   */
  test("more of a period never keeps less, where periods lie within one another", () => {
    const number = { min: 0, max: 5 };
    const countsOf = (...names: KeepOption[]) =>
      fc.tuple(
        ...names.map((name) => fc.tuple(fc.constant(name), fc.integer(number), fc.oneof(fc.constant(0), fc.nat(3)))),
      );
    const chains = fc.oneof(
      countsOf("last", "hourly", "daily", "monthly", "yearly"),
      countsOf("last", "hourly", "daily", "weekly"),
    );
    const zones = fc.constantFrom("UTC", "Europe/Rome", "America/Montreal");
    let more = 0;
    fc.assert(
      fc.property(decorated, fc.constantFrom(1, 15), chains, zones, (list, scale, counts, timeZone) => {
        const stretched = list.map((point) => ({ ...point, time: noon + (point.time - noon) * scale }));
        const keptBy = (raised: boolean): number[] => {
          const texts = counts.map(([name, count, added]) => `${name}=${count + (raised ? added : 0)}`);
          return kept(stretched, texts.join(","), { timeZone });
        };
        const fewer = keptBy(false);
        const all = keptBy(true);
        more += all.length - fewer.length;
        expect(all).toEqual(expect.arrayContaining(fewer));
      }),
      { numRuns: 500 },
    );
    expect(more).toBeGreaterThan(100);
  });

  test("a week of two months: with a weekly point the older month is stood for by another one, and there are not fewer", () => {
    // Thursday, and Tuesday and Wednesday of one week.
    const list = at("2026-03-26T09:00:00Z", "2026-03-31T09:00:00Z", "2026-04-01T09:00:00Z");
    expect(kept(list, "monthly=2")).toEqual([2, 3]);
    expect(kept(list, "weekly=1,monthly=2")).toEqual([1, 3]);
  });

  test("a time zone that is not known is a usage error", () => {
    expect(() => kept(points, "daily=1", { timeZone: "Europe/Atlantis" })).toThrow(
      expect.objectContaining({ code: "usage", message: expect.stringContaining("Europe/Atlantis") }),
    );
  });
});

describe("the nights of summer time (C-73), a cycle a minute from 01:30 to 03:30 on the wall clock", () => {
  const nights: [string, string, string, string, string[]][] = [
    [
      "Europe/Rome",
      "autumn",
      "2026-10-24T23:30:00Z",
      "2026-10-25T02:30:00Z",
      ["2026-10-25T01 (+02:00)", "2026-10-25T02 (+02:00)", "2026-10-25T02 (+01:00)", "2026-10-25T03 (+01:00)"],
    ],
    [
      "Europe/Rome",
      "spring",
      "2026-03-29T00:30:00Z",
      "2026-03-29T01:30:00Z",
      ["2026-03-29T01 (+01:00)", "2026-03-29T03 (+02:00)"],
    ],
    [
      "America/Montreal",
      "autumn",
      "2026-11-01T05:30:00Z",
      "2026-11-01T08:30:00Z",
      ["2026-11-01T01 (-04:00)", "2026-11-01T01 (-05:00)", "2026-11-01T02 (-05:00)", "2026-11-01T03 (-05:00)"],
    ],
    [
      "America/Montreal",
      "spring",
      "2026-03-08T06:30:00Z",
      "2026-03-08T07:30:00Z",
      ["2026-03-08T01 (-05:00)", "2026-03-08T03 (-04:00)"],
    ],
  ];
  test.each(nights)("%s, %s: hourly keeps one point for each hour that passed", (timeZone, _, from, to, hours) => {
    const start = Date.parse(from);
    const minutes = (Date.parse(to) - start) / MINUTE;
    const points = series(Array.from({ length: minutes + 1 }, (_unused, index) => start + index * MINUTE));
    const all = decideRetention(points, parsePolicy("hourly=24"), { ...utc, timeZone });
    // The newest is not told by its hour.
    expect(all.filter(({ keep }) => keep).map(({ rule }) => rule)).toEqual([
      ...hours.slice(0, -1).map((hour) => `hourly ${hour}`),
      "newest",
    ]);
    // The last minute of each hour in between, and the newest.
    const ends = hours.map((_unused, index) => Math.min(minutes + 1, 30 + index * 60));
    expect(numbers(all)).toEqual(ends);
    expect(kept(points, "hourly=2", { timeZone })).toEqual(ends.slice(-2));
    // The day of 25 or 23 hours is one day.
    expect(kept(points, "daily=7", { timeZone })).toEqual([minutes + 1]);
  });

  test("a zone whose summer time is half an hour", () => {
    // Lord Howe: at 02:00 (+11:00) it becomes 01:30 (+10:30), at 15:00 UTC.
    const points = at("2026-04-04T14:10:00Z", "2026-04-04T14:50:00Z", "2026-04-04T15:10:00Z", "2026-04-04T15:40:00Z");
    expect(rules(points, "hourly=9", { timeZone: "Australia/Lord_Howe" })).toEqual([
      "- a newer point stands for hourly 2026-04-05T01 (+11:00)",
      "+ hourly 2026-04-05T01 (+11:00)",
      "+ hourly 2026-04-05T01 (+10:30)",
      "+ newest",
    ]);
  });
});
