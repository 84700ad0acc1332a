/**
 * Removes recovery points, and nothing but names: the logs of a point go to the list of the point before it, so no content is copied and no
 * space is needed. Everything here is done with `chain.lock` held.
 */
import { basename, join } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import type { FileLock } from "../storage/seam.ts";
import { neededLogs, ownLogs } from "./chain.ts";
import { cutStates, loadCompanions, sparedByCuts } from "./cuts.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints, type NamedLog, type Point, readPoint, type Hold, writePoint } from "./points/point.ts";
import { decideRetention, type Verdict } from "./retention/decide.ts";
import type { RetentionPolicy } from "./retention/policy.ts";
import { syncDirectory } from "./state-file.ts";

/** A sender's clock may run ahead of ours by this much before its points stop ageing others. */
const aheadMillisMax = 86_400_000;

/** Each point on its way out is locked, and a lock is an open file. */
const removedAtOnce = 256;

/** Names a list may have: the record stays well below what a JSON file may be. Joining logs shortens it. */
const listLogsMax = 4_000;

export interface PruneOptions {
  readonly policy: RetentionPolicy;
  /** IANA name, for calendar periods. */
  readonly timeZone: string;
  /** The policy is of this call, and other disks of a cut are judged by it too; else by those they follow. */
  readonly once?: boolean;
  /** Decides and removes nothing. */
  readonly dryRun?: boolean;
}

/**
 * Applies a policy to the points of a disk. Returns a verdict for each point there was, ascending; what was to go and could not is kept and says why.
 * Points older than a record that cannot be read are left alone, and so is the one behind it. Throws `write-failed`, `sync-failed`, `no-space`.
 */
export async function prunePoints(
  store: StoreParts,
  paths: DiskPaths,
  options: PruneOptions,
): Promise<readonly Verdict[]> {
  const { storage, clock } = store;
  const { points, unreadable } = await loadPoints(storage, paths, await listPoints(storage, paths));
  const barrier = Math.max(0, ...unreadable.map(({ point }) => point));
  const reachable = points.filter(({ point }) => point > barrier);
  if (reachable.length === 0) return [];
  const now = clock.now();
  const spared = await sparedPoints(store, paths, reachable, options);
  const judged = judge(reachable, spared, options, now);
  const verdicts = barrier === 0 ? judged : spareFirst(judged, barrier);
  if (options.dryRun === true) return verdicts;
  const settled: Verdict[] = [];
  let left: readonly Point[] = reachable;
  let lastKept: number | undefined;
  // Ascending, so that lists go to a point that stays.
  for (let at = 0; at < verdicts.length; ) {
    const removal = new Removal(store, paths, left);
    if (lastKept !== undefined) removal.keep(lastKept);
    try {
      for (; at < verdicts.length && removal.count < removedAtOnce; at++) {
        const verdict = verdicts[at];
        if (verdict === undefined) break;
        const obstacle = verdict.keep ? removal.keep(verdict.point) : await removal.take(verdict.point);
        const final = obstacle === undefined ? verdict : { ...verdict, keep: true, rule: obstacle };
        if (final.keep) lastKept = final.point;
        settled.push(final);
      }
      // Logs older than the barrier may be named by a record that cannot be read.
      left = await removal.carryOut(barrier === 0);
    } finally {
      await removal.release();
    }
  }
  return settled;
}

function judge(
  points: readonly Point[],
  spared: ReadonlyMap<number, string>,
  options: PruneOptions,
  now: number,
): readonly Verdict[] {
  return decideRetention(
    points.map(({ point, time, label, hold }) => ({ point, time, label, held: hold, spared: spared.get(point) })),
    options.policy,
    { nowMax: now + aheadMillisMax, holdNow: now, timeZone: options.timeZone },
  );
}

/** Its record says how the log of the point before was closed, and nobody who could be read takes its logs over. */
function spareFirst([first, ...others]: readonly Verdict[], barrier: number): readonly Verdict[] {
  if (first?.keep !== false) return first === undefined ? [] : [first, ...others];
  return [{ ...first, keep: true, rule: `the record of point ${barrier} before it cannot be read` }, ...others];
}

