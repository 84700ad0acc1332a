/** Errors of calls that do not go through Node, in the shape Node gives its own. */
import { getSystemErrorMap } from "node:util";

/** `code`, `errno`, `syscall` and `path` as on Node's errors, so that callers need one way to look at both. */
export interface SystemError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly path?: string;
}

/** An Error for a negative errno. */
export function systemError(syscall: string, errno: number, path?: string): SystemError {
  const [code, text] = getSystemErrorMap().get(errno) ?? ["UNKNOWN", `error ${-errno}`];
  const where = path === undefined ? "" : ` '${path}'`;
  const facts = { code, errno, syscall, ...(path === undefined ? {} : { path }) };
  return Object.assign(new Error(`${code}: ${text}, ${syscall}${where}`), facts);
}
