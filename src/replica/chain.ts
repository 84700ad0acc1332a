/**
 * Which undo logs turn the replica's content into that of a point, in lookup order. Pure.
 *
 * A point's own list turns the next point's content into its own; the chain of a point is its list and those of all points behind it,
 * the open log last.
 */
import { undoName } from "./layout.ts";
import type { NamedLog, Point } from "./points/point.ts";
import type { ClosedLog } from "./undo/entry.ts";

export interface ChainLog {
  /** File name in `points/`. */
  readonly name: string;
  /** Undefined: the open log, which grows. */
  readonly closed: ClosedLog | undefined;
}

/**
 * The list of each point but the newest: `points` ascending, without gaps in what was committed but for those removed. A point whose
 * log nobody closed has a list that is undefined: what it held before cannot be told, nor for older ones.
 */
export function ownLogs(points: readonly Point[]): readonly (readonly NamedLog[] | undefined)[] {
  return points.slice(0, -1).map((point, index) => {
    if (point.logs !== undefined) return point.logs;
    const closed = points[index + 1]?.closed;
    return closed === undefined ? undefined : [{ name: undoName(point.point), closed }];
  });
}

/** The chain of `points[index]`; undefined: it is broken. `openLog`: whether the newest point's log exists. */
export function chainOf(points: readonly Point[], index: number, openLog: boolean): readonly ChainLog[] | undefined {
  const chain: ChainLog[] = [];
  const names = new Set<string>();
  for (const list of ownLogs(points).slice(index)) {
    if (list === undefined) return undefined;
    for (const log of list) {
      // An interrupted removal leaves a log in two lists: the first place counts, as for every lookup.
      if (!names.has(log.name)) chain.push(log);
      names.add(log.name);
    }
  }
  const newest = points.at(-1);
  if (openLog && newest !== undefined) chain.push({ name: undoName(newest.point), closed: undefined });
  return chain;
}

/** Names of logs that some point or the open delta needs. */
export function neededLogs(points: readonly Point[]): ReadonlySet<string> {
  const needed = new Set<string>();
  for (const [index, list] of ownLogs(points).entries()) {
    for (const { name } of list ?? []) needed.add(name);
    // Of points whose log nobody closed the log is kept, whatever it is worth.
    if (list === undefined) needed.add(undoName(points[index]?.point ?? 0));
  }
  const newest = points.at(-1);
  if (newest !== undefined) needed.add(undoName(newest.point));
  return needed;
}
