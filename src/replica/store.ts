/**
 * The receiver's store: a directory of disks, each a replica image, its digest table and its points. docs/formats.md has every file, the
 * order of writes, and what a crash between any two of them leaves.
 */
import { basename, dirname, join } from "node:path";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import { defaultReserveBytes } from "../storage/reserve.ts";
import type { Storage } from "../storage/seam.ts";
import { type Adopted, adoptImage, type ImageToAdopt, type TableToFill } from "./adopt.ts";
import { type Compaction, compactDisk } from "./compact.ts";
import { createDisk, type NewDisk } from "./create-disk.ts";
import { DiskLocks, locksUnsupported } from "./disk-lock.ts";
import { type DiskSummary, summarize } from "./disk-summary.ts";
import { inFile } from "./file-error.ts";
import { readRecord } from "./disk-record.ts";
import { isDiskName } from "../base/disk-name.ts";
import { type CutState, loadCutStates } from "./cuts.ts";
import { type DiskPaths, diskPaths, type StorePaths, storePaths } from "./layout.ts";
import { type NewDisks, notFound, openDisk, type Opener, type OpenResult, type StoreParts } from "./open-disk.ts";
import type { Hold } from "./points/point.ts";
import { listDiskPoints, openPoint, type PointReader } from "./points/reader.ts";
import { dropOldest, holdPoint, type OldestPoint, type PruneOptions, prunePoints } from "./prune.ts";
import type { Verdict } from "./retention/decide.ts";
import { parsePolicy } from "./retention/policy.ts";
import { newName, syncDirectory } from "./state-file.ts";
import { type StoredPoints, withStoredBytes } from "./stored-bytes.ts";
import { readDiskPolicy, writeDiskPolicy } from "./policy-record.ts";
import { policyTextOf, readStoreRecord, writeStoreRecord } from "./store-record.ts";

export type { CutState };
export type { Adopted, ImageToAdopt } from "./adopt.ts";
export type { Holder } from "./disk-lock.ts";
export type { Compaction } from "./compact.ts";
export type { DiskRecord } from "./disk-record.ts";
export type { DiskSummary } from "./disk-summary.ts";
export type { CommitFacts, DiskWriter } from "./disk-writer.ts";
export { inspectStoreFile, type StoreFileDescription } from "./inspect.ts";
export type { Verdict } from "./retention/decide.ts";
export type { Doubt } from "./doubt.ts";
export { replicaChanged } from "./foreign-changes.ts";
export type { NewDisks, Opener, OpenResult } from "./open-disk.ts";
export { checkWholeSectors } from "./replica-file.ts";
export type { Cut, Hold, Point } from "./points/point.ts";
export type { DiskPoints, PointReader } from "./points/reader.ts";
export type { OldestPoint } from "./prune.ts";
export type { StoredPoints } from "./stored-bytes.ts";
export { type EntryHead as UndoEntryHead, entryFlags as undoFlags } from "./undo/format.ts";
export type { UndoWriter } from "./undo/writer.ts";

