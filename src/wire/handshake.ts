/**
 * Agreement on version and features, as functions of what both sides said. docs/protocol.md, "Handshake".
 *
 * The rule between releases: version N talks to N and to N-1. A release that makes a new version still speaks the one
 * before; the next may drop it. What a version adds without changing what is there is a feature.
 */
import { ReplicationError } from "../base/errors.ts";
import type { Hello } from "./messages.ts";

/** Highest version this side speaks. */
export const protocolVersion = 1;
/** Lowest version this side speaks. */
export const protocolVersionMin = 1;

/**
 * What this side can do beyond what every peer of the version does. `parts`: part digests are asked and masks sent.
 * `connections`: several connections carry one session.
 */
export const protocolFeatures: readonly string[] = ["parts", "connections"];

/** One side of a handshake. */
export interface HandshakeSide {
  /** See {@link Hello.instance}. */
  readonly instance: string;
  /** Program and version, for people. */
  readonly software: string;
  /** Default: what this version speaks. */
  readonly version?: number;
  readonly versionMin?: number;
  readonly features?: readonly string[];
  /** Features without which this side will not go on. Default: none. */
  readonly required?: readonly string[];
}

/** What both sides agreed on; nothing else counts, whatever was offered. */
export interface Agreement {
  readonly version: number;
  readonly features: readonly string[];
}

/** S→R: the first frame of a connection. With `join` a further connection of a session that exists. */
export function offer(side: HandshakeSide, join?: Hello["join"]): Hello {
  return {
    type: "hello",
    version: side.version ?? protocolVersion,
    versionMin: side.versionMin ?? protocolVersionMin,
    features: side.features ?? protocolFeatures,
    required: side.required ?? [],
    instance: side.instance,
    software: side.software,
    ...(join === undefined ? {} : { join }),
  };
}

/**
 * R→S: the answer to `hello`, with what was agreed: the highest version both speak and the features both have.
 * Throws `version-unsupported` naming both ranges, `feature-unsupported` naming the feature.
 */
export function answer(
  hello: Hello,
  side: HandshakeSide,
  token?: string,
): { readonly hello: Hello; readonly agreed: Agreement } {
  const own = offer(side);
  const version = Math.min(hello.version, own.version);
  if (version < Math.max(hello.versionMin, own.versionMin)) throw versionUnsupported(hello, own);
  const features = own.features.filter((feature) => hello.features.includes(feature));
  checkRequired(hello.required, features, `the sender (${hello.software})`, `this receiver (${own.software})`);
  checkRequired(own.required, features, `this receiver (${own.software})`, `the sender (${hello.software})`);
  const answered: Hello = {
    ...own,
    version,
    versionMin: version,
    features,
    ...(token === undefined ? {} : { token }),
  };
  return { hello: answered, agreed: { version, features } };
}

/**
 * At S: checks the answer against what was offered. Throws like {@link answer}, and `protocol-violation` for an answer
 * that takes what was not offered.
 */
export function settle(offered: Hello, answered: Hello): Agreement {
  const { version, features } = answered;
  if (version !== answered.versionMin || version > offered.version || version < offered.versionMin) {
    throw versionUnsupported(answered, offered);
  }
  const stranger = features.find((feature) => !offered.features.includes(feature));
  if (stranger !== undefined) {
    throw new ReplicationError(
      "protocol-violation",
      `the receiver agreed to feature ${stranger}, which was not offered`,
    );
  }
  checkRequired(offered.required, features, `this sender (${offered.software})`, `the receiver (${answered.software})`);
  checkRequired(
    answered.required,
    features,
    `the receiver (${answered.software})`,
    `this sender (${offered.software})`,
  );
  return { version, features };
}

function checkRequired(required: readonly string[], agreed: readonly string[], asker: string, other: string): void {
  const feature = required.find((name) => !agreed.includes(name));
  if (feature === undefined) return;
  throw new ReplicationError(
    "feature-unsupported",
    `${asker} requires the protocol feature ${feature}, which ${other} does not have: update the latter, or do without what needs it`,
    { details: { feature } },
  );
}

function versionUnsupported(peer: Hello, own: Hello): ReplicationError {
  const older = peer.version < own.versionMin ? "the peer" : "this side";
  return new ReplicationError(
    "version-unsupported",
    `the peer (${peer.software}) speaks protocol versions ${range(peer)}, this side (${own.software}) ${range(own)}: update ${older}`,
    { details: { peer: range(peer), own: range(own) } },
  );
}

function range({ versionMin, version }: Hello): string {
  return `${versionMin} to ${version}`;
}
