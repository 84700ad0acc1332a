import { ReplicationError } from "../base/errors.ts";
import type { Store } from "../replica/store.ts";
import { parsePolicy } from "../replica/retention/policy.ts";
import type { Verdict } from "../replica/store.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { textTable } from "./text-table.ts";
import { formatTime } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate prune --store DIR [DISK] [--keep POLICY] [--dry-run] [--explain] [options]

Removes the recovery points that the retention policy does not keep, of one disk or of all, beside a live recv, which does so
by itself after commits. The newest point, points in use and held points always stay. Removing a point never changes
another one.

  --keep POLICY          this policy, this once; it is not stored (recv --keep and replicate keep store one). Written as
                         last=N,hourly=N,daily=N,weekly=N,monthly=N,yearly=N or grid=1x1h(keep=all)|24x1h|14x1d|8x7d, or all
  --dry-run              remove nothing, say what would be; whether a point is in use is not looked at
  --explain              say of each point which rule decided
${storeHelp}

Example:
  replicate prune --store /srv/replicas web --keep last=3,daily=14 --dry-run --explain
`;

export const pruneVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "prune",
      flags: ["dry-run", "explain", ...storeFlags],
      options: ["keep", ...storeOptions],
      positionals: [],
      optional: 1,
    });
    const [name] = given.positionals;
    if (name !== undefined) parseDisk(name, "prune");
    const keep = given.text("keep");
    if (keep !== undefined) parsePolicy(keep);
    const options = { json: given.flag("json"), explain: given.flag("explain"), dryRun: given.flag("dry-run") };
    const { store } = await openStoreOf(given, "prune", io);
    let code: number = exitCodes.done;
    try {
      for (const disk of name === undefined ? await store.disks() : [name]) {
        try {
          await pruneDisk(store, disk, io, { ...options, keep });
        } catch (error) {
          // One disk that is busy or damaged must not keep the others from being pruned.
          if (name !== undefined || !(error instanceof ReplicationError) || error.code === "usage") throw error;
          code = exitCodes.failed;
          if (options.json)
            io.out(`${JSON.stringify({ event: "error", disk, code: error.code, message: error.message })}\n`);
          else io.err(`replicate: ${error.message}\n`);
        }
      }
    } finally {
      await store.close();
    }
    return code;
  },
};

interface PruneHow {
  readonly keep: string | undefined;
  readonly dryRun: boolean;
  readonly explain: boolean;
  readonly json: boolean;
}

async function pruneDisk(store: Store, disk: string, io: CliIo, how: PruneHow): Promise<void> {
  const before = await store.points(disk);
  const times = new Map(before.points.map(({ point, time }) => [point, time]));
  const verdicts = await store.prune(disk, { keep: how.keep, dryRun: how.dryRun });
  const after = how.dryRun ? before : await store.points(disk);
  const kept = verdicts.filter(({ keep }) => keep).length;
  const facts = { points: kept, removed: verdicts.length - kept };
  const bytes = { before: sum(before.storedBytes), after: sum(after.storedBytes) };
  if (how.json) {
    if (how.explain) {
      for (const { point, keep, rule } of verdicts) {
        io.out(`${JSON.stringify({ event: "verdict", disk, point, keep, rule })}\n`);
      }
    }
    const event = {
      event: "pruned",
      disk,
      dryRun: how.dryRun,
      ...facts,
      undoBytesBefore: bytes.before,
      undoBytes: bytes.after,
    };
    io.out(`${JSON.stringify(event)}\n`);
    return;
  }
  const would = how.dryRun ? "would be " : "";
  io.out(`${disk}: ${facts.points} of ${verdicts.length} points ${would}kept, ${facts.removed} ${would}removed\n`);
  if (how.explain && verdicts.length > 0) io.out(explainText(verdicts, times));
  if (before.unreadable.length > 0) io.out("points before a record that cannot be read are left alone\n");
}

function sum(bytes: ReadonlyMap<number, number>): number {
  let all = 0;
  for (const value of bytes.values()) all += value;
  return all;
}

function explainText(verdicts: readonly Verdict[], times: ReadonlyMap<number, number>): string {
  const rows = [["POINT", "TIME", "", "BY"]];
  for (const { point, keep, rule } of verdicts) {
    const time = times.get(point);
    rows.push([String(point), time === undefined ? "-" : formatTime(time), keep ? "kept" : "removed", rule]);
  }
  return textTable(rows);
}
