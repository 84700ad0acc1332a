import { basename, resolve } from "node:path";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { detectFormat, detectHeadBytes, detectTailBytes, formatTitle, promisedFormat } from "../image/detect.ts";
import { openImage } from "../image/open-image.ts";
import { inspectVhd } from "../image/vhd/inspect.ts";
import { inspectVhdx } from "../image/vhdx/inspect.ts";
import { inspectStoreFile } from "../replica/store.ts";
import { inspectSeedFile } from "../replication/seed/inspect.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";
import { describeJournal } from "../track/journal/describe.ts";
import { describeKnownState } from "../track/known-state.ts";
import { createFrameDecoder } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { formatSize, formatTime } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate inspect FILE [--json]

Shows what a file is: a file of a store (store.json, disk.json, a point, session.json, an undo log, digests, pages, a lock), a part or
the manifest of a copy in files, a bitmap journal or known state, frames of the protocol as bytes or as hexadecimal text, or a disk image. What is wrong with it is said in words; then the exit code is 1.

  --json                 one JSON object a line on standard output

Exit codes: 0 whole, 1 damaged or not there, 2 wrong usage.

Example:
  replicate inspect /srv/replicas/disks/web/points/0000000001.json
`;

/** Frames are looked for in files up to this size: a capture, not a disk. */
const framesBytesMax = 64 * MIB;
/** Hexadecimal text is looked for in files up to this size. */
const hexBytesMax = 4 * MIB;
/** How a frame begins: "RP", then a type, then flags and reserved bytes, which are 0. */
const frameStart = /^RP[^\0]\0{5}/;
/** Of a long value this much is printed for people; JSON has it whole. */
const valueCharsMax = 100;

/** What was found; `trouble` undefined: nothing is wrong with it. */
interface Found {
  readonly kind: string;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly trouble: string | undefined;
}

export const inspectVerb: Verb = {
  help,
  async run(args, io) {
    const given = parseArguments(args, { verb: "inspect", flags: ["json"], positionals: ["FILE"] });
    const path = resolve(io.cwd, given.positionals[0] ?? "");
    const found = await look(createNodeStorage(), path);
    for (const each of found) show(each, io, given.flag("json"));
    return found.some((each) => each.trouble !== undefined) ? exitCodes.failed : exitCodes.done;
  },
};

async function look(storage: Storage, path: string): Promise<readonly Found[]> {
  const stat = await storage.stat(path);
  if (stat === undefined) throw new ReplicationError("image-not-found", `there is no file ${path}: check the path`);
  if (stat.kind === "directory") {
    throw new ReplicationError(
      "image-unreadable",
      `${path} is a directory: name one file; replicate disks --store DIR shows a whole store`,
    );
  }
  const described = await inspectStoreFile(storage, path);
  if (described !== undefined) {
    const { kind, sizeBytes: fileBytes, facts, trouble } = described;
    return [{ kind, facts: { fileBytes, ...facts }, trouble }];
  }
  const journal = stat.kind === "file" ? await describeJournal(storage, path) : undefined;
  if (journal !== undefined) return [journal];
  const state = stat.kind === "file" ? await describeKnownState(storage, path) : undefined;
  if (state !== undefined) return [state];
  const seed = await inspectSeedFile(storage, path);
  if (seed !== undefined) return [{ ...seed, facts: { fileBytes: stat.sizeBytes, ...seed.facts } }];
  const small = stat.kind === "file" && stat.sizeBytes <= framesBytesMax;
  const frames = small ? await framesOf(storage, path, stat.sizeBytes) : undefined;
  return frames ?? [await imageOf(storage, path)];
}

/** What it looks like and how large it is; formats this version cannot send are named all the same. */
async function imageOf(storage: Storage, path: string): Promise<Found> {
  const { reader } = await openImage(path, { storage, format: "raw", allowLive: true });
  try {
    const { sizeBytes, sectorBytes } = reader;
    const head = new Uint8Array(Math.min(detectHeadBytes, sizeBytes));
    const tail = new Uint8Array(Math.min(detectTailBytes, sizeBytes));
    await reader.read(head, 0);
    await reader.read(tail, sizeBytes - tail.length);
    const format = detectFormat({ head, tail });
    const allocatedBytes = (await storage.stat(path))?.allocatedBytes;
    if (format === "vhdx" || format === "vhd") {
      const { facts, trouble } = await (format === "vhdx" ? inspectVhdx : inspectVhd)(storage, path);
      return { kind: "image", facts: { ...facts, allocatedBytes }, trouble };
    }
    // The size of another format's disk is not the size of its file.
    if (format !== "raw")
      return { kind: "image", facts: { format, fileBytes: sizeBytes, allocatedBytes }, trouble: undefined };
    const facts = { format, sizeBytes, sectorBytes, allocatedBytes };
    const promised = promisedFormat(basename(path));
    if (promised === undefined || promised === "raw") return { kind: "image", facts, trouble: undefined };
    const trouble = `it is named like ${formatTitle(promised)} but does not have its signature: damaged, incomplete or misnamed`;
    return { kind: "image", facts, trouble };
  } finally {
    await reader.close();
  }
}

/** Undefined: the file does not begin like a frame, neither as bytes nor as hexadecimal text. */
async function framesOf(storage: Storage, path: string, sizeBytes: number): Promise<readonly Found[] | undefined> {
  const file = await storage.open(path);
  try {
    const start = Buffer.alloc(Math.min(sizeBytes, 16));
    await file.read(start, 0);
    const isText = /^\s*[0-9a-f]/i.test(start.toString("latin1")) && sizeBytes <= hexBytesMax;
    if (!isText && !frameStart.test(start.toString("latin1"))) return undefined;
    const bytes = Buffer.alloc(sizeBytes);
    await file.read(bytes, 0);
    if (!isText) return decodeFrames(bytes);
    const text = bytes.toString("latin1").replace(/\s/g, "");
    if (/[^0-9a-f]/i.test(text)) return undefined;
    const meant = Buffer.from(text, "hex");
    return frameStart.test(meant.toString("latin1", 0, 16)) ? decodeFrames(meant) : undefined;
  } finally {
    await file.close();
  }
}

/** Frames up to the first that is damaged: where the next one begins cannot be told then. */
function decodeFrames(bytes: Uint8Array): readonly Found[] {
  const found: Found[] = [];
  let at = 0;
  const decoder = createFrameDecoder({
    payloadTarget: (_message, payloadBytes) => new Uint8Array(payloadBytes),
    onFrame: ({ message, payload, frameBytes }) => {
      found.push({
        kind: `frame ${message.type}`,
        facts: { at, frameBytes, ...factsOf(message, payload.length) },
        trouble: undefined,
      });
      at += frameBytes;
    },
  });
  const broken = (trouble: string): readonly Found[] => [...found, { kind: "frame", facts: { at }, trouble }];
  try {
    decoder.push(bytes);
  } catch (thrown) {
    return broken(toReplicationError(thrown).message.replace("the peer sent a malformed frame: ", ""));
  }
  return decoder.atBoundary ? found : broken("the file ends in the middle of a frame");
}

function factsOf(message: Message, payloadBytes: number): Readonly<Record<string, unknown>> {
  const facts: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(message)) {
    if (key !== "type") facts[key] = value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value;
  }
  return payloadBytes === 0 ? facts : { ...facts, payloadBytes };
}

function show(found: Found, io: CliIo, json: boolean): void {
  if (json) {
    io.out(`${JSON.stringify({ kind: found.kind, ...found.facts, trouble: found.trouble ?? null })}\n`);
    return;
  }
  const facts = Object.entries(found.facts).filter(([, value]) => value !== undefined);
  if (found.kind.startsWith("frame")) {
    const words = facts.map(([key, value]) => ` ${key}=${shorten(JSON.stringify(value))}`);
    io.out(`${found.kind}${words.join("")}${found.trouble === undefined ? "" : ` trouble: ${found.trouble}`}\n`);
    return;
  }
  io.out(`${found.kind}\n`);
  const width = Math.max(18, ...facts.map(([key]) => key.length + 2));
  for (const [key, value] of facts) io.out(`  ${key.padEnd(width)}${printable(valueText(key, value))}\n`);
  if (found.trouble !== undefined) io.out(`  ${"trouble".padEnd(width)}${printable(found.trouble)}\n`);
}

function valueText(key: string, value: unknown): string {
  if (typeof value === "number" && key.endsWith("Bytes")) return `${value} (${formatSize(value)})`;
  if (typeof value === "number" && (key === "time" || key === "since")) return formatTime(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** What an image says of itself may hold what a terminal would take for a command. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, "?");
}

function shorten(text: string): string {
  return text.length <= valueCharsMax ? text : `${text.slice(0, valueCharsMax)}...`;
}
