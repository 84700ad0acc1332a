/**
 * Which points of a disk stay. A function of values: no clock, no files. Points are ordered by sequence number; their times are labels of
 * the sender's clock, which may be wrong (times.ts).
 */
import { invariant } from "../../base/errors.ts";
import { type Calendar, createCalendar, judgeCalendar } from "./calendar.ts";
import { judgeGrid } from "./grid.ts";
import type { RetentionPolicy } from "./policy.ts";
import { type Judgement, writeTime } from "./words.ts";

/** What retention has to know of a point. */
export interface RetainedPoint {
  /** Sequence number: the order. */
  readonly point: number;
  /** Milliseconds since 1970 UTC: a label. */
  readonly time: number;
  /** Kept until released, or until `until` (milliseconds since 1970 UTC, itself excluded). */
  readonly held?: { readonly owner: string; readonly until?: number | undefined } | undefined;
  /** Somebody reads it. */
  readonly inUse?: boolean | undefined;
  /** Why it stays, for reasons that lie outside its disk, such as another disk's point of the same cut. */
  readonly spared?: string | undefined;
  readonly label?: string | undefined;
}

export interface Verdict extends Judgement {
  readonly point: number;
}

export interface RetentionOptions {
  /**
   * What ages of a grid are counted from. Left out: the time of the newest point; but a time more than a whole grid ahead of the points
   * before it is believed only when more points stand behind that leap than before it.
   */
  readonly now?: number | undefined;
  /**
   * Where `now` is left out: the newest point's time counts at most as this, such as the receiver's clock and a day. Times come from
   * senders, and one that lies could age the history of its disk. Points with later times stay until it has passed them. Left out: no
   * bound.
   */
  readonly nowMax?: number | undefined;
  /** The caller's clock: holds that end by then have ended. */
  readonly holdNow: number;
  /** Of calendar periods: an IANA name. */
  readonly timeZone: string;
}

/** Labels made to contradict each other could take many passes; what is left over is left to the next call. */
const PASSES_MAX = 8;

function protection(point: RetainedPoint, isNewest: boolean, holdNow: number): string | undefined {
  if (isNewest) return "newest";
  if (isHeld(point, holdNow)) {
    const until = point.held?.until;
    return `held by ${point.held?.owner}${until === undefined ? "" : ` until ${writeTime(until)}`}`;
  }
  return point.inUse === true ? "in use" : point.spared;
}

function isHeld(point: RetainedPoint, holdNow: number): boolean {
  return point.held !== undefined && (point.held.until === undefined || point.held.until > holdNow);
}

function judgePolicy(
  points: readonly RetainedPoint[],
  policy: RetentionPolicy,
  options: RetentionOptions,
  calendar: Calendar | undefined,
): Judgement[] {
  switch (policy.kind) {
    case "all":
      return points.map(() => ({ keep: true, rule: "all" }));
    case "grid":
      return judgeGrid(
        points.map(({ time }) => time),
        policy.rows,
        { now: options.now, nowMax: options.nowMax ?? Number.POSITIVE_INFINITY },
      );
    case "keep":
      return judgeCalendar(
        points.map((point) => ({ time: point.time, isCounted: !isHeld(point, options.holdNow) })),
        policy.counts,
        calendar,
      );
  }
}

function judgeOnce(
  points: readonly RetainedPoint[],
  policy: RetentionPolicy,
  options: RetentionOptions,
  calendar: Calendar | undefined,
): Judgement[] {
  return judgePolicy(points, policy, options, calendar).map((verdict, index): Judgement => {
    const point = points[index];
    const rule = point === undefined ? undefined : protection(point, index === points.length - 1, options.holdNow);
    return rule === undefined ? verdict : { keep: true, rule };
  });
}

/**
 * One verdict a point, ascending by sequence number. Never dropped: the newest point, a point in use, a point held, and one that is
 * spared. What is kept is kept again when it is judged again with the same options, unless
 * labels contradict each other so much that they do not settle in a few passes.
 *
 * Throws `usage` for a time zone that is not known. Cost: n log n.
 */
export function decideRetention(
  points: readonly RetainedPoint[],
  policy: RetentionPolicy,
  options: RetentionOptions,
): readonly Verdict[] {
  const sorted = [...points].sort((a, b) => a.point - b.point);
  for (const [index, { point, time }] of sorted.entries()) {
    invariant(Number.isSafeInteger(time), "a point's time is a whole number of milliseconds");
    invariant(index === 0 || sorted[index - 1]?.point !== point, "a point is given once");
  }
  const usesCalendar = policy.kind === "keep" && Object.keys(policy.counts).some((option) => option !== "last");
  const calendar = usesCalendar ? createCalendar(options.timeZone) : undefined;
  const verdicts = new Map<number, Judgement>();
  // Dropping one point can take the doubt from the time of another; judged until that has settled.
  let left = sorted;
  for (let pass = 0; pass < PASSES_MAX && left.length > 0; pass++) {
    const judged = judgeOnce(left, policy, options, calendar);
    const kept: RetainedPoint[] = [];
    for (const [index, point] of left.entries()) {
      const verdict = judged[index];
      invariant(verdict !== undefined, "each point has a verdict");
      verdicts.set(point.point, verdict);
      if (verdict.keep) kept.push(point);
    }
    if (kept.length === left.length) break;
    left = kept;
  }
  return sorted.map(({ point }) => {
    const verdict = verdicts.get(point);
    invariant(verdict !== undefined, "each point has a verdict");
    return { point, keep: verdict.keep, rule: verdict.rule };
  });
}
