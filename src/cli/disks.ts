import { systemClock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { DiskSummary, Store } from "../replica/store.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { textTable } from "./text-table.ts";
import { formatDuration, formatSize, formatTime } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate disks --store DIR [--json]

Lists what is protected: size, space the replica takes, number of recovery points and bytes of their undo logs, newest point
and its age, owner, state, and where an adopted image lies. Runs beside a live recv.

${storeHelp}

Example:
  replicate disks --store /srv/replicas
`;

export const disksVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, { verb: "disks", flags: storeFlags, options: storeOptions, positionals: [] });
    const json = given.flag("json");
    const { store } = await openStoreOf(given, "disks", io);
    const rows: string[][] = [["DISK", "SIZE", "TAKEN", "POINTS", "LOGS", "NEWEST", "TIME", "AGE", "OWNER", "STATE"]];
    let trouble = false;
    for (const name of await store.disks()) {
      const summary = await summaryOf(store, name);
      if (summary === undefined) continue;
      if (summary instanceof ReplicationError) {
        trouble = true;
        if (json) io.out(`${JSON.stringify({ disk: name, state: "damaged", trouble: summary.message })}\n`);
        else rows.push([name, ...new Array<string>(8).fill("?"), `damaged: ${summary.message}`]);
        continue;
      }
      if (json) io.out(`${JSON.stringify(diskEvent(summary))}\n`);
      else rows.push(diskRow(summary, systemClock.now()));
    }
    await store.close();
    if (!json) io.out(rows.length === 1 ? "no disks yet\n" : textTable(rows));
    return trouble ? exitCodes.failed : exitCodes.done;
  },
};

interface DiskFacts extends DiskSummary {
  readonly points: number;
  /** Of all undo logs, the open one included. */
  readonly undoBytes: number;
}

async function summaryOf(store: Store, name: string): Promise<DiskFacts | ReplicationError | undefined> {
  try {
    const summary = await store.summary(name);
    if (summary === undefined) return undefined;
    const { points, unreadable, storedBytes } = await store.points(name);
    let undoBytes = 0;
    for (const bytes of storedBytes.values()) undoBytes += bytes;
    return { ...summary, points: points.length + unreadable.length, undoBytes };
  } catch (error) {
    // One damaged disk must not hide the others.
    if (error instanceof ReplicationError) return error;
    throw error;
  }
}

function diskEvent(summary: DiskFacts): object {
  const { record, newest } = summary;
  return {
    disk: record.name,
    sizeBytes: record.sizeBytes,
    allocatedBytes: summary.allocatedBytes,
    blockBytes: record.blockBytes,
    digest: record.digestKind,
    latest: newest?.point ?? null,
    latestTime: newest?.time ?? null,
    root: newest?.root ?? null,
    points: summary.points,
    undoBytes: summary.undoBytes,
    owner: record.owner,
    image: record.image ?? null,
    state: summary.state,
    holder: summary.holder ?? null,
    trouble: summary.trouble ?? null,
  };
}

function diskRow(summary: DiskFacts, now: number): string[] {
  const { record, newest } = summary;
  const where = record.image === undefined ? "" : `, adopted at ${record.image}`;
  const state = (summary.trouble === undefined ? summary.state : `${summary.state}: ${summary.trouble}`) + where;
  return [
    record.name,
    formatSize(record.sizeBytes),
    formatSize(summary.allocatedBytes),
    String(summary.points),
    formatSize(summary.undoBytes),
    newest === undefined ? "none" : String(newest.point),
    newest === undefined ? "-" : formatTime(newest.time),
    newest === undefined ? "-" : formatDuration(Math.max(0, (now - newest.time) / 1000)),
    record.owner,
    state,
  ];
}
