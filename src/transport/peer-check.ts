/** The gate every connection passes on both sides: whose certificate is it, and is it good? Pure. */
import type { X509Certificate } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { type ErrorCode, ReplicationError } from "../base/errors.ts";
import { backdateMillis, carriesMark } from "./certificate-mark.ts";
import type { PeerIdentity } from "./link.ts";

export interface PeerFacts {
  /** Undefined: the peer sent none. */
  readonly certificate: X509Certificate | undefined;
  /** True only when OpenSSL verified the chain up to an authority of ours, and at a client the host as well. */
  readonly authorized: boolean;
  /** OpenSSL's or Node's code where `authorized` is false. */
  readonly problem: string | undefined;
  /** Address of the peer, for people. */
  readonly address: string;
  /** Name or address the certificate must be for; undefined at a server. */
  readonly host: string | undefined;
  /** The one certificate accepted, as {@link parseFingerprint} gives it, in place of authority and host. */
  readonly fingerprint: string | undefined;
  readonly authorities: readonly X509Certificate[];
  /** Milliseconds since 1970 UTC. */
  readonly now: number;
}

/** What a TLS socket whose handshake is done says of its peer. */
export function certificateFacts(socket: TLSSocket): Pick<PeerFacts, "certificate" | "authorized" | "problem"> {
  // At run time a code, whatever the types say.
  const problem: unknown = socket.authorizationError;
  return {
    certificate: socket.getPeerX509Certificate(),
    authorized: socket.authorized,
    problem: typeof problem === "string" ? problem : undefined,
  };
}

const unknownAuthority = new Set([
  "SELF_SIGNED_CERT_IN_CHAIN",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_SIGNATURE_FAILURE",
  "CERT_UNTRUSTED",
  "INVALID_CA",
]);

const nameCharsMax = 128;

/**
 * Who the peer is, or a throw; there is no third outcome. Errors: `certificate-missing`, `-expired`, `-not-yet-valid`,
 * `-unknown-authority`, `-wrong-host`, `-wrong-fingerprint`, `-unusable`.
 */
export function checkPeer(facts: PeerFacts): PeerIdentity {
  const { certificate, address, fingerprint } = facts;
  if (certificate === undefined) {
    throw refuse(facts, "certificate-missing", `${address} sent no certificate: both sides need one`);
  }
  if (fingerprint === undefined) {
    if (!facts.authorized) throw problemOf(facts, certificate);
  } else {
    if (certificate.fingerprint256 !== fingerprint) {
      const found = certificate.fingerprint256;
      throw refuse(
        facts,
        "certificate-wrong-fingerprint",
        `${whose(facts)} has fingerprint ${found}, not the one expected`,
      );
    }
    const outside = validityProblem(facts, certificate);
    if (outside !== undefined) throw outside;
  }
  const name: unknown = certificate.toLegacyObject().subject.CN;
  if (typeof name !== "string" || name.length > nameCharsMax || !/^[^\p{C}]+$/u.test(name)) {
    throw refuse(
      facts,
      "certificate-unusable",
      `the certificate of ${address} has no usable common name in its subject`,
    );
  }
  return {
    name,
    fingerprint: certificate.fingerprint256,
    address,
    ownAuthority: carriesMark(certificate.raw) && facts.authorities.some((authority) => isOwn(authority, certificate)),
  };
}

/** SHA-256 in hexadecimal with or without colons, as `AA:BB:...`. Throws `usage`. */
export function parseFingerprint(text: string): string {
  const digits = text.replaceAll(":", "").toUpperCase();
  if (!/^[0-9A-F]{64}$/.test(digits)) {
    throw new ReplicationError(
      "usage",
      `"${text}" is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons`,
    );
  }
  return (digits.match(/../g) ?? []).join(":");
}

/** The mark counts on an authority the user trusts, for what that authority signed itself. */
function isOwn(authority: X509Certificate, certificate: X509Certificate): boolean {
  return carriesMark(authority.raw) && certificate.checkIssued(authority) && certificate.verify(authority.publicKey);
}

function problemOf(facts: PeerFacts, certificate: X509Certificate): ReplicationError {
  const { problem } = facts;
  if (problem === "CERT_HAS_EXPIRED" || problem === "CERT_NOT_YET_VALID") {
    return validityProblem(facts, certificate) ?? authorityValidity(facts, problem);
  }
  if (problem === "ERR_TLS_CERT_ALTNAME_INVALID") {
    const names = certificate.subjectAltName ?? "no name at all";
    return refuse(
      facts,
      "certificate-wrong-host",
      `${whose(facts)} is not for ${facts.host ?? "this host"} but for ${names}: use one of these, or issue it again with --host`,
    );
  }
  if (problem !== undefined && unknownAuthority.has(problem)) {
    const sameName = facts.authorities.some((authority) => authority.subject === certificate.issuer);
    const none = sameName
      ? "an authority of the same name as one in ca.pem but with another key"
      : "which is none of the authorities in ca.pem";
    return refuse(
      facts,
      "certificate-unknown-authority",
      `${whose(facts)} was issued by ${oneLine(certificate.issuer)}, ${none}`,
    );
  }
  return refuse(facts, "certificate-unusable", `${whose(facts)} cannot be used: ${problem ?? "not verified"}`);
}

/** Undefined while `now` lies within the certificate's dates. */
function validityProblem(facts: PeerFacts, certificate: X509Certificate): ReplicationError | undefined {
  const { now } = facts;
  const here = new Date(now).toISOString();
  if (now > Date.parse(certificate.validTo)) {
    return refuse(
      facts,
      "certificate-expired",
      `${whose(facts)} expired on ${certificate.validTo} (clock here: ${here}): renew it`,
    );
  }
  const early = Date.parse(certificate.validFrom) - now;
  if (early <= 0) return undefined;
  // Ours are back-dated, so the clocks are further apart than the dates say.
  const apart = early + (carriesMark(certificate.raw) ? backdateMillis : 0);
  return refuse(
    facts,
    "certificate-not-yet-valid",
    `${whose(facts)} is valid from ${certificate.validFrom} on, but the clock here says ${here}: if it was made just now, clocks differ by about ${Math.ceil(apart / 60_000)} min`,
  );
}

function authorityValidity(facts: PeerFacts, problem: string): ReplicationError {
  return problem === "CERT_HAS_EXPIRED"
    ? refuse(
        facts,
        "certificate-expired",
        `the authority of ${whose(facts)} has expired: renew it and issue ca.pem again`,
      )
    : refuse(facts, "certificate-not-yet-valid", `the authority of ${whose(facts)} is not valid yet by the clock here`);
}

function refuse(facts: PeerFacts, code: ErrorCode, message: string): ReplicationError {
  return new ReplicationError(code, message, { details: { peer: facts.address, phase: "TLS handshake" } });
}

function whose({ certificate, address }: PeerFacts): string {
  return `the certificate ${oneLine(certificate?.subject ?? "")} of ${address}`;
}

/** A distinguished name came from the peer: one line, no control characters, bounded. */
function oneLine(name: string): string {
  return JSON.stringify(name.replaceAll("\n", ", ").slice(0, nameCharsMax));
}
