import { resolve } from "node:path";
import { toReplicationError } from "../base/errors.ts";
import { openImage } from "../index.ts";
import { inspectStoreFile } from "../replica/store.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import { createFrameDecoder } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { formatSize } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate inspect FILE [--json]

Shows what a file is: a file of a store (store.json, disk.json, a point, session.json, an undo log, digests, pages, a lock), frames of the
protocol as bytes, or a disk image. What is wrong with it is said in words; then the exit code is 1.

Example:
  replicate inspect /srv/replicas/disks/web/points/0000000001.json
`;

/** Frames are looked for in files up to this size: a capture, not a disk. */
const framesBytesMax = 64 * 1024 * 1024;

/** What was found; `trouble` undefined: nothing is wrong with it. */
interface Found {
  readonly kind: string;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly trouble: string | undefined;
}

export const inspectVerb: Verb = {
  name: "inspect",
  summary: "show what a file of a store, an image or a capture of frames is",
  help,
  async run(args, io) {
    const given = parseArguments(args, { verb: "inspect", flags: ["json"], positionals: ["FILE"] });
    const path = resolve(io.cwd, given.positionals[0] ?? "");
    const found = await look(path);
    for (const each of found) show(each, io, given.flag("json"));
    return found.some((each) => each.trouble !== undefined) ? exitCodes.failed : exitCodes.done;
  },
};

async function look(path: string): Promise<readonly Found[]> {
  const storage = createNodeStorage();
  const described = await inspectStoreFile(storage, path);
  if (described !== undefined) {
    const { kind, sizeBytes, facts, trouble } = described;
    return [{ kind, facts: { sizeBytes, ...facts }, trouble }];
  }
  const frames = await framesOf(path);
  return frames ?? [await imageOf(path)];
}

async function imageOf(path: string): Promise<Found> {
  const storage = createNodeStorage();
  const image = await openImage(path, { storage, allowLive: true });
  const { sizeBytes, sectorBytes } = image.reader;
  await image.reader.close();
  const stat = await storage.stat(path);
  const facts = { format: image.format, sizeBytes, sectorBytes, allocatedBytes: stat?.allocatedBytes };
  return { kind: "image", facts, trouble: undefined };
}

/** Undefined: the file does not begin with a frame. */
async function framesOf(path: string): Promise<readonly Found[] | undefined> {
  const storage = createNodeStorage();
  const stat = await storage.stat(path);
  if (stat?.kind !== "file" || stat.sizeBytes === 0 || stat.sizeBytes > framesBytesMax) return undefined;
  const file = await storage.open(path);
  const bytes = Buffer.alloc(stat.sizeBytes);
  await file.read(bytes, 0);
  await file.close();
  const found: Found[] = [];
  const decoder = createFrameDecoder({
    payloadTarget: (_message, payloadBytes) => new Uint8Array(payloadBytes),
    onFrame: ({ message, payload }) => {
      found.push({ kind: `frame ${message.type}`, facts: factsOf(message, payload.length), trouble: undefined });
    },
  });
  try {
    decoder.push(bytes);
  } catch (thrown) {
    const error = toReplicationError(thrown);
    if (found.length === 0) return undefined;
    return [...found, { kind: "frame", facts: {}, trouble: error.message }];
  }
  if (decoder.atBoundary) return found;
  if (found.length === 0) return undefined;
  return [...found, { kind: "frame", facts: {}, trouble: "the file ends in the middle of a frame" }];
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
  io.out(`${found.kind}\n`);
  for (const [key, value] of Object.entries(found.facts)) {
    if (value !== undefined) io.out(`  ${key.padEnd(18)}${text(key, value)}\n`);
  }
  if (found.trouble !== undefined) io.out(`  trouble           ${found.trouble}\n`);
}

function text(key: string, value: unknown): string {
  if (key.endsWith("Bytes") && typeof value === "number") return `${value} (${formatSize(value)})`;
  return typeof value === "string" ? value : JSON.stringify(value);
}
