/**
 * Cuts: points that several disks of a store have of one moment, such as those of a machine's disks. A cut is complete when every member has its
 * point. It is worth nothing in pieces, so its points stay and go together.
 */
import { diskPaths } from "./layout.ts";
import type { StoreParts } from "./open-disk.ts";
import { listPoints, loadPoints, type Point } from "./points/point.ts";

/** What the other disks of a cut say. */
export interface CutState {
  readonly complete: boolean;
  /** Disks that have no point of it. */
  readonly missing: readonly string[];
  /** The other disks' points of it. */
  readonly others: readonly { readonly disk: string; readonly point: number }[];
}

/** Points of the disks that are cut together with one, by disk. */
export interface Companions {
  readonly points: ReadonlyMap<string, readonly Point[]>;
}

/** Reads the points of every disk that `points`, those of `disk`, name as members of their cuts. Damaged records count as no points. */
export async function loadCompanions(
  store: Pick<StoreParts, "storage" | "path">,
  disk: string,
  points: readonly Point[],
): Promise<Companions> {
  const names = new Set(points.flatMap(({ cut }) => cut?.members ?? []));
  names.delete(disk);
  const found = new Map<string, readonly Point[]>();
  for (const name of names) {
    const paths = diskPaths(store.path, name);
    const loaded = await loadPoints(store.storage, paths, await listPoints(store.storage, paths));
    found.set(name, loaded.points);
  }
  return { points: found };
}

/** The state of the cut of each point that has one, by sequence number. Pure. */
export function cutStates(
  disk: string,
  points: readonly Point[],
  companions: Companions,
): ReadonlyMap<number, CutState> {
  const byCut = new Map<string, ReadonlyMap<string, number>>();
  for (const [name, theirs] of companions.points) {
    byCut.set(name, new Map(theirs.flatMap(({ cut, point }) => (cut === undefined ? [] : [[cut.id, point] as const]))));
  }
  const states = new Map<number, CutState>();
  for (const { point, cut } of points) {
    if (cut === undefined) continue;
    const others: { disk: string; point: number }[] = [];
    const missing: string[] = [];
    for (const member of cut.members) {
      if (member === disk) continue;
      const theirs = byCut.get(member)?.get(cut.id);
      if (theirs === undefined) missing.push(member);
      else others.push({ disk: member, point: theirs });
    }
    states.set(point, { complete: missing.length === 0, missing, others });
  }
  return states;
}

/** {@link cutStates}, read from the store. */
export async function loadCutStates(
  store: Pick<StoreParts, "storage" | "path">,
  disk: string,
  points: readonly Point[],
): Promise<ReadonlyMap<number, CutState>> {
  return cutStates(disk, points, await loadCompanions(store, disk, points));
}

/**
 * Why points stay for the sake of their cut, by sequence number: another disk keeps its point of it (`keeps` tells for itself), or it is the newest that is
 * complete. Pure.
 */
export function sparedByCuts(
  states: ReadonlyMap<number, CutState>,
  keeps: (disk: string, point: number) => boolean,
): ReadonlyMap<number, string> {
  const spared = new Map<number, string>();
  let newestComplete: number | undefined;
  for (const [point, { complete, others }] of states) {
    if (!complete) continue;
    newestComplete = Math.max(newestComplete ?? 0, point);
    const keeper = others.find((other) => keeps(other.disk, other.point));
    if (keeper !== undefined) spared.set(point, `${keeper.disk} keeps its point ${keeper.point} of the same cut`);
  }
  if (newestComplete !== undefined) spared.set(newestComplete, "newest of all disks that are cut together");
  return spared;
}