export interface Store {
  readonly path: string;
  readonly id: string;
  /** Names with a disk.json, sorted. */
  disks(): Promise<readonly string[]>;
  /**
   * Without any lock that lasts: for `disks` and messages. Undefined: no such disk. What is wrong with points or replica is told in
   * `trouble`; throws `store-damaged`, `store-version-unsupported` only when disk.json itself cannot be read.
   */
  summary(name: string): Promise<DiskSummary | undefined>;
  /**
   * A new disk: directories, an empty sparse replica, disk.json last. One that exists stays as it is. Throws `target-too-small`, `target-unsuitable`,
   * `no-space`, `disk-name-invalid`, `limit-exceeded`, `disk-busy`; `store-damaged` when points without a disk.json lie under the name.
   */
  create(name: string, facts: NewDisk): Promise<void>;
  /** A new disk whose replica is an image that exists; `fill` digests it. Contract and errors: {@link adoptImage}. */
  adopt(name: string, image: ImageToAdopt, fill: (work: TableToFill) => Promise<void>): Promise<Adopted>;
  /**
   * Takes `apply.lock` and opens the disk for writing. Returns the holder when another has it (`busy`).
   * Throws `disk-not-found`, `replica-changed`, `store-damaged`, `store-version-unsupported`.
   */
  openWriter(name: string, opener: Opener): Promise<OpenResult>;
  /** The points of a disk. Throws `disk-not-found`; `store-damaged`, `store-version-unsupported` when disk.json cannot be read. */
  points(name: string): Promise<StoredPoints>;
  /**
   * A point as an image, beside whatever writes the disk. It cannot be removed until the reader is closed. Throws `disk-not-found`, `point-not-found`,
   * `disk-busy`, `locks-unsupported`, `store-version-unsupported`; `store-damaged` when something between the point and the replica is missing or damaged:
   * newer points may be readable then.
   */
  openPoint(name: string, sequence: number | "newest"): Promise<PointReader>;
  /** The retention policy of the store, as text. Throws `usage` for a stored one that makes no sense. */
  policy(): Promise<string>;
  /**
   * The policy a disk follows, as text, and whether it is its own or the store's. Throws `disk-not-found`, `usage` for a stored one that makes no sense,
   * `store-damaged`, `store-version-unsupported`.
   */
  policyOf(name: string): Promise<{ readonly keep: string; readonly own: boolean }>;
  /**
   * Gives a disk a policy of its own, or with undefined the store's again; followed from its next commit on. Works beside whatever writes the disk. Throws
   * `disk-not-found`, `usage`, `write-failed`, `sync-failed`, `no-space`.
   */
  setPolicy(name: string, keep: string | undefined): Promise<void>;
  /**
   * Applies a policy to a disk's points, beside whatever else works on it. `keep`: this once; default: the policy it follows. A verdict for each point,
   * ascending. Throws `disk-not-found`, `usage`, `disk-busy`, `write-failed`, `sync-failed`.
   */
  prune(
    name: string,
    options?: { readonly keep?: string | undefined; readonly dryRun?: boolean | undefined },
  ): Promise<readonly Verdict[]>;
  /**
   * Joins undo logs of a disk where that gives a third of their content back, beside whatever else works on it. Throws `disk-not-found`, `no-space`,
   * `write-failed`, `sync-failed`, `aborted`; then nothing is lost, and the next call goes on.
   */
  compact(name: string, signal?: AbortSignal): Promise<readonly Compaction[]>;
  /** Keeps a point from being removed. Throws `disk-not-found`, `point-not-found`. */
  hold(name: string, point: number, hold: Hold): Promise<void>;
  /** Ends a hold of this owner, or whoever's it is (`anybody`). Throws `disk-not-found`, `point-not-found`, `not-allowed` when it is another's. */
  release(name: string, point: number, owner: string): Promise<void>;
  /**
   * Makes room: removes the oldest point of a disk, or says why it stays (it is the newest, held, in use). Throws `disk-not-found`, `disk-busy`, `write-failed`,
   * `sync-failed`.
   */
  dropOldest(name: string): Promise<OldestPoint>;
  /** Throws `no-space` when free space is below the reserve. */
  checkReserve(): Promise<void>;
  /** The same for the file system of an image that a disk has adopted where it lies, which dropping points gives nothing back. */
  checkImageReserve(name: string): Promise<void>;
  /** Writers stay open: who opened them releases them. */
  close(): Promise<void>;
}

