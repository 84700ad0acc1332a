/**
 * The one error class of the product and the table that says what to do about each code.
 *
 * Two kinds of failure, two mechanisms: a wrong byte from a disk, a peer or a user is a
 * {@link ReplicationError}; a wrong call from our own code is an {@link InvariantError}, which ends the
 * session it happened in and never the embedding process.
 */

/**
 * What the driver does about an error.
 * `reconnect`: transient, try again with back-off. `resync`: the base is in doubt, compare again.
 * `never`: a person must act.
 */
export type ErrorAction = "reconnect" | "resync" | "never";

/** The single home of every error code. Codes are stable: scripts match on them. */
export const errorActions = {
  // connection
  "connect-failed": "reconnect",
  "listen-failed": "never",
  "connection-lost": "reconnect",
  "peer-silent": "reconnect",
  "handshake-timeout": "reconnect",
  "lane-crashed": "reconnect",
  "receiver-stopping": "reconnect",
  "receiver-busy": "reconnect",
  // TLS and identity
  "not-tls": "never",
  "not-nbd": "never",
  "tls-failed": "never",
  "certificate-missing": "never",
  "certificate-expired": "never",
  "certificate-not-yet-valid": "never",
  "certificate-unknown-authority": "never",
  "certificate-wrong-host": "never",
  "certificate-wrong-fingerprint": "never",
  "certificate-unusable": "never",
  "certificate-refused": "never",
  "not-allowed": "never",
  "limit-exceeded": "never",
  // protocol
  "frame-malformed": "never",
  "message-malformed": "never",
  "protocol-violation": "never",
  "version-unsupported": "never",
  "feature-unsupported": "never",
  // content in transit
  "codec-damaged": "reconnect",
  "digest-mismatch": "reconnect",
  "root-mismatch": "resync",
  // source images
  "image-not-found": "never",
  "image-unreadable": "never",
  "image-truncated": "never",
  "image-damaged": "never",
  "image-format-unsupported": "never",
  "image-format-mismatch": "never",
  "image-in-use": "never",
  "image-changed": "never",
  "image-busy": "never",
  // tracked images: who made the cut makes another one
  "cut-abandoned": "never",
  "base-mismatch": "never",
  // the receiver's disk
  "disk-name-invalid": "never",
  "disk-not-found": "never",
  "point-not-found": "never",
  "disk-busy": "never",
  superseded: "never",
  "disk-owned": "never",
  "another-image": "never",
  "block-size-differs": "never",
  "digest-kind-differs": "never",
  "size-shrunk": "never",
  "replica-changed": "never",
  "target-exists": "never",
  "target-too-small": "never",
  "target-unsuitable": "never",
  "no-space": "never",
  "write-failed": "resync",
  "sync-failed": "resync",
  "replica-unreadable": "resync",
  // the store
  "store-not-found": "never",
  "store-damaged": "never",
  "store-version-unsupported": "never",
  "locks-unsupported": "never",
  "seed-not-found": "never",
  "seed-damaged": "never",
  "comparison-differs": "never",
  // calls
  usage: "never",
  aborted: "never",
  internal: "never",
} as const satisfies Record<string, ErrorAction>;

/** A stable error code. */
export type ErrorCode = keyof typeof errorActions;

/** Facts beside the message; plain values only, because they cross the wire and land in JSON logs. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | null>>;

/** An error a user can meet. The message names the disk, the file or the peer, and what to do next. */
export class ReplicationError extends Error {
  override readonly name = "ReplicationError";
  readonly code: ErrorCode;
  readonly action: ErrorAction;
  readonly details: ErrorDetails;
  /** True where the error was reported by the peer and not found here. */
  readonly remote: boolean;

  constructor(
    code: ErrorCode,
    message: string,
    options: { readonly cause?: unknown; readonly details?: ErrorDetails; readonly remote?: boolean } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.action = errorActions[code];
    this.details = options.details ?? {};
    this.remote = options.remote ?? false;
  }
}

/** A wrong call from our own code. Ends the session it happened in, never the process. */
export class InvariantError extends Error {
  override readonly name = "InvariantError";
}

/** Throws {@link InvariantError} unless `condition` holds. Never for bytes that came from outside. */
export function invariant(condition: unknown, rule: string): asserts condition {
  if (condition !== true) throw new InvariantError(rule);
}

/** True for a code this version knows. A peer may send one it does not. */
export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(errorActions, code);
}

/** Any thrown value as a {@link ReplicationError}; what is not one becomes `fallback` with its message and cause kept. */
export function toReplicationError(thrown: unknown, fallback: ErrorCode = "internal"): ReplicationError {
  if (thrown instanceof ReplicationError) return thrown;
  if (thrown instanceof Error && (thrown.name === "AbortError" || thrown.name === "TimeoutError")) {
    return new ReplicationError("aborted", "stopped on request", { cause: thrown });
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new ReplicationError(fallback, message, { cause: thrown });
}

/** The errno name (`ENOSPC`, `EIO` ...) of a thrown system error, or undefined. */
export function errnoOf(thrown: unknown): string | undefined {
  if (thrown instanceof Error && "code" in thrown && typeof thrown.code === "string") return thrown.code;
  return undefined;
}
