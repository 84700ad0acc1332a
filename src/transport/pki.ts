/**
 * A small certificate authority, so that two sites can talk without a public key infrastructure of their own.
 *
 * Files: the authority in `DIR/ca/{cert,key}.pem`, which stays where it was made; a node in `DIR/NAME/{ca,cert,key}.pem`, which is copied to the
 * node. Folders 0700, keys 0600. ECDSA P-256: small, fast, and what every TLS 1.3 has.
 */
import { createPrivateKey, createPublicKey, type KeyObject, webcrypto, X509Certificate } from "node:crypto";
import { join } from "node:path";
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";
import { backdateMillis, carriesMark, markIdentifier, markValue } from "./certificate-mark.ts";
import { checkNodeName, type HostName, hostNames } from "./names.ts";
import { type NewText, readText, replaceTexts } from "./small-files.ts";

/** Validity of an authority and of a node, in days, unless told otherwise: 10 and 2 years. */
export const authorityDaysDefault = 3_652;
export const nodeDaysDefault = 730;
export const validityDaysMax = 36_500;

const dayMillis = 86_400_000;
const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

interface PkiOptions {
  /** Folder that holds the authority and the nodes. */
  readonly directory: string;
  /** Validity in days from now. */
  readonly days?: number;
  readonly clock: Clock;
  readonly random: Random;
  /** Default: this machine's files. */
  readonly storage?: Storage;
}

export interface AuthorityOptions extends PkiOptions {
  /** Subject of the authority; default "replicate authority". */
  readonly commonName?: string;
  /** Make a new certificate for the existing authority; its key and name stay, so the nodes' certificates stay valid. */
  readonly renew?: boolean;
}

export interface IssueOptions extends PkiOptions {
  /** Name of the node: its folder, and the identity its peers see. */
  readonly name: string;
  /** Host names and IP addresses clients reach it by, beside its own name. With `renew` undefined means: as before. */
  readonly hosts?: readonly string[];
  /** Make a new certificate for a node that has one. */
  readonly renew?: boolean;
  /** With `renew`: a new key as well. Default: the key stays, and the certificate changes in one atomic step. */
  readonly newKey?: boolean;
}

export interface Issued {
  /** Folder of the files. */
  readonly directory: string;
  /** SHA-256 of the certificate, `AA:BB:...`. */
  readonly fingerprint: string;
  /** Milliseconds since 1970 UTC. */
  readonly expiresAt: number;
  /** Of a node: the names and addresses in its certificate. */
  readonly hosts: readonly string[];
}

/**
 * Makes an authority in `DIR/ca`. Errors: `usage` when there is one already and `renew` is not set, or the options make no sense;
 * `certificate-unusable` when what is there cannot be renewed. System errors pass unchanged.
 */
export async function createAuthority(options: AuthorityOptions): Promise<Issued> {
  const storage = options.storage ?? createNodeStorage();
  const directory = join(options.directory, "ca");
  const renew = options.renew === true;
  const old = await readPair(storage, directory);
  checkExisting(directory, "authority", old, renew);
  const previous = renew ? usablePair(directory, old) : undefined;
  const commonName = previous?.name ?? checkCommonName(options.commonName ?? "replicate authority");
  const keys = await signingKeys(previous?.key);
  const x509 = await loadX509();
  const name = [{ CN: [commonName] }];
  const { notBefore, notAfter } = validity(options, authorityDaysDefault);
  const { keyCertSign, cRLSign } = x509.KeyUsageFlags;
  const certificate = await x509.X509CertificateGenerator.create(
    {
      serialNumber: serial(options.random),
      subject: name,
      issuer: name,
      notBefore,
      notAfter,
      signingAlgorithm: algorithm,
      publicKey: keys.publicKey,
      signingKey: keys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(keyCertSign | cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey, false, webcrypto),
        new x509.Extension(markIdentifier, false, markValue),
      ],
    },
    webcrypto,
  );
  await privateDirectory(storage, options.directory);
  await privateDirectory(storage, directory);
  return write(options, storage, directory, certificate.toString("pem"), [
    ...(previous === undefined ? [{ path: join(directory, "key.pem"), text: await keyText(keys), mode: 0o600 }] : []),
  ]);
}

/**
 * Issues a node's key and certificate into `DIR/NAME`. Errors: `usage` for a bad name or host, for a name that was issued before unless `renew`,
 * and where there is no authority; `certificate-expired` and `certificate-unusable` for an authority that cannot sign.
 */
