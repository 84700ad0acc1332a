/** Applications that write out what they hold for the moment of a cut: before it and after it something of the user's is called. */
import type { Clock } from "../base/clock.ts";
import { withDeadline } from "../base/deadline.ts";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";

export interface Quiescing {
  /** Resolves when the machine's files are consistent on its disks, and nothing writes to them. The signal fires when it takes too long. */
  freeze(signal: AbortSignal): Promise<void>;
  /** Lets the machine go on. Called after each `freeze`, also after one that failed. */
  thaw(signal: AbortSignal): Promise<void>;
  /** For each of the two; default {@link QUIESCE_MILLIS_MAX}. */
  readonly millisMax?: number | undefined;
}

export const QUIESCE_MILLIS_MAX = 10_000;

/** Cuts while the machine is quiet. When that cannot be had the cut is made all the same, and is `crash` consistent, as after a loss of power. */
export async function whileQuiet<T>(
  options: { readonly quiescing: Quiescing | undefined; readonly clock: Clock; readonly log: Logger },
  cut: () => Promise<T>,
): Promise<{ readonly cuts: T; readonly consistency: "crash" | "application" }> {
  const { quiescing, clock, log } = options;
  if (quiescing === undefined) return { cuts: await cut(), consistency: "crash" };
  const millis = quiescing.millisMax ?? QUIESCE_MILLIS_MAX;
  const inTime = async (what: string, work: (signal: AbortSignal) => Promise<void>): Promise<boolean> => {
    const error = (): ReplicationError => new ReplicationError("aborted", `it took longer than ${millis / 1000} s`);
    try {
      await withDeadline({ clock, millis, error }, work);
      return true;
    } catch (thrown) {
      const { code, message } = toReplicationError(thrown);
      log.warn({ code }, `${what}: ${message}`);
      return false;
    }
  };
  const quiet = await inTime("the machine could not be frozen, the point is made as after a loss of power", (signal) =>
    quiescing.freeze(signal),
  );
  let thawed = false;
  let cuts: T;
  try {
    cuts = await cut();
  } finally {
    // A freeze that ended by itself before the cut shows here: a guest says so when it is thawed.
    thawed = await inTime(
      "the machine could not be thawed, and may not have been quiet: the point is as after a loss of power",
      (signal) => quiescing.thaw(signal),
    );
  }
  return { cuts, consistency: quiet && thawed ? "application" : "crash" };
}
