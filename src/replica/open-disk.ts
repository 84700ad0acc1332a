/** Opens a disk for writing: recovers what a crash left, and says whether the table can be believed. */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { BootNow, Heartbeat } from "../base/heartbeat.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { FileLock, Storage } from "../storage/seam.ts";
import type { DigestTable } from "../table/digest-table.ts";
import { type DiskLocks, type Holder, readHolder, writeHolder } from "./disk-lock.ts";
import { type DiskRecord, geometryOf, pathsOf, readRecord } from "./disk-record.ts";
import type { DiskWriter } from "./disk-writer.ts";
import { OpenedDisk, type TableDamage } from "./opened-disk.ts";
import { type Doubt, findDoubt, wasTouchedSince } from "./doubt.ts";
import { inFile } from "./file-error.ts";
import { HolderHeartbeat } from "./heartbeat.ts";
import { diskPaths, type DiskPaths } from "./layout.ts";
import { type Point, refreshTimes } from "./points/point.ts";
import type { PruneOptions } from "./prune.ts";
import { type RecoveredPoints, recoverPoints } from "./recover.ts";
import { type OpenReplica, openReplica, sizeError } from "./replica-file.ts";
import type { ReplicaFormat } from "./replica.ts";
import { fingerprintOf, readSession, removeSession, type SessionRecord, writeSession } from "./session-record.ts";
import { syncDirectory } from "./state-file.ts";
import { foreignLength } from "./foreign-changes.ts";
import { Suspect } from "./suspect.ts";
import { readSuspicion, removeSuspicion, type Suspicion, writeSuspicion } from "./suspicion.ts";
import { emptyRoot, hexOf, TableFiles } from "./table-files.ts";
import { type RecoveredLog, recoverUndoLog } from "./undo-log.ts";

/** What everything that works on disks of a store needs. */
export interface StoreParts {
  readonly path: string;
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly locks: DiskLocks;
  readonly host: string;
  readonly pid: number;
  /** What replicas of new disks are; default raw images. */
  readonly newDisks?: NewDisks | undefined;
  /** The policy a disk follows. Throws `usage` for a stored one that makes no sense, `store-damaged` for one that cannot be read. */
  readonly retention: (disk: string) => Promise<PruneOptions>;
}

/** What the replica of a disk is when it is made. Disks that exist stay as they are. */
export interface NewDisks {
  readonly format: ReplicaFormat;
  /** Of a VHDX: a power of two, 1 to 256 MiB; default 32 MiB. */
  readonly payloadBlockBytes?: number | undefined;
}

export type OpenResult =
  | { readonly kind: "open"; readonly writer: DiskWriter }
  | { readonly kind: "busy"; readonly holder: Holder | undefined };

/** Who opens a disk for writing. */
export interface Opener {
  readonly identity: string;
  readonly instance: string;
  /** A replica that somebody else made longer is cut. Default: it is refused, since nobody knows what lies there. */
  readonly mayCut?: boolean | undefined;
}

/** Throws `disk-not-found`, `replica-changed`, `store-damaged` and those of reading and writing. */
export async function openDisk(
  store: StoreParts,
  name: string,
  { mayCut = false, ...holder }: Opener,
): Promise<OpenResult> {
  const { storage, locks, host, pid, clock } = store;
  const paths = diskPaths(store.path, name);
  // Looked at before locking: a lock would make a file, and a directory that is not there is no disk.
  if ((await readRecord(storage, paths)) === undefined) throw notFound(store, name);
  const lock = await locks.exclusive(paths.applyLock);
  if (lock === undefined) return { kind: "busy", holder: await readHolder(storage, paths.applyLock) };
  try {
    // Kept until what it tells of the replica was looked at.
    const before = (await readHolder(storage, paths.applyLock))?.heartbeat;
    const self: Holder = { host, pid, since: clock.now(), ...holder };
    await writeHolder(storage, paths.applyLock, { ...self, heartbeat: before });
    return { kind: "open", writer: await openLocked(store, name, { folder: paths, lock, self, before, mayCut }) };
  } catch (error) {
    await lock.release();
    throw error;
  }
}

export function notFound(store: StoreParts, name: string): ReplicationError {
  return new ReplicationError("disk-not-found", `the store ${store.path} has no disk ${name}`);
}

interface Held {
  readonly folder: DiskPaths;
  readonly lock: FileLock;
  readonly self: Holder;
  /** Of who held it before. */
  readonly before: Heartbeat | undefined;
  readonly mayCut: boolean;
}

