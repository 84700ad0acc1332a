/**
 * `grid=...`: buckets of age laid back to back from now; in each the oldest points stay, so that they grow into the next one.
 *
 * Buckets move with time and points never come at even distances: two that lie a little less than a bucket apart meet in one sooner or
 * later, and were the younger to go each time, 24 hours would thin out to some 15 with holes of three and four. So a point also stays that
 * closes such a hole: three quarters of a bucket or more behind the one that stands, and the next one more than a bucket behind that.
 */
import { formatRow, type GridRow } from "./policy.ts";
import { believeTimes, unconfirmedLeap } from "./times.ts";
import { type Judgement, writeTime } from "./words.ts";

const leapRule = "last point before a leap in time that more points must confirm";

export interface GridClock {
  /** What ages are counted from. Undefined: the newest label, as far as it is believed. */
  readonly now: number | undefined;
  /** The newest label counts at most as this. */
  readonly nowMax: number;
}

interface Bucket {
  readonly row: GridRow;
  /** In its row, from 1. */
  readonly number: number;
  /** In the grid, from 0. */
  readonly index: number;
}

/** What stays of a bucket so far. */
interface Filling {
  readonly count: number;
  /** Time of the last of them. */
  readonly last: number;
}

/** How far behind the point that stands, in lengths of a bucket, another one may close a hole. Nearer ones fill the same place. */
const CLOSING_SHARE = 0.75;

/** For each point the time of the next trusted one by sequence; of the last, its own. */
function followingTimes(times: readonly number[], isTrusted: readonly boolean[]): number[] {
  const following = [...times];
  let next = times.at(-1) ?? 0;
  for (let index = times.length - 1; index >= 0; index--) {
    following[index] = next;
    if (isTrusted[index] === true) next = times[index] ?? 0;
  }
  return following;
}

/** A bucket reaches from its younger edge, included, to its older edge, excluded. Undefined: older than every bucket. */
function bucketOf(rows: readonly GridRow[], age: number): Bucket | undefined {
  let start = 0;
  let index = 0;
  for (const row of rows) {
    const number = Math.floor((age - start) / row.lengthMillis);
    if (number < row.count) return { row, number: number + 1, index: index + number };
    start += row.count * row.lengthMillis;
    index += row.count;
  }
  return undefined;
}

/**
 * One verdict a point.
 * @param labels times of the points by ascending sequence number, at least one.
 */
export function judgeGrid(labels: readonly number[], rows: readonly GridRow[], clock: GridClock): Judgement[] {
  const { isTrusted, times } = believeTimes(labels);
  const longest = rows.reduce((sum, row) => sum + row.count * row.lengthMillis, 0);
  const leap = clock.now === undefined ? unconfirmedLeap(labels, isTrusted, longest) : undefined;
  // A newest label that went back is taken as it is: then everything newer than it stays, which costs space and loses nothing.
  const newest = Math.min(
    labels.at(-1) ?? 0,
    clock.nowMax,
    leap === undefined ? Number.POSITIVE_INFINITY : (labels[leap] ?? 0),
  );
  const now = clock.now ?? newest;

  // Points in doubt are thinned among themselves: a borrowed time must neither take the place of a point nor cost one its place.
  const filled = { trusted: new Map<number, Filling>(), doubted: new Map<number, Filling>() };
  const following = followingTimes(times, isTrusted);
  const judge = (index: number): Judgement => {
    const time = times[index] ?? 0;
    const label = labels[index] ?? 0;
    const trusted = isTrusted[index] === true;
    const doubt = trusted ? "" : ` (its time ${writeTime(label)} is in doubt, taken as ${writeTime(time)})`;
    if (time > now) return { keep: true, rule: `later than now, ${writeTime(now)}${doubt}` };
    const bucket = bucketOf(rows, now - time);
    if (bucket === undefined) {
      // Who put it in doubt goes first; then its time can be judged by what is left.
      if (!trusted) return { keep: true, rule: `no bucket for it${doubt}` };
      return { keep: index === leap, rule: index === leap ? leapRule : `older than every bucket, ${writeTime(label)}` };
    }
    const place = `grid ${formatRow(bucket.row)}, bucket ${bucket.number}`;
    const fillings = trusted ? filled.trusted : filled.doubted;
    const filling = fillings.get(bucket.index);
    const count = filling?.count ?? 0;
    const { keep, lengthMillis } = bucket.row;
    if (keep === "all" || filling === undefined || count < keep) {
      fillings.set(bucket.index, { count: count + 1, last: time });
      return { keep: true, rule: `${place}${doubt}` };
    }
    const end = (following[index] ?? 0) - filling.last;
    if (trusted && time - filling.last >= CLOSING_SHARE * lengthMillis && end > lengthMillis) {
      fillings.set(bucket.index, { count: count + 1, last: time });
      return { keep: true, rule: `${place}, closes a hole` };
    }
    // The grid counts from this point: were it to go, every edge would move.
    if (index === leap) return { keep: true, rule: leapRule };
    return { keep: false, rule: `another point is older in ${place}${doubt}` };
  };
  return [...labels.keys()].map(judge);
}
