import { ReplicationError } from "../base/errors.ts";
import { repair } from "../library/points.ts";
import { createEngine } from "../replication/engine.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { formatSize } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate repair --store DIR DISK [--keep-changes [--label TEXT]] [options]

Reads the whole replica and compares every block with its digest. What has rotted, or was overwritten by somebody else, is marked: the next send
of the disk sends it anew and heals the replica. Older points that need the lost content stay damaged there, and say so. Exit code 3 when
something was found, 0 when not. The disk must not be receiving.

A replica that somebody wrote to (a machine ran on it, it was mounted) takes no more deltas until a person has decided (send: replica-changed,
exit code 4). repair gives up what was written there: the next send overwrites it. With --keep-changes the replica as it is becomes a recovery point first.

  --keep-changes  make a recovery point of the replica where it is not what its digests say; it is held
                  until: replicate release --store DIR DISK@POINT --owner repair
  --label TEXT    of that point; default "changed by others"
${storeHelp}

Examples:
  replicate repair --store /srv/replicas web
  replicate repair --store /srv/replicas web --keep-changes --label "ran here on Monday"
`;

/** Ranges that are printed; the rest is counted. */
const shownMax = 20;

export const repairVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "repair",
      flags: ["keep-changes", ...storeFlags],
      options: ["label", ...storeOptions],
      positionals: ["DISK"],
    });
    const [disk] = given.positionals;
    if (disk === undefined) throw new ReplicationError("usage", "repair: name the disk");
    parseDisk(disk, "repair");
    const json = given.flag("json");
    const keeps = given.flag("keep-changes");
    const label = given.text("label");
    if (label !== undefined && !keeps) throw new ReplicationError("usage", "repair: --label goes with --keep-changes");
    const keepChanges = keeps ? { label: label ?? "changed by others" } : undefined;
    const { store } = await openStoreOf(given, "repair", io);
    const engine = await createEngine({ lanes: 0 });
    try {
      const { damaged, kept } = await repair(store, disk, { engine, signal: io.signal, keepChanges });
      const bytes = damaged.reduce((sum, { length }) => sum + length, 0);
      if (json) io.out(`${JSON.stringify({ event: "done", disk, damaged, bytes, kept })}\n`);
      else if (damaged.length === 0 && kept === undefined) io.out(`${disk}: every block is what its digest says\n`);
      else {
        // Kept, it is no damage: what the replica holds there is the new point's content.
        const what = kept === undefined ? "damaged" : "changed";
        for (const { offset, length } of damaged.slice(0, shownMax)) {
          io.out(`${disk}: ${what} at offset ${offset}, ${formatSize(length)}\n`);
        }
        if (damaged.length > shownMax) io.out(`${disk}: and ${damaged.length - shownMax} more ranges\n`);
        if (kept === undefined) io.out(`${disk}: ${formatSize(bytes)} marked; send the disk again to heal it\n`);
      }
      if (!json && kept !== undefined)
        io.out(`${disk}: the replica as it is became point ${kept}, and is held; the next send goes on from it\n`);
      return damaged.length === 0 && kept === undefined ? exitCodes.done : exitCodes.differs;
    } finally {
      await engine.close();
      await store.close();
    }
  },
};
