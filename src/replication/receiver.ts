/** The receiver: takes links, runs a session on each, and sees to it that one session at a time changes a disk. */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { CodecName } from "../codec/compression.ts";
import type { Lanes } from "../lanes/lanes.ts";
import type { Point, Store } from "../replica/store.ts";
import type { Link, PeerIdentity } from "../transport/link.ts";
import { fromErrorMessage, toErrorMessage } from "../wire/error-message.ts";
import { answer as answerHello } from "../wire/handshake.ts";
import type { Hello } from "../wire/messages.ts";
import { Housekeeping } from "./housekeeping.ts";
import { DiskQuota, type GivenLimits, type IdentityLimits, identityLimitsOf } from "./identity-limits.ts";
import type { WhenFull } from "./make-room.ts";
import { ReceiverSession } from "./receiver-session.ts";
import { TableChecks } from "./table-checks.ts";

/** May this peer write this disk? Undefined: yes; else the error it gets. `owner` undefined: the disk does not exist yet. */
export type Authorize = (peer: PeerIdentity, disk: string, owner: string | undefined) => ReplicationError | undefined;

export interface ReceiverOptions {
  readonly store: Store;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly authorize: Authorize;
  readonly software: string;
  readonly codecs: readonly CodecName[];
  /** Of each identity; default: {@link identityLimitsOf} nothing. */
  readonly perIdentity?: GivenLimits | undefined;
  /** When free space is below the store's reserve, or a delta runs out of room; default `stop`. */
  readonly whenFull?: WhenFull | undefined;
  readonly onPoint?: (event: { readonly disk: string; readonly point: Point; readonly peer: PeerIdentity }) => void;
}

export interface Receiver {
  /** Runs a session on a link; the link is the receiver's from here on. */
  accept(link: Link): void;
  /** Sessions under way. */
  readonly sessions: number;
  /** Refuses new links, ends sessions resumably, waits for the last queued write. */
  close(): Promise<void>;
}

export function createReceiver(options: ReceiverOptions): Receiver {
  return new SessionRegistry(options);
}

/** What sessions need of the receiver around them. */
export interface ReceiverSurroundings extends ReceiverOptions {
  /** What identities own. Claims of a session are forgotten when it is over. */
  readonly quota: DiskQuota;
  readonly tableChecks: TableChecks;
  /**
   * Makes this session the one that works on the disk. A session of the same identity and instance that is still there is superseded: resolves when its last
   * queued write has settled. Rejects with `disk-busy` when another peer's session has it.
   */
  claim(disk: string, session: ReceiverSession): Promise<void>;
  /** Tells the embedding program of a point. */
  announce(event: { readonly disk: string; readonly point: Point; readonly peer: PeerIdentity }): void;
  /** Slots for one session: as many as there are, at most the default credit, at least two; else `limit-exceeded`-like refusal that is retried. */
  reserveSlots(): Slot[];
}

class SessionRegistry implements Receiver, ReceiverSurroundings {
  readonly store: Store;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly authorize: Authorize;
  readonly software: string;
  readonly codecs: readonly CodecName[];
  readonly onPoint: NonNullable<ReceiverOptions["onPoint"]>;
  readonly whenFull: WhenFull | undefined;
  readonly quota: DiskQuota;
  readonly tableChecks: TableChecks;
  readonly #limits: IdentityLimits;
  readonly #sessions = new Map<string, ReceiverSession>();
  readonly #disks = new Map<string, ReceiverSession>();
  /** Links that have not said hello, oldest first. */
  readonly #silent = new Set<Link>();
  readonly #housekeeping: Housekeeping;
  #closing = false;

