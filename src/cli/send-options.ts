/** What `send` is told: where to, and how. */
import { resolve } from "node:path";
import { checkDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import { isBlockSize } from "../base/units.ts";
import type { BitmapOptions } from "../library/bitmap-source.ts";
import type { Engine } from "../replication/engine.ts";
import { needed, type ParsedArguments } from "./arguments.ts";
import { disposable } from "./disposable.ts";
import { parseAddress, parseCount, parseEvery, parseRate, parseShare, parseSize, parseWord } from "./values.ts";

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

export function parseDestination(given: ParsedArguments, place: string, cwd: string): Folder | Network {
  const folder = given.text("to-dir");
  const overwrite = given.flag("force");
  if (folder !== undefined) {
    const directory = resolve(cwd, folder);
    // The host of HOST:PORT/DISK means nothing here.
    const disk = parseDisk(place.slice(place.lastIndexOf("/") + 1));
    return { disk, target: directory, directory, overwrite };
  }
  if (overwrite) throw new ReplicationError("usage", "send: --force goes with --to-dir");
  return parseNetwork(given, place, { verb: "send", withDisk: true });
}

/** `HOST:PORT/DISK`, or `HOST:PORT` for several disks: then the disk is empty. */
export function parseNetwork(
  given: ParsedArguments,
  target: string,
  { verb, withDisk }: { readonly verb: string; readonly withDisk: boolean },
): Network {
  const tls = needed(given.text("tls"), verb, "--tls DIR/NAME");
  const place = withDisk ? parseTarget(target) : { ...parseAddress(target, "HOST:PORT"), disk: "" };
  return { ...place, target, tls, fingerprint: given.text("fingerprint") };
}

/** Where to connect to. A certificate that is renewed on disk is used by the next connection, until it is closed. */
export async function networkReceiver(
  { host, port, tls, fingerprint }: Pick<Network, "host" | "port" | "tls" | "fingerprint">,
  { clock, log }: Pick<Engine, "clock" | "log">,
) {
  const { watchCredentials } = await import("../transport/credential-watch.ts");
  const credentials = await watchCredentials(tls, { clock, log });
  const close = async (): Promise<void> => credentials.close();
  return disposable({ host, port, credentials, fingerprint, close });
}

export function sendOptions(given: ParsedArguments) {
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

/** Undefined: what was sent is not kept, and nothing is known of what changed since. */
export function knownChanges(given: ParsedArguments): BitmapOptions | undefined {
  const [stateFile, bitmap, audit] = [given.text("state"), given.text("bitmap"), given.text("audit")];
  if (bitmap !== undefined && stateFile === undefined) {
    throw new ReplicationError("usage", "send: --bitmap goes with --state FILE");
  }
  if (audit !== undefined && bitmap === undefined) {
    throw new ReplicationError("usage", "send: --audit goes with --bitmap");
  }
  if (stateFile === undefined) return undefined;
  const other = given.texts("disk").length > 0 ? "--disk" : given.text("to-dir") === undefined ? undefined : "--to-dir";
  if (other !== undefined) throw new ReplicationError("usage", `send: --state does not go with ${other}`);
  return { stateFile, bitmap, auditShare: audit === undefined ? undefined : parseShare(audit) };
}

/** Throws `usage` for what makes sense once only. */
export function checkEvery(given: ParsedArguments): void {
  const every = given.text("every");
  if (every === undefined) return;
  parseEvery(every);
  const other = ["to-dir", "bitmap"].find((option) => given.text(option) !== undefined);
  if (other !== undefined) throw new ReplicationError("usage", `send: --every does not go with --${other}`);
}

function parseBlock(text: string): number {
  const bytes = parseSize(text, "--block");
  if (isBlockSize(bytes)) return bytes;
  throw new ReplicationError("usage", `--block: ${JSON.stringify(text)} is not a power of two from 16KiB to 1MiB`);
}

/** Several disks of one machine. */
interface Machine extends Omit<Network, "disk"> {
  readonly machine: string;
  readonly images: readonly { readonly name: string; readonly image: string }[];
}

export function parseMachine(given: ParsedArguments): Machine {
  const [machine = "", target = ""] = given.positionals;
  for (const option of ["to-dir", "force", "skip-empty"]) {
    if (given.text(option) !== undefined || given.flag(option)) {
      throw new ReplicationError("usage", `send: --${option} does not go with --disk`);
    }
  }
  const images = parseDisks(given, "send");
  const { disk: _none, ...network } = parseNetwork(given, target, { verb: "send", withDisk: false });
  return { machine, images, ...network };
}

/** Each `--disk NAME=IMAGE` of the machine that the first argument names. */
export function parseDisks(given: ParsedArguments, verb: string): Machine["images"] {
  const [machine = ""] = given.positionals;
  const images = given.texts("disk").map((text) => {
    const at = text.indexOf("=");
    if (at < 1 || at === text.length - 1) {
      throw new ReplicationError("usage", `${verb}: --disk ${JSON.stringify(text)} is not NAME=IMAGE`);
    }
    const name = text.slice(0, at);
    parseDisk(`${machine}.${name}`);
    return { name, image: text.slice(at + 1) };
  });
  if (new Set(images.map(({ name }) => name)).size < images.length) {
    throw new ReplicationError("usage", `${verb}: two of the --disk have the same name`);
  }
  return images;
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
