import { systemClock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { CutState, Store, StoredPoints, Verdict } from "../replica/store.ts";
import type { Point } from "../replica/store.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { textTable } from "./text-table.ts";
import { formatSize, formatTime } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate points --store DIR DISK [--json]

Lists the recovery points of a disk, the newest last: number, time (of the sender's clock), consistency ("crash": as after
pulling the plug, "application": an application agreed to it, "none": of an image that changed while it was read), label,
bytes of its undo log, who holds it, and the rule of the retention policy that keeps it. Runs beside a live recv.

${storeHelp}

Example:
  replicate points --store /srv/replicas web
`;

export const pointsVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "points",
      flags: storeFlags,
      options: storeOptions,
      positionals: ["DISK"],
    });
    const disk = parseDisk(given.positionals[0] ?? "", "points");
    const json = given.flag("json");
    const { store } = await openStoreOf(given, "points", io);
    const found = await store.points(disk);
    const { verdicts, trouble } = await judge(store, disk);
    await store.close();
    const rows = found.points.map((point) => ({ point, verdict: verdicts.get(point.point) }));
    const now = systemClock.now();
    if (json) {
      for (const { point, verdict } of rows) {
        io.out(`${JSON.stringify(pointEvent(point, { found, verdict, now }))}\n`);
      }
      for (const { point, message } of found.unreadable) io.out(`${JSON.stringify({ point, trouble: message })}\n`);
    } else {
      io.out(rows.length === 0 ? "no points yet\n" : pointsText(rows, found, now));
      for (const { point, message } of found.unreadable) {
        io.out(`point ${point} cannot be read, nor any before it: ${message}\n`);
      }
      if (found.openLog && rows.length > 0) io.out("a delta is under way, or waits for its sender\n");
    }
    if (trouble !== undefined) {
      io.out(json ? `${JSON.stringify({ trouble })}\n` : `nothing is removed: ${trouble}\n`);
    }
    return found.unreadable.length > 0 || trouble !== undefined ? exitCodes.failed : exitCodes.done;
  },
};

/** What the policy says of each point. One that cannot be read must not hide the points. */
async function judge(
  store: Store,
  disk: string,
): Promise<{ readonly verdicts: ReadonlyMap<number, Verdict>; readonly trouble: string | undefined }> {
  try {
    const verdicts = await store.prune(disk, { dryRun: true });
    return { verdicts: new Map(verdicts.map((verdict) => [verdict.point, verdict])), trouble: undefined };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return { verdicts: new Map(), trouble: error.message };
  }
}

interface Row {
  readonly point: Point;
  readonly verdict: Verdict | undefined;
}

/** A hold that has ended counts as none. */
export function holdOf({ hold }: Point, now: number): Point["hold"] {
  return hold === undefined || (hold.until !== undefined && hold.until <= now) ? undefined : hold;
}

function pointEvent(
  point: Point,
  {
    found,
    verdict,
    now,
  }: { readonly found: StoredPoints; readonly verdict: Verdict | undefined; readonly now: number },
): object {
  const hold = holdOf(point, now);
  return {
    point: point.point,
    time: point.time,
    label: point.label ?? null,
    consistency: point.consistency,
    root: point.root,
    sizeBytes: point.sizeBytes,
    storedBytes: found.storedBytes.get(point.point) ?? 0,
    held: hold === undefined ? null : { owner: hold.owner, until: hold.until ?? null },
    keptBy: verdict?.keep === true ? verdict.rule : null,
    cut: point.cut?.id ?? null,
    cutComplete: found.cuts.get(point.point)?.complete ?? null,
  };
}

function pointsText(rows: readonly Row[], found: StoredPoints, now: number): string {
  const withCuts = <T>(cell: T): T[] => (found.cuts.size > 0 ? [cell] : []);
  const table = [
    ["POINT", "TIME", "CONSISTENCY", ...withCuts("CUT WITH"), "LABEL", "SIZE", "STORED", "HELD", "KEPT BY"],
  ];
  for (const { point, verdict } of rows) {
    const hold = holdOf(point, now);
    table.push([
      String(point.point),
      formatTime(point.time),
      point.consistency,
      ...withCuts(cutText(found.cuts.get(point.point))),
      point.label ?? "-",
      formatSize(point.sizeBytes),
      formatSize(found.storedBytes.get(point.point) ?? 0),
      hold === undefined ? "-" : heldText(hold),
      verdict === undefined ? "-" : verdict.keep ? verdict.rule : `nothing: ${verdict.rule}`,
    ]);
  }
  return textTable(table);
}

/** The disks a point was cut together with. */
function cutText(cut: CutState | undefined): string {
  if (cut === undefined) return "-";
  const others = cut.others.map(({ disk, point }) => `${disk}@${point}`).join(" ");
  return cut.complete ? others : `INCOMPLETE: no point of ${cut.missing.join(" ")}`;
}

export function heldText(hold: NonNullable<Point["hold"]>): string {
  return hold.until === undefined ? hold.owner : `${hold.owner} until ${formatTime(hold.until)}`;
}
