/** Receiving: a store that listens, and initial copies that came as files. */
import { resolve } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import { type Adopted, type ImageToAdopt, openStore, type Point, type Store } from "../replica/store.ts";
import { adoptDisk } from "../replication/adopt.ts";
import type { Engine } from "../replication/engine.ts";
import type { GivenLimits } from "../replication/identity-limits.ts";
import type { Authorize } from "../replication/receiver.ts";
import { createReceiver as createBareReceiver } from "../replication/receiver.ts";
import { type ImportReport, importSeed as applySeed } from "../replication/seed/import.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { listenTls } from "../transport/tls.ts";
import { version } from "../version.ts";

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
  /**
   * When free space is below the reserve, or a delta runs out of room. `stop` (the default): new deltas are refused. `drop-oldest`: the oldest points of that disk
   * go, one after another, until there is room; never the newest, one that is held or in use, or one behind such a point.
   */
  readonly whenFull?: "stop" | "drop-oldest" | undefined;
  /** What one identity may take. Defaults: 128 sessions at a time, 1024 disks, whose sizes add up to 1 PiB. `Infinity`: no limit. */
  readonly perIdentity?: GivenLimits | undefined;
  /** What replicas of disks that are new are: raw images (default), or dynamic VHDX images. Disks that exist stay as they are. */
  readonly format?: "raw" | "vhdx" | undefined;
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
    newDisks: options.format === undefined ? undefined : { format: options.format },
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
    whenFull: options.whenFull,
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

/**
 * Applies an initial copy that was sent into a folder. Interrupted, it goes on when it is called again; a copy the store has already is left alone
 * (`created` false). Errors: `seed-not-found`, `seed-damaged`, `version-unsupported`, `feature-unsupported`, `target-exists` when the disk has other points,
 * `disk-owned`, `disk-busy`, `no-space`, `block-size-differs`, `digest-kind-differs`, `aborted`, and those of a write.
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
 * Makes a raw image file that exists the replica of a new disk, with one point, so that the first send of the disk ships only what differs: a restored backup,
 * a shipped disk. The image is read, not changed, and stays where it lies, or is moved into the store (`move`, on one file system). From then on it is the
 * store's: only its receiver may write to it, and it must not be removed. Called again after a crash it ends what was begun; for an image that the disk has
 * already it does nothing (`created` false).
 *
 * Errors: `image-not-found`, `image-unreadable`, `image-format-unsupported`, `image-format-mismatch`, `image-in-use`, `image-busy`, `image-changed`,
 * `target-unsuitable`, `target-exists`, `disk-owned`, `block-size-differs`, `digest-kind-differs`, `disk-busy`, `limit-exceeded`, `store-damaged`, `no-space`,
 * `aborted`, and those of a write. After them there is no disk, and the image is as it was.
 */
export function adoptImage(
  store: Store,
  options: ImageToAdopt & {
    readonly engine: Engine;
    readonly disk: string;
    readonly signal?: AbortSignal | undefined;
    /** Bytes of the image passed so far, and its size. */
    readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  },
): Promise<Adopted> {
  const { engine, disk, image, ...facts } = options;
  const { lanes, pool } = engine;
  return adoptDisk(store, disk, { ...facts, image: resolve(image), lanes, pool });
}
