import type { SendSource } from "../replication/sender.ts";
import { invariant, toReplicationError } from "../base/errors.ts";
import { createEngine, type Engine } from "../replication/engine.ts";
import { tellMisses } from "../replication/audit-report.ts";
import type { MachineReport } from "../replication/machine.ts";
import type { SendReport } from "../replication/report.ts";
import { type ParsedArguments, parseArguments } from "./arguments.ts";
import { exitCodeOf, exitCodes } from "./exit-codes.ts";
import { disposable } from "./disposable.ts";
import { createLog, parseLevel } from "./log.ts";
import { nbdCredentials } from "./nbd-credentials.ts";
import { cycleText, doneEvent, funnelText, showMachineProgress, showProgress, tellLag } from "./progress.ts";
import { findTracker, isControlledMachine, sendOfTracker } from "./send-controlled.ts";
import {
  checkEvery,
  knownChanges,
  networkReceiver,
  parseDestination,
  parseMachine,
  parseNetwork,
  sendOptions,
} from "./send-options.ts";
import { formatSize, parseCount, parseEvery, parseWord } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate send IMAGE HOST:PORT/DISK --tls DIR/NAME [options]
       replicate send MACHINE HOST:PORT --disk NAME=IMAGE --disk NAME=IMAGE ... --tls DIR/NAME [options]
       replicate send MACHINE HOST:PORT --control SOCKET --tls DIR/NAME [options]
       replicate send IMAGE DISK --to-dir DIR [options]

Sends the state of an image: only what differs from what the receiver holds. Ends when that state is a durable recovery point there.
A lost connection is made again and the copy goes on; a send that was stopped goes on where it was when it is run again.

  IMAGE                  a raw image, a VHDX or VHD image (parents of differencing ones are found), a block device, or what an NBD server exports:
                         nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=/PATH, nbds://HOST:PORT/EXPORT with certificates
  HOST:PORT/DISK         the receiver, and the name of the disk there (1 to 63 of a-z 0-9 . _ -)
  MACHINE                with --disk: its disks are sent as they are at one moment, as MACHINE.NAME each. A point is made of all or of none of
                         them, unless the sender dies in between: then the cut is incomplete, which replicate points tells
  --disk NAME=IMAGE      a disk of the machine; given once for each
  --tls DIR/NAME         folder with ca.pem, cert.pem and key.pem (see replicate pki)
  --nbd-tls DIR/NAME     certificates for nbds:// images (default: those of --tls)
  --fingerprint SHA256   accept exactly the receiver certificate with this fingerprint
  --block SIZE           block of a new disk, 16KiB to 1MiB (default 64KiB)
  --digest KIND          xxh64 (default) or, where a guest may be hostile, sha256; of a new disk
  --codec NAME           auto (default: measures the link), lz4, deflate, zstd, none
  --rate SIZE            bytes a second at most, such as 50MiB
  --connections N        TCP connections side by side (default 1)
  --lanes N              worker threads (default: one a core, at most 4)
  --label TEXT           a name for the point
  --every TIME           sends again and again, so long between the beginnings of two cycles; 0 begins the next when one is done. A cycle that
                         fails is tried again when the next is due, unless a person must decide. Ctrl-C ends it
  --skip-empty           make no point when nothing changed
  --adopt                the image replaces another one that was sent under this name
  --allow-shrink         the disk may become smaller than its newest point; older points keep their size
  --control SOCKET       of a running replicate track, which makes the cut (default: IMAGE.rbc, where a tracker of the image listens). With
                         MACHINE HOST:PORT all disks of that tracker are sent, as MACHINE.NAME each
  --state FILE           keeps what was sent in FILE, for a next send that is told what has changed since
  --bitmap NAME          with --state, of an NBD server: its dirty bitmap NAME has all that changed since the last send with this FILE was cut,
                         and only that is read. Everything is compared when FILE is missing, or the receiver is not where it was left
  --audit SHARE          with --bitmap: looks at a share, such as 0.1%, of the blocks it calls clean. A miss ends with exit code 3, and the
                         next send compares everything
  --allow-live           send an image although it is being written to; the point is marked as inconsistent
  --format raw           read the bytes as they are, whatever they look like
  --to-dir DIR           an initial copy into files, for a portable disk: no connection is made, and options of one have no effect. The
                         other end: replicate recv --from-dir. The files are not encrypted
  --force                with --to-dir: remove a copy that is in DIR, and work beside other files
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default warn)

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 sent, but blocks called clean had changed, 4 refused (a person must decide), 130 interrupted.

