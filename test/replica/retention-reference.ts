/**
 * Retention written a second time, straight from its rules and without regard to speed. It shares nothing with the product but the form of
 * a policy.
 */
import type { GridRow, KeepOption } from "../../src/replica/retention/policy.ts";

export interface PlainPoint {
  readonly point: number;
  readonly time: number;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** Indexes of a longest never falling selection: of several the one that ends lowest and goes back to the highest label each time. */
function longestSelection(labels: readonly number[]): number[] {
  const lengths: number[] = [];
  for (const [index, label] of labels.entries()) {
    const shorter = lengths.filter((_, earlier) => (labels[earlier] as number) <= label);
    lengths[index] = 1 + Math.max(0, ...shorter);
  }
  const chosen: number[] = [];
  let wanted = Math.max(0, ...lengths);
  let end = labels.length;
  let most = Number.POSITIVE_INFINITY;
  while (wanted > 0) {
    const candidates = [...labels.keys()].filter(
      (i) => i < end && lengths[i] === wanted && (labels[i] as number) <= most,
    );
    candidates.sort((a, b) => (labels[a] as number) - (labels[b] as number));
    end = (chosen.length === 0 ? candidates[0] : candidates.at(-1)) as number;
    most = labels[end] as number;
    chosen.unshift(end);
    wanted--;
  }
  return chosen;
}

function gridOnce(points: readonly PlainPoint[], rows: readonly GridRow[]): PlainPoint[] {
  const labels = points.map(({ time }) => time);
  const trusted = longestSelection(labels);
  const times = labels.map((label, index) => {
    if (trusted.includes(index)) return label;
    const before = trusted.filter((other) => other < index).at(-1);
    const after = trusted.find((other) => other > index);
    if (after === undefined) return labels[before as number] as number;
    const run = labels.slice(index, after);
    const steps = sum(run.map((own, i) => (i === 0 ? 0 : Math.max(0, own - (run[i - 1] as number)))));
    const borrowed = (labels[after] as number) - steps;
    return before === undefined ? borrowed : Math.max(borrowed, labels[before] as number);
  });
  const whole = sum(rows.map((row) => row.count * row.lengthMillis));
  const leap = trusted.find((index, before) => {
    const next = trusted[before + 1];
    if (next === undefined || (labels[next] as number) - (labels[index] as number) <= whole) return false;
    return trusted.length - (before + 1) <= before + 1;
  });
  const now = Math.min(
    labels.at(-1) as number,
    leap === undefined ? Number.POSITIVE_INFINITY : (labels[leap] as number),
  );

  const kept = new Set<number>([points.length - 1]);
  if (leap !== undefined) kept.add(leap);
  for (const [index, time] of times.entries()) {
    if (time > now || (time <= now - whole && !trusted.includes(index))) kept.add(index);
  }
  let newer = now;
  for (const row of rows) {
    for (let bucket = 0; bucket < row.count; bucket++) {
      const older = newer - row.lengthMillis;
      const inside = [...times.keys()].filter((i) => (times[i] as number) > older && (times[i] as number) <= newer);
      for (const own of [true, false]) {
        const inOrder = inside.filter((i) => trusted.includes(i) === own);
        const stands = row.keep === "all" ? inOrder : inOrder.slice(0, row.keep);
        for (const index of own ? inOrder.slice(stands.length) : []) {
          const last = times[stands.at(-1) as number] as number;
          const next = trusted.find((other) => other > index) ?? points.length - 1;
          const closes = (times[index] as number) - last >= (row.lengthMillis * 3) / 4;
          if (closes && (times[next] as number) - last > row.lengthMillis) stands.push(index);
        }
        for (const index of stands) kept.add(index);
      }
      newer = older;
    }
  }
  return points.filter((_, index) => kept.has(index));
}

/** Sequence numbers that stay. */
export function referenceGrid(points: readonly PlainPoint[], rows: readonly GridRow[]): number[] {
  let left = [...points];
  for (;;) {
    const next = left.length === 0 ? left : gridOnce(left, rows);
    if (next.length === left.length) return left.map(({ point }) => point);
    left = next;
  }
}

const formats = new Map<string, Intl.DateTimeFormat>();
/** `2026-05-06 12:00:00`: the locale that writes dates as ISO does. */
function localText(millis: number, timeZone: string): string {
  const format =
    formats.get(timeZone) ?? new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short", timeStyle: "medium" });
  formats.set(timeZone, format);
  return format.format(millis);
}
const zoneNames = new Map<string, Intl.DateTimeFormat>();
/** `GMT+01:00` */
function zoneText(millis: number, timeZone: string): string {
  const format =
    zoneNames.get(timeZone) ?? new Intl.DateTimeFormat("en", { timeZone, hour: "2-digit", timeZoneName: "longOffset" });
  zoneNames.set(timeZone, format);
  return format.format(millis).slice(-9);
}

function periodOf(option: KeepOption, point: PlainPoint, timeZone: string): string {
  const local = localText(point.time, timeZone);
  switch (option) {
    case "last":
      return String(point.point);
    case "hourly":
      return local.slice(0, 13) + zoneText(point.time, timeZone);
    case "daily":
      return local.slice(0, 10);
    case "weekly": {
      // The Monday on or before the local date.
      let monday = Date.parse(`${local.slice(0, 10)}T12:00:00Z`);
      while (new Date(monday).getUTCDay() !== 1) monday -= 86_400_000;
      return localText(monday, "UTC").slice(0, 10);
    }
    case "monthly":
      return local.slice(0, 7);
    case "yearly":
      return local.slice(0, 4);
  }
}

/** Sequence numbers that stay; the newest is not added. `held` points are neither kept nor counted here. */
export function referenceKeep(
  points: readonly PlainPoint[],
  counts: Readonly<Partial<Record<KeepOption, number>>>,
  timeZone: string,
  held: ReadonlySet<number> = new Set(),
): number[] {
  let open = points.filter(({ point }) => !held.has(point)).toReversed();
  const kept: PlainPoint[] = [];
  for (const option of ["last", "hourly", "daily", "weekly", "monthly", "yearly"] as const) {
    const covered = new Set(kept.map((point) => periodOf(option, point, timeZone)));
    const candidates = open.filter((point) => !covered.has(periodOf(option, point, timeZone)));
    const periods = [...new Set(candidates.map((point) => periodOf(option, point, timeZone)))];
    const chosen = new Set(periods.slice(0, counts[option] ?? 0));
    const beyond = candidates.findIndex((point) => periods.indexOf(periodOf(option, point, timeZone)) >= chosen.size);
    const reached = beyond === -1 ? candidates : candidates.slice(0, beyond);
    for (const period of chosen) {
      kept.push(reached.find((point) => periodOf(option, point, timeZone) === period) as PlainPoint);
    }
    // Points seen beside the newest of their period are decided.
    open = open.filter((point) => !reached.includes(point));
  }
  return kept.map(({ point }) => point).toSorted((a, b) => a - b);
}
