/** What a server answered to a request that failed, as an error of ours. Pure. */
import { type ErrorCode, ReplicationError } from "../base/errors.ts";
import type { ServerError } from "./pending-requests.ts";
import { commands, errorName, errors } from "./protocol.ts";
import { quoted } from "./violation.ts";

export interface FailedRequest {
  /** Address of the export. */
  readonly name: string;
  readonly command: number;
  readonly offset: number;
  readonly length: number;
}

/** Codes: `image-unreadable` for what reads, `write-failed`, `no-space`, `not-allowed` for what writes, `sync-failed` for a flush, `connection-lost` where the server goes down. */
export function requestError(request: FailedRequest, failure: ServerError): ReplicationError {
  const { name, command, offset, length } = request;
  const says = failure.message === "" ? "" : `, ${quoted(failure.message)}`;
  const reason = `${errorName(failure.error)}${says}`;
  const details = { peer: name, offset, length, errno: errorName(failure.error) };
  const make = (code: ErrorCode, what: string): ReplicationError =>
    new ReplicationError(code, `${name}: ${what}`, { details, remote: true });
  if (failure.error === errors.shutdown) return make("connection-lost", "the server is going down");
  const where = `at offset ${offset}, length ${length}`;
  if (command === commands.read || command === commands.blockStatus) {
    const what = command === commands.read ? "cannot be read" : "does not tell what is allocated";
    return make(
      "image-unreadable",
      `it ${what} ${where}: the server says ${reason}. Look at the server's log and its image`,
    );
  }
  if (command === commands.flush) return make("sync-failed", `it cannot be flushed: the server says ${reason}`);
  const words = `it cannot be written ${where}: the server says ${reason}`;
  if (failure.error === errors.permission) return make("not-allowed", `${words}. The export is read-only`);
  return make(failure.error === errors.noSpace ? "no-space" : "write-failed", words);
}
