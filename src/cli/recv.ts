import { watchCredentials } from "../transport/credential-watch.ts";
import { ReplicationError } from "../base/errors.ts";
import { createReceiver, type CreateReceiverOptions } from "../library/receiving.ts";
import { createEngine } from "../replication/engine.ts";
import { needed, optional, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { machineTimeZone } from "./open-store.ts";
import { importFromFolder, parseReplicaFormat } from "./seed.ts";

import { formatTime, parseAddress, parseCount, parseSize, parseWord } from "./values.ts";
import { stopped, type Verb } from "./verb.ts";
import { youngCollector } from "./young-garbage.ts";

const help = `usage: replicate recv --store DIR --listen HOST:PORT --tls DIR/NAME [options]
       replicate recv --store DIR --from-dir DIR --owner NAME [options]

Receives disks and keeps a replica of each in the store.

  --store DIR            where replicas are kept; made when missing
  --listen HOST:PORT     address to listen on; port 0 picks a free one
  --tls DIR/NAME         folder with ca.pem, cert.pem and key.pem (see replicate pki)
  --allow NAME=DISKS     certificate NAME may write disks that match DISKS (* stands for any characters); may be given several
                         times. Without it any certificate of an authority made by replicate pki may create disks, and a disk
                         belongs to the certificate that created it
  --limit-sessions N     sessions of one certificate at a time (default 128); the next one waits its turn
  --limit-disks N        disks one certificate may own (default 1024)
  --limit-size SIZE      bytes of the disks one certificate owns together, whatever they take here (default 1024TiB)
  --reserve SIZE         free space to keep on the store's file system (default 1 GiB, at most 5 %)
  --when-full WHAT       stop: refuse new deltas below the reserve (default); drop-oldest: drop the oldest points of the disk until there
                         is room, never its newest, nor one that is held or in use, nor those behind such a one
  --keep POLICY          which recovery points stay; stored, and followed after each commit from now on. Written as
                         last=N,hourly=N,daily=N,weekly=N,monthly=N,yearly=N or grid=1x1h(keep=all)|24x1h|14x1d|8x7d (the default),
                         or all; last=0 keeps the newest only
  --format raw|vhdx      what replicas of new disks are: raw images (default), or dynamic VHDX images, which Hyper-V and QEMU take as they
                         are; disks that exist stay what they are
  --from-dir DIR         apply the copy that replicate send --to-dir made there, without a network, and end. Stopped in the middle,
                         it goes on when it is run again
  --owner NAME           with --from-dir: the certificate name the disk will belong to
  --lanes N              worker threads (default: one a core, at most 4)
  --single-process       work on a file system without locks, at your word that nothing else uses the store
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default info)

Stop it with Ctrl-C or SIGTERM: what was received is kept and resumed.

Example:
  replicate recv --store /srv/replicas --listen 0.0.0.0:7000 --tls pki/recv
  replicate recv --store /srv/replicas --from-dir /media/portable/web --owner web
`;

export const recvVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "recv",
      flags: ["json", "single-process"],
      options: [
        "store",
        "listen",
        "tls",
        "limit-sessions",
        "limit-disks",
        "limit-size",
        "reserve",
        "keep",
        "lanes",
        "log-level",
        "when-full",
        "from-dir",
        "owner",
        "format",
      ],
      lists: ["allow"],
      positionals: [],
    });
    const directory = needed(given.text("store"), "recv", "--store DIR");
    if (given.text("from-dir") !== undefined) return await importFromFolder(given, io);
    const address = parseAddress(needed(given.text("listen"), "recv", "--listen HOST:PORT"), "--listen");
    const tls = needed(given.text("tls"), "recv", "--tls DIR/NAME");
    const json = given.flag("json");
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "info"), json });
    const whenFull = optional(given.text("when-full"), (text) =>
      parseWord(text, "--when-full", ["stop", "drop-oldest"]),
    );
    const format = optional(given.text("format"), parseReplicaFormat);
    const reserve = given.text("reserve");
    const lanes = given.text("lanes");
    const engine = await createEngine({
      log,
      lz4: io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined,
      ...(lanes === undefined ? {} : { lanes: parseCount(lanes, "--lanes", { min: 1, max: 64 }) }),
    });
    const credentials = await watchCredentials(tls, { clock: engine.clock, log });
    try {
      const receiver = await createReceiver({
        engine,
        directory,
        credentials,
        ...address,
        allow: parseAllow(given.texts("allow")),
        perIdentity: limitsFrom(given),
        reserveBytes: reserve === undefined ? undefined : parseSize(reserve, "--reserve"),
        whenFull,
        format,
        keep: given.text("keep"),
        timeZone: machineTimeZone(),
        singleProcess: given.flag("single-process"),
        reclaim: youngCollector(),
        pid: process.pid,
        onPoint: (made) => io.out(pointText(made, json)),
      });
      const { port } = receiver;
      log.info({ keep: await receiver.store.policy() }, "points are kept by this policy");
      io.out(
        json
          ? `${JSON.stringify({ event: "listening", address: receiver.address, port })}\n`
          : `listening on ${receiver.address.includes(":") ? `[${receiver.address}]` : receiver.address}:${port}, store ${directory}\n`,
      );
      await stopped(io.signal);
      log.info({}, "stopping");
      await receiver.close();
      return exitCodes.done;
    } finally {
      credentials.close();
      await engine.close();
    }
  },
};

type Made = Parameters<NonNullable<CreateReceiverOptions["onPoint"]>>[0];

function pointText({ disk, point, peer }: Made, json: boolean): string {
  const { root, time, label } = point;
  if (!json) return `${formatTime(time)}  ${disk}  point ${point.point} from ${peer.name}\n`;
  return `${JSON.stringify({ event: "point", disk, point: point.point, root, time, label, from: peer.name })}\n`;
}

/** Of each certificate; undefined: as by default. */
function limitsFrom(given: ReturnType<typeof parseArguments>): CreateReceiverOptions["perIdentity"] {
  const count = (option: string): number | undefined =>
    optional(given.text(option), (text) => parseCount(text, `--${option}`, { min: 1, max: 1_000_000 }));
  const diskBytes = optional(given.text("limit-size"), (text) => parseSize(text, "--limit-size"));
  return { sessions: count("limit-sessions"), disks: count("limit-disks"), diskBytes };
}

/** `NAME=DISKS` each; undefined when there is none. */
function parseAllow(texts: readonly string[]): ReadonlyMap<string, readonly string[]> | undefined {
  if (texts.length === 0) return undefined;
  const allow = new Map<string, string[]>();
  for (const text of texts) {
    const at = text.lastIndexOf("=");
    if (at < 1 || at === text.length - 1) {
      throw new ReplicationError("usage", `--allow: ${JSON.stringify(text)} is not NAME=DISKS`);
    }
    const name = text.slice(0, at);
    allow.set(name, [...(allow.get(name) ?? []), text.slice(at + 1)]);
  }
  return allow;
}
