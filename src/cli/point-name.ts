/** How people name a recovery point: `DISK@POINT`. */
import { ReplicationError } from "../base/errors.ts";
import type { CutState, Point, Store } from "../replica/store.ts";
import { checkDiskName } from "../base/disk-name.ts";

export const pointHelp = `POINT is a number, "latest" (the default), "latest-app" (the newest that an application agreed to), a label (the newest point
that has it), or a time such as 2026-11-25T05:00Z or 2026-11-25 (UTC unless it names an offset): the newest point of that time
or before.`;

/** `DISK` or `DISK@POINT`; the point is undefined when it is not named. Throws `usage`. */
export function parseDiskPoint(
  text: string,
  verb: string,
): { readonly disk: string; readonly point: string | undefined } {
  const at = text.indexOf("@");
  const disk = at < 0 ? text : text.slice(0, at);
  const point = at < 0 ? undefined : text.slice(at + 1);
  parseDisk(disk, verb);
  if (point === "") throw new ReplicationError("usage", `${verb}: ${JSON.stringify(text)} names no point behind the @`);
  return { disk, point };
}

/** `DISK`. Throws `usage`. */
export function parseDisk(text: string, verb: string): string {
  try {
    checkDiskName(text);
    return text;
  } catch (error) {
    throw new ReplicationError("usage", `${verb}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** What can be chosen from. */
export interface Choice {
  readonly disk: string;
  /** Ascending. */
  readonly points: readonly Point[];
  /** Points whose records cannot be read. */
  readonly unreadable: readonly { readonly point: number; readonly message: string }[];
  /** Of points that other disks have a part of; one that is not complete is only chosen by its number. */
  readonly cuts?: ReadonlyMap<number, CutState> | undefined;
}

/** The number of the point a text names, which need not exist when the text is a number. Throws `point-not-found`, `store-damaged`. */
export function choosePoint(choice: Choice, text = "latest"): number {
  const { disk, unreadable, cuts } = choice;
  if (/^\d+$/.test(text)) return Number(text);
  const points = choice.points.filter(({ point }) => cuts?.get(point)?.complete !== false);
  if (points.length === 0 && choice.points.length > 0) throw onlyPieces(choice);
  if (text === "latest") {
    const newest = points.at(-1);
    // An older point must not pass for the newest one.
    const hidden = unreadable.findLast(({ point }) => point > (newest?.point ?? 0));
    if (hidden !== undefined) throw new ReplicationError("store-damaged", `disk ${disk}: ${hidden.message}`);
    if (newest === undefined) throw new ReplicationError("point-not-found", `disk ${disk} has no points yet`);
    return newest.point;
  }
  const found =
    text === "latest-app"
      ? points.findLast(({ consistency }) => consistency === "application")
      : (points.findLast(({ label }) => label === text) ?? newestBy(points, parseMoment(text)));
  if (found !== undefined) return found.point;
  const what =
    text === "latest-app"
      ? "no point that an application agreed to"
      : parseMoment(text) === undefined
        ? `no point with the label ${JSON.stringify(text)}, which is no number and no time either`
        : `no point of ${text} or before`;
  throw new ReplicationError("point-not-found", `disk ${disk} has ${what}; replicate points lists what there is`);
}

function onlyPieces({ disk, points, cuts }: Choice): ReplicationError {
  const missing = cuts?.get(points.at(-1)?.point ?? 0)?.missing.join(", ") ?? "";
  return new ReplicationError(
    "point-not-found",
    `disk ${disk} has no point of which all disks that were cut together have theirs (missing now: ${missing}); name a point by its number to take it alone`,
  );
}

/** Times are labels and may contradict the order: the latest time counts, and among equal ones the newest point. */
function newestBy(points: readonly Point[], moment: number | undefined): Point | undefined {
  if (moment === undefined) return undefined;
  let best: Point | undefined;
  for (const point of points) if (point.time <= moment && point.time >= (best?.time ?? point.time)) best = point;
  return best;
}

const momentShape = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3}))?)?(Z|[+-]\d\d:?\d\d)?)?$/;

/**
 * Milliseconds since 1970, or undefined when the text is no time. Written without fractions, as lists of points show it, a time lasts to
 * the end of its second.
 */
export function parseMoment(text: string): number | undefined {
  const match = momentShape.exec(text);
  if (match === null) return undefined;
  const [, year, month, day, hour = "0", minute = "0", second = "0", fraction, zone = "Z"] = match;
  const midnight = Date.UTC(Number(year), Number(month) - 1, Number(day));
  const date = new Date(midnight);
  if (date.getUTCMonth() !== Number(month) - 1 || date.getUTCDate() !== Number(day)) return undefined;
  if (Number(hour) > 23 || Number(minute) > 59 || Number(second) > 59) return undefined;
  const millis = fraction === undefined ? 999 : Number(fraction.padEnd(3, "0"));
  const offset = zone === "Z" ? 0 : minutesOf(zone);
  return midnight + ((Number(hour) * 60 + Number(minute) - offset) * 60 + Number(second)) * 1000 + millis;
}

function minutesOf(zone: string): number {
  const digits = zone.replace(":", "");
  const minutes = Number(digits.slice(1, 3)) * 60 + Number(digits.slice(3));
  return digits.startsWith("-") ? -minutes : minutes;
}

/** A point that is chosen may be removed before it is locked; then another one is chosen. */
const choicesMax = 5;

/** Runs `use` with the number of the point a text names. */
export async function withChosenPoint<T>(
  store: Store,
  disk: string,
  text: string | undefined,
  use: (point: number) => Promise<T>,
): Promise<T> {
  for (let choices = 1; ; choices++) {
    const point = choosePoint({ disk, ...(await store.points(disk)) }, text);
    try {
      return await use(point);
    } catch (error) {
      const gone = error instanceof ReplicationError && error.code === "point-not-found";
      if (!gone || /^\d+$/.test(text ?? "") || choices === choicesMax) throw error;
    }
  }
}