Example:
  replicate send /var/lib/libvirt/images/web.raw backup.example:7000/web --tls pki/web
  replicate send db backup.example:7000 --disk sys=/dev/vg0/db-sys --disk data=/dev/vg0/db-data --tls pki/db
  replicate send /var/lib/libvirt/images/web.raw web --to-dir /media/portable/web
`;

export const sendVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "send",
      flags: ["json", "skip-empty", "adopt", "allow-live", "allow-shrink", "force"],
      options: [
        "tls",
        "nbd-tls",
        "fingerprint",
        "block",
        "digest",
        "codec",
        "rate",
        "connections",
        "lanes",
        "label",
        "format",
        "to-dir",
        "control",
        "state",
        "bitmap",
        "audit",
        "every",
        "log-level",
      ],
      lists: ["disk"],
      positionals: ["IMAGE", "HOST:PORT/DISK"],
    });
    const { json, log, engine } = await prepare(given, io);
    try {
      const every = given.text("every");
      const tell = (report: SendReport): string => {
        if (json) return `${JSON.stringify(doneEvent(report))}\n`;
        return every === undefined ? funnelText(report) : cycleText(report, { json, now: engine.clock.now() });
      };
      const surroundings = { io, engine, log, json, tell };
      if (every === undefined) return await sendOnce(given, surroundings);
      await sendAgainAndAgain(given, surroundings, parseEvery(every));
      return exitCodes.done;
    } finally {
      await engine.close();
    }
  },
};

/** Until it is stopped, or a person must decide. What fails otherwise is tried again when the next cycle is due. */
async function sendAgainAndAgain(
  given: ParsedArguments,
  surroundings: Surroundings,
  everyMillis: number,
): Promise<void> {
  const { io, engine, log, json } = surroundings;
  const { runCycles } = await import("../replication/schedule.ts");
  await runCycles({
    ...{ clock: engine.clock, everyMillis, signal: io.signal },
    cycle: async () => void (await sendOnce(given, surroundings)),
    onFailure: (thrown) => {
      const error = toReplicationError(thrown);
      const exit = exitCodeOf(error.code);
      if (exit === exitCodes.usage || exit === exitCodes.refused) throw error;
      log.error({ code: error.code }, `${error.message}; it is tried again with the next cycle`);
    },
    onLag: (lag) => {
      tellLag(lag, { io, json, log, everyMillis });
    },
  });
}

async function sendOnce(given: ParsedArguments, surroundings: Surroundings): Promise<number> {
  if (given.texts("disk").length > 0) return await sendMachine(given, surroundings);
  const tracker = await findTracker(given, surroundings.io, surroundings.engine);
  if (tracker === undefined) return await sendDisk(given, surroundings);
  return await sendOfTracker(given, tracker, surroundings);
}

interface Surroundings {
  readonly io: CliIo;
  readonly engine: Engine;
  readonly log: ReturnType<typeof createLog>;
  readonly json: boolean;
  /** What is printed of a send that is done. */
  readonly tell: (report: SendReport) => string;
}

/**
 * What is wrong with the words is said before anything is started. Lanes take longer to start than all the rest: they do so while what
 * a sender consists of is loaded.
 */
async function prepare(given: ParsedArguments, io: CliIo): Promise<Omit<Surroundings, "io" | "tell">> {
  const [, place = ""] = given.positionals;
  if (given.texts("disk").length > 0) parseMachine(given);
  else if (isControlledMachine(given)) parseNetwork(given, place, { verb: "send", withDisk: false });
  else parseDestination(given, place, io.cwd);
  sendOptions(given);
  knownChanges(given);
  checkEvery(given);
  const json = given.flag("json");
  const lanes = given.text("lanes");
  const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
  const engine = await createEngine({
    log,
    lz4: io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined,
    ...(lanes === undefined ? {} : { lanes: parseCount(lanes, "--lanes", { min: 1, max: 64 }) }),
  });
  return { json, log, engine };
}

async function imageOptions(given: ParsedArguments) {
  const format = given.text("format");
  const images = [given.positionals[0] ?? "", ...given.texts("disk")];
  const secret = images.some((image) => /(^|=)nbds[:+]/.test(image));
  return {
    credentials: await nbdCredentials(secret ? (given.text("nbd-tls") ?? given.text("tls")) : undefined),
    allowLive: given.flag("allow-live"),
    format: format === undefined ? undefined : parseWord(format, "--format", ["raw"]),
  };
}

async function sendDisk(given: ParsedArguments, { io, engine, log, json, tell }: Surroundings): Promise<number> {
  const [image = "", place = ""] = given.positionals;
  const destination = parseDestination(given, place, io.cwd);
  const { createSender, openSource } = await import("../library/sending.ts");
  await using network = "tls" in destination ? await networkReceiver(destination, engine) : undefined;
  const receiver = "tls" in destination ? network : destination;
  invariant(receiver !== undefined, "there is where to send to");
  const how = await imageOptions(given);
  const known = knownChanges(given);
  await using source = disposable(await openSource(image, { engine, ...how, known, target: destination.target }));
  const sender = createSender({
    engine,
    source,
    disk: destination.disk,
    receiver,
    consistency: how.allowLive ? "none" : "crash",
    ...sendOptions(given),
  });
  const stop = showProgress(sender, io, { json });
  try {
    const report = await sender.run(io.signal);
    stop();
    if ("directory" in receiver) io.out(seedText(report, receiver.directory, json));
    else io.out(tell(report));
    await source.sent(report);
    return tellMisses([report], log) ? exitCodes.differs : exitCodes.done;
  } finally {
    stop();
  }
}

async function sendMachine(given: ParsedArguments, { io, engine, json, tell }: Surroundings): Promise<number> {
  const { machine, images, ...network } = parseMachine(given);
  const { createMachineSender, openSource } = await import("../library/sending.ts");
  await using receiver = await networkReceiver(network, engine);
  const how = await imageOptions(given);
  const disks: { name: string; source: SendSource & { close(): Promise<void> } }[] = [];
  let stop = (): void => {};
  try {
    for (const { name, image } of images) {
      const target = `${network.target}/${machine}.${name}`;
      disks.push({ name, source: await openSource(image, { engine, ...how, target }) });
    }
    const { skipEmpty: _none, ...options } = sendOptions(given);
    const consistency = how.allowLive ? "none" : "crash";
    const sender = createMachineSender({ engine, receiver, machine, disks, consistency, ...options });
    stop = showMachineProgress(sender, io, { json });
    const report = await sender.run(io.signal);
    stop();
    io.out(report.disks.map(tell).join("") + machineText(machine, report, json));
    return exitCodes.done;
  } finally {
    stop();
    for (const { source } of disks) await source.close();
  }
}

function machineText(machine: string, { cut, disks, seconds }: MachineReport, json: boolean): string {
  if (!json) return `${machine}: ${disks.length} disks, cut together\n`;
  const points = Object.fromEntries(disks.map(({ disk, point }) => [disk, point]));
  const event = { event: "machine", machine, cut, points, seconds: Number(seconds.toFixed(3)) };
  return `${JSON.stringify(event)}\n`;
}

/** A copy into files makes no point: that is done where they are applied. */
function seedText(report: SendReport, directory: string, json: boolean): string {
  const { disk, funnel, seconds } = report;
  if (json) return `${JSON.stringify({ ...doneEvent(report), point: null, directory })}\n`;
  return (
    `${disk}: the copy of ${formatSize(funnel.sizeBytes)} is in ${directory}: ${formatSize(funnel.wireBytes)}, in ${seconds.toFixed(1)} s. ` +
    `At the receiver: replicate recv --store STORE --from-dir DIR --owner NAME\n`
  );
}
