import { resolve } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import { isBlockSize } from "../base/units.ts";
import { adoptImage } from "../library/receiving.ts";
import { openStore } from "../replica/store.ts";
import { createEngine } from "../replication/engine.ts";
import { needed, optional, type ParsedArguments, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { machineTimeZone } from "./open-store.ts";
import { parseDisk } from "./point-name.ts";
import { showWork, type Work } from "./progress.ts";
import { formatSize, parseCount, parseSize, parseWord } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate adopt IMAGE --store DIR --disk NAME --owner NAME [options]

Makes a raw image that exists - a restored backup, a disk that came by courier - the replica of a new disk, so that the first send of the disk ships
only what differs. The image is read once, holes are skipped, and becomes point 1. It stays where it lies, or goes into the store with --move. From
then on only the receiver may write to it: do not start a machine from it, and do not remove it. Stopped or killed, it is run again.

  IMAGE                  a raw image file that nothing writes to
  --store DIR            where replicas are kept; made when missing
  --disk NAME            name of the new disk (1 to 63 of a-z 0-9 . _ -)
  --owner NAME           the certificate name the disk will belong to
  --move                 move the image into the store, which must be on the same file system; default: it stays where it lies
  --block SIZE           block of the disk, 16KiB to 1MiB (default 64KiB)
  --digest KIND          xxh64 (default) or, where a guest may be hostile, sha256
  --label TEXT           a name for the point
  --format raw           take the bytes as they are, whatever they look like
  --lanes N              worker threads (default: one a core, at most 4)
  --single-process       the file system has no locks, and at your word nothing else uses the store
  --json                 one JSON object a line on standard output
  --log-level LEVEL      debug, info, warn, error, silent (default warn)

Exit codes: 0 done, or adopted already; 1 failed, 2 wrong usage, 4 refused (a person must decide), 130 interrupted.

Example:
  replicate adopt /vms/web.raw --store /srv/replicas --disk web --owner web
`;

export const adoptVerb: Verb = {
  help,
  exitCodes: { "image-in-use": exitCodes.refused, "disk-owned": exitCodes.refused },
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "adopt",
      flags: ["move", "json", "single-process"],
      options: ["store", "disk", "owner", "block", "digest", "label", "format", "lanes", "log-level"],
      positionals: ["IMAGE"],
    });
    const [name = ""] = given.positionals;
    const path = needed(given.text("store"), "adopt", "--store DIR");
    const facts = { image: resolve(io.cwd, name), ...factsOf(given) };
    const json = given.flag("json");
    const lanes = optional(given.text("lanes"), (text) => parseCount(text, "--lanes", { min: 1, max: 64 }));
    const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
    const engine = await createEngine({ log, ...(lanes === undefined ? {} : { lanes }) });
    const work: Work = { title: `reading ${name}`, facts: { disk: facts.disk }, doneBytes: 0, totalBytes: 0 };
    const stop = showWork(work, io, { json });
    try {
      const { storage, clock, random, host } = engine;
      const store = await openStore({
        ...{ path, storage, clock, random, log, host, create: true, pid: process.pid },
        timeZone: machineTimeZone(),
        singleProcess: given.flag("single-process"),
      });
      const startedAt = clock.monotonic();
      const adopted = await adoptImage(store, {
        ...{ engine, ...facts, signal: io.signal },
        onProgress(doneBytes, totalBytes) {
          work.doneBytes = doneBytes;
          work.totalBytes = totalBytes;
        },
      });
      await store.close();
      stop();
      const seconds = (clock.monotonic() - startedAt) / 1000;
      io.out(json ? `${JSON.stringify(doneEvent(adopted, seconds))}\n` : doneText(adopted, facts, seconds));
      return exitCodes.done;
    } finally {
      stop();
      await engine.close();
    }
  },
};

function factsOf(given: ParsedArguments) {
  const owner = needed(given.text("owner"), "adopt", "--owner NAME");
  if (owner === "") throw new ReplicationError("usage", "adopt: --owner is the name of a certificate");
  const digestKinds = ["xxh64", "sha256"] as const;
  return {
    disk: parseDisk(needed(given.text("disk"), "adopt", "--disk NAME"), "adopt"),
    owner,
    move: given.flag("move"),
    label: given.text("label"),
    blockBytes: optional(given.text("block"), parseBlock),
    digestKind: optional(given.text("digest"), (text) => parseWord(text, "--digest", digestKinds)),
    format: optional(given.text("format"), (text) => parseWord(text, "--format", ["raw"])),
  };
}

function parseBlock(text: string): number {
  const bytes = parseSize(text, "--block");
  if (isBlockSize(bytes)) return bytes;
  throw new ReplicationError("usage", `--block: ${JSON.stringify(text)} is not a power of two from 16KiB to 1MiB`);
}

type Adopted = Awaited<ReturnType<typeof adoptImage>>;

function doneEvent({ record, point, replica, created }: Adopted, seconds: number): object {
  return {
    event: "done",
    disk: record.name,
    point: point.point,
    root: point.root,
    reason: "adopted",
    created,
    label: point.label ?? null,
    sizeBytes: point.sizeBytes,
    blockBytes: record.blockBytes,
    digest: record.digestKind,
    owner: record.owner,
    replica,
    seconds: Number(seconds.toFixed(3)),
  };
}

function doneText({ record, point, replica, created }: Adopted, { image }: { image: string }, seconds: number): string {
  const where = record.image === undefined ? `moved to ${replica}` : "where it lies";
  if (!created) return `${record.name}: has adopted ${image} already, ${where}, as point ${point.point}\n`;
  return (
    `${record.name}: point ${point.point}, adopted from ${image} (${formatSize(point.sizeBytes)}), ${where}, in ${seconds.toFixed(1)} s; ` +
    `it belongs to ${record.owner}\n`
  );
}
