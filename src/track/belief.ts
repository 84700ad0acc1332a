/**
 * Is a journal to be believed? Its own checksums say whether it is whole (journal/load.ts); this says whether the image can have been written to past
 * it. Pure.
 *
 * | journal | believed when |
 * |---|---|
 * | any | it is of this device and inode, of a disk of this size, and the clock is not before the journal's last heartbeat |
 * | closed | file size, ctime and DataWriteGuid are those it was closed with |
 * | not closed | the boot is known, ctime is not behind the last heartbeat (base/heartbeat.ts); of another boot: mode is `power` |
 * | of a block device | as above without what is about ctime, and with an audit of the blocks called clean |
 */
import { behindWhat, type BootNow } from "../base/heartbeat.ts";
import type { Fingerprint } from "./fingerprint.ts";
import { type Scan, type ScanReason, scan } from "./scan-reason.ts";

/** What a journal's promises survive: loss of power, or the end of the process alone. */
export type JournalMode = "power" | "process";

/** What a journal says. */
export interface JournalClaim {
  readonly mode: JournalMode;
  /** It was closed, and not used since. */
  readonly closed: boolean;
  /** Size of the disk. */
  readonly sizeBytes: number;
  /** Of the image: when it was closed, or else when it was opened. */
  readonly image: Fingerprint;
  /** Id of the boot it was written in; empty: not known. */
  readonly bootId: string;
  /** Wall clock when it was last written, milliseconds since 1970. */
  readonly heartbeatMillis: number;
}

/** What is there now. */
export interface ImageNow {
  readonly kind: "file" | "device";
  readonly sizeBytes: number;
  readonly image: Fingerprint;
  /** Undefined: not known here. */
  readonly boot: BootNow | undefined;
  readonly nowMillis: number;
}

/** `audit`: nothing shows writes past the journal, so that a share of the blocks it calls clean is looked at: {@link leastAuditShareOf}. */
export type Belief = { readonly kind: "exact"; readonly audit: boolean } | Scan;

/** Of the blocks called clean, where nothing else shows writes past the journal. */
export const DOUBT_AUDIT_SHARE = 0.01;

/** Share of the blocks called clean that is looked at in the first cycle, whatever is asked for. */
export function leastAuditShareOf(belief: Belief): number {
  return belief.kind === "exact" && belief.audit ? DOUBT_AUDIT_SHARE : 0;
}

export function believe(journal: JournalClaim, now: ImageNow): Belief {
  const { image: was } = journal;
  const { image: is } = now;
  if (was.device !== is.device || was.inode !== is.inode) {
    const words = `the journal is of another image: of inode ${was.inode} on device ${was.device}, and this is inode ${is.inode} on device ${is.device}`;
    return scan("other-image", words);
  }
  if (journal.sizeBytes !== now.sizeBytes) {
    return scan(
      "disk-size-differs",
      `the journal is of a disk of ${journal.sizeBytes} bytes, and it has ${now.sizeBytes}`,
    );
  }
  if (now.nowMillis < journal.heartbeatMillis) {
    const words = `the clock shows ${time(now.nowMillis)}, and the journal was written at ${time(journal.heartbeatMillis)}: no times can be compared`;
    return scan("clock-went-back", words);
  }
  const doubt = journal.closed ? doubtOfClosed(journal, now) : doubtOfOpen(journal, now);
  if (doubt === undefined) return { kind: "exact", audit: now.kind === "device" };
  return scan(...doubt);
}

type Doubt = readonly [reason: ScanReason, words: string];

function doubtOfClosed({ image: was }: JournalClaim, { kind, image: is }: ImageNow): Doubt | undefined {
  if (was.sizeBytes !== is.sizeBytes) {
    return [
      "image-changed",
      `the image had ${was.sizeBytes} bytes when the journal was closed, and has ${is.sizeBytes}`,
    ];
  }
  if (was.dataWriteGuid !== is.dataWriteGuid) {
    const words = `the image's DataWriteGuid was ${was.dataWriteGuid ?? "none"} when the journal was closed, and is ${is.dataWriteGuid ?? "none"}: another program wrote to it`;
    return ["image-changed", words];
  }
  if (kind === "device" || was.changedNanos === is.changedNanos) return undefined;
  const words = `the image was last changed at ${timeOf(is)}, and not at ${timeOf(was)} as when the journal was closed`;
  return ["image-changed", words];
}

function doubtOfOpen(journal: JournalClaim, { kind, image, boot }: ImageNow): Doubt | undefined {
  if (boot === undefined || journal.bootId === "") {
    return [
      "boot-unknown",
      "the journal was not closed, and whether the machine was started anew since is not known here",
    ];
  }
  const sameBoot = boot.id === journal.bootId;
  if (!sameBoot && journal.mode === "process") {
    const words = `the journal was not closed, and does not survive loss of power (mode "process"); the machine was started at ${time(boot.beganMillis)}`;
    return ["other-boot", words];
  }
  if (kind === "device") return undefined;
  const changedMillis = Number(image.changedNanos) / 1e6;
  const behind = behindWhat(changedMillis, { millis: journal.heartbeatMillis, bootId: journal.bootId }, boot);
  if (behind === undefined) return undefined;
  if (behind === "boot") {
    const words = `the journal was not closed before the machine was started at ${time(boot.beganMillis)}, and the image was changed at ${timeOf(image)}`;
    return ["image-changed-later", words];
  }
  const words = `the journal was not closed, and last written at ${time(journal.heartbeatMillis)}; the image was changed at ${timeOf(image)}`;
  return ["image-changed-later", words];
}

function timeOf({ changedNanos }: Fingerprint): string {
  return time(Number(changedNanos / 1_000_000n));
}

function time(millis: number): string {
  const date = new Date(millis);
  return Number.isNaN(date.getTime()) ? `${millis} ms` : date.toISOString();
}
