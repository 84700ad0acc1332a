/** Retention while clocks jump: order is by sequence number, time is a label. */
import { describe, expect, test } from "vitest";
import { decideRetention } from "../../src/replica/retention/decide.ts";
import { parsePolicy } from "../../src/replica/retention/policy.ts";
import { at, commitAll, DAY, HOUR, kept, MINUTE, noon, rules, series, utc } from "./retention-kit.ts";

describe("clocks that jump (C-74)", () => {
  const policy = "grid=1x1h(keep=all)|24x1h|14x1d|8x7d";
  const steady = series(Array.from({ length: 3 * 144 }, (_, index) => noon + index * 10 * MINUTE));
  const control = commitAll(steady, policy).map(({ time }) => time);

  test.each(["2006-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "+275760-09-13T00:00:00Z"])(
    "one cycle in %s, anywhere: all others stay as they would have stayed",
    (text) => {
      const wrong = Date.parse(text);
      for (const where of [1, 2, 6, 100, 300, steady.length - 1]) {
        const times = steady.map(({ time }) => time);
        times.splice(where, 0, wrong);
        let worst = Number.POSITIVE_INFINITY;
        const left = commitAll(series(times), policy, (now, newest) => {
          if (newest.time === wrong) worst = now.length;
        });
        // Right after it nothing was lost, and in the end nothing is missing.
        expect(worst).toBeGreaterThan(Math.min(where, 6));
        expect(left.map(({ time }) => time).filter((time) => time !== wrong)).toEqual(control);
      }
    },
  );

  test("the point from 2006 stays as long as its neighbours do, and is said to be in doubt", () => {
    const points = at("2026-05-06T11:00:00Z", "2006-01-01T00:00:00Z", "2026-05-06T11:10:00Z", "2026-05-06T11:20:00Z");
    expect(rules(points, policy)).toEqual([
      "+ grid 1x1h(keep=all), bucket 1",
      "+ grid 1x1h(keep=all), bucket 1 (its time 2006-01-01T00:00:00Z is in doubt, taken as 2026-05-06T11:10:00Z)",
      "+ grid 1x1h(keep=all), bucket 1",
      "+ newest",
    ]);
    // It neither takes the place of another point nor loses its own to one.
    expect(kept(points, "grid=4x1h")).toEqual([1, 2, 4]);
  });

  test("several in doubt keep their distances, as far as their neighbours leave room", () => {
    const points = at(
      "2026-05-06T11:00:00Z",
      "2026-05-06T11:10:00Z",
      "2026-05-06T11:20:00Z",
      "2006-01-01T00:00:00Z",
      "2020-01-01T00:00:00Z",
      "2020-01-01T00:01:00Z",
      "2026-05-06T11:50:00Z",
      "2026-05-06T12:00:00Z",
    );
    const taken = rules(points, policy).map((rule) => /taken as (.*)\)/.exec(rule)?.[1]);
    expect(taken.slice(3, 6)).toEqual(["2026-05-06T11:20:00Z", "2026-05-06T11:49:00Z", "2026-05-06T11:50:00Z"]);
  });

  test("while the newest point is the one from 2006, everything stays", () => {
    const points = at("2026-02-01T00:00:00Z", "2026-05-06T11:00:00Z", "2026-05-06T11:10:00Z", "2006-01-01T00:00:00Z");
    expect(kept(points, "grid=1x1h")).toEqual([1, 2, 3, 4]);
  });

  test("a clock that goes back an hour for good: the newest hour before and all after it are there", () => {
    const times = Array.from({ length: 600 }, (_, index) => noon + index * MINUTE - (index >= 300 ? HOUR : 0));
    const missing: string[] = [];
    const left = commitAll(series(times), policy, (now, newest) => {
      const there = new Set(now.map(({ point }) => point));
      for (let point = Math.max(1, newest.point - 55); point <= newest.point; point++) {
        if (!there.has(point)) missing.push(`${point} after ${newest.point}`);
      }
    });
    expect(missing).toEqual([]);
    // Ten hours of points, one of them twice: no two hours without one are left beside the newest hour.
    const older = left.filter(({ point }) => point <= 540).map(({ point }) => point);
    expect(older.length).toBeGreaterThanOrEqual(8);
    for (const [index, point] of older.entries()) expect((older[index + 1] ?? 541) - point).toBeLessThanOrEqual(121);
  });

  test("a clock that was a year ahead for days and is put right: history stays, and new history is kept", () => {
    const times = Array.from(
      { length: 6 * 144 },
      (_, index) => noon + index * 10 * MINUTE + (index < 3 * 144 ? 365 * DAY : 0),
    );
    const left = commitAll(series(times), policy).map(({ point }) => point);
    // Both halves thinned by their own distances: hours of the new day, days of the old ones.
    expect(left.filter((point) => point > 5 * 144).length).toBeGreaterThanOrEqual(6 + 22);
    expect(left.filter((point) => point > 3 * 144 && point <= 5 * 144).length).toBeGreaterThanOrEqual(2);
    expect(left.filter((point) => point <= 3 * 144).length).toBeGreaterThanOrEqual(2);
  });

  test("a clock that is in 2006 for hours: what was there before is there when it is right again", () => {
    const wrong = Date.parse("2006-01-01T00:00:00Z");
    const times = [
      ...Array.from({ length: 3 * 144 }, (_, index) => noon + index * 10 * MINUTE),
      ...Array.from({ length: 200 }, (_, index) => wrong + index * 10 * MINUTE),
      ...Array.from({ length: 200 }, (_, index) => noon + (3 * 144 + 200 + index) * 10 * MINUTE),
    ];
    const left = commitAll(series(times), policy).map(({ point }) => point);
    expect(left.filter((point) => point <= 3 * 144).length).toBeGreaterThanOrEqual(3);
    expect(left.filter((point) => point > 3 * 144 + 200).length).toBeGreaterThanOrEqual(24);
  });

  test("a leap longer than the grid is believed when more points stand behind it than before it", () => {
    const before = [-90, -30, -20, 0].map((m) => noon + m * MINUTE);
    const after = (count: number): number[] => Array.from({ length: count }, (_, i) => noon + 100 * DAY + i * MINUTE);
    expect(rules(series([...before, ...after(2)]), "grid=2x1h")).toEqual([
      "+ grid 2x1h, bucket 2",
      "+ grid 2x1h, bucket 1",
      "- another point is older in grid 2x1h, bucket 1",
      "+ last point before a leap in time that more points must confirm",
      "+ later than now, 2026-05-06T12:00:00Z",
      "+ newest",
    ]);
    expect(kept(series([...before, ...after(3)]), "grid=2x1h")).toEqual([1, 2, 4, 5, 6, 7]);
    // Three points are left before it: with four behind it they go.
    expect(kept(series([...before, ...after(4)]), "grid=2x1h")).toEqual([5, 8]);
    // A leap within the grid is only a pause.
    expect(kept(series([noon, noon + MINUTE, noon + 119 * MINUTE]), "grid=2x1h")).toEqual([1, 3]);
  });

  test("rare points under a short grid do not pile up", () => {
    const left = commitAll(series(Array.from({ length: 50 }, (_, index) => noon + index * 7 * DAY)), "grid=24x1h");
    expect(left.map(({ point }) => point)).toEqual([49, 50]);
  });

  test("labels from outside the calendar are judged like any other", () => {
    const wild = [Number.MIN_SAFE_INTEGER, 0, Number.MAX_SAFE_INTEGER, noon, -1e15, noon + 1, Number.MAX_SAFE_INTEGER];
    for (const text of [policy, "last=1", "hourly=9,daily=9,weekly=9,monthly=9,yearly=9", "all"]) {
      const verdicts = decideRetention(series(wild), parsePolicy(text), { ...utc, timeZone: "Europe/Rome" });
      expect(verdicts.length).toBe(wild.length);
      expect(verdicts.at(-1)?.keep).toBe(true);
    }
  });
});
