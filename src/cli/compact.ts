import { ReplicationError } from "../base/errors.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { formatSize } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate compact --store DIR [DISK] [options]

Joins the undo logs of recovery points where that gives a third of their content back, of one disk or of all, beside a live recv,
which does so by itself after sessions. After points were removed, logs hold content that no point needs. Needs room for the
joined log while it is written; interrupted at any moment, nothing is lost.

${storeHelp}

Example:
  replicate compact --store /srv/replicas web
`;

export const compactVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "compact",
      flags: [...storeFlags],
      options: [...storeOptions],
      positionals: [],
      optional: 1,
    });
    const [name] = given.positionals;
    if (name !== undefined) parseDisk(name, "compact");
    const json = given.flag("json");
    const { store } = await openStoreOf(given, "compact", io);
    let code: number = exitCodes.done;
    try {
      for (const disk of name === undefined ? await store.disks() : [name]) {
        try {
          const joined = await store.compact(disk, io.signal);
          for (const each of joined) {
            if (json) io.out(`${JSON.stringify({ event: "joined", disk, ...each })}\n`);
            else {
              const bytes = `${formatSize(each.bytesBefore)} -> ${formatSize(each.bytesAfter)}`;
              io.out(`${disk}  logs of point ${each.point} joined: ${bytes}\n`);
            }
          }
          if (joined.length === 0 && !json) io.out(`${disk}  nothing to gain\n`);
        } catch (error) {
          if (name !== undefined || !(error instanceof ReplicationError) || error.code === "aborted") throw error;
          code = exitCodes.failed;
          if (json) io.out(`${JSON.stringify({ event: "error", disk, code: error.code, message: error.message })}\n`);
          else io.err(`replicate: ${error.message}\n`);
        }
      }
    } finally {
      await store.close();
    }
    return code;
  },
};
