/**
 * Removes recovery points, and nothing but names: the logs of a point go to the list of the point before it, so no content is copied and no
 * space is needed. Everything here is done with `chain.lock` held.
 */
import { join } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import type { FileLock } from "../storage/seam.ts";
import { neededLogs, ownLogs } from "./chain.ts";
import { inFile } from "./file-error.ts";
import type { DiskPaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints, type NamedLog, type Point, readPoint, type Hold, writePoint } from "./point.ts";
import { decideRetention, type Verdict } from "./retention.ts";
import type { RetentionPolicy } from "./retention-policy.ts";
import { syncDirectory } from "./state-file.ts";

/** A sender's clock may run ahead of ours by this much before its points stop ageing others. */
const aheadMillisMax = 86_400_000;

export interface PruneOptions {
  readonly policy: RetentionPolicy;
  /** IANA name, for calendar periods. */
  readonly timeZone: string;
  /** Decides and removes nothing. */
  readonly dryRun?: boolean;
}

/**
 * Applies a policy to the points of a disk. Returns a verdict for each point there was, ascending; what was to go and could not is kept and says why.
 * Points older than a record that cannot be read are left alone. Throws `write-failed`, `sync-failed`, `no-space`.
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
  const verdicts = decideRetention(
    reachable.map(({ point, time, label, hold }) => ({ point, time, label, held: hold })),
    options.policy,
    { nowMax: now + aheadMillisMax, holdNow: now, timeZone: options.timeZone },
  );
  if (options.dryRun === true) return verdicts;
  const removal = new Removal(store, paths, reachable);
  try {
    const settled: Verdict[] = [];
    for (const verdict of verdicts) {
      const obstacle = verdict.keep ? undefined : await removal.take(verdict.point);
      settled.push(obstacle === undefined ? verdict : { ...verdict, keep: true, rule: obstacle });
    }
    // Logs older than the barrier may be named by a record that cannot be read.
    await removal.carryOut(barrier === 0);
    return settled;
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

  constructor(store: StoreParts, paths: DiskPaths, points: readonly Point[]) {
    this.#store = store;
    this.#paths = paths;
    this.#points = points;
    this.#lists = ownLogs(points);
  }

  /** Undefined: it goes. Else why it stays. */
  async take(sequence: number): Promise<string | undefined> {
    const index = this.#points.findIndex(({ point }) => point === sequence);
    if (this.#lists[index] === undefined) return "its undo log was never closed: what older points need is not known";
    const lock = await this.#store.locks.exclusive(this.#paths.pointLock(sequence));
    if (lock === undefined) return "in use";
    this.#going.set(sequence, lock);
    return undefined;
  }

  /**
   * Order: lists of the points that stay, each durable → records of those that go unlinked, directory synced → their locks → logs nobody names. A
   * crash in between leaves a log in two lists, which changes nothing, or files that the next holder of `apply.lock` removes.
   */
  async carryOut(removeLogs: boolean): Promise<void> {
    if (this.#going.size === 0) return;
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
