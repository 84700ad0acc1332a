/** What a send did, as plain data: the reduction funnel from the size of the disk down to bytes on the wire. */
import type { ErrorCode } from "../base/errors.ts";

/**
 * Why blocks were looked at. `initial`: the disk was empty and has no point. `scan`: a delta, every block compared. `resume`: an initial copy or
 * delta that an earlier run left half done goes on. `resync:<code>`: an attempt of this run ended with this error, which put the receiver's table
 * in doubt; all was compared again. `resync:base-mismatch`: the receiver is not where a tracker left it; only what may have changed and pages of the
 * table that differ there were looked at. `bitmap`: a delta of which only blocks that a tracker marked were read.
 */
export type SendReason = "initial" | "scan" | "resume" | "bitmap" | `resync:${ErrorCode}`;

/**
 * The funnel. All in bytes unless the name says otherwise. Grows while a send runs.
 *
 * A send may take several attempts. Two kinds of counts:
 * of content (`changed...`, `shipped...`, `zero...`): a block counts once, the first time it is sent, so that each is at most the one before it and
 * at most the size of the disk; of work (`read...`, `packed...`, `wire...`, `repeated...`): everything that was done, in all attempts.
 */
export interface Funnel {
  /** Size of the disk. */
  sizeBytes: number;
  /** Of it, not a hole at the source. */
  allocatedBytes: number;
  /** Looked at so far in this attempt, holes included: progress. */
  scannedBytes: number;
  /** Read from the image; what is read a second time counts again. */
  readBytes: number;
  /** Blocks whose digest differed. Each once. */
  changedBlockBytes: number;
  /** Parts that differed (a block that became zero counts whole). */
  changedBytes: number;
  /** Of them, not zero: what had to travel. */
  shippedBytes: number;
  /** Frames with content, after compression. What had to be sent again, in this attempt or a later one, counts again. */
  packedBytes: number;
  /** Both directions, TLS included, all attempts. */
  wireBytes: number;
  /** Blocks that became zero. Each once. */
  zeroBlocks: number;
  /** Blocks sent again at the receiver's request. */
  repeatedBlocks: number;
}

export function emptyFunnel(sizeBytes: number): Funnel {
  return {
    sizeBytes,
    allocatedBytes: 0,
    scannedBytes: 0,
    readBytes: 0,
    changedBlockBytes: 0,
    changedBytes: 0,
    shippedBytes: 0,
    packedBytes: 0,
    wireBytes: 0,
    zeroBlocks: 0,
    repeatedBlocks: 0,
  };
}

/** The result of a send that committed. */
export interface SendReport {
  readonly disk: string;
  /** Sequence number of the point. */
  readonly point: number;
  /** False when the point was there already (a commit whose answer was lost) or `skipEmpty` made none. */
  readonly created: boolean;
  /** Hex. */
  readonly root: string;
  /** Of the whole run: what its first attempt found, or the last doubt on the way. */
  readonly reason: SendReason;
  readonly funnel: Readonly<Funnel>;
  readonly seconds: number;
  /** Connections that were made, 1 when nothing was lost. */
  readonly attempts: number;
  readonly blockBytes: number;
  readonly consistency: "crash" | "application" | "none";
  /** Of a tracked image, when it is audited. */
  readonly audit?: Audit | undefined;
  /** How often the image was sent as it changed before it was cut. They are in the other figures: a block counts in each of them. */
  readonly passes?: number | undefined;
}

/** Blocks that a tracker called clean and that were looked at all the same. */
export interface Audit {
  readonly bytes: number;
  /** Of those that had changed: the tracker does not tell the truth. */
  readonly missedBytes: number;
}

/** Of a send that ends what `passes` began; in their order. */
export function withPasses(last: SendReport, passes: readonly SendReport[]): SendReport {
  const [first] = passes;
  if (first === undefined) return last;
  const all = [...passes, last];
  const sum = (count: (report: SendReport) => number): number =>
    all.reduce((total, report) => total + count(report), 0);
  const funnel = { ...last.funnel, allocatedBytes: first.funnel.allocatedBytes };
  for (const key of summed) funnel[key] = sum((report) => report.funnel[key]);
  const [seconds, attempts] = [sum((report) => report.seconds), sum((report) => report.attempts)];
  return { ...last, funnel, seconds, attempts, reason: first.reason, passes: passes.length };
}

const summed = [
  ...(["readBytes", "changedBlockBytes", "changedBytes", "shippedBytes", "packedBytes", "wireBytes"] as const),
  ...(["zeroBlocks", "repeatedBlocks"] as const),
];
