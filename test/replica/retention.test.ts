/** What retention promises for any points, and the grid. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decideRetention, type RetainedPoint } from "../../src/replica/retention/decide.ts";
import { defaultPolicy, defaultPolicyText, type KeepOption, parsePolicy } from "../../src/replica/retention/policy.ts";
import {
  anyPolicy,
  commitAll,
  DAY,
  decorated,
  gridText,
  HOUR,
  keepText,
  kept,
  MINUTE,
  noon,
  numbers,
  rules,
  SECOND,
  series,
  tameTimes,
  utc,
  wildTimes,
} from "./retention-kit.ts";
import { referenceGrid, referenceKeep } from "./retention-reference.ts";

describe("for any points and any policy", () => {
  test("never dropped: the newest, a point held, a point in use, a point that is spared", () => {
    fc.assert(
      fc.property(decorated, anyPolicy, (points, policy) => {
        const stays = new Set(kept(points, policy));
        for (const [index, point] of points.entries()) {
          const isHeld = point.held !== undefined && (point.held.until === undefined || point.held.until > noon);
          const isProtected = index === points.length - 1 || isHeld || point.inUse === true;
          if (isProtected || point.spared !== undefined) expect(stays).toContain(point.point);
        }
      }),
    );
  });

  test("one verdict a point, ascending, whatever order they are given in, with words", () => {
    fc.assert(
      fc.property(decorated, anyPolicy, (points, policy) => {
        const verdicts = decideRetention(points, parsePolicy(policy), utc);
        expect(verdicts.map(({ point }) => point)).toEqual(points.map(({ point }) => point));
        expect(decideRetention(points.toReversed(), parsePolicy(policy), utc)).toEqual(verdicts);
        for (const { rule } of verdicts) expect(rule).toMatch(/^\S.*\S$/);
      }),
    );
  });

  test("a second time drops nothing more", () => {
    fc.assert(
      fc.property(decorated, anyPolicy, (points, policy) => {
        const first = kept(points, policy);
        const left = points.filter(({ point }) => first.includes(point));
        expect(kept(left, policy)).toEqual(first);
      }),
      { numRuns: 500 },
    );
  });
});

describe("agrees with the rules written a second time", () => {
  test("grid, labels in order", () => {
    fc.assert(
      fc.property(tameTimes, gridText, (times, policy) => {
        const points = series(times);
        const parsed = parsePolicy(policy);
        if (parsed.kind === "grid") expect(kept(points, policy)).toEqual(referenceGrid(points, parsed.rows));
      }),
      { numRuns: 200 },
    );
  });

  test("grid, any labels", () => {
    fc.assert(
      fc.property(wildTimes, gridText, (times, policy) => {
        const points = series(times);
        const parsed = parsePolicy(policy);
        if (parsed.kind === "grid") expect(kept(points, policy)).toEqual(referenceGrid(points, parsed.rows));
      }),
      { numRuns: 300 },
    );
  });

  test("calendar", () => {
    const zones = fc.constantFrom("UTC", "Europe/Rome", "America/Montreal", "Australia/Lord_Howe", "Asia/Kathmandu");
    // Around both nights of 2026 in Rome and Montreal, around a new year, and anywhere.
    const starts = fc.constantFrom(
      ...["2026-03-08", "2026-03-29", "2026-10-25", "2026-11-01", "2026-12-29"].map((day) =>
        Date.parse(`${day}T00:00:00Z`),
      ),
    );
    const times = fc
      .tuple(starts, fc.array(fc.oneof(fc.nat(12 * HOUR), fc.nat(30 * DAY)), { maxLength: 25 }))
      .map(([start, offsets]) => offsets.map((offset) => start + offset));
    const sorted = times.map((list) => list.toSorted((a, b) => a - b));
    fc.assert(
      fc.property(
        fc.oneof(times, sorted),
        keepText,
        zones,
        fc.array(fc.nat(25), { maxLength: 3 }),
        (list, policy, timeZone, chosen) => {
          const parsed = parsePolicy(policy);
          if (parsed.kind !== "keep") throw new Error(policy);
          const held = new Set(chosen);
          const points = series(list).map((point) =>
            held.has(point.point) ? { ...point, held: { owner: "x" } } : point,
          );
          const expected = new Set(referenceKeep(points, parsed.counts, timeZone, held));
          for (const { point } of points) if (held.has(point) || point === points.length) expected.add(point);
          expect(kept(points, policy, { timeZone })).toEqual([...expected].toSorted((a, b) => a - b));
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe("grid", () => {
  test("the oldest in a bucket stays; a bucket has its younger edge and not its older one", () => {
    const points = series([-181, -180, -179, -121, -120, -119, -61, -60, -59, -1, 0].map((m) => noon + m * MINUTE));
    expect(rules(points, "grid=3x1h")).toEqual([
      "- older than every bucket, 2026-05-06T08:59:00Z",
      "- older than every bucket, 2026-05-06T09:00:00Z",
      "+ grid 3x1h, bucket 3",
      "- another point is older in grid 3x1h, bucket 3",
      "- another point is older in grid 3x1h, bucket 3",
      "+ grid 3x1h, bucket 2",
      "- another point is older in grid 3x1h, bucket 2",
      "- another point is older in grid 3x1h, bucket 2",
      "+ grid 3x1h, bucket 1",
      "- another point is older in grid 3x1h, bucket 1",
      "+ newest",
    ]);
  });

  test("rows lie back to back, and each keeps its own number", () => {
    const points = series([-300, -250, -200, -190, -100, -90, -70, -30, -20, 0].map((m) => noon + m * MINUTE));
    expect(rules(points, "grid=1x1h(keep=all)|1x1h(keep=2)|1x2h")).toEqual([
      "- older than every bucket, 2026-05-06T07:00:00Z",
      "- older than every bucket, 2026-05-06T07:50:00Z",
      "+ grid 1x2h, bucket 1",
      "- another point is older in grid 1x2h, bucket 1",
      "+ grid 1x1h(keep=2), bucket 1",
      "+ grid 1x1h(keep=2), bucket 1",
      "- another point is older in grid 1x1h(keep=2), bucket 1",
      "+ grid 1x1h(keep=all), bucket 1",
      "+ grid 1x1h(keep=all), bucket 1",
      "+ newest",
    ]);
  });

  test("of equal times the first by sequence stays", () => {
    expect(kept(series([noon, noon, noon, noon]), "grid=1x1h(keep=2)")).toEqual([1, 2, 4]);
  });

  test("now may be given: points later than it stay, ages count from it", () => {
    const points = series([-120, -60, -30, 0, 30, 60].map((m) => noon + m * MINUTE));
    expect(rules(points, "grid=1x1h", { now: noon })).toEqual([
      "- older than every bucket, 2026-05-06T10:00:00Z",
      "- older than every bucket, 2026-05-06T11:00:00Z",
      "+ grid 1x1h, bucket 1",
      "- another point is older in grid 1x1h, bucket 1",
      "+ later than now, 2026-05-06T12:00:00Z",
      "+ newest",
    ]);
  });

  test("a bound on now ages nothing beyond it", () => {
    const points = series([-120, -60, -30, 600, 601, 602, 603].map((m) => noon + m * MINUTE));
    expect(kept(points, "grid=1x1h")).toEqual([4, 7]);
    expect(kept(points, "grid=1x1h", { nowMax: noon })).toEqual([3, 4, 5, 6, 7]);
    expect(kept(points, "grid=1x1h", { nowMax: noon + 700 * MINUTE })).toEqual([4, 7]);
  });

  test("more buckets never keep fewer", () => {
    const row = fc.record({
      count: fc.integer({ min: 1, max: 5 }),
      minutes: fc.integer({ min: 1, max: 3000 }),
      keep: fc.constantFrom("1", "2", "all"),
    });
    fc.assert(
      fc.property(tameTimes, fc.array(row, { minLength: 2, maxLength: 5 }), (times, rows) => {
        const texts = rows
          .toSorted((a, b) => a.minutes - b.minutes)
          .map(({ count, minutes, keep }) => `${count}x${minutes}m(keep=${keep})`);
        const now = times.at(-1) ?? noon;
        const fewer = kept(series(times), `grid=${texts.slice(0, -1).join("|")}`, { now });
        const more = kept(series(times), `grid=${texts.join("|")}`, { now });
        expect(more).toEqual(expect.arrayContaining(fewer));
      }),
    );
  });

  /** In every bucket that lies wholly within the history there is a point, and hardly more. */
  function expectFilled(left: readonly RetainedPoint[], first: number, now: number, policy: string): void {
    const parsed = parsePolicy(policy);
    let newer = now;
    for (const row of parsed.kind === "grid" ? parsed.rows : []) {
      for (let bucket = 0; bucket < row.count && newer - row.lengthMillis >= first - 1; bucket++) {
        const older = newer - row.lengthMillis;
        const inside = left.filter(({ time }) => time > older && time <= newer);
        if (inside.length === 0 || (row.keep === 1 && inside.length > 2)) {
          throw new Error(`${inside.length} points in ${policy}, ${row.lengthMillis} ms, bucket ${bucket + 1}`);
        }
        newer = older;
      }
    }
  }

  test("a point a minute, pruned after each: every bucket of four days is filled at every moment", () => {
    const policy = "grid=1x1h(keep=all)|24x1h|14x1d|8x7d";
    const points = series(Array.from({ length: 4 * 1440 }, (_, index) => noon + index * MINUTE));
    const left = commitAll(points, policy, (now, newest) => expectFilled(now, noon, newest.time, policy));
    expect(left.length).toBe(60 + 24 + 3);
  });

  test("a point an hour, pruned after each: every bucket of a hundred days is filled at every moment", () => {
    const policy = "grid=24x1h|14x1d|8x7d";
    const points = series(Array.from({ length: 100 * 24 }, (_, index) => noon + index * HOUR));
    const left = commitAll(points, policy, (now, newest) => expectFilled(now, noon, newest.time, policy));
    expect(left.length).toBe(24 + 14 + 8);
  });

  test("points at odd distances, pruned after each: every bucket is filled at every moment", () => {
    const policy = "grid=1x10m(keep=all)|6x10m|6x1h|2x5h";
    const waits = fc.array(
      fc.oneof(fc.integer({ min: 1, max: 90 * SECOND }), fc.integer({ min: 59_000, max: 61_000 })),
      {
        minLength: 40,
        maxLength: 40,
      },
    );
    fc.assert(
      fc.property(waits, (list) => {
        let time = noon;
        const points = series(Array.from({ length: 1500 }, (_, index) => (time += list[index % list.length] ?? 0)));
        const first = points[0]?.time ?? 0;
        const left = commitAll(points, policy, (now, newest) => expectFilled(now, first, newest.time, policy));
        // What closes holes is no second set of points.
        expect(left.filter((point) => time - point.time >= 10 * MINUTE).length).toBeLessThanOrEqual(6 + 6 + 2 + 3);
      }),
      { numRuns: 12, endOnFailure: true },
    );
  });

  test("two points that meet in a bucket: the younger one stays when it closes a hole", () => {
    const minutes = (...list: number[]): RetainedPoint[] => series(list.map((m) => noon + m * MINUTE));
    expect(rules(minutes(-119, -61, -1, 0), "grid=2x1h")).toEqual([
      "+ grid 2x1h, bucket 2",
      "+ grid 2x1h, bucket 2, closes a hole",
      "+ grid 2x1h, bucket 1",
      "+ newest",
    ]);
    // The next point is near enough, or the point itself is too near to the one that stands.
    expect(kept(minutes(-119, -61, -59, 0), "grid=2x1h")).toEqual([1, 3, 4]);
    expect(kept(minutes(-119, -75, -1, 0), "grid=2x1h")).toEqual([1, 3, 4]);
    expect(kept(minutes(-119, -74, -1, 0), "grid=2x1h")).toEqual([1, 2, 3, 4]);
  });
});

