import { resolve } from "node:path";
import { systemClock } from "../base/clock.ts";
import { isBlockSize } from "../base/units.ts";
import { checkDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import { createSender, openSource } from "../library/sending.ts";
import { createEngine } from "../replication/engine.ts";
import type { SendReport } from "../replication/report.ts";
import { loadCredentials } from "../transport/credentials.ts";
import { needed, type ParsedArguments, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { doneEvent, funnelText, showProgress } from "./progress.ts";
import { formatSize, parseAddress, parseCount, parseRate, parseSize, parseWord } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate send IMAGE HOST:PORT/DISK --tls DIR/NAME [options]
       replicate send IMAGE DISK --to-dir DIR [options]

Sends the state of an image: only what differs from what the receiver holds. Ends when that state is a durable recovery point there.
A lost connection is made again and the copy goes on; a send that was stopped goes on where it was when it is run again.

  IMAGE                  a raw image file or a block device
  HOST:PORT/DISK         the receiver, and the name of the disk there (1 to 63 of a-z 0-9 . _ -)
  --tls DIR/NAME         folder with ca.pem, cert.pem and key.pem (see replicate pki)
  --fingerprint SHA256   accept exactly the receiver certificate with this fingerprint
  --block SIZE           block of a new disk, 16KiB to 1MiB (default 64KiB)
  --digest KIND          xxh64 (default) or, where a guest may be hostile, sha256; of a new disk
  --codec NAME           auto (default: measures the link), lz4, deflate, zstd, none
  --rate SIZE            bytes a second at most, such as 50MiB
  --connections N        TCP connections side by side (default 1)
  --lanes N              worker threads (default: one a core, at most 4)
  --label TEXT           a name for the point
  --skip-empty           make no point when nothing changed
  --adopt                the image replaces another one that was sent under this name
  --allow-live           send an image although it is being written to; the point is marked as inconsistent
  --format raw           read the bytes as they are, whatever they look like
  --to-dir DIR           an initial copy into files, for a portable disk: no connection is made, and options of one have no effect. The
                         other end: replicate recv --from-dir. The files are not encrypted
  --force                with --to-dir: remove a copy that is in DIR, and work beside other files
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default warn)

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 refused (a person must decide), 130 interrupted.

Example:
  replicate send /var/lib/libvirt/images/web.raw backup.example:7000/web --tls pki/web
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
        "log-level",
      ],
      positionals: ["IMAGE", "HOST:PORT/DISK"],
    });
    const [image = "", place = ""] = given.positionals;
    const destination = parseDestination(given, place, io.cwd);
    const json = given.flag("json");
    const options = sendOptions(given);
    const lanes = given.text("lanes");
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
    const receiver = "tls" in destination ? await networkReceiver(destination, log) : destination;
    const engine = await createEngine({
      log,
      lz4: io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined,
      ...(lanes === undefined ? {} : { lanes: parseCount(lanes, "--lanes", { min: 1, max: 64 }) }),
    });
    try {
      const allowLive = given.flag("allow-live");
      const format =
        given.text("format") === undefined ? undefined : parseWord(given.text("format") ?? "", "--format", ["raw"]);
      await using source = disposable(
        await openSource(image, { engine, format, allowLive, target: destination.target }),
      );
      const sender = createSender({
        engine,
        source,
        disk: destination.disk,
        receiver,
        consistency: allowLive ? "none" : "crash",
        ...options,
      });
      const stop = showProgress(sender, io, { json });
      try {
        const report = await sender.run(io.signal);
        stop();
        if ("directory" in receiver) io.out(seedText(report, receiver.directory, json));
        else io.out(json ? `${JSON.stringify(doneEvent(report))}\n` : funnelText(report));
        return exitCodes.done;
      } finally {
        stop();
      }
    } finally {
      await engine.close();
    }
  },
};

interface Folder {
  readonly disk: string;
  readonly target: string;
  readonly directory: string;
  readonly overwrite: boolean;
}

interface Network {
  readonly disk: string;
  readonly target: string;
  readonly host: string;
  readonly port: number;
  readonly tls: string;
  readonly fingerprint: string | undefined;
}

function parseDestination(given: ParsedArguments, place: string, cwd: string): Folder | Network {
  const folder = given.text("to-dir");
  const overwrite = given.flag("force");
  if (folder !== undefined) {
    const directory = resolve(cwd, folder);
    // The host of HOST:PORT/DISK means nothing here.
    const disk = parseDisk(place.slice(place.lastIndexOf("/") + 1));
    return { disk, target: directory, directory, overwrite };
  }
  if (overwrite) throw new ReplicationError("usage", "send: --force goes with --to-dir");
  const tls = needed(given.text("tls"), "send", "--tls DIR/NAME");
  return { ...parseTarget(place), target: place, tls, fingerprint: given.text("fingerprint") };
}

async function networkReceiver({ host, port, tls, fingerprint }: Network, log: ReturnType<typeof createLog>) {
  const credentials = await loadCredentials(tls, {});
  const days = Math.floor((credentials.expiresAt - systemClock.now()) / 86_400_000);
  if (days < 30) log.warn({ days }, `the certificate in ${tls} expires in ${days} days: replicate pki issue --renew`);
  return { host, port, credentials, fingerprint };
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

function sendOptions(given: ParsedArguments) {
  const optional = <T>(name: string, parse: (text: string) => T): T | undefined => {
    const text = given.text(name);
    return text === undefined ? undefined : parse(text);
  };
  const codec = optional("codec", (text) => parseWord(text, "--codec", ["auto", "lz4", "deflate", "zstd", "none"]));
  return {
    blockBytes: optional("block", parseBlock),
    digestKind: optional("digest", (text) => parseWord(text, "--digest", ["xxh64", "sha256"])),
    codec: codec === "none" ? ("stored" as const) : codec,
    rate: optional("rate", parseRate),
    connections: optional("connections", (text) => parseCount(text, "--connections", { min: 1, max: 16 })),
    label: given.text("label"),
    skipEmpty: given.flag("skip-empty"),
    adopt: given.flag("adopt"),
    allowShrink: given.flag("allow-shrink"),
  };
}

function parseBlock(text: string): number {
  const bytes = parseSize(text, "--block");
  if (isBlockSize(bytes)) return bytes;
  throw new ReplicationError("usage", `--block: ${JSON.stringify(text)} is not a power of two from 16KiB to 1MiB`);
}

/** `HOST:PORT/DISK`. */
function parseTarget(text: string): { readonly host: string; readonly port: number; readonly disk: string } {
  const at = text.lastIndexOf("/");
  if (at < 0 || at === text.length - 1) {
    throw new ReplicationError("usage", `send: ${JSON.stringify(text)} is not HOST:PORT/DISK`);
  }
  return { ...parseAddress(text.slice(0, at), "HOST:PORT/DISK"), disk: parseDisk(text.slice(at + 1)) };
}

function parseDisk(disk: string): string {
  try {
    checkDiskName(disk);
    return disk;
  } catch (error) {
    throw new ReplicationError("usage", `send: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function disposable<T extends { close(): Promise<void> }>(resource: T): T & AsyncDisposable {
  return Object.assign(resource, { [Symbol.asyncDispose]: () => resource.close() });
}