export interface StoreOptions {
  readonly path: string;
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  /** Create the store when the directory is empty or missing. Its parent exists. */
  readonly create?: boolean;
  /** Bytes of free space to keep; default {@link defaultReserveBytes}. */
  readonly reserveBytes?: number;
  /** Host name for lock texts. */
  readonly host: string;
  /** Process id for lock texts; default 0: not told. */
  readonly pid?: number;
  /** Retention policy to store and follow from now on; default: the one that is stored. */
  readonly keep?: string | undefined;
  /** IANA name, for calendar periods of a policy; default UTC. */
  readonly timeZone?: string | undefined;
  /** What replicas of disks made from now on are; default raw images. */
  readonly newDisks?: NewDisks | undefined;
  /** Works without kernel locks, at the user's word (`--single-process`). */
  readonly singleProcess?: boolean;
}

/** Throws `store-not-found`, `store-damaged`, `store-version-unsupported`, `locks-unsupported`. */
export async function openStore(options: StoreOptions): Promise<Store> {
  const { path, storage, clock, random, log, host } = options;
  const singleProcess = options.singleProcess ?? false;
  if (!storage.capabilities.locks && !singleProcess) throw locksUnsupported(path);
  const paths = storePaths(path);
  if (options.keep !== undefined) parsePolicy(options.keep);
  const id = (await readStoreRecord(storage, paths))?.id ?? (await makeStore(options, paths));
  if (options.keep !== undefined) await storePolicy(storage, paths, options.keep);
  // Who made the store may have been stopped before these syncs.
  if (options.create === true) for (const directory of [dirname(path), path]) await syncDirectory(storage, directory);
  const locks = new DiskLocks(storage, clock, singleProcess);
  const policy = async (): Promise<string> => policyTextOf(await readStoreRecord(storage, paths));
  const policyOf = async (disk: DiskPaths): Promise<{ readonly keep: string; readonly own: boolean }> => {
    const own = await readDiskPolicy(storage, disk);
    return own === undefined ? { keep: await policy(), own: false } : { keep: own, own: true };
  };
  const retention = async (name: string): Promise<PruneOptions> => ({
    policy: parsePolicy((await policyOf(diskPaths(path, name))).keep),
    timeZone: options.timeZone ?? "UTC",
  });
  const parts: StoreParts = {
    ...{ path, storage, clock, random, log, locks, host, pid: options.pid ?? 0, retention },
    newDisks: options.newDisks,
  };
  return {
    path,
    id,
    disks: () => listDisks(storage, path, paths),
    summary: (name) => summarize(parts, name),
    create: (name, facts) => createDisk(parts, name, facts),
    adopt: (name, image, fill) => adoptImage(parts, name, image, fill),
    openWriter: (name, opener) => openDisk(parts, name, opener),
    async points(name) {
      const found = await listDiskPoints(parts, name);
      const cuts = await loadCutStates(parts, name, found.points);
      return { ...(await withStoredBytes(storage, diskPaths(path, name), found)), cuts };
    },
    openPoint: (name, sequence) => openPoint(parts, name, sequence),
    policy,
    policyOf: (name) => withDisk(parts, name, policyOf),
    setPolicy: (name, keep) => withDisk(parts, name, (disk) => writeDiskPolicy(storage, disk, keep)),
    async prune(name, { keep, dryRun = false } = {}) {
      const apply = async (disk: DiskPaths): Promise<readonly Verdict[]> => {
        const own = await retention(name);
        return prunePoints(parts, disk, {
          ...(keep === undefined ? own : { ...own, policy: parsePolicy(keep), once: true }),
          dryRun,
        });
      };
      // What only looks works on a store that cannot be written, too.
      return dryRun ? withDisk(parts, name, apply) : withChain(parts, name, apply);
    },
    async compact(name, signal) {
      const disk = diskPaths(path, name);
      if ((await readRecord(storage, disk)) === undefined) throw notFound(parts, name);
      return compactDisk(parts, disk, signal);
    },
    hold: (name, point, hold) => withChain(parts, name, (disk) => holdPoint(parts, disk, point, { hold })),
    release: (name, point, releaseOf) => withChain(parts, name, (disk) => holdPoint(parts, disk, point, { releaseOf })),
    dropOldest: (name) => withChain(parts, name, (disk) => dropOldest(parts, disk)),
    checkReserve: () => checkReserve(storage, path, options.reserveBytes),
    async checkImageReserve(name) {
      const image = (await readRecord(storage, diskPaths(path, name)))?.image;
      if (image !== undefined) await checkReserve(storage, dirname(image), options.reserveBytes);
    },
    close: () => Promise.resolve(),
  };
}

