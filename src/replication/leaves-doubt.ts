/** What a receiver does not know after an error. */
import type { ErrorCode } from "../base/errors.ts";

/** After these a block may be half written: nothing since the last good sync is believed. */
export const leavesDoubt: ReadonlySet<ErrorCode> = new Set([
  "write-failed",
  "sync-failed",
  "no-space",
  "lane-crashed",
  "internal",
]);