async function openLocked(
  store: StoreParts,
  name: string,
  { folder, lock, self, before, mayCut }: Held,
): Promise<DiskWriter> {
  const { storage, log, locks, clock } = store;
  const record = await readRecord(storage, folder);
  if (record === undefined) throw notFound(store, name);
  const paths = pathsOf(folder, record);
  // Who made the disk, or committed to it, may have been stopped before the sync of a directory: what is built on must be there to stay.
  for (const directory of [paths.directory, paths.points]) await syncDirectory(storage, directory);
  const points = await recoverPoints(storage, paths, locks);
  const closers: (() => Promise<void>)[] = [];
  try {
    const replica = await openReplica(store, paths, record);
    closers.push(() => replica.replica.close());
    const tableFiles = await TableFiles.open(storage, paths, name);
    closers.push(() => tableFiles.close());
    const undo = points.openLog ? await recoverUndoLog(storage, paths, points.newest?.point ?? 0) : undefined;
    closers.push(async () => undo?.writer.close());
    if (undo?.trouble !== undefined) log.error({ disk: name }, `${undo.trouble}; the newest point may be lost there`);
    const damage: TableDamage = new Set();
    const boot = await storage.boot?.();
    const judged = await judge({
      ...{ store, storage, paths, record, points, replica, tableFiles, damage, undo, heartbeat: before, mayCut },
      boot: boot && { id: boot.id, beganMillis: clock.now() - boot.ageMillis },
    });
    if (judged.doubt !== undefined) log.warn({ disk: name }, `the digest table is in doubt: ${judged.doubt.why}`);
    const bootId = boot?.id ?? "";
    const heartbeat = new HolderHeartbeat({ storage, clock, path: paths.applyLock, holder: self, bootId });
    // Opening may have changed the replica's file, and that was nobody else.
    if (judged.doubt !== undefined) await heartbeat.note();
    return new OpenedDisk({
      store,
      lock,
      heartbeat,
      paths,
      replica: replica.replica,
      tableFiles,
      damage,
      record,
      openLog: points.openLog,
      undo: undo?.writer,
      suspect: new Suspect({
        ...{ storage, paths, replica: replica.replica, disk: name, suspicion: judged.suspicion },
        seen: judged.doubt && fingerprintOf(await replica.replica.stat()),
      }),
      ...judged,
    });
  } catch (error) {
    for (const close of closers.reverse()) await close();
    throw error;
  }
}

interface Found {
  readonly store: StoreParts;
  readonly storage: Storage;
  readonly paths: DiskPaths;
  readonly record: DiskRecord;
  readonly points: RecoveredPoints;
  readonly replica: OpenReplica;
  readonly tableFiles: TableFiles;
  readonly damage: TableDamage;
  readonly undo: RecoveredLog | undefined;
  readonly heartbeat: Heartbeat | undefined;
  readonly boot: BootNow | undefined;
  readonly mayCut: boolean;
}

interface Judged {
  readonly newest: Point | undefined;
  readonly table: DigestTable;
  readonly doubt: Doubt | undefined;
  readonly resumeBlock: number;
  /** As it is on record. */
  readonly suspicion: Suspicion | undefined;
}

async function judge(found: Found): Promise<Judged> {
  const { storage, paths, record, points, replica, tableFiles, damage } = found;
  const { newest } = points;
  const geometry = geometryOf(record);
  const session = await readSession(storage, paths);
  const suspicion = await recordedSuspicion(found);
  const onDamage = (page: number): void => {
    damage.add(page);
  };
  const sizeBytes = await fitFiles(found, session);
  if (sizeBytes > record.sizeBytes && !found.mayCut) throw await refuseLength(found, sizeBytes);
  const read = await tableFiles.read(geometry, onDamage);
  const doubt = findDoubt({
    tableTrouble: "trouble" in read ? read.trouble : undefined,
    tableRoot: "table" in read ? hexOf(read.table.root()) : undefined,
    committedRoot: newest?.root ?? emptyRoot(geometry),
    newest: newest?.point ?? 0,
    openLog: openLogOf(found),
    session,
    suspicion,
    replica: fingerprintOf(replica.found),
    replicaBytes: sizeBytes,
    replicaModified: replica.found.modifiedNanos,
    committedModified: nanosOf(newest?.replicaModified),
    committedChanged: nanosOf(newest?.replicaChanged),
    heartbeat: found.heartbeat,
    boot: found.boot,
    nowMillis: found.store.clock.now(),
    sizeBytes: record.sizeBytes,
  });
  if (doubt !== undefined && doubt.blocks !== "all" && "table" in read) {
    const interrupted = doubt.blocks === "recent" || doubt.interrupted === true;
    const resized = sizeBytes !== record.sizeBytes;
    if (interrupted) forgetTail(read.table);
    // With its length, and with the next heartbeat, goes what shows that somebody changed it.
    const mustRemember = doubt.blocks === "differing" && (resized || interrupted);
    const remembered =
      mustRemember && suspicion === undefined ? { why: doubt.why, point: newest?.point ?? 0 } : suspicion;
    if (remembered !== undefined && remembered !== suspicion) await writeSuspicion(storage, paths, remembered);
    if (resized) await resizeReplica(found);
    await prepareReading(found);
    return { newest, table: read.table, doubt, resumeBlock: 0, suspicion: remembered };
  }
  if (doubt !== undefined || !("table" in read)) {
    const table = await startRebuild(found, onDamage);
    const why = "the table cannot be read";
    return { newest, table, doubt: doubt ?? { why, blocks: "all" }, resumeBlock: 0, suspicion };
  }
  if (!points.openLog || session === undefined) {
    // A record without an open log is one that a commit had no time to remove.
    if (session !== undefined) await removeSession(storage, paths);
    return { newest: await keepNewest(found), table: read.table, doubt: undefined, resumeBlock: 0, suspicion };
  }
  await keepSession(found, session);
  return { newest, table: read.table, doubt: undefined, resumeBlock: session.resumeBlock, suspicion };
}

