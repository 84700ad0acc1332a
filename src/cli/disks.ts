import { hostname } from "node:os";
import { systemClock } from "../base/clock.ts";
import { systemRandom } from "../base/random.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import { type DiskSummary, openStore, ReplicationError } from "../index.ts";
import { needed, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog } from "./log.ts";
import { formatDuration, formatSize, formatTime } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate disks --store DIR [--json]

Lists what is protected: size, newest point and its age, space taken, owner, state. Runs beside a live recv.

Example:
  replicate disks --store /srv/replicas
`;

export const disksVerb: Verb = {
  name: "disks",
  summary: "list the disks of a store",
  help,
  async run(args, io) {
    const given = parseArguments(args, { verb: "disks", flags: ["json"], options: ["store"], positionals: [] });
    const json = given.flag("json");
    const store = await openStore({
      path: needed(given.text("store"), "disks", "--store DIR"),
      storage: createNodeStorage(),
      clock: systemClock,
      random: systemRandom,
      log: createLog(io, { level: "warn", json }),
      host: hostname(),
    });
    const rows: string[][] = [["DISK", "SIZE", "TAKEN", "POINT", "TIME", "AGE", "OWNER", "STATE"]];
    let trouble = false;
    for (const name of await store.disks()) {
      const summary = await summaryOf(() => store.summary(name));
      if (summary === undefined) continue;
      if (summary instanceof ReplicationError) {
        trouble = true;
        if (json) io.out(`${JSON.stringify({ disk: name, state: "damaged", trouble: summary.message })}\n`);
        else rows.push([name, "?", "?", "?", "?", "?", "?", `damaged: ${summary.message}`]);
        continue;
      }
      if (json) io.out(`${JSON.stringify(diskEvent(summary))}\n`);
      else rows.push(diskRow(summary, systemClock.now()));
    }
    await store.close();
    if (!json) io.out(rows.length === 1 ? "no disks yet\n" : table(rows));
    return trouble ? exitCodes.failed : exitCodes.done;
  },
};

async function summaryOf(
  read: () => Promise<DiskSummary | undefined>,
): Promise<DiskSummary | ReplicationError | undefined> {
  try {
    return await read();
  } catch (error) {
    // One damaged disk must not hide the others.
    if (error instanceof ReplicationError) return error;
    throw error;
  }
}

function diskEvent(summary: DiskSummary): object {
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
    points: newest === undefined ? 0 : 1,
    owner: record.owner,
    state: summary.state,
    holder: summary.holder ?? null,
    trouble: summary.trouble ?? null,
  };
}

function diskRow(summary: DiskSummary, now: number): string[] {
  const { record, newest } = summary;
  const state = summary.trouble === undefined ? summary.state : `${summary.state}: ${summary.trouble}`;
  return [
    record.name,
    formatSize(record.sizeBytes),
    formatSize(summary.allocatedBytes),
    newest === undefined ? "none" : String(newest.point),
    newest === undefined ? "-" : formatTime(newest.time),
    newest === undefined ? "-" : formatDuration(Math.max(0, (now - newest.time) / 1000)),
    record.owner,
    state,
  ];
}

function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_cell, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const lines = rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
  return `${lines.join("\n")}\n`;
}
