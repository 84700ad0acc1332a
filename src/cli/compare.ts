import { resolve } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import { createEngine, type Engine } from "../replication/engine.ts";
import { type LocationOptions, openLocation } from "../library/locations.ts";
import { isNbdUri } from "../nbd/nbd-uri.ts";
import type { BlockReader } from "../image/block-device.ts";
import { MIB } from "../base/units.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { disposable } from "./disposable.ts";
import { createLog } from "./log.ts";
import { nbdCredentials } from "./nbd-credentials.ts";
import { openStoreAt } from "./open-store.ts";
import { parseDiskPoint, withChosenPoint } from "./point-name.ts";
import { formatSize, parseWord } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate compare A B [--json] [--format raw] [--nbd-tls DIR/NAME]

Compares two images byte by byte: equal, or which ranges differ (in pieces of 4 KiB). Holes are not read. An image is a raw, VHDX or VHD
file, a block device, an export of an NBD server (nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=/PATH, or nbds:// with the
certificates of --nbd-tls), or STORE/DISK@POINT, a recovery point of a store.

  --format raw           take both for raw images, whatever their content looks like
  --nbd-tls DIR/NAME     folder with ca.pem, cert.pem and key.pem (see replicate pki) for nbds://
  --json                 one JSON object a line on standard output

Exit codes: 0 equal, 1 failed, 2 wrong usage, 3 they differ.

Examples:
  replicate compare disk.raw /srv/replicas/web@latest
  replicate compare /srv/replicas/web@6 /srv/replicas/web@7
`;

/** Differing ranges that are printed one by one. */
const rangesShown = 20;
const grain = 4_096;

export const compareVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "compare",
      flags: ["json"],
      options: ["format", "nbd-tls"],
      positionals: ["A", "B"],
    });
    const [nameA = "", nameB = ""] = given.positionals;
    const json = given.flag("json");
    const engine = await createEngine({ lanes: 0, poolBytes: 8 * MIB });
    const wanted = given.text("format");
    const format = wanted === undefined ? undefined : parseWord(wanted, "--format", ["raw"]);
    const credentials = await nbdCredentials(given.text("nbd-tls"));
    const log = createLog(io, { level: "warn", json });
    const open = (name: string): Promise<BlockReader> => openSide(name, { engine, log, format, credentials, io, json });
    await using a = disposable(await open(nameA));
    await using b = disposable(await open(nameB));
    const found = await differences(a, b, io.signal);
    const sizes = a.sizeBytes === b.sizeBytes;
    const equal = sizes && found.bytes === 0;
    if (json) {
      const event = {
        event: "compared",
        equal,
        sizeA: a.sizeBytes,
        sizeB: b.sizeBytes,
        bytesDiffer: found.bytes,
        ranges: found.ranges,
      };
      io.out(`${JSON.stringify(event)}\n`);
    } else if (equal) io.out(`equal: ${formatSize(a.sizeBytes)}\n`);
    else {
      if (!sizes) io.out(`sizes differ: ${a.sizeBytes} and ${b.sizeBytes} bytes\n`);
      for (const range of found.ranges) io.out(`differ at ${range.offset}, ${range.length} bytes\n`);
      if (found.bytes > 0) io.out(`${formatSize(found.bytes)} differ in ${found.count} ranges\n`);
    }
    return equal ? exitCodes.done : exitCodes.differs;
  },
};

interface SideOptions extends Pick<LocationOptions, "format" | "credentials" | "log"> {
  readonly engine: Engine;
  readonly io: CliIo;
  readonly json: boolean;
}

/** A file of that name counts before a point. */
async function openSide(
  name: string,
  { engine, log, format, credentials, io, json }: SideOptions,
): Promise<BlockReader> {
  const { storage, clock } = engine;
  const match = isNbdUri(name) ? null : /^(.+)\/([^/@]+@[^/]+)$/.exec(name);
  if (match === null || (await storage.stat(resolve(io.cwd, name))) !== undefined) {
    return (await openLocation(name, { storage, clock, log, format, credentials, allowLive: true })).reader;
  }
  const [, directory = "", point = ""] = match;
  const named = parseDiskPoint(point, "compare");
  const { store } = await openStoreAt(directory, io, { json, singleProcess: false, level: "warn" });
  return withChosenPoint(store, named.disk, named.point, (sequence) => store.openPoint(named.disk, sequence));
}

interface Differences {
  readonly ranges: { offset: number; length: number }[];
  count: number;
  bytes: number;
}

/** Over the common length, in pieces of 4 KiB; a range that is a hole in both is skipped. */
async function differences(a: BlockReader, b: BlockReader, signal: AbortSignal): Promise<Differences> {
  const found: Differences = { ranges: [], count: 0, bytes: 0 };
  const length = Math.min(a.sizeBytes, b.sizeBytes);
  const bufferA = Buffer.alloc(MIB);
  const bufferB = Buffer.alloc(MIB);
  let end = -1;
  let done = 0;
  for await (const range of dataOfEither(a, b, length)) {
    for (let offset = Math.max(done, range.start); offset < range.end; offset += MIB) {
      if (signal.aborted) throw new ReplicationError("aborted", "stopped on request");
      const count = Math.min(MIB, range.end - offset);
      const partA = bufferA.subarray(0, count);
      const partB = bufferB.subarray(0, count);
      await a.read(partA, offset);
      await b.read(partB, offset);
      if (partA.equals(partB)) continue;
      for (let at = 0; at < count; at += grain) {
        const stop = Math.min(count, at + grain);
        if (Buffer.compare(partA.subarray(at, stop), partB.subarray(at, stop)) === 0) continue;
        found.bytes += stop - at;
        const last = found.ranges.at(-1);
        if (end === offset + at && last !== undefined) {
          if (found.count <= rangesShown) last.length += stop - at;
        } else {
          found.count++;
          if (found.count <= rangesShown) found.ranges.push({ offset: offset + at, length: stop - at });
        }
        end = offset + stop;
      }
    }
    done = Math.max(done, range.end);
  }
  return found;
}

/** Ranges that are data in at least one of the two, ascending; they may overlap. */
async function* dataOfEither(
  a: BlockReader,
  b: BlockReader,
  length: number,
): AsyncGenerator<{ readonly start: number; readonly end: number }> {
  const sides = [a, b].map((reader) => reader.extents(0, length)[Symbol.asyncIterator]());
  const next = await Promise.all(sides.map(nextData));
  for (;;) {
    let best = -1;
    for (const [index, range] of next.entries()) {
      if (range !== undefined && (best < 0 || range.start < (next[best]?.start ?? 0))) best = index;
    }
    const range = next[best];
    const side = sides[best];
    if (range === undefined || side === undefined) return;
    yield range;
    next[best] = await nextData(side);
  }
}

async function nextData(
  extents: ReturnType<ReturnType<BlockReader["extents"]>[typeof Symbol.asyncIterator]>,
): Promise<{ readonly start: number; readonly end: number } | undefined> {
  for (;;) {
    const step = await extents.next();
    if (step.done === true) return undefined;
    const { kind, offset, length } = step.value;
    if (kind === "data") return { start: offset, end: offset + length };
  }
}