/** One that is older than the newest point is of changes that this point keeps: its removal was all that was left to do. */
async function recordedSuspicion({ storage, paths, points }: Found): Promise<Suspicion | undefined> {
  const suspicion = await readSuspicion(storage, paths);
  const isKept = suspicion?.point !== undefined && suspicion.point < (points.newest?.point ?? 0) && !points.openLog;
  if (!isKept) return suspicion;
  await removeSuspicion(storage, paths);
  return undefined;
}

/** Nobody knows what lies behind the end. Order: on record → refused. */
async function refuseLength({ storage, paths, record, points }: Found, foundBytes: number): Promise<ReplicationError> {
  const error = foreignLength(record, foundBytes);
  await writeSuspicion(storage, paths, { why: error.message, found: true, point: points.newest?.point ?? 0 });
  return error;
}

function nanosOf(text: string | undefined): bigint | undefined {
  return text !== undefined && /^\d{1,20}$/.test(text) ? BigInt(text) : undefined;
}

/** Digests of blocks that were cut off. A page that does not match its checksum is digested anew as a whole. */
function forgetTail(table: DigestTable): void {
  try {
    table.forgetTail();
  } catch (error) {
    if (!(error instanceof ReplicationError) || error.code !== "store-damaged") throw error;
  }
}

/**
 * A crash while the disk grew or shrank leaves files that are longer than disk.json says. What was written behind the newest point's end, or cut off, is
 * named in the log, so the files get their lengths and nothing else is in doubt. Shorter files are damage: no crash leaves them. Returns the replica's
 * length.
 */
async function fitFiles(found: Found, session: SessionRecord | undefined): Promise<number> {
  const { record, tableFiles, paths } = found;
  const { replica } = found.replica;
  const { sizeBytes } = replica;
  if (openLogOf(found) !== "named" || session !== undefined) return sizeBytes;
  if (sizeBytes < record.sizeBytes || !(await tableFiles.holds(geometryOf(record)))) return sizeBytes;
  const { heartbeat, boot } = found;
  // No crash of ours: it would have come near a heartbeat.
  const isForeign = wasTouchedSince({ heartbeat, boot, replica: fingerprintOf(found.replica.found) });
  if (sizeBytes > record.sizeBytes && isForeign && !found.mayCut) return sizeBytes;
  try {
    // Whatever length is seen: a failed sync may have forgotten the cut that made it so, and what was cut off would come back.
    await replica.resize(record.sizeBytes);
    await tableFiles.resize(geometryOf(record));
  } catch (error) {
    throw sizeError(error, paths.directory, record.name, record.sizeBytes);
  }
  return record.sizeBytes;
}

function openLogOf({ points, undo }: Found): "none" | "named" | "unknown" {
  // A log without a whole header: nothing is written before the header is durable.
  if (!points.openLog || undo === undefined) return "none";
  return undo.trouble === undefined ? "named" : "unknown";
}

/** Opening may have changed the replica's file, and with it its ctime: the record follows, or the next open would doubt. */
async function keepSession({ storage, paths, replica }: Found, session: SessionRecord): Promise<void> {
  if (!replica.changed) return;
  await writeSession(storage, paths, { ...session, replica: fingerprintOf(await replica.replica.stat()) });
}

/** As {@link keepSession}, of the newest point's record. */
async function keepNewest({ store, paths, points, replica }: Found): Promise<Point | undefined> {
  const { newest } = points;
  if (newest?.replicaChanged === undefined || points.openLog || !replica.changed) return newest;
  return refreshTimes(store, paths, newest, replica.replica);
}

/** Order: table emptied, durably → clean-stop record gone → replica has its length → {@link prepareReading}. */
async function startRebuild(found: Found, onDamage: (page: number) => void): Promise<DigestTable> {
  const { storage, paths, record, tableFiles } = found;
  const table = await tableFiles.empty(geometryOf(record), onDamage);
  await removeSession(storage, paths);
  await resizeReplica(found);
  await prepareReading(found);
  return table;
}

async function resizeReplica({ paths, record, replica: { replica } }: Found): Promise<void> {
  try {
    await replica.resize(record.sizeBytes);
  } catch (error) {
    throw sizeError(error, paths.directory, record.name, record.sizeBytes);
  }
}

/**
 * Order: replica synced → its page cache dropped. So what is digested anew is what is on disk: after a crash of the process the cache may hold
 * what was never written, and after a failed sync what never will be.
 */
async function prepareReading({ storage, paths, record, replica: { replica } }: Found): Promise<void> {
  await inFile("sync-failed", `disk ${record.name}: syncing ${paths.replica}`, () => replica.datasync());
  storage.lanes.dropCache(replica.fd, 0, (await replica.stat()).sizeBytes);
}
