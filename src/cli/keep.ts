import { ReplicationError } from "../base/errors.ts";
import { parsePolicy } from "../replica/retention/policy.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate keep --store DIR DISK [--policy POLICY | --inherit] [options]

Shows which retention policy a disk follows, or gives it one of its own, beside a live recv. It is followed from the disk's
next commit on; replicate prune follows it at once, and with --dry-run --explain says what it would keep.

  --policy POLICY        the disk's own from now on, whatever recv --keep says. Written as
                         last=N,hourly=N,daily=N,weekly=N,monthly=N,yearly=N or grid=1x1h(keep=all)|24x1h|14x1d|8x7d, or all
  --inherit              the store's again (recv --keep)
${storeHelp}

Example:
  replicate keep --store /srv/replicas web --policy last=3,daily=14
`;

export const keepVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "keep",
      flags: ["inherit", ...storeFlags],
      options: ["policy", ...storeOptions],
      positionals: ["DISK"],
    });
    const disk = parseDisk(given.positionals[0] ?? "", "keep");
    const policy = given.text("policy");
    const inherit = given.flag("inherit");
    if (policy !== undefined && inherit) throw new ReplicationError("usage", "keep: --policy or --inherit, not both");
    if (policy !== undefined) parsePolicy(policy);
    const { store } = await openStoreOf(given, "keep", io);
    try {
      if (policy !== undefined || inherit) await store.setPolicy(disk, policy);
      const { keep, own } = await store.policyOf(disk);
      const event = { event: "policy", disk, keep, own };
      io.out(
        given.flag("json") ? `${JSON.stringify(event)}\n` : `${disk}: ${keep} (${own ? "its own" : "the store's"})\n`,
      );
      return exitCodes.done;
    } finally {
      await store.close();
    }
  },
};
