/**
 * The library. Opens things and puts the layers together; the command line does everything through it.
 *
 * A process makes one {@link createEngine | engine} (memory and lanes), and from it senders and receivers. Memory stays below the engine's pool
 * plus about 150 MiB for Node.js, lanes and tables, whatever the size and number of disks.
 */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { ReplicationError } from "./base/errors.ts";
import type { IdentityLimits } from "./replication/identity-limits.ts";
import type { Authorize } from "./replication/receiver.ts";
import { repairDisk, type RepairReport, rollBackDisk, type RollBackReport } from "./replication/store-work.ts";
import { createReceiver as createBareReceiver } from "./replication/receiver.ts";
import type { Engine } from "./replication/engine.ts";
import type { SenderOptions, Sender, SendSource } from "./replication/sender.ts";
import { createSender as createBareSender } from "./replication/sender.ts";
import { openImage } from "./image/open-image.ts";
import { copyPoint, dataBytesOf } from "./replica/restore-point.ts";
import { openRestoreTarget } from "./replica/restore-target.ts";
import { openStore, type Point, type Store } from "./replica/store.ts";
import { type VerifyReport, verifyStoredPoint } from "./replica/verify-point.ts";
import { createRateLimit } from "./replication/rate.ts";
import { createSeedTarget } from "./replication/seed/export.ts";
import { type ImportReport, importSeed as applySeed } from "./replication/seed/import.ts";
import type { FileLock } from "./storage/seam.ts";
import { type CredentialSource, connectTls, listenTls } from "./transport/tls.ts";
import { version } from "./version.ts";

export { ReplicationError, type ErrorCode } from "./base/errors.ts";
export type { Logger } from "./base/logger.ts";
export type { BlockReader, Extent } from "./image/block-device.ts";
export { createEngine, type Engine } from "./replication/engine.ts";
export type { SendReport } from "./replication/report.ts";
export type { Sender, SendProgress, SendSource } from "./replication/sender.ts";
export { openStore, type DiskSummary, type Point, type PointReader, type Store } from "./replica/store.ts";
export { loadCredentials } from "./transport/credentials.ts";
export { watchCredentials } from "./transport/credential-watch.ts";
export { createAuthority, issueCertificate } from "./transport/pki.ts";

/**
 * Opens what `location` names: a raw image file or a block device. What it is, is decided by content.
 * Errors: `image-not-found`, `image-format-unsupported`, `image-format-mismatch`, `image-in-use`, `image-unreadable`, `image-busy`
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
    /** Where it will be sent, for the lock that keeps one host from sending the same image twice at a time. */
    readonly target?: string;
  },
): Promise<SendSource & { close(): Promise<void> }> {
  const { engine } = options;
  const scheme = /^([a-z][a-z0-9+]+):\/\//.exec(location)?.[1];
  if (scheme !== undefined) {
    throw new ReplicationError(
      "image-format-unsupported",
      `${location}: images over ${scheme} are not supported by this version`,
    );
  }
  const image = await openImage(location, {
    storage: engine.storage,
    clock: engine.clock,
    format: options.format,
    allowLive: options.allowLive ?? false,
  });
  const lock = await lockSource(location, options.target, engine).catch(async (error: unknown) => {
    await image.reader.close();
    throw error;
  });
  return {
    reader: image.reader,
    name: image.path,
    identity: hash(`${engine.host} ${image.path} ${image.identity}`),
    guard: options.allowLive === true ? undefined : image.guard,
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

/** Stable over restarts: the same image of the same host is the same sender, and takes over from itself at once. */
function instanceOf(engine: Engine, location: string): string {
  return hash(`${engine.host} ${resolve(location)}`);
}

function hash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 32);
}

