import { basename, join, resolve } from "node:path";
import { Gate } from "../base/gate.ts";
import type { Logger } from "../base/logger.ts";
import type { ControlListener, ControlOptions } from "../library/control/server.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import type { ServedImages, Tracked } from "../library/tracking.ts";
import { createEngine, type Engine } from "../replication/engine.ts";
import { type Belief, DOUBT_AUDIT_SHARE } from "../track/belief.ts";
import { type ContinuousSend, sendContinuously } from "../library/continuous.ts";
import type { TrackedSender } from "../replication/tracked-sender.ts";
import { watchCredentials } from "../transport/credential-watch.ts";
import { needed, optional, type ParsedArguments, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { parseNbdPlace } from "./nbd-address.ts";
import { cycleText, tellLag } from "./progress.ts";
import { commandsOf } from "./quiescing-commands.ts";
import { networkReceiver, parseDisks, parseNetwork, sendOptions } from "./send-options.ts";
import { parseCount, parseEvery, parseShare, parseTime, parseWord } from "./values.ts";
import { type CliIo, stopped, type Verb } from "./verb.ts";

const help = `usage: replicate track IMAGE --nbd ADDRESS [options]
       replicate track IMAGE --nbd ADDRESS --send HOST:PORT/DISK --tls DIR/NAME [--every TIME] [options]
       replicate track MACHINE --disk NAME=IMAGE --disk NAME=IMAGE ... --nbd ADDRESS --send HOST:PORT --tls DIR/NAME [options]

Serves an image read-write over NBD to a virtual machine, and keeps a journal of the blocks it writes to. With --send the image is
sent again and again while the machine runs: each time a cut is made, of which only what changed is read and sent, and which becomes a recovery point.
The image must be written through this server alone: whatever else touches it is noticed at the next start, and then all of it is compared once. Of a
block device nothing shows that: the first cycle after each start looks at 1 % of its blocks called clean, at least.

  IMAGE                  a raw image or a block device
  MACHINE                with --disk: its disks are cut at one moment, and sent as MACHINE.NAME each, as with replicate send
  --disk NAME=IMAGE      a disk of the machine, served as export NAME; given once for each
  --nbd ADDRESS          unix:/PATH, for this user alone, or HOST:PORT; port 0 picks a free one. Without --nbd-tls HOST is 127.0.0.1 or [::1]
  --nbd-tls DIR/NAME     certificates of the NBD server: clients need one of the same authority
  --journal PATH         default IMAGE.rbj, beside the image; needed for a block device, whose folder is gone with a restart. Beside it lie what
                         is known of the disk at the receiver and, during a cut, what it keeps. With --disk a folder: PATH/NAME.rbj for each
  --journal-sync WHAT    power: the journal survives loss of power (default); process: it survives the end of this process alone
  --control SOCKET       where replicate send asks for a cut (default: IMAGE.rbc, beside the image; with --disk: none)
  --send HOST:PORT/DISK  the receiver, and the name of the disk there
  --tls DIR/NAME         certificates for the receiver (see replicate pki)
  --every TIME           between the beginnings of two cycles (default 5m); 0 begins the next when one is done. A cycle that takes longer
                         is followed by the next at once, and one that failed by another try with all that changed since
  --freeze COMMAND       run by sh before each cut: has the machine write out what it holds (fsfreeze in the guest, a database's backup
                         mode). Fails it, or takes too long, the point is made all the same, as after a loss of power, and says so
  --thaw COMMAND         run after each cut, whatever happened
  --freeze-limit TIME    for each of the two (default 10s)
  --audit SHARE          of the blocks called clean, look at such a share of each disk in each cycle, such as 0.1%, whether they are
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
          "control",
          "send",
          "tls",
          "every",
          "audit",
          "freeze",
          "thaw",
          "freeze-limit",
        ],
        ...["fingerprint", "block", "digest", "codec", "rate", "connections", "lanes", "label", "format", "log-level"],
      ],
      lists: ["disk"],
      positionals: ["IMAGE"],
    });
    const place = parseNbdPlace(needed(given.text("nbd"), "track", "--nbd ADDRESS"));
    const plan = planOf(given, io);
    const json = given.flag("json");
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
    const lanes = optional(given.text("lanes"), (text) => parseCount(text, "--lanes", { min: 1, max: 64 }));
    const lz4 = io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined;
    const { createTrackedMachineSender, createTrackedSender, openTracked, serveTracked } = await import(
      "../library/tracking.ts"
    );
    const engine = await createEngine({ log, lz4, ...(lanes === undefined ? {} : { lanes }) });
    const nbdTls = given.text("nbd-tls");
    const credentials = nbdTls === undefined ? undefined : await watchCredentials(nbdTls, { clock: engine.clock, log });
    const disks: { readonly name: string; readonly exportName: string; readonly tracked: Tracked }[] = [];
    let served: ServedImages | undefined;
    let control: ControlListener | undefined;
    let receiver: Awaited<ReturnType<typeof networkReceiver>> | undefined;
    try {
      for (const { name, image, journal } of plan.images) {
        const tracked = await openTracked(image, {
          ...plan.tracking,
          journal,
          engine,
          onFailure: ({ reason, words }) => log.error({ reason, image }, words),
          onKept: () => log.warn({ image }, "the journal can be written again, and is kept"),
        });
        disks.push({ name, exportName: plan.isMachine ? name : basename(tracked.name), tracked });
      }
      const { destination } = plan;
      const turn = new Gate(1);
      let sender: TrackedSender | undefined;
      if (destination !== undefined) {
        receiver = await networkReceiver(destination, engine);
        const how = { ...plan.sending, turn, engine, receiver };
        const { skipEmpty: _none, ...together } = how;
        const [first] = disks;
        invariant(first !== undefined, "there is something to track");
        sender = plan.isMachine
          ? createTrackedMachineSender({ ...together, machine: given.positionals[0] ?? "", disks })
          : createTrackedSender({ ...how, disk: destination.disk, tracked: first.tracked });
      }
      served = await serveTracked(engine, { disks, place, credentials });
      control = await controlOf(disks, { ...plan.sending, plan, engine, turn, log });
      for (const [nth, { tracked }] of disks.entries()) io.out(beginText(tracked, served.uris[nth] ?? "", json));
      if (sender === undefined) await stopped(io.signal);
      else await sendCycles(sender, { io, json, engine, everyMillis: plan.everyMillis });
      return exitCodes.done;
    } finally {
      await control?.close();
      await served?.close();
      for (const { tracked } of disks) await tracked.close();
      credentials?.close();
      await receiver?.close();
      await engine.close();
    }
  },
};

/** What is wrong with the words is said before anything is started. */
function planOf(given: ParsedArguments, io: CliIo) {
  const send = given.text("send");
  const isMachine = given.texts("disk").length > 0;
  const journal = given.text("journal");
  if (isMachine && given.flag("skip-empty")) {
    throw new ReplicationError("usage", "track: --skip-empty does not go with --disk");
  }
  const format = optional(given.text("format"), (text) => parseWord(text, "--format", ["raw"]));
  const mode = optional(given.text("journal-sync"), (text) => parseWord(text, "--journal-sync", ["power", "process"]));
  const sending = sendOptions(given);
  const images = isMachine
    ? parseDisks(given, "track").map((disk) => ({
        ...disk,
        journal: journal === undefined ? undefined : join(journal, `${disk.name}.rbj`),
      }))
    : [{ name: given.positionals[0] ?? "", image: given.positionals[0] ?? "", journal }];
  const freeze = given.text("freeze");
  const thaw = given.text("thaw");
  if ((freeze === undefined) !== (thaw === undefined)) {
    throw new ReplicationError("usage", "track: --freeze and --thaw go together");
  }
  const millisMax = optional(given.text("freeze-limit"), (text) => parseTime(text, "--freeze-limit"));
  const every = optional(given.text("every"), parseEvery);
  return {
    isMachine,
    images,
    control: given.text("control"),
    tracking: { mode, format, blockBytes: sending.blockBytes },
    destination: send === undefined ? undefined : parseNetwork(given, send, { verb: "track", withDisk: !isMachine }),
    sending: {
      ...sending,
      auditShare: optional(given.text("audit"), parseShare),
      quiescing:
        freeze === undefined || thaw === undefined ? undefined : { ...commandsOf(freeze, thaw, io), millisMax },
    },
    everyMillis: every ?? 300_000,
  };
}

/** A socket path has room for so many bytes. */
const socketPathMax = 100;

/** Undefined: nobody asks for cuts. */
async function controlOf(
  disks: readonly { readonly exportName: string; readonly tracked: Tracked }[],
  options: Omit<ControlOptions, "path" | "disks"> & {
    readonly plan: { readonly isMachine: boolean; readonly control: string | undefined };
    readonly log: Logger;
  },
): Promise<ControlListener | undefined> {
  const { plan, log, ...rest } = options;
  const { controlPathOf } = await import("../library/control/protocol.ts");
  const { listenControl } = await import("../library/control/server.ts");
  if (plan.control !== undefined) return await listenControl({ ...rest, path: resolve(plan.control), disks });
  const [first] = disks;
  if (plan.isMachine || first === undefined) return undefined;
  const path = controlPathOf(first.tracked.name);
  try {
    if (Buffer.byteLength(path) <= socketPathMax) return await listenControl({ ...rest, path, disks });
    throw new ReplicationError("listen-failed", `${path} is too long for a socket`);
  } catch (error) {
    const { code, message } = toReplicationError(error);
    log.warn({ code }, `${message}; replicate send finds this tracker when --control names another path`);
    return undefined;
  }
}

function beginText({ name, belief }: Tracked, uri: string, json: boolean): string {
  if (json) {
    const reason = belief.kind === "scan" ? { reason: belief.reason, words: belief.words } : { audit: belief.audit };
    return `${JSON.stringify({ event: "listening", image: name, uri, changes: belief.kind, ...reason })}\n`;
  }
  return `${name}: served read-write at ${uri}; ${knownText(belief)}\n`;
}

function knownText(belief: Belief): string {
  if (belief.kind === "scan") return `all of it is compared once: ${belief.words}`;
  const known = "what changed since the last cycle is known";
  if (!belief.audit) return known;
  return `${known}; nothing shows writes past this server: ${DOUBT_AUDIT_SHARE * 100} % at least of the rest is looked at once`;
}

async function sendCycles(
  sender: TrackedSender,
  options: {
    readonly io: CliIo;
    readonly json: boolean;
    readonly engine: Engine;
    readonly everyMillis: number;
  },
): Promise<void> {
  const { io, json, engine, everyMillis } = options;
  const { clock, log } = engine;
  const send: ContinuousSend = {
    ...{ sender, everyMillis },
    onReports: (reports) => {
      for (const report of reports) io.out(cycleText(report, { json, now: clock.now() }));
    },
    onFailure: (thrown) => {
      const { code, message } = toReplicationError(thrown);
      log.error({ code }, `${message}; what changed is sent with the next cycle`);
    },
    onLag: (lag) => {
      tellLag(lag, { io, json, log, everyMillis });
    },
  };
  await sendContinuously([send], { engine, signal: io.signal });
}
