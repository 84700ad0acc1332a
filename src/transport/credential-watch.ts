/** Credentials that follow their files: renewal on disk takes effect for new connections, without a restart. */
import { join } from "node:path";
import type { Clock } from "../base/clock.ts";
import { toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { createNodeStorage } from "../storage/node-storage.ts";
import type { Storage } from "../storage/seam.ts";
import { type Credentials, credentialFiles, expiryNoticeMillis, loadCredentials } from "./credentials.ts";

/** How often the files are looked at, unless told otherwise. */
export const watchMillisDefault = 10_000;
/** An expiry that is near is reported this often. */
const remindMillis = 86_400_000;

export interface CredentialWatch {
  /** The newest pair that was found good. */
  readonly current: Credentials;
  /** Of `current`; milliseconds since 1970 UTC. */
  readonly expiresAt: number;
  /** Looks at the files now; never rejects. */
  check(): Promise<void>;
  /** Stops looking. `current` stays. */
  close(): void;
}

export interface WatchOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** Milliseconds between looks; default {@link watchMillisDefault}. */
  readonly every?: number;
  /** Default: this machine's files. */
  readonly storage?: Storage;
}

/** Loads like {@link loadCredentials}, with its errors; then follows the files until `close`. */
export async function watchCredentials(directory: string, options: WatchOptions): Promise<CredentialWatch> {
  const storage = options.storage ?? createNodeStorage();
  const seen = await stateOf(storage, directory);
  const first = await loadCredentials(directory, { clock: options.clock, storage });
  return new FollowedCredentials(directory, { ...options, storage }, first, seen);
}

/** Changes whenever a file is written, replaced or removed. */
async function stateOf(storage: Storage, directory: string): Promise<string> {
  const parts: string[] = [];
  for (const file of Object.values(credentialFiles)) {
    const stat = await storage.stat(join(directory, file));
    parts.push(
      stat === undefined ? "none" : `${stat.inode}/${stat.changedNanos}/${stat.modifiedNanos}/${stat.sizeBytes}`,
    );
  }
  return parts.join(" ");
}

class FollowedCredentials implements CredentialWatch {
  readonly #directory: string;
  readonly #options: WatchOptions & { readonly storage: Storage };
  readonly #stop: () => void;
  #current: Credentials;
  /** State of the files `#current` was read from. */
  #seen: string;
  /** What was wrong with which state of the files, so that it is said once. */
  #complaint: string | undefined;
  #remindedAt: number | undefined;
  #underWay: Promise<void> | undefined;
  #closed = false;

  constructor(
    directory: string,
    options: WatchOptions & { readonly storage: Storage },
    first: Credentials,
    seen: string,
  ) {
    this.#directory = directory;
    this.#options = options;
    this.#current = first;
    this.#seen = seen;
    this.#say(first);
    this.#stop = options.clock.every(options.every ?? watchMillisDefault, () => void this.check());
  }

  get current(): Credentials {
    return this.#current;
  }

  get expiresAt(): number {
    return this.#current.expiresAt;
  }

  check(): Promise<void> {
    this.#underWay ??= this.#look().finally(() => {
      this.#underWay = undefined;
    });
    return this.#underWay;
  }

  close(): void {
    this.#closed = true;
    this.#stop();
  }

  async #look(): Promise<void> {
    const { storage, clock, log } = this.#options;
    const directory = this.#directory;
    let state = "unknown";
    try {
      // Before reading: a change while the files are read is noticed by the next look.
      state = await stateOf(storage, directory);
      // Files found bad are tried again as they are: time alone makes a certificate valid.
      if (state !== this.#seen || this.#complaint !== undefined) {
        const next = await loadCredentials(directory, { clock, storage });
        this.#seen = state;
        this.#complaint = undefined;
        this.#take(next);
      }
    } catch (thrown) {
      const error = toReplicationError(thrown, "certificate-unusable");
      const complaint = `${error.code} ${state}`;
      if (this.#complaint !== complaint && !this.#closed) {
        const fields = { directory, code: error.code };
        log.warn(fields, `new certificate or key not used, the old ones stay in use: ${error.message}`);
      }
      this.#complaint = complaint;
    }
    this.#remind();
  }

  #take(next: Credentials): void {
    const before = this.#current;
    if (this.#closed || (next.ca === before.ca && next.certificate === before.certificate && next.key === before.key))
      return;
    this.#current = next;
    this.#remindedAt = undefined;
    const { name, fingerprint, expiresAt } = next;
    const expires = new Date(expiresAt).toISOString();
    this.#options.log.info({ name, fingerprint, expires }, "certificate renewed: new connections use it");
    this.#say(next);
  }

  #say(credentials: Credentials): void {
    for (const warning of credentials.warnings) this.#options.log.warn({ directory: this.#directory }, warning);
    this.#remind();
  }

  /** Says once a day that the certificate expires soon, or has. */
  #remind(): void {
    const { clock, log } = this.#options;
    const left = this.#current.expiresAt - clock.now();
    if (left > expiryNoticeMillis || this.#closed) return;
    if (this.#remindedAt !== undefined && clock.monotonic() - this.#remindedAt < remindMillis) return;
    this.#remindedAt = clock.monotonic();
    const expires = new Date(this.#current.expiresAt).toISOString();
    const when = left > 0 ? `expires in ${Math.ceil(left / 86_400_000)} days` : "has expired: connections fail";
    const fields = { name: this.#current.name, expires };
    log.warn(
      fields,
      `certificate of "${this.#current.name}" ${when}; renew it with "replicate pki issue DIR NAME --renew"`,
    );
  }
}
