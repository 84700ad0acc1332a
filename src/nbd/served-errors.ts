/** What a client is told of an error of the disk. Pure. */
import { errnoOf, ReplicationError } from "../base/errors.ts";
import { errors } from "./protocol.ts";
import type { RequestRefusal } from "./request-check.ts";

const numbers: Readonly<Record<string, number>> = {
  ENOSPC: errors.noSpace,
  EDQUOT: errors.noSpace,
  EFBIG: errors.noSpace,
  ENOMEM: errors.noMemory,
  EPERM: errors.permission,
  EACCES: errors.permission,
  EROFS: errors.permission,
  "no-space": errors.noSpace,
  "not-allowed": errors.permission,
};

/** Paths and texts of this machine stay here: a client hears the code. */
export function failureOf(error: unknown): RequestRefusal {
  const code = error instanceof ReplicationError ? error.code : errnoOf(error);
  return { error: numbers[code ?? ""] ?? errors.io, text: code ?? "the disk failed" };
}
