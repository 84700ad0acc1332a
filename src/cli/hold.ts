import { systemClock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { optional, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDiskPoint, pointHelp, withChosenPoint } from "./point-name.ts";
import { heldText } from "./points.ts";
import { parseTime } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate hold --store DIR DISK@POINT [--owner NAME] [--for TIME] [options]

Keeps a recovery point from being removed, whatever the retention policy says, until it is released or the time is over.
Holding it again changes the time.

${pointHelp}

  --owner NAME           who wants it kept (default: the user)
  --for TIME             for so long, such as 12h or 30d (default: until it is released)
${storeHelp}

Example:
  replicate hold --store /srv/replicas web@7 --for 30d
`;

const ownerCharsMax = 200;

export const holdVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "hold",
      flags: storeFlags,
      options: ["owner", "for", ...storeOptions],
      positionals: ["DISK@POINT"],
    });
    const { disk, point } = parseNamedPoint(given.positionals[0] ?? "", "hold");
    const millis = optional(given.text("for"), (text) => parseTime(text, "--for"));
    const owner = ownerOf(given.text("owner"), io);
    const { store } = await openStoreOf(given, "hold", io);
    const now = systemClock.now();
    const hold = { owner, until: millis === undefined ? undefined : Math.round(now + millis) };
    try {
      const sequence = await withChosenPoint(store, disk, point, async (chosen) => {
        await store.hold(disk, chosen, hold);
        return chosen;
      });
      const event = { event: "held", disk, point: sequence, owner, until: hold.until ?? null };
      io.out(
        given.flag("json") ? `${JSON.stringify(event)}\n` : `${disk}: point ${sequence} is held by ${heldText(hold)}\n`,
      );
      return exitCodes.done;
    } finally {
      await store.close();
    }
  },
};

/** A point that must be named: neither holding nor releasing "the newest, whichever that is" by accident. */
export function parseNamedPoint(text: string, verb: string): { readonly disk: string; readonly point: string } {
  const { disk, point } = parseDiskPoint(text, verb);
  if (point === undefined) throw new ReplicationError("usage", `${verb}: name the point: ${disk}@POINT`);
  return { disk, point };
}

export function ownerOf(text: string | undefined, io: CliIo): string {
  const owner = text ?? io.env["USER"] ?? io.env["LOGNAME"] ?? "operator";
  if (owner.trim() === "" || owner.length > ownerCharsMax) {
    throw new ReplicationError("usage", `--owner: give a name of 1 to ${ownerCharsMax} characters`);
  }
  if (owner === "anybody") throw new ReplicationError("usage", '--owner: "anybody" is nobody in particular');
  return owner;
}