export async function issueCertificate(options: IssueOptions): Promise<Issued> {
  checkNodeName(options.name);
  const storage = options.storage ?? createNodeStorage();
  const directory = join(options.directory, options.name);
  const authority = await loadAuthority(options, storage);
  const renew = options.renew === true;
  const old = await readPair(storage, directory);
  checkExisting(directory, `node "${options.name}"`, old, renew);
  const previous = renew ? usablePair(directory, old) : undefined;
  const hosts = hostNames(options.name, options.hosts ?? previous?.hosts ?? []);
  const keptKey = options.newKey === true ? undefined : previous?.key;
  const keys = await signingKeys(keptKey);
  const certificate = await signNode(options, authority, keys, hosts);
  await privateDirectory(storage, directory);
  // The certificate goes last: while it is missing, the node has not been issued.
  return write(options, storage, directory, certificate, [
    { path: join(directory, "ca.pem"), text: authority.text, mode: 0o644 },
    ...(keptKey === undefined ? [{ path: join(directory, "key.pem"), text: await keyText(keys), mode: 0o600 }] : []),
  ]);
}

interface Authority {
  /** PEM of its certificate. */
  readonly text: string;
  readonly certificate: X509Certificate;
  readonly keys: webcrypto.CryptoKeyPair;
}

async function loadAuthority(options: PkiOptions, storage: Storage): Promise<Authority> {
  const directory = join(options.directory, "ca");
  const files = await readPair(storage, directory);
  if (files.certificate === undefined || files.key === undefined) {
    throw new ReplicationError(
      "usage",
      `there is no authority in ${directory}: make one with "replicate pki init ${options.directory}"`,
    );
  }
  const pair = usablePair(directory, files);
  if (Date.parse(pair.certificate.validTo) <= options.clock.now()) {
    throw new ReplicationError(
      "certificate-expired",
      `the authority in ${directory} expired on ${pair.certificate.validTo}: renew it with "replicate pki init ${options.directory} --renew"`,
    );
  }
  return { text: files.certificate, certificate: pair.certificate, keys: await signingKeys(pair.key) };
}

async function signNode(
  options: IssueOptions,
  authority: Authority,
  keys: webcrypto.CryptoKeyPair,
  hosts: readonly HostName[],
): Promise<string> {
  const x509 = await loadX509();
  const { notBefore, notAfter } = validity(options, nodeDaysDefault);
  const lastDay = Date.parse(authority.certificate.validTo);
  const issuer = new x509.X509Certificate(authority.certificate.raw).subjectName;
  const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
  const alternatives = new x509.SubjectAlternativeNameExtension(hosts.map(({ type, value }) => ({ type, value })));
  const certificate = await x509.X509CertificateGenerator.create(
    {
      serialNumber: serial(options.random),
      subject: [{ CN: [options.name] }],
      issuer,
      notBefore,
      notAfter: notAfter.getTime() > lastDay ? new Date(lastDay) : notAfter,
      signingAlgorithm: algorithm,
      publicKey: keys.publicKey,
      signingKey: authority.keys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth], false),
        ...(hosts.length === 0 ? [] : [alternatives]),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey, false, webcrypto),
        await x509.AuthorityKeyIdentifierExtension.create(authority.keys.publicKey, false, webcrypto),
        new x509.Extension(markIdentifier, false, markValue),
      ],
    },
    webcrypto,
  );
  return certificate.toString("pem");
}

async function write(
  options: PkiOptions,
  storage: Storage,
  directory: string,
  certificate: string,
  before: readonly NewText[],
): Promise<Issued> {
  const text = `${certificate.trimEnd()}\n`;
  await replaceTexts(storage, options.random, [...before, { path: join(directory, "cert.pem"), text, mode: 0o644 }]);
  const parsed = new X509Certificate(text);
  return {
    directory,
    fingerprint: parsed.fingerprint256,
    expiresAt: Date.parse(parsed.validTo),
    hosts: hostsOf(parsed),
  };
}

interface PairText {
  readonly certificate: string | undefined;
  readonly key: string | undefined;
}

interface Pair {
  readonly certificate: X509Certificate;
  readonly key: KeyObject;
  readonly name: string;
  readonly hosts: readonly string[];
}

async function readPair(storage: Storage, directory: string): Promise<PairText> {
  return {
    certificate: await readText(storage, join(directory, "cert.pem")),
    key: await readText(storage, join(directory, "key.pem")),
  };
}

