/** Tracked images: served to a hypervisor over NBD, and sent cycle by cycle. */
import { dirname, resolve } from "node:path";
import { invariant, ReplicationError } from "../base/errors.ts";
import { BLOCK_BYTES_DEFAULT } from "../base/units.ts";
import { openImage } from "../image/open-image.ts";
import { createRawWriter, rawSectorBytes } from "../image/raw.ts";
import { formatNbdUri, type NbdPlace } from "../nbd/nbd-uri.ts";
import { listenNbd } from "../nbd/server.ts";
import type { Engine } from "../replication/engine.ts";
import { TrackedSender, type TrackedSenderOptions } from "../replication/tracked-sender.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";
import { type Belief, type JournalMode, leastAuditShareOf } from "../track/belief.ts";
import { fingerprintOf } from "../track/fingerprint.ts";
import { journalPathOf, openJournal } from "../track/journal/open.ts";
import { type KnownStates, knownStatePathOf, openKnownStates } from "../track/known-state.ts";
import type { Scan } from "../track/scan-reason.ts";
import { TrackedImage, type TrackedImageOptions } from "../track/tracked-image.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { checkServed } from "./exporting.ts";
import {
  type CreateMachineSenderOptions,
  type CreateSenderOptions,
  createMachineSender,
  createSender,
  diskOfMachine,
  identityOf,
} from "./sending.ts";

export interface OpenTrackedOptions {
  readonly engine: Engine;
  /** Default: `IMAGE.rbj`, beside the image; a device has no default. */
  readonly journal?: string | undefined;
  /** Default `power`. */
  readonly mode?: JournalMode | undefined;
  /** Bytes; default 64 KiB. That of the disk at the receiver makes the least work. */
  readonly blockBytes?: number | undefined;
  /** Read and write the bytes as they are, whatever they look like. */
  readonly format?: "raw" | undefined;
  /** Told when the journal cannot be written any more: everything is dirty then, and what changes from then on is known as long as the process runs. */
  readonly onFailure?: ((failure: Scan) => void) | undefined;
  /** Told when a journal that could not be written is kept again, which is tried at the end of each cycle. */
  readonly onKept?: (() => void) | undefined;
}

export interface Tracked {
  /** Absolute path of the image. */
  readonly name: string;
  /** As of a source. */
  readonly identity: string;
  readonly image: TrackedImage;
  /** Its bytes are the disk's; undefined: they are reached through the image alone. */
  readonly file: StorageFile | undefined;
  readonly states: KnownStates;
  /** Path of the known state of the base. */
  readonly stateFile: string;
  /** Whether what changed while nobody watched is known. */
  readonly belief: Belief;
  /** After servers and senders have ended. What was written is durable, and the journal is closed. */
  close(): Promise<void>;
}

export interface ServedImages {
  /** In the order of the images. */
  readonly uris: readonly string[];
  readonly connections: number;
  close(): Promise<void>;
}

/**
 * Opens a raw image or a block device to be written through this process only: it is locked against other trackers. Errors: of `openImage`; `image-in-use`: QEMU writes to it; `image-busy`: another
 * process tracks it; `image-format-unsupported` for other formats; `sync-failed`; `usage`: a device without a path for its journal.
 */
export async function openTracked(path: string, options: OpenTrackedOptions): Promise<Tracked> {
  const { engine } = options;
  const { storage } = engine;
  const looked = await openImage(path, { storage, clock: engine.clock, format: options.format });
  const { path: name, identity } = looked;
  const { sizeBytes } = looked.reader;
  await looked.reader.close();
  if (looked.format !== "raw") {
    throw new ReplicationError(
      "image-format-unsupported",
      `${name} is a ${looked.format} image: only raw images and devices are tracked so far`,
    );
  }
  if (isDevice(identity) && options.journal === undefined) {
    throw new ReplicationError(
      "usage",
      `${name} is a device, and what lies beside it is gone with the next start of this machine: name a file on a disk for its journal (--journal)`,
    );
  }
  const lock = storage.capabilities.locks ? await storage.lock(name, "exclusive") : undefined;
  if (lock === undefined && storage.capabilities.locks) {
    throw new ReplicationError("image-busy", `${name} is tracked, or locked, by another process`);
  }
  try {
    return await track({ ...options, name, identity, sizeBytes, release: async () => await lock?.release() });
  } catch (error) {
    await lock?.release();
    throw error;
  }
}

interface Known extends OpenTrackedOptions {
  readonly name: string;
  readonly identity: string;
  readonly sizeBytes: number;
  readonly release: () => Promise<void>;
}

/** Of a source. */
function isDevice(identity: string): boolean {
  return identity.startsWith("device:");
}

