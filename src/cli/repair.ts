import { ReplicationError } from "../base/errors.ts";
import { repair } from "../library/points.ts";
import { createEngine } from "../replication/engine.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { formatSize } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate repair --store DIR DISK [options]

Reads the whole replica and compares every block with its digest. What has rotted, or was overwritten by somebody else, is marked: the next send
of the disk sends it anew and heals the replica. Older points that need the lost content stay damaged there, and say so. Exit code 3 when
something was found, 0 when not. The disk must not be receiving.

${storeHelp}

Example:
  replicate repair --store /srv/replicas web
`;

/** Ranges that are printed; the rest is counted. */
const shownMax = 20;

export const repairVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "repair",
      flags: [...storeFlags],
      options: [...storeOptions],
      positionals: ["DISK"],
    });
    const [disk] = given.positionals;
    if (disk === undefined) throw new ReplicationError("usage", "repair: name the disk");
    parseDisk(disk, "repair");
    const json = given.flag("json");
    const { store } = await openStoreOf(given, "repair", io);
    const engine = await createEngine({ lanes: 0 });
    try {
      const { damaged } = await repair(store, disk, { engine, signal: io.signal });
      const bytes = damaged.reduce((sum, { length }) => sum + length, 0);
      if (json) io.out(`${JSON.stringify({ event: "done", disk, damaged, bytes })}\n`);
      else if (damaged.length === 0) io.out(`${disk}: every block is what its digest says\n`);
      else {
        for (const { offset, length } of damaged.slice(0, shownMax)) {
          io.out(`${disk}: damaged at offset ${offset}, ${formatSize(length)}\n`);
        }
        if (damaged.length > shownMax) io.out(`${disk}: and ${damaged.length - shownMax} more ranges\n`);
        io.out(`${disk}: ${formatSize(bytes)} marked; send the disk again to heal it\n`);
      }
      return damaged.length === 0 ? exitCodes.done : exitCodes.differs;
    } finally {
      await engine.close();
      await store.close();
    }
  },
};