/** Points that stay for the sake of their cut. What the other disks keep is judged as if nothing was cut together. */
async function sparedPoints(
  store: StoreParts,
  paths: DiskPaths,
  points: readonly Point[],
  options: PruneOptions,
): Promise<ReadonlyMap<number, string>> {
  const disk = basename(paths.directory);
  const companions = await loadCompanions(store, disk, points);
  const now = store.clock.now();
  const kept = new Map<string, ReadonlySet<number>>();
  for (const [name, theirs] of companions.points) {
    const theirOptions = options.once === true ? options : await store.retention(name);
    const verdicts = judge(theirs, new Map(), theirOptions, now);
    kept.set(name, new Set(verdicts.flatMap(({ point, keep }) => (keep ? [point] : []))));
  }
  return sparedByCuts(cutStates(disk, points, companions), (name, point) => kept.get(name)?.has(point) === true);
}

/** What became of the oldest point. */
export type OldestPoint =
  /** `bytes`: of logs that went with it, freed at once. */
  | { readonly dropped: true; readonly point: number; readonly bytes: number }
  | { readonly dropped: false; readonly why: string };

/**
 * Removes the oldest point of a disk, whatever the policy says: only its logs are free as soon as it is gone. One that is the newest, held, in use, or the
 * newest that all disks cut together have, stays. Needs no room. Throws `write-failed`, `sync-failed`.
 */
export async function dropOldest(store: StoreParts, paths: DiskPaths): Promise<OldestPoint> {
  const { points, unreadable } = await loadPoints(store.storage, paths, await listPoints(store.storage, paths));
  const stays = (why: string): OldestPoint => ({ dropped: false, why });
  const [broken] = unreadable;
  if (broken !== undefined) return stays(`the record of point ${broken.point} cannot be read, and may name any log`);
  const [oldest] = points;
  if (oldest === undefined) return stays("the disk has no points");
  const disk = basename(paths.directory);
  const spared = sparedByCuts(cutStates(disk, points, await loadCompanions(store, disk, points)), () => false);
  const options: PruneOptions = { policy: { kind: "keep", counts: {} }, timeZone: "UTC" };
  const [verdict] = judge(points, spared, options, store.clock.now());
  if (verdict?.keep !== false) return stays(`point ${oldest.point}, the oldest, stays: ${verdict?.rule}`);
  const removal = new Removal(store, paths, points);
  try {
    const obstacle = await removal.take(oldest.point);
    if (obstacle !== undefined) return stays(`point ${oldest.point}, the oldest, stays: ${obstacle}`);
    await removal.carryOut(true);
    const bytes = (ownLogs(points)[0] ?? []).reduce((sum, { closed }) => sum + closed.sizeBytes, 0);
    return { dropped: true, point: oldest.point, bytes };
  } finally {
    await removal.release();
  }
}

/** Sets or ends a hold. `releaseOf`: its owner, or `anybody`. Throws `point-not-found`, and `not-allowed` when another owner's hold that has not ended would be changed or go. */
export async function holdPoint(
  store: StoreParts,
  paths: DiskPaths,
  sequence: number,
  change: { readonly hold: Hold } | { readonly releaseOf: string },
): Promise<void> {
  const { storage } = store;
  const point = await readPoint(storage, paths, sequence);
  if (point === undefined) throw new ReplicationError("point-not-found", `${paths.directory} has no point ${sequence}`);
  if ("hold" in change) {
    const { hold } = point;
    const held = hold !== undefined && (hold.until === undefined || hold.until > store.clock.now());
    if (held && hold.owner !== change.hold.owner) throw heldByOther(sequence, hold.owner, change.hold.owner);
    await writePoint(storage, paths, { ...point, hold: change.hold });
    return;
  }
  if (point.hold === undefined) return;
  if (change.releaseOf !== "anybody" && change.releaseOf !== point.hold.owner) {
    throw heldByOther(sequence, point.hold.owner, change.releaseOf);
  }
  await writePoint(storage, paths, { ...point, hold: undefined });
}

function heldByOther(point: number, owner: string, wanted: string): ReplicationError {
  return new ReplicationError(
    "not-allowed",
    `point ${point} is held by ${owner}, not by ${wanted}; name that owner to change or release it`,
  );
}