  constructor(options: ReceiverOptions) {
    this.store = options.store;
    this.lanes = options.lanes;
    this.pool = options.pool;
    this.clock = options.clock;
    this.random = options.random;
    this.log = options.log;
    this.authorize = options.authorize;
    this.software = options.software;
    this.codecs = options.codecs;
    this.whenFull = options.whenFull;
    this.onPoint = options.onPoint ?? ((): void => {});
    this.#limits = identityLimitsOf(options.perIdentity);
    this.quota = new DiskQuota(this.store, this.#limits);
    this.tableChecks = new TableChecks(this.clock);
    this.#housekeeping = new Housekeeping(this.store, this.clock, this.log);
  }

  get sessions(): number {
    return this.#sessions.size;
  }

  accept(link: Link): void {
    let session: ReceiverSession | undefined;
    let connection = 0;
    let over = false;
    const stopTimer = this.clock.every(limits.handshakeMillis, () => {
      heard();
      if (session === undefined) {
        link.destroy(new ReplicationError("handshake-timeout", `${link.peer.address} connected and said no hello`));
      }
    });
    const heard = (): void => {
      stopTimer();
      this.#silent.delete(link);
    };
    this.#makeRoom();
    this.#silent.add(link);
    link.start({
      payloadTarget: (message, bytes) => {
        if (session === undefined) throw new ReplicationError("protocol-violation", "a payload before hello");
        return session.payloadTarget(message, bytes);
      },
      onFrame: (frame) => {
        if (session !== undefined) {
          session.receive(frame, connection);
          return;
        }
        // A sender that does not trust this receiver says why before it leaves.
        if (frame.message.type === "error") throw fromErrorMessage(frame.message);
        if (frame.message.type !== "hello") {
          throw new ReplicationError("protocol-violation", `the first message was ${frame.message.type}, not hello`);
        }
        heard();
        [session, connection] = this.#greet(link, frame.message);
      },
      onEnd: (error) => {
        if (over) return;
        over = true;
        heard();
        if (session === undefined) {
          const fields = { peer: link.peer.name, address: link.peer.address, code: error?.code ?? "closed" };
          this.log.warn(fields, error?.message ?? "a connection closed before it said hello");
          return;
        }
        session.linkEnded(connection, error);
      },
    });
  }

  /** For one more link that has said nothing yet: any certificate of the authority opens as many as it likes. */
  #makeRoom(): void {
    const [oldest] = this.#silent;
    if (oldest === undefined || this.#silent.size < limits.pendingHandshakesMax) return;
    const text = `${oldest.peer.address}: closed to make room, ${limits.pendingHandshakesMax} newer connections have said no hello either`;
    this.#silent.delete(oldest);
    oldest.destroy(new ReplicationError("handshake-timeout", text));
  }

  #greet(link: Link, hello: Hello): [ReceiverSession, number] {
    const refuse = (error: ReplicationError): never => {
      link.send(toErrorMessage(error));
      void link.close();
      throw error;
    };
    if (this.#closing) return refuse(new ReplicationError("receiver-stopping", "the receiver is stopping"));
    let answer: Hello;
    const token = hello.join?.token ?? Buffer.from(this.random.bytes(24)).toString("base64url");
    try {
      answer = answerHello(hello, { software: this.software, instance: this.store.id }, token).hello;
    } catch (error) {
      return refuse(toReplicationError(error));
    }
    if (hello.join !== undefined) {
      const session = this.#sessions.get(hello.join.token);
      if (session === undefined || session.peer.fingerprint !== link.peer.fingerprint) {
        return refuse(new ReplicationError("not-allowed", "there is no session of this certificate with that token"));
      }
      session.join(link, hello, hello.join.connection);
      session.greeted(answer, hello.join.connection);
      link.send(answer);
      return [session, hello.join.connection];
    }
    if (this.#sessions.size >= limits.sessionsMax) {
      return refuse(new ReplicationError("receiver-busy", `the receiver has ${limits.sessionsMax} sessions already`));
    }
    const crowded = this.#crowded(link.peer, hello);
    if (crowded !== undefined) return refuse(crowded);
    const session = new ReceiverSession(this, link, hello);
    this.#sessions.set(token, session);
    void session.over.then(() => {
      this.#sessions.delete(token);
      for (const [disk, holder] of this.#disks) {
        if (holder !== session) continue;
        this.#disks.delete(disk);
        this.quota.forget(disk);
        this.#housekeeping.after(disk);
      }
    });
    session.greeted(answer, 0);
    link.send(answer);
    return [session, 0];
  }

  /** The refusal of one more session of this peer, when it has as many as it may. */
  #crowded(peer: PeerIdentity, hello: Hello): ReplicationError | undefined {
    const its = [...this.#sessions.values()].filter((session) => session.peer.name === peer.name);
    // A sender that takes over from itself, its old session not known to be dead yet, is let in beside it.
    const before = its.filter((session) => session.instance === hello.instance).length === 1 ? 1 : 0;
    const { sessions } = this.#limits;
    if (its.length - before < sessions) return undefined;
    return new ReplicationError("receiver-busy", `${peer.name} has ${its.length} sessions at this receiver already`, {
      details: { identity: peer.name, sessions: its.length, sessionsMax: sessions },
    });
  }

  async claim(disk: string, session: ReceiverSession): Promise<void> {
    for (;;) {
      const holder = this.#disks.get(disk);
      if (holder === undefined) {
        this.#disks.set(disk, session);
        return;
      }
      if (holder.peer.name !== session.peer.name || holder.instance !== session.instance) {
        throw new ReplicationError(
          "disk-busy",
          `disk ${disk} is being written by ${holder.peer.name} from ${holder.peer.address}`,
          { details: { holder: holder.peer.name, address: holder.peer.address } },
        );
      }
      holder.fail(
        new ReplicationError("superseded", `disk ${disk}: the same sender connected anew from ${session.peer.address}`),
      );
      await holder.over;
    }
  }

  announce(event: Parameters<ReceiverSurroundings["announce"]>[0]): void {
    try {
      this.onPoint(event);
    } catch (error) {
      // The point is durable whatever the embedding program makes of the news.
      const { disk, point } = event;
      this.log.error({ disk, point: point.point, cause: String(error) }, "the handler of a new point failed");
    }
  }

  reserveSlots(): Slot[] {
    const slots: Slot[] = [];
    // One of them is kept back from the sender's credit.
    const wanted = Math.max(2, Math.min(1 + limits.creditFramesDefault, this.pool.free >> 1));
    while (slots.length < wanted) {
      const slot = this.pool.tryAcquire();
      if (slot === undefined) break;
      slots.push(slot);
    }
    if (slots.length >= 2) return slots;
    for (const slot of slots) slot.release();
    throw new ReplicationError("receiver-busy", "the receiver's memory is taken by other sessions");
  }

  async close(): Promise<void> {
    this.#closing = true;
    const sessions = [...this.#sessions.values()];
    for (const session of sessions) session.fail(new ReplicationError("receiver-stopping", "the receiver is stopping"));
    await Promise.all(sessions.map((session) => session.over));
    await this.#housekeeping.close();
  }
}
