/** Log lines about connections that were refused. Anybody who reaches the port can cause them, so their number is bounded. */
import type { Clock } from "../base/clock.ts";
import type { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";

export const rejectionLinesMax = 50;
const windowMillis = 10_000;

/** At most {@link rejectionLinesMax} lines in ten seconds; the first line after that says how many were left out. `words`: what happened, in front of each error. */
export function createRejectionLog(
  log: Logger,
  clock: Clock,
  words = "connection refused",
): (error: ReplicationError, address: string) => void {
  let windowStart = Number.NEGATIVE_INFINITY;
  let lines = 0;
  let leftOut = 0;
  return (error, address) => {
    const now = clock.monotonic();
    if (now - windowStart >= windowMillis) {
      windowStart = now;
      lines = 0;
    }
    if (lines >= rejectionLinesMax) {
      leftOut++;
      return;
    }
    lines++;
    const fields = { peer: address, code: error.code, ...(leftOut === 0 ? {} : { linesLeftOut: leftOut }) };
    leftOut = 0;
    log.warn(fields, `${words}: ${error.message}`);
  };
}
