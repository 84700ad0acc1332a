/** What a peer said that no NBD peer says. */
import { ReplicationError } from "../base/errors.ts";

/** The connection is over: after this nothing of it can be told apart. `rule`: what was broken. */
export function violation(rule: string): ReplicationError {
  return new ReplicationError("protocol-violation", `NBD: ${rule}`);
}

/** A text of the peer for a message of ours: one line, bounded, no control characters. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}...` : text);
}
