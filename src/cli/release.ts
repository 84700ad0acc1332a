import { ReplicationError } from "../base/errors.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { ownerOf, parseNamedPoint } from "./hold.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { pointHelp, withChosenPoint } from "./point-name.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate release --store DIR DISK@POINT [--owner NAME | --anybody] [options]

Ends the hold of a recovery point: from now on the retention policy decides. A point that is not held stays as it is.

${pointHelp}

  --owner NAME           whose hold ends (default: the user); another's is refused
  --anybody              whoever holds it
${storeHelp}

Example:
  replicate release --store /srv/replicas web@7
`;

export const releaseVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "release",
      flags: ["anybody", ...storeFlags],
      options: ["owner", ...storeOptions],
      positionals: ["DISK@POINT"],
    });
    const { disk, point } = parseNamedPoint(given.positionals[0] ?? "", "release");
    const anybody = given.flag("anybody");
    if (anybody && given.text("owner") !== undefined) {
      throw new ReplicationError("usage", "release: --owner and --anybody contradict each other");
    }
    const owner = anybody ? "anybody" : ownerOf(given.text("owner"), io);
    const { store } = await openStoreOf(given, "release", io);
    try {
      const sequence = await withChosenPoint(store, disk, point, async (chosen) => {
        await store.release(disk, chosen, owner);
        return chosen;
      });
      const event = { event: "released", disk, point: sequence };
      io.out(given.flag("json") ? `${JSON.stringify(event)}\n` : `${disk}: point ${sequence} is not held\n`);
      return exitCodes.done;
    } finally {
      await store.close();
    }
  },
};
