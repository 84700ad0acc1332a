/** What one identity may take of a receiver. Who has a certificate is not thereby free to fill a store or to keep others out. */
import { invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Store } from "../replica/store.ts";

export interface IdentityLimits {
  /** Sessions at a time; the next one is refused with `receiver-busy`, and tried again by its sender. */
  readonly sessions: number;
  /** Disks it may own; another one is `limit-exceeded`. */
  readonly disks: number;
  /** Bytes: sum of the sizes of the disks it owns, whatever they take on disk. A new disk, or one that grows, beyond it is `limit-exceeded`. */
  readonly diskBytes: number;
}

/** Those that are to be other than the defaults. */
export type GivenLimits = { readonly [Name in keyof IdentityLimits]?: IdentityLimits[Name] | undefined };

/** What is not given has the default of {@link limits}; `Infinity` is no limit. */
export function identityLimitsOf(given: GivenLimits = {}): IdentityLimits {
  const {
    sessions = limits.identitySessionsMax,
    disks = limits.identityDisksMax,
    diskBytes = limits.identityDiskBytesMax,
  } = given;
  for (const limit of [sessions, disks, diskBytes]) invariant(limit >= 0, "a limit of an identity is a number from 0");
  return { sessions, disks, diskBytes };
}

/** A disk as a session will leave it. */
interface Claim {
  readonly owner: string;
  readonly sizeBytes: number;
}

/**
 * Counts what identities own in a store. Claims of sessions under way count beside what the store says, so that two of them do not both get what
 * is left for one. One receiver works on a store; a second one would not know of this one's claims.
 */
export class DiskQuota {
  readonly #store: Store;
  readonly #limits: IdentityLimits;
  readonly #claims = new Map<string, Claim>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(store: Store, identityLimits: IdentityLimits) {
    this.#store = store;
    this.#limits = identityLimits;
  }

  /**
   * Before a disk is made, or grows: `sizeBytes` is what it will have. The claim holds until {@link forget}. Throws `limit-exceeded`.
   */
  claim(disk: string, claim: Claim): Promise<void> {
    // In turns: between counting and claiming nobody else may claim.
    const mine = this.#turn.then(async () => {
      await this.#check(disk, claim);
      this.#claims.set(disk, claim);
    });
    this.#turn = mine.catch(() => {
      // Told to who asked; the next one's turn comes all the same.
    });
    return mine;
  }

  /** The session that claimed it is over: what it left in the store counts. */
  forget(disk: string): void {
    this.#claims.delete(disk);
  }

  async #check(disk: string, { owner, sizeBytes }: Claim): Promise<void> {
    const { disks, diskBytes } = this.#limits;
    const owned = await this.#owned(owner);
    const isNew = !owned.delete(disk);
    if (isNew && owned.size >= disks) {
      throw new ReplicationError(
        "limit-exceeded",
        `${owner} owns ${owned.size} disks at this receiver and may not own more: disk ${disk} was not made; send to a disk that is there, remove one, or raise the receiver's limit`,
        { details: { identity: owner, disks: owned.size, disksMax: disks } },
      );
    }
    let others = 0;
    for (const bytes of owned.values()) others += bytes;
    if (others + sizeBytes <= diskBytes) return;
    throw new ReplicationError(
      "limit-exceeded",
      `disk ${disk} of ${sizeBytes} bytes does not fit beside the ${others} bytes of the other disks of ${owner}, which may have ${diskBytes} bytes at this receiver; remove a disk, or raise the receiver's limit`,
      { details: { identity: owner, sizeBytes, otherBytes: others, bytesMax: diskBytes } },
    );
  }

  /** Sizes of the disks of an identity, by name. */
  async #owned(owner: string): Promise<Map<string, number>> {
    const found = new Map<string, number>();
    // Claims first: one that is given back while the store is read is in the store by then, or may be counted once too often.
    for (const [name, claim] of this.#claims) if (claim.owner === owner) found.set(name, claim.sizeBytes);
    for (const name of await this.#store.disks()) {
      const record = await this.#recordOf(name);
      if (record?.owner === owner) found.set(name, Math.max(record.sizeBytes, found.get(name) ?? 0));
    }
    return found;
  }

  async #recordOf(name: string): Promise<Claim | undefined> {
    try {
      return (await this.#store.summary(name))?.record;
    } catch (error) {
      // Whose a disk with a damaged record is cannot be told. It must not keep everybody from making disks; its own session tells.
      if (error instanceof ReplicationError) return undefined;
      throw error;
    }
  }
}
