/** `last=N,hourly=N,...`: the newest point of each of the newest N calendar periods that have one. */
import { ReplicationError } from "../../base/errors.ts";
import { type KeepOption, keepOptions } from "./policy.ts";
import { believeTimes } from "./times.ts";
import { type Judgement, writeTime } from "./words.ts";

type Period = Exclude<KeepOption, "last">;

const MINUTE = 60_000;
const DAY = 86_400_000;
/** Labels outside count as the first or last day; every year inside has four to six digits and no era. */
const TIME_MIN = Date.UTC(1000, 0, 2);
const TIME_MAX = 8.64e15 - 2 * DAY;

interface LocalTime {
  /** What the wall clock shows, as if it showed UTC. */
  readonly wall: number;
  readonly offset: number;
}

/** Calendar periods of one time zone. */
export interface Calendar {
  /**
   * Name of the period `time` lies in: `2026-10-25T02 (+01:00)`, `2026-10-25 (Europe/Rome)`, `2026-W43 (...)`, `2026-10 (...)`, `2026 (...)`.
   * The hour carries the offset from UTC, so that the hour which comes twice when summer time ends is two hours.
   */
  period(kind: Period, time: number): string;
}

function weekOf(wall: number): string {
  // A week belongs to the year of its Thursday.
  const day = Math.floor(wall / DAY);
  const thursday = new Date((day + 3 - ((((day + 3) % 7) + 7) % 7)) * DAY);
  const year = thursday.getUTCFullYear();
  const week = Math.floor((thursday.getTime() - Date.UTC(year, 0, 1)) / (7 * DAY)) + 1;
  return `${year}-W${String(week).padStart(2, "0")}`;
}

function writeOffset(offset: number): string {
  const minutes = Math.round(Math.abs(offset) / MINUTE);
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${offset < 0 ? "-" : "+"}${two(Math.floor(minutes / 60))}:${two(minutes % 60)}`;
}

function zoneFormat(timeZone: string): Intl.DateTimeFormat {
  try {
    return new Intl.DateTimeFormat("en-US", {
      timeZone,
      calendar: "gregory",
      numberingSystem: "latn",
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
    });
  } catch (cause) {
    throw new ReplicationError(
      "usage",
      `${JSON.stringify(timeZone)} is no time zone; write one like Europe/Rome or UTC`,
      {
        cause,
      },
    );
  }
}

/** Throws `usage` for a zone that is not known. */
export function createCalendar(timeZone: string): Calendar {
  const format = zoneFormat(timeZone);
  const known = new Map<number, LocalTime>();
  const localTime = (time: number): LocalTime => {
    // Offsets are whole seconds, and change on whole seconds.
    const seconds = Math.floor(Math.min(TIME_MAX, Math.max(TIME_MIN, time)) / 1000) * 1000;
    const found = known.get(seconds);
    if (found !== undefined) return found;
    const parts = new Map<string, number>();
    for (const { type, value } of format.formatToParts(seconds)) parts.set(type, Number(value));
    const part = (type: Intl.DateTimeFormatPartTypes): number => parts.get(type) ?? 0;
    const day = Date.UTC(part("year"), part("month") - 1, part("day"));
    const wall = day + part("hour") * 60 * MINUTE + part("minute") * MINUTE + part("second") * 1000;
    const local = { wall, offset: wall - seconds };
    known.set(seconds, local);
    return local;
  };
  return {
    period(kind, time) {
      const { wall, offset } = localTime(time);
      const written = new Date(wall).toISOString();
      const date = written.slice(0, written.indexOf("T"));
      switch (kind) {
        case "hourly":
          return `${date}${written.slice(date.length, date.length + 3)} (${writeOffset(offset)})`;
        case "daily":
          return `${date} (${timeZone})`;
        case "weekly":
          return `${weekOf(wall)} (${timeZone})`;
        case "monthly":
          return `${date.slice(0, -3)} (${timeZone})`;
        case "yearly":
          return `${date.slice(0, -6)} (${timeZone})`;
      }
    },
  };
}

/** What a calendar policy has to know of a point. */
export interface CountedPoint {
  readonly time: number;
  /** False: held. It stays anyway and takes no place. */
  readonly isCounted: boolean;
}

/**
 * One verdict a point. Labels count as they are, even in doubt: periods are only names, so a point with a wrong time takes a place of its
 * own and moves no other point.
 * @param points by ascending sequence number: that order, not the time, says which of two is newer.
 */
export function judgeCalendar(
  points: readonly CountedPoint[],
  counts: Readonly<Partial<Record<KeepOption, number>>>,
  calendar: Calendar | undefined,
): Judgement[] {
  const verdicts: (Judgement | undefined)[] = points.map(() => undefined);
  for (const option of keepOptions) {
    const count = counts[option] ?? 0;
    if (count === 0) continue;
    const nameOf = (index: number): string =>
      option === "last" || calendar === undefined ? String(index) : calendar.period(option, points[index]?.time ?? 0);
    // Periods in which a finer option keeps a point are not counted again.
    const covered = new Set<string>();
    for (const [index, verdict] of verdicts.entries()) if (verdict?.keep === true) covered.add(nameOf(index));
    const taken = new Set<string>();
    for (let index = points.length - 1; index >= 0; index--) {
      if (verdicts[index] !== undefined || points[index]?.isCounted !== true) continue;
      const name = nameOf(index);
      if (covered.has(name)) continue;
      const words = option === "last" ? `last, ${taken.size + 1} of ${count}` : `${option} ${name}`;
      if (taken.has(name)) {
        // Decided: a coarser option must not bring it back.
        verdicts[index] = { keep: false, rule: `a newer point stands for ${words}` };
        continue;
      }
      if (taken.size >= count) break;
      taken.add(name);
      verdicts[index] = { keep: true, rule: words };
    }
  }
  const { isTrusted } = believeTimes(points.map(({ time }) => time));
  return verdicts.map((verdict, index) => {
    const doubt = isTrusted[index] === true ? "" : ` (its time ${writeTime(points[index]?.time ?? 0)} is in doubt)`;
    return { keep: verdict?.keep ?? false, rule: `${verdict?.rule ?? "no rule keeps it"}${doubt}` };
  });
}