/** Points on their way out, each locked against readers. */
class Removal {
  readonly #store: StoreParts;
  readonly #paths: DiskPaths;
  /** All that can be reached, ascending. */
  readonly #points: readonly Point[];
  readonly #lists: readonly (readonly NamedLog[] | undefined)[];
  readonly #going = new Map<number, FileLock>();
  /** Logs the list of the last point that stays will have; undefined: no point before stays. */
  #listLogs: number | undefined;

  constructor(store: StoreParts, paths: DiskPaths, points: readonly Point[]) {
    this.#store = store;
    this.#paths = paths;
    this.#points = points;
    this.#lists = ownLogs(points);
  }

  /** Points that go. */
  get count(): number {
    return this.#going.size;
  }

  /** It stays. Points are named ascending, to this and to {@link take}. */
  keep(sequence: number): undefined {
    this.#listLogs = this.#lists[this.#indexOf(sequence)]?.length ?? 0;
    return undefined;
  }

  /** Undefined: it goes. Else why it stays. */
  async take(sequence: number): Promise<string | undefined> {
    const obstacle = await this.#lock(sequence);
    if (obstacle !== undefined) this.keep(sequence);
    return obstacle;
  }

  async #lock(sequence: number): Promise<string | undefined> {
    const list = this.#lists[this.#indexOf(sequence)];
    if (list === undefined) return "its undo log was never closed: what older points need is not known";
    const logs = this.#listLogs === undefined ? undefined : this.#listLogs + list.length;
    if ((logs ?? 0) > listLogsMax)
      return "the point before has too many logs to take its own: they are to be joined (compact)";
    const lock = await this.#store.locks.exclusive(this.#paths.pointLock(sequence));
    if (lock === undefined) return "in use";
    this.#going.set(sequence, lock);
    this.#listLogs = logs;
    return undefined;
  }

  #indexOf(sequence: number): number {
    // Ascending.
    let low = 0;
    let high = this.#points.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#points[middle]?.point ?? 0) < sequence) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * Order: lists of the points that stay, each durable → records of those that go unlinked, directory synced → their locks → logs nobody names. A
   * crash in between leaves a log in two lists, which changes nothing, or files that the next holder of `apply.lock` removes. Returns the points
   * that are left.
   */
  async carryOut(removeLogs: boolean): Promise<readonly Point[]> {
    if (this.#going.size === 0) return this.#points;
    const { storage } = this.#store;
    const left: Point[] = [];
    for (let index = 0; index < this.#points.length; index++) {
      const point = this.#points[index];
      if (point === undefined || this.#going.has(point.point)) continue;
      const logs = this.#inherited(index);
      const kept = logs === undefined ? point : { ...point, logs };
      if (logs !== undefined) await writePoint(storage, this.#paths, kept);
      left.push(kept);
    }
    await inFile("write-failed", `removing points in ${this.#paths.points}`, async () => {
      for (const sequence of this.#going.keys()) await storage.unlink(this.#paths.point(sequence));
      await syncDirectory(storage, this.#paths.points);
      for (const sequence of this.#going.keys()) await storage.unlink(this.#paths.pointLock(sequence));
      if (!removeLogs) return;
      const needed = neededLogs(left);
      const mine = new Set<string>();
      for (const [index, point] of this.#points.entries()) {
        if (this.#going.has(point.point)) for (const { name } of this.#lists[index] ?? []) mine.add(name);
      }
      for (const name of mine) if (!needed.has(name)) await storage.unlink(join(this.#paths.points, name));
    });
    return left;
  }

  async release(): Promise<void> {
    for (const lock of this.#going.values()) await lock.release();
  }

  /** The list of a point that stays, with those of the points behind it that go; undefined: as it is. */
  #inherited(index: number): readonly NamedLog[] | undefined {
    const own = this.#lists[index];
    const logs = [...(own ?? [])];
    const names = new Set(logs.map(({ name }) => name));
    let next = index + 1;
    for (; this.#going.has(this.#points[next]?.point ?? -1); next++) {
      for (const log of this.#lists[next] ?? []) {
        if (names.has(log.name)) continue;
        names.add(log.name);
        logs.push(log);
      }
    }
    return next === index + 1 || own === undefined ? undefined : logs;
  }
}
