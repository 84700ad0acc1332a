/** A replica that somebody else wrote to: to a person it may be the only copy of something, so nothing overwrites it unasked. */
import { ReplicationError } from "../base/errors.ts";
import type { DiskRecord } from "./disk-record.ts";
import type { Point } from "./points/point.ts";

const choice =
  "Nothing was overwritten. A person must decide: `replicate repair` gives up what was written, and the next send overwrites it; " +
  "`replicate repair --keep-changes` makes a recovery point of it first";

/** `offset`: of a block that differs; undefined: an earlier session has found one. */
export function replicaChanged(
  disk: string,
  newest: Pick<Point, "point" | "cycle"> | undefined,
  offset: number | undefined,
): ReplicationError {
  const since = newest === undefined ? "" : ` since point ${newest.point} (cycle ${newest.cycle})`;
  const where = offset === undefined ? "" : `, at offset ${offset} for one`;
  const details = { disk, ...(newest && { point: newest.point }), ...(offset !== undefined && { offset }) };
  return new ReplicationError(
    "replica-changed",
    `disk ${disk}: somebody else has changed the replica${since}${where}. ${choice}`,
    { details },
  );
}

export function foreignLength({ name, sizeBytes }: DiskRecord, foundBytes: number): ReplicationError {
  return new ReplicationError(
    "replica-changed",
    `disk ${name}: somebody else has made the replica longer: ${foundBytes} bytes, and not ${sizeBytes}. Nothing was overwritten. ` +
      "A person must decide: `replicate repair` gives up all that was changed. To keep it, copy away what lies behind the end, cut the image to " +
      `its ${sizeBytes} bytes (truncate -s, qemu-img resize --shrink) and make a recovery point of the rest: replicate repair --keep-changes`,
    { details: { disk: name, foundBytes, sizeBytes } },
  );
}

/** Somebody writes to the replica while it is read. */
export function replicaInUse(disk: string): ReplicationError {
  return new ReplicationError(
    "replica-changed",
    `disk ${disk}: the replica was written to while it was being compared with its digests. Stop whoever uses it, then start again`,
    { details: { disk } },
  );
}
