/** What an audit found, said aloud. */
import type { Logger } from "../base/logger.ts";
import type { SendReport } from "./report.ts";

/** Tells of each disk whose blocks had changed although they were called clean; true: there was one. The next send has to compare everything then. */
export function tellMisses(reports: readonly SendReport[], log: Logger): boolean {
  const missed = reports.filter(({ audit }) => (audit?.missedBytes ?? 0) > 0);
  for (const { disk, audit } of missed) if (audit !== undefined) tellMiss(disk, audit, log);
  return missed.length > 0;
}

export function tellMiss(disk: string, audit: NonNullable<SendReport["audit"]>, log: Logger): void {
  log.error(
    { disk, auditedBytes: audit.bytes, missedBytes: audit.missedBytes },
    `${disk}: blocks had changed that are called clean: the image is written past its tracker, or the bitmap is wrong. What was found was sent, others may be missing in the point; the next send compares everything`,
  );
}
