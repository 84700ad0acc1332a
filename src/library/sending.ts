/** Sending images: sources, senders over the network and into files. */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { checkDiskName } from "../base/disk-name.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Engine } from "../replication/engine.ts";
import { createMachineSender as createBareMachineSender, type MachineSender } from "../replication/machine.ts";
import { createRateLimit, type RateLimit } from "../replication/rate.ts";
import type { SendReport } from "../replication/report.ts";
import { createSeedTarget } from "../replication/seed/export.ts";
import type { Sender, SenderOptions, SendSource } from "../replication/sender.ts";
import { createSender as createBareSender } from "../replication/sender.ts";
import type { FileLock } from "../storage/seam.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { connectTls } from "../transport/tls.ts";
import { version } from "../version.ts";
import type { BitmapChanges, BitmapOptions } from "./bitmap-source.ts";
import { nameOfLocation, openLocation } from "./locations.ts";

export interface OpenSource extends SendSource {
  /** After a send that succeeded, where `known` was given: keeps what the next send is relative to. */
  sent(report: SendReport): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens what `location` names: a raw image, a VHDX or VHD image with those it builds upon, a block device, or an export of an NBD server
 * (`nbd://host:port/export`, `nbds://...`, `nbd+unix:///export?socket=/path`). What a file is, is decided by content.
 * Errors: of the NBD client (docs/nbd.md); `image-not-found`, `image-format-unsupported`, `image-format-mismatch`, `image-damaged`, `image-in-use`, `image-unreadable`, `image-busy`
 * when a process of this user sends it to the same `target` already, and `locks-unsupported` when that cannot be told.
 */
export async function openSource(
  location: string,
  options: {
    readonly engine: Engine;
    /** Read the bytes as they are, whatever they look like. */
    readonly format?: "raw" | undefined;
    /** Send an image that changes meanwhile, at the user's word; the point says `none`. */
    readonly allowLive?: boolean;
    /** Certificates of this side for an `nbds` address. */
    readonly credentials?: CredentialSource | undefined;
    /** What is known of its changes since it was sent last. A bitmap is one of an NBD server. */
    readonly known?: BitmapOptions | undefined;
    /** Where it will be sent, for the lock that keeps one host from sending the same image twice at a time. */
    readonly target?: string;
  },
): Promise<OpenSource> {
  const { engine } = options;
  const { storage, clock, log } = engine;
  const { format, allowLive = false, credentials, known } = options;
  const how = { storage, clock, log, format, allowLive, credentials, bitmap: known?.bitmap };
  const image = await openLocation(location, how);
  const { name } = image;
  for (const remark of image.remarks) log.warn({ image: name }, remark);
  let lock: FileLock | undefined;
  let bitmap: BitmapChanges | undefined;
  try {
    lock = await lockSource(location, options.target, engine);
    bitmap =
      known === undefined ? undefined : await (await import("./bitmap-source.ts")).readBitmap(image, known, engine);
  } catch (error) {
    await image.reader.close();
    await lock?.release();
    throw error;
  }
  return {
    reader: image.reader,
    name,
    identity: identityOf(engine, name, image.identity),
    guard: allowLive ? undefined : image.guard,
    changes: bitmap?.changes,
    sent: async (report) => await bitmap?.sent(report),
    async close() {
      await image.reader.close();
      await lock?.release();
    },
  };
}

/** Keeps this user's other processes from sending the same image to the same target meanwhile. Undefined: there are no locks here. */
async function lockSource(location: string, target: string | undefined, engine: Engine): Promise<FileLock | undefined> {
  const { storage } = engine;
  if (!storage.capabilities.locks || storage.lockName === undefined) return undefined;
  let lock: FileLock | undefined;
  try {
    lock = await storage.lockName(hash(`${instanceOf(engine, location)} ${target ?? ""}`));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ReplicationError(
      "locks-unsupported",
      `no lock can be made for sending ${location} (${reason}): set TMPDIR to a folder of a local file system that this user can write to`,
      { cause: error },
    );
  }
  if (lock !== undefined) return lock;
  throw new ReplicationError(
    "image-busy",
    `${location} is being sent to ${target ?? "a receiver"} by another process of this host`,
  );
}

/** An address is the same image whoever reads it; a path is one of this host. */
export function identityOf({ host }: Engine, name: string, fileIdentity: string | undefined): string {
  return hash(fileIdentity === undefined ? name : `${host} ${name} ${fileIdentity}`);
}

/** Stable over restarts: the same image of the same host is the same sender, and takes over from itself at once. */
function instanceOf(engine: Engine, location: string): string {
  return hash(`${engine.host} ${nameOfLocation(location)}`);
}

function hash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 32);
}

