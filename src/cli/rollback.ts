import { ReplicationError } from "../base/errors.ts";
import { rollBack } from "../library/points.ts";
import { createEngine } from "../replication/engine.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate rollback --store DIR DISK [options]

Gives up what an interrupted delta applied: the replica's file becomes the newest recovery point again, byte for byte. Not needed to
restore (replicate restore reads any point at any time), nor for the next send, which goes on by itself: it is for who
wants to use the replica's file where it lies. Interrupted, start it again.

${storeHelp}

Example:
  replicate rollback --store /srv/replicas web
`;

export const rollbackVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "rollback",
      flags: [...storeFlags],
      options: [...storeOptions],
      positionals: ["DISK"],
    });
    const [disk] = given.positionals;
    if (disk === undefined) throw new ReplicationError("usage", "rollback: name the disk");
    parseDisk(disk, "rollback");
    const { store } = await openStoreOf(given, "rollback", io);
    const engine = await createEngine({ lanes: 0 });
    try {
      const { point, blocks, sizeBefore, sizeBytes } = await rollBack(store, disk, { engine, signal: io.signal });
      const event = { event: "done", disk, point, blocks, sizeBefore, sizeBytes };
      const resized = sizeBefore === sizeBytes ? "" : `, its size ${sizeBytes} bytes again (it was ${sizeBefore})`;
      const words =
        blocks === 0 && resized === ""
          ? `${disk}: the replica is point ${point} already\n`
          : `${disk}: the replica is point ${point} again, ${blocks} blocks put back${resized}\n`;
      io.out(given.flag("json") ? `${JSON.stringify(event)}\n` : words);
      return exitCodes.done;
    } finally {
      await engine.close();
      await store.close();
    }
  },
};
