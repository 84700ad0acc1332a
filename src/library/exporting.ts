/** Serves recovery points over NBD. */
import type { Clock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import { formatNbdUri, type NbdPlace } from "../nbd/nbd-uri.ts";
import { listenNbd } from "../nbd/server.ts";
import { hasItsRoot } from "../replica/points/root.ts";
import type { Point, PointReader, Store } from "../replica/store.ts";
import type { Storage } from "../storage/seam.ts";
import type { CredentialSource } from "../transport/credential-source.ts";
import { isLoopback } from "../transport/names.ts";

export interface ExportedPoint {
  readonly point: Point;
  /** For clients. */
  readonly uri: string;
  /** Clients that are connected. */
  readonly connections: number;
  /**
   * Rejects with `store-damaged` when the point's digests turn out not to be those it was committed with: some block is not as it was, nobody knows which, and it is to be served no
   * longer. Begun when it is served, because a large disk's take a while; resolves when they are, and with `close`. Nobody has to wait for it.
   */
  readonly checked: Promise<void>;
  /** Ends what clients have under way, then lets go of the point. */
  close(): Promise<void>;
}

/**
 * Serves a point read-only to any NBD client, beside whatever is being done to its disk: it stays in use, and is not removed, until `close` has resolved. Every block is
 * compared with its digest before it is served; a damaged one is an I/O error for the client, with a line in the log. Answers to the disk's name and to the empty one.
 *
 * Errors: `usage` for an address that is not this machine's own without `credentials`; `disk-not-found`, `point-not-found`, `store-damaged`, `listen-failed`.
 */
export async function exportPoint(
  store: Store,
  options: {
    readonly engine: {
      readonly storage: Storage;
      readonly clock: Clock;
      readonly random: Random;
      readonly log: Logger;
    };
    readonly disk: string;
    readonly point: number | "newest";
    /** Port 0 picks a free one. */
    readonly place: NbdPlace;
    /** TLS with certificates on both sides. */
    readonly credentials?: CredentialSource | undefined;
  },
): Promise<ExportedPoint> {
  const { engine, disk, place, credentials } = options;
  checkServed(place, credentials);
  const image = await store.openPoint(disk, options.point);
  try {
    const { storage, clock, random, log } = engine;
    const description = `point ${image.point.point} of ${disk}, ${new Date(image.point.time).toISOString()}`;
    const listener = await listenNbd({
      ...{ storage, clock, random, log, credentials, place },
      exports: [{ name: disk, description, image, writable: false }],
    });
    const closing = new AbortController();
    const checked = checkRoot(image, disk, clock, closing.signal);
    checked.catch(() => undefined);
    return {
      point: image.point,
      checked,
      uri: formatNbdUri({ tls: credentials !== undefined, place: listener.place, exportName: disk }),
      get connections() {
        return listener.connections;
      },
      async close() {
        closing.abort();
        await Promise.allSettled([checked]);
        await listener.close();
        await image.close();
      },
    };
  } catch (error) {
    await image.close();
    throw error;
  }
}

async function checkRoot(image: PointReader, disk: string, clock: Clock, signal: AbortSignal): Promise<void> {
  try {
    // Where some digest cannot be told its block is not served, and others are what they were.
    if ((await hasItsRoot(image, { pause: () => clock.sleep(0, signal), signal })) !== false) return;
  } catch (error) {
    if (signal.aborted) return;
    throw error;
  }
  const name = `${disk}@${image.point.point}`;
  throw new ReplicationError(
    "store-damaged",
    `the digests of ${name} are not those it was committed with: some block had rotted before its digest was made anew, and it is not known which. ` +
      "Choose another point (verify tells which are good), or take what there is with restore --salvage",
    { details: { disk, point: image.point.point } },
  );
}

/** Images are served in plain to this machine alone. Throws `usage`. */
export function checkServed(place: NbdPlace, credentials: CredentialSource | undefined): void {
  if (credentials !== undefined || place.kind !== "tcp" || isLoopback(place.host)) return;
  throw new ReplicationError(
    "usage",
    `${place.host} is reached from other machines, which must show certificates: give --tls DIR/NAME (track: --nbd-tls), or serve on 127.0.0.1 or a unix socket`,
  );
}
