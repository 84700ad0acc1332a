import { toReplicationError } from "../base/errors.ts";
import { isBlockSize } from "../base/units.ts";
import type { ServedImage, Tracked } from "../library/tracking.ts";
import { createEngine } from "../replication/engine.ts";
import { runCycles } from "../replication/schedule.ts";
import type { TrackedSender } from "../replication/tracked-sender.ts";
import { watchCredentials } from "../transport/credential-watch.ts";
import { needed, optional, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { parseNbdPlace } from "./nbd-address.ts";
import { doneEvent } from "./progress.ts";
import { networkReceiver, parseDestination, sendOptions } from "./send-options.ts";
import { formatSize, formatTime, parseCount, parseTime, parseWord } from "./values.ts";
import { type CliIo, stopped, type Verb } from "./verb.ts";

const help = `usage: replicate track IMAGE --nbd ADDRESS [options]
       replicate track IMAGE --nbd ADDRESS --send HOST:PORT/DISK --tls DIR/NAME [--every TIME] [options]

Serves an image read-write over NBD to a virtual machine, and keeps a journal of the blocks it writes to. With --send the image is
sent again and again while the machine runs: each time a cut is made, of which only what changed is read and sent, and which becomes a recovery point.
The image must be written through this server alone: whatever else touches it is noticed at the next start, and then all of it is compared once.

  IMAGE                  a raw image or a block device
  --nbd ADDRESS          unix:/PATH, for this user alone, or HOST:PORT; port 0 picks a free one. Without --nbd-tls HOST is 127.0.0.1 or [::1]
  --nbd-tls DIR/NAME     certificates of the NBD server: clients need one of the same authority
  --journal PATH         default IMAGE.rbj, beside the image
  --journal-sync WHAT    power: the journal survives loss of power (default); process: it survives the end of this process alone
  --send HOST:PORT/DISK  the receiver, and the name of the disk there
  --tls DIR/NAME         certificates for the receiver (see replicate pki)
  --every TIME           between the beginnings of two cycles (default 5m); 0 begins the next when one is done. A cycle that takes longer
                         is followed by the next at once, and one that failed by another try with all that changed since
  --block SIZE, --digest KIND, --codec NAME, --rate SIZE, --connections N, --lanes N, --label TEXT, --skip-empty, --adopt,
  --allow-shrink, --fingerprint SHA256, --format raw
                         as of replicate send
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default warn)

Stop it with Ctrl-C or SIGTERM, after the machine: the next start goes on with what changed.

Example:
  replicate track /var/lib/libvirt/images/web.raw --nbd unix:/run/web.sock --send backup.example:7000/web --tls pki/web --every 30s
  qemu-system-x86_64 ... -drive file=nbd+unix:///web.raw?socket=/run/web.sock,format=raw,if=virtio
`;

export const trackVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "track",
      flags: ["json", "skip-empty", "adopt", "allow-shrink"],
      options: [
        ...[
          "nbd",
          "nbd-tls",
          "journal",
          "journal-sync",
          "send",
          "tls",
          "every",
          "fingerprint",
          "block",
          "digest",
          "codec",
        ],
        ...["rate", "connections", "lanes", "label", "format", "log-level"],
      ],
      positionals: ["IMAGE"],
    });
    const place = parseNbdPlace(needed(given.text("nbd"), "track", "--nbd ADDRESS"));
    const destination = optional(given.text("send"), (text) => parseDestination(given, text, io.cwd, "track"));
    const every = optional(given.text("every"), (text) => (text === "0" ? 0 : parseTime(text, "--every")));
    const how = sendOptions(given);
    const json = given.flag("json");
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
    const { openTracked } = await import("../library/tracking.ts");
    const lanes = optional(given.text("lanes"), (text) => parseCount(text, "--lanes", { min: 1, max: 64 }));
    const lz4 = io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined;
    const engine = await createEngine({ log, lz4, ...(lanes === undefined ? {} : { lanes }) });
    const nbdTls = given.text("nbd-tls");
    const credentials = nbdTls === undefined ? undefined : await watchCredentials(nbdTls, { clock: engine.clock, log });
    let tracked: Tracked | undefined;
    let served: ServedImage | undefined;
    try {
      tracked = await openTracked(given.positionals[0] ?? "", {
        engine,
        journal: given.text("journal"),
        mode: optional(given.text("journal-sync"), (text) => parseWord(text, "--journal-sync", ["power", "process"])),
        blockBytes: how.blockBytes !== undefined && isBlockSize(how.blockBytes) ? how.blockBytes : undefined,
        format: optional(given.text("format"), (text) => parseWord(text, "--format", ["raw"])),
        onFailure: ({ reason, words }) => log.error({ reason }, words),
      });
      const sender =
        destination === undefined || !("tls" in destination)
          ? undefined
          : await tracked.createSender({
              receiver: await networkReceiver(destination, log),
              disk: destination.disk,
              ...how,
            });
      served = await tracked.serve({ place, credentials });
      io.out(beginText(tracked, served, json));
      if (sender === undefined) await stopped(io.signal);
      else await sendCycles(sender, { io, json, engine, everyMillis: every ?? 300_000 });
      return exitCodes.done;
    } finally {
      await served?.close();
      await tracked?.close();
      credentials?.close();
      await engine.close();
    }
  },
};

function beginText({ name, belief }: Tracked, { uri }: ServedImage, json: boolean): string {
  if (json) {
    const reason = belief.kind === "scan" ? { reason: belief.reason, words: belief.words } : {};
    return `${JSON.stringify({ event: "listening", image: name, uri, changes: belief.kind, ...reason })}\n`;
  }
  const known =
    belief.kind === "scan"
      ? `all of it is compared once: ${belief.words}`
      : "what changed since the last cycle is known";
  return `${name}: served read-write at ${uri}; ${known}\n`;
}

async function sendCycles(
  sender: TrackedSender,
  options: {
    readonly io: CliIo;
    readonly json: boolean;
    readonly engine: Awaited<ReturnType<typeof createEngine>>;
    readonly everyMillis: number;
  },
): Promise<void> {
  const { io, json, engine, everyMillis } = options;
  const { clock, log } = engine;
  await runCycles({
    clock,
    everyMillis,
    signal: io.signal,
    cycle: async (signal) => {
      const report = await sender.cycle(signal);
      if (json) io.out(`${JSON.stringify(doneEvent(report))}\n`);
      else {
        const { funnel, created, point, reason, disk, seconds } = report;
        const what = created ? `point ${point}` : `nothing changed, point ${point} stays`;
        const sizes = `${formatSize(funnel.readBytes)} read, ${formatSize(funnel.changedBytes)} changed, ${formatSize(funnel.wireBytes)} on the wire`;
        io.out(`${formatTime(clock.now())}  ${disk}  ${what} (${reason}): ${sizes}, in ${seconds.toFixed(1)} s\n`);
      }
    },
    onFailure: (thrown) => {
      const { code, message } = toReplicationError(thrown);
      log.error({ code }, `${message}; what changed is sent with the next cycle`);
    },
  });
}
