/** Why a disk has to be compared as a whole: the codes of reports and logs. They are stable; docs/formats.md lists them. */
export const scanReasons = [
  "journal-new",
  "journal-unreadable",
  "journal-damaged",
  "journal-version",
  "journal-write-failed",
  "block-size-differs",
  "disk-size-differs",
  "other-image",
  "image-changed",
  "image-changed-later",
  "other-boot",
  "boot-unknown",
  "clock-went-back",
] as const;

export type ScanReason = (typeof scanReasons)[number];

/** `words`: one sentence for people, which names what was expected and what was found. */
export interface Scan {
  readonly kind: "scan";
  readonly reason: ScanReason;
  readonly words: string;
}

export function scan(reason: ScanReason, words: string): Scan {
  return { kind: "scan", reason, words };
}