describe("holds, readers, points that are spared", () => {
  const hours = [-9, -8, -7, -6, 0].map((hour) => noon + hour * HOUR);

  test("a hold ends at its time, by the caller's clock", () => {
    const points = series(hours).map((point) =>
      point.point === 2 ? { ...point, held: { owner: "backup", until: noon } } : point,
    );
    expect(rules(points, "last=1", { holdNow: noon - 1 })[1]).toBe("+ held by backup until 2026-05-06T12:00:00Z");
    expect(kept(points, "last=1", { holdNow: noon })).toEqual([5]);
  });

  test("a hold without end, and a reader", () => {
    const points = series(hours).map((point) => {
      if (point.point === 1) return { ...point, held: { owner: "ann" } };
      return point.point === 3 ? { ...point, inUse: true } : point;
    });
    expect(rules(points, "grid=1x7h")).toEqual([
      "+ held by ann",
      "- older than every bucket, 2026-05-06T04:00:00Z",
      "+ in use",
      "+ grid 1x7h, bucket 1",
      "+ newest",
    ]);
  });

  test("a point that is spared says why", () => {
    const points = series(hours).map((point) => (point.point === 2 ? { ...point, spared: "another disk" } : point));
    expect(rules(points, "last=1")).toEqual([
      "- no rule keeps it",
      "+ another disk",
      "- no rule keeps it",
      "- no rule keeps it",
      "+ newest",
    ]);
  });
});

