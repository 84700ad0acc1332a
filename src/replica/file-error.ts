import { type ErrorCode, errnoOf, ReplicationError } from "../base/errors.ts";

export function isFull(error: unknown): boolean {
  const errno = errnoOf(error);
  return errno === "ENOSPC" || errno === "EDQUOT";
}

/** What a file call threw, as an error a user can act on: `no-space` when the file system is full, else `code`. Others pass unchanged. */
export function fileError(error: unknown, code: ErrorCode, doing: string): Error {
  const errno = errnoOf(error);
  if (error instanceof Error && (errno === undefined || error instanceof ReplicationError)) return error;
  if (isFull(error)) {
    return new ReplicationError("no-space", `${doing}: no space left; free some and start again`, { cause: error });
  }
  return new ReplicationError(code, `${doing} failed (${errno ?? String(error)})`, {
    cause: error,
    details: { errno: errno ?? null },
  });
}

/** Runs a file call; what it throws is explained by {@link fileError}. */
export async function inFile<T>(code: ErrorCode, doing: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw fileError(error, code, doing);
  }
}
