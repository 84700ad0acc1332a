/** Retention while clocks jump: order is by sequence number, time is a label. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { KIB } from "../../src/base/units.ts";
import { restorePoint } from "../../src/index.ts";
import { decideRetention } from "../../src/replica/retention/decide.ts";
import { parsePolicy } from "../../src/replica/retention/policy.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { hastyClock } from "../replication/pair-kit.ts";
import { Changing, PointKit, sha } from "./point-kit.ts";
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

describe("in a store, whose points are really removed and restored (C-74)", () => {
  const block = 16 * KIB;
  const policy = "grid=1x1h(keep=all)|4x1h";
  const wrongAt = 8;
  let kit: PointKit;

  afterEach(async () => {
    expect(await kit.close(), "every slot is back").toBe(true);
  });

  /** Each point there is, restored: it is what was sent. Returns their numbers. */
  async function restoreAll(): Promise<readonly number[]> {
    const { store, folder } = kit.pair;
    const { points, unreadable } = await store.points("disk");
    expect(unreadable).toEqual([]);
    for (const { point } of points) {
      const target = join(folder, `restored-${point}`);
      const engine = { storage: createNodeStorage(), clock: hastyClock };
      await restorePoint(store, { engine, disk: "disk", point, target, overwrite: true });
      expect(sha(readFileSync(target)), `point ${point}`).toBe(sha(kit.content(point)));
    }
    return points.map(({ point }) => point);
  }

  test.each(["2006-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])("one cycle in %s, then right again", async (text) => {
    kit = await PointKit.create({ blockBytes: block });
    const { store } = kit.pair;
    const start = Date.now() - 10 * HOUR;
    // Every half an hour; the one that is wrong comes between two of them.
    const right = Array.from({ length: 15 }, (_unused, index) => start + index * 30 * MINUTE);
    const times = right.toSpliced(wrongAt - 1, 0, Date.parse(text));
    const numberOf = (index: number): number => index + (index < wrongAt - 1 ? 1 : 2);
    const control = right.map((_unused, index) =>
      commitAll(series(right.slice(0, index + 1)), policy).map(({ point }) => numberOf(point - 1)),
    );
    const disk = new Changing(40 * block).write(0, 40 * block);
    let before: readonly number[] = [];
    for (const [index, time] of times.entries()) {
      const clock = { ...hastyClock, now: () => time };
      await kit.commit(disk.write((index % 20) * 2 * block, block).content, { clock });
      if (index === 0) await store.setPolicy("disk", policy);
      const left = (await store.points("disk")).points.map(({ point }) => point);
      if (index + 1 < wrongAt) expect(left).toEqual(control[index]);
      // By the label everything else is 20 years too new, or 70 too old: nothing goes, and the newest is the one that came last.
      if (index + 1 === wrongAt) {
        expect(left).toEqual([...before, wrongAt]);
        await kit.expectPoint("newest", wrongAt);
      }
      // Of the others each is there that would be there without it, and it stays for as long as those around it do.
      if (index + 1 > wrongAt) expect(left.filter((point) => point !== wrongAt)).toEqual(control[index - 1]);
      if (left.includes(wrongAt - 1) && left.includes(wrongAt + 1)) expect(left).toContain(wrongAt);
      if (index === wrongAt) expect(await restoreAll()).toContain(wrongAt);
      before = left;
    }
    expect(await restoreAll()).toEqual(before);
    // Counted, it is one of the last: the order is that of the points.
    await store.hold("disk", wrongAt, { owner: "test", until: undefined });
    await kit.commit(disk.write(0, block).content, { clock: { ...hastyClock, now: () => Date.parse(text) } });
    await store.prune("disk", { keep: "last=2" });
    expect(await restoreAll()).toEqual([wrongAt, 16, 17]);
  });
});