test("keep 24, then 1, then 0, then 24 again, one cycle between", () => {
  let left = series(Array.from({ length: 30 }, (_, index) => noon + index * HOUR));
  const cycle = (policy: string): number[] => {
    const newest = left.at(-1);
    if (newest === undefined) throw new Error("no points");
    left = [...left, { point: newest.point + 1, time: newest.time + HOUR }];
    const stays = kept(left, policy);
    left = left.filter(({ point }) => stays.includes(point));
    return stays;
  };
  expect(cycle("last=24")).toEqual(Array.from({ length: 24 }, (_, index) => 8 + index));
  expect(cycle("last=1")).toEqual([32]);
  expect(cycle("last=0")).toEqual([33]);
  expect(cycle("last=24")).toEqual([33, 34]);
  expect(cycle("last=24")).toEqual([33, 34, 35]);
});

test("all keeps all, and no points give no verdicts", () => {
  expect(rules(series([noon, 0]), "all")).toEqual(["+ all", "+ newest"]);
  for (const policy of ["all", "last=0", "daily=1", "grid=1x1h"]) expect(kept([], policy)).toEqual([]);
});

test("wrong calls are refused", () => {
  expect(() => kept([...series([noon]), ...series([noon])], "all")).toThrow("a point is given once");
  expect(() => kept(series([Number.NaN]), "all")).toThrow("whole number");
});

