/**
 * After an unclean end: has a file been changed behind the one who wrote to it? Its ctime is held against that one's last heartbeat. Pure.
 *
 * | boot | his own changes are |
 * |---|---|
 * | the same | no later than 2 s after the heartbeat: it is written each second |
 * | another | before this boot, and no later than 12 s after the heartbeat: it is synced every 10 s |
 * | not known | no later than 12 s after the heartbeat |
 */

/** A heartbeat is written this often, and synced this often. */
export const HEARTBEAT_MILLIS = 1_000;
export const HEARTBEAT_SYNC_MILLIS = 10_000;

/** Time by which a file may have been changed behind a heartbeat. */
export const SAME_BOOT_MILLIS = 2_000;
export const OTHER_BOOT_MILLIS = 12_000;

/** When who writes was alive for certain. */
export interface Heartbeat {
  /** Milliseconds since 1970 UTC. */
  readonly millis: number;
  /** Of the boot it was in; empty: not known. */
  readonly bootId: string;
}

/** The boot that runs, and when it began by the clock as it is set now. */
export interface BootNow {
  readonly id: string;
  readonly beganMillis: number;
}

/** Behind what the file was changed: the beginning of this boot, or the heartbeat. Undefined: behind neither. `boot` undefined: not known here. */
export function behindWhat(
  changedMillis: number,
  heartbeat: Heartbeat,
  boot: BootNow | undefined,
): "boot" | "heartbeat" | undefined {
  const known = boot !== undefined && heartbeat.bootId !== "" ? boot : undefined;
  const sameBoot = known?.id === heartbeat.bootId;
  if (known !== undefined && !sameBoot && changedMillis >= known.beganMillis) return "boot";
  const graceMillis = sameBoot ? SAME_BOOT_MILLIS : OTHER_BOOT_MILLIS;
  return changedMillis <= heartbeat.millis + graceMillis ? undefined : "heartbeat";
}
