/** Heartbeats both ways, and noticing a peer that is gone: no frame for 30 s is a dead peer, however long its work takes. */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Link } from "../transport/link.ts";

/** Starts watching; the returned function stops it. `links` may grow while watched. */
export function watchLiveness(options: {
  readonly clock: Clock;
  readonly links: () => readonly Link[];
  readonly beat: () => { readonly bytes: number; readonly phase: string };
  readonly onSilent: (error: ReplicationError) => void;
}): () => void {
  const { clock } = options;
  let lastBeat = clock.monotonic();
  return clock.every(1_000, () => {
    const now = clock.monotonic();
    for (const link of options.links()) {
      if (now - link.lastReceived > limits.silenceMillis) {
        const seconds = Math.round((now - link.lastReceived) / 1000);
        options.onSilent(
          new ReplicationError(
            "peer-silent",
            `${link.peer.name} (${link.peer.address}) has said nothing for ${seconds} s`,
          ),
        );
        return;
      }
    }
    if (now - lastBeat < limits.heartbeatMillis) return;
    lastBeat = now;
    for (const link of options.links()) link.send({ type: "heartbeat", ...options.beat() });
  });
}
