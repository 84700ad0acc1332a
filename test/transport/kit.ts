/** What the tests of this folder share: certificates in a temporary folder, listeners and links with their events as promises. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type * as tls from "node:tls";
import type { Clock } from "../../src/base/clock.ts";
import { systemClock } from "../../src/base/clock.ts";
import type { ReplicationError } from "../../src/base/errors.ts";
import type { Logger } from "../../src/base/logger.ts";
import { systemRandom } from "../../src/base/random.ts";
import { type Credentials, loadCredentials } from "../../src/transport/credentials.ts";
import type { Link } from "../../src/transport/link.ts";
import { createAuthority, issueCertificate } from "../../src/transport/pki.ts";
import { listenTls, type ListenTlsOptions, type TlsListener } from "../../src/transport/tls.ts";
import { encodeHeadBefore } from "../../src/wire/frame.ts";
import type { Message } from "../../src/wire/messages.ts";

export const minute = 60_000;
export const day = 86_400_000;
export const loopback = "127.0.0.1";

/** The system's clock with another wall time. */
export function shiftedClock(millis: number): Clock {
  return { ...systemClock, now: () => Date.now() + millis };
}

export interface TestPki {
  readonly directory: string;
  node(name: string, options?: { hosts?: string[]; days?: number; clock?: Clock }): Promise<Credentials>;
  remove(): Promise<void>;
}

export async function makePki(): Promise<TestPki> {
  const directory = await mkdtemp(join(tmpdir(), "replicate-pki-"));
  await createAuthority({ directory, clock: shiftedClock(-30 * day), random: systemRandom });
  return {
    directory,
    async node(name, { hosts = [loopback, "localhost"], days, clock = systemClock } = {}) {
      const validity = days === undefined ? {} : { days };
      await issueCertificate({ directory, name, hosts, ...validity, clock, random: systemRandom });
      return loadCredentials(join(directory, name), { clock });
    },
    remove: () => rm(directory, { recursive: true }),
  };
}

/** Lets the event loop turn until `condition` holds; the test's own time limit is the limit. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

export interface Observed {
  readonly link: Link;
  readonly messages: Message[];
  readonly payloads: Uint8Array[];
  /** Calls of `onEnd`. */
  readonly ends: (ReplicationError | undefined)[];
  readonly ended: Promise<ReplicationError | undefined>;
  received(count: number): Promise<void>;
}

/** Starts the link and keeps what it says. */
export function observe(link: Link, onMessage: (message: Message) => void = () => undefined): Observed {
  const messages: Message[] = [];
  const payloads: Uint8Array[] = [];
  const ends: (ReplicationError | undefined)[] = [];
  const ended = new Promise<ReplicationError | undefined>((resolve) => {
    link.start({
      payloadTarget: (_message, payloadBytes) => new Uint8Array(payloadBytes),
      onFrame({ message, payload }) {
        messages.push(message);
        payloads.push(payload);
        onMessage(message);
      },
      onEnd(error) {
        ends.push(error);
        resolve(error);
      },
    });
  });
  return { link, messages, payloads, ends, ended, received: (count) => until(() => messages.length >= count) };
}

export interface TestListener extends TlsListener {
  readonly links: Link[];
  readonly rejected: { readonly error: ReplicationError; readonly address: string }[];
  nextLink(): Promise<Link>;
}

export async function listen(
  options: Pick<ListenTlsOptions, "credentials"> & Partial<ListenTlsOptions>,
): Promise<TestListener> {
  const links: Link[] = [];
  const rejected: { error: ReplicationError; address: string }[] = [];
  let taken = 0;
  const listener = await listenTls({
    host: loopback,
    port: 0,
    clock: systemClock,
    onLink: (link) => links.push(link),
    onRejected: (error, address) => rejected.push({ error, address }),
    ...options,
  });
  return {
    get pending() {
      return listener.pending;
    },
    address: listener.address,
    port: listener.port,
    close: () => listener.close(),
    links,
    rejected,
    async nextLink() {
      const index = taken++;
      await until(() => links.length > index);
      const link = links[index];
      if (link === undefined) throw new Error("no link");
      return link;
    },
  };
}

/** TLS of another make: what node does by itself with our certificates, and no link. */
export async function foreignOptions(credentials: Credentials): Promise<tls.TlsOptions & tls.ConnectionOptions> {
  const read = (file: string): Promise<string> => readFile(join(credentials.directory, file), "utf8");
  return {
    ca: await read("ca.pem"),
    cert: await read("cert.pem"),
    key: await read("key.pem"),
    minVersion: "TLSv1.3",
    checkServerIdentity: () => undefined,
  };
}

/** A whole data frame with `payloadBytes` of `fill`. */
export function dataFrame(payloadBytes: number, fill: number): Uint8Array {
  const room = 4_096;
  const bytes = new Uint8Array(room + payloadBytes).fill(fill);
  const parts = payloadBytes / 4_096;
  const message: Message = {
    type: "data",
    blocks: Array.from({ length: Math.ceil(parts / 16) }, (_, index) => index),
    masks: maskOf(parts),
    digests: new Uint8Array(Math.ceil(parts / 16) * 8),
    codec: "stored",
    rawBytes: payloadBytes,
    repeat: false,
  };
  return bytes.subarray(encodeHeadBefore(message, payloadBytes, bytes, room));
}

function maskOf(parts: number): Uint8Array {
  const mask = new Uint8Array(Math.ceil(parts / 16) * 2);
  for (let part = 0; part < parts; part++) mask[part >> 3] = (mask[part >> 3] ?? 0) | (1 << (part % 8));
  return mask;
}

export interface KeptLog extends Logger {
  readonly lines: { readonly level: string; readonly fields: object; readonly message: string }[];
  at(level: string): string[];
}

export function keepLog(): KeptLog {
  const lines: { level: string; fields: object; message: string }[] = [];
  const keep = (level: string) => (fields: object, message: string) => void lines.push({ level, fields, message });
  return {
    lines,
    at: (level) => lines.filter((line) => line.level === level).map((line) => line.message),
    debug: keep("debug"),
    info: keep("info"),
    warn: keep("warn"),
    error: keep("error"),
  };
}
