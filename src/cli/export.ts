import { systemRandom } from "../base/random.ts";
import { exportPoint } from "../library/exporting.ts";
import { watchCredentials } from "../transport/credential-watch.ts";
import { needed, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { parseNbdPlace } from "./nbd-address.ts";
import { openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDiskPoint, pointHelp, withChosenPoint } from "./point-name.ts";
import { formatTime } from "./values.ts";
import { stopped, type Verb } from "./verb.ts";

const help = `usage: replicate export --store DIR DISK[@POINT] --nbd ADDRESS [options]

Serves a recovery point read-only over NBD, beside a live recv, until it is stopped: to look into it, to copy files out, or to boot a machine
from it with writes kept elsewhere. Every block is compared with its digest before it is served, and all digests, meanwhile, with what the point
was committed with: where they differ the export ends. The point is not removed meanwhile.

${pointHelp}

  --nbd ADDRESS          unix:/PATH, for this user alone, or HOST:PORT; port 0 picks a free one. Without --tls HOST is 127.0.0.1 or [::1]
  --tls DIR/NAME         folder with ca.pem, cert.pem and key.pem (see replicate pki): clients need a certificate of that authority
${storeHelp}

Exit codes: 0 stopped, 1 failed, 2 wrong usage, 3 the point is damaged (replicate verify says where).

Example:
  replicate export --store /srv/replicas web@before-update --nbd unix:/run/web.sock
  qemu-img create -f qcow2 -F raw -b 'nbd+unix:///web?socket=/run/web.sock' /tmp/web-test.qcow2
`;

export const exportVerb: Verb = {
  help,
  exitCodes: { "store-damaged": exitCodes.differs },
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "export",
      flags: [...storeFlags],
      options: ["nbd", "tls", ...storeOptions],
      positionals: ["DISK[@POINT]"],
    });
    const { disk, point } = parseDiskPoint(given.positionals[0] ?? "", "export");
    const place = parseNbdPlace(needed(given.text("nbd"), "export", "--nbd ADDRESS"));
    const tls = given.text("tls");
    const json = given.flag("json");
    const { store, engine } = await openStoreOf(given, "export", io);
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
    const credentials = tls === undefined ? undefined : await watchCredentials(tls, { clock: engine.clock, log });
    try {
      const served = await withChosenPoint(store, disk, point, (sequence) =>
        exportPoint(store, {
          engine: { ...engine, random: systemRandom, log },
          ...{ disk, point: sequence, place, credentials },
        }),
      );
      try {
        const { point: found, uri } = served;
        io.out(
          json
            ? `${JSON.stringify({ event: "listening", disk, point: found.point, root: found.root, uri })}\n`
            : `point ${found.point} of ${disk}, of ${formatTime(found.time)}, read-only at ${uri}\n`,
        );
        await Promise.race([stopped(io.signal), served.checked.then(() => stopped(io.signal))]);
      } finally {
        await served.close();
      }
      return exitCodes.done;
    } finally {
      credentials?.close();
      await store.close();
    }
  },
};
