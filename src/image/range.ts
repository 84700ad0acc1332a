/** The one rule for ranges of a disk. */
import { invariant } from "../base/errors.ts";

/** The range lies within the disk; a caller that asks for more has a bug. */
export function checkRange(sizeBytes: number, offset: number, length: number): void {
  invariant(
    Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0,
    "a range is made of whole bytes",
  );
  invariant(offset + length <= sizeBytes, "a range lies within the disk");
}
