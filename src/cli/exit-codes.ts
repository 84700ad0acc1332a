/** The exit code of every error: docs and scripts rely on them. */
import type { ErrorCode } from "../base/errors.ts";

export const exitCodes = {
  done: 0,
  failed: 1,
  usage: 2,
  differs: 3,
  /** A person must decide. */
  refused: 4,
  interrupted: 130,
} as const;

const special: Partial<Record<ErrorCode, number>> = {
  usage: exitCodes.usage,
  "comparison-differs": exitCodes.differs,
  "seed-damaged": exitCodes.differs,
  "another-image": exitCodes.refused,
  "block-size-differs": exitCodes.refused,
  "digest-kind-differs": exitCodes.refused,
  "size-shrunk": exitCodes.refused,
  "replica-changed": exitCodes.refused,
  "target-exists": exitCodes.refused,
  aborted: exitCodes.interrupted,
};

export function exitCodeOf(code: ErrorCode): number {
  return special[code] ?? exitCodes.failed;
}