/** How to send; see {@link SenderOptions} for what the fields mean. */
export interface CreateSenderOptions
  extends Omit<
    SenderOptions,
    "connect" | "instance" | "software" | "lanes" | "pool" | "clock" | "random" | "log" | "codecs" | "rate" | "limit"
  > {
  readonly engine: Engine;
  /** Bytes a second that are sent, by all senders of the engine that were given the same figure together: they share a link. */
  readonly rate?: number | undefined;
  readonly receiver: NetworkReceiver | SeedFolder;
}

interface NetworkReceiver {
  readonly host: string;
  readonly port: number;
  readonly credentials: CredentialSource;
  /** SHA-256 of the receiver's certificate: accept exactly it instead of any of the authority. */
  readonly fingerprint?: string | undefined;
}

/** In place of a receiver: an initial copy into files, for {@link importSeed} elsewhere. Makes no point; files are not encrypted. */
interface SeedFolder {
  /** Made when it is missing. One that is not empty is `target-exists`, except for what an export of the same disk that was interrupted left. */
  readonly directory: string;
  /** Remove a copy that is there, and work beside other files. */
  readonly overwrite?: boolean | undefined;
}

/**
 * A sender of one image. `run()` once; it resolves when the state of the image is a durable recovery point at the receiver. The source stays open:
 * who opened it closes it.
 */
export function createSender(options: CreateSenderOptions): Sender {
  const { engine, receiver, rate, ...rest } = options;
  const whole = {
    ...rest,
    limit: sharedLimit(engine, rate),
    lanes: engine.lanes,
    pool: engine.pool,
    clock: engine.clock,
    random: engine.random,
    log: engine.log,
    codecs: engine.codecs,
    software: `replicate/${version}`,
    instance: instanceOf(engine, options.source.name),
  };
  if ("directory" in receiver) return createSeedSender(engine, whole, receiver);
  return createBareSender({
    ...whole,
    connect: (signal) =>
      connectTls({
        host: receiver.host,
        port: receiver.port,
        credentials: receiver.credentials,
        ...(receiver.fingerprint === undefined ? {} : { fingerprint: receiver.fingerprint }),
        clock: engine.clock,
        log: engine.log,
        signal,
      }),
  });
}

const limitsOf = new WeakMap<Engine, Map<number, RateLimit>>();

/** Disks of a machine, and passes and cycles of a tracked image, have a sender each: a limit of their own would let all of them together send more. */
function sharedLimit(engine: Engine, rate: number | undefined): RateLimit | undefined {
  if (rate === undefined) return undefined;
  const known = limitsOf.get(engine) ?? new Map<number, RateLimit>();
  limitsOf.set(engine, known);
  const limit = known.get(rate) ?? createRateLimit(engine.clock, rate);
  known.set(rate, limit);
  return limit;
}

/** How to send several disks; see {@link CreateSenderOptions} for what the fields mean. */
export interface CreateMachineSenderOptions
  extends Omit<CreateSenderOptions, "source" | "disk" | "receiver" | "cut" | "skipEmpty"> {
  readonly receiver: NetworkReceiver;
  /** The disks at the receiver are named `MACHINE.NAME`. */
  readonly machine: string;
  readonly disks: readonly { readonly name: string; readonly source: SendSource }[];
}

/**
 * A sender of several disks as they are at one moment. `run()` once; it resolves when each has its point of the cut. Sources stay open. Throws `usage`,
 * `disk-name-invalid`.
 */
export function createMachineSender(options: CreateMachineSenderOptions): MachineSender {
  const { machine, disks, ...rest } = options;
  const { clock, random, log } = options.engine;
  const named = disks.map(({ name, source }) => ({ disk: diskOfMachine(machine, name), source }));
  for (const { disk } of named) checkDiskName(disk);
  return createBareMachineSender({
    disks: named,
    createSender: ({ disk, source }, cut) => createSender({ ...rest, disk, source, cut }),
    ...{ clock, random, log },
  });
}

/** Name at the receiver. */
export function diskOfMachine(machine: string, name: string): string {
  return `${machine}.${name}`;
}

function createSeedSender(engine: Engine, options: Omit<SenderOptions, "connect">, folder: SeedFolder): Sender {
  const { storage, clock, log, codecs } = engine;
  const target = createSeedTarget({
    ...{ storage, clock, log, software: options.software },
    directory: resolve(folder.directory),
    overwrite: folder.overwrite,
    // Who will read it is not known, and not everybody has zstd.
    codecs: codecs.filter((codec) => codec !== "zstd" || options.codec === "zstd"),
  });
  // What went wrong with a folder once goes wrong again, and nothing of an attempt is of use to the next.
  const sender = createBareSender({ ...options, connect: target.connect, connections: 1, attemptsMax: 1 });
  return {
    progress: () => sender.progress(),
    async run(signal) {
      try {
        return await sender.run(signal);
      } finally {
        await target.settled();
      }
    },
  };
}
