/** Points that several disks have of one moment: complete or not, and kept and removed together. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { cutStates, sparedByCuts } from "../../src/replica/cuts.ts";
import { decideRetention } from "../../src/replica/retention/decide.ts";
import { parsePolicy } from "../../src/replica/retention/policy.ts";
import type { Point } from "../../src/replica/store.ts";
import { anyPolicy, HOUR, noon, utc } from "./retention-kit.ts";

const members = ["db.data", "db.log", "db.sys"];

function pointOf(point: number, cut: string | undefined, time = noon + point * HOUR): Point {
  return {
    ...{ point, time, label: undefined, consistency: "crash", root: "", sizeBytes: 0, generation: "", term: 0 },
    ...{ cycle: "", source: "", sourceName: "", cut: cut === undefined ? undefined : { id: cut, members } },
  };
}

const disksOf = (points: Readonly<Record<string, readonly Point[]>>): ReadonlyMap<string, readonly Point[]> =>
  new Map(Object.entries(points));

describe("the state of a cut", () => {
  test("complete when every member has its point of it, wherever that stands in its own order", () => {
    const own = [pointOf(1, "a"), pointOf(2, undefined), pointOf(3, "b"), pointOf(4, "c")];
    const companions = disksOf({
      "db.log": [pointOf(7, "a"), pointOf(8, "b"), pointOf(9, undefined)],
      "db.sys": [pointOf(1, "b"), pointOf(2, "a")],
    });
    const states = cutStates("db.data", own, { points: companions });
    expect([...states.keys()]).toEqual([1, 3, 4]);
    expect(states.get(1)).toEqual({
      complete: true,
      missing: [],
      others: [
        { disk: "db.log", point: 7 },
        { disk: "db.sys", point: 2 },
      ],
    });
    expect(states.get(3)?.complete).toBe(true);
    expect(states.get(4)).toEqual({ complete: false, missing: ["db.log", "db.sys"], others: [] });
  });

  test("a disk that is gone has no points", () => {
    expect(cutStates("db.data", [pointOf(1, "a")], { points: new Map() }).get(1)?.missing).toEqual([
      "db.log",
      "db.sys",
    ]);
  });
});

/** Prunes all disks one after the other, as their receivers do, until nothing changes. */
function pruneAll(disks: Map<string, readonly Point[]>, policy: string): void {
  const judge = (points: readonly Point[], spared: ReadonlyMap<number, string>): Set<number> =>
    new Set(
      decideRetention(
        points.map(({ point, time }) => ({ point, time, spared: spared.get(point) })),
        parsePolicy(policy),
        utc,
      ).flatMap(({ point, keep }) => (keep ? [point] : [])),
    );
  for (let changed = true; changed; ) {
    changed = false;
    for (const [disk, points] of disks) {
      const companions = new Map([...disks].filter(([name]) => name !== disk));
      const kept = new Map([...companions].map(([name, theirs]) => [name, judge(theirs, new Map())]));
      const states = cutStates(disk, points, { points: companions });
      const stays = judge(
        points,
        sparedByCuts(states, (name, point) => kept.get(name)?.has(point) === true),
      );
      const left = points.filter(({ point }) => stays.has(point));
      if (left.length < points.length) changed = true;
      disks.set(disk, left);
    }
  }
}

/** What happens to three disks: a cut of all, one that was interrupted, points of single disks. */
const anyEvents = fc.array(fc.constantFrom("all", "all", "pieces", ...members), { minLength: 1, maxLength: 40 });

test("the points of a complete cut stay and go together, and the newest complete cut stays", () => {
  fc.assert(
    fc.property(anyEvents, anyPolicy, (events, policy) => {
      const made = new Map<string, Point[]>(members.map((name) => [name, []]));
      const complete: string[] = [];
      for (const [index, event] of events.entries()) {
        const cut = event === "all" || event === "pieces" ? `cut${index}` : undefined;
        if (event === "all" && cut !== undefined) complete.push(cut);
        for (const [position, name] of members.entries()) {
          const takesPart = event === "all" || event === name || (event === "pieces" && position < (index % 2) + 1);
          const points = made.get(name);
          if (takesPart) points?.push(pointOf((points.at(-1)?.point ?? 0) + 1, cut, noon + index * HOUR));
        }
      }
      const disks = new Map<string, readonly Point[]>(made);
      pruneAll(disks, policy);
      const holds = (name: string, cut: string): boolean =>
        disks.get(name)?.some((point) => point.cut?.id === cut) === true;
      for (const cut of complete) {
        const having = members.filter((name) => holds(name, cut));
        expect([0, members.length], `${cut} is left of ${having.join(" ")}`).toContain(having.length);
      }
      const newest = complete.at(-1);
      if (newest !== undefined) expect(members.every((name) => holds(name, newest))).toBe(true);
      for (const [name, points] of made) expect(disks.get(name)?.at(-1)).toEqual(points.at(-1));
    }),
  );
});
