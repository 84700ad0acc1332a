/** What an audit found, said aloud. */
import type { Logger } from "../base/logger.ts";
import type { SendReport } from "./report.ts";

/** Whether blocks had changed that were called clean: then the next send has to compare everything. */
export function tellMisses(reports: readonly SendReport[], log: Logger): boolean {
  let any = false;
  for (const { disk, audit } of reports) {
    if (audit === undefined || audit.missedBytes === 0) continue;
    any = true;
    log.error(
      { disk, auditedBytes: audit.bytes, missedBytes: audit.missedBytes },
      `${disk}: blocks had changed that are called clean: the image is written past its tracker, or the bitmap is wrong. What was found was sent, others may be missing in the point; the next send compares everything`,
    );
  }
  return any;
}
