/** What the system, OpenSSL and Node say about a connection, in words and codes of ours. Pure. */
import { type ErrorCode, errnoOf, ReplicationError } from "../base/errors.ts";

/** What the connection was doing. */
export type Phase = "connect" | "TLS handshake" | "session";

export interface Circumstances {
  /** Address of the other side, for people. */
  readonly peer: string;
  readonly phase: Phase;
}

/** OpenSSL's names for bytes that are no TLS record; the first two for an HTTP request. */
const notTls =
  /^ERR_SSL_(HTTP_REQUEST|HTTPS_PROXY_REQUEST|WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|UNKNOWN_PROTOCOL|BAD_RECORD_TYPE|RECORD_LAYER_FAILURE|UNEXPECTED_MESSAGE|LENGTH_TOO_SHORT|LENGTH_TOO_LONG)$/;

const versionTrouble =
  /^ERR_SSL_(UNSUPPORTED_PROTOCOL|NO_PROTOCOLS_AVAILABLE|UNSUPPORTED_SSL_VERSION|VERSION_TOO_LOW|TLSV1_ALERT_PROTOCOL_VERSION)$/;

const lost = new Set(["ECONNRESET", "EPIPE", "ECONNABORTED", "ETIMEDOUT", "ENETRESET", "EHOSTUNREACH", "ENETUNREACH"]);

const systemWords: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused: nothing listens there, or a firewall answers for it",
  ECONNRESET: "the other side reset the connection",
  EPIPE: "the other side closed the connection",
  ECONNABORTED: "the connection was aborted",
  ETIMEDOUT: "no answer from the network",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "the network cannot be reached",
  ENOTFOUND: "the host name is unknown",
  EAI_AGAIN: "the host name could not be looked up",
  EADDRINUSE: "the address is in use by another program",
  EADDRNOTAVAIL: "this machine does not have the address",
  EACCES: "not permitted",
  ENOENT: "there is no such socket: start the server, or check the path",
};

/** Alerts (RFC 8446 §6.2) by which a peer says what it has against our certificate. */
const refusals: Readonly<Record<string, readonly [ErrorCode, string]>> = {
  CERTIFICATE_REQUIRED: ["certificate-missing", "it got no certificate from this side and requires one"],
  CERTIFICATE_EXPIRED: ["certificate-expired", "by its clock this side's certificate is not valid now"],
  UNKNOWN_CA: ["certificate-unknown-authority", "it does not know the authority of this side's certificate"],
  BAD_CERTIFICATE: ["certificate-refused", "it cannot use this side's certificate"],
  UNSUPPORTED_CERTIFICATE: ["certificate-refused", "this side's certificate is not of a kind it takes"],
  CERTIFICATE_REVOKED: ["certificate-refused", "this side's certificate is revoked"],
  CERTIFICATE_UNKNOWN: ["certificate-refused", "it does not accept this side's certificate"],
  ACCESS_DENIED: ["certificate-refused", "it grants this side's certificate no access"],
};

/** The error of a socket as one of ours; names the peer and the phase, keeps the cause. */
export function connectionError(thrown: unknown, circumstances: Circumstances): ReplicationError {
  if (thrown instanceof ReplicationError) return thrown;
  const { peer, phase } = circumstances;
  const system = errnoOf(thrown) ?? "";
  const make = (code: ErrorCode, what: string, remote = false): ReplicationError =>
    new ReplicationError(code, `${peer}, ${phase}: ${what}`, { cause: thrown, details: { peer, phase }, remote });

  if (phase === "connect") return make("connect-failed", systemWords[system] ?? textOf(thrown));
  const alert = /_ALERT_(?<name>[A-Z_]+)$/.exec(system)?.groups?.["name"];
  const refusal = alert === undefined ? undefined : refusals[alert];
  if (refusal !== undefined) return make(refusal[0], `the other side refused: ${refusal[1]}`, true);
  if (lost.has(system)) return make("connection-lost", systemWords[system] ?? textOf(thrown));
  if (phase === "TLS handshake") {
    if (notTls.test(system)) {
      const http = system.startsWith("ERR_SSL_HTTP") ? " (it sent an HTTP request)" : "";
      return make("not-tls", `the other side does not speak TLS${http}: check the address and the port`);
    }
    if (versionTrouble.test(system))
      return make("tls-failed", "the other side does not speak TLS 1.3, which is required");
    return make("tls-failed", `the TLS handshake failed: ${textOf(thrown)}`);
  }
  // TLS notices bytes damaged or cut out on the way; a new connection is the cure.
  return make("connection-lost", textOf(thrown));
}

/** The error of a listening address. */
export function listenError(thrown: unknown, address: string): ReplicationError {
  const words = systemWords[errnoOf(thrown) ?? ""] ?? textOf(thrown);
  return new ReplicationError("listen-failed", `cannot listen on ${address}: ${words}`, {
    cause: thrown,
    details: { address },
  });
}

/** A deadline of ours that passed. */
export function timeoutError(circumstances: Circumstances, millis: number): ReplicationError {
  const { peer, phase } = circumstances;
  const code = phase === "connect" ? "connect-failed" : "handshake-timeout";
  return new ReplicationError(code, `${peer}, ${phase}: not done within ${millis / 1000} s`, {
    details: { peer, phase },
  });
}

function textOf(thrown: unknown): string {
  if (thrown instanceof AggregateError) return thrown.errors.map(textOf).join("; ");
  return thrown instanceof Error ? thrown.message : String(thrown);
}