async function storePolicy(storage: Storage, paths: StorePaths, keep: string): Promise<void> {
  const record = await readStoreRecord(storage, paths);
  if (record === undefined || record.keep === keep) return;
  await writeStoreRecord(storage, paths, { ...record, keep });
}

/** Runs `use` on a disk that exists. */
async function withDisk<T>(parts: StoreParts, name: string, use: (paths: DiskPaths) => Promise<T>): Promise<T> {
  const paths = diskPaths(parts.path, name);
  if ((await readRecord(parts.storage, paths)) === undefined) throw notFound(parts, name);
  return use(paths);
}

/** The same with `chain.lock`: points may be changed. */
function withChain<T>(parts: StoreParts, name: string, change: (paths: DiskPaths) => Promise<T>): Promise<T> {
  return withDisk(parts, name, (paths) => parts.locks.withChainLock(paths.chainLock, () => change(paths)));
}

/** Order: directories → store.json. A crash in between leaves an empty directory, which the next create takes. */
async function makeStore(options: StoreOptions, paths: StorePaths): Promise<string> {
  const { storage, path, random } = options;
  if (options.create !== true) {
    throw new ReplicationError(
      "store-not-found",
      `${path} is not a store: ${basename(paths.record)} is missing; check the path`,
    );
  }
  await checkUnused(storage, paths);
  await inFile("write-failed", `making ${paths.disks}`, async () => {
    await storage.makeDirectory(path);
    await storage.makeDirectory(paths.disks);
  });
  await writeStoreRecord(storage, paths, { id: random.uuid(), keep: undefined });
  // Read back, because another process may have made the store in the same moment: then its id counts.
  const id = (await readStoreRecord(storage, paths))?.id;
  if (id === undefined) throw new ReplicationError("store-not-found", `${paths.record} vanished while it was made`);
  return id;
}

async function checkUnused(storage: Storage, paths: StorePaths): Promise<void> {
  // What an interrupted create leaves, and what a fresh file system has.
  const harmless = new Set([basename(paths.disks), basename(newName(paths.record)), "lost+found"]);
  const names = (await storage.list(paths.directory)) ?? [];
  const disks = (await storage.list(paths.disks)) ?? [];
  const other = names.find((name) => !harmless.has(name));
  if (other === undefined && disks.length === 0) return;
  throw new ReplicationError(
    "store-not-found",
    `${paths.directory} is not a store and not empty (it holds ${JSON.stringify(other ?? join("disks", disks[0] ?? ""))}); give an empty directory for a new store`,
  );
}

async function listDisks(storage: Storage, store: string, paths: StorePaths): Promise<readonly string[]> {
  const found: string[] = [];
  for (const name of (await storage.list(paths.disks)) ?? []) {
    // Names that no disk can have were put there by somebody else.
    if (isDiskName(name) && (await storage.stat(diskPaths(store, name).record)) !== undefined) found.push(name);
  }
  return found.sort();
}

async function checkReserve(storage: Storage, path: string, wanted: number | undefined): Promise<void> {
  const space = await inFile("write-failed", `asking the room in ${path}`, () => storage.space(path));
  const { freeBytes } = space;
  const reserveBytes = wanted ?? defaultReserveBytes(space);
  if (freeBytes >= reserveBytes) return;
  throw new ReplicationError(
    "no-space",
    `${path} has ${freeBytes} bytes free, less than the ${reserveBytes} it keeps in reserve; free ${reserveBytes - freeBytes} bytes, or keep a smaller reserve`,
    { details: { freeBytes, reserveBytes } },
  );
}