/** What was made here before, good enough to go on with: it belongs together and carries our mark. */
function usablePair(directory: string, files: PairText): Pair {
  const unusable = (what: string, cause?: unknown): ReplicationError =>
    new ReplicationError("certificate-unusable", `${directory}: ${what}`, { cause });
  let certificate: X509Certificate;
  let key: KeyObject;
  try {
    certificate = new X509Certificate(files.certificate ?? "");
    key = createPrivateKey(files.key ?? "");
  } catch (error) {
    throw unusable("cert.pem or key.pem cannot be read as PEM", error);
  }
  if (!certificate.checkPrivateKey(key)) throw unusable("key.pem does not belong to cert.pem");
  if (!carriesMark(certificate.raw) || key.asymmetricKeyDetails?.namedCurve !== "prime256v1") {
    throw unusable(`cert.pem was not made by "replicate pki", which renews and signs only with its own`);
  }
  const name: unknown = certificate.toLegacyObject().subject.CN;
  if (typeof name !== "string") throw unusable("the subject of cert.pem has no common name");
  return { certificate, key, name, hosts: hostsOf(certificate) };
}

/** Throws `usage` unless there is a whole pair to renew, or nothing at all to overwrite. */
function checkExisting(directory: string, what: string, files: PairText, renew: boolean): void {
  const found = [files.certificate, files.key].filter((text) => text !== undefined).length;
  if (found === 1) {
    throw new ReplicationError(
      "usage",
      `${directory} holds a key or a certificate, but not both: nothing was changed. Restore the other, or remove the folder`,
    );
  }
  if (renew && found === 0) {
    throw new ReplicationError("usage", `there is nothing to renew: ${directory} holds no ${what}`);
  }
  if (!renew && found === 2) {
    throw new ReplicationError(
      "usage",
      `${directory} holds the ${what} already: nothing was changed. Use --renew for a new certificate`,
    );
  }
}

/** `DNS:a, IP Address:b` as node prints it; names of ours need no quotes. */
function hostsOf(certificate: X509Certificate): readonly string[] {
  return (certificate.subjectAltName ?? "")
    .split(", ")
    .filter((entry) => entry !== "")
    .map((entry) => entry.slice(entry.indexOf(":") + 1));
}

function checkCommonName(name: string): string {
  // Printable, and none of the characters that distinguished names give a meaning.
  if (name.length > 64 || !/^[\p{L}\p{N}][\p{L}\p{N} ._@()-]*$/u.test(name)) {
    throw new ReplicationError(
      "usage",
      `"${name}" cannot name an authority: use up to 64 letters, digits, spaces and . _ @ ( ) -`,
    );
  }
  return name;
}

function validity(options: PkiOptions, daysDefault: number): { readonly notBefore: Date; readonly notAfter: Date } {
  const days = options.days ?? daysDefault;
  if (!Number.isFinite(days) || days <= 0 || days > validityDaysMax) {
    throw new ReplicationError("usage", `a certificate is valid for more than 0 and at most ${validityDaysMax} days`);
  }
  const now = options.clock.now();
  return { notBefore: new Date(now - backdateMillis), notAfter: new Date(now + days * dayMillis) };
}

/** 126 random bits: positive, never zero, within the 20 octets of RFC 5280 §4.1.2.2. */
function serial(random: Random): string {
  const bytes = Buffer.from(random.bytes(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString("hex");
}

async function signingKeys(kept: KeyObject | undefined): Promise<webcrypto.CryptoKeyPair> {
  if (kept === undefined) return webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const secret = kept.export({ type: "pkcs8", format: "der" });
  const open = createPublicKey(kept).export({ type: "spki", format: "der" });
  return {
    privateKey: await webcrypto.subtle.importKey("pkcs8", secret, algorithm, false, ["sign"]),
    publicKey: await webcrypto.subtle.importKey("spki", open, algorithm, true, ["verify"]),
  };
}

async function keyText(keys: webcrypto.CryptoKeyPair): Promise<string> {
  const der = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
  const key = createPrivateKey({ key: Buffer.from(der), format: "der", type: "pkcs8" });
  return key.export({ type: "pkcs8", format: "pem" }).toString();
}

async function privateDirectory(storage: Storage, path: string): Promise<void> {
  if ((await storage.stat(path)) !== undefined) return;
  await storage.makeDirectory(path);
  await storage.setMode(path, 0o700);
}

/**
 * Loaded on the first certificate made: no other part of the product needs it, and its dependency container wants the metadata
 * functions on the global `Reflect`, which a program that embeds the library and makes no certificates should not get.
 */
async function loadX509(): Promise<typeof import("@peculiar/x509")> {
  await import("reflect-metadata");
  return import("@peculiar/x509");
}
