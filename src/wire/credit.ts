/**
 * Flow: how many data and zero frames may be under way in a session, and how many went over each of its connections.
 * Pure accounting; both ends keep one of each.
 */
import { InvariantError, invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";

/**
 * The end that keeps the account: what the other end does wrong is its violation, what this end does wrong an
 * invariant.
 */
export type SessionRole = "sender" | "receiver";

/** Credit of one session, over all its connections. */
export interface Credit {
  /** Frames that may be sent (at the receiver: that may arrive) before the next grant. */
  readonly available: number;
  /** One data or zero frame was sent (received). */
  take(): void;
  /** A grant was received (sent). */
  grant(frames: number): void;
}

/**
 * `initial` is the credit of `opened`. At the sender `take` without credit throws `InvariantError` and a grant beyond
 * `limits.creditFramesMax` `protocol-violation`; at the receiver it is the other way round.
 */
export function createCredit(role: SessionRole, initial: number): Credit {
  const fail = (culprit: SessionRole, what: string): never => {
    if (culprit === role) throw new InvariantError(`a ${role} ${what}`);
    throw new ReplicationError("protocol-violation", `the ${culprit} ${what}`);
  };
  let available = 0;
  const grant = (frames: number): void => {
    invariant(Number.isInteger(frames) && frames >= 0, "a grant is a number of frames");
    if (available + frames > limits.creditFramesMax) {
      fail("receiver", `granted ${available + frames} frames, ${limits.creditFramesMax} at a time are allowed`);
    }
    available += frames;
  };
  grant(initial);
  return {
    get available() {
      return available;
    },
    take() {
      if (available === 0) fail("sender", "sent a data or zero frame without credit");
      available--;
    },
    grant,
  };
}

/** Data and zero frames of a session since `open`, for each connection. */
export interface FrameCounts {
  /** One more on this connection. */
  count(connection: number): void;
  /** As `commit` carries them. */
  list(): readonly number[];
  /**
   * Receiver: what `commit` says against what arrived. `behind`: frames are missing yet on some connection. `ahead`:
   * none is missing, and answers to a repeat request overtook on another connection; a later commit counts them. Throws
   * `protocol-violation` for another number of connections than the session has.
   */
  compare(stated: readonly number[]): "equal" | "behind" | "ahead";
}

export function createFrameCounts(connections: number): FrameCounts {
  invariant(connections >= 1 && connections <= limits.connectionsMax, "a session has 1 to connectionsMax connections");
  const counts = Array.from({ length: connections }, () => 0);
  return {
    count(connection) {
      const before = counts[connection];
      invariant(before !== undefined, "frames are counted on a connection of the session");
      counts[connection] = before + 1;
    },
    list: () => [...counts],
    compare(stated) {
      if (stated.length !== connections) {
        throw new ReplicationError(
          "protocol-violation",
          `the sender's commit counts frames of ${stated.length} connections, the session has ${connections}`,
        );
      }
      let ahead = false;
      for (const [connection, count] of counts.entries()) {
        const expected = stated[connection] ?? 0;
        if (count < expected) return "behind";
        if (count > expected) ahead = true;
      }
      return ahead ? "ahead" : "equal";
    },
  };
}