test("a hundred thousand points", () => {
  const count = 100_000;
  const inOrder = series(Array.from({ length: count }, (_, index) => noon + index * MINUTE));
  // 69 days: the last hour, a day of hours, 14 days, and the weeks before.
  expect(numbers(decideRetention(inOrder, defaultPolicy, utc)).length).toBe(60 + 24 + 14 + 8);
  const counts: Partial<Record<KeepOption, number>> = { last: 10, hourly: 24, daily: 30 };
  // Each option begins behind what the finer one covers.
  expect(numbers(decideRetention(inOrder, { kind: "keep", counts }, utc)).length).toBe(10 + 24 + 30);
  // A clock that only ever goes back: all are of one time.
  const falling = series(inOrder.map(({ time }) => -time));
  expect(numbers(decideRetention(falling, defaultPolicy, utc)).length).toBe(count);
});

test("docs/retention.md: its table is what happens, its default is the default", () => {
  const document = readFileSync(new URL("../../docs/retention.md", import.meta.url), "utf8");
  expect(document.replaceAll("\\|", "|")).toContain(`\`${defaultPolicyText}\` | the default`);
  const rows = [...document.matchAll(/^\| (\d\d:\d\d) \| (stays|dropped) \|/gm)];
  expect(rows.length).toBe(7);
  const points = series(rows.map(([, time = ""]) => Date.parse(`2026-05-06T${time}:00Z`)));
  const stays = rows.flatMap(([, , verdict], index) => (verdict === "stays" ? [index + 1] : []));
  expect(kept(points, "grid=2x1h")).toEqual(stays);
});
