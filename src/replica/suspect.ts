/** A replica that is being compared, and what is on record of that, for the holder of `apply.lock`. */
import type { Storage } from "../storage/seam.ts";
import { replicaInUse } from "./foreign-changes.ts";
import type { DiskPaths } from "./layout.ts";
import type { Replica } from "./replica.ts";
import { type Fingerprint, fingerprintOf, isSameFile } from "./session-record.ts";
import { removeSuspicion, type Suspicion, writeSuspicion } from "./suspicion.ts";

export interface SuspectParts {
  readonly storage: Storage;
  readonly paths: DiskPaths;
  readonly replica: Replica;
  readonly disk: string;
  /** As it is on record. */
  readonly suspicion: Suspicion | undefined;
  /** The replica's file before it is read, while there is a doubt. */
  readonly seen: Fingerprint | undefined;
}

export class Suspect {
  readonly #parts: SuspectParts;
  #suspicion: Suspicion | undefined;
  /** What is written until the doubt has ended, and changes are kept, may have been read, or not. */
  #seen: Fingerprint | undefined;

  constructor(parts: SuspectParts) {
    this.#parts = parts;
    this.#suspicion = parts.suspicion;
    this.#seen = parts.seen;
  }

  /** That somebody else has changed the replica is on record. */
  get found(): boolean {
    return this.#suspicion?.found === true;
  }

  /** Durable when it resolves. What was found stays found. */
  async record(why: string, found: boolean, point: number): Promise<void> {
    if (this.#suspicion !== undefined && (this.found || !found)) return;
    const suspicion: Suspicion = { why, found, point };
    await writeSuspicion(this.#parts.storage, this.#parts.paths, suspicion);
    this.#suspicion = suspicion;
  }

  /** Nothing is on record any more, durably. */
  async end(): Promise<void> {
    if (this.#suspicion === undefined) return;
    await removeSuspicion(this.#parts.storage, this.#parts.paths);
    this.#suspicion = undefined;
  }

  /** From now on nobody is to write to it. */
  async watch(): Promise<void> {
    this.#seen ??= fingerprintOf(await this.#parts.replica.stat());
  }

  unwatch(): void {
    this.#seen = undefined;
  }

  /** Order: (written to meanwhile: on record) → refused. */
  async check(point: number): Promise<void> {
    const { replica, disk } = this.#parts;
    if (this.#seen === undefined || isSameFile(this.#seen, fingerprintOf(await replica.stat()))) return;
    await this.record("somebody wrote to the replica while it was read", false, point);
    throw replicaInUse(disk);
  }

  /** A change of our own, which its times show, was made since the last {@link check}. */
  async changed(): Promise<void> {
    if (this.#seen !== undefined) this.#seen = fingerprintOf(await this.#parts.replica.stat());
  }
}
