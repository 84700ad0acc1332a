/**
 * This side's key and certificate, and the authorities it trusts: `{ca,cert,key}.pem` of one folder, read, checked, and read again when they change.
 */
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { join } from "node:path";
import { type Clock, systemClock } from "../base/clock.ts";
import { errnoOf, type ErrorCode, ReplicationError } from "../base/errors.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";
import { readText } from "./small-files.ts";
import { tryContext } from "./tls-context.ts";

/** A key and its certificate that fit together, and whom to trust. A value: it does not change when the files do. */
export interface Credentials {
  readonly directory: string;
  /** Common name of the certificate: the identity peers see. */
  readonly name: string;
  /** SHA-256 of the certificate, `AA:BB:...`. */
  readonly fingerprint: string;
  /** When the certificate or its authority expires, whichever is first; milliseconds since 1970 UTC. */
  readonly expiresAt: number;
  /** PEM: authorities; certificate, then intermediate ones; key. */
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
  readonly authorities: readonly X509Certificate[];
  /** What is not right but does not stop anything, in words. */
  readonly warnings: readonly string[];
}

export interface LoadOptions {
  /** Default: this machine's clock. */
  readonly clock?: Clock;
  /** Default: this machine's files. */
  readonly storage?: Storage;
}

export const credentialFiles = { ca: "ca.pem", certificate: "cert.pem", key: "key.pem" } as const;

/** Expiry is reported from this long before. */
export const expiryNoticeMillis = 30 * 86_400_000;

const chainLengthMax = 8;

/**
 * Reads and checks the three files. Errors name the file: `certificate-missing`, `certificate-unusable` (not PEM, key of another certificate, not issued by
 * an authority in ca.pem), `certificate-expired`, `certificate-not-yet-valid`.
 */
export async function loadCredentials(directory: string, options: LoadOptions = {}): Promise<Credentials> {
  const storage = options.storage ?? createNodeStorage();
  const now = (options.clock ?? systemClock).now();
  const path = (file: string): string => join(directory, file);
  const ca = await readFile(storage, path(credentialFiles.ca));
  const certificate = await readFile(storage, path(credentialFiles.certificate));
  const keyText = await readFile(storage, path(credentialFiles.key));

  const authorities = parseCertificates(ca, path(credentialFiles.ca));
  const [leaf, ...intermediates] = parseCertificates(certificate, path(credentialFiles.certificate));
  if (leaf === undefined) throw unusable(path(credentialFiles.certificate), "holds no certificate");
  const key = parseKey(keyText, path(credentialFiles.key));
  if (!leaf.checkPrivateKey(key)) {
    throw unusable(path(credentialFiles.key), `is not the key of ${credentialFiles.certificate} beside it`);
  }
  const name: unknown = leaf.toLegacyObject().subject.CN;
  if (typeof name !== "string") {
    throw unusable(
      path(credentialFiles.certificate),
      "has no common name in its subject, by which peers would know this side",
    );
  }
  const chain = chainOf(leaf, intermediates, authorities);
  if (chain === undefined) {
    throw unusable(
      path(credentialFiles.certificate),
      `was not issued by an authority in ${credentialFiles.ca} beside it`,
    );
  }
  checkDates(path(credentialFiles.certificate), leaf, now);
  for (const issuer of chain) checkDates(path(credentialFiles.ca), issuer, now);
  try {
    tryContext({ ca, certificate, key: keyText });
  } catch (error) {
    throw unusable(path(credentialFiles.certificate), `is not accepted by OpenSSL (${String(error)})`, error);
  }
  const stat = await storage.stat(path(credentialFiles.key));
  const open = stat !== undefined && (stat.mode & 0o077) !== 0;
  return {
    directory,
    name,
    fingerprint: leaf.fingerprint256,
    expiresAt: Math.min(...[leaf, ...chain].map((each) => Date.parse(each.validTo))),
    ca,
    certificate,
    key: keyText,
    authorities,
    warnings: open ? [`${path(credentialFiles.key)} can be read by other users of this machine: chmod 600 it`] : [],
  };
}

async function readFile(storage: Storage, path: string): Promise<string> {
  let text: string | undefined;
  try {
    text = await readText(storage, path);
  } catch (error) {
    if (error instanceof ReplicationError) throw error;
    throw unusable(path, `cannot be read (${errnoOf(error) ?? String(error)})`, error);
  }
  if (text !== undefined) return text;
  throw new ReplicationError(
    "certificate-missing",
    `${path} does not exist: --tls wants a folder with ca.pem, cert.pem and key.pem, which "replicate pki issue" makes`,
    { details: { file: path } },
  );
}

function parseCertificates(text: string, path: string): readonly X509Certificate[] {
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) throw unusable(path, "holds no certificate in PEM form");
  return blocks.map((block) => {
    try {
      return new X509Certificate(block);
    } catch (error) {
      throw unusable(path, "holds a damaged certificate", error);
    }
  });
}

function parseKey(text: string, path: string): KeyObject {
  if (text.includes("ENCRYPTED")) throw unusable(path, "is protected by a passphrase, which is not supported");
  try {
    return createPrivateKey(text);
  } catch (error) {
    throw unusable(path, "holds no private key in PEM form", error);
  }
}

/** The issuers of `leaf`, nearest first, up to an authority; undefined when none is reached. */
function chainOf(
  leaf: X509Certificate,
  intermediates: readonly X509Certificate[],
  authorities: readonly X509Certificate[],
): readonly X509Certificate[] | undefined {
  const chain: X509Certificate[] = [];
  let current = leaf;
  while (chain.length < chainLengthMax) {
    const issued = (issuer: X509Certificate): boolean =>
      current.checkIssued(issuer) && current.verify(issuer.publicKey);
    const authority = authorities.find(issued);
    if (authority !== undefined) return [...chain, authority];
    const next = intermediates.find((each) => !chain.includes(each) && issued(each));
    if (next === undefined) return undefined;
    chain.push(next);
    current = next;
  }
  return undefined;
}

function checkDates(path: string, certificate: X509Certificate, now: number): void {
  const here = new Date(now).toISOString();
  const wrong = (code: ErrorCode, what: string): ReplicationError =>
    new ReplicationError(code, `${path} ${what}; the clock here says ${here}`, { details: { file: path } });
  if (now > Date.parse(certificate.validTo)) {
    throw wrong(
      "certificate-expired",
      `expired on ${certificate.validTo}: renew it ("replicate pki issue DIR NAME --renew")`,
    );
  }
  if (now < Date.parse(certificate.validFrom)) {
    throw wrong("certificate-not-yet-valid", `is valid only from ${certificate.validFrom} on`);
  }
}

function unusable(path: string, what: string, cause?: unknown): ReplicationError {
  return new ReplicationError("certificate-unusable", `${path} ${what}`, { cause, details: { file: path } });
}