/** How to send; see {@link SenderOptions} for what the fields mean. */
export interface CreateSenderOptions
  extends Omit<
    SenderOptions,
    "connect" | "instance" | "software" | "lanes" | "pool" | "clock" | "random" | "log" | "codecs"
  > {
  readonly engine: Engine;
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
  const { engine, receiver, ...rest } = options;
  const whole = {
    ...rest,
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

/**
 * Applies an initial copy that was sent into a folder. Interrupted, it goes on when it is called again; a copy the store has already is left alone
 * (`created` false). Errors: `seed-not-found`, `seed-damaged`, `version-unsupported`, `feature-unsupported`, `target-exists` when the disk has other points,
 * `disk-owned`, `disk-busy`, `no-space`, `size-shrunk`, `block-size-differs`, `digest-kind-differs`, `aborted`, and those of a write.
 */
export function importSeed(
  store: Store,
  options: {
    readonly engine: Engine;
    readonly directory: string;
    /** Name of the certificate the disk will belong to. */
    readonly owner: string;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of the copy's files passed so far, and in all. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<ImportReport> {
  const { engine, directory, owner, signal, onProgress } = options;
  const { storage, lanes, pool, clock, random, log, codecs } = engine;
  return applySeed({
    ...{ store, storage, lanes, pool, clock, random, log, codecs, software: `replicate/${version}` },
    ...{ directory: resolve(directory), owner, signal, onProgress },
  });
}

/**
 * Gives up what an interrupted delta applied: the replica's file becomes the newest point again. Errors: `disk-busy`, `disk-not-found`,
 * `point-not-found`, `store-damaged`, `root-mismatch`, `aborted`, and those of a write. Interrupted, it is called again.
 */
export function rollBack(
  store: Store,
  disk: string,
  options: { readonly engine: Engine; readonly signal?: AbortSignal | undefined },
): Promise<RollBackReport> {
  const { lanes, pool, log, host } = options.engine;
  return rollBackDisk(store, disk, { lanes, pool, log, signal: options.signal, identity: `rollback on ${host}` });
}

/**
 * Reads the whole replica and marks what is not what the digest table says: the next send heals it, and points that need what is lost say so.
 * Errors as {@link rollBack}.
 */
export function repair(
  store: Store,
  disk: string,
  options: {
    readonly engine: Engine;
    readonly signal?: AbortSignal | undefined;
    readonly onProgress?: ((bytes: number) => void) | undefined;
  },
): Promise<RepairReport> {
  const { lanes, pool, log, host } = options.engine;
  const { signal, onProgress } = options;
  return repairDisk(store, disk, { lanes, pool, log, signal, onProgress, identity: `repair on ${host}` });
}

export interface CreateReceiverOptions {
  readonly engine: Engine;
  /** The store's directory; made when missing or empty. */
  readonly directory: string;
  readonly credentials: CredentialSource;
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** Identity → patterns of disk names (`*` any characters). Without it any certificate of an authority made by `replicate pki` may create disks, which it then owns. */
  readonly allow?: ReadonlyMap<string, readonly string[]> | undefined;
  readonly reserveBytes?: number | undefined;
  /** What one identity may take. Defaults: 128 sessions at a time, 1024 disks, whose sizes add up to 1 PiB. `Infinity`: no limit. */
  readonly perIdentity?: Partial<IdentityLimits> | undefined;
  /** Retention policy to store and follow from now on; default: the one that is stored. Written as docs/retention.md says. */
  readonly keep?: string | undefined;
  /** IANA name, for the calendar periods of a policy; default UTC. */
  readonly timeZone?: string | undefined;
  readonly singleProcess?: boolean | undefined;
  /** Number of this process, for the texts of locks. */
  readonly pid?: number | undefined;
  /** Called after each 16 MiB received, for a program that wants to collect short-lived garbage then (see `listenTls`). */
  readonly reclaim?: (() => void) | undefined;
  readonly onPoint?: (event: {
    readonly disk: string;
    readonly point: Point;
    readonly peer: { readonly name: string };
  }) => void;
}

/** A receiver that listens. */
export interface Receiver {
  readonly address: string;
  readonly port: number;
  readonly store: Store;
  /** Sessions under way. */
  readonly sessions: number;
  /** Stops listening, ends sessions so that they can be resumed, waits for the last queued write. */
  close(): Promise<void>;
}

/** Opens the store and listens. Errors of {@link openStore}, `usage` for a policy that makes no sense, and `listen-failed`. */
export async function createReceiver(options: CreateReceiverOptions): Promise<Receiver> {
  const { engine } = options;
  const { clock, random, log, storage, lanes, pool, codecs } = engine;
  const store = await openStore({
    path: options.directory,
    storage,
    clock,
    random,
    log,
    create: true,
    host: engine.host,
    keep: options.keep,
    timeZone: options.timeZone,
    ...(options.reserveBytes === undefined ? {} : { reserveBytes: options.reserveBytes }),
    ...(options.pid === undefined ? {} : { pid: options.pid }),
    ...(options.singleProcess === undefined ? {} : { singleProcess: options.singleProcess }),
  });
  const receiver = createBareReceiver({
    store,
    lanes,
    pool,
    clock,
    random,
    log,
    codecs,
    authorize: authorizeBy(options.allow),
    software: `replicate/${version}`,
    perIdentity: options.perIdentity,
    ...(options.onPoint === undefined ? {} : { onPoint: options.onPoint }),
  });
  const listener = await listenTls({
    host: options.host,
    port: options.port,
    credentials: options.credentials,
    clock,
    log,
    reclaim: options.reclaim,
    onLink: (link) => {
      receiver.accept(link);
    },
  });
  return {
    address: listener.address,
    port: listener.port,
    store,
    get sessions() {
      return receiver.sessions;
    },
    async close() {
      await listener.close();
      await receiver.close();
      await store.close();
    },
  };
}

function authorizeBy(allow: CreateReceiverOptions["allow"]): Authorize {
  return (peer, disk, owner) => {
    if (allow !== undefined) {
      const patterns = allow.get(peer.name) ?? [];
      if (patterns.some((pattern) => matches(pattern, disk))) return undefined;
      return new ReplicationError(
        "not-allowed",
        `${peer.name} may not write disk ${disk}: the receiver's --allow does not name it`,
      );
    }
    if (!peer.ownAuthority) {
      return new ReplicationError(
        "not-allowed",
        `${peer.name} may not write disk ${disk}: its certificate is not of an authority made by replicate pki, so the receiver needs --allow ${peer.name}=${disk}`,
      );
    }
    if (owner === undefined || owner === peer.name) return undefined;
    return new ReplicationError("disk-owned", `disk ${disk} belongs to ${owner}, not to ${peer.name}`, {
      details: { owner },
    });
  };
}

function matches(pattern: string, name: string): boolean {
  const parts = pattern.split("*").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`).test(name);
}

/** What restoring and verifying need of an engine: neither its memory nor its lanes, so `createEngine({ lanes: 0 })` will do. */
type ReadingEngine = Pick<Engine, "storage" | "clock">;

/**
 * Writes a recovery point to a raw image file or a block device, beside whatever is being done to its disk. A file is written under
 * another name (`TARGET.part`), synced and renamed; where the point is zero it is a hole. Of a device what lies behind the disk's size
 * stays. Each block is compared with its digest, and at the end the root of all of them with the point's. Aborting, like any error,
 * leaves no file; a device holds a part.
 *
 * Errors: `disk-not-found`, `point-not-found`; `store-damaged` and `replica-unreadable` for a point that cannot be told for sure; of the
 * target `target-exists` without `overwrite`, `target-unsuitable`, `target-too-small`, `no-space`, `image-in-use`, `image-busy`,
 * `write-failed`, `sync-failed`; `aborted`.
 */
export async function restorePoint(
  store: Store,
  options: {
    readonly engine: ReadingEngine;
    readonly disk: string;
    readonly point: number | "newest";
    /** Path of the file or device. */
    readonly target: string;
    /** Replace a file that exists; write over a block device. */
    readonly overwrite?: boolean | undefined;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of data written so far, and in all. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<{ readonly point: Point; readonly writtenBytes: number }> {
  const { engine, onProgress } = options;
  const reader = await store.openPoint(options.disk, options.point);
  try {
    const dataBytes = await dataBytesOf(reader);
    const target = await openRestoreTarget(options.target, {
      storage: engine.storage,
      sizeBytes: reader.sizeBytes,
      dataBytes,
      overwrite: options.overwrite ?? false,
    });
    try {
      const writtenBytes = await copyPoint(reader, target.writer, {
        clear: target.clear,
        signal: options.signal,
        onProgress: (doneBytes) => onProgress?.(doneBytes, dataBytes),
      });
      await target.finish();
      return { point: reader.point, writtenBytes };
    } finally {
      await target.close();
    }
  } finally {
    await reader.close();
  }
}

/**
 * Reads a recovery point again, beside whatever is being done to its disk: every block is compared with its digest, the root of the
 * digests with the point's record. Damage is reported, with the newest other point that has good content for it; it is not thrown. A
 * point whose undo logs or record are damaged cannot be opened: `store-damaged`. Errors besides: `disk-not-found`, `point-not-found`,
 * `aborted`.
 */
export async function verifyPoint(
  store: Store,
  options: {
    readonly engine: ReadingEngine;
    readonly disk: string;
    readonly point: number | "newest";
    /** Bytes read a second, at most; default: no limit. */
    readonly rate?: number | undefined;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of the disk passed so far, and in all. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<VerifyReport> {
  const { signal, onProgress, engine } = options;
  const limit = createRateLimit(engine.clock, options.rate);
  const never = new AbortController().signal;
  return verifyStoredPoint(store, options.disk, options.point, {
    signal,
    pace: (bytes) => limit.take(bytes, signal ?? never),
    onProgress: (doneBytes, totalBytes) => onProgress?.(doneBytes, totalBytes),
  });
}
