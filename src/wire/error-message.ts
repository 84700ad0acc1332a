/** Errors across the wire: the cause travels as data. */
import { isErrorCode, ReplicationError } from "../base/errors.ts";
import type { ErrorMessage } from "./messages.ts";

/** Encoding cuts texts to the maxima of the protocol. */
export function toErrorMessage(error: ReplicationError): ErrorMessage {
  return { type: "error", code: error.code, message: error.message, details: error.details };
}

/**
 * As an error of ours, `remote`. A code of a newer peer becomes `internal` (a person must act), the code kept in text
 * and details.
 */
export function fromErrorMessage(message: ErrorMessage): ReplicationError {
  const { code, details } = message;
  if (isErrorCode(code)) return new ReplicationError(code, message.message, { details, remote: true });
  return new ReplicationError("internal", `${message.message} (${code})`, {
    details: { ...details, code },
    remote: true,
  });
}
