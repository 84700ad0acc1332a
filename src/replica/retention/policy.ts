/**
 * A retention policy and its text. What a policy makes of the points of a disk: retention.ts.
 *
 *   all                                             everything stays
 *   grid=1x1h(keep=all)|24x1h|14x1d|8x7d            ages, oldest in bucket stays
 *   last=N,hourly=N,daily=N,weekly=N,monthly=N,yearly=N   any of them, newest in period stays
 */
import { ReplicationError } from "../../base/errors.ts";

/** `count` buckets of `lengthMillis` each; in each of them the `keep` oldest points stay. */
export interface GridRow {
  readonly count: number;
  readonly lengthMillis: number;
  readonly keep: number | "all";
}

/** In the order in which they are applied: a period that a finer one covers is not counted again. */
export const keepOptions = ["last", "hourly", "daily", "weekly", "monthly", "yearly"] as const;
export type KeepOption = (typeof keepOptions)[number];

export type RetentionPolicy =
  | { readonly kind: "all" }
  /** Rows lie back to back, the first one begins at now. */
  | { readonly kind: "grid"; readonly rows: readonly GridRow[] }
  /** Only zeros: the newest point alone. */
  | { readonly kind: "keep"; readonly counts: Readonly<Partial<Record<KeepOption, number>>> };

const SECOND = 1000;
const unitMillis = {
  s: SECOND,
  m: 60 * SECOND,
  h: 3_600 * SECOND,
  d: 86_400 * SECOND,
  w: 604_800 * SECOND,
} as const;
const POLICY_LENGTH_MAX = 4096;
const COUNT_MAX = 1_000_000;
/** A thousand years: sums of ages stay far inside exact numbers and inside what a date can be. */
const GRID_MILLIS_MAX = 1000 * 365 * unitMillis.d;

export const defaultPolicyText = "grid=1x1h(keep=all)|24x1h|14x1d|8x7d";
export const defaultPolicy: RetentionPolicy = parsePolicy(defaultPolicyText);

/** A piece of the text, without blanks around it, and where it begins, counted from 1. */
interface Piece {
  readonly text: string;
  readonly at: number;
}

function wrong(policy: string, piece: Piece, what: string): ReplicationError {
  const shown = piece.text === "" ? "nothing" : JSON.stringify(piece.text);
  return new ReplicationError(
    "usage",
    `retention policy ${JSON.stringify(policy)}: at character ${piece.at} there is ${shown}; ${what}`,
  );
}

function split(text: string, from: number, separator: string): Piece[] {
  let at = from;
  return text
    .slice(from)
    .split(separator)
    .map((part) => {
      const piece = { text: part.trim(), at: at + part.length - part.trimStart().length + 1 };
      at += part.length + separator.length;
      return piece;
    });
}

const gridHelp = "a row is COUNTxLENGTH or COUNTxLENGTH(keep=N|all), as in 24x1h; units are s, m, h, d and w";

function parseRow(policy: string, piece: Piece): GridRow {
  const match = /^(\d+)x(\d+)([smhdw])(?:\(keep=(all|\d+)\))?$/.exec(piece.text);
  if (match === null) throw wrong(policy, piece, gridHelp);
  const count = Number(match[1]);
  if (!(count >= 1 && count <= COUNT_MAX)) {
    throw wrong(policy, piece, `a row has from 1 to ${COUNT_MAX} buckets`);
  }
  const lengthMillis = Number(match[2]) * unitMillis[match[3] as keyof typeof unitMillis];
  if (lengthMillis === 0) throw wrong(policy, piece, "a bucket has a length");
  const keep = match[4] === "all" ? "all" : Number(match[4] ?? 1);
  if (keep !== "all" && !(keep >= 1 && keep <= COUNT_MAX)) {
    throw wrong(policy, piece, `keep is "all" or a number from 1 to ${COUNT_MAX}; leave rows out at the end instead`);
  }
  return { count, lengthMillis, keep };
}

function parseGrid(policy: string, from: number): RetentionPolicy {
  const rows: GridRow[] = [];
  let total = 0;
  let longest = 0;
  for (const piece of split(policy, from, "|")) {
    const row = parseRow(policy, piece);
    // A shorter bucket behind a longer one would find points that the longer one has thinned out already.
    if (row.lengthMillis < longest && rows.some(({ keep }) => keep !== "all")) {
      throw wrong(
        policy,
        piece,
        "its buckets are shorter than those before it, which have thinned out its points already",
      );
    }
    total += row.count * row.lengthMillis;
    if (!(total <= GRID_MILLIS_MAX)) throw wrong(policy, piece, "with it the grid is longer than a thousand years");
    longest = row.lengthMillis;
    rows.push(row);
  }
  return { kind: "grid", rows };
}

function parseKeep(policy: string): RetentionPolicy {
  const counts: Partial<Record<KeepOption, number>> = {};
  for (const piece of split(policy, 0, ",")) {
    const [name = "", number, ...rest] = piece.text.split("=");
    const option = keepOptions.find((known) => known === name);
    if (option === undefined || number === undefined || rest.length > 0) {
      throw wrong(policy, piece, `write all, grid=..., or NAME=N with a NAME of ${keepOptions.join(", ")}`);
    }
    if (!/^\d+$/.test(number) || Number(number) > COUNT_MAX) {
      throw wrong(policy, piece, `${option} takes a number from 0 to ${COUNT_MAX}`);
    }
    if (counts[option] !== undefined) throw wrong(policy, piece, `${option} is given twice`);
    counts[option] = Number(number);
  }
  return { kind: "keep", counts };
}

/**
 * The policy a text stands for. Blanks around rows and options are free. `last=0` alone means "replica only": the newest point and no
 * history. Throws `usage`, saying what is wrong at which character.
 */
export function parsePolicy(text: string): RetentionPolicy {
  if (text.length > POLICY_LENGTH_MAX) {
    throw new ReplicationError("usage", `a retention policy has at most ${POLICY_LENGTH_MAX} characters`);
  }
  if (text.trim() === "all") return { kind: "all" };
  const grid = /^\s*grid=/.exec(text);
  return grid === null ? parseKeep(text) : parseGrid(text, grid[0].length);
}

/** In the largest unit up to days that divides it: weeks are left as the days they were most likely written in. */
function formatLength(millis: number): string {
  for (const unit of ["d", "h", "m"] as const) {
    if (millis % unitMillis[unit] === 0) return `${millis / unitMillis[unit]}${unit}`;
  }
  return `${millis / unitMillis.s}s`;
}

/** One row as it is written in a policy. */
export function formatRow(row: GridRow): string {
  const keep = row.keep === 1 ? "" : `(keep=${row.keep})`;
  return `${row.count}x${formatLength(row.lengthMillis)}${keep}`;
}

/** The text of a policy; {@link parsePolicy} makes the same policy of it again. */
export function formatPolicy(policy: RetentionPolicy): string {
  switch (policy.kind) {
    case "all":
      return "all";
    case "grid":
      return `grid=${policy.rows.map(formatRow).join("|")}`;
    case "keep":
      return keepOptions
        .filter((option) => policy.counts[option] !== undefined)
        .map((option) => `${option}=${policy.counts[option]}`)
        .join(",");
  }
}