async function track(options: Known): Promise<Tracked> {
  const { engine, name, sizeBytes, blockBytes = BLOCK_BYTES_DEFAULT, mode = "power" } = options;
  const { storage, clock, random } = engine;
  const journalPath = options.journal === undefined ? journalPathOf(name) : resolve(options.journal);
  const file = await storage.open(name, { write: true, holdDevice: isDevice(options.identity) });
  const { kind, ...stat } = await file.stat();
  if (storage.probeImageLock?.(file) === "writer") {
    await file.close();
    throw new ReplicationError("image-in-use", `${name} is open for writing in QEMU: stop the machine first`);
  }
  // What a sync lost that failed in an earlier process is not to be taken for what the image holds.
  storage.lanes.dropCache(file.fd, 0, sizeBytes);
  const disk = { sizeBytes, blockBytes };
  const { journal, belief } = await openJournal({
    ...{ storage, clock, random, mode, ...disk },
    path: journalPath,
    kind: kind === "device" ? "device" : "file",
    image: () => fingerprintOf(file),
    ...{ onFailure: options.onFailure, onKept: options.onKept },
  });
  const writer = createRawWriter(file, storage, { sizeBytes, sectorBytes: rawSectorBytes({ kind, ...stat }) });
  const image = new TrackedImage({
    image: writer,
    journal,
    ...spillBeside(storage, journalPath),
    leastAuditShare: leastAuditShareOf(belief),
  });
  const stateFile = knownStatePathOf(journalPath);
  const states = await openKnownStates(storage, stateFile, {
    sync: mode === "power",
    onFailure: (words) => engine.log.warn({ image: name }, words),
  });
  return {
    ...{ name, image, file, states, stateFile, belief },
    identity: identityOf(engine, name, options.identity),
    async close() {
      try {
        await image.flush();
      } finally {
        await image.close();
        await options.release();
      }
    },
  };
}

/** Where old content of cuts goes: a file that is gone from the journal's folder at once, and from the disk when it is closed. */
export function spillBeside(
  storage: Storage,
  journalPath: string,
): Required<Pick<TrackedImageOptions, "openSpill" | "spillSpace">> {
  const path = `${journalPath}.spill`;
  return {
    async openSpill() {
      const file = await storage.open(path, { write: true, create: true, truncate: true });
      await storage.unlink(path);
      return file;
    },
    spillSpace: () => storage.space(dirname(path)),
  };
}

/** Serves images: clients may write. Port 0 picks a free one. Errors: `usage`, `listen-failed`. */
export async function serveTracked(
  engine: Engine,
  options: {
    /** Clients name them so; the first answers to the empty name as well. */
    readonly disks: readonly { readonly exportName: string; readonly tracked: Tracked }[];
    readonly place: NbdPlace;
    readonly credentials?: CredentialSource | undefined;
  },
): Promise<ServedImages> {
  const { disks, place, credentials } = options;
  checkServed(place, credentials);
  const { storage, clock, random, log } = engine;
  const listener = await listenNbd({
    ...{ storage, clock, random, log, credentials, place },
    exports: disks.map(({ exportName, tracked: { image, file } }) => ({
      ...{ name: exportName, image, writable: true },
      ...(file === undefined
        ? {}
        : {
            file: {
              fd: file.fd,
              lanes: storage.lanes,
              mayWriteNow: (offset: number, length: number): boolean => image.mayWriteNow(offset, length),
            },
          }),
    })),
  });
  const tls = credentials !== undefined;
  return {
    uris: disks.map(({ exportName }) => formatNbdUri({ tls, place: listener.place, exportName })),
    get connections() {
      return listener.connections;
    },
    close: () => listener.close(),
  };
}

export interface CreateTrackedSenderOptions
  extends Omit<CreateSenderOptions, "source" | "disk" | "cut" | "consistency" | "receiver">,
    Pick<TrackedSenderOptions, "quiescing" | "auditShare" | "passBytes" | "turn"> {
  readonly receiver: CreateMachineSenderOptions["receiver"];
}

/** Sends one image to a disk of a receiver, a cycle at a time. */
export function createTrackedSender(
  options: CreateTrackedSenderOptions & { readonly tracked: Tracked; readonly disk: string },
): TrackedSender {
  const { tracked, disk, quiescing, auditShare, passBytes, turn, ...rest } = options;
  const { clock, random, log } = options.engine;
  return new TrackedSender({
    ...{ clock, random, log, quiescing, auditShare, passBytes, turn, disks: [tracked] },
    createPass: (source) => createSender({ ...rest, disk, source, isPass: true }),
    createSend(sources, { consistency }) {
      const [source] = sources;
      invariant(source !== undefined && sources.length === 1, "one image, one source");
      const sender = createSender({ ...rest, disk, source, consistency });
      return { run: async (signal) => [await sender.run(signal)] };
    },
  });
}

/** Sends all disks of a machine as they are at one moment, a cycle at a time. Throws as {@link createMachineSender} does. */
export function createTrackedMachineSender(
  options: Omit<CreateTrackedSenderOptions, "skipEmpty"> & {
    readonly machine: string;
    readonly disks: readonly { readonly name: string; readonly tracked: Tracked }[];
  },
): TrackedSender {
  const { machine, disks, quiescing, auditShare, passBytes, turn, ...rest } = options;
  const { clock, random, log } = options.engine;
  return new TrackedSender({
    ...{ clock, random, log, quiescing, auditShare, passBytes, turn, disks: disks.map(({ tracked }) => tracked) },
    createPass: (source, nth) =>
      createSender({ ...rest, disk: diskOfMachine(machine, disks[nth]?.name ?? ""), source, isPass: true }),
    createSend(sources, { consistency }) {
      const named = sources.map((source, nth) => ({ name: disks[nth]?.name ?? "", source }));
      const sender = createMachineSender({ ...rest, machine, disks: named, consistency });
      return { run: async (signal) => (await sender.run(signal)).disks };
    },
  });
}
