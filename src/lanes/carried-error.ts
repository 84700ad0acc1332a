/** Errors of jobs on their way from a worker thread. */
import { InvariantError, isErrorCode, ReplicationError } from "../base/errors.ts";

/** An error as a value that crosses threads, with what matters kept. */
export interface CarriedError {
  readonly kind: "replication" | "invariant" | "other";
  readonly code: string;
  readonly message: string;
  readonly details: ReplicationError["details"];
  readonly stack: string | undefined;
}

export function carryError(error: unknown): CarriedError {
  if (error instanceof ReplicationError) {
    const { code, message, details, stack } = error;
    return { kind: "replication", code, message, details, stack };
  }
  const message = error instanceof Error ? error.message : String(error);
  const stack = error instanceof Error ? error.stack : undefined;
  return { kind: error instanceof InvariantError ? "invariant" : "other", code: "", message, details: {}, stack };
}

export function uncarryError(carried: CarriedError): Error {
  const cause = carried.stack === undefined ? undefined : { stackInLane: carried.stack };
  if (carried.kind === "invariant") return new InvariantError(carried.message, { cause });
  const code = isErrorCode(carried.code) ? carried.code : "internal";
  return new ReplicationError(code, carried.message, { details: carried.details, cause });
}
